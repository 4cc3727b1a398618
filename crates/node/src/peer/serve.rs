//! The asked end: columns of this node for others.

use super::incoming::{Incoming, Lost};
use super::outbox::{Outbox, described};
use super::tls::{Secured, Who};
use super::{Handed, Peers, reports};
use crate::columns::NodeColumns;
use crate::message::{ColumnAnswer, ColumnRequest};
use peristyle_base::{BLOCK_BYTES, DeviceId, NodeId, ShardId, SlotIndex};
use peristyle_cluster::peer::{
    APPEND_ROWS_MAX, Answer, Asked, Credits, DEVICE_ENTRY_BYTES, Forwarded, Hello, Input, LIST_ENTRY_BYTES,
    PAYLOAD_BYTES_MAX, Request, Server, ServerEvent, Ticket, Violation, Welcome, write_device, write_listed,
};
use peristyle_cluster::{ColumnFault, ListedSlot};
use peristyle_rt::sync::{Permit, Semaphore};
use peristyle_rt::{
    Addr, Buf, Duration, Either, IoVec, KeptBufs, Listener, NetError, Stream, View, select, timeout,
};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Requests, and bytes of appends, that one connection may have in flight here.
const CREDITS: Credits = Credits { requests: 256, bytes: 4 << 20 };
/// Connections to one reactor; more are refused, and more than twice as many are closed at once.
const CONNECTIONS_MAX: usize = 64;
/// Whoever has not said Hello by then is cut off.
const HELLO_LIMIT: Duration = Duration::from_secs(2);
/// Whoever says nothing for so long is not there any more: clients ask now and then, also when they need nothing.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// Bytes of answers that one connection may hold: who reads slowly waits for itself.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// The largest append and its checksums.
const APPEND_BYTES_MAX: usize = APPEND_ROWS_MAX as usize * (BLOCK_BYTES + 4);
/// The largest table of slots or devices in one answer.
const TABLE_BYTES_MAX: usize = 64 << 10;
/// Pause when the system takes no connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What one reactor serves to other nodes.
pub(super) struct Service {
    columns: Rc<NodeColumns>,
    peers: Rc<Peers>,
    /// So that others always find memory here: they may hold theirs until they are answered, as this node may for them, and all
    /// would wait for ever. Whoever waits for one of these holds none.
    appends: KeptBufs,
    reads: KeptBufs,
    tables: KeptBufs,
    connections: Cell<usize>,
}

/// A request that is to be carried out. Its rows have come.
enum Work {
    Column(DeviceId, ColumnRequest),
    Read(DeviceId, ColumnRequestOfRead),
    List {
        device: DeviceId,
        shard: ShardId,
        from: SlotIndex,
        bytes: u32,
    },
    Ping {
        bytes: u32,
    },
    Probe(DeviceId),
    /// Who owns what, and who may hand on what; the request is about leases or passes.
    Lease(Request<'static>),
    Handed(Handed),
}

/// A read, before it has a buffer.
struct ColumnRequestOfRead {
    at: peristyle_cluster::peer::Target,
    row: peristyle_base::RowIndex,
    bytes: usize,
}

/// A request as it came, without what is behind it.
enum Told {
    Hello(Hello),
    Work(Ticket, Work),
    /// Its checksums lie in `Session::crcs`.
    Append {
        ticket: Ticket,
        at: peristyle_cluster::peer::Target,
        row: peristyle_base::RowIndex,
        class: peristyle_cluster::WriteClass,
        bytes: usize,
        crcs: usize,
    },
    /// So many bytes are behind it.
    Handed(Ticket, Handed, usize),
}

struct Session {
    service: Rc<Service>,
    server: RefCell<Server>,
    outbox: Outbox,
    crcs: RefCell<Vec<u8>>,
    room: Rc<Semaphore>,
    welcomed: Cell<bool>,
    /// Who asks, and what TLS says of it.
    from: Cell<NodeId>,
    who: Who,
    /// How often something has come.
    heard: Cell<u64>,
}

impl Service {
    /// Listens for other nodes; each connection is served by tasks of its own.
    pub async fn start(addr: &Addr, columns: Rc<NodeColumns>, peers: Rc<Peers>) -> Result<Addr, NetError> {
        let listener = Listener::bind(addr, false).await?;
        let bound = listener.local_addr();
        let appends = KeptBufs::share("appends of other nodes", 1, APPEND_BYTES_MAX).await;
        let reads = KeptBufs::share("reads of other nodes", 1, PAYLOAD_BYTES_MAX as usize).await;
        let tables = KeptBufs::share("lists for other nodes", 1, TABLE_BYTES_MAX).await;
        let service = Service { columns, peers, appends, reads, tables, connections: Cell::new(0) };
        let service = Rc::new(service);
        peristyle_rt::spawn(service.accept(listener));
        Ok(bound)
    }

