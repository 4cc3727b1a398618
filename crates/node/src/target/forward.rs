//! Hosts that have no connection to a shard's owner (`cluster::pass`): another node asks the owner for a pass for each of their
//! associations, shows them the shard's volumes as non-optimized, and hands their commands on.
//!
//! **Invariant:** an association takes one pass for a shard, once. When that is over, or when the shard was served here and is not any
//! more, the association has had its way: before a pass is taken for the host again its connections are closed, with all that
//! the host has sent there.

use super::home::{Home, HomeRequest, ana_group};
use super::{HOME, Place};
use crate::peer::{Carried, Carrier, Handed, Outcome, With};
use crate::reactor::Node;
use crate::volume::{VolumeAnswer, VolumeRequest};
use peristyle_base::{LayerId, NodeId, ShardId};
use peristyle_cluster::pass::{PASS_OVER, PASS_PERIOD, Want};
use peristyle_cluster::peer::{FORWARD_BYTES_MAX, Forwarded, NotDone, Request};
use peristyle_nvme::association::AssociationSeen;
use peristyle_nvme::registry::ControllerRef;
use peristyle_nvme::wire::log_page::AnaState;
use peristyle_rt::{Buf, Instant, IoVec, ReactorId, join_all};
use peristyle_shard::ShardError;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Who has no pass asks for one once in so many periods.
const ASK_PERIODS: u64 = 5;

/// A pass, as those who use it know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Way {
    pub owner: NodeId,
    pub pass: u64,
    pub controller: ControllerRef,
}

/// What an association has had of a shard that is not served here. One that has had nothing is not in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Had {
    /// Asked for, when it was last given.
    Pass(Way, Instant),
    /// Its way is over.
    Way,
}

/// The home reactor's part. By association and shard.
#[derive(Default)]
pub(super) struct Forwarding {
    had: BTreeMap<(u64, ShardId), (ControllerRef, Had)>,
    owners: BTreeMap<ShardId, NodeId>,
    rounds: u64,
}

impl Forwarding {
    /// The passes that are held: what every reactor is to know.
    fn ways(&self) -> Vec<(ShardId, Way)> {
        let ways = self.had.iter().filter_map(|((_, shard), (_, had))| match had {
            Had::Pass(way, _) => Some((*shard, *way)),
            Had::Way => None,
        });
        ways.collect()
    }

    /// Forgets what associations that have gone have had. Says whether a pass was among it.
    fn retain(&mut self, there: &[AssociationSeen]) -> bool {
        let before = self.ways().len();
        self.had.retain(|(number, _), _| there.iter().any(|seen| seen.controller.number() == *number));
        self.ways().len() < before
    }

    /// What to ask each owner for, in this round.
    fn wants(&mut self, there: &[AssociationSeen], shards: &[ShardId]) -> BTreeMap<NodeId, Vec<Asking>> {
        self.rounds += 1;
        let all = self.rounds.is_multiple_of(ASK_PERIODS);
        let mut wants: BTreeMap<NodeId, Vec<Asking>> = BTreeMap::new();
        for seen in there {
            for &shard in shards {
                let association = seen.controller.number();
                let had = self.had.get(&(association, shard)).map(|had| had.1);
                let (owner, take) = match had {
                    Some(Had::Pass(way, _)) => (Some(way.owner), true),
                    None if all => (self.owners.get(&shard).copied(), true),
                    Some(Had::Way) if all => (self.owners.get(&shard).copied(), false),
                    _ => continue,
                };
                let want = Want { shard, host: seen.host, association, take };
                let asking = Asking { want, controller: seen.controller, had };
                owner.into_iter().for_each(|owner| wants.entry(owner).or_default().push(asking));
            }
        }
        wants
    }
}

/// A want, and what it was asked in view of.
#[derive(Clone, Copy)]
struct Asking {
    want: Want,
    controller: ControllerRef,
    had: Option<Had>,
}

