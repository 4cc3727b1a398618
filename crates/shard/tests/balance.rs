//! Use stays proportional to capacity, whoever comes and goes, and not much more moves than has to (DESIGN §6).

use crate::pool::*;
use crate::repair::{expect_all, figures, filled, repaired, write_all};
use peristyle_base::ExtentId;
use peristyle_cluster::{DeviceView, PlanDevice};
use peristyle_rt::sim;
use peristyle_shard::{AllocClass, Columns, Fate};

/// Devices as a plan sees them.
fn planned(home: &Home) -> Vec<PlanDevice> {
    let mut views = Vec::new();
    home.pool.devices(AllocClass::User, &mut views);
    let fates = home.pool.all_fates();
    let device = |(view, fate): (&DeviceView, Fate)| PlanDevice {
        domain: view.domain,
        slots_total: view.slots_total,
        slots_used: if fate == Fate::Lost { 0 } else { view.slots_used },
        stays: fate != Fate::Lost,
    };
    views.iter().zip(fates).map(device).collect()
}

/// How far the device is off its share that is furthest, as a part of its capacity.
fn furthest(home: &Home) -> f64 {
    let all: Vec<PlanDevice> = planned(home).into_iter().filter(|d| d.stays).collect();
    let sum = |f: fn(&PlanDevice) -> u32| all.iter().map(|d| f64::from(f(d))).sum::<f64>();
    let mean = sum(|d| d.slots_used) / sum(|d| d.slots_total);
    all.iter().map(|d| (f64::from(d.slots_used) / f64::from(d.slots_total) - mean).abs()).fold(0.0, f64::max)
}

#[test]
fn after_a_loss_and_an_expansion_use_is_even_and_little_more_than_has_to_has_moved() {
    sim::run(16, |_| async {
        let home = Home::new("4+2", 9);
        home.pool.slots(300);
        (7..9).for_each(|new| home.pool.slots_of(new, 4)); // as good as not there
        let shard = filled(&home, 0).await;
        for round in 1..24 {
            write_all(&shard, round * 100).await;
        }
        ms(5000).await;
        assert!(furthest(&home) <= 0.02, "filled: {:?}", home.pool.used());
        // One is lost: what it had has to be made anew, and nothing else.
        let had = home.pool.used()[2] as u64;
        home.pool.fate(2, Fate::Lost);
        ms(1000).await;
        repaired(&shard).await;
        ms(10_000).await;
        let after_loss = figures(&shard);
        assert!(furthest(&home) <= 0.02, "one lost: {:?}", home.pool.used());
        assert!(
            after_loss.remade_columns > had / 2 && after_loss.moved_columns * 10 <= had,
            "{after_loss:?}, {had}"
        );
        // Two come that are larger.
        (7..9).for_each(|new| home.pool.slots_of(new, 390));
        let least = peristyle_cluster::plan(&planned(&home), "4+2".parse().unwrap()).moved;
        ms(60_000).await;
        let moved = figures(&shard).moved_columns - after_loss.moved_columns;
        assert!(furthest(&home) <= 0.02, "two more: {:?}", home.pool.used());
        assert!(least > 50 && moved * 10 <= least * 11, "{moved} moved, {least} had to");
        home.pool.clear(2);
        home.pool.check_sealed();
        expect_all(&shard, 2300).await;
    });
}

#[test]
fn columns_move_to_a_new_device_until_use_is_even_and_reads_go_on() {
    sim::run(11, |_| async {
        let home = Home::new("2+1", 6);
        home.pool.slots(260);
        home.pool.slots_of(5, 4); // as good as not there
        let shard = filled(&home, 0).await;
        for round in 1..6 {
            write_all(&shard, round * 100).await;
        }
        ms(3000).await;
        home.pool.slots_of(5, 130);
        let me = shard.clone();
        peristyle_rt::spawn(async move {
            for _ in 0..20 {
                expect_all(&me, 500).await;
                ms(100).await;
            }
        });
        ms(20_000).await;
        let used = home.pool.used();
        let share = |i: usize| used[i] as f64 / if i == 5 { 130.0 } else { 260.0 };
        let mean = used.iter().sum::<usize>() as f64 / (5.0 * 260.0 + 130.0);
        assert!((0..6).all(|i| (share(i) - mean).abs() <= 0.02), "{used:?}");
        let moved = figures(&shard).moved_columns;
        assert!(moved > 5);
        home.pool.check_sealed();
        expect_all(&shard, 500).await;
        ms(10_000).await;
        assert_eq!(figures(&shard).moved_columns, moved, "what is even stays where it is");
    });
}

/// Extents of which two columns are in the same failure domain.
fn crowded(home: &Home, domain: impl Fn(usize) -> usize) -> usize {
    let is_crowded = |e: &ExtentId| {
        let mut domains: Vec<usize> =
            (0..3).flat_map(|c| home.pool.copies(*e, c)).map(|c| domain(c.0)).collect();
        let columns = domains.len();
        domains.sort_unstable();
        domains.dedup();
        domains.len() < columns
    };
    home.pool.extents().into_iter().filter(is_crowded).count()
}

#[test]
fn columns_that_come_to_share_a_failure_domain_part_as_soon_as_they_can() {
    sim::run(18, |_| async {
        let home = Home::new("2+1", 6);
        let shard = filled(&home, 0).await;
        // Each two devices are in one rack from now on, as their labels say: three racks, and the log goes on.
        let rack = |device: usize| device / 2;
        (0..6).for_each(|device| home.pool.domain(device, rack(device) as u32));
        assert!(crowded(&home, rack) > 0);
        write_all(&shard, 100).await;
        ms(10_000).await;
        assert_eq!((crowded(&home, rack), figures(&shard).crowded_columns), (0, 0), "{:?}", figures(&shard));
        home.pool.check_sealed();
        // Two racks: there is nowhere to go for a third column, and nothing is tried until there is.
        (2..6).for_each(|device| home.pool.domain(device, 1));
        ms(3000).await;
        let before = figures(&shard);
        assert!(before.crowded_columns > 0 && before.working_ns == 0, "{before:?}");
        ms(20_000).await;
        let after = figures(&shard);
        assert_eq!(
            (after.remade_columns, after.failed_remakes),
            (before.remade_columns, before.failed_remakes)
        );
        home.pool.domain(4, 2);
        ms(10_000).await;
        assert_eq!(figures(&shard).crowded_columns, 0);
        expect_all(&shard, 100).await;
    });
}
