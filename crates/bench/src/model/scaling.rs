//! How throughput grows with what there is of something: nodes, reactors, connections.

/// The Universal Scalability Law, X(n) = lambda n / (1 + sigma (n - 1) + kappa n (n - 1)): what each does alone, what is done one after
/// the other (contention), and what each has to tell each other (coherency). Gunther, "Guerrilla Capacity Planning" (2007), chapter 4.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    /// Throughput of one.
    pub lambda: f64,
    pub sigma: f64,
    pub kappa: f64,
    /// The largest n that was measured.
    pub measured_to: f64,
    /// The largest error over the points, as a share of what was measured.
    pub worst: f64,
}

/// Three figures are fitted: so many different n leave one to tell whether they fit.
pub const POINTS_MIN: usize = 4;

impl Scaling {
    /// By least squares of the relative error of n / X, which is linear in 1 / lambda, sigma / lambda and kappa / lambda. Neither sigma
    /// nor kappa may be below 0: of the fits that leave one or both out, the best that obeys. An error says what is missing.
    pub fn fit(points: &[(f64, f64)]) -> Result<Scaling, String> {
        if !points.iter().all(|(n, x)| *n >= 1.0 && *x > 0.0 && n.is_finite() && x.is_finite()) {
            return Err("each point is an n of at least 1 and a throughput above 0".to_owned());
        }
        let mut different: Vec<f64> = points.iter().map(|(n, _)| *n).collect();
        different.sort_by(f64::total_cmp);
        different.dedup();
        if different.len() < POINTS_MIN {
            let has = different.len();
            return Err(format!("{has} different n are too few for three figures: at least {POINTS_MIN}"));
        }
        let measured_to = different[different.len() - 1];
        let fits = [[true, true], [true, false], [false, true], [false, false]];
        let fits = fits
            .iter()
            .filter_map(|with| solve(points, *with))
            .filter(|(c, _)| c[0] > 0.0 && c[1] >= 0.0 && c[2] >= 0.0);
        let best = fits.min_by(|a, b| a.1.total_cmp(&b.1)).ok_or("these points fit no curve")?.0;
        let mut scaling = Scaling {
            lambda: 1.0 / best[0],
            sigma: best[1] / best[0],
            kappa: best[2] / best[0],
            measured_to,
            worst: 0.0,
        };
        scaling.worst =
            points.iter().map(|(n, x)| (scaling.throughput(*n) / x - 1.0).abs()).fold(0.0, f64::max);
        Ok(scaling)
    }

    pub fn throughput(&self, n: f64) -> f64 {
        self.lambda * n / (1.0 + self.sigma * (n - 1.0) + self.kappa * n * (n - 1.0))
    }

    /// The n of the highest throughput: sqrt((1 - sigma) / kappa). `None`: it only grows.
    pub fn peak(&self) -> Option<f64> {
        (self.kappa > 0.0 && self.sigma < 1.0).then(|| ((1.0 - self.sigma) / self.kappa).sqrt().max(1.0))
    }
}

/// Coefficients of 1, n - 1 and n (n - 1), and the sum of squares of what they are off. The last two may be left out.
fn solve(points: &[(f64, f64)], with: [bool; 2]) -> Option<([f64; 3], f64)> {
    let columns: Vec<usize> =
        [true, with[0], with[1]].iter().enumerate().filter(|(_, w)| **w).map(|(i, _)| i).collect();
    // Each row is divided by n / X, so that all should give 1.
    let row = |n: f64, x: f64| [x / n, (n - 1.0) * x / n, (n - 1.0) * x];
    let size = columns.len();
    let (mut a, mut b) = (vec![vec![0.0; size]; size], vec![0.0; size]);
    for &(n, x) in points {
        let row = row(n, x);
        for i in 0..size {
            b[i] += row[columns[i]];
            (0..size).for_each(|j| a[i][j] += row[columns[i]] * row[columns[j]]);
        }
    }
    let solution = eliminate(a, b)?;
    let mut all = [0.0; 3];
    columns.iter().zip(solution).for_each(|(&column, value)| all[column] = value);
    let off = points.iter().map(|&(n, x)| {
        let sum: f64 = row(n, x).iter().zip(all).map(|(r, c)| r * c).sum();
        (sum - 1.0).powi(2)
    });
    Some((all, off.sum()))
}

