//! An NVMe/TCP host: queues as connections, commands as futures. Nothing is allocated per command.
//!
//! A [`Queue`] is two tasks (one receives, one sends) around [`HostQpair`]. A command's buffer stays with the
//! queue until the target has answered, also when the future that waits for it is dropped.

mod command;
mod tasks;

pub use command::{Answer, Payload};

use peristyle_nvme::host::setup::{CNTLID_ANY, CONNECT_DATA_BYTES, Connect, Next, Setup};
use peristyle_nvme::host::{Data, HostClose, HostConfig, HostQpair, Traffic};
use peristyle_nvme::wire::{Sqe, Status, opcode};
use peristyle_rt::sync::{Event, Notify};
use peristyle_rt::{Addr, Buf, Duration, NetError, Stream};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use tasks::Places;

/// Pause before a controller that is not ready is asked again.
const READY_PERIOD: Duration = Duration::from_millis(10);

/// Why a host got no answer, or not the one it needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostError {
    Net(NetError),
    /// The connection ended; what was in flight may have been done or not.
    Closed(HostClose),
    Status(Status),
}

impl std::fmt::Display for HostError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            HostError::Net(error) => error.fmt(f),
            HostError::Closed(reason) => write!(f, "the connection ended: {reason:?}"),
            HostError::Status(status) => write!(f, "the command failed: {status:?}"),
        }
    }
}
impl std::error::Error for HostError {}

/// Who connects to what, and how.
#[derive(Clone, Debug)]
pub struct HostOptions {
    pub host_nqn: String,
    pub host_id: [u8; 16],
    pub subsystem_nqn: String,
    /// Entries of I/O queues; one command fewer can be in flight.
    pub entries: u32,
    /// 0 turns keep alive off.
    pub keep_alive_ms: u32,
    pub header_digest: bool,
    pub data_digest: bool,
    /// In-capsule data of I/O queues; the target's IOCCSZ must allow it.
    pub in_capsule_bytes: u32,
}

impl HostOptions {
    pub fn new(host_nqn: &str, subsystem_nqn: &str) -> HostOptions {
        let mut host_id = [0x5a_u8; 16];
        for (at, byte) in host_nqn.bytes().enumerate() {
            host_id[at % 16] = host_id[at % 16].wrapping_mul(31) ^ byte;
        }
        HostOptions {
            host_nqn: host_nqn.into(),
            host_id,
            subsystem_nqn: subsystem_nqn.into(),
            entries: 128,
            keep_alive_ms: 0,
            header_digest: false,
            data_digest: false,
            in_capsule_bytes: peristyle_nvme::qpair::IO_IN_CAPSULE_BYTES,
        }
    }
}

/// One connection. Clones are the same queue; it closes with [`Queue::close`] or when the target closes it.
#[derive(Clone)]
pub struct Queue(Rc<Inner>);

struct Inner {
    qpair: RefCell<HostQpair>,
    places: RefCell<Places>,
    in_flight_max: usize,
    /// Something is to be sent, or all is over.
    kick: Notify,
    kicked: Cell<bool>,
    /// A command has ended: there may be room for another.
    freed: Notify,
    closed: Event,
    reason: Cell<Option<HostClose>>,
    cntlid: Cell<u16>,
}

impl Queue {
    /// A connection on which ICReq has been answered; no Connect yet.
    pub async fn open(addr: &Addr, config: HostConfig) -> Result<Queue, HostError> {
        let (reader, writer) = Stream::connect(addr).await.map_err(HostError::Net)?.split();
        let inner = Rc::new(Inner {
            qpair: RefCell::new(HostQpair::new(peristyle_rt::now(), config)),
            places: RefCell::new(Places::new(config.entries as usize)),
            in_flight_max: config.entries as usize - 1,
            kick: Notify::default(),
            kicked: Cell::new(true),
            freed: Notify::default(),
            closed: Event::default(),
            reason: Cell::new(None),
            cntlid: Cell::new(0),
        });
        peristyle_rt::spawn(inner.clone().receive(reader));
        peristyle_rt::spawn(inner.clone().send(writer));
        peristyle_rt::spawn(inner.clone().watch_the_clock());
        let mut queue = Unfinished::new(Queue(inner), Queue::close);
        let inner = &queue.get().0;
        inner.freed.wait_until(|| inner.qpair.borrow().is_ready() || inner.closed.is_set()).await;
        match inner.reason.get() {
            Some(reason) => Err(HostError::Closed(reason)),
            None => Ok(queue.finish()),
        }
    }

    /// Opens a connection and makes it queue `qid` of a controller; `cntlid` is of no matter to the admin queue.
    pub async fn connect(
        addr: &Addr,
        options: &HostOptions,
        qid: u16,
        cntlid: u16,
    ) -> Result<Queue, HostError> {
        let admin = qid == 0;
        let entries = if admin { 32 } else { options.entries };
        let mut config = HostConfig {
            entries,
            header_digest: options.header_digest,
            data_digest: options.data_digest,
            ..HostConfig::default()
        };
        if !admin {
            config.in_capsule_bytes = options.in_capsule_bytes;
        }
        let mut queue = Unfinished::new(Queue::open(addr, config).await?, Queue::close);
        let connect = Connect {
            host_id: options.host_id,
            host_nqn: &options.host_nqn,
            subsystem_nqn: &options.subsystem_nqn,
            cntlid: if admin { CNTLID_ANY } else { cntlid },
            qid,
            entries,
            keep_alive_ms: if admin { options.keep_alive_ms } else { 0 },
            flow_control: false,
        };
        queue.get().set_up(&connect).await?;
        Ok(queue.finish())
    }

