//! The shard record's bytes: what is written is read back, anything else is refused.

use peristyle_base::*;
use peristyle_cluster::*;
use proptest::prelude::*;

fn encode(record: &ShardRecord) -> Vec<u8> {
    let mut bytes = Vec::new();
    record.encode(&mut bytes).unwrap();
    bytes
}

fn open_extent(extent: u64, scheme: Scheme, epoch: u64, ready: bool) -> OpenExtent {
    OpenExtent {
        extent: ExtentId(extent),
        scheme,
        nonce: Nonce([extent as u8 ^ 0x5a; 16]),
        epoch: Epoch(epoch),
        state: if ready { ExtentState::Ready } else { ExtentState::Open },
        columns: (0..scheme.width())
            .map(|c| ColumnPlace { device: Uuid([c as u8 + 1; 16]), slot: SlotIndex(extent as u32 * 3) })
            .collect(),
    }
}

/// The record whose bytes are kept in testdata/: changing them is a new format version.
fn golden() -> ShardRecord {
    let place = |row| BlockPlace::new(ExtentId(0x0102_0304_0506), ColumnIndex(3), RowIndex(row), 0xdead_beef);
    ShardRecord {
        shard: ShardId(7),
        epoch: Epoch(5),
        owner: NodeId(1),
        checkpoint: Some(CheckpointPtr {
            seq: Seq(1000),
            mark: ExtentId(0x0102_0304_0000),
            blocks: 9,
            root: vec![place(17), place(18)],
        }),
        committed: Seq(1234),
        next_extent: ExtentId(0x0102_0304_0a00),
        open_set: vec![
            open_extent(0x0102_0304_0900, Scheme::new(4, 2).unwrap(), 4, false),
            open_extent(0x0102_0304_0901, Scheme::new(1, 2).unwrap(), 5, true),
        ],
    }
}

#[test]
fn the_bytes_of_version_1_are_what_they_were() {
    let kept = include_bytes!("../testdata/shard-record-v1.bin");
    assert_eq!(ShardRecord::decode(kept), Ok(golden()));
    assert_eq!(encode(&golden()), kept);
}

#[test]
fn the_fields_are_where_the_table_says() {
    let bytes = encode(&golden());
    assert_eq!(&bytes[..12], b"PERISHRD\x01\x00\x01\x00");
    assert_eq!(bytes[12..16], (bytes.len() as u32).to_le_bytes());
    assert_eq!((bytes[16], bytes[20], bytes[24], bytes[64], bytes[68], bytes[70]), (7, 1, 5, 9, 2, 2));
    assert_eq!(bytes[72..78], [6, 5, 4, 3, 2, 1]);
    assert_eq!(bytes[78..80], (3 * 512 + 17u16).to_le_bytes());
    assert_eq!(bytes.len(), 72 + 2 * 12 + (40 + 6 * 20) + (40 + 3 * 20) + 4);
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let bytes = encode(&golden());
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(ShardRecord::decode(&bad).is_err(), "bit {bit}");
    }
    for end in 0..bytes.len() {
        assert!(ShardRecord::decode(&bytes[..end]).is_err(), "cut at {end}");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(ShardRecord::decode(&longer), Err(RecordError::Length));
}

#[test]
fn a_record_of_a_newer_version_is_named_so() {
    let mut bytes = encode(&golden());
    bytes[8] = 2;
    assert_eq!(ShardRecord::decode(&bytes), Err(RecordError::Version(2)));
}

#[test]
fn the_largest_record_fits_and_one_more_extent_does_not() {
    let widest = Scheme::new(16, 4).unwrap();
    let mut record = ShardRecord { epoch: Epoch(1), next_extent: ExtentId::MAX, ..Default::default() };
    record.open_set = (0..OPEN_EXTENTS_MAX as u64).map(|i| open_extent(i, widest, 1, true)).collect();
    let root = vec![BlockPlace::default(); ROOT_BLOCKS_MAX];
    record.checkpoint =
        Some(CheckpointPtr { blocks: ROOT_BLOCKS_MAX as u32, root, ..CheckpointPtr::default() });
    let bytes = encode(&record);
    assert!(bytes.len() <= RECORD_BYTES_MAX && bytes.len() == record.encoded_bytes());
    assert_eq!(ShardRecord::decode(&bytes), Ok(record.clone()));
    record.open_set.push(open_extent(OPEN_EXTENTS_MAX as u64, widest, 1, true));
    assert_eq!(record.encode(&mut Vec::new()), Err(RecordError::TooLarge));
}

