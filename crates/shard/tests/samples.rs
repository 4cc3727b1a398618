//! One sample of each structure of each format version, read and written for ever, and made from the tables of
//! `docs/disk-format.md` without our code. And where the blocks of a frame lie, computed once more by hand.

use crate::pool::*;
use peristyle_base::{
    BLOCK_BYTES, ColumnIndex, Epoch, ExtentId, LayerId, Nonce, RowIndex, Scheme, Seq, ShardId,
};
use peristyle_rt::sim;
use peristyle_shard::checkpoint::root::{
    Counts, Root, decode_changes, decode_directory, encode_changes, encode_directory,
};
use peristyle_shard::frame::{Entry, FrameKind, Header, NotHeader};
use peristyle_shard::map::{
    FANOUT, LayerTable, Logged, Lookup, PageAt, Ptr, View, decode_block, encode_block,
};

const USER: &[u8] = include_bytes!("../testdata/frame-header-v1.bin");
const CHECKPOINT: &[u8] = include_bytes!("../testdata/frame-header-checkpoint-v1.bin");
const RELOCATION: &[u8] = include_bytes!("../testdata/frame-header-relocation-v1.bin");
const MAP_BLOCK: &[u8] = include_bytes!("../testdata/map-block-v1.bin");
const ROOT: &[u8] = include_bytes!("../testdata/checkpoint-root-v1.bin");
const ROOT_2: &[u8] = include_bytes!("../testdata/checkpoint-root-v2.bin");
const ROOT_3: &[u8] = include_bytes!("../testdata/checkpoint-root-v3.bin");
const SNAPSHOTS: &[u8] = include_bytes!("../testdata/frame-header-snapshots-v1.bin");
const CHANGES: &[u8] = include_bytes!("../testdata/checkpoint-changes-v1.bin");
const DIRECTORY: &[u8] = include_bytes!("../testdata/checkpoint-directory-v1.bin");

const NONCE: Nonce = Nonce(*b"sixteen secrets!");

fn user() -> (Header, Vec<Entry>) {
    let header = Header {
        kind: FrameKind::User,
        nonce: NONCE,
        shard: ShardId(0x0102_0304),
        epoch: Epoch(0x1122_3344_5566_7788),
        extent: ExtentId(0x0a0b_0c0d_0e0f),
        seq: Seq(0x5152_5354_5556_5758),
        committed: Seq(0x5152_5354_5556_5757),
        cut: Seq(0x4142_4344_4546_4748),
        first_row: RowIndex(300),
        scheme: Scheme::new(4, 2).unwrap(),
        blocks: 5,
        entries: 9,
    };
    let layer = LayerId(0x1112_1314);
    let mut entries = vec![
        Entry::Zero { layer, block: 0x2122_2324_2526, count: 0x3132_3334 },
        Entry::LayerCreated { layer: LayerId(2), blocks: 0x4142_4344_4546 },
        Entry::LayerDropped { layer: LayerId(3) },
        Entry::LayerResized { layer: LayerId(4), blocks: 1000 },
    ];
    entries.extend((0..5).map(|i| Entry::Data { layer, block: 7 + i, crc: 0xa0b0_c0d0 + i as u32 }));
    (header, entries)
}

fn checkpoint() -> (Header, Vec<Entry>) {
    let header = Header {
        kind: FrameKind::Meta,
        epoch: Epoch(7),
        extent: ExtentId(8),
        seq: Seq(0),
        committed: Seq(99),
        cut: Seq(50),
        first_row: RowIndex(509),
        scheme: Scheme::new(2, 1).unwrap(),
        blocks: 3,
        entries: 3,
        ..user().0
    };
    let map = |layer, level, first, crc| Entry::Map { layer: LayerId(layer), level, first, crc };
    let entries = vec![
        map(9, 1, 256 * 256 * 3, 0xdead_beef),
        map(9, 0, 256 * 5, 0xfeed_face),
        map(0, 2, 47, 0x0102_0304),
    ];
    (header, entries)
}

fn relocation() -> (Header, Vec<Entry>) {
    let header = Header {
        kind: FrameKind::Relocation,
        epoch: Epoch(7),
        extent: ExtentId(8),
        seq: Seq(12),
        committed: Seq(11),
        cut: Seq(0),
        first_row: RowIndex(511),
        scheme: Scheme::new(16, 4).unwrap(),
        blocks: 0,
        entries: 0,
        ..user().0
    };
    (header, Vec::new())
}

