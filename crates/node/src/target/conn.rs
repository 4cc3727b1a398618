//! One connection: the queue pair machine, the buffers of its commands, and the task that receives.

use super::Namespaces;
use super::at_once;
use super::execute::Kind;
use super::home::HomeRequest;
use crate::reactor::Node;
use crate::stats::FrontStats;
use peristyle_base::stage::Stage;
use peristyle_nvme::io_command;
use peristyle_nvme::qpair::{Action, CloseReason, Command, Completion, Input, Qpair, Tag};
use peristyle_nvme::registry::{ConnId, Connected};
use peristyle_nvme::wire::{Cid, Fuse, Status};
use peristyle_nvme::{QpairLimits, Sqe};
use peristyle_rt::sync::{Event, Notify, Permit, Semaphore};
use peristyle_rt::{Buf, Either, Instant, IoVec, Stream, StreamReader, View, select, sleep_until};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// Payload of which at least so much is to come goes straight into its buffer.
const DIRECT_BYTES: usize = 32 << 10;
/// Bytes of answers that one connection may hold: a host that reads slowly waits for itself.
const ANSWER_BYTES_MAX: usize = 4 << 20;
const ANSWER_UNIT: usize = 4096;

/// Data on its way to the host.
pub(super) struct Reply {
    pub pieces: IoVec,
    pub permit: Option<Permit>,
}

/// What belongs to one command beside the machine's own slot.
#[derive(Default)]
pub(super) struct Slot {
    tag: Option<Tag>,
    /// Data from the host, as it comes.
    buf: Option<Buf>,
    /// When its buffer was asked for.
    receiving: Option<Instant>,
    pub reply: Option<Reply>,
    /// When its answer was ready.
    pub responding: Option<Instant>,
    /// Since when it has been under way, if it reads or writes.
    pub began: Option<(Kind, Instant)>,
}

impl Slot {
    fn kind(&self) -> Kind {
        self.began.map_or(Kind::Other, |(kind, _)| kind)
    }
}

/// An answer that is being sent.
pub(super) struct Sending {
    since: Instant,
    kind: Kind,
    began: Instant,
}

impl Sending {
    pub fn take(slot: &mut Slot) -> Option<Sending> {
        let since = slot.responding.take()?;
        let (kind, began) = slot.began.take().unwrap_or((Kind::Other, since));
        Some(Sending { since, kind, began })
    }

    /// Its last byte is with the system, or will never be.
    pub fn settle(self, stats: &mut FrontStats, now: Instant, sent: bool) {
        let leave = |stage: &mut Stage, since| match sent {
            true => stage.leave(since, now),
            false => stage.leave_failed(since, now),
        };
        leave(self.kind.respond(stats), self.since);
        if let Some(total) = self.kind.total(stats) {
            leave(total, self.began);
        }
    }
}

#[derive(Default)]
pub(super) struct Slots(Vec<Slot>);

impl Slots {
    /// The command's slot, unless the command is over.
    pub fn of(&mut self, tag: Tag) -> Option<&mut Slot> {
        self.0.get_mut(tag.index()).filter(|slot| slot.tag == Some(tag))
    }
    /// The slot, for a command that begins or that has none yet.
    fn take_over(&mut self, tag: Tag) -> &mut Slot {
        if self.0.len() <= tag.index() {
            self.0.resize_with(tag.index() + 1, Slot::default);
        }
        let slot = &mut self.0[tag.index()];
        if slot.tag != Some(tag) {
            *slot = Slot { tag: Some(tag), ..Slot::default() };
        }
        slot
    }
}

