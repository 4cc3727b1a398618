//! This node's part in who owns which shard: what it has promised to others, and the leases that it holds
//! (`cluster::lease`). All of it lives on the first reactor; other reactors see leases only.

use super::link::With;
use super::table::Peer;
use super::{Lane, Link, Peers};
use peristyle_base::{Epoch, Instant, NodeId, ShardId};
use peristyle_cluster::lease::{Claimed, Grantor, Holder, Lease, RENEW_PERIOD, majority};
use peristyle_cluster::peer::{Answer, RENEWALS_MAX, Request};
use peristyle_rt::sync::Notify;
use peristyle_rt::{Duration, join_all, select, timeout};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

/// A node that does not answer in this time is not counted, and asked again.
const ANSWER_LIMIT: Duration = Duration::from_millis(300);
/// Pause before a node that did not answer is asked again.
const RETRY_PERIOD: Duration = Duration::from_millis(20);
/// Pauses before one is asked again that has promised the shard to another, who may give it back at any time, and does so at once
/// if it hands over: the first, and the longest. Each is twice as long as the one before.
const WAIT_MIN: Duration = Duration::from_millis(1);
const WAIT_MAX: Duration = Duration::from_millis(4);
/// A claim that no majority has accepted by then is given up: the control store is asked again who is to own the shard.
const CLAIM_LIMIT: Duration = Duration::from_secs(3);

/// The leases of all shards that this node may own, as all its reactors see them.
#[derive(Clone, Default)]
pub struct LeaseTable(Option<Arc<BTreeMap<ShardId, Lease>>>);

impl LeaseTable {
    /// Nobody else can own the shards.
    pub fn alone() -> LeaseTable {
        LeaseTable(None)
    }
    pub fn of(shards: impl Iterator<Item = ShardId>) -> LeaseTable {
        LeaseTable(Some(Arc::new(shards.map(|shard| (shard, Lease::none())).collect())))
    }
    /// A shard that is not known here is never served.
    pub fn get(&self, shard: ShardId) -> Lease {
        match &self.0 {
            None => Lease::for_ever(),
            Some(table) => table.get(&shard).cloned().unwrap_or_else(Lease::none),
        }
    }
    pub fn is_alone(&self) -> bool {
        self.0.is_none()
    }
}

pub(super) struct Leases {
    pub grantor: RefCell<Grantor>,
    holders: RefCell<BTreeMap<ShardId, Holder>>,
    /// The highest epoch under which another has claimed each shard.
    claimed: RefCell<BTreeMap<ShardId, Epoch>>,
    /// Another has claimed one.
    heard: Notify,
    table: LeaseTable,
}

impl Leases {
    pub fn new(now: Instant, table: LeaseTable) -> Leases {
        let (holders, claimed, heard) = Default::default();
        Leases { grantor: RefCell::new(Grantor::new(now)), holders, claimed, heard, table }
    }
}

impl Peers {
    /// What this node says to another that wants to own a shard, or does. `None`: this is not the reactor to ask, or the other is no
    /// member: one that has left may not know it yet, and has no vote of anybody who does.
    pub(super) fn promised(&self, from: NodeId, request: &Request<'_>) -> Option<Answer> {
        self.table.get(from)?;
        let leases = self.leases.borrow();
        let (grantor, now) = (&mut *leases.as_ref()?.grantor.borrow_mut(), peristyle_rt::now());
        Some(match request {
            Request::Claim { shard, epoch } => {
                leases.as_ref()?.hear_claim(*shard, *epoch);
                Answer::Claimed(grantor.claim(now, from, *shard, *epoch))
            }
            Request::Renew { shards } => Answer::Renewed(
                shards.iter().map(|(s, epoch)| grantor.renew(now, from, *s, *epoch)).collect(),
            ),
            Request::Release { shard, epoch } => {
                grantor.give_back(now, from, *shard, *epoch);
                Answer::Done
            }
            _ => return None,
        })
    }

    /// Begins this node's part, on its first reactor.
    pub(crate) fn start_leases(self: &Rc<Self>, table: LeaseTable) {
        let leases = Rc::new(Leases::new(peristyle_rt::now(), table));
        self.leases.replace(Some(leases.clone()));
        for (number, peer) in self.table.numbered() {
            peristyle_rt::spawn(self.clone().renew_with(number, peer.node, leases.clone()));
        }
        peristyle_rt::spawn(self.clone().renew_here(leases));
    }

    /// A node has joined: it votes from now on, and a majority is one of more. On the first reactor.
    pub(super) fn begin_voting(self: &Rc<Self>, number: usize, node: NodeId) {
        let Some(leases) = self.leases.borrow().clone() else { return };
        leases.holders.borrow_mut().values_mut().for_each(|holder| holder.join(number));
        peristyle_rt::spawn(self.clone().renew_with(number, node, leases));
    }

