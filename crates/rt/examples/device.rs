//! What a device does through the runtime: 4 KiB reads and durable writes at several queue depths.
//!
//! `cargo run --release -p peristyle-rt --example device <path> [operations]` (a file is created with 1 GiB)

use peristyle_rt::device::WriteCache;
use peristyle_rt::{Buf, Device, DeviceSpec, RuntimeConfig, block_on, join_all, now, random_below};
use std::cell::Cell;

const DEPTHS: [usize; 4] = [1, 4, 16, 64];

fn main() {
    let mut args = std::env::args().skip(1);
    let Some(path) = args.next() else {
        eprintln!("usage: device <path> [operations]");
        std::process::exit(2);
    };
    let operations = args.next().and_then(|n| n.parse().ok()).unwrap_or(2000);
    block_on(RuntimeConfig::default(), async move {
        println!("{}", peristyle_rt::memory_budget());
        let write_cache = WriteCache::Auto;
        let spec = DeviceSpec::Path { path: path.into(), create_bytes: Some(1 << 30), write_cache };
        let device = Device::open(&spec).await.expect("a device");
        println!("{:?}", device.info());
        for depth in DEPTHS {
            measure(&device, "durable write", depth, operations, async |offset| {
                let view = Buf::alloc(4096).await.freeze();
                device.write(offset, view.into(), true).await.expect("written");
            })
            .await;
        }
        for depth in DEPTHS {
            measure(&device, "read", depth, operations, async |offset| {
                let (result, _) = device.read(offset, Buf::alloc(4096).await).await;
                result.expect("read");
            })
            .await;
        }
    });
}

async fn measure(device: &Device, name: &str, depth: usize, operations: usize, one: impl AsyncFn(u64)) {
    let (left, nanos) = (Cell::new(operations), std::cell::RefCell::new(Vec::with_capacity(operations)));
    let start = now();
    let workers = (0..depth).map(|_| async {
        while left.get() > 0 {
            left.set(left.get() - 1);
            let at = now();
            one(random_below(device.bytes() / 4096) * 4096).await;
            nanos.borrow_mut().push(now().nanos_since(at));
        }
    });
    join_all(workers).await;
    let seconds = now().since(start).as_secs_f64();
    let mut nanos = nanos.into_inner();
    nanos.sort_unstable();
    let p50 = nanos[nanos.len() / 2] as f64 / 1000.0;
    println!(
        "{name:>14} at depth {depth:>3}: {:>8.0} per second, p50 {p50:>8.1} us",
        operations as f64 / seconds
    );
}
