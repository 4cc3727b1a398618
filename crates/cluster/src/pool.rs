//! A pool as placement sees it, and the scheme that its healthy failure domains can still hold.

use crate::place::{PlacementError, Placer};
use core::fmt;
use core::str::FromStr;
use peristyle_base::{DeviceId, PoolId, Scheme};

/// Devices of one pool.
pub const DEVICES_MAX: usize = 1024;

/// What fails together: a device, a node, a rack, a zone. Numbers are the operator's; only equality counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct DomainId(pub u32);

/// One device at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceView {
    pub id: DeviceId,
    pub domain: DomainId,
    pub slots_total: u32,
    pub slots_used: u32,
    /// Reachable, and its column server takes orders.
    pub healthy: bool,
    /// Slow at the moment: see [`PoolView::shuns`].
    pub avoid: bool,
    /// So slow that it did not answer when it was asked how it is.
    pub away: bool,
    /// Its columns move off it: it serves them meanwhile, and gets no others.
    pub draining: bool,
}

impl DeviceView {
    /// It may be given columns, if there is room.
    pub fn takes_columns(&self) -> bool {
        self.healthy && !self.draining
    }
    pub fn slots_free(&self) -> u32 {
        self.slots_total.saturating_sub(self.slots_used)
    }
}

/// What a pool does when fewer than m+1 failure domains are left.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum TooFewPolicy {
    /// Goes on with less protection, and says so loudly.
    Continue,
    /// Refuses writes until devices come back.
    #[default]
    Refuse,
}

impl fmt::Display for TooFewPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TooFewPolicy::Continue => "continue",
            TooFewPolicy::Refuse => "refuse",
        })
    }
}

impl FromStr for TooFewPolicy {
    type Err = ();
    fn from_str(s: &str) -> Result<TooFewPolicy, ()> {
        match s {
            "continue" => Ok(TooFewPolicy::Continue),
            "refuse" => Ok(TooFewPolicy::Refuse),
            _ => Err(()),
        }
    }
}

/// What new data has, compared with what its pool asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protection {
    /// The pool's scheme.
    Full,
    /// k shrank, m did not: as safe as ever, for more space.
    FewerData,
    /// m shrank: fewer losses are survived than the pool promises. To be shown loudly.
    Reduced,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Effective {
    pub scheme: Scheme,
    pub protection: Protection,
}

/// Fewer failure domains than the scheme's protection needs, and the policy does not let it shrink.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooFewDomains {
    pub healthy: usize,
    pub needed: usize,
}

impl fmt::Display for TooFewDomains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} healthy failure domains, and at least {} are needed", self.healthy, self.needed)
    }
}
impl core::error::Error for TooFewDomains {}

/// The scheme for new extents on `domains` healthy failure domains: k shrinks and m stays (DESIGN §6, "Too few
/// domains"); only with fewer than m+1 domains does m shrink, if the policy lets it.
pub fn effective_scheme(
    wanted: Scheme,
    domains: usize,
    policy: TooFewPolicy,
) -> Result<Effective, TooFewDomains> {
    let scheme = |k: usize, m: usize| Scheme::new(k as u8, m as u8).expect("smaller than a valid scheme");
    if domains >= wanted.width() {
        return Ok(Effective { scheme: wanted, protection: Protection::Full });
    }
    if domains > wanted.m() {
        return Ok(Effective {
            scheme: scheme(domains - wanted.m(), wanted.m()),
            protection: Protection::FewerData,
        });
    }
    if domains == 0 || policy == TooFewPolicy::Refuse {
        let needed = if policy == TooFewPolicy::Refuse { wanted.m() + 1 } else { 1 };
        return Err(TooFewDomains { healthy: domains, needed });
    }
    Ok(Effective { scheme: scheme(1, domains - 1), protection: Protection::Reduced })
}

/// Which devices new extents do without while they answer late.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shuns {
    Slow,
    Away,
    Nobody,
}

impl Shuns {
    pub fn shuns(self, device: &DeviceView) -> bool {
        match self {
            Shuns::Slow => device.avoid || device.away,
            Shuns::Away => device.away,
            Shuns::Nobody => false,
        }
    }
}

/// How many failure domains have a healthy device that is not shunned. Full ones count: they
/// are not lost, and a full pool must say "full" rather than shrink its scheme.
pub fn usable_domains(devices: &[DeviceView], shuns: Shuns) -> usize {
    let usable = |d: &&DeviceView| d.takes_columns() && !shuns.shuns(d);
    let new = |i: usize, d: &DeviceView| !devices[..i].iter().filter(usable).any(|e| e.domain == d.domain);
    devices.iter().enumerate().filter(|(i, d)| usable(d) && new(*i, d)).count()
}

