//! One host: it connects, works with some commands in flight, and comes back when its connections end.

use super::{Manner, NQN};
use crate::model::{Habits, Model, ReadId, SECTOR, WriteId};
use peristyle_bench::host::{Host, HostError, HostOptions};
use peristyle_rt::sim::{NodeHandle, Rng};
use peristyle_rt::{Addr, Buf, Duration, join_all, timeout};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Longer than any of the stalls, shorter than what TCP waits for.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(8);
const STEP_LIMIT: Duration = Duration::from_secs(4);
/// Sectors that one command reads at most.
const READ_SECTORS: u64 = 1024;

/// A namespace, and what is believed of it.
pub struct Disk {
    pub nsid: u32,
    /// Sectors of a logical block.
    pub lba_sectors: u64,
    pub model: Model,
    pub habits: Habits,
}

/// What a host does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Duty {
    /// Comes back only when nothing of its old connections is left anywhere: then the target owes it that old
    /// writes are over, and it looks what has become of those that nobody answered.
    Patient,
    /// Comes back at once: its old writes may yet happen.
    Impatient,
    /// Patient, and then reads everything.
    Verify,
}

/// How far a host is, for the message when it waits for ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Waiting,
    Connecting,
    Deciding,
    Working,
    Closing,
}

/// A write of which nobody knows the end.
struct Orphan {
    disk: usize,
    id: WriteId,
    first: u64,
    count: u64,
}

/// One host's machine and what survives its process: the person who sits before it.
pub struct Client {
    pub node: NodeHandle,
    target: NodeHandle,
    pub manner: Manner,
    disks: Rc<[Disk]>,
    left: Cell<u64>,
    /// No rests any more.
    hurry: Cell<bool>,
    phase: Cell<Phase>,
    last: Cell<Option<HostError>>,
    orphans: RefCell<Vec<Orphan>>,
}

/// A write under way; dropped before its end was known, it is an orphan.
pub struct Writing {
    client: Rc<Client>,
    disk: usize,
    id: WriteId,
    first: u64,
    count: u64,
    open: bool,
}

impl Writing {
    pub fn new(client: &Rc<Client>, disk: usize, id: WriteId, first: u64, count: u64) -> Writing {
        Writing { client: client.clone(), disk, id, first, count, open: true }
    }
    pub fn acknowledge(mut self) {
        self.open = false;
        self.client.disks[self.disk].model.acknowledge(self.id);
    }
    /// It did not happen and never will.
    pub fn cancel(mut self) {
        self.open = false;
        self.client.disks[self.disk].model.cancel(self.id);
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if self.open {
            let Writing { disk, id, first, count, .. } = *self;
            self.client.disks[disk].model.orphan(id);
            self.client.orphans.borrow_mut().push(Orphan { disk, id, first, count });
        }
    }
}

/// A read under way.
pub struct Reading<'a>(pub &'a Model, pub Option<ReadId>);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.1.take() {
            self.0.drop_read(id);
        }
    }
}

