//! Numbers and layouts of the protocol. Everything is big-endian.

/// `NBDMAGIC`. Protocol, "Fixed newstyle negotiation".
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: in the greeting and before every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

pub const CLIENT_FLAGS_BYTES: usize = 4;
pub const OPTION_HEADER_BYTES: usize = 16;
pub const REQUEST_BYTES: usize = 28;
pub const SIMPLE_REPLY_BYTES: usize = 16;
pub const CHUNK_HEADER_BYTES: usize = 20;
/// Longest string, an export's name for one. Protocol, "Values": 4096 bytes.
pub const STRING_BYTES_MAX: usize = 4096;
/// Reserved zeros behind the answer to EXPORT_NAME, unless both sides said NO_ZEROES.
pub const EXPORT_NAME_ZEROES: usize = 124;

/// Handshake flags, ours and the client's.
pub mod handshake {
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Option types. Protocol, "Option types".
pub mod opt {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Option reply types. Protocol, "Option reply types".
pub mod rep {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    const ERROR: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERROR | 1;
    pub const ERR_INVALID: u32 = ERROR | 3;
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
}

/// Information types of INFO and GO.
pub mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags of an export. Protocol, "Transmission flags".
pub mod export_flags {
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Request types. Protocol, "Request types".
pub mod cmd {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Command flags. Protocol, "Command flags".
pub mod cmd_flags {
    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Structured reply chunks. Protocol, "Structured reply types".
pub mod chunk {
    pub const DONE: u16 = 1 << 0;
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const BLOCK_STATUS: u16 = 5;
    pub const ERROR: u16 = 1 << 15 | 1;
}

/// What `base:allocation` says of an extent. Protocol, "Metadata querying".
pub mod allocation {
    pub const HOLE: u32 = 1 << 0;
    pub const ZERO: u32 = 1 << 1;
}
pub const BASE_ALLOCATION: &str = "base:allocation";
/// The identifier that we give this context in the replies.
pub const BASE_ALLOCATION_ID: u32 = 1;

/// Error values of replies. Protocol, "Error values".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Errno {
    /// The export is read-only.
    Perm = 1,
    Io = 5,
    NoMem = 12,
    Inval = 22,
    /// Beyond the end of the export, or the pool is full.
    NoSpc = 28,
    /// The data does not fit one chunk.
    Overflow = 75,
    /// FAST_ZERO cannot be done fast.
    NotSup = 95,
    Shutdown = 108,
}

pub fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}
pub fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
pub fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Writes fields one behind the other into a slice that is long enough.
pub struct Put<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl<'a> Put<'a> {
    pub fn new(out: &'a mut [u8]) -> Put<'a> {
        Put { out, at: 0 }
    }
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
        self
    }
    pub fn u16(self, x: u16) -> Self {
        self.bytes(&x.to_be_bytes())
    }
    pub fn u32(self, x: u32) -> Self {
        self.bytes(&x.to_be_bytes())
    }
    pub fn u64(self, x: u64) -> Self {
        self.bytes(&x.to_be_bytes())
    }
    /// How many bytes were written.
    pub fn done(self) -> usize {
        self.at
    }
}

/// Reads fields one behind the other; `None` when the bytes end early.
#[derive(Clone, Copy)]
pub struct Get<'a>(pub &'a [u8]);

impl<'a> Get<'a> {
    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }
    pub fn u16(&mut self) -> Option<u16> {
        self.bytes(2).map(|b| get_u16(b, 0))
    }
    pub fn u32(&mut self) -> Option<u32> {
        self.bytes(4).map(|b| get_u32(b, 0))
    }
    /// A length and that many bytes of UTF-8 without NUL, at most [`STRING_BYTES_MAX`].
    pub fn string(&mut self) -> Option<&'a str> {
        let length = self.u32()? as usize;
        if length > STRING_BYTES_MAX {
            return None;
        }
        check_string(self.bytes(length)?)
    }
}

/// Protocol, "Values": UTF-8, no NUL, at most 4096 bytes.
pub fn check_string(bytes: &[u8]) -> Option<&str> {
    let sound = bytes.len() <= STRING_BYTES_MAX && !bytes.contains(&0);
    std::str::from_utf8(bytes).ok().filter(|_| sound)
}