/// What follows from an owner's answer.
enum Follows {
    Nothing,
    Took(Way),
    Renewed(Way),
    /// The owner takes nothing under it any more.
    Over,
    /// The association is closed: a new one of the host would be given a pass, this one has had its own.
    Close,
}

impl Asking {
    /// `number`: what the owner gave; `None`: it did not answer.
    fn follows(&self, owner: NodeId, number: Option<u64>, now: Instant) -> Follows {
        match (self.had, number) {
            (Some(Had::Pass(way, _)), Some(number)) if number == way.pass => Follows::Renewed(way),
            (Some(Had::Pass(..)), Some(_)) => Follows::Over,
            (Some(Had::Pass(_, given)), None) if now.since(given) >= PASS_OVER => Follows::Over,
            (None, Some(pass)) if pass > 1 => Follows::Took(Way { owner, pass, controller: self.controller }),
            (Some(Had::Way), Some(1)) => Follows::Close,
            _ => Follows::Nothing,
        }
    }
}

impl Node {
    /// Who is to own each shard: whom this node would hand commands on to (home reactor).
    pub fn set_owners(&self, owners: impl Iterator<Item = (ShardId, NodeId)>) {
        let Some(home) = self.home_part() else { return };
        let others = owners.filter(|(_, owner)| *owner != self.config().node);
        home.forwarding.borrow_mut().owners = others.collect();
    }

    /// Asks for passes and renews them, until the target stops.
    pub(super) async fn run_forwarding(self: Rc<Self>) {
        let Some(home) = self.home_part() else { return };
        while !self.target.stopping.is_set() {
            let asked = peristyle_rt::now();
            self.ask_for_ways(&home, asked).await;
            peristyle_rt::sleep(PASS_PERIOD.saturating_sub(peristyle_rt::now().since(asked))).await;
        }
    }

    async fn ask_for_ways(self: &Rc<Self>, home: &Rc<Home>, asked: Instant) {
        let there: Vec<_> = home.registry.borrow().associations_of(home.subsystem).collect();
        let mut changed = home.forwarding.borrow_mut().retain(&there);
        let mut shards: Vec<ShardId> = home.volumes.borrow().iter().map(|v| v.shard).collect();
        shards.sort_unstable();
        shards.dedup();
        shards.retain(|shard| !self.serves(*shard));
        let wants = home.forwarding.borrow_mut().wants(&there, &shards);
        let ask = wants.iter().map(|(&owner, asking)| async move {
            let wants: Vec<Want> = asking.iter().map(|a| a.want).collect();
            (owner, asking, self.peers.ask_for_passes(owner, &wants).await)
        });
        let mut closed = Vec::new();
        for (owner, asking, numbers) in join_all(ask).await {
            for (at, asking) in asking.iter().enumerate() {
                let number = numbers.as_ref().map(|numbers| numbers[at]);
                changed |= self.follow(home, asking, (owner, number), asked, &mut closed);
            }
        }
        if changed {
            self.tell_ways(home).await;
        }
        for controller in closed {
            home.registry.borrow_mut().close_association(controller);
            home.changed();
        }
    }

    /// Says whether reactors and hosts are to hear something.
    fn follow(
        &self,
        home: &Home,
        asking: &Asking,
        (owner, number): (NodeId, Option<u64>),
        asked: Instant,
        closed: &mut Vec<ControllerRef>,
    ) -> bool {
        let mut forwarding = home.forwarding.borrow_mut();
        let key = (asking.want.association, asking.want.shard);
        let now = forwarding.had.get(&key).map(|had| had.1);
        // Something else has come of it meanwhile: it is served here, or what was sent came to nobody knows what.
        if now != asking.had || self.serves(key.1) {
            return false;
        }
        match asking.follows(owner, number, peristyle_rt::now()) {
            Follows::Nothing => false,
            Follows::Renewed(way) => {
                forwarding.had.insert(key, (asking.controller, Had::Pass(way, asked)));
                false
            }
            Follows::Took(way) => {
                forwarding.had.insert(key, (asking.controller, Had::Pass(way, asked)));
                true
            }
            // The host may be at the owner by now, and have other volumes here: it keeps its connections as long as nobody wants more of them.
            Follows::Over => {
                forwarding.had.insert(key, (asking.controller, Had::Way));
                true
            }
            Follows::Close => {
                closed.push(asking.controller);
                false
            }
        }
    }

