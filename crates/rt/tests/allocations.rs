//! Once warm, a reactor allocates nothing: neither for sockets nor for files.

use peristyle_rt::device::WriteCache;
use peristyle_rt::{
    Addr, Buf, Device, DeviceSpec, Duration, IoVec, Listener, RuntimeConfig, Stream, block_on, sleep, spawn,
    timeout,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::rc::Rc;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// Counts the allocations of each thread.
struct Counting;

// SAFETY: everything is the system's allocator's work; counting touches a thread-local number only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

async fn echo_round(client: &mut (peristyle_rt::StreamReader, peristyle_rt::StreamWriter), bytes: usize) {
    let buf = Buf::alloc(bytes).await;
    client.1.send(buf.freeze().into()).await.expect("sent");
    let (result, _) = client.0.recv_exact(Buf::alloc(bytes).await).await;
    result.expect("echoed");
}

#[test]
fn a_warm_echo_allocates_nothing() {
    block_on(RuntimeConfig::small(), async {
        let any = Addr::Tcp("127.0.0.1:0".parse().expect("an address"));
        let listener = Listener::bind(&any, false).await.expect("a free port");
        let mut client = Stream::connect(&listener.local_addr()).await.expect("it listens").split();
        let (mut r, mut w) = listener.accept().await.expect("a connection").split();
        spawn(async move {
            while let Ok(view) = r.recv().await
                && !view.is_empty()
            {
                w.send(view.into()).await.expect("echoed");
            }
        });
        for round in 0..400 {
            let before = COUNT.get();
            for bytes in [72, 4096, 65536, 1 << 20] {
                echo_round(&mut client, bytes).await;
                timeout(Duration::from_secs(1), echo_round(&mut client, 72)).await.expect("in time");
            }
            assert!(round < 200 || COUNT.get() == before, "{} in round {round}", COUNT.get() - before);
        }
    });
}

#[test]
fn warm_file_operations_and_their_tasks_allocate_nothing() {
    let path =
        std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("alloc{}", std::process::id()));
    let kept = path.clone();
    block_on(RuntimeConfig::small(), async move {
        let spec = DeviceSpec::Path { path, create_bytes: Some(16 << 20), write_cache: WriteCache::Auto };
        let device = Device::open(&spec).await.expect("created");
        for round in 0..60 {
            // All of a round end before the next: how many tasks are alive at once must not depend on the disk.
            let done = Rc::new(Cell::new(0));
            let before = COUNT.get();
            for i in 0..16u64 {
                let (device, done) = (device.clone(), done.clone());
                spawn(async move {
                    let mut iov = IoVec::new();
                    for _ in 0..20 {
                        iov.push(Buf::alloc(4096).await.freeze());
                    }
                    device.write(i << 20, iov, true).await.expect("written");
                    let (result, _) = device.read(i << 20, Buf::alloc(16384).await).await;
                    result.expect("read");
                    done.set(done.get() + 1);
                });
            }
            device.flush().await.expect("flushed");
            while done.get() < 16 {
                sleep(Duration::from_millis(1)).await;
            }
            assert!(round < 50 || COUNT.get() == before, "{} in round {round}", COUNT.get() - before);
        }
    });
    let _ = std::fs::remove_file(kept);
}
