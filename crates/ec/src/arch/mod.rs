//! The arithmetic: one operation, linear combination of byte slices, in one version per instruction set.
//!
//! `out[r] = sum over i of weight[i][r] * source[i]` (or `out[r] += ..`). Everything else in this crate says
//! which sources and which weights. This module is the only one with `unsafe` in it; the function that
//! leaves it, [`combine`], checks every length before a kernel sees a pointer.

use crate::{GRAIN_BYTES, K_MAX, M_MAX, gf};
use core::mem::MaybeUninit;

mod scalar;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod gfni;
#[cfg(target_arch = "aarch64")]
mod neon;

/// The instruction set that does the arithmetic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Path {
    /// Plain Rust, a byte at a time: the oracle of the others.
    Scalar,
    /// x86-64: byte shuffles of 32 bytes.
    Avx2,
    /// x86-64: bit-matrix products of 32 bytes, for processors with GFNI and without AVX-512.
    Avx2Gfni,
    /// x86-64: bit-matrix products of 64 bytes.
    Avx512Gfni,
    /// aarch64: byte table look-ups of 16 bytes.
    Neon,
}

impl Path {
    /// From the plainest to the fastest.
    pub const ALL: [Path; 5] = [Path::Scalar, Path::Neon, Path::Avx2, Path::Avx2Gfni, Path::Avx512Gfni];

    /// Whether this processor has what the path needs.
    pub fn is_available(self) -> bool {
        self.table_checked().is_some()
    }

    /// The fastest path of this processor.
    pub fn best() -> Path {
        Path::ALL.into_iter().rev().find(|path| path.is_available()).unwrap_or(Path::Scalar)
    }

    pub fn name(self) -> &'static str {
        match self {
            Path::Scalar => "scalar",
            Path::Avx2 => "avx2",
            Path::Avx2Gfni => "avx2+gfni",
            Path::Avx512Gfni => "avx512+gfni",
            Path::Neon => "neon",
        }
    }

    /// The path's kernels; `None` when this processor cannot run them.
    pub(crate) fn table_checked(self) -> Option<Table> {
        let kernels = match self {
            Path::Scalar => return Some(Table(None)),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 if avx2::is_available() => &avx2::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Path::Avx2Gfni if gfni::is_available_256() => &gfni::KERNELS_256,
            #[cfg(target_arch = "x86_64")]
            Path::Avx512Gfni if gfni::is_available_512() => &gfni::KERNELS_512,
            #[cfg(target_arch = "aarch64")]
            Path::Neon if neon::is_available() => &neon::KERNELS,
            _ => return None,
        };
        Some(Table(Some(kernels)))
    }
}

/// A path's kernels. That one exists proves that this processor can run them; `None` is the scalar twin.
#[derive(Clone, Copy)]
pub(crate) struct Table(Option<&'static Kernels>);

/// One kernel per number of outputs (1..=4) and [`Variant`], in its order.
type Kernels = [[Kernel; 3]; M_MAX];

/// # Safety
/// The processor has the instructions of the kernel's path. The source of every term of the job has
/// `job.bytes` readable bytes, and the outputs that the kernel has point to as many writable ones each, which
/// nothing else overlaps. `job.bytes` is a multiple of [`GRAIN_BYTES`].
type Kernel = unsafe fn(&Job);

/// The `FIRST_IS_XOR` and `ADD` of a kernel's const parameters, per variant, for the tables.
macro_rules! kernels {
    ($kernel:ident) => {
        [
            [$kernel::<1, true, false>, $kernel::<1, false, false>, $kernel::<1, false, true>],
            [$kernel::<2, true, false>, $kernel::<2, false, false>, $kernel::<2, false, true>],
            [$kernel::<3, true, false>, $kernel::<3, false, false>, $kernel::<3, false, true>],
            [$kernel::<4, true, false>, $kernel::<4, false, false>, $kernel::<4, false, true>],
        ]
    };
}
#[allow(unused_imports)] // unused where only the scalar path exists
use kernels;

/// What a source is multiplied with, per output: as bytes (for tables) and as bit matrices (for GFNI).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Weights {
    bytes: [u8; M_MAX],
    matrices: [u64; M_MAX],
}

