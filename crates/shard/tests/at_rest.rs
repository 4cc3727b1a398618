//! A shard at rest: what `check_shard` says of each damage that is planted, and that it changes nothing.

use crate::pool::*;
use peristyle_base::{
    BLOCK_BYTES, ColumnIndex, ColumnName, ColumnPlace, DeviceId, ExtentId, Nonce, RowIndex, ShardId, crc32c,
};
use peristyle_cluster::ShardRecord;
use peristyle_rt::{Buf, sim};
use peristyle_shard::at_rest::{Depth, Resting, ShardCheck, check_shard, extents_of, read_frames};
use peristyle_shard::checkpoint::root::{Root, decode_directory, encode_directory};
use peristyle_shard::frame::Entry;
use peristyle_shard::map::Ptr;
use peristyle_shard::{ColumnFault, Columns, ListedSlot};
use std::collections::BTreeSet;
use std::rc::Rc;

/// The pool's devices when no process serves them, and one that is not the pool's.
struct Rest(Pool, Option<usize>);

impl Resting for Rest {
    async fn list(&self, shard: ShardId) -> Vec<(DeviceId, Result<Vec<ListedSlot>, ColumnFault>)> {
        self.0.list(shard).await
    }
    async fn read(
        &self,
        place: ColumnPlace,
        name: ColumnName,
        row: RowIndex,
        buf: Buf,
    ) -> (Result<(), ColumnFault>, Buf) {
        Columns::read(&self.0, place, name, row, buf).await
    }
    fn domain(&self, device: DeviceId) -> Option<u32> {
        self.0.index_of(device).filter(|i| self.1 != Some(*i)).map(|i| i as u32)
    }
}

/// A shard of 2+1 on four devices that was killed: sealed extents before and behind a checkpoint, open ones, and ready ones.
struct Scene {
    home: Home,
    record: ShardRecord,
    /// Sealed, before the checkpoint's mark, with data that is alive.
    sealed: ExtentId,
    /// First row of its second frame.
    row: u16,
    foreign: Option<usize>,
}

async fn scene() -> Scene {
    let home = Home::new("2+1", 4);
    let shard = home.start().await;
    for i in 0..24 {
        write(&shard, i * 128, 128, i).await.unwrap();
        write(&shard, 4000 + i % 3, 1, 100 + i).await.unwrap();
    }
    shard.checkpoint().await.unwrap();
    for i in 0..4 {
        write(&shard, i * 128 + 64, 16, 50 + i).await.unwrap();
    }
    ms(20).await;
    home.kill(shard);
    let (record, sealed) = (home.record(), ExtentId(home.pool.extents()[0].0));
    let mark = record.checkpoint.as_ref().unwrap().mark;
    let wide = |id: &ExtentId| home.pool.columns_of(*id).len() == 3;
    let is_sealed = |id: &ExtentId| home.pool.columns_of(*id).values().all(|rows| rows.is_some());
    let ids = home.pool.extents();
    let sealed = ids.into_iter().find(|id| *id >= sealed && *id < mark && wide(id) && is_sealed(id));
    let sealed = sealed.expect("an extent was filled before the checkpoint");
    let row = home.pool.header(sealed, 0, 0).unwrap().0.layout().end_row();
    Scene { home, record, sealed, row, foreign: None }
}

