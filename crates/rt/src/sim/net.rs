//! Simulated TCP and Unix streams: byte pipes with latency, bandwidth, arbitrary segments, bounded buffers,
//! partitions and resets.

use super::cell::Answer;
use super::socket::take_front;
use super::world::{Core, Event, Stop};
use crate::buf::IoVec;
use crate::net::{Addr, NetError};
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::task::Waker;

/// One direction between two nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkConfig {
    pub latency_ns: u64,
    /// Of one connection's direction; 0: unlimited.
    pub bytes_per_us: u64,
    /// Bytes that a connection's direction holds unread before its sender waits.
    pub window_bytes: usize,
    /// How many of the sends are cut at an arbitrary byte besides the segment size.
    pub cut_ppm: u32,
    /// Unacknowledged data this old ends the connection (TCP_USER_TIMEOUT).
    pub give_up_ns: u64,
}

impl Default for LinkConfig {
    fn default() -> Self {
        LinkConfig {
            latency_ns: 25_000,
            bytes_per_us: 3000,
            window_bytes: 256 << 10,
            cut_ppm: 100_000,
            give_up_ns: 5_000_000_000,
        }
    }
}

const LOOPBACK_NS: u64 = 8_000;
const RETRY_NS: u64 = 50_000_000;
const CONNECT_TIMEOUT_NS: u64 = 3_000_000_000;
const BACKLOG_MAX: usize = 128;
pub(super) const SEGMENT_MAX: usize = 64 << 10;

pub(crate) enum NetEvent {
    Syn { conn: u64, answer: ConnectAnswer },
    SynAck { conn: u64, answer: ConnectAnswer },
    Refuse { answer: ConnectAnswer, error: NetError },
    Deliver { conn: u64, dir: usize },
    Window { conn: u64, dir: usize },
    Reset { conn: u64, end: usize },
}

pub(super) type ConnectAnswer = Rc<Answer<Result<u64, NetError>>>;

enum Segment {
    Data(Vec<u8>),
    End,
}

