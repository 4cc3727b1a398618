//! Reads whose data is there: answered where they are received, without a task. Their stages are those of all reads.

use super::conn::{Conn, Reply};
use crate::qos::Class;
use peristyle_base::BLOCK_BYTES;
use peristyle_cluster::ShardStore;
use peristyle_nvme::io_command::{self, IoCommand};
use peristyle_nvme::qpair::Command;
use peristyle_nvme::wire::{Status, opcode};
use peristyle_rt::{Instant, IoVec};

/// Blocks that one connection reads at once before others have their turn; further reads become tasks.
pub const BLOCKS_MAX: usize = 128;

impl<S: ShardStore + Clone + 'static> Conn<S> {
    /// Answers the command if it is a read that need not wait for anything, and says so. `blocks`: what may still be
    /// read at once. Refused, it has counted nothing.
    pub fn answer_at_once(&self, command: &Command, blocks: &mut usize) -> bool {
        *blocks > 0
            && command.sqe.opcode() == opcode::nvm::READ
            && self.read_at_once(command, blocks).is_some()
    }

    fn read_at_once(&self, command: &Command, blocks: &mut usize) -> Option<()> {
        let _admitted = self.node.qos.try_admit(Class::Foreground)?;
        let namespaces = self.node.target.namespaces();
        let (io, ns) = io_command::decode(&command.sqe, &namespaces.table).ok()?;
        let (IoCommand::Read { range, .. }, Some(ns)) = (io, ns) else { return None };
        let place = namespaces.place(ns.nsid).filter(|place| place.home == self.node.id())?;
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
        stats.read.pass(started, done);
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
