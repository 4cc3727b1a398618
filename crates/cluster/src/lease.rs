//! Who may serve a shard (DESIGN §6): an owner holds a lease of a majority of the cluster's nodes and renews it; a node that
//! granted one takes no other owner for the shard before it has run out or was given back. Plain state on each side; the times are
//! those of the node's own clock, and never leave it.
//!
//! **Invariant:** an owner's lease ends by its own clock before any majority can take another owner. The holder counts from when it
//! asked, the grantor from when it was asked, and each leaves [`DRIFT_PERMILLE`] for the other's clock.
//!
//! **Invariant:** a lease that has run out is never renewed: the owner needs a new epoch. A node forgets its promises when it is
//! restarted, and takes nobody for a whole period then; an owner of which it knew nothing cannot come back with an old epoch,
//! because such an owner's lease has run out.

use core::time::Duration;
use peristyle_base::{Epoch, Instant, NodeId, ShardId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Nodes of a cluster at most: all of them vote.
pub const NODES_MAX: usize = 64;
/// How long a lease lasts.
pub const LEASE_PERIOD: Duration = Duration::from_millis(600);
/// How often it is renewed.
pub const RENEW_PERIOD: Duration = Duration::from_millis(100);
/// Clocks that drift more than this are outside the fault model.
pub const DRIFT_PERMILLE: u32 = 10;
/// After this, by any node's clock, nothing of what was granted before holds any more.
pub const LEASE_OVER: Duration = Duration::from_millis(LEASE_PERIOD.as_millis() as u64 * 102 / 100);

/// Nodes of `all` that decide.
pub const fn majority(all: usize) -> usize {
    all / 2 + 1
}

/// What a grantor says to somebody who wants to own a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claimed {
    Accepted,
    /// Another's lease holds for so long still.
    Wait(Duration),
    /// It has accepted a higher epoch.
    Stale(Epoch),
}

struct Promise {
    epoch: Epoch,
    owner: NodeId,
    /// Nobody else before this.
    until: Instant,
}

/// The side that grants: one on every node.
pub struct Grantor {
    /// It takes nobody before.
    ready: Instant,
    promises: BTreeMap<ShardId, Promise>,
}

/// Shards that a grantor knows of: more than any cluster has.
const SHARDS_MAX: usize = 65_536;

impl Grantor {
    /// A process that starts now, and has forgotten what one before it has promised.
    pub fn new(now: Instant) -> Grantor {
        Grantor { ready: later(now, longer(LEASE_PERIOD)), promises: BTreeMap::new() }
    }

    /// The owner of an epoch that it has taken in the control store wants the others to take it.
    pub fn claim(&mut self, now: Instant, owner: NodeId, shard: ShardId, epoch: Epoch) -> Claimed {
        if now < self.ready {
            return Claimed::Wait(self.ready.since(now));
        }
        match self.promises.get(&shard) {
            Some(p) if p.epoch > epoch || p.epoch == epoch && p.owner != owner => Claimed::Stale(p.epoch),
            Some(p) if p.epoch < epoch && now < p.until => Claimed::Wait(p.until.since(now)),
            None if self.promises.len() >= SHARDS_MAX => Claimed::Wait(LEASE_PERIOD),
            _ => {
                self.promise(now, owner, shard, epoch);
                Claimed::Accepted
            }
        }
    }

    /// False: it has accepted a higher epoch.
    pub fn renew(&mut self, now: Instant, owner: NodeId, shard: ShardId, epoch: Epoch) -> bool {
        let taken = self.promises.get(&shard);
        let fits = match taken {
            Some(p) => p.epoch < epoch || p.epoch == epoch && p.owner == owner,
            None => self.promises.len() < SHARDS_MAX,
        };
        if fits {
            self.promise(now, owner, shard, epoch);
        }
        fits
    }

