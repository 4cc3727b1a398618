//! Inputs to begin a corpus with: right bytes, made by the encoders where they are public and by hand where not.

use peristyle_base::*;
use peristyle_cluster::{BlockPlace, CheckpointPtr, ColumnPlaces, ExtentState, OpenExtent, ShardRecord};
use peristyle_column::format::Entry as SlotEntry;
use peristyle_column::{AllocClass, Geometry, Label, RowSet, RowTable, SlotState};
use peristyle_nbd::testing as nbd;
use peristyle_nbd::wire::{BASE_ALLOCATION, cmd, cmd_flags, opt};
use peristyle_nvme::wire::fabrics::{ConnectData, DISCOVERY_NQN, Nqn};
use peristyle_nvme::wire::opcode::{admin, fctype, nvm};
use peristyle_nvme::wire::{Cid, Sgl, Sqe};
use peristyle_shard::frame::{Entry, FrameKind, Header};

const SUBSYSTEM: &str = "nqn.2026-11.io.peristyle:fuzz";

// NVMe ------------------------------------------------------------------------------------------------------

fn io_sqe(opcode: u8, slba: u64, blocks: u32, bytes: u32) -> Sqe {
    let mut sqe = Sqe::new(opcode, Cid(3));
    sqe.set_nsid(1);
    sqe.set_lbas(slba, blocks);
    sqe.set_sgl(Sgl::transport(bytes));
    sqe
}

fn io_sqes() -> Vec<Sqe> {
    let opcodes = [nvm::READ, nvm::WRITE, nvm::FLUSH, nvm::WRITE_ZEROES, nvm::COMPARE, nvm::VERIFY];
    let mut all: Vec<_> = opcodes.map(|opcode| io_sqe(opcode, 8, 2, 8192)).into();
    let mut trim = io_sqe(nvm::DATASET_MANAGEMENT, 0, 1, 32);
    trim.set_cdw(10, 1);
    trim.set_cdw(11, 4);
    all.push(trim);
    all
}

pub fn io_commands() -> Vec<Vec<u8>> {
    let all = io_sqes();
    let mut seeds: Vec<_> = all.iter().map(|sqe| sqe.0.to_vec()).collect();
    seeds.push(all.iter().flat_map(|sqe| sqe.0).collect());
    seeds
}

pub fn io_commands_with_data() -> Vec<Vec<u8>> {
    let with_ranges = |sqe: Sqe| [&sqe.0[..], &range(8, 16), &range(1 << 19, 64)].concat();
    io_sqes().into_iter().map(with_ranges).collect()
}

/// One range of Dataset Management: attributes, blocks, first block.
fn range(slba: u64, blocks: u32) -> Vec<u8> {
    [&[0; 4][..], &blocks.to_le_bytes(), &slba.to_le_bytes()].concat()
}

pub fn dsm_ranges() -> Vec<Vec<u8>> {
    vec![[&[0][..], &range(8, 16)].concat(), [&[1][..], &range(0, 1), &range((1 << 20) - 1, 1)].concat()]
}

pub fn connects() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (qid, cntlid, subsystem) in [(0, 0xffff, SUBSYSTEM), (0, 0xffff, DISCOVERY_NQN), (1, 1, SUBSYSTEM)] {
        let mut sqe = Sqe::fabrics(fctype::CONNECT, Cid(0));
        sqe.set_cdw(10, qid << 16);
        sqe.set_cdw(11, 31);
        sqe.set_cdw(12, 30_000);
        sqe.set_sgl(Sgl::transport(1024));
        let mut data = vec![0; 1024];
        data[..16].fill(1);
        data[16..18].copy_from_slice(&(cntlid as u16).to_le_bytes());
        data[256..256 + subsystem.len()].copy_from_slice(subsystem.as_bytes());
        let host = b"nqn.2026-11.io.peristyle:host";
        data[512..512 + host.len()].copy_from_slice(host);
        seeds.push([&sqe.0[..], &data].concat());
    }
    debug_assert_eq!(size_of::<ConnectData>(), 1024);
    seeds
}

pub fn admin_commands() -> Vec<Vec<u8>> {
    let sqe = |opcode, cdw10: u32, cdw11: u32| {
        let mut sqe = Sqe::new(opcode, Cid(9));
        sqe.set_nsid(1);
        sqe.set_cdw(10, cdw10);
        sqe.set_cdw(11, cdw11);
        sqe.set_sgl(Sgl::transport(4096));
        sqe
    };
    let property = |kind, offset, value| {
        let mut sqe = Sqe::fabrics(kind, Cid(4));
        sqe.set_cdw(11, offset);
        sqe.set_cdw(12, value);
        sqe
    };
    let mut all: Vec<_> = [0, 1, 2, 3, 5, 6, 0x1c].map(|cns| sqe(admin::IDENTIFY, cns, 0)).into();
    all.extend([1, 2, 3, 4, 5, 12, 0x70].map(|lid| sqe(admin::GET_LOG_PAGE, lid | 0x3ff << 16, 0)));
    all.extend([1, 4, 6, 7, 11, 15, 0x10].map(|fid| sqe(admin::GET_FEATURES, fid, 0)));
    all.extend([1, 7, 11, 15].map(|fid| sqe(admin::SET_FEATURES, fid, 0x0007_0007)));
    all.extend([admin::ASYNC_EVENT_REQUEST, admin::KEEP_ALIVE, admin::ABORT].map(|op| sqe(op, 0, 0)));
    all.extend([property(fctype::PROPERTY_GET, 0, 0), property(fctype::PROPERTY_SET, 0x14, 0x0046_0001)]);
    let mut seeds = Vec::new();
    for mode in 0..4 {
        for sqes in all.chunks(4) {
            seeds.push(std::iter::once(mode).chain(sqes.iter().flat_map(|s| s.0)).collect());
        }
    }
    seeds
}