impl Weights {
    pub const ZERO: Weights = Weights::new([0; M_MAX]);

    pub const fn new(bytes: [u8; M_MAX]) -> Weights {
        let (mut matrices, mut r) = ([0; M_MAX], 0);
        while r < M_MAX {
            matrices[r] = gf::MATRICES[bytes[r] as usize];
            r += 1;
        }
        Weights { bytes, matrices }
    }
    pub const fn bytes(&self) -> [u8; M_MAX] {
        self.bytes
    }
}

#[derive(Clone, Copy)]
struct Term<'a> {
    slice: &'a [u8],
    weights: &'a Weights,
}

/// The sources of one combination: at most [`K_MAX`] slices with their weights. On the stack of each call,
/// which is why it is not zeroed first: that took as long as the arithmetic of a small row.
pub(crate) struct Terms<'a> {
    count: usize,
    terms: [MaybeUninit<Term<'a>>; K_MAX],
}

impl<'a> Terms<'a> {
    #[inline]
    pub fn new() -> Terms<'a> {
        Terms { count: 0, terms: [MaybeUninit::uninit(); K_MAX] }
    }
    #[inline]
    pub fn push(&mut self, slice: &'a [u8], weights: &'a Weights) {
        self.terms[self.count].write(Term { slice, weights });
        self.count += 1;
    }
    fn as_slice(&self) -> &[Term<'a>] {
        // SAFETY: `push` wrote the first `count` terms, and nothing unwrites one.
        unsafe { self.terms[..self.count].assume_init_ref() }
    }
}

/// What a kernel works on.
struct Job<'a> {
    terms: &'a [Term<'a>],
    bytes: usize,
    outputs: [*mut u8; M_MAX],
}

/// What the caller knows of the weights, or wants to happen to what is in the outputs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Variant {
    /// The weights of output 0 are all one: XOR, no multiplication.
    FirstIsXor,
    General,
    /// Adds to what the outputs hold.
    Add,
}

/// `out[r] = sum over the terms of weights[r] * slice`; with [`Variant::Add`], `out[r] += ..`. No terms are
/// zeros.
///
/// # Panics
/// When the slices are not all equally long, or that length is not a multiple of [`GRAIN_BYTES`].
pub(crate) fn combine(table: Table, terms: &Terms, out: &mut [&mut [u8]], variant: Variant) {
    assert!(out.len() <= M_MAX, "more outputs than a scheme has parity columns");
    let Some(bytes) = out.first().map(|o| o.len()) else { return };
    let terms = terms.as_slice();
    assert!(bytes.is_multiple_of(GRAIN_BYTES), "a slice is not a multiple of {GRAIN_BYTES} bytes");
    assert!(out.iter().all(|o| o.len() == bytes), "outputs of different length");
    assert!(terms.iter().all(|t| t.slice.len() == bytes), "a source is not as long as the outputs");

    if terms.len() <= 1 && variant != Variant::Add && copy_or_zero(terms, out) {
        return;
    }
    let Some(kernels) = table.0 else { return scalar::combine(terms, out, variant == Variant::Add) };
    let mut job = Job { terms, bytes, outputs: [core::ptr::null_mut(); M_MAX] };
    for (pointer, o) in job.outputs.iter_mut().zip(out.iter_mut()) {
        *pointer = o.as_mut_ptr();
    }
    let kernel = kernels[out.len() - 1][variant as usize];
    // SAFETY: a `Table` is only made where the processor has the instructions. All slices were checked to
    // be `bytes` long, a multiple of the grain; there are exactly as many outputs as the kernel writes; they
    // are exclusive borrows, so they overlap nothing.
    unsafe { kernel(&job) }
}

/// Replication and rows that are all hole need no arithmetic. False: this is neither.
fn copy_or_zero(terms: &[Term], out: &mut [&mut [u8]]) -> bool {
    match terms {
        [] => out.iter_mut().for_each(|o| o.fill(0)),
        [only] if only.weights.bytes[..out.len()].iter().all(|&weight| weight == 1) => {
            out.iter_mut().for_each(|o| o.copy_from_slice(only.slice));
        }
        _ => return false,
    }
    true
}
