//! The pointers of a leaf in memory, and which of them may be more than absent.

use super::ptr::decode_into;
use super::{Bits, Block256, FANOUT, Lookup, Ptr};
use std::ops::Deref;

/// A leaf of a layer on top of others has few pointers, and nearly every read finds that it does not have the one that is
/// asked for: the bits tell, without a look at the pointer, which is in no cache.
pub(super) struct Pointers {
    ptrs: Box<Block256>,
    /// What has no bit is absent.
    there: Bits,
}

impl Pointers {
    pub fn absent() -> Pointers {
        Pointers { ptrs: Box::new([Ptr::ABSENT; FANOUT]), there: Bits::default() }
    }
    pub fn lookup(&self, slot: usize) -> Lookup {
        if self.there.get(slot) { self.ptrs[slot].lookup() } else { Lookup::Absent }
    }
    /// Returns what was there.
    pub fn put(&mut self, slot: usize, ptr: Ptr) -> Ptr {
        self.there.set(slot);
        std::mem::replace(&mut self.ptrs[slot], ptr)
    }
    pub fn fill(&mut self, ptr: Ptr) {
        self.ptrs.fill(ptr);
        self.look();
    }
    pub fn copy_from(&mut self, other: &Pointers) {
        self.ptrs.copy_from_slice(&*other.ptrs);
        self.there = other.there;
    }
    pub fn decode(&mut self, bytes: &[u8]) {
        decode_into(bytes, &mut self.ptrs);
        self.look();
    }

    fn look(&mut self) {
        self.there = Bits::default();
        let there = self.ptrs.iter().enumerate().filter(|(_, ptr)| **ptr != Ptr::ABSENT);
        there.for_each(|(slot, _)| _ = self.there.set(slot));
    }
}

impl Deref for Pointers {
    type Target = Block256;
    fn deref(&self) -> &Block256 {
        &self.ptrs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_is_found_however_it_came() {
        let agree = |p: &Pointers| (0..FANOUT).all(|slot| p.lookup(slot) == p[slot].lookup());
        let mut pointers = Pointers::absent();
        assert!(agree(&pointers) && pointers.lookup(7) == Lookup::Absent);
        assert_eq!(pointers.put(7, Ptr::ZERO), Ptr::ABSENT);
        assert!(agree(&pointers) && pointers.lookup(7) == Lookup::Zero);
        let mut copy = Pointers::absent();
        copy.copy_from(&pointers);
        let mut bytes = vec![0; super::super::PTR_BYTES * FANOUT];
        super::super::ptr::encode_block(&pointers, &mut bytes);
        let mut read = Pointers::absent();
        read.decode(&bytes);
        assert!([&copy, &read].into_iter().all(|p| agree(p) && p.lookup(7) == Lookup::Zero));
        pointers.put(7, Ptr::ABSENT);
        assert!(agree(&pointers));
        pointers.fill(Ptr::ZERO);
        assert!(agree(&pointers) && pointers.lookup(8) == Lookup::Zero);
    }
}
