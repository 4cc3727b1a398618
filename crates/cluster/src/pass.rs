//! One way to a shard for each host at a time: which other node may hand the shard's owner the commands of a host that has no connection
//! of its own to it.
//!
//! A host that gives a path up repeats its command on another one at once. What it had sent on the first may still lie in a socket, in a node
//! that sleeps, or between two nodes, and may reach the owner after newer writes. No clock protects from that. So the owner, over which all
//! commands go, lets each host come one way only, and closes the last way before it opens the next.
//!
//! **Invariant:** between two commands of one host that are carried out, of which the first came another way than the second, every way but
//! the second's was closed, and nothing that had come another way was still being carried out.
//!
//! **Invariant:** a pass is for one association. Who forwards takes a first pass for it and renews that; one whose pass is over takes its
//! connections with it, so that nothing that the host sent there before comes under another pass.

use core::time::Duration;
use peristyle_base::{Epoch, Instant, NodeId, ShardId};
use std::collections::BTreeMap;

/// How often who forwards renews its passes.
pub const PASS_PERIOD: Duration = Duration::from_millis(100);
/// A pass that was not renewed for so long, by the owner's clock, is over.
pub const PASS_OVER: Duration = Duration::from_millis(500);
/// Passes that an owner gives at most.
pub const PASSES_MAX: usize = 4096;

/// A host identifier. Base 3.1.1.
pub type HostId = [u8; 16];

/// What a node that forwards wants for one association of a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Want {
    pub shard: ShardId,
    pub host: HostId,
    /// Another number for each association that the node ever has.
    pub association: u64,
    /// Else it only asks whether it would be granted.
    pub take: bool,
}

struct Pass {
    number: u64,
    /// Under which the owner serves the shard.
    epoch: Epoch,
    node: NodeId,
    association: u64,
    until: Instant,
}

#[derive(Default)]
struct Way {
    pass: Option<Pass>,
    /// Commands that came under this or an earlier pass and are being carried out.
    running: u32,
}

/// The passes that an owner has given.
pub struct Passes {
    ways: BTreeMap<(ShardId, HostId), Way>,
    /// Of passes that are there.
    numbers: BTreeMap<u64, (ShardId, HostId)>,
    next: u64,
}

impl Passes {
    /// `first`: drawn at random, so that no number of an earlier process is given again.
    pub fn new(first: u64) -> Passes {
        Passes { ways: BTreeMap::new(), numbers: BTreeMap::new(), next: first }
    }

    /// What a node gets: the pass's number; 0 is none. `epoch`: under which the shard is served here, if it is; `is_here`: the
    /// host has a connection of its own, or commands of one that it had are being carried out.
    pub fn ask(
        &mut self,
        now: Instant,
        node: NodeId,
        want: &Want,
        epoch: Option<Epoch>,
        is_here: bool,
    ) -> u64 {
        let Some(epoch) = epoch.filter(|_| !is_here) else { return 0 };
        let key = (want.shard, want.host);
        let way = self.ways.get_mut(&key);
        let running = way.as_ref().map_or(0, |way| way.running);
        if let Some(pass) = way.and_then(|way| way.pass.as_mut()) {
            if (pass.node, pass.association, pass.epoch) == (node, want.association, epoch) {
                pass.until = now + PASS_OVER;
                return pass.number;
            }
            if pass.epoch == epoch && now < pass.until {
                return 0;
            }
        }
        if running > 0 {
            return 0;
        }
        if !want.take {
            return 1;
        }
        self.close(key);
        if self.numbers.len() >= PASSES_MAX {
            self.close_those_over(now);
        }
        if self.numbers.len() >= PASSES_MAX {
            return 0;
        }
        self.next = self.next.wrapping_add(1).max(2);
        let association = want.association;
        let pass = Pass { number: self.next, epoch, node, association, until: now + PASS_OVER };
        self.numbers.insert(pass.number, key);
        self.ways.entry(key).or_default().pass = Some(pass);
        self.next
    }

    /// A command that came under a pass may be carried out: then [`Self::end`] says when it has been.
    pub fn begin(
        &mut self,
        now: Instant,
        node: NodeId,
        number: u64,
        shard: ShardId,
        epoch: Option<Epoch>,
    ) -> Option<HostId> {
        let key = *self.numbers.get(&number)?;
        let way = self.ways.get_mut(&key)?;
        let pass = way.pass.as_ref()?;
        if key.0 != shard || pass.node != node || Some(pass.epoch) != epoch || now >= pass.until {
            return None;
        }
        way.running += 1;
        Some(key.1)
    }

    pub fn end(&mut self, shard: ShardId, host: HostId) {
        let key = (shard, host);
        if let Some(way) = self.ways.get_mut(&key) {
            way.running = way.running.saturating_sub(1);
            self.tidy(key);
        }
    }

    /// The host comes here itself from now on: nothing that another node still holds of it is taken.
    pub fn close_host(&mut self, host: HostId) {
        let keys: Vec<_> = self.ways.keys().filter(|key| key.1 == host).copied().collect();
        keys.into_iter().for_each(|key| self.close(key));
    }

    /// Commands of the host that came another way are being carried out.
    pub fn is_running(&self, host: HostId) -> bool {
        self.ways.iter().any(|(key, way)| key.1 == host && way.running > 0)
    }

    /// The shard is not served here any more, or under another epoch.
    pub fn close_shard(&mut self, shard: ShardId) {
        let keys: Vec<_> = self.ways.keys().filter(|key| key.0 == shard).copied().collect();
        keys.into_iter().for_each(|key| self.close(key));
    }

    /// Passes that were given and are not closed.
    pub fn count(&self) -> usize {
        self.numbers.len()
    }

