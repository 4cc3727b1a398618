//! Random bytes through every entry point of `fuzz`: nothing panics, and what is accepted keeps its limits.

use peristyle_nvme::fuzz;
use proptest::collection::vec;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn connect_survives_any_bytes(bytes in vec(any::<u8>(), 0..1200)) {
        fuzz::connect(&bytes);
    }

    #[test]
    fn connect_survives_almost_valid_data(qid in 0u8..3, sqsize in any::<u16>(), cntlid in any::<u16>(), noise in vec((64usize..1088, any::<u8>()), 0..4)) {
        let mut bytes = vec![0; 64 + 1024];
        bytes[0] = 0x7f;
        bytes[4] = 1;
        bytes[42] = qid;
        bytes[44..46].copy_from_slice(&sqsize.to_le_bytes());
        bytes[64] = 1;
        bytes[80..82].copy_from_slice(&cntlid.to_le_bytes());
        bytes[320..348].copy_from_slice(b"nqn.2026-11.io.peristyle:fuz");
        bytes[348] = b'z';
        bytes[576..604].copy_from_slice(b"nqn.2026-11.io.peristyle:hos");
        for (at, byte) in noise {
            bytes[at] = byte;
        }
        fuzz::connect(&bytes);
    }

    #[test]
    fn admin_commands_survive_any_bytes(bytes in vec(any::<u8>(), 0..1 + 64 * 8)) {
        fuzz::admin_commands(&bytes);
    }

    #[test]
    fn admin_commands_survive_small_fields(mode in 0u8..4, fields in vec((any::<u8>(), 0u8..4, 0u32..0x140, any::<u16>(), 0u32..6000), 1..12)) {
        let mut bytes = vec![mode];
        for (opcode, nsid, low, high, offset) in fields {
            let mut sqe = [0; 64];
            (sqe[0], sqe[4]) = (opcode, nsid);
            sqe[32..36].copy_from_slice(&(512 * 1024u32).to_le_bytes());
            sqe[40..44].copy_from_slice(&(low | u32::from(high & 0x7ff) << 16).to_le_bytes());
            sqe[44..48].copy_from_slice(&u32::from(high).to_le_bytes());
            sqe[48..52].copy_from_slice(&offset.to_le_bytes());
            bytes.extend(sqe);
        }
        fuzz::admin_commands(&bytes);
    }

    #[test]
    fn io_commands_survive_any_bytes(opcode in 0u8..32, bytes in vec(any::<u8>(), 0..64 + 4096), near in any::<bool>()) {
        let mut bytes = bytes;
        if let (true, Some(first)) = (near, bytes.first_mut()) {
            *first = opcode;
        }
        if near && bytes.len() >= 64 {
            bytes[1] = 0x40;
            bytes[43..48].fill(0);
            bytes[49..52].fill(0);
        }
        fuzz::io_command(&bytes);
    }

    #[test]
    fn dataset_management_survives_any_ranges(bytes in vec(any::<u8>(), 0..4200)) {
        fuzz::dsm_ranges(&bytes);
    }

    #[test]
    fn names_survive_any_bytes(bytes in vec(any::<u8>(), 0..300), text in "nqn\\.[0-9]{4}-[0-9]{2}\\.[ -~]{0,230}") {
        fuzz::name(&bytes);
        fuzz::name(text.as_bytes());
    }
}