#[derive(Default)]
pub(super) struct Pipe {
    sent: VecDeque<Segment>,
    pub(super) arrived: VecDeque<(Vec<u8>, usize)>,
    /// Bytes sent and not read.
    pub(super) held: usize,
    pub(super) window: usize,
    segment: usize,
    last_at: u64,
    blocked_since: Option<u64>,
    pub(super) ended: bool,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

pub(super) struct End {
    pub(super) node: u32,
    halves: u8,
    /// The process is gone.
    dead: bool,
    pub(super) reset: bool,
    pub(super) shut: bool,
}

pub(super) struct Conn {
    pub(super) ends: [End; 2],
    /// `pipes[i]` carries what end i sends.
    pub(super) pipes: [Pipe; 2],
    to: Addr,
}

pub(super) struct ListenerState {
    pub(super) addr: Addr,
    pub(super) shared: bool,
    pub(super) backlog: VecDeque<u64>,
    pub(super) waker: Option<Waker>,
}

pub(crate) struct Net {
    pub(super) conns: BTreeMap<u64, Conn>,
    pub(super) listeners: BTreeMap<u64, (u32, ListenerState)>,
    links: BTreeMap<(u32, u32), LinkConfig>,
    blocked: BTreeMap<(u32, u32), ()>,
    pub(super) next: u64,
    pub(super) next_port: u16,
    pub(super) spare: Vec<Vec<u8>>,
    /// Messages that ended processes owe to their peers.
    farewells: Vec<(u64, usize, bool)>,
}

impl Net {
    pub(crate) fn new() -> Net {
        Net {
            conns: BTreeMap::new(),
            listeners: BTreeMap::new(),
            links: BTreeMap::new(),
            blocked: BTreeMap::new(),
            next: 1,
            next_port: 40_000,
            spare: Vec::new(),
            farewells: Vec::new(),
        }
    }
    pub(crate) fn set_blocked(&mut self, from: u32, to: u32, blocked: bool) {
        if blocked {
            self.blocked.insert((from, to), ());
        } else {
            self.blocked.remove(&(from, to));
        }
    }
    pub(crate) fn set_link(&mut self, from: u32, to: u32, link: LinkConfig) {
        self.links.insert((from, to), link);
    }
    pub(crate) fn connections(&self) -> Vec<(u64, u32, u32)> {
        self.conns.iter().map(|(&id, c)| (id, c.ends[0].node, c.ends[1].node)).collect()
    }
}

pub(super) fn ip_of(addr: &SocketAddr) -> Option<Ipv4Addr> {
    match addr.ip() {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

impl Core {
    fn link(&self, from: u32, to: u32) -> &LinkConfig {
        self.net.links.get(&(from, to)).unwrap_or(&self.config.link)
    }

    pub(super) fn link_latency(&mut self, from: u32, to: u32) -> u64 {
        let nanos = if from == to { LOOPBACK_NS } else { self.link(from, to).latency_ns };
        self.rng.latency(nanos)
    }

    /// Whether nothing passes in this direction now.
    fn is_blocked(&self, from: u32, to: u32) -> bool {
        self.net.blocked.contains_key(&(from, to)) || self.nodes[to as usize].dark
    }

    /// Node that an address leads to, seen from `from`.
    fn route(&self, from: u32, addr: &Addr) -> Option<u32> {
        match addr {
            Addr::Unix(_) => Some(from),
            Addr::Tcp(addr) => {
                let ip = ip_of(addr)?;
                if ip.is_loopback() {
                    return Some(from);
                }
                self.nodes.iter().position(|n| n.ip == ip).map(|n| n as u32)
            }
        }
    }

    fn listener_for(&mut self, node: u32, to: &Addr) -> Option<u64> {
        let matches = |at: &Addr| match (at, to) {
            (Addr::Unix(at), Addr::Unix(to)) => at == to,
            (Addr::Tcp(at), Addr::Tcp(to)) => {
                at.port() == to.port() && (at.ip().is_unspecified() || at.ip() == to.ip())
            }
            _ => false,
        };
        let fits: Vec<u64> = (self.net.listeners.iter())
            .filter(|(_, (n, l))| *n == node && matches(&l.addr) && l.backlog.len() < BACKLOG_MAX)
            .map(|(&id, _)| id)
            .collect();
        if fits.is_empty() { None } else { Some(*self.rng.pick(&fits)) }
    }

    /// The connection's number, and the answer that will come.
    pub(super) fn connect(&mut self, node: u32, to: &Addr) -> (u64, ConnectAnswer) {
        let answer = Answer::new();
        let Some(target) = self.route(node, to) else {
            let error = NetError::Os(libc::EHOSTUNREACH);
            self.push_in(CONNECT_TIMEOUT_NS, Event::Net(NetEvent::Refuse { answer: answer.clone(), error }));
            return (0, answer);
        };
        let id = self.net.next;
        self.net.next += 1;
        let end = |node| End { node, halves: 2, dead: false, reset: false, shut: false };
        let pipes = [self.new_pipe(node, target), self.new_pipe(target, node)];
        self.net.conns.insert(id, Conn { ends: [end(node), end(target)], pipes, to: to.clone() });
        let delay = self.link_latency(node, target);
        self.push_in(delay, Event::Net(NetEvent::Syn { conn: id, answer: answer.clone() }));
        (id, answer)
    }

    fn new_pipe(&mut self, from: u32, to: u32) -> Pipe {
        let window = self.link(from, to).window_bytes;
        let segment = *self.rng.pick(&[1448, 8 << 10, 16 << 10, SEGMENT_MAX, SEGMENT_MAX]);
        Pipe { window, segment, ..Pipe::default() }
    }

    pub(crate) fn net_event(&mut self, event: NetEvent) {
        match event {
            NetEvent::Syn { conn, answer } => self.syn(conn, answer),
            NetEvent::SynAck { conn, answer } => {
                self.mix(conn);
                match self.net.conns.get_mut(&conn) {
                    Some(c) if !c.ends[0].dead => answer.fill(Ok(conn)),
                    _ => answer.fill(Err(NetError::Closed)),
                }
            }
            NetEvent::Refuse { answer, error } => answer.fill(Err(error)),
            NetEvent::Deliver { conn, dir } => self.deliver(conn, dir),
            NetEvent::Window { conn, dir } => {
                if let Some(writer) = self.net.conns.get_mut(&conn).and_then(|c| c.pipes[dir].writer.take()) {
                    writer.wake();
                }
            }
            NetEvent::Reset { conn, end } => self.reset(conn, end),
        }
    }

    fn syn(&mut self, conn: u64, answer: ConnectAnswer) {
        let Some(c) = self.net.conns.get(&conn) else { return };
        let (from, node, to) = (c.ends[0].node, c.ends[1].node, c.to.clone());
        if self.is_blocked(from, node) || self.is_blocked(node, from) {
            self.net.conns.remove(&conn);
            let error = NetError::Os(libc::ETIMEDOUT);
            self.push_in(CONNECT_TIMEOUT_NS, Event::Net(NetEvent::Refuse { answer, error }));
            return;
        }
        let delay = self.link_latency(node, from);
        let Some(listener) = self.listener_for(node, &to) else {
            self.net.conns.remove(&conn);
            self.push_in(delay, Event::Net(NetEvent::Refuse { answer, error: NetError::Refused }));
            return;
        };
        let (_, state) = self.net.listeners.get_mut(&listener).expect("just found");
        state.backlog.push_back(conn);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
        self.push_in(delay, Event::Net(NetEvent::SynAck { conn, answer }));
    }

    /// Hands `bytes` of the front of `iov` beyond (`piece`, `offset`) to the pipe, cut into segments.
    pub(super) fn send_segments(
        &mut self,
        conn: u64,
        dir: usize,
        iov: &IoVec,
        at: &mut (usize, usize),
        mut bytes: usize,
    ) {
        let (from, to) = {
            let c = &self.net.conns[&conn];
            (c.ends[dir].node, c.ends[1 - dir].node)
        };
        let (cut_ppm, rate) = {
            let link = self.link(from, to);
            (link.cut_ppm, if from == to { 0 } else { link.bytes_per_us })
        };
        let segment_max = self.net.conns[&conn].pipes[dir].segment;
        while bytes > 0 {
            let mut n = bytes.min(segment_max);
            if self.rng.ppm(cut_ppm) {
                n = 1 + self.rng.below(n.min(4096) as u64) as usize;
            }
            let mut data = self.net.spare.pop().unwrap_or_default();
            take_front(iov, at, n, &mut data);
            bytes -= n;
            self.mix(u64::from(peristyle_base::crc::crc32c(&data)) ^ conn << 32);
            let latency = self.link_latency(from, to);
            let now = self.now;
            let pipe = &mut self.net.conns.get_mut(&conn).expect("open").pipes[dir];
            let wire = (n as u64 * 1000).checked_div(rate).unwrap_or(0);
            pipe.last_at = (pipe.last_at + wire).max(now + latency + wire);
            pipe.held += n;
            pipe.sent.push_back(Segment::Data(data));
            let at = pipe.last_at;
            self.push_at(at, Event::Net(NetEvent::Deliver { conn, dir }));
        }
    }

    fn send_end(&mut self, conn: u64, dir: usize) {
        let c = self.net.conns.get_mut(&conn).expect("checked by the caller");
        let (from, to) = (c.ends[dir].node, c.ends[1 - dir].node);
        let latency = self.link_latency(from, to);
        let now = self.now;
        let pipe = &mut self.net.conns.get_mut(&conn).expect("just seen").pipes[dir];
        pipe.last_at = pipe.last_at.max(now + latency);
        pipe.sent.push_back(Segment::End);
        let at = pipe.last_at;
        self.push_at(at, Event::Net(NetEvent::Deliver { conn, dir }));
    }

    fn deliver(&mut self, conn: u64, dir: usize) {
        let Some(c) = self.net.conns.get(&conn) else { return };
        let (from, to) = (c.ends[dir].node, c.ends[1 - dir].node);
        if c.pipes[dir].sent.is_empty() {
            return;
        }
        if self.is_blocked(from, to) {
            let since = *self.net.conns.get_mut(&conn).expect("seen").pipes[dir]
                .blocked_since
                .get_or_insert(self.now);
            if self.now - since > self.link(from, to).give_up_ns {
                return self.reset(conn, dir);
            }
            let delay = self.rng.latency(RETRY_NS);
            return self.push_in(delay, Event::Net(NetEvent::Deliver { conn, dir }));
        }
        let c = self.net.conns.get_mut(&conn).expect("seen");
        let receiver = &c.ends[1 - dir];
        let (gone, reset) = (receiver.dead || receiver.halves == 0, receiver.reset);
        let pipe = &mut c.pipes[dir];
        pipe.blocked_since = None;
        match pipe.sent.pop_front().expect("seen") {
            Segment::Data(_) if gone => {
                let delay = self.link_latency(to, from);
                self.push_in(delay, Event::Net(NetEvent::Reset { conn, end: dir }));
            }
            Segment::Data(_) if reset => {}
            Segment::Data(data) => {
                pipe.arrived.push_back((data, 0));
                wake(&mut pipe.reader);
            }
            Segment::End => {
                pipe.ended = true;
                wake(&mut pipe.reader);
            }
        }
    }

    /// The connection is over for `end`: what it has not read is gone.
    pub(crate) fn reset(&mut self, conn: u64, end: usize) {
        let Some(c) = self.net.conns.get_mut(&conn) else { return };
        c.ends[end].reset = true;
        c.pipes[1 - end].arrived.clear();
        wake(&mut c.pipes[1 - end].reader);
        wake(&mut c.pipes[end].writer);
    }

    /// Resets a connection for both sides.
    pub(crate) fn reset_both(&mut self, conn: u64) {
        self.reset(conn, 0);
        self.reset(conn, 1);
    }

    pub(super) fn drop_half(&mut self, conn: u64, end: usize) {
        let Some(c) = self.net.conns.get_mut(&conn) else { return };
        c.ends[end].halves -= 1;
        if c.ends[end].halves > 0 {
            return;
        }
        let unread = !c.pipes[1 - end].arrived.is_empty();
        let (quiet, over) = (c.ends[end].shut || c.ends[end].reset, is_over(c));
        if over {
            self.net.conns.remove(&conn);
        } else if unread {
            // As TCP does: closing with unread data resets the peer.
            let (from, to) = (c.ends[end].node, c.ends[1 - end].node);
            let delay = self.link_latency(from, to);
            self.push_in(delay, Event::Net(NetEvent::Reset { conn, end: 1 - end }));
        } else if !quiet {
            self.send_end(conn, end);
        }
    }

    /// A connection that waited to be accepted never will be.
    pub(super) fn forsake(&mut self, conn: u64) {
        self.drop_half(conn, 1);
        self.drop_half(conn, 1);
        self.reset(conn, 0);
    }

    pub(super) fn shut(&mut self, conn: u64, end: usize) {
        let Some(c) = self.net.conns.get_mut(&conn) else { return };
        if std::mem::replace(&mut c.ends[end].shut, true) || c.ends[end].reset {
            return;
        }
        wake(&mut c.pipes[1 - end].reader);
        wake(&mut c.pipes[end].writer);
        self.send_end(conn, end);
    }

    /// After a process has ended: tells its peers what its system would.
    pub(crate) fn process_ended(&mut self, node: u32, how: Stop) {
        self.net.listeners.retain(|_, (n, _)| *n != node);
        let mut farewells = std::mem::take(&mut self.net.farewells);
        self.net.conns.retain(|&id, c| {
            for end in 0..2 {
                if c.ends[end].node != node || c.ends[end].dead {
                    continue;
                }
                c.ends[end].dead = true;
                c.pipes[1 - end].reader = None;
                c.pipes[end].writer = None;
                if how != Stop::Power && c.ends[end].halves > 0 {
                    farewells.push((id, end, c.pipes[1 - end].arrived.is_empty() && !c.ends[end].shut));
                }
            }
            !is_over(c)
        });
        for (id, end, clean) in farewells.drain(..) {
            let Some(c) = self.net.conns.get(&id) else { continue };
            let (from, to) = (c.ends[end].node, c.ends[1 - end].node);
            if clean && (how == Stop::Exit || self.rng.coin()) {
                self.send_end(id, end);
            } else {
                let delay = self.link_latency(from, to);
                self.push_in(delay, Event::Net(NetEvent::Reset { conn: id, end: 1 - end }));
            }
        }
        self.net.farewells = farewells;
    }
}

fn is_over(c: &Conn) -> bool {
    c.ends.iter().all(|e| e.dead || e.halves == 0)
}

pub(super) fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}
