//! What a class of machines can do at most, from what one request costs and what its parts do by themselves: the bounds of the
//! utilisation law (Lazowska, Zahorjan, Graham, Sevcik, "Quantitative System Performance", 1984, chapter 5).

/// What one request of the user costs, measured where it was measured. All are averages; a cost of 0 is no limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerRequest {
    /// Bytes of the request.
    pub user_bytes: f64,
    /// Requests to devices of all kinds.
    pub device_ios: f64,
    /// Bytes that devices read and write, for each byte of the user.
    pub device_bytes_per_byte: f64,
    /// Bytes on a node's links, for each byte of the user, in the direction that has more.
    pub network_bytes_per_byte: f64,
    /// Microseconds of a core, of the kind that has speed 1.
    pub core_us: f64,
}

/// What there is: so many nodes, all alike. Devices' figures are of one device, the network's of one node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Class {
    pub nodes: f64,
    pub devices: f64,
    pub device_iops: f64,
    pub device_bytes_per_s: f64,
    pub network_bytes_per_s: f64,
    /// Cores that serve.
    pub cores: f64,
    /// Beside the core on which `core_us` was measured.
    pub core_speed: f64,
}

/// What limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    DeviceRequests,
    DeviceBytes,
    Network,
    Cores,
}

impl Part {
    pub fn name(self) -> &'static str {
        match self {
            Part::DeviceRequests => "device requests",
            Part::DeviceBytes => "device bytes",
            Part::Network => "network",
            Part::Cores => "cores",
        }
    }
}

/// Requests per second that each part lets through, the least first: that one binds. Parts of which a request takes nothing are left
/// out. An error says what is no figure.
pub fn bounds(request: &PerRequest, class: &Class) -> Result<Vec<(Part, f64)>, String> {
    let PerRequest { user_bytes, device_ios, device_bytes_per_byte, network_bytes_per_byte, core_us } =
        *request;
    let costs = [user_bytes, device_ios, device_bytes_per_byte, network_bytes_per_byte, core_us];
    if !costs.iter().all(|cost| *cost >= 0.0 && cost.is_finite()) || user_bytes == 0.0 {
        return Err("costs of a request are numbers from 0 on, and it has bytes".to_owned());
    }
    let Class { nodes, devices, device_iops, device_bytes_per_s, network_bytes_per_s, cores, core_speed } =
        *class;
    let figures = [nodes, devices, device_iops, device_bytes_per_s, network_bytes_per_s, cores, core_speed];
    if !figures.iter().all(|figure| *figure > 0.0 && figure.is_finite()) {
        return Err("figures of a class are numbers above 0".to_owned());
    }
    let all = [
        (Part::DeviceRequests, devices * device_iops, device_ios),
        (Part::DeviceBytes, devices * device_bytes_per_s, user_bytes * device_bytes_per_byte),
        (Part::Network, network_bytes_per_s, user_bytes * network_bytes_per_byte),
        (Part::Cores, cores * core_speed * 1e6, core_us),
    ];
    let costs = all.into_iter().filter(|(.., cost)| *cost > 0.0);
    let mut bounds: Vec<(Part, f64)> = costs.map(|(part, has, cost)| (part, nodes * has / cost)).collect();
    bounds.sort_by(|a, b| a.1.total_cmp(&b.1));
    if bounds.is_empty() { Err("a request that costs nothing has no limit".to_owned()) } else { Ok(bounds) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 4 KiB write of 4+2 as it was measured at depth 32 (docs/measuring.md), its network 1 in and 1.5 out.
    const WRITE: PerRequest = PerRequest {
        user_bytes: 4096.0,
        device_ios: 0.188,
        device_bytes_per_byte: 1.59,
        network_bytes_per_byte: 1.5,
        core_us: 3.1,
    };
    const CLASS: Class = Class {
        nodes: 1.0,
        devices: 6.0,
        device_iops: 500e3,
        device_bytes_per_s: 2e9,
        network_bytes_per_s: 12.5e9,
        cores: 4.0,
        core_speed: 1.0,
    };

    #[test]
    fn the_least_of_the_bounds_binds() {
        let all = bounds(&WRITE, &CLASS).unwrap();
        assert_eq!(all.len(), 4);
        assert_eq!((all[0].0, all[0].1.round()), (Part::Cores, 1_290_323.0));
        let more = Class { cores: 64.0, ..CLASS };
        let (part, least) = bounds(&WRITE, &more).unwrap()[0];
        assert_eq!((part, least.round()), (Part::DeviceBytes, (12e9f64 / 4096.0 / 1.59).round()));
        let one_link = Class { network_bytes_per_s: 1.25e9, ..more };
        assert_eq!(bounds(&WRITE, &one_link).unwrap()[0].0, Part::Network);
        let disks = Class { device_iops: 200.0, ..CLASS };
        assert_eq!(bounds(&WRITE, &disks).unwrap()[0].0.name(), "device requests");
    }

    #[test]
    fn what_costs_nothing_does_not_limit_and_wrong_figures_are_refused() {
        let local = PerRequest { network_bytes_per_byte: 0.0, ..WRITE };
        assert!(bounds(&local, &CLASS).unwrap().iter().all(|(part, _)| *part != Part::Network));
        assert!(bounds(&WRITE, &Class { cores: 0.0, ..CLASS }).is_err());
        assert!(bounds(&PerRequest { core_us: f64::NAN, ..WRITE }, &CLASS).is_err());
        assert!(bounds(&PerRequest { user_bytes: 0.0, ..WRITE }, &CLASS).is_err());
    }
}