/// Breaks one rule and says which field must be named.
fn broken(name: &str, breaking: impl FnOnce(&mut ShardRecord)) {
    let mut record = golden();
    breaking(&mut record);
    match record.validate() {
        Err(RecordError::Field(field)) => assert_eq!(field, name),
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn impossible_records_are_refused_by_name() {
    broken("next_extent", |r| r.next_extent = ExtentId(1 << 48));
    broken("checkpoint.seq", |r| r.committed = Seq(999));
    broken("checkpoint.mark", |r| r.checkpoint.as_mut().unwrap().mark = ExtentId(0x0102_0304_0a01));
    broken("checkpoint.blocks", |r| r.checkpoint.as_mut().unwrap().blocks = 1);
    broken("checkpoint.root.extent", |r| r.checkpoint.as_mut().unwrap().root[1].extent = r.next_extent);
    broken("checkpoint.root.index", |r| r.checkpoint.as_mut().unwrap().root[0].index = 20 * 512);
    broken("open_set order", |r| r.open_set.swap(0, 1));
    broken("open_set order", |r| r.open_set[1] = r.open_set[0]);
    broken("open_set.extent", |r| r.open_set[1].extent = r.next_extent);
    broken("open_set.epoch", |r| r.open_set[0].epoch = Epoch(6));
    broken("open_set.columns", |r| r.open_set[0].scheme = Scheme::new(3, 2).unwrap());
    broken("open_set.columns.device", |r| {
        let mut places = r.open_set[0].columns.to_vec();
        places[4].device = places[1].device;
        r.open_set[0].columns = ColumnPlaces::new(&places);
    });
    broken("open_set.columns.device", |r| {
        r.open_set[0].columns = ColumnPlaces::new(&[ColumnPlace::default(); 6])
    });
    broken("open_set.columns.slot", |r| {
        let mut places = r.open_set[1].columns.to_vec();
        places[0] = r.open_set[0].columns[0];
        r.open_set[1].columns = ColumnPlaces::new(&places);
    });
}

#[test]
#[should_panic(expected = "checkpoint.seq")]
fn writing_an_impossible_record_is_a_bug() {
    let mut record = golden();
    record.committed = Seq(1);
    let _ = record.encode(&mut Vec::new());
}

fn any_record() -> impl Strategy<Value = ShardRecord> {
    let checkpoint =
        prop::option::of((0..1000u64, 0..50u64, prop::collection::vec((0..50u64, 0..10240u16), 0..30)));
    let extent = (1u8..=16, 0u8..=4, any::<[u8; 16]>(), 0..9u64, any::<bool>());
    let open_set = prop::collection::btree_map(0..50u64, extent, 0..12);
    (any::<(u32, u32)>(), 9..u64::MAX, 1000..u64::MAX, 50..1u64 << 48, checkpoint, open_set).prop_map(
        |((shard, owner), epoch, committed, next_extent, checkpoint, open_set)| ShardRecord {
            shard: ShardId(shard),
            owner: NodeId(owner),
            epoch: Epoch(epoch),
            committed: Seq(committed),
            next_extent: ExtentId(next_extent),
            checkpoint: checkpoint.map(|(seq, mark, root)| CheckpointPtr {
                seq: Seq(seq),
                mark: ExtentId(mark),
                blocks: root.len() as u32 * 2,
                root: root
                    .iter()
                    .map(|&(e, index)| BlockPlace { extent: ExtentId(e), index, crc: index as u32 * 77 })
                    .collect(),
            }),
            open_set: open_set
                .into_iter()
                .map(|(extent, (k, m, nonce, epoch, ready))| OpenExtent {
                    nonce: Nonce(nonce),
                    ..open_extent(extent, Scheme::new(k, m).unwrap(), epoch, ready)
                })
                .collect(),
        },
    )
}

proptest! {
    #[test]
    fn what_is_encoded_decodes_to_the_same(record in any_record()) {
        let bytes = encode(&record);
        prop_assert_eq!(bytes.len(), record.encoded_bytes());
        prop_assert_eq!(ShardRecord::decode(&bytes), Ok(record));
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        fuzz_record(&bytes);
    }

    #[test]
    fn damaged_records_with_a_right_checksum_decode_to_themselves_or_not_at_all(
        record in any_record(), at in any::<prop::sample::Index>(), value in any::<u8>(),
    ) {
        let mut bytes = encode(&record);
        let at = at.index(bytes.len());
        bytes[at] = value;
        fuzz_record(&bytes);
    }
}

#[test]
fn a_place_names_its_column_and_row() {
    let place = BlockPlace::new(ExtentId(1), ColumnIndex(19), RowIndex(511), 0);
    assert_eq!((place.column(), place.row(), place.index), (ColumnIndex(19), RowIndex(511), 10239));
}