    /// The shard was served here, or what was handed on of it is served here now: all associations that there are have had
    /// their way. On the home reactor.
    pub(super) fn end_ways(&self, home: &Home, shard: ShardId) {
        let registry = home.registry.borrow();
        let had = &mut home.forwarding.borrow_mut().had;
        for seen in registry.associations_of(home.subsystem) {
            had.insert((seen.controller.number(), shard), (seen.controller, Had::Way));
        }
    }

    /// Of a command that was handed on nobody knows what became of it. When this returns, nothing more is handed on under that
    /// pass, and the association is being closed. On the home reactor.
    pub(super) async fn withdraw(self: &Rc<Self>, controller: ControllerRef) {
        let Some(home) = self.home_part() else { return };
        {
            let mut forwarding = home.forwarding.borrow_mut();
            let all = forwarding.had.values_mut().filter(|had| had.0 == controller);
            all.for_each(|had| had.1 = Had::Way);
        }
        self.tell_ways(&home).await;
        home.registry.borrow_mut().close_association(controller);
        home.changed();
    }

    /// All reactors get the ways, then hosts are told.
    pub(super) async fn tell_ways(self: &Rc<Self>, home: &Rc<Home>) {
        home.begin_telling();
        let ways = home.forwarding.borrow().ways();
        for reactor in (0..self.reactors() as u16).map(ReactorId) {
            self.tell(reactor, HomeRequest::Ways(ways.clone())).await;
        }
        {
            let mut registry = home.registry.borrow_mut();
            for (&(_, shard), (controller, had)) in &home.forwarding.borrow().had {
                let state = matches!(had, Had::Pass(..)).then_some(AnaState::NonOptimized);
                registry.set_association_state(*controller, ana_group(shard), state);
            }
        }
        home.end_telling();
    }
}

/// The owner's end.
impl Carrier for Node {
    fn carry(self: Rc<Self>, handed: Handed) -> Carried {
        Box::pin(async move {
            debug_assert_eq!(self.id(), HOME);
            let home = self.home_of(handed.shard).ok_or(NotDone::Stopped)?;
            let place = Place { shard: handed.shard, layer: handed.layer, home, way: None };
            let (offset, bytes, data) = (handed.offset, handed.bytes, handed.data.map(Buf::freeze));
            let request = match (handed.command, data) {
                (Forwarded::Read, _) => VolumeRequest::Read { offset, bytes },
                (Forwarded::Write, Some(data)) => VolumeRequest::Write { offset, data },
                (Forwarded::Compare, Some(data)) => VolumeRequest::Compare { offset, data },
                (Forwarded::CompareAndWrite, Some(both)) => {
                    let (expected, data) = (0..bytes as usize, bytes as usize..both.len());
                    let (expected, data) = (both.slice(expected), both.slice(data));
                    VolumeRequest::CompareAndWrite { offset, expected, data }
                }
                (Forwarded::Zero, _) => VolumeRequest::Zero { offset, bytes },
                (Forwarded::Verify, _) => VolumeRequest::Verify { offset, bytes },
                (Forwarded::Flush, _) => VolumeRequest::Flush,
                // The protocol has made sure that it has come.
                (_, None) => return Err(NotDone::OutOfRange),
            };
            match self.volume_at(place).ask(request).await {
                VolumeAnswer::Data(result) => result.map(Some).map_err(not_done),
                VolumeAnswer::Done(result) => result.map(|()| None).map_err(not_done),
                _ => Err(NotDone::Stopped),
            }
        })
    }
}