impl Scene {
    async fn check(&self, depth: Depth) -> ShardCheck {
        let rest = Rc::new(Rest(self.home.pool.clone(), self.foreign));
        check_shard(rest, &self.record, self.home.config.scheme, depth, |_, _| ()).await
    }
    fn flip(&self, column: usize, row: u16) {
        self.home.pool.change_row(self.sealed, column, row, |bytes| bytes[77] ^= 4);
    }
    fn ready(&self) -> ExtentId {
        self.record.open_set.last().expect("a stock").extent
    }
    /// A device without a column of the sealed extent.
    fn spare(&self) -> usize {
        self.spare_of(self.sealed)
    }
    fn spare_of(&self, extent: ExtentId) -> usize {
        let taken: BTreeSet<usize> = (0..3).map(|c| self.home.pool.device_of(extent, c)).collect();
        (0..4).find(|device| !taken.contains(device)).unwrap()
    }
    /// Writes another header over all copies at a row, with good checksums.
    fn forge(&self, row: u16, change: impl Fn(&mut Vec<Entry>)) {
        let (header, mut entries) = self.home.pool.header(self.sealed, 0, row).unwrap();
        change(&mut entries);
        for column in [0, 2] {
            self.home.pool.change_row(self.sealed, column, row, |block| header.encode(entries.iter(), block));
        }
    }
}

/// Counts in the checkpoint's root that are one too high, all checksums on the way to it made right.
fn miscount(scene: &mut Scene) {
    let Scene { home, record, .. } = scene;
    let write = |at: (ExtentId, usize, u16), bytes: &[u8]| {
        let mut block = vec![0; BLOCK_BYTES];
        block[..bytes.len()].copy_from_slice(bytes);
        home.pool.change_row(at.0, at.1, at.2, |there| there.copy_from_slice(&block));
        crc32c(&block)
    };
    let named = &mut record.checkpoint.as_mut().unwrap().root[0];
    let directory = (named.extent, named.column().0 as usize, named.row().0);
    let block = home.pool.row(directory.0, directory.1, directory.2).unwrap();
    let stream = match Root::begins_in(&block) {
        true => directory,
        false => {
            let ptr = decode_directory(0, &block).unwrap()[0];
            (ptr.extent(), ptr.column().0 as usize, ptr.row().0)
        }
    };
    let mut root = Root::decode(&home.pool.row(stream.0, stream.1, stream.2).unwrap()).unwrap();
    root.extents.as_mut().unwrap()[0].1.live += 1;
    let crc = write(stream, &root.encode());
    named.crc = match stream == directory {
        true => crc,
        false => {
            let ptr = Ptr::new(stream.0, ColumnIndex(stream.1 as u8), RowIndex(stream.2), crc);
            let mut block = vec![0; BLOCK_BYTES];
            encode_directory(0, &[ptr], &mut block);
            write(directory, &block)
        }
    };
}

type Plant = fn(&mut Scene);

