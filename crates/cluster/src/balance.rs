//! Where a column goes that is made anew or moves: so that no two columns of an extent share a failure domain, and every
//! device's use stays proportional to its capacity.

use crate::place::draw;
use crate::pool::{DeviceView, DomainId};
use core::cmp::Ordering;

/// Moves begin when a device's use is this far from its share of the capacity …
const UNEVEN_BEGIN: f64 = 0.015;
/// … and end when none is further than this: so that a few writes more or less do not set columns moving.
const UNEVEN_END: f64 = 0.005;

/// One column that should move.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Move {
    pub column: usize,
    /// Index of the device.
    pub to: usize,
    /// How much fuller the one is than the other.
    pub gain: f64,
}

fn fill(used: u32, total: u32) -> f64 {
    f64::from(used) / f64::from(total.max(1))
}

/// How far each device's use is from its share, as a part of its capacity; positive: it holds more. Devices that take no
/// columns have no share.
pub fn deviations(devices: &[DeviceView]) -> impl Iterator<Item = f64> + '_ {
    let sum = |f: fn(&DeviceView) -> u32| -> u64 {
        devices.iter().filter(|d| d.takes_columns()).map(|d| u64::from(f(d))).sum()
    };
    let mean = sum(|d| d.slots_used) as f64 / sum(|d| d.slots_total).max(1) as f64;
    devices.iter().map(move |d| match d.takes_columns() && d.slots_total > 0 {
        true => fill(d.slots_used, d.slots_total) - mean,
        false => 0.0,
    })
}

/// Whether columns should move. `moving`: some did a moment ago.
pub fn is_uneven(devices: &[DeviceView], moving: bool) -> bool {
    let limit = if moving { UNEVEN_END } else { UNEVEN_BEGIN };
    deviations(devices).any(|deviation| deviation.abs() > limit)
}

/// The device for a column that is made anew: one with room, in a failure domain that the extent's other columns are not
/// in; the emptiest for its size, and a slow one only when there is no other. Among devices that differ by less than sets columns
/// moving the `salt` decides: many owners make columns anew at the same time, and none sees at once what the others do.
pub fn target(devices: &[DeviceView], taken: impl Fn(DomainId) -> bool, salt: u64) -> Option<usize> {
    let step = |d: &DeviceView| (fill(d.slots_used, d.slots_total) / UNEVEN_BEGIN) as u64;
    best_of(devices, taken, |a, b| {
        step(a).cmp(&step(b)).then_with(|| draw(salt, a.domain).cmp(&draw(salt, b.domain)))
    })
}

/// Of the devices that may have the column the first in this order; a slow one only when there is no other.
fn best_of(
    devices: &[DeviceView],
    taken: impl Fn(DomainId) -> bool,
    order: impl Fn(&DeviceView, &DeviceView) -> Ordering,
) -> Option<usize> {
    let fits = |d: &DeviceView| d.takes_columns() && d.slots_free() > 0 && !taken(d.domain);
    let sound_first =
        |a: &DeviceView, b: &DeviceView| (a.away, a.avoid).cmp(&(b.away, b.avoid)).then_with(|| order(a, b));
    (0..devices.len()).filter(|&i| fits(&devices[i])).min_by(|&a, &b| sound_first(&devices[a], &devices[b]))
}

fn emptier(a: &DeviceView, b: &DeviceView) -> Ordering {
    fill(a.slots_used, a.slots_total).total_cmp(&fill(b.slots_used, b.slots_total))
}

/// The gain below which a move waits for larger ones: half of what lies between the fullest and the emptiest device. Otherwise, as long
/// as new devices fill, columns move among the others for the little that these differ meanwhile.
pub fn least_gain(devices: &[DeviceView]) -> f64 {
    let fills = || devices.iter().filter(|d| d.takes_columns()).map(|d| fill(d.slots_used, d.slots_total));
    (fills().fold(0.0, f64::max) - fills().fold(1.0, f64::min)) / 2.0
}

