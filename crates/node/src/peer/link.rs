//! The asking end: one connection to one reactor of another node, made again whenever it is lost.

use super::incoming::{Incoming, Lost};
use super::outbox::{Outbox, described};
use super::table::PeerTable;
use super::tls::{Secured, Security};
use super::traffic::{RequestKind, Traffic};
use peristyle_base::DeviceId;
use peristyle_cluster::ColumnFault;
use peristyle_cluster::peer::{
    Answer, CallId, Client, ClientEvent, Hello, Input, Refusal, Request, Violation,
};
use peristyle_rt::sync::Event;
use peristyle_rt::{Addr, Buf, Duration, IoVec, Stream, select, timeout};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Poll, Waker};

/// A connection that is not there, or not welcomed, in this time is given up.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// How often a connection is looked at …
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// … and after how many looks without a word it is asked for one, when nothing is in flight. With something in flight, at once.
const IDLE_LOOKS: u32 = 10;
/// A connection that does not answer to that in this time is dead: its other end may have lost its power.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Pause before it is made again.
const RETRY_PERIOD: Duration = Duration::from_millis(100);

/// Why there is no connection, as last seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkState {
    Up,
    /// Nobody answers at the address.
    Unreachable,
    /// TLS does not come about.
    NotSecured,
    Refused(Refusal),
    /// The other end broke the protocol.
    Broken(Violation),
    /// It was there, and has gone.
    Lost,
}

impl std::fmt::Display for LinkState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LinkState::Up => f.write_str("up"),
            LinkState::Unreachable => f.write_str("nobody answers at its address"),
            LinkState::NotSecured => {
                f.write_str("no TLS with it: it uses none, or its token has another secret")
            }
            LinkState::Refused(why) => write!(f, "it refuses: {why}"),
            LinkState::Broken(how) => write!(f, "it breaks the protocol: {how}"),
            LinkState::Lost => f.write_str("the connection was lost"),
        }
    }
}

/// Somebody who waits for an answer.
#[derive(Default)]
struct Waiting {
    waker: Option<Waker>,
    /// For the answer's payload.
    buf: Option<Buf>,
    /// What was asked.
    kind: Option<RequestKind>,
    answer: Option<Answer>,
    /// Nobody waits any more; the place is free when the answer has come.
    left: bool,
    /// The answer was taken, or will not come.
    over: bool,
}

/// Places of those who wait. A place is free again when both the answer has come and nobody waits for it.
#[derive(Default)]
struct Places {
    places: Vec<Waiting>,
    free: Vec<u32>,
    /// The place of each call in flight.
    of_call: Vec<u32>,
}

impl Places {
    fn take(&mut self, call: CallId, kind: RequestKind, buf: Option<Buf>) -> u32 {
        let at = self.free.pop().unwrap_or_else(|| {
            self.places.push(Waiting::default());
            self.places.len() as u32 - 1
        });
        let waiting = &mut self.places[at as usize];
        (waiting.buf, waiting.kind) = (buf, Some(kind));
        self.of_call[call.index()] = at;
        at
    }
    fn of(&mut self, call: CallId) -> &mut Waiting {
        &mut self.places[self.of_call[call.index()] as usize]
    }
    fn release(&mut self, at: u32) {
        self.places[at as usize] = Waiting::default();
        self.free.push(at);
    }
}

/// One connection, as long as it lasts.
struct Conn {
    client: RefCell<Client>,
    traffic: Rc<Traffic>,
    outbox: Outbox,
    waiting: RefCell<Places>,
    ready: Cell<bool>,
    /// How often something has come.
    heard: Cell<u64>,
}

/// What is put behind a request: rows, and where the answer's payload goes.
#[derive(Default)]
pub(crate) struct With {
    pub payload: Option<IoVec>,
    pub into: Option<Buf>,
}

pub(super) struct Link {
    addr: Addr,
    hello: Hello,
    security: Security,
    table: PeerTable,
    traffic: Rc<Traffic>,
    /// How it is connected to next.
    with_tls: Cell<bool>,
    conn: RefCell<Option<Rc<Conn>>>,
    state: Cell<LinkState>,
    stopping: Event,
    /// Nobody uses it any more.
    ended: Event,
}

impl Link {
    /// Connects, and goes on until `stopping`.
    pub fn start(
        addr: Addr,
        hello: Hello,
        (security, table): (Security, PeerTable),
        traffic: Rc<Traffic>,
        stopping: Event,
    ) -> Rc<Link> {
        let with_tls = Cell::new(security.prefers_tls());
        let link = Rc::new(Link {
            addr,
            hello,
            security,
            table,
            traffic,
            with_tls,
            conn: RefCell::default(),
            state: Cell::new(LinkState::Unreachable),
            stopping,
            ended: Event::default(),
        });
        peristyle_rt::spawn(link.clone().run());
        link
    }

    pub fn state(&self) -> LinkState {
        self.state.get()
    }

