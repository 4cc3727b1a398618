//! One scheme's code: encode, plan, reconstruct.

use crate::arch::{self, Path, Table, Terms, Variant, Weights};
use crate::plan::{ColumnSet, NotEnough, Plan};
use crate::{K_MAX, M_MAX, gf};
use peristyle_base::{ColumnIndex, Scheme};

/// The systematic code of one scheme. Built once, small, and shared by reference.
///
/// Parity `j` is the sum over the data columns `i` of `2^(i*j) * data[i]`: the first parity is the XOR of the
/// data, the first two are RAID-6's P and Q, all four are ISA-L's `gf_gen_rs_matrix`. Column 0 has only ones,
/// so the codeword of `H, 0, .., 0` has parity `H` everywhere (DESIGN section 3, the header row). The first
/// parities of a longer code are those of a shorter one, and any k of the k+m columns give back the rest.
#[derive(Clone)]
pub struct Code {
    scheme: Scheme,
    path: Path,
    table: Table,
    /// `[i][j]`: what data column `i` is multiplied with for parity `j`.
    coefficients: [[u8; M_MAX]; K_MAX],
    /// The same as the kernels want it.
    weights: [Weights; K_MAX],
}

impl Code {
    /// The code of `scheme` on this processor's fastest path.
    pub fn new(scheme: Scheme) -> Code {
        Code::with_path(scheme, Path::best()).expect("the best path is an available one")
    }

    /// The same on a path of the caller's choice, for tests and benchmarks; `None` when this processor cannot.
    pub fn with_path(scheme: Scheme, path: Path) -> Option<Code> {
        let mut coefficients = [[0; M_MAX]; K_MAX];
        for (i, row) in coefficients.iter_mut().enumerate().take(scheme.k()) {
            for (j, coefficient) in row.iter_mut().enumerate().take(scheme.m()) {
                *coefficient = gf::exp(i * j);
            }
        }
        let weights = coefficients.map(Weights::new);
        Some(Code { scheme, path, table: path.table_checked()?, coefficients, weights })
    }

    pub fn scheme(&self) -> Scheme {
        self.scheme
    }
    pub fn path(&self) -> Path {
        self.path
    }

    /// Computes the parity columns.
    ///
    /// Shapes: `data` is k slices of equally many bytes, a multiple of 64; `parity` is m of the same length
    /// and is overwritten. Cost: one pass over the data whatever m is, no allocation. Best while the data is
    /// still in cache.
    /// # Panics
    /// When a shape is wrong: the frame builder made it, so the mistake is ours.
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) {
        self.check_encode(data.len(), parity.len());
        let mut terms = Terms::new();
        for (slice, weights) in data.iter().zip(&self.weights) {
            terms.push(slice, weights);
        }
        arch::combine(self.table, &terms, parity, Variant::FirstIsXor);
    }

    /// [`encode`](Self::encode) with holes: a column that is `None` counts as zeros and costs nothing.
    ///
    /// Meant for one row (4 KiB per column) at a time, whose blocks lie anywhere.
    /// # Panics
    /// When a shape is wrong.
    pub fn encode_sparse(&self, data: &[Option<&[u8]>], parity: &mut [&mut [u8]]) {
        self.check_encode(data.len(), parity.len());
        let mut terms = Terms::new();
        for (slice, weights) in data.iter().zip(&self.weights) {
            if let Some(slice) = slice {
                terms.push(slice, weights);
            }
        }
        arch::combine(self.table, &terms, parity, Variant::FirstIsXor);
    }

    fn check_encode(&self, data: usize, parity: usize) {
        assert_eq!((data, parity), (self.scheme.k(), self.scheme.m()), "columns do not fit the scheme");
    }

    /// Adds what data column `column` contributes to every parity: for data that arrives piece by piece, with
    /// parity that started as zeros. Adding the same again takes it out.
    /// # Panics
    /// When a shape is wrong.
    pub fn accumulate(&self, column: ColumnIndex, data: &[u8], parity: &mut [&mut [u8]]) {
        assert!((column.0 as usize) < self.scheme.k(), "not a data column");
        assert_eq!(parity.len(), self.scheme.m(), "columns do not fit the scheme");
        let mut terms = Terms::new();
        terms.push(data, &self.weights[column.0 as usize]);
        arch::combine(self.table, &terms, parity, Variant::Add);
    }

    /// Which k of the columns in `have` to read to get the columns in `wanted`, which need not be all that are
    /// lost: a degraded read wants one. A column in both counts as not there.
    ///
    /// Cost: no allocation, well under a microsecond; keep the plan while the same columns are missing.
    pub fn plan(&self, wanted: ColumnSet, have: ColumnSet) -> Result<Plan, NotEnough> {
        Plan::new(self.scheme, &self.coefficients, wanted, have)
    }

    /// Computes the plan's targets, data or parity, into `out`.
    ///
    /// Shapes: `sources` are the plan's k sources in its order (`None` is a hole: zeros), `out` has one slice
    /// per target, all equally long, a multiple of 64.
    /// # Panics
    /// When a shape is wrong, or the plan is another scheme's.
    pub fn reconstruct(&self, plan: &Plan, sources: &[Option<&[u8]>], out: &mut [&mut [u8]]) {
        assert_eq!(plan.scheme(), self.scheme, "the plan is another scheme's");
        assert_eq!(
            (sources.len(), out.len()),
            (plan.sources().len(), plan.targets().len()),
            "columns do not fit the plan"
        );
        let mut terms = Terms::new();
        for (place, slice) in sources.iter().enumerate() {
            if let Some(slice) = slice {
                terms.push(slice, plan.weights(place));
            }
        }
        arch::combine(self.table, &terms, out, plan.variant());
    }
}
