//! Commands of hosts between nodes (`cluster::pass`): what the owner of a shard has given to whom, and how another node asks and hands on.
//! All of it lives on the first reactor of an owner; every reactor hands on over a connection of its own.

use super::link::{LinkState, With};
use super::{Lane, Peers};
use peristyle_base::{Epoch, LayerId, NodeId, ShardId};
use peristyle_cluster::pass::{HostId, Passes, Want};
use peristyle_cluster::peer::{Answer, Forwarded, NotDone, Request, WANTS_MAX};
use peristyle_rt::sync::Notify;
use peristyle_rt::{Buf, Duration, IoVec, timeout};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::{Rc, Weak};

/// An owner that does not say in this time which passes it gives has given none.
const ANSWER_LIMIT: Duration = Duration::from_millis(300);
/// A connection that is not there in this time carries nothing.
const UP_LIMIT: Duration = Duration::from_millis(300);
const UP_PERIOD: Duration = Duration::from_millis(2);

/// A command that another node hands on. Its data has come.
pub(crate) struct Handed {
    pub from: NodeId,
    pub pass: u64,
    pub shard: ShardId,
    pub layer: LayerId,
    pub command: Forwarded,
    pub offset: u64,
    pub bytes: u64,
    pub data: Option<Buf>,
}

pub(crate) type Carried = Pin<Box<dyn Future<Output = Result<Option<IoVec>, NotDone>>>>;

/// Carries out what is handed on.
pub(crate) trait Carrier {
    fn carry(self: Rc<Self>, handed: Handed) -> Carried;
}

/// The owner's part.
pub(crate) struct Forwards {
    passes: RefCell<Passes>,
    /// Connections of hosts to this node, from before they are told that they are until their last command was carried out.
    here: RefCell<Vec<(u64, HostId)>>,
    /// Shards that are served here, with the epoch.
    served: RefCell<BTreeMap<ShardId, Epoch>>,
    /// The node that this belongs to.
    carrier: RefCell<Option<Weak<dyn Carrier>>>,
    /// A command that was handed on has been carried out.
    ended: Notify,
}

impl Forwards {
    pub fn new() -> Forwards {
        Forwards {
            passes: RefCell::new(Passes::new(peristyle_rt::random_u64())),
            here: RefCell::default(),
            served: RefCell::default(),
            carrier: RefCell::default(),
            ended: Notify::default(),
        }
    }

    fn is_here(&self, host: HostId) -> bool {
        self.here.borrow().iter().any(|(_, here)| *here == host)
    }

    /// A host connects: no other node hands on anything of it from now on. Returns when nothing of that is being carried out.
    pub async fn arrive(&self, conn: u64, host: HostId) {
        self.here.borrow_mut().push((conn, host));
        self.passes.borrow_mut().close_host(host);
        self.ended.wait_until(|| !self.passes.borrow().is_running(host)).await;
    }

    /// The connection was not made after all, or its last command has been carried out.
    pub fn depart(&self, conn: u64) {
        self.here.borrow_mut().retain(|(here, _)| *here != conn);
    }
}

/// What became of a command that was handed on.
pub(crate) enum Outcome {
    Done(Option<Buf>),
    NotDone(NotDone),
    /// Nothing was sent.
    NotSent,
    /// It may have been done, or may be done yet.
    Unknown,
}

impl Peers {
    pub(crate) fn forwards(&self) -> &Forwards {
        &self.forwards
    }

    pub(crate) fn set_carrier(&self, carrier: Weak<dyn Carrier>) {
        self.forwards.carrier.replace(Some(carrier));
    }

    /// A shard is served here from now on, or not any more, or under another epoch. On the first reactor.
    pub(crate) fn set_served(&self, shard: ShardId, served: bool) {
        let epoch = self.held_epoch(shard).filter(|_| served);
        let mut all = self.forwards.served.borrow_mut();
        self.forwards.passes.borrow_mut().close_shard(shard);
        match epoch {
            Some(epoch) => all.insert(shard, epoch),
            None => all.remove(&shard),
        };
    }

    /// The epoch under which the shard is served here, if it is.
    fn served_epoch(&self, shard: ShardId) -> Option<Epoch> {
        let served = self.forwards.served.borrow().get(&shard).copied();
        served.filter(|epoch| self.held_epoch(shard) == Some(*epoch))
    }

    /// What a node gets that wants to hand on. On the first reactor.
    pub(super) fn give_passes(&self, from: NodeId, wants: &[Want]) -> Option<Answer> {
        self.table.get(from)?;
        let now = peristyle_rt::now();
        let forwards = &self.forwards;
        let one = |want: &Want| {
            let (epoch, here) = (self.served_epoch(want.shard), forwards.is_here(want.host));
            forwards.passes.borrow_mut().ask(now, from, want, epoch, here)
        };
        forwards.carrier.borrow().as_ref()?;
        Some(Answer::Passes(wants.iter().map(one).collect()))
    }

    /// Carries out what another node hands on, if it has the pass that it says. On the first reactor.
    pub(super) async fn carry_handed(&self, handed: Handed) -> Result<Option<IoVec>, NotDone> {
        let carrier =
            self.forwards.carrier.borrow().as_ref().and_then(Weak::upgrade).ok_or(NotDone::NoPass)?;
        let (shard, epoch) = (handed.shard, self.served_epoch(handed.shard));
        let begun = self.forwards.passes.borrow_mut().begin(
            peristyle_rt::now(),
            handed.from,
            handed.pass,
            shard,
            epoch,
        );
        let host = begun.ok_or(NotDone::NoPass)?;
        let done = carrier.carry(handed).await;
        self.forwards.passes.borrow_mut().end(shard, host);
        self.forwards.ended.notify_all();
        done
    }

    /// Asks a node for passes; `None`: it has not answered. In the order of the wants.
    pub(crate) async fn ask_for_passes(&self, owner: NodeId, wants: &[Want]) -> Option<Vec<u64>> {
        let link = self.link(owner, Lane::Columns(0))?;
        let mut all = Vec::with_capacity(wants.len());
        for some in wants.chunks(WANTS_MAX) {
            let request = Request::Passes { wants: some.to_vec() };
            match timeout(ANSWER_LIMIT, link.call(&request, With::default())).await {
                Some((Ok(Answer::Passes(numbers)), _)) if numbers.len() == some.len() => all.extend(numbers),
                _ => return None,
            }
        }
        Some(all)
    }

    /// Hands a command on. It is sent once at most.
    pub(crate) async fn hand_on(&self, owner: NodeId, request: &Request<'_>, with: With) -> Outcome {
        let Some(link) = self.link(owner, Lane::Forward) else { return Outcome::NotSent };
        let up = async {
            while link.state() != LinkState::Up {
                peristyle_rt::sleep(UP_PERIOD).await;
            }
        };
        if timeout(UP_LIMIT, up).await.is_none() {
            return Outcome::NotSent;
        }
        match link.call(request, with).await {
            (Ok(Answer::Forwarded(Ok(()))), buf) => Outcome::Done(buf),
            (Ok(Answer::Forwarded(Err(why))), _) => Outcome::NotDone(why),
            _ => Outcome::Unknown,
        }
    }
}
