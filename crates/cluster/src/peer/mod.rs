//! The protocol between nodes, without I/O: what is said (`message`), its bytes (`wire`), and the two ends of a
//! connection ([`Client`], [`Server`]). The bytes are described in `docs/peer-protocol.md`.
//!
//! A reactor that needs columns of another node connects to the reactor that serves them, says Hello, and asks.
//! Requests are answered in any order. Whoever drives an end does three things:
//!
//! 1. **Receive.** While `next_input` says [`Input::Head`], hand the stream's bytes to `handle_bytes`. When it says
//!    [`Input::Message`], take the message. When it says [`Input::Payload`], put the next bytes where they belong and show them
//!    to `handle_payload`.
//! 2. **Act** on what came: give answers to those who wait, carry out requests.
//! 3. **Send** the head that `hello`, `begin`, `welcome` or `answer` wrote, with the payload behind it from where it lies.
//!
//! **Invariant:** a client never has more requests, or bytes of payload, in flight than the server has said it would hold; a
//! server cuts off one that has.
//!
//! **Invariant:** after a [`Violation`] the connection is of no use: nothing more is read from it.

mod client;
pub mod fuzz;
mod inbound;
mod message;
mod server;
mod wire;

pub use client::{Begin, CallId, Client, ClientEvent};
pub use inbound::Input;
pub use message::*;
pub use server::{Asked, Server, ServerEvent, Ticket};
pub use wire::{DEVICE_ENTRY_BYTES, LIST_ENTRY_BYTES, read_devices, read_list, write_device, write_listed};

use peristyle_base::{COLUMN_BYTES, COLUMN_ROWS};

/// The newest version of the protocol that this program speaks, and the oldest.
pub const VERSION: u16 = 2;
pub const VERSION_MIN: u16 = 1;

/// Largest head of a message, its checksum included: a seal of 512 rows fits.
pub const HEAD_BYTES_MAX: usize = 4096;
/// Largest payload of a message: a whole column.
pub const PAYLOAD_BYTES_MAX: u32 = COLUMN_BYTES as u32;
/// Rows of an Append: with their checksums they fit into 2 MiB.
pub const APPEND_ROWS_MAX: u16 = COLUMN_ROWS - 1;
/// Shards of one Renew.
pub const RENEWALS_MAX: usize = 256;
/// Wants of one Passes.
pub const WANTS_MAX: usize = 64;
/// Data of one Forward.
pub const FORWARD_BYTES_MAX: u64 = 512 << 10;
/// Requests in flight on one connection at most, whatever a server offers.
pub const REQUESTS_MAX: u16 = 1024;

/// The payload that stands behind a head: its length, and its CRC32C (0 when there is none).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Payload {
    pub bytes: u32,
    pub crc: u32,
}

impl Payload {
    pub const NONE: Payload = Payload { bytes: 0, crc: 0 };
}

/// What the other end may not do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Violation {
    /// A head that is shorter or longer than its fields, or longer than any.
    Length,
    /// A payload that is larger than [`PAYLOAD_BYTES_MAX`], than was asked for, or that does not belong there.
    Payload,
    HeadChecksum,
    PayloadChecksum,
    /// A kind of message that this end does not expect now, or at all.
    Kind(u8),
    /// A field, named here, holds what it may not.
    Field(&'static str),
    /// An answer to nothing, or a request with a number that is taken.
    Number,
    /// More in flight than was granted.
    Credits,
}

impl core::fmt::Display for Violation {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Violation::Length => f.write_str("the head's length is wrong"),
            Violation::Payload => f.write_str("the payload's length is wrong"),
            Violation::HeadChecksum => f.write_str("the head's checksum is wrong"),
            Violation::PayloadChecksum => f.write_str("the payload's checksum is wrong"),
            Violation::Kind(kind) => write!(f, "a message of kind {kind:#x} is not expected here"),
            Violation::Field(name) => write!(f, "the field `{name}` holds an impossible value"),
            Violation::Number => f.write_str("the request's number is wrong"),
            Violation::Credits => f.write_str("more is in flight than was granted"),
        }
    }
}
impl core::error::Error for Violation {}
