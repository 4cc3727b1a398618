//! Files through the ring.

use peristyle_rt::device::WriteCache;
use peristyle_rt::{Buf, Device, DeviceSpec, IoError, IoVec, RuntimeConfig, block_on};
use std::path::PathBuf;

/// A file's path in the build folder, removed at the end.
struct Temp(PathBuf);
impl Temp {
    fn new(name: &str) -> Temp {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        Temp(path)
    }
    fn spec(&self, mib: u64) -> DeviceSpec {
        DeviceSpec::Path {
            path: self.0.clone(),
            create_bytes: Some(mib << 20),
            write_cache: WriteCache::Auto,
        }
    }
}
impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn filled(byte: u8, bytes: usize) -> IoVec {
    let mut buf = Buf::try_alloc(bytes).expect("a free buffer");
    buf.fill(byte);
    buf.freeze().into()
}

async fn read(device: &Device, offset: u64, bytes: usize) -> Buf {
    let (result, buf) = device.read(offset, Buf::alloc(bytes).await).await;
    result.expect("a read");
    buf
}

#[test]
fn what_was_written_is_read_back_also_after_reopening_and_punched_ranges_are_zero() {
    let temp = Temp::new("reopen");
    let spec = temp.spec(64);
    let again = spec.clone();
    block_on(RuntimeConfig::small(), async move {
        let device = Device::open(&spec).await.expect("created");
        assert_eq!(device.bytes(), 64 << 20);
        device.write(0, filled(1, 4096), true).await.expect("written");
        device.write(8192, filled(2, 128 << 10), false).await.expect("written");
        device.flush().await.expect("flushed");
        assert!(read(&device, 0, 4096).await.iter().all(|&b| b == 1));
        device.write_zeroes(8192, 8192).await.expect("punched");
    });
    block_on(RuntimeConfig::small(), async move {
        let device = Device::open(&again).await.expect("opened");
        assert!(read(&device, 0, 4096).await.iter().all(|&b| b == 1));
        assert!(read(&device, 8192, 8192).await.iter().all(|&b| b == 0));
        assert!(read(&device, 16384, 120 << 10).await.iter().all(|&b| b == 2));
    });
}

#[test]
fn a_vectored_write_of_many_pieces_lands_in_order() {
    let temp = Temp::new("pieces");
    let spec = temp.spec(16);
    block_on(RuntimeConfig::small(), async move {
        let device = Device::open(&spec).await.expect("created");
        let mut iov = IoVec::new();
        let mut kept = Vec::new();
        for i in 0..100u8 {
            let mut buf = Buf::try_alloc(4096).expect("a free buffer");
            buf.fill(i);
            let view = buf.freeze();
            kept.push(view.clone());
            iov.push(view);
        }
        device.write(4096, iov, true).await.expect("written");
        for i in 0..100u64 {
            let buf = read(&device, 4096 + i * 4096, 4096).await;
            assert!(buf.iter().all(|&b| b == i as u8), "block {i}");
        }
    });
}

#[test]
fn a_second_open_is_busy_and_a_missing_file_is_not_found() {
    let temp = Temp::new("busy");
    let spec = temp.spec(1);
    block_on(RuntimeConfig::small(), async move {
        let device = Device::open(&spec).await.expect("created");
        assert_eq!(Device::open(&spec).await.err(), Some(IoError::Busy));
        drop(device);
        let missing = DeviceSpec::Path {
            path: "/nonexistent/peristyle".into(),
            create_bytes: None,
            write_cache: WriteCache::Auto,
        };
        assert_eq!(Device::open(&missing).await.err(), Some(IoError::NotFound));
    });
}