    async fn set_up(&self, connect: &Connect<'_>) -> Result<(), HostError> {
        let mut setup = if connect.qid == 0 { Setup::admin() } else { Setup::io() };
        loop {
            let mut bytes = [0; CONNECT_DATA_BYTES];
            let (sqe, data) = match setup.next(connect, &mut bytes) {
                Next::Submit(sqe, data) => (sqe, data),
                Next::SubmitLater(sqe, data) => {
                    peristyle_rt::sleep(READY_PERIOD).await;
                    (sqe, data)
                }
                Next::Ready => break,
                Next::Failed(status) => return Err(HostError::Status(status)),
            };
            let payload = match data {
                Data::ToTarget(len) => {
                    let mut buf = Buf::alloc(len as usize).await;
                    buf.copy_from_slice(&bytes[..len as usize]);
                    Payload::ToTarget(buf.freeze())
                }
                _ => Payload::None,
            };
            setup.handle(&self.command(sqe, payload).await?.cqe);
        }
        self.0.cntlid.set(setup.cntlid());
        Ok(())
    }

    /// The controller that answered Connect.
    pub fn cntlid(&self) -> u16 {
        self.0.cntlid.get()
    }
    /// What went over the connection so far.
    pub fn traffic(&self) -> Traffic {
        self.0.qpair.borrow().traffic()
    }
    pub fn in_flight(&self) -> usize {
        self.0.qpair.borrow().in_flight()
    }
    pub fn is_open(&self) -> bool {
        !self.0.closed.is_set()
    }
    /// Waits until the connection has ended, by whomever.
    pub async fn closed(&self) {
        self.0.closed.wait().await
    }
    /// Closes the connection at once: what is in flight gets no answer.
    pub fn close(&self) {
        self.0.qpair.borrow_mut().close();
        self.0.after();
    }
}

/// What is being set up. It closes unless that comes to its end: the tasks of a queue would keep it for ever, also when
/// nobody waits for it any more.
struct Unfinished<T> {
    value: Option<T>,
    close: fn(&T),
}

impl<T> Unfinished<T> {
    fn new(value: T, close: fn(&T)) -> Unfinished<T> {
        Unfinished { value: Some(value), close }
    }
    fn get(&mut self) -> &mut T {
        self.value.as_mut().expect("taken at the end only")
    }
    fn finish(mut self) -> T {
        self.value.take().expect("taken at the end only")
    }
}

impl<T> Drop for Unfinished<T> {
    fn drop(&mut self) {
        if let Some(value) = &self.value {
            (self.close)(value);
        }
    }
}

/// A controller: its admin queue and I/O queues 1 to n.
pub struct Host {
    pub admin: Queue,
    pub io: Vec<Queue>,
    options: HostOptions,
    addr: Addr,
}

impl Host {
    pub async fn connect(addr: &Addr, options: &HostOptions, io_queues: u16) -> Result<Host, HostError> {
        let admin = Queue::connect(addr, options, 0, CNTLID_ANY).await?;
        if options.keep_alive_ms > 0 {
            peristyle_rt::spawn(keep_alive(admin.clone(), options.keep_alive_ms));
        }
        let host = Host { admin, io: Vec::new(), options: options.clone(), addr: addr.clone() };
        let mut host = Unfinished::new(host, Host::close);
        for _ in 0..io_queues {
            host.get().add_queue().await?;
        }
        Ok(host.finish())
    }
    /// Connects one more I/O queue.
    pub async fn add_queue(&mut self) -> Result<(), HostError> {
        let qid = self.io.len() as u16 + 1;
        let queue = Queue::connect(&self.addr, &self.options, qid, self.admin.cntlid()).await?;
        self.io.push(queue);
        Ok(())
    }
    /// Closes all connections, I/O queues first.
    pub fn close(&self) {
        self.io.iter().for_each(Queue::close);
        self.admin.close();
    }
}

/// Twice per timeout, so that one lost beat is not the end.
async fn keep_alive(admin: Queue, timeout_ms: u32) {
    let period = Duration::from_millis(u64::from(timeout_ms / 2).max(1));
    let beat = Sqe::new(opcode::admin::KEEP_ALIVE, Default::default());
    while peristyle_rt::timeout(period, admin.closed()).await.is_none() {
        if admin.command(beat, Payload::None).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peristyle_rt::{Listener, timeout};

    #[test]
    fn a_connection_that_nobody_waits_for_any_more_is_closed() {
        peristyle_rt::sim::run(1, |_| async {
            let addr = Addr::Tcp(([10, 0, 0, 1], 4420).into());
            let listener = Listener::bind(&addr, false).await.unwrap();
            let opening = Queue::open(&addr, HostConfig::default());
            assert!(timeout(Duration::from_millis(500), opening).await.is_none(), "nobody answers");
            let (mut reader, _writer) = listener.accept().await.unwrap().split();
            let until_the_end = async { while reader.recv().await.is_ok_and(|bytes| !bytes.is_empty()) {} };
            assert!(timeout(Duration::from_millis(500), until_the_end).await.is_some(), "it is open still");
        });
    }
}