/// How many extents of so many columns the free slots of healthy devices are enough for: each takes one of as many failure domains, so
/// where there are few domains the fullest decides. A pool with fewer domains than columns makes narrower extents.
pub fn extents_free(devices: &[DeviceView], columns: usize) -> usize {
    let takes = |d: &&DeviceView| d.takes_columns();
    let first = |i: usize, d: &DeviceView| !devices[..i].iter().filter(takes).any(|e| e.domain == d.domain);
    let slots = |domain: DomainId| -> usize {
        devices.iter().filter(takes).filter(|d| d.domain == domain).map(|d| d.slots_free() as usize).sum()
    };
    let firsts = devices.iter().enumerate().filter(|(i, d)| takes(d) && first(*i, d));
    let free: Vec<usize> = firsts.map(|(_, d)| slots(d.domain)).collect();
    let columns = columns.min(free.len()).max(1);
    let fits = |n: usize| free.iter().map(|&slots| slots.min(n)).sum::<usize>() >= n * columns;
    let (mut fit, mut not) = (0, free.iter().sum::<usize>() / columns + 1);
    while fit + 1 < not {
        let n = fit.midpoint(not);
        *(if fits(n) { &mut fit } else { &mut not }) = n;
    }
    fit
}

/// A pool at one moment.
#[derive(Clone, Copy, Debug)]
pub struct PoolView<'a> {
    pub id: PoolId,
    pub scheme: Scheme,
    pub too_few: TooFewPolicy,
    pub devices: &'a [DeviceView],
}

