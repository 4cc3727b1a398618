//! How a run goes, on a terminal: a line with a sparkline of its rate.

use super::beside::Beside;
use indicatif::{ProgressBar, ProgressStyle};
use peristyle_base::units::format_bytes;
use peristyle_bench::load::{Gate, Length, Workload};
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_millis(500);
/// Periods that the sparkline shows.
const SHOWN: usize = 30;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// One bar for each value, the largest one full.
pub fn sparkline(values: impl IntoIterator<Item = f64>) -> String {
    let values: Vec<f64> = values.into_iter().collect();
    let most = values.iter().copied().fold(0.0, f64::max);
    let bar = |value: f64| match most > 0.0 {
        true => BARS[((value / most * BARS.len() as f64).ceil() as usize).clamp(1, BARS.len()) - 1],
        false => BARS[0],
    };
    values.into_iter().map(bar).collect()
}

/// Shows until it is dropped.
pub struct Live(#[expect(dead_code, reason = "held")] Beside);

impl Live {
    /// Nothing where standard error is no terminal.
    pub fn watch(what: &str, gate: &Arc<Gate>, workload: &Workload) -> Option<Live> {
        if !std::io::stderr().is_terminal() {
            return None;
        }
        let (line, gate) = (Line::new(what, workload.length, workload.warmup), gate.clone());
        let show = move |line: &mut Line| line.show(gate.is_open(), gate.progress());
        Some(Live(Beside::each(PERIOD, line, show, |line| line.bar.finish_and_clear())))
    }
}

struct Line {
    bar: ProgressBar,
    length: Length,
    warmup: Duration,
    began: Option<Instant>,
    /// Commands and bytes at the end of the last period.
    before: (u64, u64),
    rates: VecDeque<f64>,
}

impl Line {
    fn new(what: &str, length: Length, warmup: Duration) -> Line {
        let total = match length {
            Length::Time(time) => (time + warmup).as_millis() as u64,
            Length::Count(count) => count,
        };
        let bar = ProgressBar::new(total).with_prefix(what.to_owned());
        bar.set_style(
            ProgressStyle::with_template("{prefix} {bar:16} {elapsed} {msg}").expect("a valid template"),
        );
        Line { bar, length, warmup, began: None, before: (0, 0), rates: VecDeque::with_capacity(SHOWN) }
    }

    fn show(&mut self, is_open: bool, [commands, bytes, p50, p99]: [u64; 4]) {
        if !is_open {
            self.bar.set_message("connecting");
            return;
        }
        let began = *self.began.get_or_insert_with(Instant::now);
        let seconds = PERIOD.as_secs_f64();
        let (more, more_bytes) = (commands - self.before.0, bytes - self.before.1);
        self.before = (commands, bytes);
        if self.rates.len() == SHOWN {
            self.rates.pop_front();
        }
        self.rates.push_back(more as f64 / seconds);
        self.bar.set_position(match self.length {
            Length::Time(_) => began.elapsed().as_millis() as u64,
            Length::Count(_) => commands,
        });
        let message = match began.elapsed() < self.warmup {
            true => "warming up".to_owned(),
            false => format!(
                "{} {:.0} IOPS {}/s p50 {:.0} us p99 {:.0} us",
                sparkline(self.rates.iter().copied()),
                more as f64 / seconds,
                format_bytes((more_bytes as f64 / seconds) as u64),
                p50 as f64 / 1e3,
                p99 as f64 / 1e3,
            ),
        };
        self.bar.set_message(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_value_is_a_full_bar_and_nothing_the_smallest() {
        assert_eq!(sparkline([0.0, 1.0, 4.0, 8.0]), "▁▁▄█");
        assert_eq!(sparkline([0.0, 0.0]), "▁▁");
        assert_eq!(sparkline([]), "");
    }

    #[test]
    fn a_line_tells_the_rate_of_the_last_period() {
        let mut line = Line::new("run", Length::Count(1000), Duration::ZERO);
        line.bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        line.show(false, [0; 4]);
        assert_eq!(line.bar.message(), "connecting");
        line.show(true, [100, 409_600, 10_000, 20_000]);
        line.show(true, [300, 1_228_800, 10_000, 25_000]);
        assert_eq!(line.bar.position(), 300);
        let said = line.bar.message();
        assert!(said.starts_with("▄█ 400 IOPS") && said.ends_with("p50 10 us p99 25 us"), "{said}");
    }
}
