//! One connection: a task that receives and starts commands, a task that sends, and a task for each command.

use super::outbox::{Answer, Outbox};
use super::{Budget, Link};
use crate::reactor::Node;
use crate::stats::{FrontStats, VolumeStats};
use crate::volume::{Volume, VolumeRequest, VolumeSpec};
use peristyle_base::BLOCK_BYTES;
use peristyle_base::stage::Stage;
use peristyle_nbd::wire::allocation;
use peristyle_nbd::{
    Action, Buffer, Command, Connection, EXTENTS_MAX, Errno, Export, Extent, Found, Input, Limits, Lookup,
    StaleTag, Tag,
};
use peristyle_rt::sync::{Notify, Permit};
use peristyle_rt::{Buf, Duration, Either, Instant, IoVec, Stream, StreamReader, StreamWriter, View};
use peristyle_rt::{now, select, timeout};
use peristyle_shard::ShardError;
use peristyle_shard::map::Run;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Offsets and lengths of requests: volumes write parts of blocks atomically.
const BLOCK_BYTES_MIN: u32 = 512;
/// From here on the rest of a payload is received without a copy.
const DIRECT_BYTES_MIN: u32 = 16 * 1024;
/// A client that takes nothing for so long holds our buffers for nothing.
const SEND_LIMIT: Duration = Duration::from_secs(60);
/// What is in flight when the server stops is answered within this time, or not at all.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// What the driver keeps for a part in flight, by the index of its tag.
#[derive(Default)]
struct Part {
    /// Of a write: data that is being received.
    buf: Option<Buf>,
    /// Of a write: data that is there as a whole.
    whole: Option<View>,
    permit: Option<Permit>,
    /// Of a read that has ended well.
    answer: Option<Answer>,
}

/// How a command ended well.
enum Outcome {
    Done,
    Data(IoVec),
    Status(Vec<Extent>),
}

struct Opened {
    nsid: u32,
    volume: Volume,
}

pub(super) struct Session {
    node: Rc<Node>,
    link: Rc<Link>,
    budget: Budget,
    machine: RefCell<Connection>,
    parts: RefCell<Vec<Part>>,
    opened: RefCell<Option<Opened>>,
    /// The write part that waits for a buffer; there is one at most, since payloads come one after the other.
    wanted: Cell<Option<Buffer>>,
    /// When the part that is being received was given its buffer.
    receiving: Cell<Option<Instant>>,
    executing: Cell<usize>,
    sending: Cell<bool>,
    closed: Cell<bool>,
    /// Something ended, was sent, or is to be sent.
    moved: Notify,
}

impl Session {
    pub fn new(node: Rc<Node>, link: Rc<Link>, limits: Limits, budget: Budget) -> Rc<Session> {
        Rc::new(Session {
            node,
            link,
            budget,
            machine: RefCell::new(Connection::new(now(), limits)),
            parts: RefCell::new((0..limits.parts_max).map(|_| Part::default()).collect()),
            opened: RefCell::default(),
            wanted: Cell::new(None),
            receiving: Cell::new(None),
            executing: Cell::new(0),
            sending: Cell::new(false),
            closed: Cell::new(false),
            moved: Notify::default(),
        })
    }

    /// The life of the connection.
    pub async fn serve(self: Rc<Self>, id: u64, stream: Stream) {
        self.node.stats.borrow_mut().connections += 1;
        let (mut reader, writer) = stream.split();
        peristyle_rt::spawn(self.clone().send(writer));
        self.receive(&mut reader).await;
        self.finish().await;
        // Commands that are still executing keep their buffers until they end; they are part of the connection. A
        // shard that waits for lost devices may keep them for longer than anybody wants to wait for.
        let idle = || self.executing.get() == 0 && !self.sending.get();
        timeout(STOP_LIMIT, self.moved.wait_until(idle)).await;
        self.node.stats.borrow_mut().connections -= 1;
        self.node.nbd.leave(id);
    }

