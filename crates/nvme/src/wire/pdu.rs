//! PDU headers of NVMe/TCP. TCP 3.6.2 (figures 19 to 32); offsets are those of the figures.

use super::{Cqe, Sqe, get_u16, get_u32, put_u16, put_u32};

/// PDU types, TCP 3.6.1 figure 17 (the "PDU-Type" field).
pub mod kind {
    pub const IC_REQ: u8 = 0x00;
    pub const IC_RESP: u8 = 0x01;
    pub const H2C_TERM_REQ: u8 = 0x02;
    pub const C2H_TERM_REQ: u8 = 0x03;
    pub const CAPSULE_CMD: u8 = 0x04;
    pub const CAPSULE_RESP: u8 = 0x05;
    pub const H2C_DATA: u8 = 0x06;
    pub const C2H_DATA: u8 = 0x07;
    pub const R2T: u8 = 0x09;
}

/// Bits of the FLAGS field (byte 1 of the common header), TCP 3.6.2.
pub mod flags {
    /// HDGSTF: a header digest is there.
    pub const HDGST: u8 = 1 << 0;
    /// DDGSTF: a data digest is there.
    pub const DDGST: u8 = 1 << 1;
    /// LAST_PDU of H2CData and C2HData.
    pub const LAST: u8 = 1 << 2;
    /// SUCCESS of C2HData: stands for a successful response capsule, which is not sent.
    pub const SUCCESS: u8 = 1 << 3;
}

/// Bits of DGST in ICReq and ICResp, TCP figures 20 and 21.
pub mod dgst {
    pub const HEADER: u8 = 1 << 0;
    pub const DATA: u8 = 1 << 1;
}

/// HLEN of each PDU, TCP figures 20 to 32.
pub mod hlen {
    pub const IC: usize = 128;
    pub const TERM_REQ: usize = 24;
    pub const CAPSULE_CMD: usize = 72;
    pub const CAPSULE_RESP: usize = 24;
    pub const DATA: usize = 24;
    pub const R2T: usize = 24;
}

/// The common header, TCP 3.6.1 figure 16.
pub const COMMON_BYTES: usize = 8;
/// Longest header of all, ICReq and ICResp.
pub const HEADER_BYTES_MAX: usize = 128;
/// PFV of NVMe/TCP 1.x, TCP figure 20.
pub const PFV_1_0: u16 = 0;
/// HPDA and CPDA go up to 31 (128 bytes), TCP figures 20 and 21.
pub const ALIGNMENT_MAX: u8 = 31;
/// In-capsule data of admin and Fabrics commands, TCP 3.3.1 figure 11: a capsule of 8256 bytes.
pub const ADMIN_IN_CAPSULE_BYTES: u32 = 8192;
/// A TermReq repeats at most this much of the header that was wrong, TCP 3.6.2.5: PLEN up to 152.
pub const TERM_DATA_BYTES_MAX: usize = 128;
pub const TERM_PLEN_MAX: u32 = (hlen::TERM_REQ + TERM_DATA_BYTES_MAX) as u32;
/// Smallest MAXH2CDATA that ICResp may carry, TCP figure 21.
pub const MAXH2CDATA_MIN: u32 = 4096;

const _: () = assert!(COMMON_BYTES + Sqe::BYTES == hlen::CAPSULE_CMD);
const _: () = assert!(COMMON_BYTES + Cqe::BYTES == hlen::CAPSULE_RESP);
const _: () = assert!(TERM_PLEN_MAX == 152);

/// Fatal error status, TCP 3.6.2.5 figure 25 (FES).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Fes {
    InvalidHeaderField = 0x01,
    SequenceError = 0x02,
    HeaderDigestError = 0x03,
    DataOutOfRange = 0x04,
    /// "Data Transfer Limit Exceeded" from a controller, "R2T Limit Exceeded" from a host.
    LimitExceeded = 0x05,
    UnsupportedParameter = 0x06,
}

/// Why a connection is given up: what goes into the TermReq.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fatal {
    pub fes: Fes,
    /// FEI: the lowest offset of a bad field, or the header digest that was received. TCP figure 25.
    pub fei: u32,
}

impl Fatal {
    pub const SEQUENCE: Fatal = Fatal { fes: Fes::SequenceError, fei: 0 };
    pub const OUT_OF_RANGE: Fatal = Fatal { fes: Fes::DataOutOfRange, fei: 0 };
    pub const LIMIT: Fatal = Fatal { fes: Fes::LimitExceeded, fei: 0 };
    pub const fn field(offset: u32) -> Fatal {
        Fatal { fes: Fes::InvalidHeaderField, fei: offset }
    }
    pub const fn digest(received: u32) -> Fatal {
        Fatal { fes: Fes::HeaderDigestError, fei: received }
    }
}

