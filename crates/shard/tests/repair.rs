//! Columns that are lost, damaged, or on a device that comes, goes or is fuller than others (DESIGN §6, §11 "Columns and
//! slots").

use crate::pool::*;
use peristyle_base::{BLOCK_BYTES as BLOCK, ExtentId, crc32c};
use peristyle_rt::Duration;
use peristyle_rt::sim::{self, Rng};
use peristyle_shard::{Fate, Pace, RecoverError, RepairFigures, WriteClass};
use std::cell::Cell;
use std::rc::Rc;

/// Writes 2048 blocks, 8 of 2+1's wide extents, and has them sealed.
pub async fn filled(home: &Home, salt: u64) -> TestShard {
    let shard = home.start().await;
    write_all(&shard, salt).await;
    ms(2000).await;
    shard
}

pub async fn write_all(shard: &TestShard, salt: u64) {
    for i in 0..32 {
        write(shard, i * 128, 128, salt + i).await.unwrap();
    }
}

pub async fn expect_all(shard: &TestShard, salt: u64) {
    for i in 0..32 {
        expect(shard, i * 128, 128, salt + i).await;
    }
}

pub fn figures(shard: &TestShard) -> RepairFigures {
    shard.repair_figures(peristyle_rt::now())
}

/// Waits until nothing is to be made anew any more.
pub async fn repaired(shard: &TestShard) {
    for _ in 0..600 {
        ms(100).await;
        let f = figures(shard);
        if f.lost_columns + f.draining_columns + f.away_columns == 0 && f.working_ns == 0 {
            return;
        }
    }
    panic!("not repaired after a minute: {:?}", figures(shard));
}

/// Rows that were written into columns that were made anew since this was asked last.
fn remade_rows(home: &Home) -> u64 {
    let log = home.pool.take_log();
    log.iter()
        .filter(|(a, r)| a.class == Some(WriteClass::Repair) && r.is_ok())
        .map(|(a, _)| a.rows as u64)
        .sum()
}

/// A sealed extent, and the device of its first column.
fn some_column(home: &Home) -> (ExtentId, usize) {
    let sealed = |e: &ExtentId| home.pool.columns_of(*e).values().all(Option::is_some);
    let extent = home.pool.extents().into_iter().find(sealed).expect("some extent is sealed");
    (extent, home.pool.copies(extent, 0)[0].0)
}

#[test]
fn any_two_lost_devices_are_rebuilt_and_any_two_more_may_go() {
    for seed in 0..6 {
        sim::run(seed, move |_| async move {
            let mut rng = Rng::new(seed);
            let home = Home::new("4+2", 10);
            let shard = filled(&home, 0).await;
            let lost = rng.below(10) as usize;
            let others = [lost, (lost + 1 + rng.below(9) as usize) % 10];
            others.iter().for_each(|&d| home.pool.fate(d, Fate::Lost));
            write_all(&shard, 100).await;
            expect_all(&shard, 100).await;
            ms(3000).await;
            repaired(&shard).await;
            assert!(figures(&shard).remade_columns > 0);
            // As if they had never been there.
            others.iter().for_each(|&d| home.pool.clear(d));
            home.pool.check_sealed();
            expect_all(&shard, 100).await;
            let more: Vec<usize> = (0..10).filter(|d| !others.contains(d)).collect();
            home.pool.away(more[rng.below(4) as usize], true);
            home.pool.away(more[4 + rng.below(4) as usize], true);
            expect_all(&shard, 100).await;
        });
    }
}

/// A block that ends with its own CRC32C, as many formats have it: all of them have the same CRC32C, and the parity of two
/// has the one of zeros.
fn self_checked(salt: u64) -> Vec<u8> {
    let mut block = fill(1, salt);
    let sum = crc32c(&block[..BLOCK - 4]);
    block[BLOCK - 4..].copy_from_slice(&sum.to_le_bytes());
    block
}

#[test]
fn what_a_column_holds_decides_whether_it_is_zeros_and_not_its_checksum() {
    sim::run(11, |_| async {
        let home = Home::new("2+2", 6);
        let shard = home.start().await;
        let data = |i: u64| (0..128).flat_map(|n| self_checked(i * 128 + n)).collect::<Vec<u8>>();
        for i in 0..32 {
            shard.write(L, i * 128 * BLOCK as u64, view(&data(i)).await).await.unwrap();
        }
        ms(2000).await;
        for lost in [[0, 1], [2, 3]] {
            lost.iter().for_each(|&d| home.pool.fate(d, Fate::Lost));
            ms(3000).await;
            repaired(&shard).await;
            lost.iter().for_each(|&d| home.pool.clear(d));
            for i in 0..32 {
                assert!(read(&shard, i * 128, 128).await.unwrap() == data(i), "write {i} without {lost:?}");
            }
            lost.iter().for_each(|&d| home.pool.fate(d, Fate::Here));
        }
        assert!(figures(&shard).remade_columns > 0);
        home.pool.check_sealed();
    });
}

