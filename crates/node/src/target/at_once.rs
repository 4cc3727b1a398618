//! Commands without a task: reads whose data is there are answered where they are received; writes get their place in
//! the log there, and are answered where they become durable. Their stages are those of all reads and writes.

use super::conn::{Conn, Reply};
use super::execute::Kind;
use crate::qos::Class;
use peristyle_base::BLOCK_BYTES;
use peristyle_nvme::io_command::{self, IoCommand};
use peristyle_nvme::qpair::Command;
use peristyle_nvme::subsystem::NamespaceView;
use peristyle_nvme::wire::{Status, opcode};
use peristyle_rt::sync::Permit;
use peristyle_rt::{Instant, IoVec, View};
use peristyle_shard::{ShardError, Told};
use std::rc::{Rc, Weak};

/// Blocks that one connection reads at once before others have their turn; further reads become tasks.
pub const BLOCKS_MAX: usize = 128;

/// A write that has its place in the log.
pub(super) struct Writing {
    command: Command,
    io: IoCommand,
    ns: NamespaceView,
    started: Instant,
    _admitted: Permit,
}

/// Writes of one connection that a shard will tell the end of, by token; as many as its queue is deep at most.
#[derive(Default)]
pub(super) struct Writes {
    places: Vec<Option<Writing>>,
    free: Vec<u32>,
}

impl Writes {
    fn put(&mut self, writing: Writing) -> u32 {
        let token = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() as u32 - 1
        });
        self.places[token as usize] = Some(writing);
        token
    }
    fn take(&mut self, token: u32) -> Writing {
        self.free.push(token);
        self.places[token as usize].take().expect("each write ends once")
    }
}

impl Conn {
    /// What reads that have come together will look for is fetched for all at the same time, and not for one after
    /// the other.
    pub fn expect_reads(&self) {
        let qpair = self.qpair.borrow();
        if qpair.queued().nth(1).is_none() {
            return;
        }
        let namespaces = self.namespaces();
        for sqe in qpair.queued().filter(|sqe| sqe.opcode() == opcode::nvm::READ) {
            let here = namespaces.place(sqe.nsid()).filter(|place| place.is_of(self.node.id()));
            if let (Some(place), Some(ns)) = (here, namespaces.table.get(sqe.nsid())) {
                let offset = sqe.slba().saturating_mul(1 << ns.lba_size.shift());
                self.node.expect_read(place.shard, place.layer, offset);
            }
        }
    }

    /// Answers the command if it is a read that need not wait for anything, and says so. `blocks`: what may still be
    /// read at once. Refused, it has counted nothing.
    pub fn answer_at_once(&self, command: &Command, blocks: &mut usize) -> bool {
        *blocks > 0
            && command.sqe.opcode() == opcode::nvm::READ
            && self.read_at_once(command, blocks).is_some()
    }

    fn read_at_once(&self, command: &Command, blocks: &mut usize) -> Option<()> {
        let _admitted = self.node.qos.try_admit(Class::Foreground)?;
        let namespaces = self.namespaces();
        let (io, ns) = io_command::decode(&command.sqe, &namespaces.table).ok()?;
        let (IoCommand::Read { range, .. }, Some(ns)) = (io, ns) else { return None };
        let place = namespaces.place(ns.nsid).filter(|place| place.is_of(self.node.id()))?;
        let (offset, bytes) = range.bytes(ns);
        let permit = self.try_room_for(bytes)?;
        let started = peristyle_rt::now();
        let (view, done) = self.node.try_read(place.shard, place.layer, (offset, bytes), started)?;
        *blocks = blocks.saturating_sub(bytes as usize / BLOCK_BYTES);
        self.count_read(&io, ns.nsid, bytes, started, done);
        let reply = Reply { pieces: IoVec::from(view), permit: Some(permit) };
        self.complete_at(command.tag, Status::SUCCESS.into(), Some(reply), done);
        Some(())
    }

    fn count_read(&self, io: &IoCommand, nsid: u32, bytes: u64, started: Instant, done: Instant) {
        let stats = &mut *self.node.stats.borrow_mut();
        stats.qos_wait.pass(started, started);
        stats.read_bytes += bytes;
        let mut volumes = self.node.volume_stats.borrow_mut();
        let volume = volumes.entry(nsid).or_default();
        volume.read.pass(started, done);
        volume.read_bytes += bytes;
        let mut counting = self.node.target.counting.borrow_mut();
        counting.enter(started);
        counting.leave(done, io, bytes, Ok(()));
    }
}

impl Conn {
    /// Hands the command to its shard if it is a write that need not wait before it is accepted. Else its data comes
    /// back, and nothing was counted.
    pub fn write_at_once(
        self: &Rc<Self>,
        command: &Command,
        data: Option<View>,
        started: Instant,
    ) -> Result<(), Option<View>> {
        match data {
            Some(data) if command.sqe.opcode() == opcode::nvm::WRITE => {
                self.accept_at_once(command, data, started).map_err(Some)
            }
            data => Err(data),
        }
    }

    fn accept_at_once(self: &Rc<Self>, command: &Command, data: View, started: Instant) -> Result<(), View> {
        let namespaces = self.namespaces();
        let Ok((io, Some(&ns))) = io_command::decode(&command.sqe, &namespaces.table) else {
            return Err(data);
        };
        let here = namespaces.place(ns.nsid).filter(|place| place.is_of(self.node.id()));
        let (IoCommand::Write { range, .. }, Some(place)) = (io, here) else { return Err(data) };
        let (offset, bytes) = range.bytes(&ns);
        let (Some(shard), true) = (self.node.shard(place.shard), bytes == data.len() as u64) else {
            return Err(data);
        };
        let Some(_admitted) = self.node.qos.try_admit(Class::Foreground) else { return Err(data) };
        let token = self.writes.borrow_mut().put(Writing { command: *command, io, ns, started, _admitted });
        // Whatever becomes of the connection, it waits for its commands (`leave_home`).
        let to = (Rc::downgrade(self) as Weak<dyn Told>, token);
        if let Err(data) = shard.try_write(place.layer, offset, data, to, started) {
            self.writes.borrow_mut().take(token);
            return Err(data);
        }
        self.one_more();
        self.node.stats.borrow_mut().qos_wait.pass(started, started);
        self.enter(Kind::Write, started, Some(&ns));
        Ok(())
    }
}

impl Told for Conn {
    fn command_done(&self, token: u32, result: Result<(), ShardError>, now: Instant) {
        let write = self.writes.borrow_mut().take(token);
        let result = result.map_err(|error| self.status(error, write.ns.nsid));
        self.leave(Kind::Write, (write.started, now), &write.io, Some(&write.ns), result);
        if let Err(status) = result {
            self.record(&write.command, status);
        }
        self.complete_at(write.command.tag, result.err().unwrap_or(Status::SUCCESS).into(), None, now);
        self.one_less();
    }
}
