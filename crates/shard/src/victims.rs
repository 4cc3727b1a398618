//! Which extents are worth collecting. Pure.

use crate::extent::{Extent, ExtentPhase};
use crate::frame::{FRAME_BLOCKS_MAX, Layout};
use peristyle_base::{COLUMN_ROWS, ExtentId, Scheme};

/// Blocks of one relocation frame at most, as in users' frames: with half as many, headers and ends of extents would take
/// 1.6 % more of the space, which costs four times as much in device bytes of a pool that is 80 % full.
pub(crate) const MOVED_BLOCKS: usize = FRAME_BLOCKS_MAX;
/// An extent is collected when at least this share of its space comes back.
const GAIN_MIN: f64 = 1.0 / 32.0;

/// How collection chooses, and what it keeps apart. All but the first are there to be compared with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Policy {
    /// Old extents before young ones that hold as much, hot and cold blocks apart.
    #[default]
    CostBenefit,
    /// The same choice, with one stream for what users write and one for what is moved.
    OneStream,
    /// Whatever gives back most space now, with one stream for each.
    Greedy,
    /// Nothing is collected.
    Off,
}

/// An extent that is worth collecting.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Victim {
    pub id: ExtentId,
    score: f64,
}

/// Share of an extent's space that its live blocks would take in full wide frames. Narrow extents, half-empty ones and
/// those of another scheme than the pool's are worth collecting even when all of their blocks are alive.
pub(crate) fn share(e: &Extent, pool: Scheme) -> f64 {
    let live = e.live as usize;
    let full = live / MOVED_BLOCKS * Layout::space(MOVED_BLOCKS, pool);
    let rest = match live % MOVED_BLOCKS {
        0 => 0,
        rest => Layout::space(rest, pool),
    };
    (full + rest) as f64 / (e.scheme.width() * COLUMN_ROWS as usize) as f64
}

/// The best victims, the very best last.
pub(crate) fn choose<'a>(
    extents: impl Iterator<Item = &'a Extent>,
    (pool, policy, now): (Scheme, Policy, u64),
    spared: impl Fn(ExtentId) -> bool,
    count: usize,
) -> Vec<Victim> {
    let mut best: Vec<Victim> = Vec::with_capacity(2 * count);
    let weigh = |e: &Extent| {
        let share = share(e, pool);
        let age = now.saturating_sub(e.birth.filled()) as f64 + 1.0;
        let score = match policy {
            Policy::Greedy => 1.0 - share,
            _ => (1.0 - share) * age / share,
        };
        Victim { id: e.id, score }
    };
    let worst_first = |a: &Victim, b: &Victim| a.score.total_cmp(&b.score).then(b.id.cmp(&a.id));
    let worth = |e: &&Extent| may_be_victim(e) && share(e, pool) <= 1.0 - GAIN_MIN && !spared(e.id);
    for e in extents.filter(worth) {
        best.push(weigh(e));
        if best.len() == 2 * count {
            best.sort_unstable_by(worst_first);
            best.drain(..count);
        }
    }
    best.sort_unstable_by(worst_first);
    best.drain(..best.len().saturating_sub(count));
    best
}

/// It is immutable, and holds blocks that nobody is moving.
pub(crate) fn may_be_victim(e: &Extent) -> bool {
    e.phase == ExtentPhase::Sealed && e.live > 0 && !e.leftover && !e.victim
}

#[cfg(test)]
mod tests {
    use super::*;
    use peristyle_base::{Epoch, Nonce};
    use peristyle_cluster::ColumnPlaces;

    const POOL: &str = "4+2";

    fn extent(id: u64, scheme: &str, live: u32, birth: u64) -> Extent {
        let scheme = scheme.parse().unwrap();
        let places = ColumnPlaces::new(&[]);
        let mut e = Extent::new(ExtentId(id), scheme, Nonce([0; 16]), Epoch(1), places, ExtentPhase::Sealed);
        e.live = live;
        e.birth.add(1, birth, birth);
        e
    }

    fn order(extents: &[Extent], policy: Policy) -> Vec<u64> {
        let victims =
            choose(extents.iter(), (POOL.parse().unwrap(), policy, 100_000), |_| false, extents.len());
        victims.iter().rev().map(|v| v.id.0).collect()
    }

    #[test]
    fn greedy_takes_the_emptiest_and_cost_benefit_weighs_age() {
        let extents = [extent(1, POOL, 1000, 1000), extent(2, POOL, 800, 99_000)];
        assert_eq!(order(&extents, Policy::Greedy), [2, 1]);
        assert_eq!(order(&extents, Policy::CostBenefit), [1, 2], "what is young will lose more by itself");
    }

    #[test]
    fn a_narrow_extent_is_worth_it_with_every_block_alive() {
        let full = extent(1, POOL, 1980, 0);
        let narrow = extent(2, "1+2", 256, 0);
        let shrunk = extent(3, "2+2", 1000, 0);
        assert!(share(&full, POOL.parse().unwrap()) > 0.97);
        assert_eq!(order(&[full, narrow, shrunk], Policy::Greedy), [2, 3]);
    }

    #[test]
    fn what_is_dead_or_being_moved_is_no_victim() {
        let mut moving = extent(1, POOL, 100, 0);
        moving.victim = true;
        let mut open = extent(2, POOL, 100, 0);
        open.phase = ExtentPhase::Open;
        assert!(order(&[moving, open, extent(3, POOL, 0, 0)], Policy::CostBenefit).is_empty());
    }

    #[test]
    fn the_best_of_many_are_found_in_bounded_memory() {
        let extents: Vec<Extent> =
            (1..=1000).map(|id| extent(id, POOL, 1 + (id * 7919 % 1500) as u32, 0)).collect();
        let pool = POOL.parse().unwrap();
        let few = choose(extents.iter(), (pool, Policy::Greedy, 0), |_| false, 10);
        let all = choose(extents.iter(), (pool, Policy::Greedy, 0), |_| false, 1000);
        assert_eq!(few, all[990..]);
    }
}
