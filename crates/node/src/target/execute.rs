//! Commands, one task each: Connect and admin commands go home, I/O commands to their volume.

use super::Namespaces;
use super::conn::{Conn, Reply};
use super::home::{HomeReply, HomeRequest};
use crate::qos::Class;
use crate::stats::FrontStats;
use crate::volume::{Volume, VolumeRequest};
use peristyle_base::stage::Stage;
use peristyle_nvme::Sqe;
use peristyle_nvme::controller::{AdminOutcome, ErrorReport};
use peristyle_nvme::io_command::{self, IoCommand, IoQueueFabrics, LbaRange};
use peristyle_nvme::qpair::{Accept, Command, Completion};
use peristyle_nvme::subsystem::NamespaceView;
use peristyle_nvme::wire::{Fuse, Status, dsm, opcode};
use peristyle_rt::sync::Permit;
use peristyle_rt::{Buf, Instant, IoVec, View, join_all};
use peristyle_shard::ShardError;
use std::rc::Rc;

/// Ranges of one Dataset Management command that are deallocated at once.
const RANGES_AT_ONCE: usize = 8;

/// What a host is told when a shard fails a command. DNR: nothing that the host could wait for changes it.
pub fn status_of(error: ShardError) -> Status {
    match error {
        ShardError::NoSpace => Status::CAPACITY_EXCEEDED.with_dnr(),
        // A device may come back.
        ShardError::Unreadable => Status::UNRECOVERED_READ_ERROR,
        ShardError::Different => Status::COMPARE_FAILURE.with_dnr(),
        ShardError::OutOfRange => Status::LBA_OUT_OF_RANGE.with_dnr(),
        // Linux waits and tries again, on this path or another, and never gives the error to a file system.
        ShardError::Stopped => Status::ANA_TRANSITION,
        ShardError::ReadOnly => Status::NAMESPACE_WRITE_PROTECTED.with_dnr(),
        ShardError::MapFull | ShardError::NoSuchLayer | ShardError::Changed => Status::INTERNAL_ERROR,
    }
}

/// Which figures a command counts to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Other,
}

impl Kind {
    fn of(command: &IoCommand) -> Kind {
        match command {
            IoCommand::Read { .. } => Kind::Read,
            IoCommand::Write { .. } => Kind::Write,
            _ => Kind::Other,
        }
    }
    /// Of a command that is not looked at yet.
    pub fn of_sqe(sqe: &Sqe) -> Kind {
        match (sqe.opcode(), sqe.fuse()) {
            (opcode::nvm::READ, Fuse::Normal) => Kind::Read,
            (opcode::nvm::WRITE, Fuse::Normal) => Kind::Write,
            _ => Kind::Other,
        }
    }
    /// From one end of the command to the other.
    pub fn total(self, stats: &mut FrontStats) -> Option<&mut Stage> {
        match self {
            Kind::Read => Some(&mut stats.read_total),
            Kind::Write => Some(&mut stats.write_total),
            Kind::Other => None,
        }
    }
    pub fn respond(self, stats: &mut FrontStats) -> &mut Stage {
        match self {
            Kind::Read => &mut stats.read_respond,
            Kind::Write => &mut stats.write_respond,
            Kind::Other => &mut stats.respond,
        }
    }
}

impl Conn {
    pub async fn connect(self: Rc<Self>, command: Command, buf: Option<Buf>) {
        let conn = &self;
        let data = match buf {
            Some(buf) => buf.freeze(),
            None => {
                return conn.complete(command.tag, Status::DATA_SGL_LENGTH_INVALID.with_dnr().into(), None);
            }
        };
        if let Some(host_id) = data.first_chunk::<16>() {
            conn.host_id.set(*host_id);
        }
        let request = HomeRequest::Connect { conn: conn.id, sqe: command.sqe, data };
        let connected = match conn.node.ask_home(request).await {
            HomeReply::Connect(Ok(connected)) => connected,
            HomeReply::Connect(Err(refused)) => {
                let completion = Completion { status: refused.status, dw0: refused.dw0, dw1: 0 };
                return conn.complete(command.tag, completion, None);
            }
            _ => return conn.complete(command.tag, Status::INTERNAL_ERROR.into(), None),
        };
        let accept = Accept {
            qid: connected.qid,
            entries: u32::from(connected.entries),
            flow_control: !connected.flow_control_disabled,
            dw0: u32::from(connected.cntlid),
        };
        let accepted = { conn.qpair.borrow_mut().accept_connect(command.tag, accept) };
        if accepted.is_err() || conn.closed.is_set() {
            return conn.leave_home(connected); // Gone meanwhile.
        }
        conn.connected.set(Some(connected));
        conn.answered(command.tag, None, peristyle_rt::now());
        conn.act();
    }