/// What became of a host's command that was handed on.
pub(crate) struct Returned {
    pub answer: VolumeAnswer,
    /// It may be done yet: the host must not hear of it, nor use this association any more.
    pub is_unknown: bool,
}

impl Node {
    pub(crate) async fn hand_on(
        &self,
        (shard, layer): (ShardId, LayerId),
        way: Way,
        request: VolumeRequest,
    ) -> Returned {
        let stopped = || VolumeAnswer::Done(Err(ShardError::Stopped));
        let (mut payload, mut into) = (None, None);
        let (command, offset, bytes) = match request {
            VolumeRequest::Read { offset, bytes } if bytes <= FORWARD_BYTES_MAX => {
                into = Some(Buf::alloc(bytes as usize).await);
                (Forwarded::Read, offset, bytes)
            }
            VolumeRequest::Write { offset, data } => {
                let bytes = data.len() as u64;
                payload = Some(IoVec::from(data));
                (Forwarded::Write, offset, bytes)
            }
            VolumeRequest::Compare { offset, data } => {
                let bytes = data.len() as u64;
                payload = Some(IoVec::from(data));
                (Forwarded::Compare, offset, bytes)
            }
            VolumeRequest::CompareAndWrite { offset, expected, data } => {
                let bytes = data.len() as u64;
                let mut both = IoVec::from(expected);
                both.push(data);
                payload = Some(both);
                (Forwarded::CompareAndWrite, offset, bytes)
            }
            VolumeRequest::Zero { offset, bytes } => (Forwarded::Zero, offset, bytes),
            VolumeRequest::Verify { offset, bytes } => (Forwarded::Verify, offset, bytes),
            VolumeRequest::Flush => (Forwarded::Flush, 0, 0),
            // Nothing that a host asks for.
            _ => return Returned { answer: stopped(), is_unknown: false },
        };
        let changes = matches!(command, Forwarded::Write | Forwarded::Zero | Forwarded::CompareAndWrite);
        let request = Request::Forward { pass: way.pass, shard, layer, command, offset, bytes };
        match self.peers.hand_on(way.owner, &request, With { payload, into }).await {
            Outcome::Done(Some(buf)) => {
                Returned { answer: VolumeAnswer::Data(Ok(buf.freeze().into())), is_unknown: false }
            }
            Outcome::Done(None) => Returned { answer: VolumeAnswer::Done(Ok(())), is_unknown: false },
            Outcome::NotDone(why) => {
                Returned { answer: VolumeAnswer::Done(Err(error_of(why))), is_unknown: false }
            }
            Outcome::NotSent => Returned { answer: stopped(), is_unknown: false },
            Outcome::Unknown => Returned { answer: stopped(), is_unknown: changes },
        }
    }
}

const ERRORS: [(NotDone, ShardError); 9] = [
    (NotDone::Stopped, ShardError::Stopped),
    (NotDone::NoSpace, ShardError::NoSpace),
    (NotDone::Unreadable, ShardError::Unreadable),
    (NotDone::Different, ShardError::Different),
    (NotDone::OutOfRange, ShardError::OutOfRange),
    (NotDone::ReadOnly, ShardError::ReadOnly),
    (NotDone::MapFull, ShardError::MapFull),
    (NotDone::NoSuchLayer, ShardError::NoSuchLayer),
    (NotDone::Changed, ShardError::Changed),
];

fn not_done(error: ShardError) -> NotDone {
    ERRORS.iter().find(|pair| pair.1 == error).map_or(NotDone::Stopped, |pair| pair.0)
}

/// No pass is a path that is lost: the host looks for another.
fn error_of(why: NotDone) -> ShardError {
    ERRORS.iter().find(|pair| pair.0 == why).map_or(ShardError::Stopped, |pair| pair.1)
}