    async fn receive(self: &Rc<Self>, reader: &mut StreamReader) {
        let mut arrived: Option<View> = None;
        loop {
            self.act();
            if self.link.over.is_set() {
                return;
            }
            let input = self.machine.borrow().next_input();
            match input {
                Input::Closed => self.link.over.wait().await,
                Input::Wait => match self.wanted.take() {
                    Some(buffer) => self.give_buffer(buffer).await,
                    None => drop(self.unless_over(self.moved.notified()).await),
                },
                Input::Bytes { .. } => self.take_bytes(reader, &mut arrived).await,
                Input::Payload { tag, offset, len } => {
                    self.take_payload(reader, &mut arrived, tag, offset, len).await;
                }
            }
        }
    }

    /// `None` when the connection was closed, or its time for negotiation ended, before `future` did.
    async fn unless_over<F: Future>(&self, future: F) -> Option<F::Output> {
        let deadline = self.machine.borrow().poll_timeout();
        let over = async {
            match deadline {
                None => self.link.over.wait().await,
                Some(at) => {
                    let timer = peristyle_rt::sleep_until(at);
                    if let Either::Right(()) = select(self.link.over.wait(), timer).await {
                        self.machine.borrow_mut().handle_timeout(now());
                    }
                }
            }
        };
        match select(future, over).await {
            Either::Left(output) => Some(output),
            Either::Right(()) => None,
        }
    }

    /// Bytes that have arrived and were not used yet; else the next ones. `None` at the end of the stream.
    async fn next_bytes(&self, reader: &mut StreamReader, arrived: &mut Option<View>) -> Option<View> {
        if let Some(view) = arrived.take() {
            return Some(view);
        }
        match self.unless_over(reader.recv()).await? {
            Ok(view) if !view.is_empty() => Some(view),
            _ => {
                self.machine.borrow_mut().handle_eof(now());
                None
            }
        }
    }

    async fn take_bytes(&self, reader: &mut StreamReader, arrived: &mut Option<View>) {
        let Some(mut view) = self.next_bytes(reader, arrived).await else { return };
        // An error is told by the Close that follows.
        let taken = self.machine.borrow_mut().handle_bytes(now(), &view).unwrap_or(view.len());
        view.advance(taken);
        *arrived = Some(view).filter(|view| !view.is_empty());
        if self.machine.borrow().has_transmit() {
            self.moved.notify_all();
        }
    }

    async fn take_payload(
        &self,
        reader: &mut StreamReader,
        arrived: &mut Option<View>,
        tag: Tag,
        offset: u32,
        len: u32,
    ) {
        if arrived.is_none() && len >= DIRECT_BYTES_MIN {
            return self.take_payload_directly(reader, tag, offset, len).await;
        }
        let Some(mut view) = self.next_bytes(reader, arrived).await else { return };
        let (offset, n) = (offset as usize, view.len().min(len as usize));
        if let Some(buf) = &mut self.parts.borrow_mut()[tag.index()].buf {
            buf[offset..offset + n].copy_from_slice(&view[..n]);
        }
        view.advance(n);
        *arrived = Some(view).filter(|view| !view.is_empty());
        self.machine.borrow_mut().handle_payload(now(), n as u32);
    }

    /// The rest of a part, from the socket into its place.
    async fn take_payload_directly(&self, reader: &mut StreamReader, tag: Tag, offset: u32, len: u32) {
        let buf = self.parts.borrow_mut()[tag.index()].buf.take();
        let mut rest = buf.expect("a part that is received has a buffer");
        let mut front = rest.split_to(offset as usize).freeze();
        let Some((result, rest)) = self.unless_over(reader.recv_exact(rest)).await else { return };
        if result.is_err() {
            return self.machine.borrow_mut().handle_eof(now());
        }
        assert!(front.try_join(&rest.freeze()), "cut from it above");
        self.parts.borrow_mut()[tag.index()].whole = Some(front);
        self.machine.borrow_mut().handle_payload(now(), len);
    }