    /// A node has left, or all have heard of that and a majority is one of fewer. On the first reactor.
    pub(super) fn end_voting(&self, number: usize, forgotten: bool) {
        let Some(leases) = self.leases.borrow().clone() else { return };
        leases.holders.borrow_mut().values_mut().for_each(|holder| part(holder, number, forgotten));
    }

    /// Has a majority of the nodes take this one for the shard's owner; then the lease holds. On the first reactor.
    pub(crate) async fn claim(&self, shard: ShardId, epoch: Epoch) -> bool {
        let Some(leases) = self.leases.borrow().clone() else { return false };
        let membership = self.table.membership();
        let accepted = timeout(CLAIM_LIMIT, self.claim_of_all(&leases, shard, epoch)).await.flatten();
        // Who has joined meanwhile was not asked, and who has left does not count.
        let Some(accepted) = accepted.filter(|_| self.table.membership() == membership) else {
            return false;
        };
        let lease = leases.table.get(shard);
        lease.begin();
        let mut holder = Holder::new(epoch, accepted.len(), lease.clone());
        self.table.left().for_each(|(number, forgotten)| part(&mut holder, number, forgotten));
        // Who accepts promises as much as who renews.
        for (node, asked) in accepted.into_iter().enumerate() {
            asked.into_iter().for_each(|asked| holder.granted(peristyle_rt::now(), node, asked));
        }
        leases.holders.borrow_mut().insert(shard, holder);
        lease.holds(peristyle_rt::now())
    }

    /// Asks everybody until a majority has accepted, or somebody knows of a later owner. Says when each was asked that has.
    async fn claim_of_all(
        &self,
        leases: &Leases,
        shard: ShardId,
        epoch: Epoch,
    ) -> Option<Vec<Option<Instant>>> {
        let (accepted, voters) = (vec![None; self.table.numbers()], self.table.voters());
        let ballot = Ballot { accepted: RefCell::new(accepted), voters, ..Ballot::default() };
        let links = self.table.numbered();
        let links = links.filter_map(|(node, peer)| Some((node, self.link(peer.node, Lane::Columns(0))?)));
        let others = join_all(links.map(|(node, link)| ballot.ask(node, link, shard, epoch)));
        let here = async {
            for tries in 0.. {
                let now = peristyle_rt::now();
                let answer = leases.grantor.borrow_mut().claim(now, self.who.me, shard, epoch);
                let pause = ballot.count(0, now, Some(answer), tries);
                peristyle_rt::sleep(pause).await;
            }
        };
        let decided = ballot.changed.wait_until(|| ballot.is_decided());
        select(decided, select(others, here)).await;
        let lost = ballot.lost.get();
        (!lost).then(|| ballot.accepted.into_inner())
    }

    /// Returns when another node has claimed a shard that this one holds, or it does not hold it. On the first reactor.
    pub(crate) async fn claimed_by_another(&self, shard: ShardId) {
        let Some(leases) = self.leases.borrow().clone() else { return };
        leases.heard.wait_until(|| leases.is_claimed(shard)).await;
    }

    /// The epoch under which this node holds the shard. On the first reactor.
    pub(super) fn held_epoch(&self, shard: ShardId) -> Option<Epoch> {
        let leases = self.leases.borrow();
        let holders = leases.as_ref()?.holders.borrow();
        holders.get(&shard).map(|holder| holder.epoch)
    }

    /// This node does not serve the shard any more: another may at once. On the first reactor.
    pub(crate) async fn release(&self, shard: ShardId) {
        let Some(leases) = self.leases.borrow().clone() else { return };
        let held = leases.holders.borrow_mut().remove(&shard);
        let Some(mut holder) = held else { return };
        let epoch = holder.epoch;
        holder.end();
        leases.grantor.borrow_mut().give_back(peristyle_rt::now(), self.who.me, shard, epoch);
        let request = Request::Release { shard, epoch };
        let links = self.table.all().filter_map(|peer| self.link(peer.node, Lane::Columns(0)));
        let tell = links.map(|link| {
            let request = &request;
            async move { timeout(ANSWER_LIMIT, link.call(request, With::default())).await.map(drop) }
        });
        join_all(tell).await;
    }

    /// Renews what this node holds with itself, and forgets what has run out.
    async fn renew_here(self: Rc<Self>, leases: Rc<Leases>) {
        while !self.stopping.is_set() {
            let now = peristyle_rt::now();
            {
                let mut holders = leases.holders.borrow_mut();
                let grantor = &mut *leases.grantor.borrow_mut();
                holders.retain(|_, holder| !holder.is_over(now));
                for (&shard, holder) in holders.iter_mut() {
                    match grantor.renew(now, self.who.me, shard, holder.epoch) {
                        true => holder.granted(now, 0, now),
                        false => holder.refused(),
                    }
                }
            }
            peristyle_rt::sleep(RENEW_PERIOD).await;
        }
    }