    pub async fn admin(self: Rc<Self>, command: Command) {
        let conn = &self;
        let Some(connected) = conn.connected.get() else {
            return conn.complete(command.tag, Status::COMMAND_SEQUENCE_ERROR.with_dnr().into(), None);
        };
        let request = HomeRequest::Admin { controller: connected.controller, sqe: command.sqe };
        let HomeReply::Admin(outcome, data) = conn.node.ask_home(request).await else {
            return conn.complete(command.tag, Status::INTERNAL_ERROR.into(), None);
        };
        // Of an asynchronous event request home tells later.
        if let AdminOutcome::Complete { status, dw0, dw1, .. } = outcome {
            let reply = data.map(|view| Reply { pieces: IoVec::from(view), permit: None });
            conn.complete(command.tag, Completion { status, dw0, dw1 }, reply);
        }
    }

    /// A command of an I/O queue.
    pub async fn run(self: Rc<Self>, command: Command, data: Option<View>) {
        let conn = &self;
        if command.sqe.is_fabrics() {
            return self.fabrics(command);
        }
        let admitted = conn.admit().await;
        let namespaces = conn.namespaces();
        let (io, ns) = match io_command::decode(&command.sqe, &namespaces.table) {
            Ok((io, ns)) => (io, ns.copied()),
            Err(status) => {
                conn.record(&command, status);
                return conn.complete(command.tag, status.into(), None);
            }
        };
        // What another node takes long for must not hold up what is done here.
        let is_elsewhere =
            ns.and_then(|ns| namespaces.place(ns.nsid)).is_some_and(|place| place.way.is_some());
        let _admitted = (!is_elsewhere).then_some(admitted);
        let (kind, started) = (Kind::of(&io), peristyle_rt::now());
        conn.enter(kind, started, ns.as_ref());
        let result = match ns {
            Some(ns) => conn.execute(io, &ns, &namespaces, data).await,
            None => conn.flush_all(&namespaces).await.map(|()| None),
        };
        let status = result.as_ref().map(|_| ()).map_err(|status| *status);
        let now = peristyle_rt::now();
        conn.leave(kind, (started, now), &io, ns.as_ref(), status);
        match result {
            Ok(reply) => conn.complete_at(command.tag, Status::SUCCESS.into(), reply, now),
            Err(status) => {
                conn.record(&command, status);
                conn.complete_at(command.tag, status.into(), None, now);
            }
        }
    }

    /// A command failed: the controller's error log is to tell.
    pub(super) fn record(&self, command: &Command, status: Status) {
        if let Some(connected) = self.connected.get()
            && !status.is(Status::COMPARE_FAILURE)
        {
            let report = ErrorReport::of(&command.sqe, connected.qid, status);
            self.node.target.counting.borrow_mut().error(connected.controller, report);
        }
    }

    fn fabrics(&self, command: Command) {
        let conn = &self;
        match io_command::fabrics_on_io_queue(&command.sqe) {
            IoQueueFabrics::Refuse(status) => conn.complete(command.tag, status.into(), None),
            IoQueueFabrics::Disconnect => {
                conn.complete(command.tag, Status::SUCCESS.into(), None);
                conn.drain();
            }
        }
    }

    /// Compare and Write.
    pub async fn run_fused(
        self: Rc<Self>,
        first: Command,
        second: Command,
        bufs: (Option<Buf>, Option<Buf>),
    ) {
        let conn = &self;
        let _admitted = conn.admit().await;
        let namespaces = conn.namespaces();
        let started = peristyle_rt::now();
        conn.node.stats.borrow_mut().other.enter(started);
        conn.node.target.counting.borrow_mut().enter(started);
        let bytes = bufs.1.as_ref().map_or(0, |buf| buf.len() as u64);
        let statuses = conn.compare_and_write(&first, &second, &namespaces, bufs).await;
        let now = peristyle_rt::now();
        let both = statuses.0.is_success() && statuses.1.is_success();
        match both || statuses.0.is(Status::COMPARE_FAILURE) {
            true => conn.node.stats.borrow_mut().other.leave(started, now),
            false => conn.node.stats.borrow_mut().other.leave_failed(started, now),
        }
        conn.node.target.counting.borrow_mut().leave_fused(now, bytes, both);
        for (command, status) in [(&first, statuses.0), (&second, statuses.1)] {
            if !status.is_success() && !status.is(Status::ABORTED_FAILED_FUSED) {
                conn.record(command, status);
            }
        }
        conn.complete(first.tag, statuses.0.into(), None);
        conn.complete(second.tag, statuses.1.into(), None);
    }
}