    async fn give_buffer(&self, Buffer { tag, len }: Buffer) {
        let started = now();
        let given = async { (self.budget.acquire(len as usize).await, Buf::alloc(len as usize).await) };
        let Some((permit, buf)) = self.unless_over(given).await else { return };
        if self.machine.borrow_mut().buffer_ready(tag) == Err(StaleTag) {
            return;
        }
        self.node.stats.borrow_mut().receive.enter(started);
        self.receiving.set(Some(started));
        self.parts.borrow_mut()[tag.index()] =
            Part { buf: Some(buf), permit: Some(permit), ..Part::default() };
    }

    /// Does what the machine asks for.
    fn act(self: &Rc<Self>) {
        loop {
            let Some(action) = self.machine.borrow_mut().poll_action() else { return };
            match action {
                Action::Lookup(Lookup::List) => {
                    let exports = self.node.nbd.exports.borrow();
                    self.machine.borrow_mut().list_done(exports.keys().map(|name| (name.as_str(), "")));
                    self.moved.notify_all();
                }
                Action::Lookup(Lookup::Export) => self.look_up(),
                Action::Buffer(buffer) => {
                    self.wanted.set(Some(buffer));
                    self.moved.notify_all();
                }
                Action::Execute { tag, command } => self.start(tag, command),
                Action::Release { tag } => self.parts.borrow_mut()[tag.index()] = Part::default(),
                Action::Close(_) => self.close(),
            }
        }
    }

    fn look_up(&self) {
        let spec = self.node.nbd.find(self.machine.borrow().lookup_name());
        let found = spec.and_then(|spec| Some((self.node.volume(&spec)?, spec)));
        let mut machine = self.machine.borrow_mut();
        machine.lookup_done(found.as_ref().map(|(_, spec)| Found {
            export: export_of(spec),
            name: &spec.name,
            description: "",
        }));
        if let (Some((volume, spec)), true) = (found, machine.export().is_some()) {
            *self.opened.borrow_mut() = Some(Opened { nsid: spec.nsid, volume });
            *self.link.spec.borrow_mut() = Some(spec);
        }
        self.moved.notify_all();
    }

    fn close(&self) {
        self.closed.set(true);
        if let Some(since) = self.receiving.take() {
            self.node.stats.borrow_mut().receive.leave_failed(since, now());
        }
        self.wanted.set(None);
        self.parts.borrow_mut().iter_mut().for_each(|part| *part = Part::default());
        self.link.over.set();
        self.moved.notify_all();
    }

    /// After the last byte was read: what is in flight is answered, if the connection is not closed already.
    async fn finish(self: &Rc<Self>) {
        let idle = || {
            let answered = !self.machine.borrow().has_transmit() && !self.sending.get();
            self.closed.get() || (self.executing.get() == 0 && answered)
        };
        timeout(STOP_LIMIT, self.moved.wait_until(idle)).await;
        self.machine.borrow_mut().close();
        self.act();
    }

    fn start(self: &Rc<Self>, tag: Tag, command: Command) {
        let part = std::mem::take(&mut self.parts.borrow_mut()[tag.index()]);
        let data = part.whole.or(part.buf.map(Buf::freeze));
        if let Command::Write { .. } = command
            && let Some(since) = self.receiving.take()
        {
            self.node.stats.borrow_mut().receive.leave(since, now());
        }
        self.executing.set(self.executing.get() + 1);
        peristyle_rt::spawn(self.clone().execute(tag, command, data, part.permit));
    }