/// Offsets that FEI names.
pub mod offset {
    pub const TYPE: u32 = 0;
    pub const FLAGS: u32 = 1;
    pub const HLEN: u32 = 2;
    pub const PDO: u32 = 3;
    pub const PLEN: u32 = 4;
    pub const PFV: u32 = 8;
    pub const HPDA: u32 = 10;
    pub const DGST: u32 = 11;
    pub const MAXH2CDATA: u32 = 12;
    pub const CCCID: u32 = 8;
    pub const TTAG: u32 = 10;
    pub const DATAO: u32 = 12;
    pub const DATAL: u32 = 16;
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Common {
    /// Byte 0, PDU-Type.
    pub kind: u8,
    /// Byte 1.
    pub flags: u8,
    /// Byte 2: header length, the digest not counted.
    pub hlen: u8,
    /// Byte 3: where data starts, from the first byte of the PDU.
    pub pdo: u8,
    /// Bytes 7:4: length of everything, digests included.
    pub plen: u32,
}

impl Common {
    pub fn decode(bytes: &[u8]) -> Common {
        Common {
            kind: bytes[0],
            flags: bytes[1],
            hlen: bytes[2],
            pdo: bytes[3],
            plen: get_u32(bytes, offset::PLEN as usize),
        }
    }
    pub fn encode(&self, out: &mut [u8]) {
        out[..4].copy_from_slice(&[self.kind, self.flags, self.hlen, self.pdo]);
        put_u32(out, 4, self.plen);
    }
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// ICReq and ICResp: one shape, TCP 3.6.2.1 figure 20 and 3.6.2.2 figure 21.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ic {
    /// Bytes 9:8.
    pub pfv: u16,
    /// Byte 10: HPDA or CPDA, dwords less one.
    pub alignment: u8,
    /// Byte 11.
    pub dgst: u8,
    /// Bytes 15:12: MAXR2T less one (ICReq), MAXH2CDATA in bytes (ICResp).
    pub max: u32,
}

impl Ic {
    pub fn decode(bytes: &[u8]) -> Ic {
        Ic { pfv: get_u16(bytes, 8), alignment: bytes[10], dgst: bytes[11], max: get_u32(bytes, 12) }
    }
    /// `kind` is [`kind::IC_REQ`] or [`kind::IC_RESP`]. No digest: none is negotiated yet.
    pub fn encode(&self, kind: u8, out: &mut [u8]) -> usize {
        let out = &mut out[..hlen::IC];
        out.fill(0);
        Common { kind, hlen: hlen::IC as u8, plen: hlen::IC as u32, ..Common::default() }.encode(out);
        put_u16(out, 8, self.pfv);
        out[10] = self.alignment;
        out[11] = self.dgst;
        put_u32(out, 12, self.max);
        hlen::IC
    }
    pub fn header_digest(&self) -> bool {
        self.dgst & dgst::HEADER != 0
    }
    pub fn data_digest(&self) -> bool {
        self.dgst & dgst::DATA != 0
    }
}

/// What H2CData, C2HData and R2T carry behind the common header: TCP figures 27, 30 and 31.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Data {
    /// Bytes 9:8: CCCID, the command the data belongs to.
    pub cccid: u16,
    /// Bytes 11:10: TTAG of H2CData and R2T, reserved in C2HData.
    pub ttag: u16,
    /// Bytes 15:12: DATAO or R2TO.
    pub offset: u32,
    /// Bytes 19:16: DATAL or R2TL.
    pub length: u32,
}

impl Data {
    pub fn decode(bytes: &[u8]) -> Data {
        Data {
            cccid: get_u16(bytes, 8),
            ttag: get_u16(bytes, 10),
            offset: get_u32(bytes, 12),
            length: get_u32(bytes, 16),
        }
    }
    fn encode(&self, out: &mut [u8]) {
        put_u16(out, 8, self.cccid);
        put_u16(out, 10, self.ttag);
        put_u32(out, 12, self.offset);
        put_u32(out, 16, self.length);
        put_u32(out, 20, 0);
    }
}

/// What both sides agreed on in ICReq and ICResp, as far as it shapes PDUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Format {
    pub header_digest: bool,
    pub data_digest: bool,
    /// HPDA (for C2HData) or CPDA (for capsules and H2CData), dwords less one.
    pub alignment: u8,
}

