//! Placement: which devices hold a new extent's columns.

use crate::pool::{DEVICES_MAX, DeviceView, DomainId, TooFewDomains};
use core::cmp::Ordering;
use core::fmt;
use peristyle_base::Scheme;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlacementError {
    /// Fewer healthy failure domains than columns.
    TooFew(TooFewDomains),
    /// Enough healthy failure domains, too few of them with a free slot.
    Full { with_room: usize, needed: usize },
}

impl From<TooFewDomains> for PlacementError {
    fn from(e: TooFewDomains) -> PlacementError {
        PlacementError::TooFew(e)
    }
}

impl fmt::Display for PlacementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlacementError::TooFew(e) => e.fmt(f),
            PlacementError::Full { with_room, needed } => {
                write!(
                    f,
                    "the pool is full: {with_room} failure domains have a free slot, {needed} are needed"
                )
            }
        }
    }
}
impl core::error::Error for PlacementError {}

/// A failure domain that could hold a column: its use, its capacity, and the device that would take it.
#[derive(Clone, Copy)]
struct Candidate {
    used: u64,
    total: u64,
    /// Away, and slow.
    late: (bool, bool),
    device: usize,
    /// Decides among those that are about as full.
    draw: u64,
}

/// Parts of a device's capacity that count as one fill: what differs by less is drawn. Shards that place at the same time know of each
/// other's columns a moment later; if all took the very emptiest, they would all take the same few, and write to them at the same time.
const FILL_STEPS: u128 = 256;