    /// Those of hosts that have gone are renewed by nobody.
    fn close_those_over(&mut self, now: Instant) {
        let is_over = |way: &Way| way.pass.as_ref().is_some_and(|pass| now >= pass.until);
        let keys: Vec<_> = self.ways.iter().filter(|(_, way)| is_over(way)).map(|(key, _)| *key).collect();
        keys.into_iter().for_each(|key| self.close(key));
    }

    fn close(&mut self, key: (ShardId, HostId)) {
        if let Some(pass) = self.ways.get_mut(&key).and_then(|way| way.pass.take()) {
            self.numbers.remove(&pass.number);
        }
        self.tidy(key);
    }

    fn tidy(&mut self, key: (ShardId, HostId)) {
        if self.ways.get(&key).is_some_and(|way| way.pass.is_none() && way.running == 0) {
            self.ways.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: ShardId = ShardId(3);
    const HOST: HostId = [7; 16];
    const EPOCH: Option<Epoch> = Some(Epoch(5));
    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn at(ms: u64) -> Instant {
        Instant(ms * 1_000_000)
    }
    fn want(association: u64) -> Want {
        Want { shard: SHARD, host: HOST, association, take: true }
    }

    #[test]
    fn a_host_comes_one_way_and_the_next_opens_when_the_last_is_over() {
        let mut passes = Passes::new(40);
        let first = passes.ask(at(0), A, &want(1), EPOCH, false);
        assert!(first > 1);
        assert_eq!(passes.ask(at(1), B, &want(1), EPOCH, false), 0, "another has it");
        assert_eq!(passes.ask(at(2), A, &want(2), EPOCH, false), 0, "another association of the same node");
        assert_eq!(passes.ask(at(400), A, &want(1), EPOCH, false), first, "renewed");
        assert_eq!(passes.ask(at(899), B, &want(1), EPOCH, false), 0);
        let second = passes.ask(at(900), B, &want(1), EPOCH, false);
        assert!(second > 1 && second != first);
        assert_eq!(passes.begin(at(901), A, first, SHARD, EPOCH), None, "what comes late");
        assert_eq!(passes.begin(at(901), B, second, SHARD, EPOCH), Some(HOST));
        assert_eq!(passes.count(), 1);
    }

    #[test]
    fn what_is_carried_out_keeps_the_next_way_closed() {
        let mut passes = Passes::new(0);
        let first = passes.ask(at(0), A, &want(1), EPOCH, false);
        assert_eq!(passes.begin(at(1), A, first, SHARD, EPOCH), Some(HOST));
        assert_eq!(passes.ask(at(2000), B, &want(1), EPOCH, false), 0);
        passes.end(SHARD, HOST);
        assert!(passes.ask(at(2001), B, &want(1), EPOCH, false) > 1);
    }

    #[test]
    fn who_comes_itself_closes_all_other_ways_at_once() {
        let mut passes = Passes::new(0);
        let number = passes.ask(at(0), A, &want(1), EPOCH, false);
        assert_eq!(passes.begin(at(1), A, number, SHARD, EPOCH), Some(HOST));
        passes.close_host(HOST);
        assert_eq!(passes.begin(at(2), A, number, SHARD, EPOCH), None);
        assert!(passes.is_running(HOST), "one is still carried out");
        assert_eq!(passes.ask(at(2), A, &want(1), EPOCH, true), 0, "as long as it is here");
        passes.end(SHARD, HOST);
        assert!(!passes.is_running(HOST));
        let again = passes.ask(at(3), A, &want(2), EPOCH, false);
        assert!(again != number && again > 1);
        assert!(passes.ways.len() == 1 && passes.count() == 1);
    }

    #[test]
    fn a_pass_is_for_one_node_one_shard_and_one_epoch() {
        let mut passes = Passes::new(0);
        let number = passes.ask(at(0), A, &want(1), EPOCH, false);
        assert_eq!(passes.begin(at(1), B, number, SHARD, EPOCH), None);
        assert_eq!(passes.begin(at(1), A, number, ShardId(4), EPOCH), None);
        assert_eq!(passes.begin(at(1), A, number, SHARD, Some(Epoch(6))), None);
        assert_eq!(passes.begin(at(1), A, number, SHARD, None), None);
        assert_eq!(passes.begin(at(500), A, number, SHARD, EPOCH), None, "it was not renewed");
        let later = passes.ask(at(501), A, &want(1), Some(Epoch(6)), false);
        assert_ne!(later, number, "of another epoch it is another");
        passes.close_shard(SHARD);
        assert_eq!((passes.count(), passes.ways.len()), (0, 0));
        assert_eq!(passes.ask(at(502), A, &want(1), None, false), 0, "it is not served here");
    }

    #[test]
    fn asking_alone_takes_nothing() {
        let mut passes = Passes::new(u64::MAX);
        assert_eq!(passes.ask(at(0), A, &Want { take: false, ..want(1) }, EPOCH, false), 1);
        assert_eq!(passes.count(), 0);
        assert!(passes.ask(at(0), B, &want(1), EPOCH, false) > 1);
        assert_eq!(passes.ask(at(0), A, &Want { take: false, ..want(1) }, EPOCH, false), 0);
    }

    #[test]
    fn there_are_no_more_passes_than_may_be() {
        let mut passes = Passes::new(0);
        for n in 0..PASSES_MAX as u64 {
            let mut host = HOST;
            host[..8].copy_from_slice(&n.to_le_bytes());
            assert!(passes.ask(at(0), A, &Want { host, ..want(n) }, EPOCH, false) > 1);
        }
        assert_eq!(passes.ask(at(499), A, &want(1), EPOCH, false), 0);
        assert!(passes.ask(at(500), A, &want(1), EPOCH, false) > 1, "the others' are over");
        assert_eq!((passes.count(), passes.ways.len()), (1, 1));
    }
}
