//! An end of the store's protocol that a test moves by hand.
#![allow(dead_code)]

use crate::rig::CLUSTER;
use peristyle_control::Txn;
use peristyle_control::served::wire::*;
use peristyle_rt::{Addr, Buf, Stream, StreamReader, StreamWriter};

/// An end that says what the test wants.
pub struct Raw {
    reader: StreamReader,
    writer: StreamWriter,
    messages: Messages,
}

impl Raw {
    pub async fn connect() -> Raw {
        Raw::new(Stream::connect(&addr()).await.unwrap())
    }
    pub fn new(stream: Stream) -> Raw {
        let (reader, writer) = stream.split();
        Raw { reader, writer, messages: Messages::default() }
    }
    pub async fn welcomed() -> Raw {
        let mut raw = Raw::connect().await;
        raw.say(&hello((1, 1), CLUSTER)).await;
        assert_eq!(raw.hear().await, Some(Answer::Welcome { version: 1 }));
        raw
    }
    /// Whether the other end takes it is its own business.
    pub async fn say(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(16 << 10) {
            let mut buf = Buf::alloc(piece.len()).await;
            buf.copy_from_slice(piece);
            if self.writer.send(buf.freeze().into()).await.is_err() {
                return;
            }
        }
    }
    pub async fn message(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.messages.take(REQUEST_BYTES_MAX).unwrap() {
                return Some(message);
            }
            match self.reader.recv().await {
                Ok(bytes) if !bytes.is_empty() => self.messages.push(&bytes),
                _ => return None,
            }
        }
    }
    /// `None`: the connection has ended.
    pub async fn hear(&mut self) -> Option<Answer> {
        Some(Answer::decode(&self.message().await?).unwrap())
    }
    pub async fn refused(&mut self) -> String {
        match self.hear().await {
            Some(Answer::Refused(words)) => words,
            other => panic!("{other:?}"),
        }
    }
}

pub fn hello(versions: (u16, u16), cluster: &str) -> Vec<u8> {
    Hello { versions, cluster: cluster.into() }.encode()
}

pub fn put(key: &str) -> Txn {
    Txn::default().put(key, "1")
}

/// A message of this kind with these fields, whatever it means.
pub fn made(kind: u8, body: &[u8]) -> Vec<u8> {
    [&(1 + body.len() as u32).to_le_bytes()[..], &[kind], body].concat()
}

/// That of the one node of a simulation.
pub fn addr() -> Addr {
    Addr::Tcp("10.0.0.1:4433".parse().unwrap())
}
