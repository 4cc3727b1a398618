//! Each goal: a ratio of figures of one turn, and its bar.

use crate::bench::echo::us;
use crate::bench::floor::median;
use crate::render::table;
use peristyle_base::Histogram;
use peristyle_bench::report::Report;
use serde_json::{Value, json};

/// SPDK v26.05, `malloc`, random reads of 4 KiB at depth 32, one reactor: 551,000 a second, beside 125,000 round trips
/// of as many bytes over plain sockets (docs/measuring.md).
const SPDK_OF_ECHO: f64 = 551.0 / 125.0;
const ALONE_OF_ECHO: f64 = 1.5;
const TAIL_OF_MEDIAN: f64 = 3.0;
const DIGESTED_SHARE: f64 = 0.85;
const WRITE_OF_FLOOR: f64 = 1.5;

/// Reads of devices in memory, and their floor: what one turn measured.
pub struct Reads {
    pub echo: Histogram,
    /// At depth 1, at half of the knee's depth, at depth 32, and there with digests.
    pub alone: Report,
    pub below: Report,
    pub deep: Report,
    pub digested: Report,
}

/// Writes to files at depth 1, and their floors.
pub struct Writes {
    pub echo: Histogram,
    /// A write of as many bytes, at random.
    pub device: Histogram,
    /// A write as a frame's of one block: two rows, in order.
    pub append: Histogram,
    pub writes: Report,
}

#[derive(Clone, Copy, PartialEq)]
enum Bar {
    AtLeast(f64),
    AtMost(f64),
}

pub struct Goal {
    pub name: String,
    bar: Bar,
    /// Of each turn.
    ratios: Vec<f64>,
    /// What was set beside what; medians.
    shown: String,
}

fn rate(report: &Report) -> f64 {
    report.all().per_second(report.elapsed)
}

fn p50(report: &Report) -> f64 {
    us(report.all().latency.quantile(0.5))
}

fn tail(histogram: &Histogram) -> f64 {
    histogram.quantile(0.999) as f64 / histogram.quantile(0.5).max(1) as f64
}

/// `of`: the ratio in a turn, and the figures of which `show` gets the medians.
fn goal<T, const N: usize>(
    name: impl Into<String>,
    bar: Bar,
    turns: &[T],
    of: impl Fn(&T) -> (f64, [f64; N]),
    show: impl FnOnce([f64; N]) -> String,
) -> Goal {
    let (ratios, figures): (Vec<f64>, Vec<[f64; N]>) = turns.iter().map(of).unzip();
    let medians = std::array::from_fn(|i| median(figures.iter().map(|figures| figures[i]).collect()));
    Goal { name: name.into(), bar, ratios, shown: show(medians) }
}

pub fn all(reads: &[Reads], writes: &[Writes], knee: u32) -> Vec<Goal> {
    vec![
        goal(
            "reads per second at depth 32, over round trips of an echo",
            Bar::AtLeast(SPDK_OF_ECHO),
            reads,
            |turn| {
                let trips = 1e9 / turn.echo.mean().max(1.0);
                (rate(&turn.deep) / trips, [rate(&turn.deep) / 1e3, trips / 1e3])
            },
            |[rate, trips]| format!("{rate:.0}k beside {trips:.0}k"),
        ),
        goal(
            "read at depth 1, over an echo",
            Bar::AtMost(ALONE_OF_ECHO),
            reads,
            |turn| {
                let trip = us(turn.echo.quantile(0.5));
                (p50(&turn.alone) / trip, [p50(&turn.alone), trip])
            },
            |[read, trip]| format!("p50 {read:.1} us beside {trip:.1}"),
        ),
        goal(
            format!("reads below the knee (depth {}): p99.9 over median", knee / 2),
            Bar::AtMost(TAIL_OF_MEDIAN),
            reads,
            |turn| {
                let latency = &turn.below.all().latency;
                (tail(latency), [p50(&turn.below), us(latency.quantile(0.999)), tail(&turn.echo)])
            },
            |[p50, p999, echo]| format!("{p50:.1} and {p999:.1} us; of the echo {echo:.1}"),
        ),
        goal(
            "reads per second with digests, over those without",
            Bar::AtLeast(DIGESTED_SHARE),
            reads,
            |turn| {
                let rates = [&turn.digested, &turn.deep].map(rate);
                (rates[0] / rates[1], rates.map(|rate| rate / 1e3))
            },
            |[with, without]| format!("{with:.0}k beside {without:.0}k"),
        ),
        goal(
            "4+2 on files: write at depth 1, over an echo and a device's write",
            Bar::AtMost(WRITE_OF_FLOOR),
            writes,
            |turn| {
                let [echo, device, append] =
                    [&turn.echo, &turn.device, &turn.append].map(|floor| us(floor.quantile(0.5)));
                (p50(&turn.writes) / (echo + device), [p50(&turn.writes), echo, device, append])
            },
            |[write, echo, device, append]| {
                format!("p50 {write:.1} us beside {echo:.1} + {device:.1}; two rows in order {append:.1}")
            },
        ),
    ]
}

