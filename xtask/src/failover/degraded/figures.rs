//! All turns beside each other: medians, and ratios of each round.

use super::bench::Measured;
use super::{Part, Turn};
use serde_json::{Value, json};
use std::fmt;

/// With a node away p99 is at most so many times what it is without.
const P99_MAX: f64 = 1.3;

type Of<T> = fn(&T) -> f64;

const FIGURES: [(&str, Of<Measured>); 7] = [
    ("commands/s", |m| m.all.iops),
    ("p50 us", |m| m.all.p50_us),
    (P99, |m| m.all.p99_us),
    ("read p50 us", |m| m.read.p50_us),
    ("read p99 us", |m| m.read.p99_us),
    ("write p50 us", |m| m.write.p50_us),
    ("write p99 us", |m| m.write.p99_us),
];
const P99: &str = "p99 us";

/// Without a ratio: what makes the others honest. Percent, or counts.
const CONDITIONS: [(&str, Of<Part>); 6] = [
    ("reconstructed, % of reads", |p| 100.0 * p.counted.degraded_reads as f64 / p.measured.read.count as f64),
    ("hedged, % of reads", |p| 100.0 * p.counted.hedged_reads as f64 / p.measured.read.count as f64),
    ("columns rebuilt or moved", |p| p.counted.remade_columns as f64),
    ("cores in use, %", |p| 100.0 * p.cores),
    ("the load had work, % of a core", |p| 100.0 * p.measured.generator_busy_share),
    ("began late, %", |p| 100.0 * p.measured.late_share.unwrap_or(0.0)),
];

const LOOPS: [fn(&Turn) -> &Part; 2] = [|turn| &turn.closed, |turn| &turn.open];

struct Round {
    away: u32,
    degraded: Turn,
    /// The one behind it; the one before is the round's before, or the first.
    healthy: Turn,
}

pub struct Figures {
    depth: u32,
    rate: f64,
    first: Turn,
    rounds: Vec<Round>,
}

impl Figures {
    pub fn new(depth: u32, rate: f64, first: Turn) -> Figures {
        Figures { depth, rate, first, rounds: Vec::new() }
    }

    /// Says how the round went.
    pub fn add(&mut self, away: u32, degraded: Turn, healthy: Turn) -> String {
        self.rounds.push(Round { away, degraded, healthy });
        let last = self.rounds.len() - 1;
        let [closed, open] = LOOPS.map(|of| {
            FIGURES
                .iter()
                .take(3)
                .map(|(name, f)| format!("{name} {:.2}", self.ratio(last, of, *f)))
                .collect::<Vec<_>>()
                .join(", ")
        });
        format!("without node {away}, beside all: closed loop {closed}; open {open}")
    }

    fn healthy(&self) -> impl Iterator<Item = &Turn> {
        std::iter::once(&self.first).chain(self.rounds.iter().map(|round| &round.healthy))
    }
    fn degraded(&self) -> impl Iterator<Item = &Turn> {
        self.rounds.iter().map(|round| &round.degraded)
    }

    /// Beside the mean of the turn before and of the one behind: what drifts is the machine.
    fn ratio(&self, round: usize, of: fn(&Turn) -> &Part, figure: Of<Measured>) -> f64 {
        let value = |turn: &Turn| figure(&of(turn).measured);
        let beside: f64 = self.healthy().skip(round).take(2).map(value).sum();
        value(&self.rounds[round].degraded) / (beside / 2.0)
    }

    fn ratios(&self, of: fn(&Turn) -> &Part, figure: Of<Measured>) -> Spread {
        Spread::of((0..self.rounds.len()).map(|round| self.ratio(round, of, figure)))
    }

    fn name(&self, at: usize) -> String {
        match at {
            0 => format!("closed loop, {} in flight", self.depth),
            _ => format!("open loop, {} commands/s", self.rate),
        }
    }

    /// Of both loops.
    fn p99_ratio(&self) -> [f64; 2] {
        let p99 = FIGURES.iter().find(|figure| figure.0 == P99).expect("it is listed").1;
        LOOPS.map(|of| self.ratios(of, p99).median)
    }