    async fn accept(self: Rc<Self>, listener: Listener) {
        let stopping = self.peers.stopping.clone();
        loop {
            match select(stopping.wait(), listener.accept()).await {
                Either::Left(()) => return,
                // Before anything is spent on it.
                Either::Right(Ok(flood)) if self.connections.get() >= 2 * CONNECTIONS_MAX => drop(flood),
                Either::Right(Ok(stream)) => {
                    self.connections.set(self.connections.get() + 1);
                    peristyle_rt::spawn(Session::run(self.clone(), stream));
                }
                Either::Right(Err(_)) => peristyle_rt::sleep(ACCEPT_PAUSE).await,
            }
        }
    }
}

impl Service {
    fn disconnected(&self) {
        self.connections.set(self.connections.get() - 1);
    }

    /// The slots from `from` on that fit into so many bytes, and into one table.
    async fn page(
        &self,
        list: &[ListedSlot],
        from: SlotIndex,
        bytes: u32,
    ) -> (Answer, Option<IoVec>, Option<Permit>) {
        let first = list.partition_point(|listed| listed.place.slot < from);
        let most = (bytes as usize).min(TABLE_BYTES_MAX) / LIST_ENTRY_BYTES;
        let (page, rest) = list[first..].split_at(most.min(list.len() - first));
        let next = rest.first().map(|listed| listed.place.slot);
        let write = |listed: &ListedSlot, entry: &mut [u8; LIST_ENTRY_BYTES]| write_listed(listed, entry);
        (Answer::Listed { next }, Some(self.table(page, write).await.into()), None)
    }

    async fn table<T, const N: usize>(&self, items: &[T], write: impl Fn(&T, &mut [u8; N])) -> View {
        let mut buf = self.tables.alloc(items.len() * N).await;
        for (item, entry) in items.iter().zip(buf.chunks_exact_mut(N)) {
            write(item, entry.try_into().expect("cut to this length"));
        }
        buf.freeze()
    }
}

impl Session {
    async fn run(service: Rc<Service>, stream: Stream) {
        let accepted = timeout(HELLO_LIMIT, service.peers.security.accept(stream)).await;
        let Some(Ok(Secured { reader, writer, who })) = accepted else { return service.disconnected() };
        let reactors = service.peers.who.reactors as u16;
        let offer = Welcome {
            version: 0,
            node: service.peers.who.me,
            boot: service.peers.who.boot,
            reactors,
            credits: CREDITS,
        };
        let session = Rc::new(Session {
            server: RefCell::new(Server::new(service.peers.who.cluster, offer)),
            outbox: Outbox::new().await,
            crcs: RefCell::new(Vec::with_capacity(4 * usize::from(APPEND_ROWS_MAX))),
            room: Semaphore::new(ANSWER_BYTES_MAX / BLOCK_BYTES),
            welcomed: Cell::new(false),
            from: Cell::default(),
            who,
            heard: Cell::new(0),
            service,
        });
        let sender = session.clone();
        peristyle_rt::spawn(async move { sender.outbox.run(writer).await });
        let watched = session.clone();
        peristyle_rt::spawn(async move {
            let (closed, stopping) = (watched.outbox.closed.clone(), watched.service.peers.stopping.clone());
            select(closed.wait(), peristyle_rt::sleep(HELLO_LIMIT)).await;
            while watched.welcomed.get() && !closed.is_set() && !stopping.is_set() {
                let heard = watched.heard.get();
                select(select(closed.wait(), stopping.wait()), peristyle_rt::sleep(IDLE_LIMIT)).await;
                if watched.heard.get() == heard {
                    break;
                }
            }
            watched.outbox.close();
        });
        let mut incoming = Incoming::new(reader);
        while !session.outbox.closed.is_set() && session.clone().receive_next(&mut incoming).await.is_ok() {}
        session.outbox.close();
        session.service.disconnected();
    }

