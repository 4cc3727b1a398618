//! Counts what a thread takes from the system's allocator, so that tests can show that the I/O path takes nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::pin::pin;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static BACKGROUND: Cell<u64> = const { Cell::new(0) };
    static IN_BACKGROUND: Cell<bool> = const { Cell::new(false) };
}

/// `#[global_allocator] static A: CountingAllocator = CountingAllocator;` in a test or a benchmark.
pub struct CountingAllocator;

/// Allocations and growths of this thread so far; 0 unless the program uses [`CountingAllocator`].
pub fn allocations() -> u64 {
    COUNT.try_with(Cell::get).unwrap_or(0)
}

/// Of these, those of [`background`] work.
pub fn background_allocations() -> u64 {
    BACKGROUND.try_with(Cell::get).unwrap_or(0)
}

/// Runs work that is not on the I/O path and may allocate: what it takes while it is polled counts apart, too. A task
/// that it spawns is another one.
pub async fn background<F: Future>(work: F) -> F::Output {
    struct Scope(bool);
    impl Drop for Scope {
        fn drop(&mut self) {
            IN_BACKGROUND.set(self.0);
        }
    }
    let mut work = pin!(work);
    std::future::poll_fn(|cx| {
        let _scope = Scope(IN_BACKGROUND.replace(true));
        work.as_mut().poll(cx)
    })
    .await
}

fn count() {
    // A thread that is ending has no counter any more.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
    if IN_BACKGROUND.try_with(Cell::get).unwrap_or(false) {
        let _ = BACKGROUND.try_with(|count| count.set(count.get() + 1));
    }
}

// SAFETY: everything is left to the system's allocator; the counter allocates nothing itself.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's contract is the system's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, bytes) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}
