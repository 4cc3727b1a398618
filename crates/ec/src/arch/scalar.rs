//! The plain twin: what the other paths are tested against, and what runs where none of them can.

use super::Term;
use crate::gf::NIBBLES;

pub(super) fn combine(terms: &[Term], out: &mut [&mut [u8]], add: bool) {
    for (r, o) in out.iter_mut().enumerate() {
        if !add {
            o.fill(0);
        }
        for term in terms {
            let table = &NIBBLES[term.weights.bytes[r] as usize];
            for (y, &x) in o.iter_mut().zip(term.slice) {
                *y ^= table[x as usize & 15] ^ table[16 + (x as usize >> 4)];
            }
        }
    }
}