#[test]
fn a_device_that_may_come_back_is_not_rebuilt_and_one_that_never_will_is() {
    sim::run(1, |_| async {
        let home = Home::new("2+1", 5);
        let shard = filled(&home, 0).await;
        let (_, device) = some_column(&home);
        home.pool.away(device, true);
        remade_rows(&home);
        ms(20_000).await;
        assert_eq!(remade_rows(&home), 0);
        assert!(figures(&shard).away_columns > 0 && figures(&shard).lost_columns == 0);
        // Neither is what a start does not find, as long as it may be there.
        home.kill(shard);
        let shard = home.recover().await.unwrap();
        ms(20_000).await;
        assert_eq!(remade_rows(&home), 0);
        home.pool.fate(device, Fate::Lost);
        ms(2000).await;
        repaired(&shard).await;
        assert!(remade_rows(&home) > 0);
        home.pool.clear(device);
        home.pool.check_sealed();
        expect_all(&shard, 0).await;
    });
}

#[test]
fn a_block_whose_device_is_away_takes_as_long_as_one_read_of_k_others_at_once() {
    sim::run(3, |_| async {
        let home = Home::new("4+2", 6);
        let shard = filled(&home, 0).await;
        home.pool.away(some_column(&home).1, true);
        let slow = Duration::from_millis(4);
        home.pool.rule(move |a| if a.what == What::Read { Do::Late(slow) } else { Do::It });
        home.pool.take_log();
        let mut reconstructed = 0;
        for block in 0..64 {
            let begun = peristyle_rt::now();
            let data = read(&shard, block, 1).await.unwrap();
            assert!(data == fill(128, 0)[block as usize * BLOCK..][..BLOCK]);
            let took = peristyle_rt::now().since(begun);
            assert!(took < slow + slow / 2, "block {block} took {took:?}");
            let answered =
                home.pool.take_log().iter().filter(|(a, r)| a.what == What::Read && r.is_ok()).count();
            assert!([1, 4].contains(&answered), "block {block}: {answered} columns were read");
            reconstructed += usize::from(answered == 4);
        }
        assert!(reconstructed > 0, "none of them lay on the device that is away");
    });
}

#[test]
fn a_device_that_comes_back_gets_only_what_it_missed() {
    sim::run(2, |_| async {
        let home = Home::new("2+1", 4);
        let shard = filled(&home, 0).await;
        let (_, device) = some_column(&home);
        home.kill(shard);
        // The start does not find it; what is written meanwhile goes without it.
        home.pool.away(device, true);
        let shard = home.recover().await.unwrap();
        write(&shard, 0, 128, 500).await.unwrap();
        ms(3000).await;
        home.pool.take_log();
        home.pool.away(device, false);
        ms(2000).await;
        repaired(&shard).await;
        // Extents that were open when it went away are filled, and no more.
        let columns = figures(&shard).remade_columns;
        assert!(columns <= 3, "{columns} columns were made anew");
        assert!(remade_rows(&home) <= columns * 512);
        assert!(figures(&shard).adopted_columns >= 2, "{:?}", figures(&shard));
        home.pool.check_sealed();
        expect(&shard, 0, 128, 500).await;
        expect(&shard, 128, 128, 1).await;
    });
}

#[test]
fn what_was_made_anew_elsewhere_or_freed_meanwhile_is_freed_on_the_device_that_comes_back() {
    sim::run(3, |_| async {
        let home = Home::new("2+1", 5);
        let shard = filled(&home, 0).await;
        let (_, device) = some_column(&home);
        home.pool.fate(device, Fate::Lost);
        ms(2000).await;
        repaired(&shard).await;
        let stale = home.pool.used()[device];
        assert!(stale > 0);
        // Half of it is overwritten and freed.
        for i in 0..16 {
            write(&shard, i * 128, 128, 100 + i).await.unwrap();
        }
        shard.checkpoint().await.unwrap();
        ms(1000).await;
        home.pool.fate(device, Fate::Here);
        ms(3000).await;
        assert!(figures(&shard).leftovers_freed as usize >= stale, "{:?}", figures(&shard));
        home.pool.check_sealed();
        for i in 0..32 {
            expect(&shard, i * 128, 128, if i < 16 { 100 + i } else { i }).await;
        }
    });
}