/// The same number for the same two, and otherwise as if drawn (SplitMix64).
pub(crate) fn draw(salt: u64, domain: DomainId) -> u64 {
    let mut x = salt.wrapping_add(u64::from(domain.0).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

impl Candidate {
    /// Who comes first: not avoided, then the emptiest for its capacity, as far as that makes a difference, then who is drawn.
    ///
    /// The deficit of x against its capacity share, relative to its capacity, is U/C - used/total with the
    /// pool's U/C the same for all: so the largest deficit is the smallest used/total. Counting half a slot
    /// more than is used rounds evenly (Sainte-Laguë), so that small devices are neither first nor last always.
    fn order(&self, other: &Candidate) -> Ordering {
        let step = |x: &Candidate| (2 * x.used as u128 + 1) * FILL_STEPS / (2 * x.total.max(1) as u128);
        let fill = |x: &Candidate, y: &Candidate| (2 * x.used as u128 + 1) * y.total as u128;
        (self.late.cmp(&other.late))
            .then_with(|| step(self).cmp(&step(other)))
            .then_with(|| self.draw.cmp(&other.draw))
            .then_with(|| fill(self, other).cmp(&fill(other, self)))
            .then_with(|| other.total.cmp(&self.total))
            .then_with(|| self.device.cmp(&other.device))
    }
}

/// Chooses devices; keeps its working memory, so that choosing allocates nothing.
pub struct Placer {
    order: Vec<u16>,
}

impl Default for Placer {
    fn default() -> Placer {
        Placer { order: Vec::with_capacity(DEVICES_MAX) }
    }
}

impl Placer {
    /// Puts the devices of k+m columns, as indexes into `devices`, into `out`: healthy, with a free slot, in
    /// different failure domains, those with the largest deficit against their capacity share first chosen, so
    /// that use stays proportional to capacity. Avoided devices are taken only when there are too few others.
    /// `salt`, another one for each extent of each shard, draws among those that are about as full, and turns the columns.
    ///
    /// # Panics — when `out` is not k+m long, or there are more than [`DEVICES_MAX`] devices.
    pub fn place(
        &mut self,
        devices: &[DeviceView],
        scheme: Scheme,
        salt: u64,
        out: &mut [usize],
    ) -> Result<(), PlacementError> {
        assert!(out.len() == scheme.width() && devices.len() <= DEVICES_MAX);
        self.order.clear();
        self.order.extend((0..devices.len() as u16).filter(|&i| devices[i as usize].takes_columns()));
        self.order.sort_unstable_by_key(|&i| (devices[i as usize].domain, i));

        let mut chosen: [Option<Candidate>; Scheme::WIDTH_MAX] = [None; Scheme::WIDTH_MAX];
        let (mut healthy, mut with_room) = (0, 0);
        for group in self.order.chunk_by(|&a, &b| devices[a as usize].domain == devices[b as usize].domain) {
            healthy += 1;
            if let Some(candidate) = best_of_domain(devices, group) {
                with_room += 1;
                let draw = draw(salt, devices[candidate.device].domain);
                insert(&mut chosen[..out.len()], Candidate { draw, ..candidate });
            }
        }
        if with_room < out.len() {
            let needed = out.len();
            return Err(match healthy < needed {
                true => TooFewDomains { healthy, needed }.into(),
                false => PlacementError::Full { with_room, needed },
            });
        }
        let width = out.len();
        // Whoever was drawn first is not always column 0.
        chosen[..width].sort_unstable_by_key(|candidate| candidate.map(|c| c.device));
        for (i, candidate) in chosen[..width].iter().enumerate() {
            out[(i + (salt % width as u64) as usize) % width] = candidate.expect("with_room says so").device;
        }
        Ok(())
    }
}

/// The device of one failure domain that would take a column; the domain's use and capacity count as a whole.
fn best_of_domain(devices: &[DeviceView], group: &[u16]) -> Option<Candidate> {
    let mut best: Option<Candidate> = None;
    let (mut used, mut total) = (0, 0);
    for &i in group {
        let device = &devices[i as usize];
        used += device.slots_used as u64;
        total += device.slots_total as u64;
        let this = Candidate {
            used: device.slots_used as u64,
            total: device.slots_total as u64,
            late: (device.away, device.avoid),
            device: i as usize,
            draw: 0,
        };
        if device.slots_free() > 0 && best.is_none_or(|b| this.order(&b).is_lt()) {
            best = Some(this);
        }
    }
    best.map(|b| Candidate { used, total, ..b })
}

/// A failure domain as placement sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DomainUse {
    pub domain: DomainId,
    pub slots_used: u64,
    pub slots_total: u64,
    pub standing: Standing,
}

/// Whether a failure domain is given columns.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Standing {
    Takes,
    /// Only while there are too few others.
    Slow,
    Full,
    /// Its devices are to leave.
    Leaving,
    /// No device of it serves.
    Away,
}

/// All failure domains: those that are given columns in the order in which a new extent would take them, then the others.
pub fn standings(devices: &[DeviceView]) -> Vec<DomainUse> {
    let mut order: Vec<u16> = (0..devices.len() as u16).collect();
    order.sort_unstable_by_key(|&i| (devices[i as usize].domain, i));
    let mut all = Vec::new();
    for group in order.chunk_by(|&a, &b| devices[a as usize].domain == devices[b as usize].domain) {
        let of = |i: u16| &devices[i as usize];
        let takers: Vec<u16> = group.iter().copied().filter(|&i| of(i).takes_columns()).collect();
        let best = best_of_domain(devices, &takers);
        let standing = match best {
            Some(best) if best.late != (false, false) => Standing::Slow,
            Some(_) => Standing::Takes,
            None if !takers.is_empty() => Standing::Full,
            None if group.iter().any(|&i| of(i).healthy) => Standing::Leaving,
            None => Standing::Away,
        };
        let sum =
            |of_device: fn(&DeviceView) -> u32| group.iter().map(|&i| u64::from(of_device(of(i)))).sum();
        let (slots_used, slots_total) = (sum(|d| d.slots_used), sum(|d| d.slots_total));
        all.push((best, DomainUse { domain: of(group[0]).domain, slots_used, slots_total, standing }));
    }
    all.sort_by(|(a, one), (b, other)| match (a, b) {
        (Some(a), Some(b)) => a.order(b),
        _ => b.is_some().cmp(&a.is_some()).then(one.standing.cmp(&other.standing)),
    });
    all.into_iter().map(|(_, domain)| domain).collect()
}

