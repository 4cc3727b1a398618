//! A pool's memory: all of it there from the beginning, or reserved.

use super::PAGE;
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

const HUGE: usize = 2 << 20;

/// Given back when it is dropped.
pub(super) struct Memory {
    base: NonNull<u8>,
    layout: Layout,
    origin: Origin,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    HugePages,
    Mapped,
    Heap,
}

impl Memory {
    /// Zero, and there: nobody who uses it meets a page that the kernel has yet to find.
    pub fn allocate(total: usize, huge_pages: bool) -> Memory {
        if huge_pages {
            let size = total.next_multiple_of(HUGE);
            if let Some(base) = map(size, libc::MAP_HUGETLB | libc::MAP_POPULATE) {
                let layout = Layout::from_size_align(size, HUGE).expect("a valid layout");
                return Memory { base, layout, origin: Origin::HugePages };
            }
        }
        let align = if huge_pages { HUGE } else { PAGE };
        let layout = Layout::from_size_align(total.next_multiple_of(align), align).expect("a valid layout");
        // SAFETY: the layout has a non-zero size.
        let Some(base) = NonNull::new(unsafe { alloc(layout) }) else { handle_alloc_error(layout) };
        if huge_pages {
            // Before anybody touches it: later it would be small pages already.
            // SAFETY: the range is our own allocation; the advice changes no contents. Failure is harmless.
            unsafe { libc::madvise(base.as_ptr().cast(), layout.size(), libc::MADV_HUGEPAGE) };
        }
        // SAFETY: the range is our own allocation.
        unsafe { base.write_bytes(0, layout.size()) };
        Memory { base, layout, origin: Origin::Heap }
    }

    /// Zero, with pages that are found when they are used: simulated reactors use few of theirs, and there are many.
    pub fn reserve(total: usize) -> Memory {
        let layout = Layout::from_size_align(total.next_multiple_of(PAGE), PAGE).expect("a valid layout");
        match map(layout.size(), libc::MAP_NORESERVE) {
            Some(base) => Memory { base, layout, origin: Origin::Mapped },
            None => handle_alloc_error(layout),
        }
    }

    pub fn base(&self) -> NonNull<u8> {
        self.base
    }
    pub fn bytes(&self) -> usize {
        self.layout.size()
    }
    pub fn is_huge(&self) -> bool {
        self.origin == Origin::HugePages
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in the way that `origin` tells, and nobody else's: whoever points into it keeps it.
        unsafe {
            match self.origin {
                Origin::HugePages | Origin::Mapped => {
                    libc::munmap(self.base.as_ptr().cast(), self.layout.size());
                }
                Origin::Heap => dealloc(self.base.as_ptr(), self.layout),
            }
        }
    }
}

fn map(size: usize, flags: libc::c_int) -> Option<NonNull<u8>> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
    // SAFETY: an anonymous private mapping at an address of the kernel's choice touches nothing of ours.
    let mapped = unsafe { libc::mmap(std::ptr::null_mut(), size, access, flags, -1, 0) };
    if mapped == libc::MAP_FAILED { None } else { NonNull::new(mapped.cast()) }
}