#[test]
fn a_rebuilt_column_is_made_from_verified_rows_only() {
    sim::run(4, |_| async {
        let home = Home::new("4+2", 8);
        let shard = filled(&home, 0).await;
        let (extent, device) = some_column(&home);
        // In each row another column lies, so that every row needs another choice.
        let columns: Vec<usize> = home.pool.columns_of(extent).into_keys().collect();
        for row in 0..400 {
            let liar = 1 + row as usize % (columns.len() - 1);
            home.pool.change_row(extent, liar, row, |block| block[77] ^= 0x10);
        }
        home.pool.fate(device, Fate::Lost);
        ms(2000).await;
        repaired(&shard).await;
        home.pool.clear(device);
        for (stated, there) in home.pool.stated(extent, 0) {
            assert_eq!(stated, there);
        }
        home.pool.no_rule();
        expect_all(&shard, 0).await;
        // The others are repaired once they are found.
        shard.scrub_now();
        ms(20_000).await;
        repaired(&shard).await;
        assert!(shard.is_scrubbed());
        home.pool.check_sealed();
    });
}

#[test]
fn a_column_that_cannot_be_verified_is_not_made_up() {
    sim::run(5, |_| async {
        let home = Home::new("2+1", 5);
        let shard = filled(&home, 0).await;
        let (extent, device) = some_column(&home);
        home.pool.change_row(extent, 1, 3, |block| block[0] ^= 1);
        home.pool.fate(device, Fate::Lost);
        ms(20_000).await;
        assert!(figures(&shard).failed_remakes > 0 && figures(&shard).lost_columns == 1);
        let copies = home.pool.copies(extent, 0);
        assert_eq!(copies.iter().filter(|c| c.0 != device).count(), 0, "nothing of it is left behind");
        home.pool.change_row(extent, 1, 3, |block| block[0] ^= 1);
        ms(10_000).await;
        repaired(&shard).await;
        home.pool.clear(device);
        home.pool.check_sealed();
    });
}

#[test]
fn a_rebuild_whose_only_device_is_full_makes_room_of_what_is_dead() {
    sim::run(7, |_| async {
        let home = Home::new("2+1", 3);
        let shard = filled(&home, 0).await;
        let before = home.pool.extents();
        write_all(&shard, 100).await;
        ms(2000).await;
        assert!(shard.space_figures().waiting_extents > 0, "what was overwritten waits for a checkpoint");
        // A column that can only be where it was, and no slot left there but for those that are kept back.
        let sealed = |e: &ExtentId| home.pool.columns_of(*e).values().all(Option::is_some);
        let extent = home.pool.extents().into_iter().rfind(|e| !before.contains(e) && sealed(e)).unwrap();
        let device = home.pool.device_of(extent, 0);
        home.pool.lose_column(extent, 0);
        home.pool.slots_of(device, home.pool.used()[device] as u32 + KEPT_BACK + KEPT_FOR_COLLECTION);
        shard.scrub_now();
        ms(2000).await;
        repaired(&shard).await;
        assert!(figures(&shard).failed_remakes > 0, "it was tried when there was no room");
        home.pool.check_sealed();
        expect_all(&shard, 100).await;
    });
}

#[test]
fn a_crash_in_the_middle_of_a_rebuild_leaves_no_slot_behind_and_the_rest_goes_on() {
    for after in [1, 3, 10, 40, 120] {
        sim::run(6, move |_| async move {
            let home = Home::new("2+1", 5);
            let shard = filled(&home, 0).await;
            let (_, device) = some_column(&home);
            let writes = Rc::new(Cell::new(0));
            let seen = writes.clone();
            home.pool.rule(move |a| {
                let mine = a.class == Some(WriteClass::Repair) || matches!(a.what, What::Fill);
                seen.set(seen.get() + u32::from(mine));
                if seen.get() >= after
                    && matches!(a.what, What::Append | What::Seal | What::Fill | What::Free)
                {
                    return Do::Hang;
                }
                Do::It
            });
            home.pool.fate(device, Fate::Lost);
            ms(3000).await;
            home.kill(shard);
            let shard = home.recover().await.unwrap();
            ms(2000).await;
            repaired(&shard).await;
            home.pool.clear(device);
            assert_eq!(home.pool.filling(), 0);
            home.pool.check_sealed();
            expect_all(&shard, 0).await;
        });
    }
}

