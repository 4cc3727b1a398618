//! The floor of a store on files: the same requests to one more file in its folder.

use crate::failure::Failure;
use peristyle_base::Histogram;
use peristyle_bench::load::Length;
use peristyle_bench::pattern::Pattern;
use peristyle_bench::raw::{self, RawLoad};
use peristyle_rt::device::WriteCache;
use peristyle_rt::{Device, DeviceSpec, RuntimeConfig, block_on};
use std::path::Path;
use std::time::Duration;

const FILE_BYTES: u64 = 256 << 20;
const FILL_BYTES: u32 = 1 << 20;

/// Latencies in nanoseconds of requests one after the other to the file, which is made and written from end to end first. A
/// write is durable as a column's is.
pub fn file(
    path: &Path,
    write: bool,
    bytes: u32,
    pattern: Pattern,
    runtime: Duration,
) -> Result<Histogram, Failure> {
    let spec = DeviceSpec::Path {
        path: path.to_owned(),
        create_bytes: Some(FILE_BYTES),
        // As the devices of a development store are opened.
        write_cache: WriteCache::Protected,
    };
    let load = RawLoad {
        block_bytes: bytes,
        pattern,
        write,
        durable: true,
        depth: 1,
        length: Length::Time(runtime),
        warmup: runtime / 10,
        span: FILE_BYTES,
        seed: 1,
    };
    let fill = RawLoad {
        block_bytes: FILL_BYTES,
        pattern: Pattern::Sequential,
        write: true,
        depth: 4,
        length: Length::Count(FILE_BYTES / u64::from(FILL_BYTES)),
        warmup: Duration::ZERO,
        ..load
    };
    let is_new = !path.exists();
    let mut config = RuntimeConfig::small();
    for needed in [load.buffers(), fill.buffers()] {
        config.buffers.counts.iter_mut().zip(needed.counts).for_each(|(have, need)| *have = need.max(*have));
    }
    block_on(config, async move {
        let device = Device::open(&spec).await.map_err(|e| e.to_string())?;
        if is_new {
            raw::measure(&device, fill).await.map_err(|e| e.to_string())?;
        }
        let report = raw::measure(&device, load).await.map_err(|e| e.to_string())?;
        Ok(report.all().latency)
    })
    .map_err(|error: String| Failure::failed(format!("{}: {error}", path.display())))
}