/// The events of snapshots, in a frame without data.
fn snapshots() -> (Header, Vec<Entry>) {
    let header = Header {
        epoch: Epoch(7),
        extent: ExtentId(8),
        seq: Seq(12),
        committed: Seq(11),
        cut: Seq(5),
        blocks: 0,
        entries: 5,
        ..user().0
    };
    let (l, new) = (LayerId, |n: u32| LayerId(0x8000_0000 + n));
    let entries = vec![
        Entry::SnapshotTaken { volume: l(0x11), snapshot: l(0x2122_2324), new: new(1) },
        Entry::SnapshotCloned { volume: l(0x12), snapshot: l(0x22), new: new(2) },
        Entry::RolledBack { volume: l(0x13), snapshot: l(0x23), new: new(3) },
        Entry::LayerMerged { layer: new(4) },
        Entry::LayerParted { volume: l(0x15) },
    ];
    (header, entries)
}

#[test]
fn frame_headers_of_version_1_are_read_and_written_as_they_always_were() {
    for (bytes, (header, entries)) in
        [(USER, user()), (CHECKPOINT, checkpoint()), (RELOCATION, relocation()), (SNAPSHOTS, snapshots())]
    {
        let mut read = Vec::new();
        assert_eq!(Header::decode(bytes, &NONCE, &mut read), Ok(header));
        assert_eq!(read, entries);
        let mut out = vec![0xff; BLOCK_BYTES];
        header.encode(entries.iter(), &mut out);
        assert!(out == bytes, "{:?}", header.kind);
    }
}

/// The sample with some bytes changed and its checksum made right again.
fn changed(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut block = USER.to_vec();
    block[at..at + bytes.len()].copy_from_slice(bytes);
    block[12..16].fill(0);
    let crc = peristyle_base::crc32c(&block);
    block[12..16].copy_from_slice(&crc.to_le_bytes());
    block
}

#[test]
fn what_version_1_never_writes_in_a_header_is_refused() {
    let entry = |i: usize| 96 + 16 * i;
    let refused = [
        ("another version", changed(8, &[2])),
        ("an unknown kind of frame", changed(10, &[3])),
        ("a byte that is zero", changed(11, &[1])),
        ("more data than a frame has", changed(36, &[241])),
        ("rows beyond the column", changed(72, &[0xff, 1])),
        ("no scheme", changed(74, &[0])),
        ("bytes that are zero", changed(76, &[1])),
        ("bytes that are zero, behind the cut", changed(95, &[1])),
        ("an unknown kind of entry", changed(entry(0) + 11, &[11])),
        ("a snapshot whose number is too long", changed(entry(0) + 11, &[6])),
        ("an entry's byte that is zero", changed(entry(0) + 10, &[1])),
        ("a range of no blocks", changed(entry(0) + 12, &[0; 4])),
        ("a size with a value", changed(entry(1) + 12, &[1])),
        ("a dropped layer with a block", changed(entry(2) + 4, &[1])),
        ("data before a range", changed(entry(3) + 11, &[1])),
        ("something behind the entries", changed(entry(9), &[1])),
        ("something at the end", changed(4095, &[1])),
    ];
    for (what, block) in refused {
        let mut entries = Vec::new();
        assert_eq!(Header::decode(&block, &NONCE, &mut entries), Err(NotHeader::Damaged), "{what}");
        assert!(entries.is_empty(), "{what}");
    }
    assert_eq!(changed(0, b"P"), USER, "and what was not changed is the sample");
}

fn pointer(i: u64) -> Ptr {
    let (column, row) = (ColumnIndex((i % 20) as u8), RowIndex((i * 7 % 512) as u16));
    match i % 4 {
        0 => Ptr::ABSENT,
        1 => Ptr::ZERO,
        2 => Ptr::new(ExtentId(i + 1), column, row, (i as u32).wrapping_mul(0x9e37_79b9)),
        _ => Ptr::new(ExtentId((1 << 48) - 2 - i), ColumnIndex(19), RowIndex(511), u32::MAX),
    }
}