    async fn run(self: Rc<Self>) {
        let me = self.clone();
        peristyle_rt::spawn(async move {
            select(me.stopping.wait(), me.ended.wait()).await;
            if let Some(conn) = &*me.conn.borrow() {
                conn.outbox.close();
            }
        });
        while !self.stopping.is_set() && !self.ended.is_set() {
            self.connect_once().await;
            let over = select(self.stopping.wait(), self.ended.wait());
            select(over, peristyle_rt::sleep(RETRY_PERIOD)).await;
        }
    }

    /// For good: another takes its place, or its node has left.
    pub fn end(&self) {
        self.ended.set();
    }

    /// A connection to whom it is meant for; else why there is none.
    async fn reach(&self) -> Result<Secured, LinkState> {
        let stream = Stream::connect(&self.addr).await.map_err(|_| LinkState::Unreachable)?;
        let secured = self.security.connect(stream, self.hello.to, self.with_tls.get());
        secured.await.map_err(|_| LinkState::NotSecured)
    }

    /// Returns when the connection is lost.
    async fn connect_once(&self) {
        let reached = timeout(CONNECT_LIMIT, self.reach()).await.unwrap_or(Err(LinkState::Unreachable));
        let Secured { reader, writer, .. } = match reached {
            Ok(secured) => secured,
            Err(state) => {
                self.other_way(state == LinkState::NotSecured);
                return self.state.set(state);
            }
        };
        let conn = Rc::new(Conn {
            client: RefCell::new(Client::new(self.hello)),
            traffic: self.traffic.clone(),
            outbox: Outbox::new().await,
            waiting: RefCell::default(),
            ready: Cell::new(false),
            heard: Cell::new(0),
        });
        conn.outbox.push(None, |out| Some((conn.client.borrow().hello(out), ())));
        let sender = conn.clone();
        peristyle_rt::spawn(async move { sender.outbox.run(writer).await });
        self.conn.replace(Some(conn.clone()));
        peristyle_rt::spawn(conn.clone().watch());
        let mut incoming = Incoming::new(reader);
        // The sender's end wakes it.
        let lost = self.receive(&conn, &mut incoming).await;
        let unwelcome = !conn.ready.get();
        let refused = matches!(self.state.get(), LinkState::Refused(_)) && unwelcome;
        match lost {
            Lost::Broken(how) => self.state.set(LinkState::Broken(how)),
            Lost::Ended if refused => {}
            // It was not content with this node's certificate.
            Lost::Ended if unwelcome && self.with_tls.get() => self.state.set(LinkState::NotSecured),
            Lost::Ended => self.state.set(LinkState::Lost),
        }
        self.other_way(unwelcome && !refused);
        self.conn.replace(None);
        conn.end();
    }

    /// Where either is spoken, what did not work is not tried next.
    fn other_way(&self, failed: bool) {
        if failed && self.security.is_either() {
            self.with_tls.set(!self.with_tls.get());
        }
    }

    async fn receive(&self, conn: &Conn, incoming: &mut Incoming) -> Lost {
        loop {
            if let Err(lost) = self.receive_next(conn, incoming).await {
                return lost;
            }
            if !super::hear(&self.table, self.hello.to, &conn.outbox.closed).await {
                return Lost::Ended;
            }
        }
    }

    async fn receive_next(&self, conn: &Conn, incoming: &mut Incoming) -> Result<(), Lost> {
        let client = &conn.client;
        let input = client.borrow().next_input();
        conn.heard.set(conn.heard.get() + 1);
        if let Input::Head { .. } = input {
            return incoming.feed(|bytes| client.borrow_mut().handle_bytes(bytes)).await;
        }
        let event = client.borrow_mut().take()?;
        match event {
            None => {}
            Some(ClientEvent::Welcome(welcome)) => {
                let places = usize::from(welcome.credits.requests);
                conn.waiting.borrow_mut().of_call.resize(places, 0);
                self.state.set(LinkState::Up);
                conn.ready.set(true);
            }
            Some(ClientEvent::Refused(why)) => self.state.set(LinkState::Refused(why)),
            Some(ClientEvent::Answer { call, answer, head, payload: 0 }) => {
                let mut buf = conn.waiting.borrow_mut().of(call).buf.take();
                if let (Answer::Listed { .. } | Answer::Pong, Some(buf)) = (&answer, &mut buf) {
                    buf.truncate(0);
                }
                conn.answered(call, answer, head.into(), buf);
            }
            Some(ClientEvent::Answer { call, answer, head, payload }) => {
                let buf = conn.waiting.borrow_mut().of(call).buf.take();
                let mut buf = buf.expect("a request that has payload in its answer brings a buffer");
                buf.truncate(payload as usize);
                let check = |bytes: &[u8]| client.borrow_mut().handle_payload(bytes).map(drop);
                let buf = incoming.fill(buf, check).await?;
                conn.answered(call, answer, u64::from(head) + u64::from(payload), Some(buf));
            }
        }
        Ok(())
    }