/// The move of one of an extent's columns that evens out most, and at least so much. `columns`: the device of each, as an index; `None` where it
/// is not to be moved, or not known. A move never makes the one device emptier than the other becomes.
pub fn best_move(
    devices: &[DeviceView],
    columns: &[Option<usize>],
    taken: &[DomainId],
    least: f64,
) -> Option<Move> {
    let mut best: Option<Move> = None;
    for (column, from) in columns.iter().enumerate().filter_map(|(c, d)| Some((c, (*d)?))) {
        let source = &devices[from];
        let others = |domain: DomainId| domain != source.domain && taken.contains(&domain);
        let Some(to) = best_of(devices, others, emptier).filter(|&to| to != from) else { continue };
        let goal = &devices[to];
        let after = fill(source.slots_used.saturating_sub(1), source.slots_total);
        let gain = fill(source.slots_used, source.slots_total) - fill(goal.slots_used, goal.slots_total);
        let overshoots = after < fill(goal.slots_used + 1, goal.slots_total);
        let enough = gain > UNEVEN_END && gain >= least;
        if !overshoots && !goal.avoid && !goal.away && enough && best.is_none_or(|b| gain > b.gain) {
            best = Some(Move { column, to, gain });
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Placer;
    use peristyle_base::{Scheme, Uuid};
    use proptest::prelude::*;

    fn device(i: usize, slots_total: u32) -> DeviceView {
        DeviceView {
            id: Uuid([i as u8 + 1; 16]),
            domain: DomainId(i as u32),
            slots_total,
            slots_used: 0,
            healthy: true,
            avoid: false,
            away: false,
            draining: false,
        }
    }

    /// Extents, as the device of each column.
    fn fill_pool(devices: &mut [DeviceView], scheme: Scheme, extents: u64) -> Vec<Vec<usize>> {
        let mut placer = Placer::default();
        let place = |extent| {
            let mut out = vec![0; scheme.width()];
            placer.place(devices, scheme, extent, &mut out).ok()?;
            out.iter().for_each(|&i| devices[i].slots_used += 1);
            Some(out)
        };
        (0..extents).map_while(place).collect()
    }

    fn domains_differ(devices: &[DeviceView], extent: &[usize]) -> bool {
        let mut domains: Vec<_> = extent.iter().map(|&i| devices[i].domain).collect();
        domains.sort();
        domains.dedup();
        domains.len() == extent.len()
    }

    /// Rebuilds what was on devices that are not healthy any more.
    fn rebuild(devices: &mut [DeviceView], extents: &mut [Vec<usize>]) -> bool {
        for extent in extents {
            for c in 0..extent.len() {
                if devices[extent[c]].healthy {
                    continue;
                }
                let taken = |d| extent.iter().any(|&i| devices[i].healthy && devices[i].domain == d);
                let Some(to) = target(devices, taken, u64::from(devices[extent[c]].slots_used)) else {
                    return false;
                };
                extent[c] = to;
                devices[to].slots_used += 1;
            }
            assert!(domains_differ(devices, extent));
        }
        true
    }

    /// Moves one column after the other until nothing moves any more; how many did.
    fn rebalance(devices: &mut [DeviceView], extents: &mut [Vec<usize>]) -> usize {
        let mut moves = 0;
        let mut all = false;
        while is_uneven(devices, moves > 0) {
            let (before, least) = (moves, if all { 0.0 } else { least_gain(devices) });
            for extent in extents.iter_mut() {
                let columns: Vec<_> = extent.iter().map(|&i| Some(i)).collect();
                let taken: Vec<_> = extent.iter().map(|&i| devices[i].domain).collect();
                let Some(m) = best_move(devices, &columns, &taken, least) else { continue };
                let from = std::mem::replace(&mut extent[m.column], m.to);
                devices[from].slots_used -= 1;
                devices[m.to].slots_used += 1;
                moves += 1;
                assert!(domains_differ(devices, extent));
            }
            if moves == before && all {
                break;
            }
            all = moves == before;
        }
        moves
    }

    fn worst(devices: &[DeviceView]) -> f64 {
        deviations(devices).map(f64::abs).fold(0.0, f64::max)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn after_losses_of_unequal_devices_use_is_within_two_percent(
            sizes in prop::collection::vec(300u32..600, 9..14), lost in 0usize..9, also in 0usize..9,
        ) {
            let mut devices: Vec<_> = sizes.iter().enumerate().map(|(i, &s)| device(i, s)).collect();
            let total: u32 = sizes.iter().sum();
            let mut extents = fill_pool(&mut devices, Scheme::new(4, 2).unwrap(), u64::from(total) / 12);
            for i in [lost, also] {
                devices[i].healthy = false;
            }
            let left: u32 = devices.iter().filter(|d| d.healthy).map(|d| d.slots_total).sum();
            // A domain holds one column of an extent: a device beyond 1/width of the pool cannot have its share.
            prop_assume!(devices.iter().all(|d| d.slots_total * 6 <= left));
            prop_assert!(rebuild(&mut devices, &mut extents));
            rebalance(&mut devices, &mut extents);
            prop_assert!(worst(&devices) <= 0.02, "{}", worst(&devices));
        }

        #[test]
        fn after_an_expansion_by_unequal_devices_use_is_within_two_percent(
            sizes in prop::collection::vec(300u32..600, 7..12), new in prop::collection::vec(200u32..500, 1..4),
        ) {
            let mut devices: Vec<_> = sizes.iter().enumerate().map(|(i, &s)| device(i, s)).collect();
            let mut extents = fill_pool(&mut devices, Scheme::new(4, 2).unwrap(), 220);
            new.iter().enumerate().for_each(|(i, &s)| devices.push(device(sizes.len() + i, s)));
            let total: u32 = devices.iter().map(|d| d.slots_total).sum();
            prop_assume!(devices.iter().all(|d| d.slots_total * 6 <= total));
            rebalance(&mut devices, &mut extents);
            prop_assert!(worst(&devices) <= 0.02, "{}", worst(&devices));
            prop_assert_eq!(rebalance(&mut devices, &mut extents), 0, "what is even stays where it is");
        }
    }

    #[test]
    fn a_column_goes_to_the_emptiest_domain_that_its_extent_is_not_in() {
        let mut devices: Vec<_> = (0..5).map(|i| device(i, 100)).collect();
        (devices[1].slots_used, devices[2].slots_used, devices[3].slots_used) = (50, 20, 10);
        let other_than = |taken: &'static [u32]| move |d: DomainId| taken.contains(&d.0);
        assert_eq!(target(&devices, other_than(&[0, 4]), 1), Some(3));
        devices[3].avoid = true;
        assert_eq!(target(&devices, other_than(&[0, 4]), 1), Some(2));
        devices[2].draining = true;
        assert_eq!(target(&devices, other_than(&[0, 4]), 1), Some(1));
        devices[1].slots_used = 100;
        assert_eq!(target(&devices, other_than(&[0, 4]), 1), Some(3), "a slow one before none");
        assert_eq!(target(&devices, other_than(&[0, 3, 4]), 1), None);
    }

    #[test]
    fn nothing_moves_for_a_little_unevenness_or_back_and_forth() {
        let mut devices: Vec<_> = (0..3).map(|i| device(i, 1000)).collect();
        (devices[0].slots_used, devices[1].slots_used, devices[2].slots_used) = (510, 500, 500);
        assert!(!is_uneven(&devices, false) && is_uneven(&devices, true));
        let mut two = [device(0, 3), device(1, 3)];
        two[0].slots_used = 1;
        let taken = [two[0].domain];
        assert_eq!(best_move(&two, &[Some(0)], &taken, 0.0), None, "it would only change places");
    }
}
