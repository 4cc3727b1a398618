//! Which columns to read for a loss, and with which coefficients they give the lost ones.

use crate::arch::{Variant, Weights};
use crate::{K_MAX, M_MAX, gf};
use core::fmt;
use peristyle_base::{ColumnIndex, Scheme};

/// A set of an extent's columns: bit `i` is column `i`, data before parity.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ColumnSet(pub u32);

impl ColumnSet {
    pub const EMPTY: ColumnSet = ColumnSet(0);

    /// All columns of a scheme.
    pub const fn all(scheme: Scheme) -> ColumnSet {
        ColumnSet((1 << scheme.width()) - 1)
    }
    pub const fn one(column: ColumnIndex) -> ColumnSet {
        ColumnSet::EMPTY.with(column)
    }
    #[must_use]
    pub const fn with(self, column: ColumnIndex) -> ColumnSet {
        assert!((column.0 as usize) < Scheme::WIDTH_MAX, "no scheme has so many columns");
        ColumnSet(self.0 | 1 << column.0)
    }
    #[must_use]
    pub const fn without(self, others: ColumnSet) -> ColumnSet {
        ColumnSet(self.0 & !others.0)
    }
    #[must_use]
    pub const fn and(self, others: ColumnSet) -> ColumnSet {
        ColumnSet(self.0 & others.0)
    }
    pub const fn contains(self, column: ColumnIndex) -> bool {
        column.0 < 32 && self.0 >> column.0 & 1 != 0
    }
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
    pub const fn count(self) -> usize {
        self.0.count_ones() as usize
    }
    /// The columns, lowest first.
    pub fn iter(self) -> impl Iterator<Item = ColumnIndex> {
        let mut left = self.0;
        core::iter::from_fn(move || {
            let column = (left != 0).then(|| ColumnIndex(left.trailing_zeros() as u8))?;
            left &= left - 1;
            Some(column)
        })
    }
}

impl FromIterator<ColumnIndex> for ColumnSet {
    fn from_iter<I: IntoIterator<Item = ColumnIndex>>(columns: I) -> ColumnSet {
        columns.into_iter().fold(ColumnSet::EMPTY, ColumnSet::with)
    }
}

impl fmt::Debug for ColumnSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|column| column.0)).finish()
    }
}

/// Fewer than k columns are there: what was wanted cannot be computed now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotEnough {
    /// Columns of the extent that can be read.
    pub have: usize,
    /// Columns that it takes: k.
    pub need: usize,
}

impl fmt::Display for NotEnough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} columns can be read, {} are needed", self.have, self.need)
    }
}
impl core::error::Error for NotEnough {}

/// The k columns to read, the columns that they give, and the coefficients. A plain value: no allocation,
/// to be kept for as long as the same columns are missing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    scheme: Scheme,
    sources: [ColumnIndex; K_MAX],
    targets: [ColumnIndex; M_MAX],
    target_count: usize,
    /// `[i][r]`: what source `i` is multiplied with for target `r`.
    weights: [Weights; K_MAX],
    variant: Variant,
}

impl Plan {
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }
    /// The columns to read, exactly k, lowest first.
    pub fn sources(&self) -> &[ColumnIndex] {
        &self.sources[..self.scheme.k()]
    }
    /// The columns that come out, lowest first.
    pub fn targets(&self) -> &[ColumnIndex] {
        &self.targets[..self.target_count]
    }
    /// What the source at `place` of [`sources`](Self::sources) is multiplied with, per target.
    pub(crate) fn weights(&self, place: usize) -> &Weights {
        &self.weights[place]
    }
    pub(crate) fn variant(&self) -> Variant {
        self.variant
    }

    /// Plans `wanted` out of `have`. Prefers data columns, then the first parity (XOR).
    pub(crate) fn new(
        scheme: Scheme,
        parity: &[[u8; M_MAX]; K_MAX],
        wanted: ColumnSet,
        have: ColumnSet,
    ) -> Result<Plan, NotEnough> {
        let (k, all) = (scheme.k(), ColumnSet::all(scheme));
        assert!(wanted.without(all).is_empty(), "{wanted:?} is not within {scheme}");
        let have = have.and(all).without(wanted);
        if have.count() < k {
            return Err(NotEnough { have: have.count(), need: k });
        }
        let mut plan = Plan {
            scheme,
            sources: [ColumnIndex(0); K_MAX],
            targets: [ColumnIndex(0); M_MAX],
            target_count: wanted.count(),
            weights: [Weights::ZERO; K_MAX],
            variant: Variant::General,
        };
        // Lowest first is data before parity, and the first parity before the others. At most m columns
        // are not in `have`, so `wanted` fits the targets.
        plan.sources.iter_mut().zip(have.iter().take(k)).for_each(|(source, column)| *source = column);
        plan.targets.iter_mut().zip(wanted.iter()).for_each(|(target, column)| *target = column);

        let missing = Missing::solve(scheme, parity, &plan);
        let mut coefficients = [[0; M_MAX]; K_MAX];
        for r in 0..plan.target_count {
            let target = plan.targets[r].0 as usize;
            for i in 0..k {
                coefficients[i][r] = if target < k {
                    missing.coefficient(target, i)
                } else {
                    (0..k).fold(0, |sum, column| {
                        sum ^ gf::mul(
                            parity[column][target - k],
                            missing.coefficient_of_any(column, i, &plan),
                        )
                    })
                };
            }
        }
        plan.weights = coefficients.map(Weights::new);
        if coefficients[..k].iter().all(|c| c[0] == 1) {
            plan.variant = Variant::FirstIsXor;
        }
        Ok(plan)
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?} -> {:?} with", self.scheme, self.sources(), self.targets())?;
        self.weights[..self.scheme.k()].iter().try_for_each(|w| write!(f, " {:02x?}", w.bytes()))
    }
}