impl Client {
    pub fn new(node: NodeHandle, target: NodeHandle, manner: Manner, disks: Rc<[Disk]>) -> Client {
        Client {
            node,
            target,
            manner,
            disks,
            left: Cell::new(0),
            hurry: Cell::new(false),
            phase: Cell::new(Phase::Waiting),
            last: Cell::new(None),
            orphans: RefCell::default(),
        }
    }
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }
    /// From now on it works without rests.
    pub fn hurry(&self) {
        self.hurry.set(true);
    }
    pub fn orphans(&self) -> usize {
        self.orphans.borrow().len()
    }
    pub fn state(&self) -> (Phase, u64, Option<HostError>) {
        (self.phase.get(), self.left.get(), self.last.get())
    }

    /// Starts its process, which ends when it has done so many operations.
    pub fn start(self: &Rc<Self>, operations: u64, duty: Duty) {
        self.left.set(operations);
        let me = self.clone();
        self.node.start(vec![()], move |()| me.clone().live(duty));
    }

    fn options(&self) -> HostOptions {
        let mut options = HostOptions::new(&format!("nqn.2026-01.io.peristyle:{}", self.node.ip()), NQN);
        (options.header_digest, options.data_digest) = self.manner.digests;
        options.keep_alive_ms = self.manner.keep_alive_ms;
        options.in_capsule_bytes = options.in_capsule_bytes.min(self.manner.in_capsule_bytes);
        options.entries = 32;
        options
    }

    async fn live(self: Rc<Self>, duty: Duty) {
        let mut rng = Rng::new(peristyle_rt::random_u64());
        let mut verified = false;
        while self.left.get() > 0 || self.orphans() > 0 || (duty == Duty::Verify && !verified) {
            if duty != Duty::Impatient {
                self.phase.set(Phase::Waiting);
                while self.node.world().connections_between(&self.node, &self.target) > 0 {
                    peristyle_rt::sleep(Duration::from_millis(20)).await;
                }
            }
            self.phase.set(Phase::Connecting);
            match self.connect().await {
                Ok(host) => {
                    verified |= self.serve(Rc::new(host), duty, &mut rng).await;
                }
                Err(error) => self.last.set(Some(error)),
            }
            if duty == Duty::Impatient && self.left.get() == 0 {
                break;
            }
            peristyle_rt::sleep(Duration::from_millis(rng.between(1, 300))).await;
        }
    }

    async fn connect(&self) -> Result<Host, HostError> {
        let late = HostError::Net(peristyle_rt::NetError::Closed);
        let addr = Addr::Tcp("10.0.0.1:4420".parse().expect("an address"));
        let options = self.options();
        let mut host = timeout(STEP_LIMIT, Host::connect(&addr, &options, 0)).await.ok_or(late)??;
        for _ in 0..self.manner.queues {
            let added = timeout(STEP_LIMIT, host.add_queue()).await.unwrap_or(Err(late));
            if let Err(error) = added {
                host.close();
                return Err(error);
            }
        }
        Ok(host)
    }

    /// Uses one association until it ends or all is done. True when everything was read and compared.
    async fn serve(self: &Rc<Self>, host: Rc<Host>, duty: Duty, rng: &mut Rng) -> bool {
        let mut verified = false;
        self.phase.set(Phase::Deciding);
        if duty == Duty::Impatient || self.decide(&host).await.is_ok() {
            self.phase.set(Phase::Working);
            let workers = (0..self.manner.depth)
                .map(|n| self.work(host.clone(), n % host.io.len(), Rng::new(rng.next_u64())));
            join_all(workers).await;
            verified = duty == Duty::Verify && self.read_all(&host).await.is_ok();
        }
        self.phase.set(Phase::Closing);
        host.close();
        verified
    }

    /// Looks what has become of the writes that nobody answered.
    async fn decide(&self, host: &Host) -> Result<(), HostError> {
        loop {
            let Some(orphan) = self.orphans.borrow_mut().pop() else { return Ok(()) };
            let disk = &self.disks[orphan.disk];
            match self.read_sectors(host, disk, orphan.first, orphan.count).await {
                Ok(bytes) => disk.model.decide(orphan.id, &bytes).unwrap_or_else(|wrong| {
                    panic!("nsid {} after a host came back: {wrong}", disk.nsid);
                }),
                Err(error) => {
                    self.orphans.borrow_mut().push(orphan);
                    return Err(error);
                }
            }
        }
    }

    async fn read_all(&self, host: &Host) -> Result<(), HostError> {
        for disk in self.disks.iter() {
            for first in (0..disk.model.sectors()).step_by(READ_SECTORS as usize) {
                let count = READ_SECTORS.min(disk.model.sectors() - first);
                let mut reading = Reading(&disk.model, Some(disk.model.begin_read(first, count)));
                let bytes = self.read_sectors(host, disk, first, count).await?;
                let same = disk.model.end_read(reading.1.take().expect("just begun"), &bytes);
                same.unwrap_or_else(|wrong| panic!("nsid {} at rest: {wrong}", disk.nsid));
            }
        }
        Ok(())
    }

    async fn read_sectors(&self, host: &Host, disk: &Disk, first: u64, count: u64) -> Result<Buf, HostError> {
        let (slba, blocks) = (first / disk.lba_sectors, (count / disk.lba_sectors) as u32);
        let buf = Buf::alloc((count * SECTOR) as usize).await;
        let answer = self.limited(host, host.io[0].read(disk.nsid, slba, blocks, buf)).await;
        if let Err(error) = answer {
            self.note(error);
            peristyle_rt::sleep(Duration::from_millis(100)).await;
        }
        answer
    }

    /// A command that takes too long ends the association, as it does for hosts of this world.
    pub async fn limited<T>(
        &self,
        host: &Host,
        command: impl Future<Output = Result<T, HostError>>,
    ) -> Result<T, HostError> {
        match timeout(COMMAND_LIMIT, command).await {
            Some(answer) => answer,
            None => {
                host.close();
                Err(HostError::Net(peristyle_rt::NetError::Closed))
            }
        }
    }

    /// One worker: bursts of operations with rests between them, until all is done or the connection is over.
    async fn work(self: &Rc<Self>, host: Rc<Host>, queue: usize, mut rng: Rng) {
        while self.left.get() > 0 && host.io[queue].is_open() && host.admin.is_open() {
            for _ in 0..rng.between(1, self.manner.burst) {
                if self.left.get() == 0 {
                    return;
                }
                self.left.set(self.left.get() - 1);
                if let Err(error) = self.operate(&host, queue, &mut rng).await {
                    self.note(error);
                    self.left.set(self.left.get() + 1);
                    peristyle_rt::sleep(Duration::from_millis(rng.between(10, 400))).await;
                    break;
                }
            }
            let rest_ms = if self.hurry.get() { 1 } else { self.manner.rest_ms };
            peristyle_rt::sleep(Duration::from_micros(rng.below(rest_ms * 1000))).await;
        }
    }

    fn note(&self, error: HostError) {
        self.last.set(Some(error));
    }
}
