//! Golden bytes of every PDU (`testdata/nvme`), made from the specification's figures without our code.

use peristyle_nvme::wire::digest::data_digest;
use peristyle_nvme::wire::opcode::nvm;
use peristyle_nvme::wire::pdu::{self, Common, Data, Fatal, Fes, Format, Ic, flags, kind};
use peristyle_nvme::wire::{Cid, Cqe, Sgl, Sqe, Status};

macro_rules! golden {
    ($name:literal) => {
        parse(include_str!(concat!("../../../testdata/nvme/", $name, ".hex")))
    };
}

fn parse(text: &str) -> Vec<u8> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(str::split_whitespace)
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}

const BOTH: Format = Format { header_digest: true, data_digest: true, alignment: 0 };

/// Encodes a PDU the way the machines do: header, then payload, then digest.
fn encode(data: &[u8], digest: bool, header: impl FnOnce(&mut [u8]) -> usize) -> Vec<u8> {
    // Whatever stands in the buffer must not show through.
    let mut out = vec![0xff; 160];
    let len = header(&mut out);
    out.truncate(len);
    out.extend_from_slice(data);
    if digest {
        out.extend_from_slice(&data_digest([data]));
    }
    out
}

#[test]
fn icreq_and_icresp() {
    let req = Ic { pfv: 0, alignment: 3, dgst: 3, max: 3 };
    let resp = Ic { pfv: 0, alignment: 0, dgst: 3, max: 131_072 };
    for (golden, kind, ic) in
        [(golden!("icreq"), kind::IC_REQ, req), (golden!("icresp"), kind::IC_RESP, resp)]
    {
        assert_eq!(encode(&[], false, |out| ic.encode(kind, out)), golden);
        assert_eq!(Ic::decode(&golden), ic);
        assert_eq!(Common::decode(&golden), Common { kind, flags: 0, hlen: 128, pdo: 0, plen: 128 });
    }
}

#[test]
fn term_requests_carry_the_header_that_was_wrong() {
    let to_host = golden!("c2htermreq");
    let fatal = Fatal::field(2);
    let cause = [4, 0, 71, 0, 72, 0, 0, 0];
    assert_eq!(encode(&[], false, |out| pdu::encode_term(kind::C2H_TERM_REQ, fatal, &cause, out)), to_host);
    assert_eq!(pdu::decode_term(&to_host), (1, 2));
    let to_target = golden!("h2ctermreq");
    let fatal = Fatal { fes: Fes::HeaderDigestError, fei: 0x0403_0201 };
    let cause = [5, 1, 24, 0, 28, 0, 0, 0];
    assert_eq!(encode(&[], false, |out| pdu::encode_term(kind::H2C_TERM_REQ, fatal, &cause, out)), to_target);
    assert_eq!(pdu::decode_term(&to_target), (3, 0x0403_0201));
}

#[test]
fn capsules() {
    let data: Vec<u8> = (0..512).map(|i| i as u8).collect();
    let mut write = Sqe::new(nvm::WRITE, Cid(0x1234));
    write.set_nsid(1);
    write.set_lbas(0x0102_0304_0506_0708, 1);
    write.set_sgl(Sgl::in_capsule(512));
    assert_eq!(encode(&data, true, |out| BOTH.capsule_cmd(out, &write, 512)), golden!("capsulecmd"));

    let mut read = Sqe::new(nvm::READ, Cid(7));
    read.set_nsid(1);
    read.set_lbas(0, 8);
    read.set_sgl(Sgl::transport(4096));
    let plain = Format::default();
    assert_eq!(encode(&[], false, |out| plain.capsule_cmd(out, &read, 0)), golden!("capsulecmd-read"));

    let cqe = Cqe::new(Cid(0x1234), Status::INVALID_FIELD.with_dnr(), 5, 6, 9);
    assert_eq!(encode(&[], false, |out| BOTH.capsule_resp(out, &cqe)), golden!("capsuleresp"));
}

#[test]
fn data_and_r2t() {
    let data = [0xab; 8];
    let h2c = Data { cccid: 0x1234, ttag: 0x0801, offset: 4096, length: 8 };
    assert_eq!(encode(&data, true, |out| BOTH.h2c_data(out, &h2c, true)), golden!("h2cdata"));
    assert_eq!(Data::decode(&golden!("h2cdata")), h2c);

    let c2h = Data { cccid: 0x1234, ttag: 0, offset: 0, length: 8 };
    let aligned = Format { alignment: 3, ..BOTH };
    let header = |out: &mut [u8]| aligned.c2h_data(out, &c2h, flags::LAST | flags::SUCCESS);
    assert_eq!(encode(&data, true, header), golden!("c2hdata"));

    let r2t = Data { cccid: 0x1234, ttag: 0x0801, offset: 0, length: 16384 };
    assert_eq!(encode(&[], false, |out| BOTH.r2t(out, &r2t)), golden!("r2t"));
    assert_eq!(Data::decode(&golden!("r2t")), r2t);
}