    async fn execute(
        self: Rc<Self>,
        tag: Tag,
        command: Command,
        data: Option<View>,
        mut permit: Option<Permit>,
    ) {
        let (nsid, volume) = {
            let opened = self.opened.borrow();
            let opened = opened.as_ref().expect("commands are executed on an open export");
            (opened.nsid, opened.volume.clone())
        };
        // Permits are given in order of arrival, so all parts of a request come before those of a later one; it
        // fits the budget, hence it ends.
        if let Command::Read { len, .. } = command {
            permit = Some(self.budget.acquire(len as usize).await);
        }
        let started = now();
        self.count(nsid, &command, |stage| stage.enter(started));
        let result = carry_out(&volume, &command, data).await;
        let ended = now();
        match &result {
            Ok(_) => self.count(nsid, &command, |stage| stage.leave(started, ended)),
            Err(_) => self.count(nsid, &command, |stage| stage.leave_failed(started, ended)),
        }
        self.complete(tag, command, result, permit);
        self.executing.set(self.executing.get() - 1);
        self.moved.notify_all();
    }

    fn complete(
        &self,
        tag: Tag,
        command: Command,
        result: Result<Outcome, ShardError>,
        permit: Option<Permit>,
    ) {
        let mut machine = self.machine.borrow_mut();
        let (told, data) = match result {
            Ok(Outcome::Status(extents)) => (machine.complete_block_status(tag, &extents), None),
            Ok(Outcome::Data(data)) => (machine.complete(tag, Ok(())), Some(data)),
            Ok(Outcome::Done) => (machine.complete(tag, Ok(())), None),
            Err(error) => (machine.complete(tag, Err(errno(error, &command))), None),
        };
        if let (Ok(()), Some(data), Some(permit)) = (told, data, permit) {
            self.count_bytes(&command, data.bytes());
            self.parts.borrow_mut()[tag.index()].answer = Some(Answer { data, _permit: permit });
        } else if let (Ok(()), Command::Write { len, .. }) = (told, command) {
            self.count_bytes(&command, len as usize);
        }
    }

    fn count(&self, nsid: u32, command: &Command, count: impl Fn(&mut Stage)) {
        let mut volumes = self.node.volume_stats.borrow_mut();
        let VolumeStats { read, write, .. } = volumes.entry(nsid).or_default();
        let stats = &mut *self.node.stats.borrow_mut();
        match command {
            Command::Read { .. } => [&mut stats.read_total, read].into_iter().for_each(count),
            Command::Write { .. } => [&mut stats.write_total, write].into_iter().for_each(count),
            _ => count(&mut stats.other),
        }
    }

    fn count_bytes(&self, command: &Command, bytes: usize) {
        let nsid = self.opened.borrow().as_ref().map_or(0, |opened| opened.nsid);
        let mut volumes = self.node.volume_stats.borrow_mut();
        let volume = volumes.entry(nsid).or_default();
        let FrontStats { read_bytes, write_bytes, .. } = &mut *self.node.stats.borrow_mut();
        let [node, volume] = match command {
            Command::Read { .. } => [read_bytes, &mut volume.read_bytes],
            _ => [write_bytes, &mut volume.write_bytes],
        };
        (*node, *volume) = (*node + bytes as u64, *volume + bytes as u64);
    }

    async fn send(self: Rc<Self>, mut writer: StreamWriter) {
        let mut outbox = Outbox::new().await;
        while !self.closed.get() || self.machine.borrow().has_transmit() {
            self.moved.wait_until(|| self.machine.borrow().has_transmit() || self.closed.get()).await;
            // Everything that ends in this turn leaves with one call.
            peristyle_rt::end_of_turn().await;
            self.gather(&mut outbox);
            if outbox.len() > 0 {
                self.send_batch(&mut writer, &mut outbox).await;
            }
        }
        writer.shutdown();
    }