pub fn names() -> Vec<Vec<u8>> {
    let nqn = Nqn::new(SUBSYSTEM).expect("a name written above");
    vec![nqn.padded().to_vec(), SUBSYSTEM.as_bytes().to_vec(), DISCOVERY_NQN.as_bytes().to_vec()]
}

// NBD -------------------------------------------------------------------------------------------------------

pub fn nbd_connections() -> Vec<Vec<u8>> {
    let mut requests = nbd::request(cmd::WRITE, cmd_flags::FUA, 1, 4096, 64);
    requests.extend([7; 64]);
    for (kind, flags, length) in [
        (cmd::READ, cmd_flags::DF, 8192),
        (cmd::FLUSH, 0, 0),
        (cmd::TRIM, 0, 4096),
        (cmd::WRITE_ZEROES, cmd_flags::NO_HOLE, 4096),
        (cmd::BLOCK_STATUS, 0, 65536),
        (cmd::CACHE, 0, 4096),
        (cmd::DISC, 0, 0),
    ] {
        requests.extend(nbd::request(kind, flags, 2, 4096, length));
    }
    let mut negotiation = 3_u32.to_be_bytes().to_vec();
    negotiation.extend(nbd::option(opt::LIST, &[]));
    negotiation.extend(nbd::option(opt::STARTTLS, &[]));
    negotiation.extend(nbd::option(opt::INFO, &nbd::go_data("demo", &[0, 1, 2, 3])));
    let meta = [
        &4_u32.to_be_bytes()[..],
        b"demo",
        &1_u32.to_be_bytes(),
        &15_u32.to_be_bytes(),
        BASE_ALLOCATION.as_bytes(),
    ];
    negotiation.extend(nbd::option(opt::LIST_META_CONTEXT, &meta.concat()));
    negotiation.extend(nbd::option(opt::EXPORT_NAME, b"demo"));
    let mut seeds = vec![[&[0xe0][..], &negotiation, &requests].concat()];
    for mode in [0xe4, 0x05, 0x0d, 0x14, 0x17, 0x3c, 0xf5] {
        seeds.push([&[mode][..], &requests].concat());
    }
    for structured in [false, true] {
        seeds.push([&[0xe0][..], &nbd::to_transmission("demo", structured), &requests].concat());
    }
    seeds
}

// Disk and control store ------------------------------------------------------------------------------------

/// The device for which the fuzz entries of `column` check.
const DEVICE: Uuid = Uuid([7; 16]);

fn column_name() -> ColumnName {
    ColumnName { shard: ShardId(3), extent: ExtentId(77), column: ColumnIndex(2), nonce: Nonce([9; 16]) }
}

pub fn labels() -> Vec<Vec<u8>> {
    let geometry = Geometry::of(4 * GIB).expect("a device of 4 GiB has room");
    let label = Label { cluster: Uuid([1; 16]), device: DEVICE, generation: 3, geometry };
    let encode = |copy| {
        let mut block = vec![0; BLOCK_BYTES];
        label.encode(copy, &mut block);
        block
    };
    vec![encode(0), encode(1)]
}

pub fn pages() -> Vec<Vec<u8>> {
    let states = [SlotState::Open, SlotState::Sealed, SlotState::Filling];
    let mut page = Vec::new();
    for (index, state) in states.into_iter().enumerate() {
        let sealed = state == SlotState::Sealed;
        let entry = SlotEntry {
            state,
            fenced: sealed,
            class: AllocClass::Collection,
            name: column_name(),
            scheme: Scheme::new(4, 2),
            epoch: Epoch(5),
            rows: RowIndex(if sealed { 512 } else { 0 }),
            column_crc: if sealed { 0xdead_beef } else { 0 },
            version: 8,
            ..SlotEntry::default()
        };
        let mut bytes = [0; 64];
        entry.encode(DEVICE, SlotIndex(index as u32), &mut bytes);
        page.extend(bytes);
    }
    let mut free = [0; 64];
    SlotEntry { zeroed: true, version: 2, ..SlotEntry::default() }.encode(DEVICE, SlotIndex(3), &mut free);
    vec![page[..64].to_vec(), [&page[..], &free].concat()]
}