    pub fn json(&self) -> Value {
        let part = |part: &Part| {
            let mut out = json!({});
            FIGURES.iter().for_each(|(name, of)| out[*name] = of(&part.measured).into());
            CONDITIONS.iter().for_each(|(name, of)| out[*name] = of(part).into());
            out
        };
        let turn = |turn: &Turn| json!({ "closed": part(&turn.closed), "open": part(&turn.open) });
        let rounds = self.rounds.iter().map(
            |round| json!({ "away": round.away, "degraded": turn(&round.degraded), "healthy": turn(&round.healthy) }),
        );
        let ratios = LOOPS.map(|of| {
            let mut out = json!({});
            for (name, figure) in FIGURES {
                let Spread { least, median, most } = self.ratios(of, figure);
                out[name] = json!({ "median": median, "least": least, "most": most });
            }
            out
        });
        let [closed, open] = ratios;
        json!({
            "read_share": 70, "depth": self.depth, "rate": self.rate,
            "first": turn(&self.first), "rounds": rounds.collect::<Vec<Value>>(),
            "ratios": { "closed": closed, "open": open },
            "p99_ratio_max": P99_MAX, "met": self.p99_ratio().iter().all(|ratio| *ratio <= P99_MAX),
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, of) in LOOPS.into_iter().enumerate() {
            writeln!(
                f,
                "{:<32} {:>9} {:>9} {:>7}  least to most",
                self.name(at),
                "all",
                "one away",
                "ratio"
            )?;
            let medians = |value: &dyn Fn(&Turn) -> f64| {
                [Spread::of(self.healthy().map(value)), Spread::of(self.degraded().map(value))]
                    .map(|s| s.median)
            };
            for (name, figure) in FIGURES {
                let [all, away] = medians(&|turn| figure(&of(turn).measured));
                let Spread { least, median, most } = self.ratios(of, figure);
                writeln!(f, "  {name:<30} {all:9.0} {away:9.0} {median:7.2}  {least:.2} to {most:.2}")?;
            }
            for (name, figure) in CONDITIONS {
                let [all, away] = medians(&|turn| figure(of(turn)));
                writeln!(f, "  {name:<30} {all:9.1} {away:9.1}")?;
            }
        }
        for (at, ratio) in self.p99_ratio().into_iter().enumerate() {
            let word = if ratio <= P99_MAX { "met" } else { "MISSED" };
            writeln!(
                f,
                "{word}: p99 is to be at most {P99_MAX} times the healthy cluster's; {}: {ratio:.2}",
                self.name(at)
            )?;
        }
        Ok(())
    }
}

struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    /// There is at least one.
    fn of(values: impl Iterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Spread { least: values[0], median: (low + high) / 2.0, most: values[values.len() - 1] }
    }
}

#[cfg(test)]
mod tests {
    use super::super::bench::Commands;
    use super::*;
    use crate::failover::cluster::Counters;

    fn turn(p99_us: f64, degraded_reads: u64) -> Turn {
        let part = |late_share| {
            let commands = |count| Commands { count, iops: 1000.0, p50_us: 100.0, p99_us };
            let measured = Measured {
                read: commands(700),
                write: commands(300),
                all: commands(1000),
                generator_busy_share: 0.1,
                late_share,
            };
            Part { measured, counted: Counters { degraded_reads, ..Counters::default() }, cores: 0.5 }
        };
        Turn { closed: part(None), open: part(Some(0.0)) }
    }

    /// p99 of all nodes drifts from 400 to 600 us; without one it is 1.2, 1.0 and 1.6 times as long.
    fn figures() -> Figures {
        let mut figures = Figures::new(32, 500.0, turn(400.0, 0));
        figures.add(2, turn(480.0, 105), turn(400.0, 0));
        figures.add(3, turn(500.0, 105), turn(600.0, 0));
        figures.add(4, turn(960.0, 105), turn(600.0, 0));
        figures
    }

    #[test]
    fn a_turn_without_a_node_stands_beside_those_before_and_behind_it() {
        let p99 = figures().ratios(LOOPS[0], FIGURES[2].1);
        assert_eq!((p99.least, p99.median, p99.most), (1.0, 1.2, 1.6));
        let text = figures().to_string();
        assert!(
            text.contains(
                "met: p99 is to be at most 1.3 times the healthy cluster's; open loop, 500 commands/s: 1.20"
            ),
            "{text}"
        );
        let reconstructed = text.lines().find(|line| line.contains("reconstructed")).unwrap();
        assert!(reconstructed.ends_with("0.0      15.0"), "{reconstructed}");
    }

    #[test]
    fn the_document_has_every_turn_and_the_verdict() {
        let mut figures = figures();
        let document = figures.json();
        assert_eq!(document["rounds"].as_array().unwrap().len(), 3);
        assert_eq!(document["rounds"][2]["degraded"]["closed"]["p99 us"], 960.0);
        assert_eq!(
            (&document["ratios"]["open"]["p99 us"]["median"], &document["met"]),
            (&json!(1.2), &json!(true))
        );
        figures.add(5, turn(960.0, 105), turn(600.0, 0));
        assert_eq!(figures.json()["met"], false);
    }

    #[test]
    fn the_median_of_two_is_their_mean() {
        assert_eq!(Spread::of([3.0, 1.0].into_iter()).median, 2.0);
    }
}
