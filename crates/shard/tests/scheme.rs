//! A pool whose scheme is changed while it is used (DESIGN §6).

use crate::pool::*;
use peristyle_base::Scheme;
use peristyle_rt::sim::{self, Rng};
use peristyle_shard::{Fate, ShardError};
use std::cell::RefCell;
use std::collections::BTreeMap;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 4096;

/// What its one layer holds: the salt of each block.
#[derive(Default)]
struct Contents(RefCell<BTreeMap<u64, u64>>);

impl Contents {
    /// Commands of all sizes, here and there.
    async fn write(&self, shard: &TestShard, rng: &mut Rng, commands: u64) -> Result<(), ShardError> {
        for _ in 0..commands {
            let count = if rng.below(3) == 0 { 1 + rng.below(100) } else { 1 + rng.below(4) };
            let (block, salt) = (rng.below(BLOCKS - count), rng.below(1 << 40) << 8);
            let data: Vec<u8> = (0..count).flat_map(|i| fill(1, salt + i)).collect();
            shard.write(L, block * BLOCK, view(&data).await).await?;
            self.0.borrow_mut().extend((0..count).map(|i| (block + i, salt + i)));
        }
        Ok(())
    }

    async fn expect(&self, shard: &TestShard) {
        let blocks: Vec<(u64, u64)> = self.0.borrow().iter().map(|(b, s)| (*b, *s)).collect();
        for (block, salt) in blocks {
            expect(shard, block, 1, salt).await;
        }
        shard.check_counts().await.unwrap();
    }
}

/// Whether all columns have as many parity columns beside them as the scheme, and not more data columns.
fn is_converted(home: &Home, scheme: Scheme) -> bool {
    let fits = |s: &String| s.parse::<Scheme>().is_ok_and(|s| s.m() == scheme.m() && s.k() <= scheme.k());
    home.pool.schemes().keys().all(fits)
}

async fn until_converted(home: &Home, scheme: Scheme) {
    for _ in 0..600 {
        if is_converted(home, scheme) {
            return;
        }
        ms(500).await;
    }
    panic!("{scheme}: {:?}", home.pool.schemes());
}

#[test]
fn a_pool_is_converted_to_another_scheme_and_back_while_it_is_written_and_restarted() {
    for (seed, from, to) in
        [(1, "1+1", "4+2"), (2, "2+1", "1+2"), (3, "4+2", "2+0"), (4, "1+1", "3+1"), (5, "4+2", "1+2")]
    {
        sim::run(seed, move |_| async move {
            let home = Home::new(from, 6);
            let (contents, mut rng) = (Contents::default(), Rng::new(seed));
            let mut shard = home.start().await;
            contents.write(&shard, &mut rng, 400).await.unwrap();
            for scheme in [to, from].map(|s| s.parse().unwrap()) {
                home.pool.set_scheme(scheme);
                contents.write(&shard, &mut rng, 200).await.unwrap();
                home.kill(shard);
                shard = home.recover().await.unwrap();
                contents.write(&shard, &mut rng, 200).await.unwrap();
                until_converted(&home, scheme).await;
                contents.expect(&shard).await;
                // The new scheme's own losses, and no fewer.
                (0..scheme.m()).for_each(|device| home.pool.away(device, true));
                contents.expect(&shard).await;
                contents.write(&shard, &mut rng, 20).await.unwrap();
                (0..scheme.m()).for_each(|device| home.pool.away(device, false));
                ms(2000).await;
            }
        });
    }
}

/// Nothing needs to be written for it, and an idle shard comes to rest.
#[test]
fn an_idle_pool_is_converted_as_well_and_then_nothing_moves_any_more() {
    sim::run(7, |_| async {
        let home = Home::new("4+2", 6);
        let (contents, mut rng) = (Contents::default(), Rng::new(7));
        let shard = home.start().await;
        contents.write(&shard, &mut rng, 400).await.unwrap();
        let scheme = "2+2".parse().unwrap();
        home.pool.set_scheme(scheme);
        until_converted(&home, scheme).await;
        ms(5000).await;
        home.pool.take_log();
        ms(120_000).await;
        assert_eq!(home.pool.take_log().len(), 0);
        contents.expect(&shard).await;
    });
}

#[test]
fn what_had_to_be_written_with_less_protection_is_converted_when_there_are_enough_devices_again() {
    sim::run(8, |_| async {
        let mut home = Home::new("2+2", 4);
        home.config.too_few = peristyle_cluster::TooFewPolicy::Continue;
        let (contents, mut rng) = (Contents::default(), Rng::new(8));
        let shard = home.start().await;
        contents.write(&shard, &mut rng, 50).await.unwrap();
        (0..2).for_each(|device| home.pool.fate(device, Fate::Away));
        contents.write(&shard, &mut rng, 200).await.unwrap();
        let scheme = "2+2".parse().unwrap();
        assert!(!is_converted(&home, scheme), "{:?}", home.pool.schemes());
        (0..2).for_each(|device| home.pool.fate(device, Fate::Here));
        until_converted(&home, scheme).await;
        contents.expect(&shard).await;
    });
}
