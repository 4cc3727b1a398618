//! The plain twin: what the other paths are tested against, and what runs where none of them can.

use crate::{M_MAX, gf::NIBBLES};

pub(super) fn combine(slices: &[&[u8]], coefficients: &[[u8; M_MAX]], out: &mut [&mut [u8]], add: bool) {
    for (r, o) in out.iter_mut().enumerate() {
        if !add {
            o.fill(0);
        }
        for (slice, coefficients) in slices.iter().zip(coefficients) {
            let table = &NIBBLES[coefficients[r] as usize];
            for (y, &x) in o.iter_mut().zip(*slice) {
                *y ^= table[x as usize & 15] ^ table[16 + (x as usize >> 4)];
            }
        }
    }
}
