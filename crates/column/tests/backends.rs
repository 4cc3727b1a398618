//! The same life of a column on what the machine really has: memory and a file, over io_uring.

mod common;
use common::*;
use peristyle_base::RowIndex;
use peristyle_column::{Geometry, RowRange, Seal, Server, ServerConfig, WritePurpose, check, format};
use peristyle_rt::device::WriteCache;
use peristyle_rt::uring::{RuntimeConfig, block_on};
use peristyle_rt::{Buf, Device, DeviceSpec, now};

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