pub fn row_tables() -> Vec<Vec<u8>> {
    let mut table = RowTable {
        name: column_name(),
        rows: RowIndex(3),
        holes: RowSet::default(),
        crcs: [0; COLUMN_ROWS as usize],
    };
    table.crcs[0] = 0x1234_5678;
    table.crcs[2] = 7;
    table.holes.insert(1);
    let mut block = vec![0; BLOCK_BYTES];
    table.encode(DEVICE, SlotIndex(0), &mut block);
    vec![block]
}

pub fn frame_headers() -> Vec<Vec<u8>> {
    let layer = LayerId(4);
    let lists = [
        vec![Entry::Data { layer, block: 17, crc: 5 }],
        vec![Entry::Zero { layer, block: 0, count: 256 }, Entry::Data { layer, block: 1 << 40, crc: 5 }],
        vec![
            Entry::LayerCreated { layer, blocks: 1 << 20 },
            Entry::LayerResized { layer, blocks: 1 << 21 },
            Entry::LayerDropped { layer },
        ],
        (0..200).map(|block| Entry::Data { layer, block, crc: block as u32 }).collect(),
        (0..9).map(|first| Entry::Map { layer, level: 0, first: first * 256, crc: 1 }).collect(),
    ];
    let kinds = [FrameKind::User, FrameKind::User, FrameKind::User, FrameKind::User, FrameKind::Meta];
    let encode = |(entries, kind): (&Vec<Entry>, FrameKind)| {
        let data = entries.iter().filter(|e| matches!(e, Entry::Data { .. } | Entry::Map { .. })).count();
        let header = Header {
            kind,
            nonce: Nonce([6; 16]),
            shard: ShardId(1),
            epoch: Epoch(2),
            extent: ExtentId(33),
            seq: Seq(1000),
            committed: Seq(998),
            cut: Seq(500),
            first_row: RowIndex(10),
            scheme: Scheme::new(4, 2).expect("a scheme"),
            blocks: data as u16,
            entries: entries.len() as u16,
        };
        let mut block = vec![0; BLOCK_BYTES];
        header.encode(entries.iter(), &mut block);
        block
    };
    lists.iter().zip(kinds).map(encode).collect()
}

/// The root stream of a checkpoint with two layers.
pub fn roots() -> Vec<Vec<u8>> {
    let mut root = b"PERIROOT".to_vec();
    root.extend(1_u32.to_le_bytes());
    root.extend(2_u32.to_le_bytes());
    root.extend([9, 0, 0, 0, 0, 0, 0, 0].iter().chain(&[0; 8]));
    for (layer, pages) in [(1_u32, 2_u32), (2, 1)] {
        root.extend(layer.to_le_bytes());
        root.extend(pages.to_le_bytes());
        root.extend((u64::from(pages) * 65_536).to_le_bytes());
        root.extend((0..pages * 16).map(|byte| byte as u8));
    }
    vec![root]
}

pub fn peer_requests() -> Vec<Vec<u8>> {
    peristyle_cluster::peer::fuzz::seeds().0
}

pub fn peer_answers() -> Vec<Vec<u8>> {
    peristyle_cluster::peer::fuzz::seeds().1
}

pub fn store_requests() -> Vec<Vec<u8>> {
    peristyle_control::served::fuzz::seeds().0
}

pub fn store_answers() -> Vec<Vec<u8>> {
    peristyle_control::served::fuzz::seeds().1
}

pub fn records() -> Vec<Vec<u8>> {
    let scheme = Scheme::new(2, 1).expect("a scheme");
    let place = |extent: u64, c: usize| ColumnPlace {
        device: Uuid([c as u8 + 1; 16]),
        slot: SlotIndex(extent as u32),
    };
    let extent = |extent, state| OpenExtent {
        extent: ExtentId(extent),
        scheme,
        nonce: Nonce([5; 16]),
        epoch: Epoch(2),
        state,
        columns: (0..scheme.width()).map(|c| place(extent, c)).collect::<ColumnPlaces>(),
    };
    let mut record = ShardRecord {
        shard: ShardId(7),
        epoch: Epoch(2),
        owner: NodeId(1),
        checkpoint: None,
        committed: Seq(12),
        next_extent: ExtentId(40),
        open_set: vec![extent(38, ExtentState::Open), extent(39, ExtentState::Ready)],
    };
    let encode = |record: &ShardRecord| {
        let mut bytes = Vec::new();
        record.encode(&mut bytes).expect("within the limits");
        bytes
    };
    let first = encode(&record);
    record.open_set.clear();
    record.checkpoint = Some(CheckpointPtr {
        seq: Seq(9),
        mark: ExtentId(30),
        blocks: 2,
        root: vec![BlockPlace::new(ExtentId(20), ColumnIndex(1), RowIndex(8), 0xdead_beef)],
    });
    vec![first, encode(&record)]
}

#[cfg(test)]
mod tests {
    use crate::TARGETS;

    #[test]
    fn every_target_begins_with_an_input_of_our_own_making() {
        for target in TARGETS {
            let seeds = (target.seeds)();
            assert!(!seeds.is_empty(), "{} has no seed", target.name);
            seeds.iter().for_each(|seed| (target.run)(seed));
        }
    }
}