    /// Renews what this node holds with another, number `number` of those who vote, as long as that is a member.
    async fn renew_with(self: Rc<Self>, number: usize, node: NodeId, leases: Rc<Leases>) {
        let Some(term) = self.table.get(node).map(Peer::term) else { return };
        while !self.stopping.is_set() {
            let Some(link) = self.link_in(node, term) else { return };
            let asked = peristyle_rt::now();
            let shards: Vec<(ShardId, Epoch)> =
                leases.holders.borrow().iter().map(|(&shard, holder)| (shard, holder.epoch)).collect();
            for some in shards.chunks(RENEWALS_MAX) {
                let asked = peristyle_rt::now();
                let request = Request::Renew { shards: some.to_vec() };
                let answer = timeout(ANSWER_LIMIT, link.call(&request, With::default())).await;
                if let Some((Ok(Answer::Renewed(granted)), _)) = answer
                    && granted.len() == some.len()
                    && self.link_in(node, term).is_some()
                {
                    leases.renewed(number, asked, some, &granted);
                }
            }
            let pause = RENEW_PERIOD.saturating_sub(peristyle_rt::now().since(asked));
            peristyle_rt::sleep(pause).await;
        }
    }
}

impl Leases {
    /// Of a shard that this node holds; others are nobody's to hand over here.
    fn hear_claim(&self, shard: ShardId, epoch: Epoch) {
        if self.holders.borrow().contains_key(&shard) {
            let mut claimed = self.claimed.borrow_mut();
            let highest = claimed.entry(shard).or_default();
            *highest = epoch.max(*highest);
            self.heard.notify_all();
        }
    }

    fn is_claimed(&self, shard: ShardId) -> bool {
        let held = self.holders.borrow().get(&shard).map(|holder| holder.epoch);
        held.is_none_or(|epoch| self.claimed.borrow().get(&shard).is_some_and(|claimed| *claimed > epoch))
    }

    fn renewed(&self, number: usize, asked: Instant, shards: &[(ShardId, Epoch)], granted: &[bool]) {
        let (mut holders, now) = (self.holders.borrow_mut(), peristyle_rt::now());
        for ((shard, epoch), granted) in shards.iter().zip(granted) {
            // It may be held under another epoch by now, or not at all.
            let Some(holder) = holders.get_mut(shard).filter(|h| h.epoch == *epoch) else { continue };
            match granted {
                true => holder.granted(now, number, asked),
                false => holder.refused(),
            }
        }
    }
}

fn part(holder: &mut Holder, number: usize, forgotten: bool) {
    match forgotten {
        true => holder.forget(number),
        false => holder.leave(number),
    }
}

/// Who has accepted a claim. One that is silent holds up nobody else.
#[derive(Default)]
struct Ballot {
    /// When each was asked that has.
    accepted: RefCell<Vec<Option<Instant>>>,
    /// A majority of so many decides; others are not asked.
    voters: usize,
    /// Somebody has accepted a higher epoch.
    lost: Cell<bool>,
    changed: Notify,
}

impl Ballot {
    fn is_decided(&self) -> bool {
        let accepted = self.accepted.borrow();
        self.lost.get() || accepted.iter().flatten().count() >= majority(self.voters)
    }

    /// Takes note of an answer; says when to ask again. Who has accepted is asked again as well: the promise runs out while
    /// others are waited for.
    fn count(&self, node: usize, asked: Instant, answer: Option<Claimed>, tries: u32) -> Duration {
        let pause = match answer {
            Some(Claimed::Accepted) => {
                self.accepted.borrow_mut()[node] = Some(asked);
                RENEW_PERIOD
            }
            Some(Claimed::Stale(_)) => {
                self.lost.set(true);
                RETRY_PERIOD
            }
            // It may be given back before.
            Some(Claimed::Wait(time)) => {
                (WAIT_MIN * (1 << tries.min(8))).min(WAIT_MAX).min(time.max(WAIT_MIN))
            }
            None => RETRY_PERIOD,
        };
        self.changed.notify_all();
        pause
    }

    /// Asks one node until nobody needs its answer any more.
    async fn ask(&self, node: usize, link: Rc<Link>, shard: ShardId, epoch: Epoch) {
        let request = Request::Claim { shard, epoch };
        for tries in 0.. {
            let asked = peristyle_rt::now();
            let answer = claim_one(link.clone(), &request).await;
            let pause = self.count(node, asked, answer, tries);
            peristyle_rt::sleep(pause).await;
        }
    }
}

async fn claim_one(link: Rc<Link>, request: &Request<'_>) -> Option<Claimed> {
    match timeout(ANSWER_LIMIT, link.call(request, With::default())).await {
        Some((Ok(Answer::Claimed(claimed)), _)) => Some(claimed),
        _ => None,
    }
}