/// The data columns that are not among the sources, each as a combination of the sources.
struct Missing {
    count: usize,
    columns: [usize; M_MAX],
    coefficients: [[u8; K_MAX]; M_MAX],
}

impl Missing {
    /// As many parities were chosen as data columns are missing, so with `A` the parity coefficients of the
    /// missing columns: `missing = A^-1 * (chosen parities + what the present data contributed to them)`.
    fn solve(scheme: Scheme, parity: &[[u8; M_MAX]; K_MAX], plan: &Plan) -> Missing {
        let k = scheme.k();
        let present: ColumnSet = plan.sources().iter().copied().collect();
        let mut missing = Missing { count: 0, columns: [0; M_MAX], coefficients: [[0; K_MAX]; M_MAX] };
        for column in (0..k).filter(|&c| !present.contains(ColumnIndex(c as u8))) {
            missing.columns[missing.count] = column;
            missing.count += 1;
        }
        let e = missing.count;
        let row_of = |n: usize| plan.sources[k - e + n].0 as usize - k; // the n-th chosen parity
        let mut a = [[0; M_MAX]; M_MAX];
        for n in 0..e {
            for u in 0..e {
                a[n][u] = parity[missing.columns[u]][row_of(n)];
            }
        }
        let inverse = invert(a, e).expect("every square submatrix is regular: a test tries them all");
        for u in 0..e {
            for n in 0..e {
                missing.coefficients[u][k - e + n] = inverse[u][n];
                for i in 0..k - e {
                    let contributed = parity[plan.sources[i].0 as usize][row_of(n)];
                    missing.coefficients[u][i] ^= gf::mul(inverse[u][n], contributed);
                }
            }
        }
        missing
    }

    /// Of source `i` in missing data column `column`.
    fn coefficient(&self, column: usize, i: usize) -> u8 {
        let u = self.columns[..self.count].iter().position(|&c| c == column);
        self.coefficients[u.expect("a wanted data column is not a source")][i]
    }

    /// Of source `i` in data column `column`, which may be that source itself.
    fn coefficient_of_any(&self, column: usize, i: usize, plan: &Plan) -> u8 {
        match self.columns[..self.count].contains(&column) {
            true => self.coefficient(column, i),
            false => (plan.sources[i].0 as usize == column) as u8,
        }
    }
}

/// Gauss-Jordan on the upper left `n` by `n`; `None` when it is singular.
pub(crate) fn invert(mut a: [[u8; M_MAX]; M_MAX], n: usize) -> Option<[[u8; M_MAX]; M_MAX]> {
    let mut b = [[0; M_MAX]; M_MAX];
    (0..n).for_each(|i| b[i][i] = 1);
    for i in 0..n {
        let pivot = (i..n).find(|&row| a[row][i] != 0)?;
        a.swap(i, pivot);
        b.swap(i, pivot);
        let scale = gf::inverse(a[i][i])?;
        for x in a[i].iter_mut().chain(b[i].iter_mut()) {
            *x = gf::mul(*x, scale);
        }
        for row in (0..n).filter(|&row| row != i) {
            let factor = a[row][i];
            for c in 0..n {
                a[row][c] ^= gf::mul(factor, a[i][c]);
                b[row][c] ^= gf::mul(factor, b[i][c]);
            }
        }
    }
    Some(b)
}
