//! Fields of messages, and messages out of a stream.

use crate::meta::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use std::fmt;

/// What stands before each message.
pub const LENGTH_BYTES: usize = 4;
/// Of what is meant for people; more is cut off.
const WORDS_BYTES_MAX: usize = 1024;

/// What the other end may not do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Violation {
    /// A message that is longer than any, or longer or shorter than its fields.
    Length,
    /// A kind of message that is not expected now, or at all.
    Kind(u8),
    /// A field, named here, holds what it may not.
    Field(&'static str),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::Length => f.write_str("the message's length is wrong"),
            Violation::Kind(kind) => write!(f, "a message of kind {kind:#x} is not expected here"),
            Violation::Field(name) => write!(f, "the field `{name}` holds an impossible value"),
        }
    }
}
impl std::error::Error for Violation {}

/// One message as it came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    pub kind: u8,
    pub body: Vec<u8>,
}

/// Cuts messages out of what a stream brings.
#[derive(Default)]
pub struct Messages {
    bytes: Vec<u8>,
    /// What is before it has been taken out.
    at: usize,
}

impl Messages {
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.at);
        self.at = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// How long the message is that is coming, once that is known.
    pub fn coming(&self) -> Option<usize> {
        let length = self.bytes[self.at..].first_chunk::<LENGTH_BYTES>()?;
        Some(u32::from_le_bytes(*length) as usize)
    }

    /// The next message, when all of it is there. One that is too long is noticed by its length alone.
    pub fn take(&mut self, bytes_max: usize) -> Result<Option<Message>, Violation> {
        let Some(length) = self.coming() else { return Ok(None) };
        if length == 0 || length > bytes_max {
            return Err(Violation::Length);
        }
        let start = self.at + LENGTH_BYTES;
        let Some(bytes) = self.bytes.get(start..start + length) else { return Ok(None) };
        let message = Message { kind: bytes[0], body: bytes[1..].to_vec() };
        self.at = start + length;
        if self.at == self.bytes.len() {
            // One long message must not hold its memory for as long as a connection lasts.
            *self = Messages::default();
        }
        Ok(Some(message))
    }
}

/// Fields out of bytes that may end too early.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Violation> {
        let (first, rest) = self.0.split_first_chunk::<N>().ok_or(Violation::Length)?;
        self.0 = rest;
        Ok(*first)
    }
    pub fn slice(&mut self, n: usize) -> Result<&'a [u8], Violation> {
        let (first, rest) = self.0.split_at_checked(n).ok_or(Violation::Length)?;
        self.0 = rest;
        Ok(first)
    }
    pub fn u8(&mut self) -> Result<u8, Violation> {
        self.array().map(|[byte]| byte)
    }
    pub fn u16(&mut self) -> Result<u16, Violation> {
        self.array().map(u16::from_le_bytes)
    }
    pub fn u32(&mut self) -> Result<u32, Violation> {
        self.array().map(u32::from_le_bytes)
    }
    pub fn u64(&mut self) -> Result<u64, Violation> {
        self.array().map(u64::from_le_bytes)
    }
    pub fn flag(&mut self, name: &'static str) -> Result<bool, Violation> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Violation::Field(name)),
        }
    }
    pub fn text(&mut self, bytes_max: usize, name: &'static str) -> Result<String, Violation> {
        let length = usize::from(self.u16()?);
        if length > bytes_max {
            return Err(Violation::Field(name));
        }
        let text = std::str::from_utf8(self.slice(length)?).map_err(|_| Violation::Field(name))?;
        Ok(text.to_owned())
    }
    pub fn prefix(&mut self) -> Result<String, Violation> {
        self.text(KEY_BYTES_MAX, "prefix")
    }
    pub fn key(&mut self) -> Result<String, Violation> {
        let key = self.text(KEY_BYTES_MAX, "key")?;
        if key.is_empty() { Err(Violation::Field("key")) } else { Ok(key) }
    }
    pub fn value(&mut self) -> Result<Vec<u8>, Violation> {
        let length = self.u32()? as usize;
        if length > VALUE_BYTES_MAX {
            return Err(Violation::Field("value"));
        }
        Ok(self.slice(length)?.to_vec())
    }
    pub fn words(&mut self) -> Result<String, Violation> {
        self.text(WORDS_BYTES_MAX, "words")
    }
    /// There is nothing behind the last field.
    pub fn end(self) -> Result<(), Violation> {
        if self.0.is_empty() { Ok(()) } else { Err(Violation::Length) }
    }
}

/// Writes one message.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub fn new(kind: u8) -> Writer {
        Writer(vec![0, 0, 0, 0, kind])
    }
    pub fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }
    pub fn u8(&mut self, n: u8) -> &mut Self {
        self.put(&[n])
    }
    pub fn u16(&mut self, n: u16) -> &mut Self {
        self.put(&n.to_le_bytes())
    }
    pub fn u32(&mut self, n: u32) -> &mut Self {
        self.put(&n.to_le_bytes())
    }
    pub fn u64(&mut self, n: u64) -> &mut Self {
        self.put(&n.to_le_bytes())
    }
    /// Keys, prefixes and names, which are short.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.u16(text.len() as u16).put(text.as_bytes())
    }
    pub fn value(&mut self, value: &[u8]) -> &mut Self {
        self.u32(value.len() as u32).put(value)
    }
    pub fn words(&mut self, words: &str) -> &mut Self {
        self.text(&words[..words.floor_char_boundary(WORDS_BYTES_MAX)])
    }
    pub fn finish(mut self) -> Vec<u8> {
        let length = (self.0.len() - LENGTH_BYTES) as u32;
        self.0[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        self.0
    }
}