impl PoolView<'_> {
    /// The scheme that new wide extents get now.
    pub fn effective(&self) -> Result<Effective, TooFewDomains> {
        effective_scheme(self.scheme, usable_domains(self.devices, self.shuns()), self.too_few)
    }

    /// Whom new extents do without. Nobody without whom protection would shrink; and slow devices not where more domains are slow
    /// than the scheme can lose, unless the others are enough for it: then it is what they share that is slow, and the same
    /// work on fewer devices, with more parity to it, would make all slower still.
    pub fn shuns(&self) -> Shuns {
        let (width, m) = (self.scheme.width(), self.scheme.m());
        let [quick, answering] = [Shuns::Slow, Shuns::Away].map(|shuns| usable_domains(self.devices, shuns));
        match () {
            () if quick >= width || (quick > m && answering - quick <= m.max(1)) => Shuns::Slow,
            () if answering > m => Shuns::Away,
            () => Shuns::Nobody,
        }
    }

    /// Scheme and devices of one new extent, narrow or wide. `out[..scheme.width()]` receives indexes into
    /// `devices`, column 0 first; `salt` (the extent's number) turns the columns, so that no device is always
    /// column 0 or always parity.
    pub fn plan(
        &self,
        placer: &mut Placer,
        narrow: bool,
        salt: u64,
        out: &mut [usize; Scheme::WIDTH_MAX],
    ) -> Result<Effective, PlacementError> {
        let mut effective = self.effective()?;
        if narrow {
            // Narrow extents ask for m+1 domains only, so a shrunk k does not matter to them.
            if effective.protection == Protection::FewerData {
                effective.protection = Protection::Full;
            }
            effective.scheme = effective.scheme.narrow();
        }
        placer.place(self.devices, effective.scheme, salt, &mut out[..effective.scheme.width()])?;
        Ok(effective)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effective(scheme: &str, domains: usize, policy: TooFewPolicy) -> Result<(String, Protection), usize> {
        effective_scheme(scheme.parse().unwrap(), domains, policy)
            .map(|e| (e.scheme.to_string(), e.protection))
            .map_err(|e| e.needed)
    }

    #[test]
    fn with_too_few_domains_k_shrinks_and_m_stays() {
        use Protection::*;
        use TooFewPolicy::*;
        for (scheme, domains, want) in [
            ("4+2", 9, ("4+2", Full)),
            ("4+2", 6, ("4+2", Full)),
            ("4+2", 5, ("3+2", FewerData)),
            ("4+2", 3, ("1+2", FewerData)),
            ("2+2", 3, ("1+2", FewerData)),
            ("16+4", 19, ("15+4", FewerData)),
            ("1+0", 1, ("1+0", Full)),
            ("8+0", 3, ("3+0", FewerData)),
        ] {
            let want = Ok((want.0.to_string(), want.1));
            assert_eq!(effective(scheme, domains, Refuse), want);
            assert_eq!(effective(scheme, domains, Continue), want);
        }
    }

    #[test]
    fn protection_shrinks_only_by_policy_and_says_so() {
        use TooFewPolicy::*;
        assert_eq!(effective("4+2", 2, Continue), Ok(("1+1".into(), Protection::Reduced)));
        assert_eq!(effective("4+2", 1, Continue), Ok(("1+0".into(), Protection::Reduced)));
        assert_eq!(effective("4+2", 2, Refuse), Err(3));
        assert_eq!(effective("4+2", 0, Continue), Err(1));
        assert_eq!(effective("1+0", 0, Refuse), Err(1));
    }

    fn devices(n: usize) -> Vec<DeviceView> {
        let device = |i: usize| DeviceView {
            id: peristyle_base::Uuid([i as u8 + 1; 16]),
            domain: DomainId(i as u32),
            slots_total: 100,
            slots_used: 0,
            healthy: true,
            avoid: false,
            away: false,
            draining: false,
        };
        (0..n).map(device).collect()
    }

    fn plan(devices: &[DeviceView], narrow: bool) -> Result<(Effective, Vec<usize>), PlacementError> {
        let scheme = Scheme::new(4, 2).unwrap();
        let pool = PoolView { id: PoolId(0), scheme, too_few: TooFewPolicy::Refuse, devices };
        let mut out = [usize::MAX; Scheme::WIDTH_MAX];
        let effective = pool.plan(&mut Placer::default(), narrow, 1, &mut out)?;
        Ok((effective, out[..effective.scheme.width()].to_vec()))
    }

    #[test]
    fn a_slow_device_is_left_out_as_long_as_protection_stays() {
        let mut six = devices(6);
        six[2].avoid = true;
        let (effective, columns) = plan(&six, false).unwrap();
        assert_eq!(
            (effective.scheme.to_string().as_str(), effective.protection),
            ("3+2", Protection::FewerData)
        );
        assert!(!columns.contains(&2));
        let (effective, columns) = plan(&six, true).unwrap();
        assert_eq!((effective.scheme.to_string().as_str(), effective.protection), ("1+2", Protection::Full));
        assert!(!columns.contains(&2));
    }

    #[test]
    fn slowness_of_more_devices_than_can_be_lost_is_not_theirs() {
        let mut six = devices(6);
        six[..2].iter_mut().for_each(|d| d.avoid = true);
        assert_eq!(plan(&six, false).unwrap().0.scheme.to_string(), "2+2");
        six[2].avoid = true;
        assert_eq!(plan(&six, false).unwrap().0.scheme.to_string(), "4+2", "all of them");
        six[2].away = true;
        assert_eq!(plan(&six, false).unwrap().0.scheme.to_string(), "1+2", "3 are quick, and 2 of 5 slow");
        six[3..].iter_mut().for_each(|d| d.away = true);
        let (effective, columns) = plan(&six, true).unwrap();
        assert_eq!(
            (effective.protection, columns.len()),
            (Protection::Full, 3),
            "two that answer, one that does not"
        );
        assert!(columns.contains(&0) && columns.contains(&1));
        let mut nine = devices(9);
        nine[..3].iter_mut().for_each(|d| d.avoid = true);
        let (effective, columns) = plan(&nine, false).unwrap();
        assert_eq!(effective.protection, Protection::Full);
        assert!(columns.iter().all(|c| *c >= 3), "the others are enough");
    }

    #[test]
    fn slow_devices_serve_when_protection_would_shrink_without_them() {
        let mut six = devices(6);
        six[..4].iter_mut().for_each(|d| d.avoid = true);
        let (effective, _) = plan(&six, false).unwrap();
        assert_eq!((effective.scheme.to_string().as_str(), effective.protection), ("4+2", Protection::Full));
        six[..4].iter_mut().for_each(|d| d.healthy = false);
        assert_eq!(plan(&six, false), Err(PlacementError::TooFew(TooFewDomains { healthy: 2, needed: 3 })));
    }

    #[test]
    fn a_device_that_is_drained_gets_no_columns_and_counts_as_gone() {
        let mut seven = devices(7);
        seven[2].draining = true;
        let (effective, columns) = plan(&seven, false).unwrap();
        assert_eq!((effective.protection, columns.contains(&2)), (Protection::Full, false));
        seven[3].draining = true;
        assert_eq!(plan(&seven, false).unwrap().0.scheme.to_string(), "3+2");
    }

    #[test]
    fn where_every_domain_is_needed_the_fullest_decides_how_many_extents_there_is_room_for() {
        let free = |slots: &[u32], columns| {
            let mut pool = devices(slots.len());
            pool.iter_mut().zip(slots).for_each(|(d, free)| d.slots_used = 100 - free);
            extents_free(&pool, columns)
        };
        assert_eq!(free(&[50, 50, 50, 50, 50, 3], 6), 3);
        assert_eq!(free(&[50, 50, 50, 50, 50, 3], 5), 50);
        assert_eq!(free(&[4, 4, 4, 4, 4, 4, 4], 6), 4, "28 slots");
        assert_eq!(free(&[9, 1, 1], 2), 2, "each takes two domains");
        assert_eq!(free(&[7, 5], 6), 5, "narrower ones");
        assert_eq!((free(&[0; 6], 6), free(&[], 6)), (0, 0));
        let mut pool = devices(7);
        pool[0].draining = true;
        pool[1].domain = DomainId(2);
        assert_eq!(extents_free(&pool, 5), 100, "domain 2 has 200 slots, and gives each extent one");
    }

    #[test]
    fn a_full_pool_says_full_and_does_not_shrink_its_scheme() {
        let mut six = devices(6);
        six[0].slots_used = 100;
        assert_eq!(plan(&six, false), Err(PlacementError::Full { with_room: 5, needed: 6 }));
        assert!(plan(&six, true).is_ok(), "a narrow extent still finds three devices");
    }
}