    /// The owner has stopped serving: another may follow at once.
    pub fn give_back(&mut self, now: Instant, owner: NodeId, shard: ShardId, epoch: Epoch) {
        let promise = self.promises.get_mut(&shard);
        if let Some(p) = promise.filter(|p| (p.epoch, p.owner) == (epoch, owner)) {
            p.until = now;
        }
    }

    fn promise(&mut self, now: Instant, owner: NodeId, shard: ShardId, epoch: Epoch) {
        let until = later(now, longer(LEASE_PERIOD));
        self.promises.insert(shard, Promise { epoch, owner, until });
    }
}

/// What a holder has of one node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Vote {
    /// It has no vote, and a majority is one of the others.
    Gone,
    /// It has left the cluster and grants nothing. A majority is one of as many as before, until all others have heard of it.
    Left,
    /// When it was asked for what it has granted, latest.
    Asked(Option<Instant>),
}

/// The side that holds: what an owner knows of one shard's lease.
pub struct Holder {
    pub epoch: Epoch,
    /// By number of a node.
    votes: Vec<Vote>,
    /// It has run out, or was refused: nothing brings it back.
    over: bool,
    lease: Lease,
}

impl Holder {
    /// `nodes`: all that may grant, this one included. `lease` is what its users look at.
    pub fn new(epoch: Epoch, nodes: usize, lease: Lease) -> Holder {
        Holder { epoch, votes: vec![Vote::Asked(None); nodes], over: false, lease }
    }

    /// Node number `from` has granted what it was asked for at `asked`.
    pub fn granted(&mut self, now: Instant, from: usize, asked: Instant) {
        if self.is_over(now) {
            return;
        }
        let Vote::Asked(latest) = &mut self.votes[from] else { return };
        *latest = (*latest).max(Some(asked));
        if let Some(until) = self.until_of_majority() {
            self.lease.extend(until);
        }
    }

    /// One more node may grant, and has not: a majority is one of all that may now, so the lease may end sooner. Its number is the
    /// next one, or that which it had before it left.
    pub fn join(&mut self, number: usize) {
        match self.votes.get_mut(number) {
            Some(vote) => *vote = Vote::Asked(None),
            None => self.votes.push(Vote::Asked(None)),
        }
        self.count_again();
    }

    /// A node leaves the cluster: what it has granted counts no more.
    pub fn leave(&mut self, number: usize) {
        self.votes[number] = Vote::Left;
        self.count_again();
    }

    /// All have heard that a node has left: a majority is one of fewer.
    pub fn forget(&mut self, number: usize) {
        self.votes[number] = Vote::Gone;
        self.count_again();
    }

    fn count_again(&mut self) {
        if !self.over && self.lease.was_held() {
            let until = self.until_of_majority().map_or(ENDED, |until| until.0);
            self.lease.store(until);
        }
    }

    /// Until when a majority has granted.
    fn until_of_majority(&self) -> Option<Instant> {
        let voters = self.votes.iter().filter(|vote| **vote != Vote::Gone).count();
        let granted = |vote: &Vote| if let Vote::Asked(latest) = vote { *latest } else { None };
        let mut all: Vec<_> = self.votes.iter().filter_map(granted).collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        let oldest = all.get(majority(voters) - 1)?;
        Some(later(*oldest, shorter(LEASE_PERIOD)))
    }

    /// A node has accepted a higher epoch: there is, or will be, another owner.
    pub fn refused(&mut self) {
        self.end();
    }

    /// It was held once, and does not hold any more.
    pub fn is_over(&mut self, now: Instant) -> bool {
        if self.lease.was_held() && !self.lease.holds(now) {
            self.end();
        }
        self.over
    }

    /// From now on nobody serves under it.
    pub fn end(&mut self) {
        self.over = true;
        self.lease.end();
    }
}

/// Until when an owner may serve reads. Clones are the same lease; whoever serves looks at the clock and at this.
#[derive(Clone, Default, Debug)]
pub struct Lease(Option<Arc<AtomicU64>>);

