//! The two tasks of a queue, and the places where its commands' buffers lie.

use super::{HostError, Inner};
use peristyle_nvme::Tag;
use peristyle_nvme::host::{Event, HostClose, Input, TRANSMIT_HEADER_BYTES};
use peristyle_nvme::wire::Cqe;
use peristyle_nvme::wire::digest::{DIGEST_BYTES, data_digest};
use peristyle_rt::buf::IOVEC_MAX;
use peristyle_rt::{Buf, Either, IoVec, StreamReader, StreamWriter, View, select, sleep_until};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Payload above this goes straight into its buffer.
const DIRECT_BYTES: usize = 32 << 10;
const HEADER_BUF_BYTES: usize = 4096;
/// Bytes of one send, more or less.
const SEND_BYTES: usize = 1 << 20;

/// Where a command's data is.
#[derive(Default)]
pub(super) enum Data {
    #[default]
    None,
    Out(IoVec),
    In(Buf),
    /// A read's buffer, filled up to where the receiver works on it right now.
    Busy,
}

/// One command from its submission until somebody has taken its answer.
#[derive(Default)]
struct Place {
    data: Data,
    waker: Option<Waker>,
    answer: Option<(Cqe, u32)>,
    /// Nobody waits any more.
    abandoned: bool,
}

/// The places of one queue. The machine frees its slot with the answer; the place lives until it is taken.
pub(super) struct Places {
    places: Vec<Place>,
    free: Vec<u32>,
    /// By the machine's slot.
    of_slot: Vec<u32>,
}

impl Places {
    pub fn new(entries: usize) -> Places {
        let count = 2 * entries as u32;
        Places {
            places: (0..count).map(|_| Place::default()).collect(),
            free: (0..count).rev().collect(),
            of_slot: vec![0; entries],
        }
    }
    pub fn begin(&mut self, tag: Tag, data: Data) -> u32 {
        let id = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            self.places.len() as u32 - 1
        });
        self.places[id as usize] = Place { data, ..Place::default() };
        self.of_slot[tag.index()] = id;
        id
    }
    fn of(&mut self, tag: Tag) -> &mut Place {
        &mut self.places[self.of_slot[tag.index()] as usize]
    }
    fn complete(&mut self, tag: Tag, cqe: Cqe, received: u32) {
        let place = self.of(tag);
        place.answer = Some((cqe, received));
        if let Some(waker) = place.waker.take() {
            waker.wake();
        }
        if place.abandoned {
            let id = self.of_slot[tag.index()];
            self.release(id);
        }
    }
    fn release(&mut self, id: u32) {
        self.places[id as usize] = Place::default();
        self.free.push(id);
    }
    /// The queue is over: all buffers go back, whoever waits looks again.
    fn end(&mut self) {
        for place in &mut self.places {
            if place.answer.is_none() {
                place.data = Data::None;
            }
            if let Some(waker) = place.waker.take() {
                waker.wake();
            }
        }
    }
}

/// A command that was submitted; waits for its answer.
pub(super) struct Wait<'a> {
    inner: &'a Inner,
    id: u32,
}