    /// Asks, and waits for the answer. A connection that is not there, or is lost, is a fault of the device: the request may
    /// have been carried out. Dropping the future leaves the answer to nobody. The buffer that came along comes
    /// back with what the answer brought, unless it was lost with the connection.
    pub async fn call(
        &self,
        request: &Request<'_>,
        with: With,
    ) -> (Result<Answer, ColumnFault>, Option<Buf>) {
        let conn = self.conn.borrow().clone().filter(|c| c.ready.get());
        // A node of an older version does not have all requests.
        if conn.as_ref().is_some_and(|conn| !conn.client.borrow().speaks(request)) {
            return (Err(ColumnFault::Refused), with.into);
        }
        match conn {
            Some(conn) => conn.call(request, with).await,
            None => (Err(ColumnFault::Device), with.into),
        }
    }
}

impl Conn {
    async fn call(
        &self,
        request: &Request<'_>,
        mut with: With,
    ) -> (Result<Answer, ColumnFault>, Option<Buf>) {
        let payload = described(with.payload.as_ref());
        let kind = RequestKind::of(request);
        loop {
            if self.outbox.closed.is_set() {
                return (Err(ColumnFault::Device), with.into);
            }
            let begun = self.outbox.push(with.payload.as_ref(), |out| {
                let (call, head) = self.client.borrow_mut().begin(request, payload, out).ok()?;
                Some((head, (call, head)))
            });
            if let Some((call, head)) = begun {
                self.traffic.asked(kind, head as u64 + u64::from(payload.bytes));
                let place = self.waiting.borrow_mut().take(call, kind, with.into.take());
                return self.wait(place).await;
            }
            // Room, or credit.
            self.outbox.room.notified().await;
        }
    }

    /// Ends a connection from which nothing comes: before it is welcomed, or although it is asked.
    async fn watch(self: Rc<Self>) {
        let closed = self.outbox.closed.clone();
        select(closed.wait(), peristyle_rt::sleep(CONNECT_LIMIT)).await;
        let mut idle = 0;
        while self.ready.get() && !closed.is_set() {
            let heard = self.heard.get();
            select(closed.wait(), peristyle_rt::sleep(LOOK_PERIOD)).await;
            idle = if self.heard.get() == heard { idle + 1 } else { 0 };
            let asks = idle >= IDLE_LOOKS || idle > 0 && self.client.borrow().in_flight() > 0;
            if !asks || closed.is_set() {
                continue;
            }
            idle = 0;
            // A device that nobody has: any answer will do, and none needs memory, which those who wait here may hold.
            let question = Request::Probe { device: DeviceId::default() };
            if timeout(ANSWER_LIMIT, self.call(&question, With::default())).await.is_none() {
                break;
            }
        }
        self.outbox.close();
    }

    async fn wait(&self, at: u32) -> (Result<Answer, ColumnFault>, Option<Buf>) {
        struct Place<'a>(&'a Conn, u32);
        impl Drop for Place<'_> {
            fn drop(&mut self) {
                let mut all = self.0.waiting.borrow_mut();
                let waiting = &mut all.places[self.1 as usize];
                if waiting.over || waiting.answer.is_some() {
                    all.release(self.1);
                } else {
                    (waiting.left, waiting.waker) = (true, None);
                }
            }
        }
        let _place = Place(self, at);
        let (answer, buf) = std::future::poll_fn(|cx| {
            let waiting = &mut self.waiting.borrow_mut().places[at as usize];
            let answer = match waiting.answer.take() {
                Some(answer) => Ok(answer),
                None if self.outbox.closed.is_set() => Err(ColumnFault::Device),
                None => {
                    waiting.waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            };
            // When the connection is lost, the receiver may still have the place's number, and uses it no more.
            waiting.over = answer.is_ok();
            Poll::Ready((answer, waiting.buf.take()))
        })
        .await;
        match answer {
            Ok(Answer::Failed(fault)) => (Err(fault), buf),
            answer => (answer, buf),
        }
    }

    /// `bytes`: of the whole message.
    fn answered(&self, call: CallId, answer: Answer, bytes: u64, buf: Option<Buf>) {
        let mut all = self.waiting.borrow_mut();
        let at = all.of_call[call.index()];
        let waiting = &mut all.places[at as usize];
        waiting.kind.into_iter().for_each(|kind| self.traffic.answered(kind, bytes));
        if waiting.left {
            all.release(at);
        } else {
            (waiting.answer, waiting.buf) = (Some(answer), buf);
            if let Some(waker) = waiting.waker.take() {
                waker.wake();
            }
        }
        drop(all);
        self.outbox.room.notify_all();
    }

    /// Nobody is answered any more.
    fn end(&self) {
        self.outbox.close();
        self.waiting.borrow_mut().places.iter_mut().filter_map(|w| w.waker.take()).for_each(Waker::wake);
    }
}
