//! A small geometry, completely: every offset and length in two stripes, with every set of devices away that the scheme covers,
//! while data is read, while it is written, and while the shard is taken over.

use crate::pool::*;
use peristyle_base::BLOCK_BYTES;
use peristyle_rt::sim;

const SECTOR: usize = 512;

/// Every set of at most `most` of so many devices.
fn sets(devices: usize, most: usize) -> Vec<Vec<usize>> {
    let members = |bits: u32| (0..devices).filter(|d| bits >> d & 1 == 1).collect::<Vec<_>>();
    (0..1 << devices).map(members).filter(|set| set.len() <= most).collect()
}

/// Every offset and length in so many units.
fn ranges(units: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..units).flat_map(move |offset| (1..=units - offset).map(move |length| (offset, length)))
}

/// A volume's beginning, and what it has to hold.
struct Region {
    home: Home,
    shard: TestShard,
    model: Vec<u8>,
    salt: u64,
}

impl Region {
    async fn new(scheme: &str, devices: usize, blocks: usize) -> Region {
        let home = Home::new(scheme, devices);
        let shard = home.start().await;
        Region { home, shard, model: vec![0; blocks * BLOCK_BYTES], salt: 1 }
    }
    fn set_away(&self, set: &[usize], away: bool) {
        set.iter().for_each(|&device| self.home.pool.away(device, away));
    }
    /// Bytes.
    async fn write(&mut self, offset: usize, length: usize) {
        self.salt += 1;
        let data = fill(length.div_ceil(BLOCK_BYTES), self.salt);
        self.model[offset..offset + length].copy_from_slice(&data[..length]);
        self.shard.write(L, offset as u64, view(&data[..length]).await).await.unwrap();
    }
    async fn check(&self, what: &str) {
        let read = self.shard.read(L, 0, self.model.len() as u64).await;
        let read = read.unwrap_or_else(|e| panic!("{what}: {e}"));
        let data: Vec<u8> = read.to_vec();
        let wrong = data.iter().zip(&self.model).position(|(a, b)| a != b);
        assert_eq!(wrong, None, "{what}: a wrong byte");
    }
    /// Nothing but this shard's restart: what was acknowledged is in its columns.
    async fn take_over(self) -> Region {
        let Region { home, shard, model, salt } = self;
        home.kill(shard);
        let shard = home.recover().await.expect("no more devices are away than the scheme covers");
        Region { home, shard, model, salt }
    }
}

const SCHEMES: [(&str, usize, usize, usize); 2] = [("2+1", 3, 2, 1), ("2+2", 4, 2, 2)];

#[test]
fn whatever_was_written_is_read_with_any_devices_away_that_the_scheme_covers() {
    for (scheme, devices, k, m) in SCHEMES {
        sim::run(1, move |_| async move {
            let mut region = Region::new(scheme, devices, 2 * k).await;
            let (sets, mut cases) = (sets(devices, m), 0);
            for (offset, length) in ranges(2 * k * BLOCK_BYTES / SECTOR) {
                region.write(offset * SECTOR, length * SECTOR).await;
                for set in &sets {
                    region.set_away(set, true);
                    region.check(&format!("{scheme}, {length} sectors at {offset}, {set:?} away")).await;
                    region.set_away(set, false);
                    cases += 1;
                }
            }
            assert_eq!(cases, 528 * sets.len(), "32 sectors have so many ranges");
        });
    }
}

#[test]
fn whatever_is_written_while_devices_are_away_is_read_then_and_when_they_are_back() {
    for (scheme, devices, k, m) in SCHEMES {
        sim::run(2, move |_| async move {
            // As many devices more as may be away: k shrinks only when it has to.
            let mut region = Region::new(scheme, devices + m, 2 * k).await;
            for (offset, length) in ranges(2 * k) {
                for set in sets(devices + m, m) {
                    let what = format!("{scheme}, {length} blocks at {offset}, {set:?} away");
                    region.set_away(&set, true);
                    region.write(offset * BLOCK_BYTES, length * BLOCK_BYTES).await;
                    region.check(&what).await;
                    region.set_away(&set, false);
                    region.check(&format!("{what} and back")).await;
                }
            }
        });
    }
}

#[test]
fn whatever_was_written_is_found_by_a_takeover_with_devices_away() {
    for (scheme, devices, k, m) in SCHEMES {
        sim::run(3, move |_| async move {
            for set in sets(devices, m) {
                let mut region = Region::new(scheme, devices + m, 2 * k).await;
                for (offset, length) in ranges(2 * k) {
                    region.write(offset * BLOCK_BYTES, length * BLOCK_BYTES).await;
                    region.set_away(&set, true);
                    region = region.take_over().await;
                    region.check(&format!("{scheme}, {length} blocks at {offset}, {set:?} away")).await;
                    region.set_away(&set, false);
                }
            }
        });
    }
}
