//! What a reactor's memory is spent on, for people to read at start.

use crate::buf::CLASS_BYTES;
use crate::reactor::{Backend, Reactor};
use crate::uring::DriverMemory;
use std::fmt;

/// Memory that one reactor takes at start. Tasks and timers grow to what is in use at once, and stay there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryBudget {
    /// Size and number of buffers, smallest first.
    pub buffers: [(usize, usize); CLASS_BYTES.len()],
    /// In huge pages that were reserved for it; otherwise the system may still have given some.
    pub huge_pages: bool,
    /// Part of the buffers that is kept back, so that frames, tables and reconstruction always go on.
    pub kept_bytes: usize,
    /// The kernel knows the buffers and pins them once instead of for each operation.
    pub registered: bool,
    /// Size and number of those of the buffers that the kernel has, to put what sockets receive into.
    pub receive: (usize, usize),
    pub ring_bytes: usize,
    pub operations_bytes: usize,
}

impl MemoryBudget {
    pub fn buffer_bytes(&self) -> usize {
        self.buffers.iter().map(|(size, count)| size * count).sum()
    }
    pub fn total_bytes(&self) -> usize {
        self.buffer_bytes() + self.ring_bytes + self.operations_bytes
    }
}

impl fmt::Display for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} MiB of buffers (", self.buffer_bytes() as f64 / (1 << 20) as f64)?;
        for (i, (size, count)) in self.buffers.iter().filter(|(_, count)| *count > 0).enumerate() {
            write!(f, "{}{count} x {} KiB", if i > 0 { ", " } else { "" }, size >> 10)?;
        }
        let huge = if self.huge_pages { "huge pages" } else { "ordinary pages" };
        let registered = if self.registered { "registered" } else { "not registered" };
        let (size, count) = self.receive;
        let receive = format_args!("{count} x {} KiB of them for receiving", size >> 10);
        let rest = (self.ring_bytes + self.operations_bytes) >> 10;
        let kept = self.kept_bytes >> 10;
        write!(
            f,
            "; {kept} KiB kept back; {huge}, {registered}; {receive}) and {rest} KiB of rings and operations"
        )
    }
}

/// The current reactor's memory.
pub fn memory_budget() -> MemoryBudget {
    Reactor::current(|reactor| {
        let counts = reactor.pool.config().counts;
        let driver = match &reactor.backend {
            Backend::Uring(driver) => driver.memory(),
            Backend::Sim(_) => DriverMemory::default(),
        };
        MemoryBudget {
            buffers: std::array::from_fn(|i| (CLASS_BYTES[i], counts[i])),
            huge_pages: reactor.pool.is_huge(),
            registered: driver.registered,
            receive: driver.receive,
            ring_bytes: driver.ring_bytes,
            operations_bytes: driver.operations_bytes,
            kept_bytes: reactor.pool.kept_bytes(),
        }
    })
}