impl<'a> Wait<'a> {
    pub fn new(inner: &'a Inner, id: u32) -> Wait<'a> {
        Wait { inner, id }
    }
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<(Cqe, u32, Data), HostError>> {
        let mut places = self.inner.places.borrow_mut();
        let place = &mut places.places[self.id as usize];
        if let Some((cqe, received)) = place.answer {
            return Poll::Ready(Ok((cqe, received, std::mem::take(&mut place.data))));
        }
        match self.inner.reason.get() {
            Some(reason) => Poll::Ready(Err(HostError::Closed(reason))),
            None => {
                place.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut places = self.inner.places.borrow_mut();
        let place = &mut places.places[self.id as usize];
        if place.answer.is_some() || self.inner.reason.get().is_some() {
            places.release(self.id);
        } else {
            place.abandoned = true;
        }
    }
}

/// A part of a send: header bytes by their place in the header buffer, or payload.
enum Piece {
    Header(usize, usize),
    Payload(View),
}

impl Inner {
    pub(super) fn wake_sender(&self) {
        if !self.kicked.replace(true) {
            self.kick.notify_all();
        }
    }

    /// After every word with the machine: its events, and what it wants to send.
    pub(super) fn after(&self) {
        while let Some(event) = { self.qpair.borrow_mut().poll_event() } {
            match event {
                Event::Ready => self.freed.notify_all(),
                Event::Complete { tag, cqe, received } => {
                    self.places.borrow_mut().complete(tag, cqe, received);
                    if self.freed.has_waiters() {
                        self.freed.notify_all();
                    }
                }
                Event::Close(reason) => self.end(reason),
            }
        }
        if self.qpair.borrow().has_transmit() {
            self.wake_sender();
        }
    }

    fn end(&self, reason: HostClose) {
        self.reason.set(Some(reason));
        self.places.borrow_mut().end();
        self.closed.set();
        self.freed.notify_all();
        self.wake_sender();
    }

    pub(super) async fn receive(self: Rc<Self>, mut reader: StreamReader) {
        let mut chunk: Option<View> = None;
        while !self.closed.is_set() {
            let input = self.qpair.borrow().next_input();
            if let (None, Input::Payload { tag, offset, len }) = (&chunk, input)
                && len as usize >= DIRECT_BYTES
            {
                self.receive_directly(&mut reader, tag, offset as usize, len as usize).await;
                continue;
            }
            let Some(bytes) = chunk.as_mut() else {
                match reader.recv().await {
                    Ok(view) if !view.is_empty() => chunk = Some(view),
                    _ => {
                        self.qpair.borrow_mut().handle_eof(peristyle_rt::now());
                        self.after();
                    }
                }
                continue;
            };
            let taken = self.feed(input, bytes);
            bytes.advance(taken);
            if bytes.is_empty() {
                chunk = None;
            }
            self.after();
        }
    }

    fn feed(&self, input: Input, bytes: &[u8]) -> usize {
        let now = peristyle_rt::now();
        match input {
            Input::Bytes { .. } => self.qpair.borrow_mut().handle_bytes(now, bytes).unwrap_or(bytes.len()),
            Input::Payload { tag, offset, len } => {
                let n = bytes.len().min(len as usize);
                if let Data::In(buf) = &mut self.places.borrow_mut().of(tag).data {
                    buf[offset as usize..offset as usize + n].copy_from_slice(&bytes[..n]);
                }
                // What went wrong is told by the machine's last event.
                let _ = self.qpair.borrow_mut().handle_payload(now, &bytes[..n]);
                n
            }
            // Thrown away: only the end of the stream matters now.
            Input::Wait { .. } | Input::Closed => bytes.len(),
        }
    }

    async fn receive_directly(&self, reader: &mut StreamReader, tag: Tag, offset: usize, len: usize) {
        let data = std::mem::replace(&mut self.places.borrow_mut().of(tag).data, Data::Busy);
        let Data::In(mut buf) = data else { unreachable!("a command that takes data has a buffer") };
        let front = buf.split_to(offset);
        let middle = buf.split_to(len);
        let (result, middle) = reader.recv_exact(middle).await;
        let now = peristyle_rt::now();
        if self.closed.is_set() {
            return;
        }
        match result {
            Ok(()) => {
                let _ = self.qpair.borrow_mut().handle_payload(now, &middle);
            }
            Err(_) => self.qpair.borrow_mut().handle_eof(now),
        }
        let mut whole = front.freeze();
        for part in [middle.freeze(), buf.freeze()] {
            if whole.is_empty() {
                whole = part;
            } else if !part.is_empty() {
                assert!(whole.try_join(&part), "cut from one buffer");
            }
        }
        let whole = whole.try_unfreeze().expect("nobody else sees it");
        self.places.borrow_mut().of(tag).data = Data::In(whole);
        self.after();
    }

    pub(super) async fn send(self: Rc<Self>, mut writer: StreamWriter) {
        let mut header = Buf::alloc(HEADER_BUF_BYTES).await;
        let mut pieces = Vec::with_capacity(64);
        while !self.closed.is_set() {
            self.kick.wait_until(|| self.kicked.get()).await;
            peristyle_rt::end_of_turn().await;
            self.kicked.set(false);
            while self.gather(&mut header, &mut pieces) {
                let headers = header.freeze();
                let sent = select(self.closed.wait(), put(&mut writer, &headers, &mut pieces)).await;
                header = match headers.try_unfreeze() {
                    Ok(header) => header,
                    Err(_) => Buf::alloc(HEADER_BUF_BYTES).await,
                };
                if !matches!(sent, Either::Right(true)) {
                    self.qpair.borrow_mut().handle_eof(peristyle_rt::now());
                    self.after();
                    break;
                }
            }
        }
        writer.shutdown();
    }

    /// Takes PDUs from the machine as long as there is room.
    fn gather(&self, header: &mut Buf, pieces: &mut Vec<Piece>) -> bool {
        pieces.clear();
        let mut qpair = self.qpair.borrow_mut();
        let mut places = self.places.borrow_mut();
        let (mut at, mut bytes) = (0, 0);
        while header.len() - at >= TRANSMIT_HEADER_BYTES + DIGEST_BYTES && bytes < SEND_BYTES {
            let Some(transmit) = qpair.poll_transmit(&mut header[at..]) else { break };
            pieces.push(Piece::Header(at, at + transmit.header));
            at += transmit.header;
            let Some(payload) = transmit.payload else { continue };
            let first = pieces.len();
            if let Data::Out(iov) = &places.of(payload.tag).data {
                cut(iov, payload.offset as usize, payload.len as usize, |v| pieces.push(Piece::Payload(v)));
            }
            bytes += payload.len as usize;
            if transmit.digest {
                let views = pieces[first..].iter().filter_map(|p| match p {
                    Piece::Payload(view) => Some(&view[..]),
                    Piece::Header(..) => None,
                });
                let digest = data_digest(views);
                header[at..at + DIGEST_BYTES].copy_from_slice(&digest);
                pieces.push(Piece::Header(at, at + DIGEST_BYTES));
                at += DIGEST_BYTES;
            }
        }
        !pieces.is_empty()
    }

    /// Answers for a target that is silent where the machine waits for no longer than so long.
    pub(super) async fn watch_the_clock(self: Rc<Self>) {
        loop {
            let Some(deadline) = ({ self.qpair.borrow().poll_timeout() }) else { return };
            if let Either::Left(()) = select(self.closed.wait(), sleep_until(deadline)).await {
                return;
            }
            self.qpair.borrow_mut().handle_timeout(peristyle_rt::now());
            self.after();
        }
    }
}

/// Views of `len` bytes from `offset` on.
fn cut(iov: &IoVec, mut offset: usize, mut len: usize, mut take: impl FnMut(View)) {
    for view in iov.pieces() {
        if len == 0 {
            return;
        }
        if offset >= view.len() {
            offset -= view.len();
            continue;
        }
        let n = len.min(view.len() - offset);
        take(view.slice(offset..offset + n));
        (offset, len) = (0, len - n);
    }
}

async fn put(writer: &mut StreamWriter, headers: &View, pieces: &mut Vec<Piece>) -> bool {
    let mut iov = IoVec::new();
    for piece in pieces.drain(..) {
        iov.push(match piece {
            Piece::Header(from, to) => headers.slice(from..to),
            Piece::Payload(view) => view,
        });
        if iov.pieces().len() == IOVEC_MAX && writer.send(std::mem::take(&mut iov)).await.is_err() {
            return false;
        }
    }
    iov.is_empty() || writer.send(iov).await.is_ok()
}