/// What is done, what the headers tell, and what the data tells beside that.
#[rustfmt::skip]
const DAMAGES: &[(&str, Plant, &[&str], &[&str])] = &[
    ("nothing", |_| (), &[], &[]),
    ("a data block has a wrong bit", |s| s.flip(1, s.row + 3), &[], &["block-damaged"]),
    ("parity has a wrong bit", |s| s.flip(2, s.row + 1), &[], &["parity-damaged"]),
    ("data and parity of one row", |s| { s.flip(1, s.row + 3); s.flip(2, s.row + 3); }, &[], &["block-damaged"]),
    ("one copy of a header has a wrong bit", |s| s.flip(0, s.row), &["header-copy"], &[]),
    ("one copy of a header was lost", |s| s.home.pool.change_row(s.sealed, 2, s.row, |b| b.fill(0)), &["header-copy"], &[]),
    ("a copy of another frame's header", |s| {
            let other = s.home.pool.row(s.sealed, 2, 0).unwrap();
            s.home.pool.change_row(s.sealed, 2, s.row, |b| b.copy_from_slice(&other));
        }, &["header-copy"], &[]),
    ("every copy of a header", |s| { s.flip(0, s.row); s.flip(2, s.row); }, &["log-broken", "map-disagrees"], &[]),
    ("a header that says another block", |s| s.forge(s.row, |entries| {
            let Entry::Data { block, .. } = &mut entries[0] else { panic!("data") };
            *block += 3000;
        }), &["map-disagrees"], &[]),
    ("a header that says another checksum", |s| s.forge(s.row, |entries| {
            let Entry::Data { crc, .. } = &mut entries[0] else { panic!("data") };
            *crc ^= 1;
        }), &["map-disagrees"], &["block-damaged"]),
    ("a column is lost", |s| s.home.pool.lose_column(s.sealed, 1), &["column-lost"], &[]),
    ("more columns are lost than can be", |s| (1..3).for_each(|c| s.home.pool.lose_column(s.sealed, c)),
        &["column-lost", "extent-lost"], &[]),
    ("an extent is lost", |s| (0..3).for_each(|c| s.home.pool.lose_column(s.sealed, c)), &["extent-lost"], &[]),
    ("nothing: a column was made anew beside its old self, which missed its seal", |s| {
            s.home.pool.copy_column(s.sealed, 1, s.spare(), |_, sealed| *sealed = None);
        }, &[], &[]),
    ("a column twice", |s| {
            let open = s.record.open_set.iter().find(|e| e.columns.len() == 3).unwrap().extent;
            s.home.pool.copy_column(open, 1, s.spare_of(open), |_, _| ());
        }, &["column-twice"], &[]),
    ("two columns on one device", |s| {
            let to = s.home.pool.device_of(s.sealed, 0);
            s.home.pool.move_column(s.sealed, 1, to, |_, _| ());
        }, &["same-domain"], &[]),
    ("a slot that names its extent wrongly", |s| {
            s.home.pool.copy_column(s.sealed, 1, s.spare(), |name, _| name.nonce = Nonce([9; 16]));
        }, &["slot-disagrees"], &[]),
    ("a column that the scheme has not", |s| {
            s.home.pool.copy_column(s.sealed, 1, s.spare(), |name, _| name.column.0 = 7);
        }, &["slot-disagrees"], &[]),
    ("nothing: a column was sealed with rows that a takeover without it gave up", |s| {
            s.home.pool.move_column(s.sealed, 1, s.spare(), |_, sealed| *sealed = sealed.map(|rows| rows + 2));
        }, &[], &[]),
    ("a column sealed without rows that are in use", |s| {
            s.home.pool.move_column(s.sealed, 1, s.spare(), |_, sealed| *sealed = sealed.map(|rows| rows - 1));
        }, &["rows-disagree"], &[]),
    ("a block that cannot be read", |s| {
            let (extent, row) = (s.sealed, s.row + 3);
            s.home.pool.rule(move |a| match a.what == What::Read && a.extent == extent && a.column == 1 {
                true if (a.row..a.row + a.rows).contains(&row) => Do::Fail(ColumnFault::Device),
                _ => Do::It,
            });
        }, &[], &["block-unreadable"]),
    ("a map block that says otherwise", |s| {
            let root = &s.record.checkpoint.as_ref().unwrap().root[0];
            let (extent, row) = (root.extent, root.row().0);
            let headers = (0..=row).rev().filter_map(|row| Some((row, s.home.pool.header(extent, 0, row)?)));
            let (at, (header, mut entries)) = { headers }.next().unwrap();
            entries.iter_mut().for_each(|entry| if let Entry::Map { crc, .. } = entry { *crc ^= 1 });
            let width = header.scheme.width();
            for column in std::iter::once(0).chain(header.scheme.k()..width) {
                s.home.pool.change_row(extent, column, at, |block| header.encode(entries.iter(), block));
            }
        }, &["checkpoint-disagrees"], &["block-damaged"]),
    ("a count that is wrong", miscount, &["counts-disagree", "checkpoint-disagrees"], &["block-damaged"]),
    ("a device of another pool", |s| s.foreign = Some(s.spare()), &["foreign-device"], &[]),
    ("a number that was never given out", |s| {
            s.record.next_extent = *s.home.pool.extents().last().unwrap();
        }, &["beyond-the-record"], &[]),
    ("a column of the open set is gone", |s| s.home.pool.lose_column(s.ready(), 0), &["recorded-column-gone"], &[]),
    ("a committed frame is missing", |s| s.record.committed.0 += 100, &["not-recoverable"], &[]),
    ("the checkpoint's root says something else", |s| s.record.checkpoint.as_mut().unwrap().root[0].crc ^= 1,
        &["not-recoverable"], &[]),
    ("a device is away", |s| s.home.pool.away(s.spare(), true), &["device-away", "column-lost"], &[]),
];

