//! Making the ring, and telling the kernel of memory.

use crate::buf::Pool;
use io_uring::IoUring;
use std::io;

pub(super) const SQ_ENTRIES: u32 = 1024;
/// Each socket's poll may complete several times between two turns. More than that is kept by the kernel.
pub(super) const CQ_ENTRIES: u32 = 16384;
/// The kernel registers at most this much as one buffer.
pub(super) const REGISTERED_BYTES: usize = 1 << 30;

pub(super) fn build_ring() -> io::Result<IoUring> {
    let best = |b: &mut io_uring::Builder| {
        b.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    };
    let good = |b: &mut io_uring::Builder| {
        b.setup_coop_taskrun().setup_taskrun_flag();
    };
    let plain = |_: &mut io_uring::Builder| {};
    let mut last = None;
    for options in [&best as &dyn Fn(&mut io_uring::Builder), &good, &plain] {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(CQ_ENTRIES).setup_submit_all();
        options(&mut builder);
        match builder.build(SQ_ENTRIES) {
            Ok(ring) if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() => {
                return Err(io::Error::from_raw_os_error(libc::ENOSYS));
            }
            Ok(ring) => return Ok(ring),
            Err(error) => last = Some(error),
        }
    }
    Err(last.expect("three attempts were made"))
}

/// Registers the pool's memory, so that the kernel need not pin pages for each operation. Refused where
/// RLIMIT_MEMLOCK is too small: then operations name plain memory.
pub(super) fn register_pool(ring: &IoUring, pool: &Pool) -> Option<std::ops::Range<usize>> {
    let (memory, bytes) = pool.memory();
    let parts = (0..bytes).step_by(REGISTERED_BYTES);
    let list: Vec<libc::iovec> = parts
        .map(|at| libc::iovec {
            iov_base: memory.as_ptr().wrapping_add(at).cast(),
            iov_len: REGISTERED_BYTES.min(bytes - at),
        })
        .collect();
    // SAFETY: the range is the pool's mapped memory. The kernel holds its pages until the ring is gone, and
    // touches them only for operations that own their buffers.
    unsafe { ring.submitter().register_buffers(&list) }.ok()?;
    let start = memory.as_ptr() as usize;
    Some(start..start + bytes)
}

/// Takes the pages of a fresh allocation that is used at random, huge ones where there are any. Advice: what the
/// system does not give now it gives page by page later.
pub(crate) fn populate(memory: &[u8]) {
    let skip = memory.as_ptr().align_offset(4096).min(memory.len());
    let whole = &memory[skip..];
    for advice in [libc::MADV_HUGEPAGE, libc::MADV_POPULATE_WRITE] {
        // SAFETY: the range is a live allocation, from a page's start on, and neither advice changes its contents.
        unsafe { libc::madvise(whole.as_ptr().cast_mut().cast(), whole.len(), advice) };
    }
}

/// Says that the first `bytes` of the memory will be written soon, so that its lines of the cache are on their way.
pub(crate) fn expect_write(memory: &[u8], bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in memory[..bytes.min(memory.len())].chunks(64) {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        // SAFETY: a hint, which reads and writes nothing; every processor takes it, some as no operation.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (memory, bytes);
}