impl Format {
    pub fn hdgst_bytes(&self) -> usize {
        if self.header_digest { super::digest::DIGEST_BYTES } else { 0 }
    }
    pub fn ddgst_bytes(&self) -> usize {
        if self.data_digest { super::digest::DIGEST_BYTES } else { 0 }
    }
    /// Bytes that the start of data is a multiple of.
    pub fn alignment_bytes(&self) -> usize {
        (usize::from(self.alignment) + 1) * 4
    }
    /// Where the data of a PDU with this header starts, TCP 3.3.1.2 (PDU data offset and padding).
    pub fn pdo(&self, hlen: usize) -> usize {
        (hlen + self.hdgst_bytes()).next_multiple_of(self.alignment_bytes())
    }
    fn header_flag(&self) -> u8 {
        if self.header_digest { flags::HDGST } else { 0 }
    }
    /// Writes common header, digest and padding around a body that is already at `out[8..hlen]`.
    /// Returns how many bytes precede the data.
    fn finish(&self, out: &mut [u8], kind: u8, extra: u8, hlen: usize, data: u32) -> usize {
        let mut common =
            Common { kind, flags: extra | self.header_flag(), hlen: hlen as u8, ..Common::default() };
        let mut start = hlen + self.hdgst_bytes();
        common.plen = start as u32;
        if data > 0 {
            start = self.pdo(hlen);
            common.pdo = start as u8;
            common.plen = (start + self.ddgst_bytes()) as u32 + data;
            if self.data_digest {
                common.flags |= flags::DDGST;
            }
        }
        common.encode(out);
        let end = super::digest::append(out, hlen, self.header_digest);
        out[end..start].fill(0);
        start
    }
    /// A command capsule with `data` bytes of in-capsule data to follow. TCP 3.6.2.6 figure 26.
    pub fn capsule_cmd(&self, out: &mut [u8], sqe: &Sqe, data: u32) -> usize {
        out[COMMON_BYTES..hlen::CAPSULE_CMD].copy_from_slice(&sqe.0);
        self.finish(out, kind::CAPSULE_CMD, 0, hlen::CAPSULE_CMD, data)
    }
    /// TCP 3.6.2.7 figure 28.
    pub fn capsule_resp(&self, out: &mut [u8], cqe: &Cqe) -> usize {
        out[COMMON_BYTES..hlen::CAPSULE_RESP].copy_from_slice(&cqe.0);
        self.finish(out, kind::CAPSULE_RESP, 0, hlen::CAPSULE_RESP, 0)
    }
    /// TCP 3.6.2.8 figure 27 (H2CData); `data.length` bytes follow.
    pub fn h2c_data(&self, out: &mut [u8], data: &Data, last: bool) -> usize {
        data.encode(out);
        self.finish(out, kind::H2C_DATA, if last { flags::LAST } else { 0 }, hlen::DATA, data.length)
    }
    /// TCP 3.6.2.9 figure 30 (C2HData); `data.length` bytes follow. `extra`: LAST and SUCCESS.
    pub fn c2h_data(&self, out: &mut [u8], data: &Data, extra: u8) -> usize {
        data.encode(out);
        self.finish(out, kind::C2H_DATA, extra, hlen::DATA, data.length)
    }
    /// TCP 3.6.2.10 figure 31.
    pub fn r2t(&self, out: &mut [u8], data: &Data) -> usize {
        data.encode(out);
        self.finish(out, kind::R2T, 0, hlen::R2T, 0)
    }
}

/// H2CTermReq or C2HTermReq, TCP 3.6.2.3 and 3.6.2.5: no digest, no PDO, the bad header as data.
pub fn encode_term(kind: u8, fatal: Fatal, header: &[u8], out: &mut [u8]) -> usize {
    let copied = header.len().min(TERM_DATA_BYTES_MAX);
    let len = hlen::TERM_REQ + copied;
    out[..hlen::TERM_REQ].fill(0);
    Common { kind, hlen: hlen::TERM_REQ as u8, plen: len as u32, ..Common::default() }.encode(out);
    // Bytes 9:8 FES, 13:10 FEI (not aligned), 23:14 reserved.
    put_u16(out, 8, fatal.fes as u16);
    put_u32(out, 10, fatal.fei);
    out[hlen::TERM_REQ..len].copy_from_slice(&header[..copied]);
    len
}

/// FES and FEI of a received TermReq header. FES is a number here: it is never used as an index.
pub fn decode_term(bytes: &[u8]) -> (u16, u32) {
    (get_u16(bytes, 8), get_u32(bytes, 10))
}
