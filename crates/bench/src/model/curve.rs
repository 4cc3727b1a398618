//! The curve of latency against load, and its knee.

use super::queue::QueueError;
use super::sim::{Load, Point, evaluate};
use super::stage::Model;

/// The knee is the first depth that reaches so much of the highest throughput: beyond it latency grows in proportion to the
/// depth, for a tenth more of throughput at most (the knee of Jain, "The Art of Computer Systems Performance Analysis", 1991, section
/// 3.3). Throughput is what a closed loop measures best; a limit on p99 would hang on the machine's worst moments.
pub const KNEE_SHARE: f64 = 0.9;

/// 1, 2, 4 … up to `most`, which is the last.
pub fn depths(most: u32) -> Vec<u32> {
    let mut depths: Vec<u32> =
        std::iter::successors(Some(1u32), |d| d.checked_mul(2)).take_while(|d| *d < most).collect();
    depths.push(most.max(1));
    depths
}

/// Depth and throughput at the knee of a closed loop, of depths in ascending order with their throughput. `None` of none.
pub fn knee(closed: &[(u32, f64)]) -> Option<(u32, f64)> {
    let most = closed.iter().map(|(_, throughput)| *throughput).fold(0.0, f64::max);
    closed.iter().copied().find(|(_, throughput)| *throughput >= KNEE_SHARE * most && most > 0.0)
}

/// A closed loop at each of the depths.
pub fn closed(model: &Model, depths: &[u32], requests: usize, seed: u64) -> Result<Vec<Point>, QueueError> {
    depths.iter().map(|&depth| evaluate(model, Load::Closed { depth }, requests, seed)).collect()
}

/// How far a prediction is off, in percent of what was measured; positive when it was more.
pub fn off_percent(predicted: f64, measured: f64) -> f64 {
    (predicted / measured - 1.0) * 100.0
}

#[cfg(test)]
mod tests {
    use super::super::stage::{Cost, Station, Visit};
    use super::*;

    #[test]
    fn depths_double_up_to_the_last() {
        assert_eq!(depths(1), [1]);
        assert_eq!(depths(8), [1, 2, 4, 8]);
        assert_eq!(depths(12), [1, 2, 4, 8, 12]);
    }

    #[test]
    fn the_knee_is_where_more_depth_brings_little() {
        assert_eq!(knee(&[(1, 50.0), (2, 89.0), (4, 91.0), (8, 100.0)]), Some((4, 91.0)));
        assert_eq!((knee(&[]), knee(&[(1, 0.0)])), (None, None));
        assert!((off_percent(115.0, 100.0) - 15.0).abs() < 1e-9);
    }

    /// 8 us alone, 2 us each in a full turn: throughput is depth / (6 + 2 depth).
    #[test]
    fn a_polled_reactor_has_its_knee_where_the_turn_is_shared_by_many() {
        let model = Model {
            stations: vec![Station::polled("reactor", 1, vec![Cost::constant("turn", 6.0)])],
            route: vec![Visit::to(0, vec![Cost::constant("request", 2.0)])],
        };
        let points = closed(&model, &depths(128), 5000, 1).unwrap();
        let all: Vec<(u32, f64)> = depths(128).into_iter().zip(points.iter().map(|p| p.throughput)).collect();
        let (depth, throughput) = knee(&all).unwrap();
        assert_eq!(depth, 32, "{all:?}");
        assert!((throughput / (32.0 / 70.0 * 1e6) - 1.0).abs() < 0.02);
    }
}