/// One connection of a host.
pub(super) struct Conn {
    pub node: Rc<Node>,
    pub id: ConnId,
    pub qpair: RefCell<Qpair>,
    pub slots: RefCell<Slots>,
    /// The sender's: there is something to send.
    pub kick: Notify,
    pub kicked: Cell<bool>,
    /// The receiver's: a buffer has come.
    input: Notify,
    /// Commands that wait for a buffer, in order.
    starved: RefCell<VecDeque<(Tag, u32)>>,
    feeding: Cell<bool>,
    pub closed: Event,
    /// After Connect.
    pub connected: Cell<Option<Connected>>,
    pub host_id: Cell<[u8; 16]>,
    /// Commands that are being executed; asynchronous event requests are none.
    executing: Cell<usize>,
    /// No command is being executed.
    idle: Notify,
    /// For the bytes of answers.
    pub room: Rc<Semaphore>,
    draining: Cell<bool>,
    /// A task waits for the machine's deadline.
    watched: Cell<bool>,
    pub writes: RefCell<at_once::Writes>,
}

impl Conn {
    pub fn new(node: Rc<Node>, id: ConnId, limits: QpairLimits) -> Rc<Conn> {
        Rc::new(Conn {
            node,
            id,
            qpair: RefCell::new(Qpair::new(peristyle_rt::now(), limits)),
            slots: RefCell::default(),
            kick: Notify::default(),
            kicked: Cell::new(false),
            input: Notify::default(),
            starved: RefCell::default(),
            feeding: Cell::new(false),
            closed: Event::default(),
            connected: Cell::new(None),
            host_id: Cell::new([0; 16]),
            executing: Cell::new(0),
            idle: Notify::default(),
            room: Semaphore::new(ANSWER_BYTES_MAX / ANSWER_UNIT),
            draining: Cell::new(false),
            watched: Cell::new(false),
            writes: RefCell::default(),
        })
    }

    pub fn start(self: Rc<Self>, stream: Stream) {
        let (reader, writer) = stream.split();
        self.watch_the_clock();
        peristyle_rt::spawn(self.clone().send(writer));
        peristyle_rt::spawn(self.receive(reader));
    }

    async fn receive(self: Rc<Self>, mut reader: StreamReader) {
        let mut chunk: Option<View> = None;
        while !self.closed.is_set() {
            let input = self.qpair.borrow().next_input();
            match (input, &mut chunk) {
                (Input::Wait { .. }, _) => {
                    let waits = || matches!(self.qpair.borrow().next_input(), Input::Wait { .. });
                    self.input.wait_until(|| self.closed.is_set() || !waits()).await;
                }
                (Input::Payload { tag, offset, len }, None) if len as usize >= DIRECT_BYTES => {
                    self.receive_directly(&mut reader, tag, offset as usize, len as usize).await;
                }
                (_, None) => match reader.recv().await {
                    Ok(view) if !view.is_empty() => chunk = Some(view),
                    _ => self.lost(),
                },
                (_, Some(_)) if self.draining.get() => {
                    // Nothing new is begun; the end comes when all is answered.
                    chunk = None;
                    self.closed.wait().await;
                }
                (input, Some(bytes)) => {
                    let now = peristyle_rt::now();
                    let taken = self.feed(input, bytes, now);
                    bytes.advance(taken);
                    if bytes.is_empty() {
                        chunk = None;
                    }
                    self.act_at(now);
                }
            }
        }
        drop(reader);
        self.node.connection_ended();
    }

    /// Says how many bytes were used. What went wrong is told by the machine's transmissions and actions.
    fn feed(&self, input: Input, bytes: &[u8], now: Instant) -> usize {
        match input {
            Input::Bytes { .. } => self.qpair.borrow_mut().handle_bytes(now, bytes).unwrap_or(bytes.len()),
            Input::Payload { tag, offset, len } => {
                let n = bytes.len().min(len as usize);
                if let Some(buf) = self.slots.borrow_mut().of(tag).and_then(|s| s.buf.as_mut()) {
                    buf[offset as usize..offset as usize + n].copy_from_slice(&bytes[..n]);
                }
                let _ = self.qpair.borrow_mut().handle_payload(now, &bytes[..n]);
                n
            }
            // After a fatal error: only the end of the stream matters.
            Input::Wait { .. } | Input::Closed => bytes.len(),
        }
    }

