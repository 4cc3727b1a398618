//! The same life of a column on what the machine really has: memory and a file, over io_uring.

mod common;
use common::*;
use peristyle_base::{ColumnName, Duration, Epoch, RowIndex, SlotIndex};
use peristyle_column::{
    Geometry, RowRange, Seal, Server, ServerConfig, WriteClass, WritePurpose, check, format,
};
use peristyle_rt::device::WriteCache;
use peristyle_rt::device::until;
use peristyle_rt::uring::{RuntimeConfig, block_on};
use peristyle_rt::{Buf, Device, DeviceSpec, Fault, now};

async fn live(device: Device) {
    format(&device, OPTIONS).await.unwrap();
    let server = Server::open(device.clone(), CLUSTER, ServerConfig::default()).await.unwrap();
    for round in 0..3u64 {
        let slot = server.allocate(wish(round)).await.unwrap();
        append(&server, slot, round, E1, 0, &[1, 2, 3]).await.unwrap();
        append(&server, slot, round, E1, 5, &[6]).await.unwrap();
        let holes = [RowRange::new(3, 2)];
        let seal = Seal { rows: RowIndex(6), holes: &holes, crcs: None };
        server.seal(slot, &name(round), E1, seal).await.unwrap();
        let buf = Buf::alloc(6 * 4096).await;
        let (read, buf) = server.read_verified(slot, &name(round), RowIndex(0), buf).await;
        assert_eq!(read, Ok(()));
        assert!([1, 2, 3, 0, 0, 6].into_iter().enumerate().all(|(row, tag)| buf[row * 4096] == tag));
        if round > 0 {
            server.fence(slot, &name(round), E2).await.unwrap();
            server.free(slot, &name(round), E2).await.unwrap();
        }
    }
    let (stats, columns) = (server.stats(now()), server.list_all());
    // One device write per append: what is not an append is counted apart.
    assert_eq!((stats.appended().ops, stats.written(WritePurpose::Seal).ops), (6, 3));
    drop(server);
    let server = Server::open(device.clone(), CLUSTER, ServerConfig::default()).await.unwrap();
    assert_eq!(server.list_all(), columns);
    assert!(check(&device, |_, _| ()).await.is_clean());
}

#[test]
fn columns_live_in_memory() {
    block_on(RuntimeConfig::small(), async {
        live(Device::open(&DeviceSpec::Memory { bytes: Geometry::bytes_for(3) }).await.unwrap()).await;
    });
}

#[test]
fn columns_live_in_a_file() {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("columns_live_in_a_file");
    let _ = std::fs::remove_file(&path);
    let file = path.clone();
    block_on(RuntimeConfig::small(), async move {
        let create_bytes = Some(Geometry::bytes_for(3));
        let spec = DeviceSpec::Path { path: file, create_bytes, write_cache: WriteCache::Auto };
        live(Device::open(&spec).await.unwrap()).await;
    });
    std::fs::remove_file(&path).unwrap();
}

/// Whether rows of these tags are appended without waiting; `stated`: whose checksums come with them.
async fn at_once(
    server: &Server,
    (slot, name): (SlotIndex, ColumnName),
    epoch: Epoch,
    row: u16,
    tags: &[u8],
    stated: &[u8],
) -> bool {
    let crcs: Vec<u32> = stated.iter().map(|&tag| crc_of(tag)).collect();
    let (data, class) = (rows(tags).await, WriteClass::User);
    server.try_append(slot, &name, epoch, RowIndex(row), &data, &crcs, class, now()).is_some()
}

#[test]
fn what_is_appended_at_once_is_compared_and_kept_like_any_append() {
    block_on(RuntimeConfig::small(), async {
        let device = Device::open(&DeviceSpec::Memory { bytes: Geometry::bytes_for(3) }).await.unwrap();
        format(&device, OPTIONS).await.unwrap();
        let config = ServerConfig { verify_appends: true, ..ServerConfig::default() };
        let server = Server::open(device.clone(), CLUSTER, config).await.unwrap();
        let slot = server.allocate(wish(1)).await.unwrap();
        let here = (slot, name(1));
        assert!(at_once(&server, here, E1, 0, &[1, 2], &[1, 2]).await);
        assert!(!at_once(&server, here, E1, 1, &[3], &[3]).await, "a row has one content");
        assert!(!at_once(&server, here, E1, 0, &[1, 2], &[1, 2]).await, "it is there: nothing to write");
        assert!(!at_once(&server, here, E1, 2, &[3, 4], &[3]).await, "not as many rows as checksums");
        assert!(!at_once(&server, here, E1, 2, &[3], &[4]).await, "not what the checksum says");
        assert!(!at_once(&server, here, E1, 600, &[3], &[3]).await, "beyond the column");
        assert!(!at_once(&server, (slot, name(2)), E1, 2, &[3], &[3]).await, "another's slot");
        assert!(!at_once(&server, (SlotIndex(1), name(1)), E1, 2, &[3], &[3]).await, "nobody's slot");
        device.inject(Fault::StallUntil(until(Duration::from_secs(100))));
        assert!(!at_once(&server, here, E1, 2, &[3], &[3]).await, "the device does not answer");
        device.inject(Fault::None);
        assert_eq!((server.stats(now()).at_once, server.stats(now()).appended().ops), (1, 1));

        // A seal relies on the checksums that came with the rows.
        assert!(at_once(&server, here, E1, 2, &[3], &[3]).await);
        let seal = Seal { rows: RowIndex(3), holes: &[], crcs: None };
        server.seal(slot, &name(1), E1, seal).await.unwrap();
        assert!(!at_once(&server, here, E1, 3, &[4], &[4]).await, "sealed");
        let (read, buf) = server.read_verified(slot, &name(1), RowIndex(0), Buf::alloc(3 * 4096).await).await;
        assert_eq!((read, buf[0], buf[4096], buf[2 * 4096]), (Ok(()), 1, 2, 3));

        let slot = server.allocate(wish(2)).await.unwrap();
        server.fence(slot, &name(2), E2).await.unwrap();
        assert!(!at_once(&server, (slot, name(2)), E1, 0, &[1], &[1]).await, "fenced");
    });
}
