//! 256 bits: one for each pointer of a leaf, or each child of a page.

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bits([u64; 4]);

impl Bits {
    pub fn get(&self, at: usize) -> bool {
        self.0[at / 64] >> (at % 64) & 1 == 1
    }
    /// True when it was not set before.
    pub fn set(&mut self, at: usize) -> bool {
        let new = !self.get(at);
        self.0[at / 64] |= 1 << (at % 64);
        new
    }
    pub fn clear(&mut self, at: usize) {
        self.0[at / 64] &= !(1 << (at % 64));
    }
    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }
    pub fn add(&mut self, other: Bits) {
        self.0.iter_mut().zip(other.0).for_each(|(mine, more)| *mine |= more);
    }
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..4).flat_map(move |word| {
            let mut left = self.0[word];
            std::iter::from_fn(move || {
                let at = (left != 0).then(|| left.trailing_zeros() as usize)?;
                left &= left - 1;
                Some(word * 64 + at)
            })
        })
    }
}