    async fn receive_directly(
        self: &Rc<Self>,
        reader: &mut StreamReader,
        tag: Tag,
        offset: usize,
        len: usize,
    ) {
        let buf = self.slots.borrow_mut().of(tag).and_then(|s| s.buf.take());
        let mut buf = buf.expect("the machine asks for payload when the buffer is there");
        let mut front = buf.split_to(offset);
        let middle = buf.split_to(len);
        let (result, middle) = reader.recv_exact(middle).await;
        if self.closed.is_set() {
            return;
        }
        if result.is_err() {
            return self.lost();
        }
        let _ = self.qpair.borrow_mut().handle_payload(peristyle_rt::now(), &middle);
        front.unsplit(middle);
        front.unsplit(buf);
        if let Some(slot) = self.slots.borrow_mut().of(tag) {
            slot.buf = Some(front);
        }
        self.act();
    }

    /// The stream has ended, or cannot be written to.
    pub fn lost(self: &Rc<Self>) {
        self.qpair.borrow_mut().handle_eof(peristyle_rt::now());
        self.act();
    }

    pub fn close(self: &Rc<Self>) {
        self.qpair.borrow_mut().close();
        self.act();
    }

    /// Takes nothing new and closes when all is answered.
    pub fn drain(&self) {
        self.draining.set(true);
        self.wake_sender();
    }

    /// Called by the sender when all is sent.
    pub fn close_when_idle(self: &Rc<Self>) {
        if self.draining.get() && self.executing.get() == 0 && !self.qpair.borrow().has_transmit() {
            self.close();
        }
    }

    pub fn wake_sender(&self) {
        if !self.kicked.replace(true) {
            self.kick.notify_all();
        }
    }

    /// A deadline of the machine: set-up, or the end after a fatal error.
    fn watch_the_clock(self: &Rc<Self>) {
        self.watched.set(true);
        let me = self.clone();
        peristyle_rt::spawn(async move {
            while let Some(deadline) = { me.qpair.borrow().poll_timeout() } {
                if let Either::Left(()) = select(me.closed.wait(), sleep_until(deadline)).await {
                    return;
                }
                me.qpair.borrow_mut().handle_timeout(peristyle_rt::now());
                me.act();
            }
            me.watched.set(false);
        });
    }

    /// After every word with the machine: what it wants done, and sent.
    pub fn act(self: &Rc<Self>) {
        self.act_at(peristyle_rt::now());
    }

    fn act_at(self: &Rc<Self>, now: Instant) {
        let mut at_once = at_once::BLOCKS_MAX;
        self.expect_reads();
        while let Some(action) = { self.qpair.borrow_mut().poll_action() } {
            match action {
                Action::Buffer { tag, len } => self.want_buffer(tag, len, now),
                Action::Release { tag } => self.forget(tag),
                Action::Connect(command) => {
                    let buf = self.begin(&command, now);
                    self.spawn(self.clone().connect(command, buf));
                }
                Action::Execute(command) => {
                    let is_io = self.connected.get().is_some_and(|c| c.qid > 0);
                    if is_io {
                        self.under_way(command.tag, Kind::of_sqe(&command.sqe), now);
                    }
                    if is_io && self.answer_at_once(&command, &mut at_once) {
                        continue;
                    }
                    let data = self.begin(&command, now).map(Buf::freeze);
                    match is_io.then(|| self.write_at_once(&command, data, now)) {
                        Some(Ok(())) => {}
                        Some(Err(data)) => self.spawn(self.clone().run(command, data)),
                        None => self.spawn(self.clone().admin(command)),
                    }
                }
                Action::ExecuteFused { first, second } => {
                    let bufs = (self.begin(&first, now), self.begin(&second, now));
                    self.spawn(self.clone().run_fused(first, second, bufs));
                }
                Action::Close(reason) => self.end(reason),
            }
        }
        let (sends, waits) = {
            let qpair = self.qpair.borrow();
            (qpair.has_transmit(), qpair.poll_timeout().is_some())
        };
        if sends {
            self.wake_sender();
        }
        // After a fatal error there is a deadline again.
        if waits && !self.watched.get() {
            self.watch_the_clock();
        }
    }

