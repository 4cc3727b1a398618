//! Discards: what they leave behind is nobody's guess.

use super::{Disk, DiskState, Kind};
use crate::device::IoError;
use crate::sim::cell::Answer;
use crate::sim::image::{PAGE_BYTES, Page, PageBytes};

impl DiskState {
    /// What discarded pages read as: zeros, what they held, what stands anywhere else on the disk (once it was theirs), or
    /// nonsense.
    fn leftovers(&mut self, offset: u64, count: usize) -> Vec<Page> {
        let first = offset / PAGE_BYTES as u64;
        let pages = first..first + count as u64;
        let mut leftover = |number| match self.rng.below(4) {
            0 => None,
            1 => self.current.page(number).clone(),
            2 => self.current.page(self.rng.below(self.current.pages())).clone(),
            _ => Some(PageBytes::new([self.rng.below(256) as u8; PAGE_BYTES])),
        };
        pages.map(&mut leftover).collect()
    }

    pub(super) fn discard(
        &mut self,
        now: u64,
        number: u64,
        offset: u64,
        pages: Vec<Page>,
    ) -> Result<(), IoError> {
        self.changes += 1;
        self.stats.discards += 1;
        self.stats.bytes_discarded += (pages.len() * PAGE_BYTES) as u64;
        let first = offset / PAGE_BYTES as u64;
        if let Err(error) = self.broken(now, self.faults.discard_error_ppm) {
            if error != IoError::Gone {
                self.tear(number, first, &pages);
            }
            return Err(error);
        }
        for (page_number, page) in (first..).zip(pages) {
            self.apply(number, page_number, page, false);
        }
        Ok(())
    }
}

impl Disk {
    pub(crate) async fn discard(&self, offset: u64, bytes: u64) -> Result<(), IoError> {
        let answer = Answer::new();
        self.submit(offset, |state| {
            let pages = state.leftovers(offset, bytes as usize / PAGE_BYTES);
            Kind::Discard { pages, answer: answer.clone() }
        });
        answer.wait().await
    }
}