#[test]
fn map_blocks_of_version_1_are_read_and_written_as_they_always_were() {
    let read = decode_block(MAP_BLOCK);
    let mut out = vec![0xff; BLOCK_BYTES];
    for i in 0..FANOUT {
        assert_eq!(read[i], pointer(i as u64), "pointer {i}");
    }
    assert_eq!((read[0].lookup(), read[1].lookup()), (Lookup::Absent, Lookup::Zero));
    encode_block(&read, &mut out);
    assert!(out == MAP_BLOCK);
}

#[test]
fn checkpoint_roots_of_version_1_are_read_as_they_always_were() {
    let root = Root::decode(ROOT).unwrap();
    assert_eq!((root.seq, root.extents), (Seq(0x6162_6364_6566_6768), None));
    let first = Ptr::new(ExtentId(10), ColumnIndex(0), RowIndex(1), 0x1111_1111);
    let pages = (0..300).filter_map(|n| match pointer(n).lookup() {
        Lookup::Data(home) => Some((n as u32, PageAt::Home(home))),
        Lookup::Zero => Some((n as u32, PageAt::Zero)),
        _ => None,
    });
    let expect = [
        (LayerId(1), 5, vec![(0, PageAt::Home(first))]),
        (LayerId(2), 65_537, vec![(1, PageAt::Zero)]),
        (LayerId(0xffff_fffe), 65_536 * 300, pages.collect()),
    ];
    assert_eq!(root.layers, expect);
    for (what, at, byte) in
        [("version", 8, 4), ("zero", 24, 1), ("behind the layers", 8191, 1), ("pages", 36, 2)]
    {
        let mut bytes = ROOT.to_vec();
        bytes[at] = byte;
        assert!(Root::decode(&bytes).is_err(), "{what}");
    }
}

fn place(extent: u64, column: u8, row: u16, crc: u32) -> Ptr {
    Ptr::new(ExtentId(extent), ColumnIndex(column), RowIndex(row), crc)
}

#[test]
fn the_parts_of_a_checkpoint_are_what_they_were() {
    let root = Root {
        seq: Seq(0x6162_6364_6566_6768),
        layers: vec![
            (LayerId(1), 5, vec![(0, PageAt::Home(place(10, 0, 1, 0x1111_1111)))]),
            (
                LayerId(2),
                65_536 * 300,
                vec![(7, PageAt::Zero), (299, PageAt::Home(place((1 << 48) - 2, 19, 511, u32::MAX)))],
            ),
            (LayerId(u32::MAX), 65_536, vec![(0, PageAt::Home(place(11, 1, 3, 0x2222_2222)))]),
        ],
        table: None,
        changes: vec![place(12, 0, 0, 0x3333_3333), place(13, 0, 5, 0x4444_4444)],
        listed: 0x01_0203_0405,
        extents: Some(vec![
            (ExtentId(10), Counts { live: 100, map: 2 }),
            (ExtentId(1 << 47), Counts { live: u32::MAX, map: 0 }),
        ]),
    };
    assert_eq!(Root::decode(ROOT_2), Ok(root.clone()));
    assert!(root.encode() == ROOT_2);
    let changes = [
        Logged::Set {
            layer: LayerId(3),
            block: 0x2122_2324_2526,
            ptr: place(9, 2, 7, 0xa0b0_c0d0),
            counted: true,
        },
        Logged::Set { layer: LayerId(4), block: 6, ptr: Ptr::ZERO, counted: false },
        Logged::Void { layer: LayerId(5), leaf: 0x31_3233_3435, count: u32::MAX },
    ];
    assert_eq!(decode_changes(CHANGES).as_deref(), Ok(&changes[..]));
    let mut block = [0; BLOCK_BYTES];
    encode_changes(&changes, &mut block);
    assert!(block == CHANGES);
    assert_eq!(decode_directory(7, DIRECTORY), Ok(root.changes.clone()));
    encode_directory(7, &root.changes, &mut block);
    assert!(block == DIRECTORY);
}