impl Conn {
    /// Waits for its turn among all commands of this reactor.
    async fn admit(&self) -> Permit {
        let started = peristyle_rt::now();
        self.node.stats.borrow_mut().qos_wait.enter(started);
        let permit = self.node.qos.admit(Class::Foreground).await;
        self.node.stats.borrow_mut().qos_wait.leave(started, peristyle_rt::now());
        permit
    }

    fn volume(&self, namespaces: &Namespaces, nsid: u32) -> Result<Volume, Status> {
        let place = namespaces.place(nsid).ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr())?;
        Ok(self.node.volume_at(place))
    }

    async fn execute(
        self: &Rc<Self>,
        io: IoCommand,
        ns: &NamespaceView,
        namespaces: &Namespaces,
        data: Option<View>,
    ) -> Result<Option<Reply>, Status> {
        let volume = self.volume(namespaces, ns.nsid)?;
        let result = self.execute_on(&volume, io, ns, data).await;
        self.end_if_unknown(&volume).await;
        result
    }

    /// A host that is told nothing of a command that may be done yet must not send it again the same way: its association ends
    /// before it can.
    async fn end_if_unknown(self: &Rc<Self>, volume: &Volume) {
        if let (true, Some(connected)) = (volume.is_unknown(), self.connected.get()) {
            self.node.ask_home(HomeRequest::Withdraw(connected.controller)).await;
            self.close();
        }
    }

    async fn execute_on(
        &self,
        volume: &Volume,
        io: IoCommand,
        ns: &NamespaceView,
        data: Option<View>,
    ) -> Result<Option<Reply>, Status> {
        let done = match io {
            IoCommand::Read { range, .. } => {
                let (offset, bytes) = range.bytes(ns);
                let permit = self.room_for(bytes).await;
                let pieces = volume
                    .ask(VolumeRequest::Read { offset, bytes })
                    .await
                    .data()
                    .map_err(|e| self.status(e, ns.nsid))?;
                return Ok(Some(Reply { pieces, permit: Some(permit) }));
            }
            // What is acknowledged is durable: FUA asks for nothing more.
            IoCommand::Write { range, .. } => {
                let data = payload(data, &range, ns)?;
                volume.ask(VolumeRequest::Write { offset: range.bytes(ns).0, data }).await.done()
            }
            IoCommand::Compare { range } => {
                let data = payload(data, &range, ns)?;
                volume.ask(VolumeRequest::Compare { offset: range.bytes(ns).0, data }).await.done()
            }
            IoCommand::Flush => volume.ask(VolumeRequest::Flush).await.done(),
            IoCommand::WriteZeroes { range, .. } => {
                let (offset, bytes) = range.bytes(ns);
                volume.ask(VolumeRequest::Zero { offset, bytes }).await.done()
            }
            IoCommand::Verify { range } => {
                let (offset, bytes) = range.bytes(ns);
                volume.ask(VolumeRequest::Verify { offset, bytes }).await.done()
            }
            IoCommand::DatasetManagement { deallocate: false, .. } => Ok(()),
            IoCommand::DatasetManagement { ranges, deallocate: true } => {
                deallocate(volume, data.as_deref().unwrap_or_default(), ranges, ns).await?
            }
        };
        done.map(|()| None).map_err(|e| self.status(e, ns.nsid))
    }

    /// A volume that was removed while its command ran is no namespace any more.
    pub(super) fn status(&self, error: ShardError, nsid: u32) -> Status {
        match error {
            ShardError::OutOfRange if self.node.target.namespaces().place(nsid).is_none() => {
                Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr()
            }
            error => status_of(error),
        }
    }

    async fn flush_all(&self, namespaces: &Namespaces) -> Result<(), Status> {
        for &(nsid, place) in &namespaces.places {
            self.node.volume_at(place).flush().await.map_err(|e| self.status(e, nsid))?;
        }
        Ok(())
    }

    /// The statuses of both halves.
    async fn compare_and_write(
        self: &Rc<Self>,
        first: &Command,
        second: &Command,
        namespaces: &Namespaces,
        bufs: (Option<Buf>, Option<Buf>),
    ) -> (Status, Status) {
        let (io, ns) = match io_command::decode_compare_write(&first.sqe, &second.sqe, &namespaces.table) {
            Ok((io, ns)) => (io, *ns),
            Err(statuses) => return statuses,
        };
        let prepared = self.volume(namespaces, ns.nsid).and_then(|volume| {
            let expected = payload(bufs.0.map(Buf::freeze), &io.range, &ns)?;
            Ok((volume, expected, payload(bufs.1.map(Buf::freeze), &io.range, &ns)?))
        });
        let (volume, expected, data) = match prepared {
            Ok(prepared) => prepared,
            Err(status) => return (status, Status::ABORTED_FAILED_FUSED),
        };
        let request = VolumeRequest::CompareAndWrite { offset: io.range.bytes(&ns).0, expected, data };
        let result = volume.ask(request).await.done();
        self.end_if_unknown(&volume).await;
        match result {
            Ok(()) => (Status::SUCCESS, Status::SUCCESS),
            Err(ShardError::Different) => (status_of(ShardError::Different), Status::ABORTED_FAILED_FUSED),
            Err(error) => (Status::ABORTED_FAILED_FUSED, self.status(error, ns.nsid)),
        }
    }

    pub(super) fn enter(&self, kind: Kind, now: Instant, ns: Option<&NamespaceView>) {
        self.node.target.counting.borrow_mut().enter(now);
        let (false, Some(ns)) = (kind == Kind::Other, ns) else {
            return self.node.stats.borrow_mut().other.enter(now);
        };
        let mut volumes = self.node.volume_stats.borrow_mut();
        match kind {
            Kind::Read => volumes.entry(ns.nsid).or_default().read.enter(now),
            Kind::Write => volumes.entry(ns.nsid).or_default().write.enter(now),
            Kind::Other => unreachable!("counted above"),
        }
    }

    pub(super) fn leave(
        &self,
        kind: Kind,
        (started, now): (Instant, Instant),
        io: &IoCommand,
        ns: Option<&NamespaceView>,
        result: Result<(), Status>,
    ) {
        let good = result.is_ok();
        let leave = |stage: &mut Stage| match good {
            true => stage.leave(started, now),
            false => stage.leave_failed(started, now),
        };
        let stats = &mut *self.node.stats.borrow_mut();
        let bytes = ns.filter(|_| good).map_or(0, |ns| bytes_of(io, ns));
        self.node.target.counting.borrow_mut().leave(now, io, bytes, result);
        let (false, Some(ns)) = (kind == Kind::Other, ns) else { return leave(&mut stats.other) };
        let mut volumes = self.node.volume_stats.borrow_mut();
        let volume = volumes.entry(ns.nsid).or_default();
        match kind {
            Kind::Read => {
                stats.read_bytes += bytes;
                volume.read_bytes += bytes;
                leave(&mut volume.read);
            }
            Kind::Write => {
                stats.write_bytes += bytes;
                volume.write_bytes += bytes;
                leave(&mut volume.write);
            }
            Kind::Other => unreachable!("counted above"),
        }
    }
}

