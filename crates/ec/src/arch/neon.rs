//! aarch64: a byte times a constant is the XOR of two table look-ups (`TBL`), one per half of the byte.

use super::{Job, Kernels, kernels};
use crate::gf::NIBBLES;
use core::arch::aarch64::*;

pub(super) const KERNELS: Kernels = kernels!(combine);

pub(super) fn is_available() -> bool {
    std::arch::is_aarch64_feature_detected!("neon")
}

const VECTOR_BYTES: usize = 16;
/// Vectors of one column that are in work at once; four are one grain.
const U: usize = 4;

/// # Safety
/// See [`Kernel`](super::Kernel).
#[target_feature(enable = "neon")]
unsafe fn combine<const R: usize, const FIRST_IS_XOR: bool, const ADD: bool>(job: &Job) {
    let low_half = vdupq_n_u8(0x0f);
    let mut at = 0;
    while at + U * VECTOR_BYTES <= job.bytes {
        let mut sums = [[vdupq_n_u8(0); U]; R];
        for r in 0..if ADD { R } else { 0 } {
            for u in 0..U {
                // SAFETY: output `r` has `job.bytes` bytes, of which this vector is a part.
                sums[r][u] = unsafe { vld1q_u8(job.outputs[r].add(at + u * VECTOR_BYTES)) };
            }
        }
        for term in job.terms {
            let mut x = [vdupq_n_u8(0); U];
            for u in 0..U {
                // SAFETY: the source has `job.bytes` bytes, of which this vector is a part.
                x[u] = unsafe { vld1q_u8(term.slice.as_ptr().add(at + u * VECTOR_BYTES)) };
            }
            for r in 0..R {
                if FIRST_IS_XOR && r == 0 {
                    for u in 0..U {
                        sums[0][u] = veorq_u8(sums[0][u], x[u]);
                    }
                    continue;
                }
                let table = NIBBLES[term.weights.bytes[r] as usize].as_ptr();
                // SAFETY: a table is 32 bytes: two halves of 16.
                let (of_low, of_high) = unsafe { (vld1q_u8(table), vld1q_u8(table.add(VECTOR_BYTES))) };
                for u in 0..U {
                    let low = vqtbl1q_u8(of_low, vandq_u8(x[u], low_half));
                    let high = vqtbl1q_u8(of_high, vshrq_n_u8::<4>(x[u]));
                    sums[r][u] = veorq_u8(sums[r][u], veorq_u8(low, high));
                }
            }
        }
        for r in 0..R {
            for u in 0..U {
                // SAFETY: output `r` has `job.bytes` bytes, of which this vector is a part.
                unsafe { vst1q_u8(job.outputs[r].add(at + u * VECTOR_BYTES), sums[r][u]) };
            }
        }
        at += U * VECTOR_BYTES;
    }
}