#[test]
fn a_root_of_version_3_has_a_table_of_layers_that_is_validated() {
    let (l, top) = (LayerId, LayerId(0x8000_0004));
    let view = |layer, writable| View { layer, writable };
    let root = Root {
        seq: Seq(0x6162_6364_6566_6768),
        layers: vec![
            (l(1), 70_000, vec![(0, PageAt::Home(place(10, 0, 1, 0x1111_1111))), (1, PageAt::Zero)]),
            (top, 70_000, vec![]),
            (l(u32::MAX), 65_536, vec![(0, PageAt::Home(place(11, 1, 3, 0x2222_2222)))]),
        ],
        table: Some(LayerTable {
            layers: vec![(l(1), None, 100), (top, Some(l(1)), -1), (l(u32::MAX), None, 0)],
            views: vec![(l(1), view(top, true)), (l(2), view(l(1), false))],
            aliases: vec![(l(0x8000_0003), l(1))],
            origins: vec![l(1)],
            next_layer: 0x8000_0005,
            freeing: -2,
        }),
        changes: vec![place(12, 0, 0, 0x3333_3333)],
        listed: 9,
        extents: Some(vec![(ExtentId(10), Counts { live: 99, map: 2 })]),
    };
    assert_eq!(Root::decode(ROOT_3), Ok(root.clone()));
    assert!(root.encode() == ROOT_3);
    let first_layer = 64;
    let refused = [
        ("a layer that is its own parent", first_layer + 16, 1),
        ("a parent that is not there", first_layer + 16, 9),
        ("a view of no layer", first_layer + 32 + 48 + 32 + 56 + 4, 9),
        ("a kind of view", first_layer + 32 + 48 + 32 + 56 + 8, 2),
        ("an alias of itself", first_layer + 32 + 48 + 32 + 56 + 32, 1),
    ];
    for (what, at, byte) in refused {
        let mut bytes = ROOT_3.to_vec();
        bytes[at..at + 4].copy_from_slice(&[byte, 0, 0, 0]);
        assert!(Root::decode(&bytes).is_err(), "{what}");
    }
}

/// Multiplication in GF(2^8) modulo 0x11d, as slow as it is plain.
fn times(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b > 0 {
        if b & 1 == 1 {
            product ^= a;
        }
        let carry = a & 0x80 != 0;
        a <<= 1;
        if carry {
            a ^= 0x1d;
        }
        b >>= 1;
    }
    product
}

#[test]
fn the_blocks_of_a_frame_lie_where_the_format_says() {
    sim::run(1, |_| async {
        let home = Home::new("4+2", 6);
        let shard = home.start().await;
        home.pool.take_log();
        // Ten blocks in three rows of four columns: 3, 3, 3, 1; the header before them.
        write(&shard, 100, 10, 1).await.unwrap();
        let log = home.pool.take_log();
        let extent = log.iter().find(|(a, _)| a.what == What::Append).unwrap().0.extent;
        let data = fill(10, 1);
        let block = |i: usize| data[i * BLOCK_BYTES..(i + 1) * BLOCK_BYTES].to_vec();
        for column in 0..4 {
            for row in 0..3 {
                let i = column * 3 + row;
                let expect = (i < 10).then(|| block(i));
                assert!(home.pool.row(extent, column, 1 + row as u16) == expect, "column {column} row {row}");
            }
        }
        for parity in 0..2u32 {
            for row in 0..3 {
                let mut expect = vec![0; BLOCK_BYTES];
                for column in (0..4).filter(|column| column * 3 + row < 10) {
                    let factor = (0..parity * column as u32).fold(1, |f, _| times(f, 2));
                    let source = block(column * 3 + row);
                    expect.iter_mut().zip(source).for_each(|(sum, byte)| *sum ^= times(factor, byte));
                }
                let there = home.pool.row(extent, 4 + parity as usize, 1 + row as u16);
                assert!(there == Some(expect), "parity {parity} row {row}");
            }
        }
        // The header stands in column 0 and in every parity column, and nowhere else.
        let header = home.pool.row(extent, 0, 0).expect("in column 0");
        for column in 1..6 {
            let there = home.pool.row(extent, column, 0);
            assert!(there == (column >= 4).then(|| header.clone()), "column {column}");
        }
        let (header, entries) = home.pool.header(extent, 0, 0).unwrap();
        assert_eq!((header.first_row, header.blocks, entries.len()), (RowIndex(0), 10, 10));
        assert!(matches!(entries[9], Entry::Data { block: 109, .. }));
    });
}
