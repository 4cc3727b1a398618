//! What would have to move if devices came or went: arithmetic, nothing moves.

use crate::pool::DomainId;
use peristyle_base::Scheme;

/// A device as a plan sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlanDevice {
    pub domain: DomainId,
    pub slots_total: u32,
    /// That it has now.
    pub slots_used: u32,
    /// It is to have columns.
    pub stays: bool,
}

/// Where a pool's columns would be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Slots of each device that would be used.
    pub goals: Vec<u64>,
    /// Slots that have to be written: the least, since each of them is on a device that has too little.
    pub moved: u64,
    /// Failure domains that are left, and slots that fit none of them.
    pub domains: usize,
    pub left_over: u64,
}

/// Every device gets its share of all columns by its capacity, but no failure domain more than one of each extent's, and none more than it
/// has room for.
pub fn plan(devices: &[PlanDevice], scheme: Scheme) -> Plan {
    let mut domains: Vec<(DomainId, u64)> = Vec::new();
    for device in devices.iter().filter(|d| d.stays && d.slots_total > 0) {
        match domains.iter_mut().find(|(domain, _)| *domain == device.domain) {
            Some((_, slots)) => *slots += u64::from(device.slots_total),
            None => domains.push((device.domain, device.slots_total.into())),
        }
    }
    let used: u64 = devices.iter().map(|d| u64::from(d.slots_used)).sum();
    // With fewer domains than columns extents get narrower.
    let width = scheme.width().min(domains.len()).max(1) as u64;
    let shares = shares(&domains, used, used.div_ceil(width));
    let placed: u64 = shares.iter().sum();
    let goal = |device: &PlanDevice| -> u64 {
        let place = domains.iter().position(|(domain, _)| *domain == device.domain);
        let Some(place) = place.filter(|_| device.stays) else { return 0 };
        (u128::from(shares[place]) * u128::from(device.slots_total) / u128::from(domains[place].1.max(1)))
            as u64
    };
    let mut goals: Vec<u64> = devices.iter().map(goal).collect();
    // What rounding leaves over goes where most room is.
    for _ in goals.iter().sum::<u64>()..placed {
        let room = |i: &usize| u64::from(devices[*i].slots_total).saturating_sub(goals[*i]);
        if let Some(most) = (0..goals.len()).filter(|&i| devices[i].stays).max_by_key(room) {
            goals[most] += 1;
        }
    }
    let comes = |(goal, device): (&u64, &PlanDevice)| goal.saturating_sub(device.slots_used.into());
    let moved = goals.iter().zip(devices).map(comes).sum();
    Plan { goals, moved, domains: domains.len(), left_over: used - placed }
}

