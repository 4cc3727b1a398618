//! The end that asks.

use super::inbound::{Inbound, Input};
use super::message::*;
use super::wire::{self, kind};
use super::{Payload, VERSION, VERSION_MIN, Violation};

/// One request in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CallId(u32);

impl CallId {
    /// Its place, below [`super::REQUESTS_MAX`]; used again when it is over.
    pub fn index(self) -> usize {
        self.0 as usize & 0xffff
    }
}

#[derive(Clone, Copy, Default)]
struct Call {
    /// Kind of the request, 0: the place is free.
    kind: u8,
    /// Changes with each use, so that an answer is not taken for another's.
    turn: u16,
    /// Payload of the request.
    bytes: u32,
    /// Payload of the answer, at most.
    answer_bytes_max: u32,
}

/// Why a request was not begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Begin {
    /// Too much is in flight: again when something was answered.
    NoCredit,
    /// There was no welcome yet.
    NotReady,
    /// The server's version does not have it.
    NotSpoken,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientEvent {
    Welcome(Welcome),
    /// The server closes.
    Refused(Refusal),
    /// With `payload` bytes behind its head of `head` bytes, at most as many as were asked for. The call is over when they have come.
    Answer {
        call: CallId,
        answer: Answer,
        head: u32,
        payload: u32,
    },
}

/// The asking end of a connection.
pub struct Client {
    hello: Hello,
    inbound: Inbound,
    welcome: Option<Welcome>,
    calls: Vec<Call>,
    free: Vec<u16>,
    bytes_in_flight: u64,
    /// The call whose answer's payload is coming.
    receiving: Option<CallId>,
}

impl Client {
    pub fn new(mut hello: Hello) -> Client {
        hello.versions = (VERSION_MIN, VERSION);
        Client {
            hello,
            inbound: Inbound::new(),
            welcome: None,
            calls: Vec::new(),
            free: Vec::new(),
            bytes_in_flight: 0,
            receiving: None,
        }
    }

    /// Writes the first message; says how long it is.
    pub fn hello(&self, out: &mut [u8]) -> usize {
        wire::hello(&self.hello, out)
    }

    pub fn welcome(&self) -> Option<&Welcome> {
        self.welcome.as_ref()
    }

    /// The version that was agreed on has the request.
    pub fn speaks(&self, request: &Request<'_>) -> bool {
        self.welcome.as_ref().is_some_and(|welcome| request.version() <= welcome.version)
    }

    /// Requests without an answer.
    pub fn in_flight(&self) -> usize {
        self.calls.len() - self.free.len()
    }

    /// Begins a request and writes its head, of at most [`super::HEAD_BYTES_MAX`] bytes; says how long it is. The payload
    /// follows it.
    pub fn begin(
        &mut self,
        request: &Request<'_>,
        payload: Payload,
        out: &mut [u8],
    ) -> Result<(CallId, usize), Begin> {
        let credits = self.welcome.as_ref().ok_or(Begin::NotReady)?.credits;
        if !self.speaks(request) {
            return Err(Begin::NotSpoken);
        }
        let full = self.bytes_in_flight + u64::from(payload.bytes) > u64::from(credits.bytes);
        // One that is larger than all that may be in flight goes alone.
        if full && self.bytes_in_flight > 0 && payload.bytes > 0 {
            return Err(Begin::NoCredit);
        }
        let index = self.free.pop().ok_or(Begin::NoCredit)?;
        let call = &mut self.calls[usize::from(index)];
        call.kind = wire::kind_of(request);
        call.turn = call.turn.wrapping_add(1);
        call.bytes = payload.bytes;
        call.answer_bytes_max = request.answer_bytes_max();
        self.bytes_in_flight += u64::from(payload.bytes);
        let id = CallId(u32::from(call.turn) << 16 | u32::from(index));
        Ok((id, wire::request(id.0, request, payload, out)))
    }

    pub fn next_input(&self) -> Input {
        self.inbound.next()
    }
    /// Says how many bytes were used.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        self.inbound.feed(bytes)
    }

    /// The message that is there.
    pub fn take(&mut self) -> Result<Option<ClientEvent>, Violation> {
        let Some((common, body)) = self.inbound.message() else { return Ok(None) };
        let event = match (self.welcome, common.kind) {
            (None, kind::WELCOME) => {
                let welcome = wire::read_welcome(body)?;
                let (oldest, newest) = self.hello.versions;
                if !(oldest..=newest).contains(&welcome.version) || welcome.node != self.hello.to {
                    return Err(Violation::Field("version"));
                }
                ClientEvent::Welcome(welcome)
            }
            (None, kind::REFUSED) => ClientEvent::Refused(wire::read_refused(body)?),
            (None, other) => return Err(Violation::Kind(other)),
            (Some(_), _) => {
                let id = CallId(common.number);
                let call = self.calls.get(id.index()).copied().unwrap_or_default();
                if call.kind == 0 || u32::from(call.turn) != id.0 >> 16 {
                    return Err(Violation::Number);
                }
                let answer = wire::read_answer(call.kind, &common, body)?;
                let payload = common.payload.bytes;
                let is_data = matches!(answer, Answer::Rows | Answer::Forwarded(Ok(())));
                let whole = !is_data || payload == call.answer_bytes_max;
                if payload > call.answer_bytes_max || !whole {
                    return Err(Violation::Payload);
                }
                ClientEvent::Answer { call: id, answer, head: common.head_bytes as u32, payload }
            }
        };
        if common.payload.bytes > 0 && !matches!(event, ClientEvent::Answer { .. }) {
            return Err(Violation::Payload);
        }
        self.inbound.taken();
        match &event {
            ClientEvent::Welcome(welcome) => {
                let requests = welcome.credits.requests;
                self.calls = vec![Call::default(); usize::from(requests)];
                self.free = (0..requests).rev().collect();
                self.welcome = Some(*welcome);
            }
            ClientEvent::Answer { call, payload: 0, .. } => self.end(*call),
            ClientEvent::Answer { call, .. } => self.receiving = Some(*call),
            ClientEvent::Refused(_) => {}
        }
        Ok(Some(event))
    }

    /// Payload, as far as it has come. `Some`: it is complete and its checksum is right, and so is the answer.
    pub fn handle_payload(&mut self, bytes: &[u8]) -> Result<Option<CallId>, Violation> {
        if !self.inbound.payload(bytes)? {
            return Ok(None);
        }
        let call = self.receiving.take();
        call.into_iter().for_each(|call| self.end(call));
        Ok(call)
    }

    fn end(&mut self, id: CallId) {
        let call = &mut self.calls[id.index()];
        call.kind = 0;
        self.bytes_in_flight -= u64::from(call.bytes);
        self.free.push(id.index() as u16);
    }
}