    /// Runs a command's task.
    fn spawn(self: &Rc<Self>, command: impl Future<Output = ()> + 'static) {
        self.one_more();
        let me = self.clone();
        peristyle_rt::spawn(async move {
            command.await;
            me.one_less();
        });
    }

    /// A command is being executed from now on.
    pub fn one_more(&self) {
        self.executing.set(self.executing.get() + 1);
    }

    /// A command has been executed.
    pub fn one_less(&self) {
        self.executing.set(self.executing.get() - 1);
        if self.executing.get() == 0 {
            self.idle.notify_all();
            if self.draining.get() {
                self.wake_sender();
            }
        }
    }

    /// The first that is heard of a command; for one with data, before that comes.
    fn under_way(&self, tag: Tag, kind: Kind, now: Instant) {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.take_over(tag);
        if let (None, Some(total)) = (slot.began, kind.total(&mut self.node.stats.borrow_mut())) {
            total.enter(now);
            slot.began = Some((kind, now));
        }
    }

    /// A command has all its data.
    fn begin(&self, command: &Command, now: Instant) -> Option<Buf> {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.take_over(command.tag);
        if let Some(since) = slot.receiving.take() {
            self.node.stats.borrow_mut().receive.leave(since, now);
        }
        slot.buf.take()
    }

    /// The machine gave the command up.
    fn forget(&self, tag: Tag) {
        if let Some(slot) = self.slots.borrow_mut().of(tag) {
            slot.buf = None;
            if let Some(since) = slot.receiving.take() {
                self.node.stats.borrow_mut().receive.leave_failed(since, peristyle_rt::now());
            }
            if let Some((kind, began)) = slot.began.take()
                && let Some(total) = kind.total(&mut self.node.stats.borrow_mut())
            {
                total.leave_failed(began, peristyle_rt::now());
            }
        }
    }

    /// A command is to get a buffer, unless it cannot succeed whatever its data is.
    fn want_buffer(self: &Rc<Self>, tag: Tag, len: u32, now: Instant) {
        if let Some(status) = self.hopeless(tag)
            && self.qpair.borrow_mut().refuse(tag, Completion::from(status)).is_ok()
        {
            return;
        }
        let sqe = self.qpair.borrow().command_of(tag).map(|command| command.sqe);
        if let (Ok(sqe), true) = (sqe, self.connected.get().is_some_and(|c| c.qid > 0)) {
            self.under_way(tag, Kind::of_sqe(&sqe), now);
        }
        self.node.stats.borrow_mut().receive.enter(now);
        self.slots.borrow_mut().take_over(tag).receiving = Some(now);
        // Whoever came first gets his first.
        let buf = if self.starved.borrow().is_empty() { Buf::try_alloc(len as usize) } else { None };
        match buf {
            Some(buf) => self.give(tag, buf),
            None => {
                self.starved.borrow_mut().push_back((tag, len));
                if !self.feeding.replace(true) {
                    peristyle_rt::spawn(self.clone().feed_the_starved());
                }
            }
        }
    }

    /// As this connection has them.
    pub fn namespaces(&self) -> Rc<Namespaces> {
        self.node.target.namespaces_of(self.connected.get().map(|connected| connected.controller))
    }

    fn hopeless(&self, tag: Tag) -> Option<Status> {
        self.connected.get().filter(|c| c.qid > 0)?;
        let sqe: Sqe = self.qpair.borrow().command_of(tag).ok()?.sqe;
        if sqe.is_fabrics() || sqe.fuse() != Fuse::Normal {
            return None;
        }
        io_command::decode(&sqe, &self.namespaces().table).err()
    }

    fn give(&self, tag: Tag, buf: Buf) {
        self.slots.borrow_mut().take_over(tag).buf = Some(buf);
        if self.qpair.borrow_mut().buffer_ready(tag).is_err() {
            self.forget(tag);
        }
    }

