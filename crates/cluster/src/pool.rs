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
    /// Slow at the moment: used only when protection would shrink without it.
    pub avoid: bool,
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

/// How many failure domains have a healthy device; with `avoided`, slow ones count too. Full ones count: they
/// are not lost, and a full pool must say "full" rather than shrink its scheme.
pub fn usable_domains(devices: &[DeviceView], avoided: bool) -> usize {
    let usable = |d: &&DeviceView| d.takes_columns() && (avoided || !d.avoid);
    let new = |i: usize, d: &DeviceView| !devices[..i].iter().filter(usable).any(|e| e.domain == d.domain);
    devices.iter().enumerate().filter(|(i, d)| usable(d) && new(*i, d)).count()
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
    /// The scheme that new wide extents get now. Slow devices are left out while m+1 domains remain without them.
    pub fn effective(&self) -> Result<Effective, TooFewDomains> {
        let quick = usable_domains(self.devices, false);
        let domains = if quick > self.scheme.m() { quick } else { usable_domains(self.devices, true) };
        effective_scheme(self.scheme, domains, self.too_few)
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
    fn a_full_pool_says_full_and_does_not_shrink_its_scheme() {
        let mut six = devices(6);
        six[0].slots_used = 100;
        assert_eq!(plan(&six, false), Err(PlacementError::Full { with_room: 5, needed: 6 }));
        assert!(plan(&six, true).is_ok(), "a narrow extent still finds three devices");
    }
}