    async fn receive_next(self: Rc<Self>, incoming: &mut Incoming) -> Result<(), Lost> {
        self.heard.set(self.heard.get() + 1);
        let server = &self.server;
        let input = server.borrow().next_input();
        if let Input::Head { .. } = input {
            return incoming.feed(|bytes| server.borrow_mut().handle_bytes(bytes)).await;
        }
        let told = self.told()?;
        let from = if let Told::Hello(hello) = &told { hello.from } else { self.from.get() };
        if !super::hear(&self.service.peers.table, from, &self.outbox.closed).await {
            return Err(Lost::Ended);
        }
        match told {
            Told::Hello(hello) => self.greet(&hello),
            Told::Work(ticket, work) => {
                peristyle_rt::spawn(self.carry_out(ticket, work));
                Ok(())
            }
            Told::Append { ticket, at, row, class, bytes, crcs } => {
                // Rows and checksums in one buffer: whoever holds one and waits for another may wait for ever.
                let mut data = self.service.appends.alloc(bytes + crcs).await;
                let rows = data.split_to(bytes);
                data.copy_from_slice(&self.crcs.borrow());
                let check = |bytes: &[u8]| server.borrow_mut().handle_payload(bytes).map(drop);
                let rows = incoming.fill(rows, check).await?;
                let (data, crcs) = (IoVec::from(rows.freeze()), data.freeze());
                let slot = at.place.slot;
                let request =
                    ColumnRequest::Append { slot, name: at.name, epoch: at.epoch, row, data, crcs, class };
                peristyle_rt::spawn(self.carry_out(ticket, Work::Column(at.place.device, request)));
                Ok(())
            }
            Told::Handed(ticket, mut handed, bytes) => {
                handed.from = self.from.get();
                if bytes > 0 {
                    let check = |bytes: &[u8]| server.borrow_mut().handle_payload(bytes).map(drop);
                    handed.data = Some(incoming.fill(Buf::alloc(bytes).await, check).await?);
                }
                peristyle_rt::spawn(self.carry_out(ticket, Work::Handed(handed)));
                Ok(())
            }
        }
    }

    /// The message that is there, as something that can be kept.
    fn told(&self) -> Result<Told, Violation> {
        let mut server = self.server.borrow_mut();
        let told = match server.message()?.expect("a message is there") {
            ServerEvent::Hello(hello) => Told::Hello(hello),
            ServerEvent::Request(Asked {
                ticket,
                request: Request::Append { at, row, class, crcs },
                payload,
            }) => {
                let mut kept = self.crcs.borrow_mut();
                kept.clear();
                kept.extend_from_slice(crcs);
                Told::Append { ticket, at, row, class, bytes: payload as usize, crcs: kept.len() }
            }
            ServerEvent::Request(Asked {
                ticket,
                request: Request::Forward { pass, shard, layer, command, offset, bytes },
                payload,
            }) => {
                let from = NodeId::default();
                let handed = Handed { from, pass, shard, layer, command, offset, bytes, data: None };
                Told::Handed(ticket, handed, payload as usize)
            }
            ServerEvent::Request(Asked { ticket, request, .. }) => Told::Work(ticket, work(request)),
        };
        server.taken();
        Ok(told)
    }

    /// An error ends the connection, when what was said has left.
    fn greet(&self, hello: &Hello) -> Result<(), Lost> {
        if !self.who.may_be(hello.from) {
            return Err(Lost::Ended);
        }
        let busy = self.service.connections.get() > CONNECTIONS_MAX;
        let taken = self.outbox.push(None, |out| Some(self.server.borrow_mut().welcome(hello, busy, out)));
        match taken {
            Some(Ok(())) => {
                self.from.set(hello.from);
                self.welcomed.set(true);
            }
            // It hears why, and closes; if it does not, its time for a Hello ends.
            Some(Err(_)) => {}
            None => return Err(Lost::Ended),
        }
        Ok(())
    }

    async fn carry_out(self: Rc<Self>, ticket: Ticket, work: Work) {
        let (answer, data, _permit) = self.answer_to(work).await;
        let payload = described(data.as_ref());
        let mut ticket = Some(ticket);
        while !self.outbox.closed.is_set() {
            let sent = self.outbox.push(data.as_ref(), |out| {
                let ticket = ticket.take()?;
                Some((self.server.borrow_mut().answer(ticket, &answer, payload, out), ()))
            });
            match sent {
                Some(()) => return,
                None => self.outbox.has_room().await,
            }
        }
    }