    async fn feed_the_starved(self: Rc<Self>) {
        loop {
            let Some((tag, len)) = self.starved.borrow().front().copied() else { break };
            match select(self.closed.wait(), Buf::alloc(len as usize)).await {
                Either::Left(()) => return,
                Either::Right(buf) => self.give(tag, buf),
            }
            self.starved.borrow_mut().pop_front();
            self.input.notify_all();
            self.act();
        }
        self.feeding.set(false);
    }

    /// The command's answer. One for a connection that has gone is dropped.
    pub fn complete(&self, tag: Tag, completion: Completion, reply: Option<Reply>) {
        self.complete_at(tag, completion, reply, peristyle_rt::now());
    }

    pub fn complete_at(&self, tag: Tag, completion: Completion, reply: Option<Reply>, now: Instant) {
        let done = match &reply {
            Some(reply) => {
                let bytes = reply.pieces.bytes() as u32;
                self.qpair.borrow_mut().complete_with_data(tag, bytes, completion)
            }
            None => self.qpair.borrow_mut().complete(tag, completion),
        };
        if done.is_ok() {
            self.answered(tag, reply, now);
        }
    }

    pub fn answered(&self, tag: Tag, reply: Option<Reply>, now: Instant) {
        if self.closed.is_set() {
            return;
        }
        let mut slots = self.slots.borrow_mut();
        let slot = slots.take_over(tag);
        slot.kind().respond(&mut self.node.stats.borrow_mut()).enter(now);
        (slot.reply, slot.responding) = (reply, Some(now));
        self.wake_sender();
    }

    /// An asynchronous event, or the end of the wait for one.
    pub fn complete_event(&self, cid: Cid, status: Status, dw0: u32) {
        let tag = self.qpair.borrow().find_executing(cid);
        if let Some(tag) = tag {
            self.complete(tag, Completion { status, dw0, dw1: 0 }, None);
        }
    }

    /// Waits for room for an answer's bytes.
    pub async fn room_for(&self, bytes: u64) -> Permit {
        self.room.acquire(units_of(bytes)).await
    }
    pub fn try_room_for(&self, bytes: u64) -> Option<Permit> {
        self.room.try_acquire(units_of(bytes))
    }

    /// The machine has closed: all buffers go back, home is told. Comes once.
    fn end(self: &Rc<Self>, _reason: CloseReason) {
        let now = peristyle_rt::now();
        self.starved.borrow_mut().clear();
        for slot in &mut std::mem::take(&mut self.slots.borrow_mut().0) {
            let stats = &mut *self.node.stats.borrow_mut();
            if let Some(since) = slot.receiving {
                stats.receive.leave_failed(since, now);
            }
            // One that is being executed still will have no answer.
            match (Sending::take(slot), slot.began) {
                (Some(sending), _) => sending.settle(stats, now, false),
                (None, Some((kind, began))) => {
                    kind.total(stats).into_iter().for_each(|total| total.leave_failed(began, now));
                }
                (None, None) => {}
            }
        }
        self.closed.set();
        self.input.notify_all();
        self.wake_sender();
        if let Some(connected) = self.connected.get() {
            self.leave_home(connected);
        }
    }

    /// The queue is over. Its last commands end before the host's next Connect: an old write must not come
    /// after a new one.
    pub fn leave_home(self: &Rc<Self>, connected: Connected) {
        let draining = (self.executing.get() > 0).then(|| self.host_id.get());
        let me = self.clone();
        peristyle_rt::spawn(async move {
            me.node.ask_home(HomeRequest::Disconnected { connected, draining }).await;
            if draining.is_some() {
                me.idle.wait_until(|| me.executing.get() == 0).await;
                me.node.ask_home(HomeRequest::Drained { conn: me.id }).await;
            }
        });
    }
}

/// Units of an answer's bytes, no more than there are.
fn units_of(bytes: u64) -> usize {
    (bytes as usize).div_ceil(ANSWER_UNIT).min(ANSWER_BYTES_MAX / ANSWER_UNIT)
}
