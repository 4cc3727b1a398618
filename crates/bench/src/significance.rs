//! Whether two sets of measurements differ by more than chance: an exact permutation test. Pure.

use crate::random::Random;

/// Ways to deal out the values that are all looked at; beyond them so many are drawn.
const EXACT_MAX: u64 = 20_000;
const DRAWN: u64 = 20_000;

/// The probability that the means of two sets are as far apart as these, or farther, if their values had been dealt out at
/// random; from 0 to 1. `None`: fewer than two of one set say nothing. Three against three cannot go below 0.1, four against
/// four can reach 0.03. Fisher, "The design of experiments", 1935, section 21.
pub fn permutation_p(one: &[f64], other: &[f64]) -> Option<f64> {
    if one.len() < 2 || other.len() < 2 {
        return None;
    }
    let all: Vec<f64> = one.iter().chain(other).copied().collect();
    let n = one.len();
    let total: f64 = all.iter().sum();
    let far = |sum: f64| (sum / n as f64 - (total - sum) / other.len() as f64).abs();
    // A hair less, so that rounding does not hide the split that was seen.
    let seen = far(one.iter().sum()) * (1.0 - 1e-9);
    Some(match ways(all.len() as u64, n as u64) {
        Some(ways) => {
            let mut as_far = 0;
            each_sum(&all, n, 0.0, &mut |sum| as_far += u64::from(far(sum) >= seen));
            as_far as f64 / ways as f64
        }
        None => drawn(&all, n, |sum| far(sum) >= seen),
    })
}

/// n over k, if all of them can be looked at.
fn ways(n: u64, k: u64) -> Option<u64> {
    let mut ways = 1u64;
    for i in 0..k {
        ways = ways.checked_mul(n - i)? / (i + 1);
    }
    (ways <= EXACT_MAX).then_some(ways)
}

/// The sum of each choice of `left` values.
fn each_sum(values: &[f64], left: usize, sum: f64, tell: &mut impl FnMut(f64)) {
    if left == 0 {
        return tell(sum);
    }
    for i in 0..=values.len() - left {
        each_sum(&values[i + 1..], left - 1, sum + values[i], tell);
    }
}

fn drawn(all: &[f64], n: usize, is_as_far: impl Fn(f64) -> bool) -> f64 {
    let (mut random, mut values) = (Random::new(1), all.to_vec());
    let mut as_far = 0;
    for _ in 0..DRAWN {
        for i in 0..n {
            let other = i + random.below((values.len() - i) as u64) as usize;
            values.swap(i, other);
        }
        as_far += u64::from(is_as_far(values[..n].iter().sum()));
    }
    // What was seen is one of the ways.
    (as_far + 1) as f64 / (DRAWN + 1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sets_that_are_wholly_apart_have_the_least_p_there_is() {
        let (low, high) = ([1.0, 2.0, 3.0, 4.0], [11.0, 12.0, 13.0, 14.0]);
        // 2 of 70 ways.
        assert!((permutation_p(&low, &high).unwrap() - 2.0 / 70.0).abs() < 1e-12);
        assert_eq!(permutation_p(&low[..3], &high[..3]), Some(0.1));
        assert_eq!(permutation_p(&low, &low), Some(1.0));
        assert_eq!(permutation_p(&low[..1], &high), None);
        let many = |from: u32| (0..12).map(|i| f64::from(from + i)).collect::<Vec<f64>>();
        assert!(permutation_p(&many(0), &many(100)).unwrap() < 0.001);
        assert!(permutation_p(&many(0), &many(1)).unwrap() > 0.3);
    }

    #[test]
    fn chance_is_called_significant_as_often_as_it_says() {
        let mut random = Random::new(7);
        let mut below = 0;
        for _ in 0..1000 {
            let mut set = || (0..5).map(|_| random.unit()).collect::<Vec<f64>>();
            below += u32::from(permutation_p(&set(), &set()).unwrap() <= 0.05);
        }
        assert!((20..80).contains(&below), "{below} of 1000 at 5 %");
    }

    proptest! {
        #[test]
        fn it_is_a_probability_and_does_not_care_who_comes_first(
            one in proptest::collection::vec(-1e6..1e6f64, 2..7), other in proptest::collection::vec(-1e6..1e6f64, 2..7),
        ) {
            let p = permutation_p(&one, &other).unwrap();
            prop_assert!(p > 0.0 && p <= 1.0);
            prop_assert!((p - permutation_p(&other, &one).unwrap()).abs() < 1e-9);
        }
    }
}