/// It was held, and ended before its time.
const ENDED: u64 = 1;

impl Lease {
    /// Of a shard that nobody else can own.
    pub fn for_ever() -> Lease {
        Lease(None)
    }
    /// One that is not held yet.
    pub fn none() -> Lease {
        Lease(Some(Arc::default()))
    }
    pub fn holds(&self, now: Instant) -> bool {
        self.0.as_ref().is_none_or(|until| now.0 < until.load(Relaxed))
    }
    /// The holder that begins has no part in what was before.
    pub fn begin(&self) {
        self.store(0);
    }
    fn was_held(&self) -> bool {
        self.0.as_ref().is_some_and(|until| until.load(Relaxed) != 0)
    }
    fn extend(&self, until: Instant) {
        let now = self.0.as_ref().map_or(0, |until| until.load(Relaxed));
        self.store(now.max(until.0));
    }
    fn end(&self) {
        self.store(ENDED);
    }
    fn store(&self, value: u64) {
        if let Some(until) = &self.0 {
            until.store(value, Relaxed);
        }
    }
}

fn later(at: Instant, by: Duration) -> Instant {
    Instant(at.0.saturating_add(by.as_nanos() as u64))
}
fn longer(period: Duration) -> Duration {
    period + period * DRIFT_PERMILLE / 1000
}
fn shorter(period: Duration) -> Duration {
    period - period * DRIFT_PERMILLE / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: ShardId = ShardId(7);
    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn ms(n: u64) -> Instant {
        Instant(n * 1_000_000)
    }
    fn wait(n: u64) -> Claimed {
        Claimed::Wait(Duration::from_millis(n))
    }

    #[test]
    fn a_grantor_takes_nobody_in_its_first_period_because_it_may_have_promised_before() {
        let mut grantor = Grantor::new(ms(1000));
        assert_eq!(grantor.claim(ms(1000), A, SHARD, Epoch(1)), wait(606));
        assert_eq!(grantor.claim(ms(1605), A, SHARD, Epoch(1)), wait(1));
        assert_eq!(grantor.claim(ms(1606), A, SHARD, Epoch(1)), Claimed::Accepted);
    }

    #[test]
    fn another_owner_waits_until_the_lease_has_run_out_or_was_given_back() {
        let mut grantor = Grantor::new(ms(0));
        assert_eq!(grantor.claim(ms(1000), A, SHARD, Epoch(1)), Claimed::Accepted);
        assert!(grantor.renew(ms(1100), A, SHARD, Epoch(1)));
        assert_eq!(grantor.claim(ms(1200), B, SHARD, Epoch(2)), wait(506));
        assert!(grantor.renew(ms(1300), A, SHARD, Epoch(1)), "who waits does not stop it");
        assert_eq!(grantor.claim(ms(1906), B, SHARD, Epoch(2)), Claimed::Accepted);
        assert!(!grantor.renew(ms(1907), A, SHARD, Epoch(1)), "too late");
        assert_eq!(grantor.claim(ms(1908), A, SHARD, Epoch(1)), Claimed::Stale(Epoch(2)));
        grantor.give_back(ms(1950), A, SHARD, Epoch(1));
        assert_eq!(grantor.claim(ms(1951), A, SHARD, Epoch(3)), wait(561), "not A's to give");
        grantor.give_back(ms(1960), B, SHARD, Epoch(2));
        assert_eq!(grantor.claim(ms(1960), A, SHARD, Epoch(3)), Claimed::Accepted);
    }

    #[test]
    fn one_epoch_has_one_owner_and_shards_do_not_know_each_other() {
        let mut grantor = Grantor::new(ms(0));
        assert_eq!(grantor.claim(ms(1000), A, SHARD, Epoch(1)), Claimed::Accepted);
        assert_eq!(grantor.claim(ms(1001), A, SHARD, Epoch(1)), Claimed::Accepted, "asked again");
        assert_eq!(grantor.claim(ms(9000), B, SHARD, Epoch(1)), Claimed::Stale(Epoch(1)));
        assert!(!grantor.renew(ms(9000), B, SHARD, Epoch(1)));
        assert_eq!(grantor.claim(ms(9000), B, ShardId(8), Epoch(1)), Claimed::Accepted);
    }

    #[test]
    fn a_holder_needs_a_majority_and_counts_from_when_it_asked() {
        let lease = Lease::none();
        let mut holder = Holder::new(Epoch(1), 5, lease.clone());
        holder.granted(ms(1000), 0, ms(990));
        holder.granted(ms(1000), 3, ms(900));
        holder.granted(ms(1000), 3, ms(980));
        assert!(!lease.holds(ms(1000)), "two of five");
        holder.granted(ms(1001), 4, ms(950));
        assert!(lease.holds(ms(1543)) && !lease.holds(ms(1544)), "594 ms from the third's");
        holder.granted(ms(1400), 4, ms(1300));
        assert!(lease.holds(ms(1573)) && !lease.holds(ms(1574)));
    }

    #[test]
    fn a_lease_that_has_run_out_or_was_refused_does_not_come_back() {
        for refused in [false, true] {
            let lease = Lease::none();
            let mut holder = Holder::new(Epoch(1), 1, lease.clone());
            assert!(!holder.is_over(ms(5000)), "it has not begun");
            holder.granted(ms(5000), 0, ms(5000));
            assert!(lease.holds(ms(5500)) && !holder.is_over(ms(5500)));
            if refused {
                holder.refused();
                assert!(!lease.holds(ms(5500)));
            }
            // The grant of a node that has forgotten.
            holder.granted(ms(6000), 0, ms(6000));
            assert!(holder.is_over(ms(6000)) && !lease.holds(ms(6000)));
            lease.begin();
            let mut next = Holder::new(Epoch(2), 1, lease.clone());
            next.granted(ms(7000), 0, ms(7000));
            assert!(lease.holds(ms(7100)));
        }
        assert!(Lease::for_ever().holds(Instant::FAR));
    }

    #[test]
    fn who_joins_makes_a_majority_one_of_more_and_a_lease_end_that_it_has_not_granted() {
        let lease = Lease::none();
        let mut holder = Holder::new(Epoch(1), 3, lease.clone());
        (0..3).for_each(|node| holder.granted(ms(1000), node, ms(900 + 30 * node as u64)));
        assert!(lease.holds(ms(1523)) && !lease.holds(ms(1524)), "two of three");
        holder.join(3);
        assert!(lease.holds(ms(1493)) && !lease.holds(ms(1494)), "three of four");
        holder.granted(ms(1100), 3, ms(1090));
        assert!(lease.holds(ms(1523)) && !lease.holds(ms(1524)));
        // One that was alone needs the second from now on.
        let lease = Lease::none();
        let mut alone = Holder::new(Epoch(1), 1, lease.clone());
        alone.join(1);
        alone.granted(ms(1000), 0, ms(1000));
        assert!(!lease.holds(ms(1000)) && !alone.is_over(ms(1000)), "it was never held");
        alone.granted(ms(1010), 1, ms(1005));
        assert!(lease.holds(ms(1100)));
        alone.join(2);
        assert!(lease.holds(ms(1100)), "two of three");
        alone.join(3);
        assert!(!lease.holds(ms(1100)) && alone.is_over(ms(1100)));
        alone.granted(ms(1110), 2, ms(1105));
        assert!(!lease.holds(ms(1110)), "what has ended does not begin again");
    }

    enum Heard {
        Renew { node: usize, asked: u64 },
        Granted { node: usize, asked: u64 },
        Claim { node: usize },
    }

    #[test]
    fn with_any_delays_losses_and_drifts_within_the_model_no_two_owners_hold_a_lease_at_a_time() {
        let mut random = 1u64;
        let mut draw = |below: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % below
        };
        let mut takeovers = 0;
        for _ in 0..300 {
            // Microseconds of the world; each clock runs at 991 to 1009 thousandths of it, from an offset of its own.
            let clocks: Vec<_> = (0..4).map(|_| (991 + draw(19), draw(10_000_000))).collect();
            let read = |node: usize, at: u64| Instant((at + clocks[node].1) * clocks[node].0);
            let old = 3;
            let mut grantors: Vec<_> = (0..3).map(|node| Grantor::new(read(node, 0))).collect();
            let mut holder = Holder::new(Epoch(1), 3, Lease::none());
            let (silent_from, mut accepted) = (1_000_000 + draw(1_000_000), [false; 3]);
            let mut events = Vec::new();
            let mut way = || if draw(2) == 0 { draw(500) } else { draw(700_000) };
            for at in (1_000_000..silent_from).step_by(50_000) {
                (0..3).for_each(|node| events.push((at + way(), Heard::Renew { node, asked: at })));
            }
            for at in (silent_from..silent_from + 1_500_000).step_by(2_000) {
                (0..3).for_each(|node| events.push((at + way(), Heard::Claim { node })));
            }
            events.retain(|_| draw(4) > 0);
            events.sort_by_key(|e| std::cmp::Reverse(e.0));
            while let Some((at, event)) = events.pop() {
                match event {
                    Heard::Renew { node, asked } => {
                        if grantors[node].renew(read(node, at), A, SHARD, Epoch(1)) && draw(8) > 0 {
                            let back = at + if draw(2) == 0 { draw(500) } else { draw(300_000) };
                            let place = events.partition_point(|e| e.0 > back);
                            events.insert(place, (back, Heard::Granted { node, asked }));
                        }
                    }
                    Heard::Granted { node, asked } => holder.granted(read(old, at), node, read(old, asked)),
                    Heard::Claim { node } => {
                        let answer = grantors[node].claim(read(node, at), B, SHARD, Epoch(2));
                        accepted[node] |= answer == Claimed::Accepted;
                    }
                }
                if accepted.iter().filter(|a| **a).count() >= majority(3) {
                    assert!(!holder.lease.holds(read(old, at)), "two owners");
                    takeovers += 1;
                }
            }
        }
        assert!(takeovers > 1000, "{takeovers}");
    }

    #[test]
    fn who_leaves_takes_its_grant_along_and_makes_a_majority_one_of_fewer_when_all_have_heard() {
        let lease = Lease::none();
        let mut holder = Holder::new(Epoch(1), 4, lease.clone());
        (0..4).for_each(|node| holder.granted(ms(1000), node, ms(900 + 30 * node as u64)));
        assert!(lease.holds(ms(1523)) && !lease.holds(ms(1524)), "three of four: the second");
        holder.leave(3);
        assert!(lease.holds(ms(1493)) && !lease.holds(ms(1494)), "three of four still: the first");
        holder.forget(3);
        assert!(lease.holds(ms(1523)) && !lease.holds(ms(1524)), "two of three");
        holder.granted(ms(1100), 3, ms(1100));
        holder.leave(2);
        assert!(lease.holds(ms(1493)) && !lease.holds(ms(1494)), "two of three, and of two that grant");
        // It is back, and has granted nothing yet.
        holder.join(2);
        holder.granted(ms(1120), 2, ms(1110));
        assert!(lease.holds(ms(1523)) && !lease.holds(ms(1524)));
        // One that those hold that leave ends, and does not come back with a smaller majority.
        holder.leave(1);
        holder.leave(2);
        assert!(!lease.holds(ms(1120)) && holder.is_over(ms(1120)));
        holder.forget(1);
        holder.forget(2);
        assert!(!lease.holds(ms(1120)) && holder.is_over(ms(1120)));
    }
}
