//! x86-64 with GFNI: `GF2P8AFFINEQB` multiplies every byte of a vector by a constant, given as an 8x8 bit
//! matrix. 64 bytes at a time with AVX-512, 32 with AVX2.

use super::{Job, Kernels, kernels};
use core::arch::x86_64::*;

pub(super) const KERNELS_512: Kernels = kernels!(combine_512);
pub(super) const KERNELS_256: Kernels = kernels!(combine_256);

pub(super) fn is_available_512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("gfni")
}

pub(super) fn is_available_256() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("gfni")
}

macro_rules! path {
    ($combine:ident, $step:ident, $features:literal, $vector:ty, $unroll:literal,
     $load:ident, $store:ident, $zero:ident, $xor:ident, $affine:ident, $broadcast:ident) => {
        /// # Safety
        /// See [`Kernel`](super::Kernel).
        #[target_feature(enable = $features)]
        unsafe fn $combine<const R: usize, const FIRST_IS_XOR: bool, const ADD: bool>(job: &Job) {
            let mut at = 0;
            while at + $unroll * size_of::<$vector>() <= job.bytes {
                // SAFETY: the caller's promise, and `at` plus what a step reads is within `bytes`.
                unsafe { $step::<R, $unroll, FIRST_IS_XOR, ADD>(job, at) };
                at += $unroll * size_of::<$vector>();
            }
            while at + size_of::<$vector>() <= job.bytes {
                // SAFETY: as above.
                unsafe { $step::<R, 1, FIRST_IS_XOR, ADD>(job, at) };
                at += size_of::<$vector>();
            }
        }

        /// `U` vectors of every column, from byte `at` on.
        ///
        /// # Safety
        /// See [`Kernel`](super::Kernel); `at` plus `U` vectors is at most `job.bytes`.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $step<const R: usize, const U: usize, const FIRST_IS_XOR: bool, const ADD: bool>(
            job: &Job,
            at: usize,
        ) {
            let mut sums = [[$zero(); U]; R];
            if ADD {
                for r in 0..R {
                    for u in 0..U {
                        // SAFETY: output `r` has `job.bytes` bytes, of which this vector is a part.
                        sums[r][u] = unsafe { $load(job.outputs[r].add(at).cast::<$vector>().add(u)) };
                    }
                }
            }
            // Two sources at a time, so that AVX-512 adds both to a sum in one three-way XOR.
            let mut pairs = job.terms.chunks_exact(2);
            for pair in &mut pairs {
                let (a, b) = (&pair[0], &pair[1]);
                let (mut x, mut y) = ([$zero(); U], [$zero(); U]);
                for u in 0..U {
                    // SAFETY: sources have `job.bytes` bytes, of which these vectors are a part.
                    x[u] = unsafe { $load(a.slice.as_ptr().add(at).cast::<$vector>().add(u)) };
                    // SAFETY: as above.
                    y[u] = unsafe { $load(b.slice.as_ptr().add(at).cast::<$vector>().add(u)) };
                }
                for r in 0..R {
                    let of_x = $broadcast(a.weights.matrices[r] as i64);
                    let of_y = $broadcast(b.weights.matrices[r] as i64);
                    for u in 0..U {
                        let products = match FIRST_IS_XOR && r == 0 {
                            true => $xor(x[u], y[u]),
                            false => $xor($affine::<0>(x[u], of_x), $affine::<0>(y[u], of_y)),
                        };
                        sums[r][u] = $xor(sums[r][u], products);
                    }
                }
            }
            for last in pairs.remainder() {
                for u in 0..U {
                    // SAFETY: the source has `job.bytes` bytes, of which this vector is a part.
                    let x = unsafe { $load(last.slice.as_ptr().add(at).cast::<$vector>().add(u)) };
                    for r in 0..R {
                        let product = match FIRST_IS_XOR && r == 0 {
                            true => x,
                            false => $affine::<0>(x, $broadcast(last.weights.matrices[r] as i64)),
                        };
                        sums[r][u] = $xor(sums[r][u], product);
                    }
                }
            }
            for r in 0..R {
                for u in 0..U {
                    // SAFETY: output `r` has `job.bytes` bytes, of which this vector is a part.
                    unsafe { $store(job.outputs[r].add(at).cast::<$vector>().add(u), sums[r][u]) };
                }
            }
        }
    };
}

path!(
    combine_512,
    step_512,
    "avx512f,avx512bw,gfni",
    __m512i,
    4,
    _mm512_loadu_si512,
    _mm512_storeu_si512,
    _mm512_setzero_si512,
    _mm512_xor_si512,
    _mm512_gf2p8affine_epi64_epi8,
    _mm512_set1_epi64
);
path!(
    combine_256,
    step_256,
    "avx2,gfni",
    __m256i,
    2,
    _mm256_loadu_si256,
    _mm256_storeu_si256,
    _mm256_setzero_si256,
    _mm256_xor_si256,
    _mm256_gf2p8affine_epi64_epi8,
    _mm256_set1_epi64x
);
