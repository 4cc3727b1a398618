//! The stalls of all rounds, by what caused them.

use super::load::Phase;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Kill,
    Stop,
    /// SIGTERM: its shards go to others before it stops.
    End,
    /// The node comes back, and gets shards again.
    #[value(skip)]
    Return,
}

const KINDS: [Kind; 4] = [Kind::Kill, Kind::Stop, Kind::End, Kind::Return];

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Kill => "kill",
            Kind::Stop => "stop",
            Kind::End => "end",
            Kind::Return => "return",
        })
    }
}

/// Longest times without an answer, milliseconds.
#[derive(Default)]
pub struct Figures {
    stalls: Vec<(Kind, f64)>,
}

impl Figures {
    pub fn add(&mut self, kind: Kind, phase: &Phase) {
        self.stalls.push((kind, phase.longest_stall_ms));
    }
    fn of(&self, kind: Kind) -> Vec<f64> {
        let mut stalls: Vec<f64> = self.stalls.iter().filter(|s| s.0 == kind).map(|s| s.1).collect();
        stalls.sort_by(f64::total_cmp);
        stalls
    }
}

/// The smallest value that this share of all do not exceed; they are sorted, and there is one.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "without an answer, ms   rounds   median      p99      max")?;
        for kind in KINDS {
            let stalls = self.of(kind);
            if stalls.is_empty() {
                continue;
            }
            let [median, p99, max] = [0.5, 0.99, 1.0].map(|share| quantile(&stalls, share));
            writeln!(f, "{kind:<22} {:7} {median:8.1} {p99:8.1} {max:8.1}", stalls.len())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(longest_stall_ms: f64) -> Phase {
        Phase { completed: 1, longest_stall_ms, longest_command_ms: 0.0, errors: 0, violations: 0 }
    }

    #[test]
    fn kinds_have_their_own_lines_and_those_without_rounds_none() {
        let mut figures = Figures::default();
        [600.0, 800.0, 500.0].iter().for_each(|ms| figures.add(Kind::Kill, &phase(*ms)));
        figures.add(Kind::Return, &phase(20.5));
        let text = figures.to_string();
        let lines: Vec<Vec<&str>> = text.lines().skip(1).map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(
            lines,
            [["kill", "3", "600.0", "800.0", "800.0"], ["return", "1", "20.5", "20.5", "20.5"]]
        );
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!([0.5, 0.99, 1.0].map(|share| quantile(&values, share)), [100.0, 198.0, 200.0]);
        assert_eq!(quantile(&[7.0], 0.5), 7.0);
    }
}