    fn gather(self: &Rc<Self>, outbox: &mut Outbox) {
        let mut machine = self.machine.borrow_mut();
        while let Some(room) = outbox.room() {
            let Some(transmit) = machine.poll_transmit(room) else { break };
            let answer = transmit.payload.map(|payload| {
                let answer = self.parts.borrow_mut()[payload.tag.index()].answer.take();
                let answer = answer.expect("a read part that ended well has its data");
                assert!(answer.data.bytes() == payload.len as usize, "a read gives what was asked for");
                answer
            });
            outbox.push(transmit, answer);
        }
        drop(machine);
        self.sending.set(outbox.len() > 0);
        // Slots are free again, the next request may begin; or this was the last answer.
        self.act();
        self.moved.notify_all();
    }

    async fn send_batch(self: &Rc<Self>, writer: &mut StreamWriter, outbox: &mut Outbox) {
        let (started, answers) = (now(), outbox.len());
        (0..answers).for_each(|_| self.node.stats.borrow_mut().respond.enter(started));
        let sent = timeout(SEND_LIMIT, writer.send(outbox.take())).await;
        let ended = now();
        (0..answers).for_each(|_| self.node.stats.borrow_mut().respond.leave(started, ended));
        outbox.clear().await;
        if !matches!(sent, Some(Ok(()))) {
            self.machine.borrow_mut().handle_eof(ended);
            self.act();
        }
        self.sending.set(false);
        self.moved.notify_all();
    }
}

fn export_of(spec: &VolumeSpec) -> Export {
    Export { bytes: spec.bytes, block_bytes: BLOCK_BYTES_MIN, read_only: spec.read_only }
}

/// One part. Writes are durable when they return, so FUA asks for nothing more.
async fn carry_out(volume: &Volume, command: &Command, data: Option<View>) -> Result<Outcome, ShardError> {
    match *command {
        Command::Read { offset, len } => {
            let request = VolumeRequest::Read { offset, bytes: u64::from(len) };
            return volume.ask(request).await.data().map(Outcome::Data);
        }
        Command::BlockStatus { offset, len, one } => {
            let runs_max = if one { 1 } else { EXTENTS_MAX };
            let request = VolumeRequest::Allocation { offset, bytes: u64::from(len), runs_max };
            let runs = volume.ask(request).await.runs()?;
            return Ok(Outcome::Status(extents_of(&runs, offset, len)));
        }
        Command::Write { offset, .. } => {
            let data = data.expect("a write is executed when its data is there");
            volume.ask(VolumeRequest::Write { offset, data }).await.done()
        }
        Command::Flush => volume.ask(VolumeRequest::Flush).await.done(),
        Command::Trim { offset, len, .. } | Command::WriteZeroes { offset, len, .. } => {
            volume.ask(VolumeRequest::Zero { offset, bytes: u64::from(len) }).await.done()
        }
    }
    .map(|()| Outcome::Done)
}

/// Runs of blocks as extents from `offset` on; what lies behind the range is cut off.
fn extents_of(runs: &[Run], offset: u64, len: u32) -> Vec<Extent> {
    let mut skip = offset % BLOCK_BYTES as u64;
    let extent = |run: &Run| {
        let bytes = run.blocks * BLOCK_BYTES as u64 - std::mem::take(&mut skip);
        let flags = if run.data { 0 } else { allocation::HOLE | allocation::ZERO };
        Extent { len: bytes.min(u64::from(len)) as u32, flags }
    };
    runs.iter().map(extent).collect()
}

/// Beyond the end are requests of a client that knows the size from before the volume became smaller. They are told
/// what they are told beyond any export's end.
fn errno(error: ShardError, command: &Command) -> Errno {
    let writes = matches!(command, Command::Write { .. } | Command::WriteZeroes { .. });
    match error {
        ShardError::OutOfRange if writes => Errno::NoSpc,
        ShardError::NoSpace | ShardError::MapFull => Errno::NoSpc,
        ShardError::Unreadable | ShardError::Different => Errno::Io,
        ShardError::ReadOnly => Errno::Perm,
        ShardError::OutOfRange | ShardError::NoSuchLayer | ShardError::Changed => Errno::Inval,
        ShardError::Stopped => Errno::Shutdown,
    }
}
