//! The end that is asked.

use super::inbound::{Inbound, Input};
use super::message::*;
use super::wire::{self, kind};
use super::{Payload, VERSION, VERSION_MIN, Violation};

/// A request that is to be answered.
#[derive(PartialEq, Eq, Debug)]
pub struct Ticket {
    number: u32,
    kind: u8,
}

impl Ticket {
    /// Its place, below the requests that may be in flight.
    pub fn index(&self) -> usize {
        self.number as usize & 0xffff
    }
}

/// A request as it came.
#[derive(PartialEq, Eq, Debug)]
pub struct Asked<'a> {
    pub ticket: Ticket,
    pub request: Request<'a>,
    /// Bytes that follow. It may be carried out when all of them have come.
    pub payload: u32,
}

#[derive(PartialEq, Eq, Debug)]
pub enum ServerEvent<'a> {
    /// To be answered with [`Server::welcome`].
    Hello(Hello),
    /// To be answered with [`Server::answer`], in any order.
    Request(Asked<'a>),
}

/// The asked end of a connection.
pub struct Server {
    /// What a welcome would say.
    offer: Welcome,
    cluster: peristyle_base::Uuid,
    inbound: Inbound,
    /// It was welcomed.
    ready: bool,
    /// Payload of each request in flight, by its place.
    open: Vec<Option<u32>>,
    bytes_in_flight: u64,
}

impl Server {
    /// `offer`: what its welcome says; the version is found out.
    pub fn new(cluster: peristyle_base::Uuid, offer: Welcome) -> Server {
        let open = vec![None; usize::from(offer.credits.requests)];
        Server { offer, cluster, inbound: Inbound::new(), ready: false, open, bytes_in_flight: 0 }
    }

    pub fn next_input(&self) -> Input {
        self.inbound.next()
    }
    /// Says how many bytes were used.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        self.inbound.feed(bytes)
    }
    /// Requests without an answer.
    pub fn in_flight(&self) -> usize {
        self.open.iter().flatten().count()
    }

    /// The message that is there. Asked once for each; [`taken`](Self::taken) makes room for the next.
    pub fn message(&mut self) -> Result<Option<ServerEvent<'_>>, Violation> {
        let Some((common, body)) = self.inbound.message() else { return Ok(None) };
        if !self.ready {
            if common.kind != kind::HELLO {
                return Err(Violation::Kind(common.kind));
            }
            if common.payload.bytes > 0 {
                return Err(Violation::Payload);
            }
            return Ok(Some(ServerEvent::Hello(wire::read_hello(body)?)));
        }
        let request = wire::read_request(&common, body)?;
        if request.version() > self.offer.version {
            return Err(Violation::Kind(common.kind));
        }
        let (number, payload) = (common.number, common.payload.bytes);
        let ticket = Ticket { number, kind: common.kind };
        match self.open.get_mut(ticket.index()) {
            Some(place @ None) => *place = Some(payload),
            Some(_) => return Err(Violation::Number),
            None => return Err(Violation::Credits),
        }
        self.bytes_in_flight += u64::from(payload);
        let alone = self.bytes_in_flight == u64::from(payload);
        if payload > 0 && !alone && self.bytes_in_flight > u64::from(self.offer.credits.bytes) {
            return Err(Violation::Credits);
        }
        Ok(Some(ServerEvent::Request(Asked { ticket, request, payload })))
    }

    /// What [`message`](Self::message) showed was taken. Its payload comes next.
    pub fn taken(&mut self) {
        self.inbound.taken();
    }

    /// Payload, as far as it has come. True: it is complete and its checksum is right.
    pub fn handle_payload(&mut self, bytes: &[u8]) -> Result<bool, Violation> {
        self.inbound.payload(bytes)
    }

    /// Writes the answer to a Hello; `busy`: no more connections are taken. Says how long it is, and whether the connection goes on.
    pub fn welcome(&mut self, hello: &Hello, busy: bool, out: &mut [u8]) -> (usize, Result<(), Refusal>) {
        let (oldest, newest) = hello.versions;
        let refusal = if newest < VERSION_MIN || oldest > VERSION {
            Refusal::Version
        } else if hello.cluster != self.cluster {
            Refusal::Cluster
        } else if hello.to != self.offer.node {
            Refusal::Node
        } else if busy {
            Refusal::Busy
        } else {
            self.ready = true;
            self.offer.version = newest.min(VERSION);
            return (wire::welcome(&self.offer, out), Ok(()));
        };
        (wire::refused(refusal, out), Err(refusal))
    }

    /// Writes an answer's head; the payload follows it. Says how long it is.
    pub fn answer(&mut self, ticket: Ticket, answer: &Answer, payload: Payload, out: &mut [u8]) -> usize {
        let bytes = self.open[ticket.index()].take().expect("a ticket is used once");
        self.bytes_in_flight -= u64::from(bytes);
        wire::answer(ticket.kind, ticket.number, answer, payload, out)
    }
}