/// Gauss with pivots.
fn eliminate(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Option<Vec<f64>> {
    let size = b.len();
    // Columns differ in scale by orders of magnitude.
    let scale: Vec<f64> = (0..size).map(|i| a[i][i].sqrt()).collect();
    for i in 0..size {
        (0..size).for_each(|j| a[i][j] /= scale[i] * scale[j]);
        b[i] /= scale[i];
    }
    for i in 0..size {
        let pivot = (i..size).max_by(|&p, &q| a[p][i].abs().total_cmp(&a[q][i].abs()))?;
        a.swap(i, pivot);
        b.swap(i, pivot);
        if a[i][i].abs() < 1e-12 || a[i][i].is_nan() {
            return None;
        }
        for j in i + 1..size {
            let factor = a[j][i] / a[i][i];
            (i..size).for_each(|k| a[j][k] -= factor * a[i][k]);
            b[j] -= factor * b[i];
        }
    }
    for i in (0..size).rev() {
        let known: f64 = (i + 1..size).map(|j| a[i][j] * b[j]).sum();
        b[i] = (b[i] - known) / a[i][i];
    }
    (0..size).for_each(|i| b[i] /= scale[i]);
    Some(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn near(value: f64, expected: f64) -> bool {
        (value - expected).abs() <= 1e-6 * (1.0 + expected.abs())
    }

    fn points(law: &Scaling, ns: &[f64]) -> Vec<(f64, f64)> {
        ns.iter().map(|&n| (n, law.throughput(n))).collect()
    }

    const NS: [f64; 5] = [1.0, 2.0, 4.0, 8.0, 16.0];

    proptest! {
        #[test]
        fn the_law_of_points_that_follow_it_is_found(
            lambda in 1.0..1e6f64, sigma in 0.0..0.5f64, kappa in 0.0..0.01f64,
        ) {
            let law = Scaling { lambda, sigma, kappa, measured_to: 16.0, worst: 0.0 };
            let found = Scaling::fit(&points(&law, &NS)).unwrap();
            prop_assert!(near(found.lambda, lambda) && near(found.sigma, sigma) && near(found.kappa, kappa));
            prop_assert!(found.worst < 1e-6 && near(found.throughput(64.0), law.throughput(64.0)));
        }
    }

    #[test]
    fn what_grows_more_than_it_can_is_a_straight_line() {
        let found = Scaling::fit(&NS.map(|n| (n, 100.0 * n * (1.0 + n / 100.0)))).unwrap();
        assert_eq!((found.sigma, found.kappa, found.peak()), (0.0, 0.0, None));
        assert!(found.worst > 0.03, "{found:?}");
    }

    /// Amdahl's law is the case without coherency: a tenth in sequence gives ten times at most.
    #[test]
    fn a_tenth_in_sequence_is_amdahls_law() {
        let found = Scaling::fit(&NS.map(|n| (n, n / (0.9 + 0.1 * n)))).unwrap();
        assert!(near(found.sigma, 0.1) && found.kappa < 1e-9 && (found.throughput(1e6) - 10.0).abs() < 0.1);
    }

    #[test]
    fn the_peak_is_where_the_curve_turns() {
        let law = Scaling { lambda: 1.0, sigma: 0.19, kappa: 0.01, measured_to: 16.0, worst: 0.0 };
        let peak = law.peak().unwrap();
        assert!(near(peak, 9.0) && law.throughput(9.0) > law.throughput(8.0).max(law.throughput(10.0)));
    }

    #[test]
    fn too_few_points_are_refused() {
        let said = Scaling::fit(&[(1.0, 1.0), (2.0, 2.0), (2.0, 2.1), (4.0, 3.0)]).unwrap_err();
        assert!(said.contains("3 different n"), "{said}");
        assert!(Scaling::fit(&[]).is_err() && Scaling::fit(&[(0.0, 1.0)]).is_err());
    }
}