#[test]
fn of_two_sealed_copies_of_a_column_one_is_freed() {
    sim::run(7, |_| async {
        let home = Home::new("2+1", 5);
        let shard = filled(&home, 0).await;
        let (_, device) = some_column(&home);
        // The owner ends between the seal of the new copies and the end of the old ones.
        home.pool.rule(|a| if a.what == What::Free { Do::Hang } else { Do::It });
        home.pool.fate(device, Fate::Draining);
        ms(3000).await;
        let twice = |home: &Home| {
            let extents = home.pool.extents();
            extents
                .iter()
                .flat_map(|&e| (0..3).map(move |c| (e, c)))
                .filter(|&(e, c)| home.pool.copies(e, c).len() > 1)
                .count()
        };
        assert!(twice(&home) > 0);
        home.kill(shard);
        home.pool.fate(device, Fate::Here);
        let shard = home.recover().await.unwrap();
        ms(3000).await;
        assert_eq!(twice(&home), 0);
        home.pool.check_sealed();
        expect_all(&shard, 0).await;
    });
}

#[test]
fn a_scrub_finds_every_damaged_row_and_repairs_all_of_them() {
    sim::run(8, |_| async {
        let home = Home::new("4+2", 8);
        let shard = filled(&home, 0).await;
        let mut rng = Rng::new(8);
        // Bits flip all over two devices.
        let (mut rows, mut columns) = (0, 0);
        for extent in home.pool.extents() {
            for (column, sealed) in home.pool.columns_of(extent) {
                let Some(sealed) = sealed else { continue };
                if home.pool.copies(extent, column)[0].0 > 1 || sealed == 0 {
                    continue;
                }
                columns += 1;
                for row in (0..sealed).filter(|row| row % 7 == 0) {
                    let at = rng.below(4096) as usize;
                    home.pool.change_row(extent, column, row, |block| block[at] ^= 1 << (at % 8));
                    rows += 1;
                }
            }
        }
        assert!(columns > 1 && rows > 100, "{columns} {rows}");
        shard.scrub_now();
        for _ in 0..200 {
            ms(100).await;
            if shard.is_scrubbed() {
                break;
            }
        }
        repaired(&shard).await;
        let f = figures(&shard);
        assert_eq!((f.damaged_rows, f.damaged_columns, f.remade_columns), (rows, columns, columns));
        home.pool.check_sealed();
        expect_all(&shard, 0).await;
        // Once more: nothing is found any more.
        shard.scrub_now();
        ms(20_000).await;
        assert!(shard.is_scrubbed());
        assert_eq!(figures(&shard).damaged_rows, rows);
        assert!(figures(&shard).unverified_ns < 25_000_000_000);
    });
}

#[test]
fn a_read_that_finds_damage_has_the_column_repaired() {
    sim::run(9, |_| async {
        let home = Home::new("2+1", 5);
        let shard = filled(&home, 0).await;
        let (extent, _) = some_column(&home);
        home.pool.change_row(extent, 0, 1, |block| block[0] ^= 1);
        expect_all(&shard, 0).await;
        ms(3000).await;
        assert_eq!(figures(&shard).damaged_rows, 1);
        assert_eq!(figures(&shard).remade_columns, 1);
        home.pool.check_sealed();
        // A read that was wrong once and is right now moves nothing.
        let once = Rc::new(Cell::new(true));
        home.pool.lie(move |a| a.extent == extent && a.column == 1 && once.replace(false));
        expect_all(&shard, 0).await;
        ms(3000).await;
        assert_eq!(figures(&shard).remade_columns, 1);
    });
}

#[test]
fn a_device_that_is_to_leave_ends_up_empty_while_hosts_write() {
    sim::run(10, |_| async {
        let home = Home::new("2+1", 5);
        let shard = filled(&home, 0).await;
        let (_, device) = some_column(&home);
        home.pool.fate(device, Fate::Draining);
        for round in 1..10 {
            write_all(&shard, round * 100).await;
            ms(500).await;
        }
        shard.checkpoint().await.unwrap();
        ms(3000).await;
        repaired(&shard).await;
        assert_eq!(home.pool.used()[device], 0);
        home.pool.check_sealed();
        expect_all(&shard, 900).await;
    });
}

