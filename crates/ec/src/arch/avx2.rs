//! x86-64 with AVX2: a byte times a constant is the XOR of two table look-ups, one per half of the byte.

use super::{Job, Kernels, kernels};
use crate::gf::NIBBLES;
use core::arch::x86_64::*;

pub(super) const KERNELS: Kernels = kernels!(combine);

pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx2")
}

/// Vectors of one column that are in work at once; two are one grain.
const U: usize = 2;

/// # Safety
/// See [`Kernel`](super::Kernel).
#[target_feature(enable = "avx2")]
unsafe fn combine<const R: usize, const FIRST_IS_XOR: bool, const ADD: bool>(job: &Job) {
    let low_half = _mm256_set1_epi8(0x0f);
    let mut at = 0;
    while at + U * size_of::<__m256i>() <= job.bytes {
        let mut sums = [[_mm256_setzero_si256(); U]; R];
        for r in 0..if ADD { R } else { 0 } {
            for u in 0..U {
                // SAFETY: output `r` has `job.bytes` bytes, of which this vector is a part.
                sums[r][u] = unsafe { _mm256_loadu_si256(job.outputs[r].add(at).cast::<__m256i>().add(u)) };
            }
        }
        for term in job.terms {
            let (mut x, mut low, mut high) =
                ([sums[0][0]; U], [_mm256_setzero_si256(); U], [_mm256_setzero_si256(); U]);
            for u in 0..U {
                // SAFETY: the source has `job.bytes` bytes, of which this vector is a part.
                x[u] = unsafe { _mm256_loadu_si256(term.slice.as_ptr().add(at).cast::<__m256i>().add(u)) };
                low[u] = _mm256_and_si256(x[u], low_half);
                high[u] = _mm256_and_si256(_mm256_srli_epi64::<4>(x[u]), low_half);
            }
            for r in 0..R {
                if FIRST_IS_XOR && r == 0 {
                    for u in 0..U {
                        sums[0][u] = _mm256_xor_si256(sums[0][u], x[u]);
                    }
                    continue;
                }
                let table = NIBBLES[term.weights.bytes[r] as usize].as_ptr().cast::<__m128i>();
                // SAFETY: a table is 32 bytes: two halves of 16.
                let halves = unsafe { [_mm_loadu_si128(table), _mm_loadu_si128(table.add(1))] };
                let [of_low, of_high] = halves.map(|half| _mm256_broadcastsi128_si256(half));
                for u in 0..U {
                    let product = _mm256_xor_si256(
                        _mm256_shuffle_epi8(of_low, low[u]),
                        _mm256_shuffle_epi8(of_high, high[u]),
                    );
                    sums[r][u] = _mm256_xor_si256(sums[r][u], product);
                }
            }
        }
        for r in 0..R {
            for u in 0..U {
                // SAFETY: output `r` has `job.bytes` bytes, of which this vector is a part.
                unsafe { _mm256_storeu_si256(job.outputs[r].add(at).cast::<__m256i>().add(u), sums[r][u]) };
            }
        }
        at += U * size_of::<__m256i>();
    }
}
