//! Reads what a server sends, strictly: a byte that does not fit is a failed test.
#![allow(dead_code)] // each test file uses its part

use peristyle_nbd::testing::{Driver, small_exports, small_limits, to_transmission};
use peristyle_nbd::wire::{self, Get, chunk};

#[derive(PartialEq, Eq, Debug, Clone)]
pub struct OptionReply {
    pub option: u32,
    pub kind: u32,
    pub data: Vec<u8>,
}

impl OptionReply {
    pub fn new(option: u32, kind: u32, data: &[u8]) -> OptionReply {
        OptionReply { option, kind, data: data.to_vec() }
    }
}

#[derive(PartialEq, Eq, Debug, Clone)]
pub enum Reply {
    Simple { cookie: u64, error: u32 },
    Data { cookie: u64, offset: u64, data: Vec<u8>, done: bool },
    Status { cookie: u64, extents: Vec<(u32, u32)> },
    Error { cookie: u64, error: u32 },
}

/// The 18 bytes of the greeting, then option replies until the bytes end or are none.
pub fn option_replies(sent: &[u8]) -> (Vec<OptionReply>, &[u8]) {
    let mut get = Get(sent);
    let greeting = get.bytes(18).expect("a greeting");
    assert_eq!(greeting, b"NBDMAGICIHAVEOPT\x00\x03");
    let mut replies = Vec::new();
    while get.0.starts_with(&wire::OPTION_REPLY_MAGIC.to_be_bytes()) {
        get.bytes(8).unwrap();
        let (option, kind) = (get.u32().unwrap(), get.u32().unwrap());
        let length = get.u32().unwrap() as usize;
        replies.push(OptionReply { option, kind, data: get.bytes(length).unwrap().to_vec() });
    }
    (replies, get.0)
}

fn u64_of(get: &mut Get) -> u64 {
    wire::get_u64(get.bytes(8).unwrap(), 0)
}

/// Answers of the transmission phase. A simple reply to a read is followed by data, of which `lengths` knows
/// the length by cookie.
pub fn replies(bytes: &[u8], lengths: impl Fn(u64) -> usize) -> Vec<Reply> {
    let (mut get, mut replies) = (Get(bytes), Vec::new());
    while !get.0.is_empty() {
        let magic = get.u32().unwrap();
        if magic == wire::SIMPLE_REPLY_MAGIC {
            let (error, cookie) = (get.u32().unwrap(), u64_of(&mut get));
            replies.push(Reply::Simple { cookie, error });
            if error == 0 && lengths(cookie) > 0 {
                let data = get.bytes(lengths(cookie)).expect("all data").to_vec();
                replies.push(Reply::Data { cookie, offset: 0, data, done: true });
            }
            continue;
        }
        assert_eq!(magic, wire::STRUCTURED_REPLY_MAGIC);
        let (flags, kind, cookie) = (get.u16().unwrap(), get.u16().unwrap(), u64_of(&mut get));
        let length = get.u32().unwrap() as usize;
        let mut body = Get(get.bytes(length).unwrap());
        replies.push(match kind {
            chunk::OFFSET_DATA => {
                let offset = u64_of(&mut body);
                Reply::Data { cookie, offset, data: body.0.to_vec(), done: flags == chunk::DONE }
            }
            chunk::BLOCK_STATUS => {
                assert_eq!((flags, body.u32()), (chunk::DONE, Some(wire::BASE_ALLOCATION_ID)));
                let mut extents = Vec::new();
                while let Some(len) = body.u32() {
                    extents.push((len, body.u32().unwrap()));
                }
                Reply::Status { cookie, extents }
            }
            chunk::ERROR => {
                assert_eq!((flags, length), (chunk::DONE, 6));
                Reply::Error { cookie, error: body.u32().unwrap() }
            }
            other => panic!("chunk type {other}"),
        });
    }
    replies
}

/// A client that has an export open; what was said before is forgotten.
pub fn attached(name: &str, structured: bool) -> Driver {
    let mut driver = Driver::new(small_limits(), small_exports());
    driver.push(&to_transmission(name, structured));
    assert!(driver.connection.export().is_some(), "the export is open");
    driver.sent.clear();
    driver
}