/// Of so many columns each domain's share by its capacity, at most `most`, and at most its capacity; what one cannot have goes to the others.
fn shares(domains: &[(DomainId, u64)], used: u64, most: u64) -> Vec<u64> {
    let mut shares: Vec<Option<u64>> = vec![None; domains.len()];
    loop {
        let fixed: u64 = shares.iter().flatten().sum();
        let open =
            |shares: &[Option<u64>]| (0..domains.len()).filter(|&i| shares[i].is_none()).collect::<Vec<_>>();
        let (rest, free) = (used.saturating_sub(fixed), open(&shares));
        let capacity: u64 = free.iter().map(|&i| domains[i].1).sum();
        let share =
            |i: usize| (u128::from(rest) * u128::from(domains[i].1) / u128::from(capacity.max(1))) as u64;
        let limit = |i: usize| most.min(domains[i].1);
        let beyond: Vec<usize> = free.iter().copied().filter(|&i| share(i) >= limit(i)).collect();
        if beyond.is_empty() {
            free.iter().for_each(|&i| shares[i] = Some(share(i)));
            let mut shares: Vec<u64> = shares.into_iter().flatten().collect();
            // Rounding.
            let placed: u64 = shares.iter().sum();
            let mut left = used.saturating_sub(placed);
            for i in free {
                let more = left.min(limit(i) - shares[i]);
                shares[i] += more;
                left -= more;
            }
            return shares;
        }
        beyond.iter().for_each(|&i| shares[i] = Some(limit(i)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(domain: u32, slots_total: u32, slots_used: u32) -> PlanDevice {
        PlanDevice { domain: DomainId(domain), slots_total, slots_used, stays: true }
    }

    fn planned(devices: &[PlanDevice], scheme: &str) -> (Vec<u64>, u64, u64) {
        let Plan { goals, moved, left_over, .. } = plan(devices, scheme.parse().unwrap());
        (goals, moved, left_over)
    }

    #[test]
    fn a_new_node_gets_its_share_and_only_that_moves() {
        let mut nodes: Vec<PlanDevice> = (0..6).map(|i| device(i, 1000, 700)).collect();
        assert_eq!(planned(&nodes, "4+2"), (vec![700; 6], 0, 0));
        nodes.push(device(6, 1000, 0));
        assert_eq!(planned(&nodes, "4+2"), (vec![600; 7], 600, 0));
    }

    #[test]
    fn a_node_that_is_larger_than_a_column_of_every_extent_gets_no_more() {
        // Half of all columns of 1+1 at most.
        let nodes = [device(0, 100, 50), device(1, 100, 50), device(2, 1000, 0)];
        assert_eq!(planned(&nodes, "1+1"), (vec![25, 25, 50], 50, 0));
        // Its devices share what it gets by their size.
        let nodes = [device(0, 100, 60), device(1, 100, 60), device(2, 300, 0), device(2, 100, 0)];
        assert_eq!(planned(&nodes, "1+1"), (vec![30, 30, 45, 15], 60, 0));
    }

    #[test]
    fn what_leaves_goes_to_the_others_if_they_have_room() {
        let mut nodes: Vec<PlanDevice> = (0..7).map(|i| device(i, 1000, 600)).collect();
        nodes[3].stays = false;
        let (goals, moved, left) = planned(&nodes, "4+2");
        assert_eq!((goals[3], goals[0], moved, left), (0, 700, 600, 0));
        nodes.iter_mut().for_each(|d| d.slots_used = 900);
        assert_eq!(planned(&nodes, "4+2").2, 300, "6300 in 6000");
        // Fewer domains than columns: extents of 4 columns on the four that are left.
        let mut nodes: Vec<PlanDevice> = (0..6).map(|i| device(i, 1000, 100)).collect();
        nodes[..2].iter_mut().for_each(|d| d.stays = false);
        let Plan { goals, domains, .. } = plan(&nodes, "4+2".parse().unwrap());
        assert_eq!((goals, domains), (vec![0, 0, 150, 150, 150, 150], 4));
        assert_eq!(plan(&[], "4+2".parse().unwrap()), Plan::default());
    }

    #[test]
    fn goals_add_up_whatever_the_sizes() {
        for seed in 0..200u64 {
            let mut x = seed * 2654435761 + 1;
            let mut random = |below: u64| {
                x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (x >> 33) % below
            };
            let devices: Vec<PlanDevice> = (0..1 + random(12))
                .map(|_| {
                    let total = random(500) as u32;
                    let used = random(u64::from(total) + 1) as u32;
                    PlanDevice { stays: random(4) > 0, ..device(random(8) as u32, total, used) }
                })
                .collect();
            let Plan { goals, left_over, .. } = plan(&devices, "2+1".parse().unwrap());
            let used: u64 = devices.iter().map(|d| u64::from(d.slots_used)).sum();
            assert_eq!(goals.iter().sum::<u64>() + left_over, used, "{devices:?}");
            assert!(
                goals.iter().zip(&devices).all(|(g, d)| *g <= u64::from(d.slots_total)),
                "{goals:?} {devices:?}"
            );
        }
    }
}
