//! Memory as a device. What was never written, or was zeroed since, is known page by page: to zero a range moves no
//! bytes.

use crate::buf::IoVec;
use crate::uring;
use std::cell::RefCell;

const PAGE: usize = 4096;

pub(crate) struct Memory {
    bytes: RefCell<Vec<u8>>,
    /// Where the device begins in `bytes`: at a page's start. What lies across lines of the cache is copied a sixth
    /// slower, and a large allocation begins 16 bytes behind a page's start.
    start: usize,
    /// Bit per page: it holds what was written. Others read as zeros, whatever their bytes are.
    written: RefCell<Vec<u64>>,
}

impl Memory {
    /// On a thread of its own where there is one: a page that is touched first while it is written costs the
    /// reactor a fault of up to milliseconds (the kernel may have to make room for a huge page).
    pub(crate) async fn new(bytes: u64) -> Memory {
        let make = move || {
            let memory = vec![0; bytes as usize + PAGE];
            uring::populate(&memory);
            memory
        };
        let memory = match crate::reactor::backend_kind() {
            crate::reactor::BackendKind::Uring(_) => crate::blocking(make).await,
            crate::reactor::BackendKind::Sim(_) => vec![0; bytes as usize + PAGE],
        };
        Memory {
            start: memory.as_ptr().align_offset(PAGE).min(PAGE),
            bytes: RefCell::new(memory),
            written: RefCell::new(vec![0; (bytes as usize / PAGE).div_ceil(64)]),
        }
    }

    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) {
        let (bytes, written) = (self.bytes.borrow(), self.written.borrow());
        let bytes = &bytes[self.start..];
        let (mut page, mut done) = (offset as usize / PAGE, 0);
        while done < into.len() {
            // As many pages as are alike, at once.
            let is_written = |page: usize| written[page / 64] >> (page % 64) & 1 == 1;
            let (first, kind) = (page, is_written(page));
            while (page - first) * PAGE < into.len() - done && is_written(page) == kind {
                page += 1;
            }
            let run = &mut into[done..done + (page - first) * PAGE];
            match kind {
                true => run.copy_from_slice(&bytes[first * PAGE..page * PAGE]),
                false => run.fill(0),
            }
            done += run.len();
        }
    }

    pub(crate) fn write(&self, offset: u64, iov: &IoVec) {
        let mut at = offset as usize;
        let mut bytes = self.bytes.borrow_mut();
        let bytes = &mut bytes[self.start..];
        for piece in iov.pieces() {
            // Logs are written in order: the lines behind these are wanted next, be it by the next write.
            uring::expect_write(&bytes[(at + piece.len()).min(bytes.len())..], PAGE);
            bytes[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
        let mut written = self.written.borrow_mut();
        (offset as usize / PAGE..at / PAGE).for_each(|page| written[page / 64] |= 1 << (page % 64));
    }

    pub(crate) fn zero(&self, offset: u64, bytes: u64) {
        let (first, end) = (offset as usize / PAGE, (offset + bytes) as usize / PAGE);
        let mut written = self.written.borrow_mut();
        (first..end).for_each(|page| written[page / 64] &= !(1 << (page % 64)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Buf, RuntimeConfig, block_on};

    #[test]
    #[cfg_attr(miri, ignore)]
    fn what_was_zeroed_or_never_written_reads_as_zeros_beside_what_was() {
        block_on(RuntimeConfig::small(), async {
            let memory = Memory::new(200 * PAGE as u64).await;
            let mut model = vec![0u8; 200 * PAGE];
            for (step, &(page, pages, zero)) in
                [(3, 4, false), (62, 5, false), (4, 2, true), (63, 1, true), (5, 1, false), (150, 50, false)]
                    .iter()
                    .enumerate()
            {
                let range = page * PAGE..(page + pages) * PAGE;
                if zero {
                    memory.zero(range.start as u64, range.len() as u64);
                    model[range].fill(0);
                } else {
                    let mut buf = Buf::alloc(range.len()).await;
                    buf.fill(step as u8 + 1);
                    memory.write(range.start as u64, &buf.freeze().into());
                    model[range].fill(step as u8 + 1);
                }
                let mut all = vec![9; model.len()];
                memory.read(0, &mut all);
                assert_eq!(all, model);
                let mut some = vec![9; 3 * PAGE];
                memory.read(4 * PAGE as u64, &mut some);
                assert_eq!(some, model[4 * PAGE..7 * PAGE]);
            }
        });
    }
}