    async fn answer_to(&self, work: Work) -> (Answer, Option<IoVec>, Option<Permit>) {
        let columns = &self.service.columns;
        match work {
            Work::Column(device, request) => (answer_of(columns.ask_here(device, request).await), None, None),
            Work::Read(device, read) => {
                let permit = self.room.acquire(read.bytes / BLOCK_BYTES).await;
                let buf = self.service.reads.alloc(read.bytes).await;
                let request =
                    ColumnRequest::Read { slot: read.at.place.slot, name: read.at.name, row: read.row, buf };
                match columns.ask_here(device, request).await {
                    ColumnAnswer::Read(Ok(()), buf) => {
                        (Answer::Rows, Some(buf.freeze().into()), Some(permit))
                    }
                    other => (answer_of(other), None, None),
                }
            }
            Work::List { device, shard, from, bytes } => {
                match columns.ask_here(device, ColumnRequest::List { shard }).await {
                    ColumnAnswer::List(Ok(list)) => self.service.page(&list, from, bytes).await,
                    other => (answer_of(other), None, None),
                }
            }
            Work::Ping { bytes } => {
                let most = (bytes as usize).min(TABLE_BYTES_MAX) / DEVICE_ENTRY_BYTES;
                let devices: Vec<_> = reports(columns.table()).take(most).collect();
                let data = self.service.table(&devices, |report, entry: &mut [u8; DEVICE_ENTRY_BYTES]| {
                    write_device(report, entry)
                });
                (Answer::Pong, Some(data.await.into()), None)
            }
            Work::Lease(request) => {
                let (peers, from) = (&self.service.peers, self.from.get());
                let answer = match &request {
                    Request::Passes { wants } => peers.give_passes(from, wants),
                    request => peers.promised(from, request),
                };
                (answer.unwrap_or(Answer::Failed(ColumnFault::Refused)), None, None)
            }
            Work::Handed(handed) => {
                let bytes = if handed.command == Forwarded::Read { handed.bytes as usize } else { 0 };
                let permit = self.room.acquire(bytes.div_ceil(BLOCK_BYTES)).await;
                match self.service.peers.carry_handed(handed).await {
                    Ok(data) => (Answer::Forwarded(Ok(())), data, Some(permit)),
                    Err(why) => (Answer::Forwarded(Err(why)), None, None),
                }
            }
            Work::Probe(device) => match columns.probe_here(device).await {
                true => (Answer::Done, None, None),
                false => (Answer::Failed(ColumnFault::Device), None, None),
            },
        }
    }
}

fn work(request: Request<'_>) -> Work {
    let column = |at: peristyle_cluster::peer::Target, request| Work::Column(at.place.device, request);
    match request {
        Request::Allocate { at, scheme, class, filling } => {
            column(at, ColumnRequest::Allocate { name: at.name, scheme, epoch: at.epoch, class, filling })
        }
        Request::Fence { at } => {
            column(at, ColumnRequest::Fence { slot: at.place.slot, name: at.name, epoch: at.epoch })
        }
        Request::Read { at, row, rows } => {
            let bytes = usize::from(rows) * BLOCK_BYTES;
            Work::Read(at.place.device, ColumnRequestOfRead { at, row, bytes })
        }
        Request::Seal { at, rows, holes, crcs } => {
            let slot = at.place.slot;
            column(at, ColumnRequest::Seal { slot, name: at.name, epoch: at.epoch, rows, holes, crcs })
        }
        Request::Free { at } => {
            column(at, ColumnRequest::Free { slot: at.place.slot, name: at.name, epoch: at.epoch })
        }
        Request::List { device, shard, from, bytes } => Work::List { device, shard, from, bytes },
        Request::RowCrcs { at } => column(at, ColumnRequest::RowCrcs { slot: at.place.slot, name: at.name }),
        Request::Ping { bytes } => Work::Ping { bytes },
        Request::Probe { device } => Work::Probe(device),
        Request::Claim { shard, epoch } => Work::Lease(Request::Claim { shard, epoch }),
        Request::Renew { shards } => Work::Lease(Request::Renew { shards }),
        Request::Release { shard, epoch } => Work::Lease(Request::Release { shard, epoch }),
        Request::Passes { wants } => Work::Lease(Request::Passes { wants }),
        Request::Append { .. } | Request::Forward { .. } => unreachable!("its rows are received first"),
    }
}

fn answer_of(answer: ColumnAnswer) -> Answer {
    match answer {
        ColumnAnswer::Slot(Ok(slot)) => Answer::Slot(slot),
        ColumnAnswer::Done(Ok(())) => Answer::Done,
        ColumnAnswer::Crcs(Ok(crcs)) => Answer::RowCrcs(crcs),
        ColumnAnswer::Slot(Err(fault))
        | ColumnAnswer::Done(Err(fault))
        | ColumnAnswer::Crcs(Err(fault))
        | ColumnAnswer::List(Err(fault))
        | ColumnAnswer::Read(Err(fault), _) => Answer::Failed(fault),
        // These have payload, and are answered where it is made.
        ColumnAnswer::List(Ok(_)) | ColumnAnswer::Read(Ok(()), _) => Answer::Failed(ColumnFault::Refused),
    }
}