#[test]
fn every_damage_of_a_shard_at_rest_is_found_and_nothing_else() {
    for (damage, plant, headers, data) in DAMAGES {
        sim::run(7, |_| async move {
            let mut scene = scene().await;
            plant(&mut scene);
            scene.home.pool.take_log();
            let kinds = |check: &ShardCheck| -> BTreeSet<&str> {
                check.problems.list().iter().map(|p| p.kind()).collect()
            };
            let check = scene.check(Depth::Headers).await;
            let expected: BTreeSet<&str> = headers.iter().copied().collect();
            assert_eq!(kinds(&check), expected, "{damage}: {:?}", check.problems.list());
            let check = scene.check(Depth::Data).await;
            let expected: BTreeSet<&str> = headers.iter().chain(*data).copied().collect();
            assert_eq!(kinds(&check), expected, "{damage}: {:?}", check.problems.list());
            if headers.is_empty() && data.is_empty() {
                assert!(
                    check.live_blocks > 3000 && check.map_blocks > 10 && check.blocks_read > 4500,
                    "{check:?}"
                );
            }
            let asked = scene.home.pool.take_log();
            assert!(asked.iter().all(|(asked, _)| asked.what == What::Read), "a check only reads");
        });
    }
}

#[test]
fn all_that_a_shard_can_have_is_planted() {
    let kinds: BTreeSet<_> =
        DAMAGES.iter().flat_map(|(_, _, headers, data)| headers.iter().chain(*data)).collect();
    assert_eq!(kinds.len(), 19, "{kinds:?}");
}

#[test]
fn a_sound_shard_is_sound_wherever_it_was_killed() {
    for seed in 0..12u64 {
        sim::run(seed, |_| async move {
            let home = Home::new(["2+1", "1+1", "2+2"][seed as usize % 3], 5);
            let mut shard = home.start().await;
            for round in 0..3 {
                for i in 0..20 + seed * 3 {
                    let at = (i * 37 + seed * 11 + round) % 4000;
                    write(&shard, at, 1 + (i as usize * 7) % 60, seed * 1000 + i).await.unwrap();
                    if (i + seed) % 9 == 4 {
                        shard.checkpoint().await.unwrap();
                    }
                }
                // Cut off in the middle of a write.
                let last = write(&shard, 5, 30, seed);
                peristyle_rt::timeout(peristyle_rt::Duration::from_micros(15 + seed * 9), last).await;
                home.kill(shard);
                let rest = Rc::new(Rest(home.pool.clone(), None));
                let record = home.record();
                let check = check_shard(rest, &record, home.config.scheme, Depth::Data, |_, _| ()).await;
                assert!(check.problems.list().is_empty(), "seed {seed}: {:?}", check.problems.list());
                shard = home.recover().await.unwrap();
            }
            home.kill(shard);
        });
    }
}

#[test]
fn an_extent_is_told_frame_by_frame_with_what_each_column_has() {
    sim::run(3, |_| async {
        let scene = scene().await;
        scene.flip(2, scene.row);
        let rest = Rest(scene.home.pool.clone(), None);
        let extents = extents_of(ShardId(0), &rest.list(ShardId(0)).await);
        let frames = read_frames(&rest, &extents[&scene.sealed]).await;
        assert_eq!(Some(frames.end), extents[&scene.sealed].sealed_rows());
        assert!(!frames.broken && frames.list.len() > 3);
        use peristyle_shard::at_rest::CopyState::{Damaged, Good};
        assert_eq!(frames.list[0].copies, [(0, Good), (2, Good)]);
        assert_eq!(frames.list[1].copies, [(0, Good), (2, Damaged)]);
    });
}
