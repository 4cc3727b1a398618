//! Files through the ring.

use peristyle_rt::buf::free_counts;
use peristyle_rt::device::WriteCache;
use peristyle_rt::{
    Buf, BufConfig, Device, DeviceSpec, Duration, Either, Fault, Instant, IoError, IoVec, RuntimeConfig,
    block_on, end_of_turn, join_all, select, sleep, spawn, yield_now,
};
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
        device.discard(16384, 8192).await.expect("punched, too");
    });
    block_on(RuntimeConfig::small(), async move {
        let device = Device::open(&again).await.expect("opened");
        assert!(read(&device, 0, 4096).await.iter().all(|&b| b == 1));
        assert!(read(&device, 8192, 16384).await.iter().all(|&b| b == 0));
        assert!(read(&device, 24576, 112 << 10).await.iter().all(|&b| b == 2));
    });
}

#[test]
fn a_reserved_range_has_its_space_and_holds_what_it_held() {
    use std::os::unix::fs::MetadataExt;
    let temp = Temp::new("reserve");
    let spec = temp.spec(16);
    let DeviceSpec::Path { path, .. } = spec.clone() else { unreachable!("a file") };
    let used = move || std::fs::metadata(&path).expect("there").blocks() * 512;
    block_on(RuntimeConfig::small(), async move {
        let device = Device::open(&spec).await.expect("created");
        device.write(1 << 20, filled(1, 4096), true).await.expect("written");
        device.reserve(0, 4 << 20).await.expect("space for it");
        assert!(used() >= 4 << 20, "{} bytes", used());
        assert!(read(&device, 1 << 20, 4096).await.iter().all(|&b| b == 1));
        assert!(read(&device, 2 << 20, 4096).await.iter().all(|&b| b == 0));
        device.write_zeroes(0, 4 << 20).await.expect("punched");
        assert!(used() < 1 << 20, "the space is given back");
        assert_eq!(device.reserve(16 << 20, 4096).await, Err(IoError::OutOfRange));
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

#[test]
fn an_injected_failure_fails_and_an_injected_stall_waits() {
    let temp = Temp::new("faults");
    let spec = temp.spec(1);
    block_on(RuntimeConfig::small(), async move {
        let device = Device::open(&spec).await.expect("created");
        device.inject(Fault::FailUntil(Instant::FAR));
        assert_eq!(device.write(0, filled(1, 4096), true).await, Err(IoError::Os(5)));
        assert_eq!(device.read(0, Buf::alloc(4096).await).await.0, Err(IoError::Os(5)));
        assert_eq!(device.flush().await, Err(IoError::Os(5)));
        device.inject(Fault::StallUntil(Instant::FAR));
        let wait = select(device.write(0, filled(2, 4096), false), yield_now()).await;
        assert!(matches!(wait, Either::Right(())));
        let stalled = device.clone();
        spawn(async move {
            stalled.write(0, filled(3, 4096), false).await.expect("goes on");
            stalled.inject(Fault::FailUntil(Instant::FAR));
        });
        end_of_turn().await;
        device.inject(Fault::None);
        while device.write(0, filled(3, 4096), false).await.is_ok() {}
        device.inject(Fault::None);
        assert!(read(&device, 0, 4096).await.iter().all(|&b| b == 3));
    });
}

#[test]
fn operations_outside_of_the_device_or_not_aligned_are_refused() {
    let temp = Temp::new("range");
    let spec = temp.spec(1);
    block_on(RuntimeConfig::small(), async move {
        let device = Device::open(&spec).await.expect("created");
        let end = device.bytes();
        assert_eq!(device.write(end, filled(1, 4096), true).await, Err(IoError::OutOfRange));
        assert_eq!(device.write(512, filled(1, 4096), true).await, Err(IoError::OutOfRange));
        assert_eq!(device.write(u64::MAX - 4095, filled(1, 4096), true).await, Err(IoError::OutOfRange));
        assert_eq!(device.read(end - 4096, Buf::alloc(8192).await).await.0, Err(IoError::OutOfRange));
        assert_eq!(device.write_zeroes(0, end + 4096).await, Err(IoError::OutOfRange));
    });
}

#[test]
fn many_durable_writes_at_once_all_complete_and_share_flushes() {
    let temp = Temp::new("durable");
    let spec = temp.spec(16);
    block_on(RuntimeConfig::small(), async move {
        let device = Device::open(&spec).await.expect("created");
        let writes = (0..200u64).map(|i| {
            let device = device.clone();
            async move { device.write(i * 4096, filled(i as u8, 4096), true).await }
        });
        assert!(join_all(writes).await.iter().all(Result::is_ok));
        for i in 0..200u64 {
            assert!(read(&device, i * 4096, 4096).await.iter().all(|&b| b == i as u8));
        }
    });
}

#[test]
fn a_dropped_operation_keeps_its_buffer_until_the_device_has_answered() {
    let temp = Temp::new("dropped");
    let spec = temp.spec(16);
    block_on(RuntimeConfig::small(), async move {
        let device = Device::open(&spec).await.expect("created");
        device.write(0, filled(5, 2 << 20), true).await.expect("written");
        let before = free_counts();
        for _ in 0..50 {
            let buf = Buf::alloc(2 << 20).await;
            // Polled once, so that the kernel has it; then dropped.
            select(device.read(0, buf), yield_now()).await;
            // A buffer that is handed out now must not be the one that the kernel writes to.
            let mut mine = Buf::alloc(2 << 20).await;
            mine.fill(9);
            yield_now().await;
            assert!(mine.iter().all(|&b| b == 9));
        }
        while free_counts() != before {
            yield_now().await;
            sleep(Duration::from_micros(100)).await;
        }
    });
}

#[test]
fn operations_that_are_dropped_with_the_reactor_are_waited_for() {
    let temp = Temp::new("ended");
    let spec = temp.spec(16);
    for _ in 0..20 {
        let spec = spec.clone();
        block_on(RuntimeConfig::small(), async move {
            let device = Device::open(&spec).await.expect("the one before has closed it");
            for i in 0..8 {
                let device = device.clone();
                spawn(async move {
                    let _ = device.read(i << 20, Buf::alloc(1 << 20).await).await;
                });
            }
            yield_now().await;
        });
    }
}

#[test]
fn more_operations_than_the_table_holds_wait_their_turn() {
    let temp = Temp::new("many");
    let spec = temp.spec(4);
    let config = RuntimeConfig {
        buffers: BufConfig { counts: [10_000, 8, 8, 0, 0, 0], huge_pages: false },
        ..RuntimeConfig::default()
    };
    block_on(config, async move {
        let device = Device::open(&spec).await.expect("created");
        let reads = (0..9000u64).map(|i| {
            let device = device.clone();
            async move { device.read(i % 1024 * 4096, Buf::alloc(4096).await).await.0 }
        });
        assert!(join_all(reads).await.iter().all(Result::is_ok));
    });
}

#[test]
fn without_registered_buffers_everything_works_as_well() {
    // A buffer from another pool than the reactor's is not registered with its ring: as when it was refused.
    let temp = Temp::new("foreign");
    let spec = temp.spec(4);
    let seeds = peristyle_rt::mesh::<Buf>(2, 8);
    let config = RuntimeConfig { reactors: 2, ..RuntimeConfig::small() };
    peristyle_rt::run(config, seeds, move |seed| {
        let spec = spec.clone();
        async move {
            let port = seed.attach();
            if port.me().0 == 0 {
                for i in 0..20 {
                    let mut buf = Buf::alloc(65536).await;
                    buf.fill(i);
                    port.send(peristyle_rt::ReactorId(1), buf).await;
                }
                return;
            }
            let device = Device::open(&spec).await.expect("created");
            for i in 0..20 {
                let mut buf = port.recv().await.1;
                let front = buf.split_to(4096).freeze();
                let mut iov = IoVec::from(buf.freeze());
                iov.push(front);
                device.write(0, iov, i % 2 == 0).await.expect("written");
                assert!(read(&device, 0, 65536).await.iter().all(|&b| b == i));
            }
        }
    })
    .expect("both ended");
}

#[test]
fn who_opens_to_read_changes_nothing_and_is_kept_out_by_who_writes() {
    let temp = Temp::new("read-only");
    let (spec, path) = (temp.spec(1), temp.0.clone());
    block_on(RuntimeConfig::small(), async move {
        assert_eq!(Device::open_to_read(&path).await.err(), Some(IoError::NotFound));
        let writer = Device::open(&spec).await.expect("created");
        writer.write(0, filled(1, 4096), true).await.expect("written");
        assert_eq!(Device::open_to_read(&path).await.err(), Some(IoError::Busy));
        drop(writer);
        let readers = [Device::open_to_read(&path).await, Device::open_to_read(&path).await];
        let [Ok(one), Ok(two)] = readers else { panic!("several may look") };
        assert_eq!(Device::open(&spec).await.err(), Some(IoError::Busy));
        for device in [&one, &two] {
            assert!(read(device, 0, 4096).await.iter().all(|&b| b == 1));
            assert_eq!(device.write(0, filled(2, 4096), true).await, Err(IoError::ReadOnly));
            assert_eq!(device.write_zeroes(0, 4096).await, Err(IoError::ReadOnly));
            assert_eq!(device.discard(0, 4096).await, Err(IoError::ReadOnly));
        }
        assert!(read(&one, 0, 4096).await.iter().all(|&b| b == 1));
    });
}
