//! Systematic k+m erasure codes over GF(2^8), k in 1..=16 and m in 0..=4.
//!
//! Read first: [`Code`] (encode and decode for one scheme), [`Plan`] (what to read for a loss, and the
//! coefficients), [`Path`] (which instruction set does the arithmetic).
//!
//! **Invariant:** no allocation per call, no threads, and no `unsafe` outside [`arch`].
#![deny(unsafe_code)]
// Matrices and vectors of vectors read better by index, and the kernels unroll better.
#![allow(clippy::needless_range_loop)]

#[allow(unsafe_code)]
mod arch;
mod code;
pub mod gf;
mod plan;

pub use arch::Path;
pub use code::Code;
pub use plan::{ColumnSet, NotEnough, Plan};

/// Most data columns of a scheme.
pub const K_MAX: usize = peristyle_base::Scheme::K_MAX as usize;
/// Most parity columns, hence most columns that one call computes.
pub const M_MAX: usize = peristyle_base::Scheme::M_MAX as usize;
/// Every slice that is encoded or decoded is a multiple of this long: one cache line.
pub const GRAIN_BYTES: usize = 64;
