//! The arithmetic: one operation, linear combination of byte slices, in one version per instruction set.
//!
//! `out[r] = sum over i of coef[i][r] * source[i]` (or `out[r] += ..`). Everything else in this crate says
//! which sources and which coefficients. This module is the only one with `unsafe` in it; the function that
//! leaves it, [`combine`], checks every length before a kernel sees a pointer.

use crate::{GRAIN_BYTES, K_MAX, M_MAX, gf};

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

/// One kernel per number of outputs (1..=4) and [`Variant`].
type Kernels = [[Kernel; 3]; M_MAX];

/// # Safety
/// The processor has the instructions of the kernel's path. `job.sources[..job.count]` point to `job.bytes`
/// readable bytes each, the outputs that the kernel has to as many writable ones that nothing else
/// overlaps. `job.bytes` is a multiple of [`GRAIN_BYTES`], `job.count` at most [`K_MAX`].
type Kernel = unsafe fn(&Job);

/// Index into a row of [`Kernels`].
#[derive(Clone, Copy)]
enum Variant {
    /// Output 0 has only ones as coefficients: XOR, no multiplication.
    FirstIsXor,
    General,
    /// Adds to what the outputs hold.
    Add,
}

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

/// What a kernel works on. Coefficients come as bytes (table paths) and as bit matrices (GFNI).
struct Job {
    count: usize,
    bytes: usize,
    sources: [*const u8; K_MAX],
    outputs: [*mut u8; M_MAX],
    coefficients: [[u8; M_MAX]; K_MAX],
    matrices: [[u64; M_MAX]; K_MAX],
}

/// The sources of one combination: up to [`K_MAX`] slices with a coefficient per output.
pub(crate) struct Terms<'a> {
    count: usize,
    slices: [&'a [u8]; K_MAX],
    coefficients: [[u8; M_MAX]; K_MAX],
}

impl<'a> Terms<'a> {
    pub fn new() -> Terms<'a> {
        Terms { count: 0, slices: [&[]; K_MAX], coefficients: [[0; M_MAX]; K_MAX] }
    }
    pub fn push(&mut self, slice: &'a [u8], coefficients: [u8; M_MAX]) {
        self.slices[self.count] = slice;
        self.coefficients[self.count] = coefficients;
        self.count += 1;
    }
}

/// `out[r] = sum of coefficients[i][r] * slices[i]`; with `add`, `out[r] += ..`. No terms give zeros.
///
/// # Panics
/// When the slices are not all equally long, or that length is not a multiple of [`GRAIN_BYTES`].
pub(crate) fn combine(table: Table, terms: &Terms, out: &mut [&mut [u8]], add: bool) {
    assert!(out.len() <= M_MAX, "more outputs than a scheme has parity columns");
    let Some(bytes) = out.first().map(|o| o.len()) else { return };
    assert!(bytes.is_multiple_of(GRAIN_BYTES), "a slice is not a multiple of {GRAIN_BYTES} bytes");
    assert!(out.iter().all(|o| o.len() == bytes), "outputs of different length");
    let (slices, coefficients) = (&terms.slices[..terms.count], &terms.coefficients[..terms.count]);
    assert!(slices.iter().all(|s| s.len() == bytes), "a source is not as long as the outputs");

    if !add && slices.len() <= 1 && coefficients.iter().all(|c| c[..out.len()].iter().all(|&x| x == 1)) {
        for o in out {
            match slices {
                [only] => o.copy_from_slice(only),
                _ => o.fill(0),
            }
        }
        return;
    }
    let Some(kernels) = table.0 else { return scalar::combine(slices, coefficients, out, add) };
    let variant = match coefficients.iter().all(|c| c[0] == 1) {
        _ if add => Variant::Add,
        true => Variant::FirstIsXor,
        false => Variant::General,
    };
    let mut job = Job {
        count: slices.len(),
        bytes,
        sources: [core::ptr::null(); K_MAX],
        outputs: [core::ptr::null_mut(); M_MAX],
        coefficients: terms.coefficients,
        matrices: [[0; M_MAX]; K_MAX],
    };
    for (i, slice) in slices.iter().enumerate() {
        job.sources[i] = slice.as_ptr();
        job.matrices[i] = coefficients[i].map(|c| gf::MATRICES[c as usize]);
    }
    for (pointer, o) in job.outputs.iter_mut().zip(out.iter_mut()) {
        *pointer = o.as_mut_ptr();
    }
    let kernel = kernels[out.len() - 1][variant as usize];
    // SAFETY: a `Table` is only made where the processor has the instructions. All slices were checked to
    // be `bytes` long, a multiple of the grain; there are at most K_MAX of them and exactly as many outputs
    // as the kernel writes; the outputs are exclusive borrows, so they overlap nothing.
    unsafe { kernel(&job) }
}