#[test]
fn nothing_is_freed_while_its_column_is_made_anew_and_nothing_is_made_anew_while_it_is_freed() {
    for seed in 0..10 {
        sim::run(seed, move |_| async move {
            let mut rng = Rng::new(seed);
            let home = Home::new("2+1", 5);
            let shard = filled(&home, 0).await;
            let (_, device) = some_column(&home);
            write_all(&shard, 100).await;
            let slow = std::time::Duration::from_millis(1 + rng.below(60));
            home.pool.rule(move |a| match a.what {
                What::Free | What::Fill | What::Table => Do::Late(slow),
                _ => Do::It,
            });
            home.pool.fate(device, Fate::Draining);
            ms(rng.below(40)).await;
            shard.checkpoint().await.unwrap();
            home.pool.fate(device, if rng.below(2) == 0 { Fate::Lost } else { Fate::Draining });
            ms(5000).await;
            shard.checkpoint().await.unwrap();
            ms(5000).await;
            repaired(&shard).await;
            home.pool.clear(device);
            home.pool.check_sealed();
            shard.check_counts().await.unwrap();
            expect_all(&shard, 100).await;
            home.kill(shard);
            let shard = home.recover().await.unwrap();
            ms(2000).await;
            home.pool.check_sealed();
            expect_all(&shard, 100).await;
        });
    }
}

#[test]
fn rows_beyond_those_of_the_shortest_column_are_void() {
    sim::run(12, |_| async {
        let home = Home::new("2+1", 5);
        let shard = filled(&home, 0).await;
        let (extent, device) = some_column(&home);
        let rows = home.pool.columns_of(extent)[&1].unwrap();
        home.kill(shard);
        // As if a former owner had sealed one column with rows that were given up later.
        home.pool.lengthen(extent, 1, 3);
        let shard = home.recover().await.unwrap();
        home.pool.fate(device, Fate::Lost);
        ms(3000).await;
        repaired(&shard).await;
        home.pool.clear(device);
        assert_eq!(home.pool.copies(extent, 0)[0].1, Some(rows));
        expect_all(&shard, 0).await;
    });
}

#[test]
fn an_extent_of_which_a_start_kept_no_row_leaves_its_devices_as_others_do() {
    sim::run(16, |_| async {
        let home = Home::new("2+1", 5);
        let shard = home.start().await;
        // The first frame of an extent has its header, and nothing else.
        home.pool.rule(|a| match a.what {
            What::Append if a.column != 0 => Do::Hang,
            _ => Do::It,
        });
        let writer = shard.clone();
        peristyle_rt::spawn(async move {
            let _ = write(&writer, 0, 2, 1).await;
        });
        ms(10).await;
        home.kill(shard);
        home.pool.no_rule();
        let shard = home.recover().await.unwrap();
        ms(1000).await;
        let is_void = |e: &ExtentId| home.pool.columns_of(*e).values().all(|rows| *rows == Some(0));
        let void = home.pool.extents().into_iter().find(is_void).expect("sealed without a row");
        for (column, fate) in [(0, Fate::Draining), (1, Fate::Draining), (2, Fate::Lost)] {
            let device = home.pool.copies(void, column)[0].0;
            home.pool.fate(device, fate);
            ms(3000).await;
            repaired(&shard).await;
            home.pool.clear(device);
            home.pool.fate(device, Fate::Here);
            assert_eq!(home.pool.copies(void, column)[0].1, Some(0));
            assert_ne!(home.pool.copies(void, column)[0].0, device);
        }
        assert_eq!(read(&shard, 0, 2).await.unwrap(), [0; 2 * BLOCK]);
    });
}

#[test]
fn slots_that_slow_devices_keep_come_back_without_a_restart() {
    for seed in 0..4 {
        sim::run(seed, move |_| async move {
            let mut rng = Rng::new(seed);
            let home = Home::new("2+1", 6);
            let shard = filled(&home, 0).await;
            // Now and then a device frees nothing, or gives out a slot when nobody waits for it any more.
            home.pool.rule(move |a| match (a.what, a.device, rng.below(4)) {
                (What::Free, 0 | 1, 0) => Do::Hang,
                (What::Allocate, 2, 0) => Do::ItAndHang,
                _ => Do::It,
            });
            for round in 1..8 {
                write_all(&shard, round * 100).await;
                shard.checkpoint().await.unwrap();
                ms(400).await;
            }
            home.pool.no_rule();
            let referred = || {
                let extents = shard.stats_snapshot(peristyle_rt::now()).space.extents;
                extents.iter().map(|[wide, narrow, _]| (wide * 3 + narrow * 2) as usize).sum::<usize>()
            };
            let used = || home.pool.used().into_iter().sum::<usize>();
            assert!(used() > referred(), "the devices kept nothing");
            ms(20_000).await;
            assert_eq!(used(), referred());
            expect_all(&shard, 700).await;
        });
    }
}