/// Bytes of the volume that a command touches.
fn bytes_of(io: &IoCommand, ns: &NamespaceView) -> u64 {
    match io {
        IoCommand::Verify { range } => range.bytes(ns).1,
        io => u64::from(io.data_bytes(ns)),
    }
}

/// The command's data, which the host may have sent more of.
fn payload(data: Option<View>, range: &LbaRange, ns: &NamespaceView) -> Result<View, Status> {
    let bytes = range.bytes(ns).1 as usize;
    match data {
        Some(view) if view.len() >= bytes => Ok(view.slice(0..bytes)),
        _ => Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr()),
    }
}

async fn deallocate(
    volume: &Volume,
    data: &[u8],
    ranges: u16,
    ns: &NamespaceView,
) -> Result<Result<(), ShardError>, Status> {
    io_command::check_ranges(data, ranges, ns)?;
    let shift = ns.lba_size.shift();
    let definitions = &data[..usize::from(ranges) * dsm::RANGE_BYTES];
    for some in definitions.chunks(RANGES_AT_ONCE * dsm::RANGE_BYTES) {
        let zeros = dsm::parse_ranges(some)
            .filter(|r| r.blocks > 0)
            .map(|r| VolumeRequest::Zero { offset: r.slba << shift, bytes: u64::from(r.blocks) << shift })
            .map(|request| volume.ask(request));
        for answer in join_all(zeros).await {
            let result = answer.done();
            if result.is_err() {
                return Ok(result);
            }
        }
    }
    Ok(Ok(()))
}