impl Goal {
    fn median(&self) -> f64 {
        median(self.ratios.clone())
    }

    pub fn is_met(&self) -> bool {
        match self.bar {
            Bar::AtLeast(least) => self.median() >= least,
            Bar::AtMost(most) => self.median() <= most,
        }
    }

    pub fn json(&self) -> Value {
        let (at_least, at_most) = match self.bar {
            Bar::AtLeast(bar) => (Some(bar), None),
            Bar::AtMost(bar) => (None, Some(bar)),
        };
        json!({ "name": self.name, "at_least": at_least, "at_most": at_most, "ratios": self.ratios,
                "median": self.median(), "met": self.is_met(), "figures": self.shown })
    }

    fn line(&self) -> Vec<String> {
        let bar = match self.bar {
            Bar::AtLeast(bar) => format!(">= {bar:.2}"),
            Bar::AtMost(bar) => format!("<= {bar:.2}"),
        };
        let range = |best: fn(f64, f64) -> f64| self.ratios.iter().copied().reduce(best).unwrap_or_default();
        vec![
            self.name.clone(),
            bar,
            format!("{:.2}", self.median()),
            format!("{:.2} to {:.2}", range(f64::min), range(f64::max)),
            if self.is_met() { "met" } else { "missed" }.to_owned(),
            self.shown.clone(),
        ]
    }
}

pub fn text(goals: &[Goal], knee: u32) -> String {
    let header = ["", "goal", "median", "turns", "", "medians"];
    table(&header, &[1, 2], goals.iter().map(Goal::line))
        + &format!("blocks of 4 KiB, one reactor; the knee of reads is at depth {knee}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use peristyle_base::Duration;
    use peristyle_bench::report::Kind;

    fn report(kind: Kind, nanos: u64, count: u64) -> Report {
        let mut report = Report { elapsed: Duration::from_secs(1), ..Report::default() };
        for _ in 0..count {
            report.record(kind, 4096, nanos, Default::default());
        }
        report
    }
    fn histogram(nanos: u64) -> Histogram {
        let mut histogram = Histogram::default();
        histogram.record(nanos);
        histogram
    }

    /// `slow`: all that is ours takes so many times as long.
    fn goals(slow: u64) -> Vec<Goal> {
        let reads = |nanos, count| report(Kind::Read, nanos * slow, count / slow);
        let of_memory = Reads {
            echo: histogram(1_000_000),
            alone: reads(1_400_000, 700),
            below: reads(2_000_000, 1500),
            deep: reads(8_000_000, 5000),
            digested: reads(9_000_000, 4500 / slow),
        };
        let of_files = Writes {
            echo: histogram(1_000_000),
            device: histogram(9_000_000),
            append: histogram(10_000_000),
            writes: report(Kind::Write, 14_000_000 * slow, 71),
        };
        all(&[of_memory], &[of_files], 8)
    }

    #[test]
    fn goals_are_met_by_what_is_fast_and_missed_by_what_is_slow() {
        let met = |slow| goals(slow).iter().map(Goal::is_met).collect::<Vec<bool>>();
        assert_eq!(met(1), [true; 5]);
        // One latency throughout has no tail, however long it is.
        assert_eq!(met(2), [false, false, true, false, false]);
        let text = text(&goals(2), 8);
        assert_eq!(text.matches("missed").count(), 4);
        assert!(text.contains("p50 28000.0 us") && text.contains("(depth 4)"), "{text}");
        assert_eq!(goals(1)[0].json()["met"], true);
    }
}