/// Keeps the best of all offered, in order.
fn insert(chosen: &mut [Option<Candidate>], mut candidate: Candidate) {
    for place in chosen {
        match place {
            None => {
                *place = Some(candidate);
                return;
            }
            Some(there) if candidate.order(there).is_lt() => core::mem::swap(there, &mut candidate),
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peristyle_base::Uuid;
    use proptest::prelude::*;

    #[test]
    fn domains_stand_in_the_order_in_which_extents_take_them_and_the_others_say_why_not() {
        let mut devices: Vec<DeviceView> = (0..8).map(|i| device(i, i as u32 / 2, 100)).collect();
        devices.extend([device(8, 9, 100), device(9, 10, 100), device(10, 11, 100)]);
        (0..8).for_each(|i| devices[i].slots_used = 10 * (i as u32 / 2 + 1));
        devices[1].healthy = false; // its domain has another one
        devices[4].avoid = true;
        devices[5].avoid = true;
        (devices[8].slots_used, devices[9].draining, devices[10].healthy) = (100, true, false);
        let all = standings(&devices);
        let standing: Vec<(u32, Standing)> = all.iter().map(|d| (d.domain.0, d.standing)).collect();
        use Standing::*;
        assert_eq!(
            standing,
            [(0, Takes), (1, Takes), (3, Takes), (2, Slow), (9, Full), (10, Leaving), (11, Away)]
        );
        assert_eq!((all[0].slots_used, all[0].slots_total), (20, 200));
        let mut chosen = [0; 4];
        Placer::default().place(&devices, "2+2".parse().unwrap(), 0, &mut chosen).unwrap();
        let mut domains = chosen.map(|i| devices[i].domain.0);
        domains.sort_unstable();
        assert_eq!(domains, [0, 1, 2, 3]);
    }

    fn device(i: usize, domain: u32, slots_total: u32) -> DeviceView {
        DeviceView {
            id: Uuid([i as u8; 16]),
            domain: DomainId(domain),
            slots_total,
            slots_used: 0,
            healthy: true,
            avoid: false,
            away: false,
            draining: false,
        }
    }

    /// Fills until the pool says full; returns how many extents fitted.
    fn fill(devices: &mut [DeviceView], scheme: Scheme, check: impl Fn(&[DeviceView], u64)) -> u64 {
        let (mut placer, mut out) = (Placer::default(), vec![0; scheme.width()]);
        let mut extents = 0;
        while placer.place(devices, scheme, extents, &mut out).is_ok() {
            let mut domains: Vec<_> = out.iter().map(|&i| devices[i].domain).collect();
            domains.sort();
            domains.dedup();
            assert_eq!(domains.len(), scheme.width(), "two columns in one failure domain");
            for &i in &out {
                assert!(devices[i].takes_columns() && devices[i].slots_free() > 0);
                devices[i].slots_used += 1;
            }
            extents += 1;
            check(devices, extents);
        }
        extents
    }

    fn spread(devices: &[DeviceView]) -> f64 {
        let shares = devices.iter().map(|d| d.slots_used as f64 / d.slots_total as f64);
        shares.clone().fold(0.0, f64::max) - shares.fold(1.0, f64::min)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn use_stays_proportional_to_capacity_within_two_percent(
            sizes in prop::collection::vec(200u32..800, 8..20), k in 1u8..5, m in 0u8..3,
        ) {
            let scheme = Scheme::new(k, m).unwrap();
            let total: u64 = sizes.iter().map(|&s| s as u64).sum();
            // A domain can hold one column per extent: beyond 1/width of the pool no placement is proportional.
            prop_assume!(sizes.iter().all(|&s| s as u64 * scheme.width() as u64 <= total));
            let mut devices: Vec<_> = sizes.iter().enumerate().map(|(i, &s)| device(i, i as u32, s)).collect();
            let extents = fill(&mut devices, scheme, |devices, extents| {
                // Single slots are more than 2 % of the smallest device when little is placed.
                assert!(spread(devices) <= 0.02, "{} after {extents}", spread(devices));
            });
            let most = total / scheme.width() as u64;
            prop_assert!(extents as f64 >= 0.98 * most as f64, "{} of {}", extents, most);
        }

        #[test]
        fn a_loss_and_an_expansion_even_out_again(seed in 0usize..1000) {
            let scheme = Scheme::new(4, 2).unwrap();
            let mut devices: Vec<_> = (0..10).map(|i| device(i, i as u32, 500 + (seed * (i + 3) % 211) as u32)).collect();
            let (mut placer, mut out) = (Placer::default(), [0; 6]);
            for extents in 0..900 {
                if extents == 200 {
                    devices[seed % 10].healthy = false; // its slots stay used: they come back with it
                }
                if extents == 400 {
                    devices[seed % 10].healthy = true;
                    devices.push(device(10, 10, 300)); // small enough to catch up: one column per extent
                }
                if placer.place(&devices, scheme, extents, &mut out).is_err() { break }
                out.iter().for_each(|&i| devices[i].slots_used += 1);
            }
            prop_assert!(spread(&devices) <= 0.02, "{}", spread(&devices));
        }
    }

    #[test]
    fn several_devices_of_one_domain_fill_evenly_too() {
        let mut devices = Vec::new();
        for (i, size) in [300, 600, 450, 450, 500, 400, 900, 350, 550].into_iter().enumerate() {
            devices.push(device(i, i as u32 / 2, size));
        }
        fill(&mut devices, Scheme::new(2, 1).unwrap(), |_, _| ());
        assert!(spread(&devices) <= 0.02, "{}", spread(&devices));
    }

    #[test]
    fn every_device_takes_every_column_in_turn() {
        let mut devices: Vec<_> = (0..6).map(|i| device(i, i as u32, 600)).collect();
        let (mut placer, mut out) = (Placer::default(), [0; 6]);
        let mut first = [0; 6];
        for extent in 0..600 {
            placer.place(&devices, Scheme::new(4, 2).unwrap(), extent, &mut out).unwrap();
            first[out[0]] += 1;
            out.iter().for_each(|&i| devices[i].slots_used += 1);
        }
        assert!(first.iter().all(|&n| n == 100), "{first:?}");
    }

    #[test]
    fn a_device_of_a_domain_that_cannot_take_a_column_is_passed_over_for_its_neighbour() {
        let mut devices = vec![device(0, 0, 100), device(1, 0, 100), device(2, 1, 100)];
        devices[0].slots_used = 100;
        let (mut placer, mut out) = (Placer::default(), [0; 2]);
        placer.place(&devices, Scheme::new(1, 1).unwrap(), 0, &mut out).unwrap();
        assert!(out.contains(&1) && out.contains(&2));
        devices[1].healthy = false;
        assert_eq!(
            placer.place(&devices, Scheme::new(1, 1).unwrap(), 0, &mut out),
            Err(PlacementError::Full { with_room: 1, needed: 2 })
        );
        devices[2].healthy = false;
        assert_eq!(
            placer.place(&devices, Scheme::new(1, 1).unwrap(), 0, &mut out),
            Err(PlacementError::TooFew(TooFewDomains { healthy: 1, needed: 2 }))
        );
    }

    #[test]
    fn a_device_of_no_size_and_an_overfull_one_are_never_chosen() {
        let mut devices = vec![device(0, 0, 0), device(1, 1, 10), device(2, 2, 10)];
        devices[1].slots_used = 11;
        let mut out = [9];
        Placer::default().place(&devices, Scheme::new(1, 0).unwrap(), 0, &mut out).unwrap();
        assert_eq!(out, [2]);
    }
}
