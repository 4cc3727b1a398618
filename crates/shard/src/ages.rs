//! Whether a block's age says anything about how long it will live. Pure.
//!
//! Sorting by age pays where what was written lately is overwritten first. Under uniform writes whatever is overwritten is as
//! old as what stays, on average: there sorting only makes more extents that are half full, and frames that mix less.

use crate::extent::Extent;

/// Overwritten blocks that the mean age is of: of those before, half count at each doubling.
const WINDOW: f64 = 131_072.0;
/// Blocks of which it is known how old they were, before anything is concluded.
const LEAST: f64 = 16_384.0;
/// Ages are alike when those that were overwritten had this share of the age of the others; not any more below the second.
const ALIKE: f64 = 0.9;
const UNLIKE: f64 = 0.8;

/// Blocks that one frame has overwritten.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Overwritten {
    blocks: u64,
    births: u64,
}

impl Overwritten {
    /// One more, of an extent whose blocks were written at this time on average.
    pub fn add(&mut self, birth: u64) {
        self.blocks += 1;
        self.births = self.births.saturating_add(birth);
    }
}

/// Ages of blocks when they were overwritten, beside those that are alive.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Ages {
    blocks: f64,
    sum: f64,
    alike: bool,
}

impl Ages {
    /// They were overwritten just now.
    pub fn overwritten(&mut self, over: Overwritten, now: u64) {
        self.blocks += over.blocks as f64;
        self.sum += over.blocks as f64 * now as f64 - over.births as f64;
        if self.blocks > WINDOW {
            (self.blocks, self.sum) = (self.blocks / 2.0, self.sum / 2.0);
        }
    }

    /// Looks at what is alive.
    pub fn compare<'a>(&mut self, extents: impl Iterator<Item = &'a Extent>, now: u64) {
        let (mut blocks, mut sum) = (0.0, 0.0);
        for e in extents.filter(|e| e.birth.is_known()) {
            blocks += f64::from(e.live);
            sum += f64::from(e.live) * now.saturating_sub(e.birth.mean()) as f64;
        }
        if self.blocks < LEAST || sum <= 0.0 {
            return;
        }
        let ratio = (self.sum / self.blocks) / (sum / blocks);
        self.alike = ratio > if self.alike { UNLIKE } else { ALIKE };
    }

    /// There is nothing to sort.
    pub fn are_alike(&self) -> bool {
        self.alike
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::ExtentPhase;
    use peristyle_base::{Epoch, ExtentId, Nonce, Scheme};
    use peristyle_cluster::ColumnPlaces;

    const NOW: u64 = 1_000_000;

    fn extent(live: u32, birth: u64) -> Extent {
        let places = ColumnPlaces::new(&[]);
        let scheme = Scheme::new(4, 2).unwrap();
        let mut e = Extent::new(ExtentId(1), scheme, Nonce([0; 16]), Epoch(1), places, ExtentPhase::Sealed);
        e.live = live;
        e.birth.add(live as u64, birth, birth);
        e
    }

    fn after(overwritten: u64, birth: u64, mut ages: Ages) -> Ages {
        for _ in 0..overwritten / 256 {
            let mut over = Overwritten::default();
            (0..256).for_each(|_| over.add(birth));
            ages.overwritten(over, NOW);
        }
        ages.compare([extent(1000, 0), extent(1000, NOW / 2)].iter(), NOW);
        ages
    }

    #[test]
    fn what_dies_as_old_as_the_rest_is_not_sorted_and_what_dies_young_is() {
        assert!(!after(LEAST as u64 / 2, NOW / 4, Ages::default()).are_alike(), "too few are known");
        let alike = after(LEAST as u64, NOW / 4, Ages::default());
        assert!(alike.are_alike(), "both have lived for three quarters of the time");
        assert!(!after(LEAST as u64, NOW * 3 / 4, Ages::default()).are_alike());
        let changed = after(8 * WINDOW as u64, NOW * 3 / 4, alike);
        assert!(!changed.are_alike(), "what was so long ago does not count");
    }

    #[test]
    fn between_the_marks_it_stays_as_it_was() {
        // Ages of 0.85 of the mean, 750,000.
        let birth = NOW - 637_500;
        assert!(!after(4 * LEAST as u64, birth, Ages::default()).are_alike());
        let alike = Ages { alike: true, ..Ages::default() };
        assert!(after(4 * LEAST as u64, birth, alike).are_alike());
    }
}