#[test]
fn a_rebuild_keeps_to_its_quota() {
    sim::run(13, |_| async {
        let mut home = Home::new("2+1", 5);
        home.config.background = Pace::new(8 << 20);
        let shard = filled(&home, 0).await;
        let (_, device) = some_column(&home);
        let started = peristyle_rt::now();
        home.pool.fate(device, Fate::Lost);
        ms(1000).await;
        repaired(&shard).await;
        let took = peristyle_rt::now().since(started).as_secs_f64() - 1.0;
        let bytes: u64 = figures(&shard).remade_bytes * 3;
        let rate = bytes as f64 / took;
        assert!(rate < 9e6 && rate > 5e6, "{rate} of {} bytes per second", 8 << 20);
    });
}

#[test]
fn a_device_that_comes_back_with_an_older_content_is_made_what_it_was() {
    sim::run(14, |_| async {
        let home = Home::new("2+1", 5);
        let shard = filled(&home, 0).await;
        let (extent, device) = some_column(&home);
        home.pool.away(device, true);
        ms(3000).await;
        // One column is gone, another was never sealed: as they were some time ago.
        home.pool.lose_column(extent, 0);
        let other = home.pool.unseal_another(device);
        home.pool.away(device, false);
        ms(5000).await;
        repaired(&shard).await;
        assert_eq!(figures(&shard).remade_columns, 1 + u64::from(other));
        home.pool.check_sealed();
        expect_all(&shard, 0).await;
    });
}

#[test]
fn a_start_waits_for_devices_that_alone_have_what_the_map_points_at() {
    sim::run(15, |_| async {
        let home = Home::new("1+1", 11);
        let shard = home.start().await;
        for i in 0..28 {
            write(&shard, i * 128, 128, i).await.unwrap();
        }
        shard.checkpoint().await.unwrap();
        ms(2000).await;
        shard.checkpoint().await.unwrap();
        ms(1000).await;
        let mark = home.record().checkpoint.unwrap().mark;
        home.kill(shard);
        // All devices of some old extent are away, which is more than the scheme survives.
        let start = |a: usize, b: usize| {
            home.pool.away(a, true);
            home.pool.away(b, true);
        };
        let (mut waited, mut pairs) = (0, Vec::new());
        for extent in home.pool.extents().into_iter().filter(|e| *e < mark) {
            let on: Vec<usize> =
                (0..2).filter_map(|c| Some(home.pool.copies(extent, c).first()?.0)).collect();
            if on.len() < 2 {
                continue;
            }
            start(on[0], on[1]);
            if let Some(RecoverError::ExtentAway { extent }) = home.recover().await.err() {
                waited += 1;
                pairs.extend((extent < mark).then_some([on[0], on[1]]));
            }
            (0..11).for_each(|d| home.pool.away(d, false));
            let shard = home.recover().await.unwrap();
            for i in 0..28 {
                expect(&shard, i * 128, 128, i).await;
            }
            home.kill(shard);
        }
        // Others are looked for earlier: the checkpoint's own, and those of the open set.
        assert!(waited > 3, "{waited} starts");
        // Whoever gives them up has the rest, unless the log itself was there, and space for more.
        let mut served = 0;
        for pair in pairs {
            pair.into_iter().for_each(|device| home.pool.fate(device, Fate::Lost));
            while let Ok(shard) = home.recover().await {
                let mut lost = 0;
                for i in 0..28 {
                    lost += usize::from(read(&shard, i * 128, 128).await.is_err());
                    write(&shard, i * 128, 128, 100 + i).await.unwrap();
                }
                shard.checkpoint().await.unwrap();
                home.kill(shard);
                served += 1;
                assert_eq!(lost > 0, served == 1, "{lost} reads");
                if served == 3 {
                    return;
                }
            }
            pair.into_iter().for_each(|device| home.pool.fate(device, Fate::Here));
        }
        panic!("no start without devices that were given up");
    });
}
