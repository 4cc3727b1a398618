//! What a run has measured.

use peristyle_base::{Duration, Histogram};
use peristyle_nvme::host::Traffic;
use peristyle_nvme::wire::Status;

use crate::host::HostError;
use crate::pattern::Placement;
use crate::timeline::Timeline;

/// A command of an open loop that begins so long after it should have is late: the loop had none free, or no time.
const LATE_NS: u64 = 100_000;

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    /// Flush or deallocate.
    Other,
}

/// Figures of one kind of command.
#[derive(Clone, Default)]
pub struct Figures {
    /// Nanoseconds from submission to answer.
    pub latency: Histogram,
    pub bytes: u64,
}

/// One reactor's or a whole run's figures.
#[derive(Clone, Default)]
pub struct Report {
    pub elapsed: Duration,
    /// It was asked to end before its time: figures are those until then.
    pub interrupted: bool,
    pub reads: Figures,
    pub writes: Figures,
    /// Flushes and deallocations of a trace.
    pub others: Figures,
    pub timeline: Timeline,
    /// Commands that were answered with an error, the first such status, and reads that were wrong.
    pub errors: u64,
    pub first_error: Option<Status>,
    pub mismatches: u64,
    pub first_mismatch: Option<u64>,
    pub placement: Placement,
    /// Commands of an open loop that should have begun, and of them those that began late.
    pub due: u64,
    pub late: u64,
    /// … and those that had not begun when the time was over: how long they would have taken is not known.
    pub unserved: u64,
    /// Of the load's connections, with the warm-up.
    pub traffic: Traffic,
    /// Time in which the generator's reactors had work, all together.
    pub busy: Duration,
    /// Why a connection ended early.
    pub lost: Option<HostError>,
    /// Share of the time in which the generator's busiest reactor had work.
    pub busy_share: f64,
    /// Share of all cores' time that the hypervisor took away meanwhile, as the system tells it: long latencies may be that.
    pub stolen_share: f64,
}

impl Report {
    /// Whether it was a success, which counts among the figures.
    pub fn record(&mut self, kind: Kind, bytes: u32, nanos: u64, status: Status) -> bool {
        if !status.is_success() {
            self.errors += 1;
            self.first_error.get_or_insert(status);
            return false;
        }
        let figures = match kind {
            Kind::Read => &mut self.reads,
            Kind::Write => &mut self.writes,
            Kind::Other => &mut self.others,
        };
        figures.latency.record(nanos);
        figures.bytes += u64::from(bytes);
        true
    }
    /// A command of an open loop begins so long after it should have, or does not because the time is over.
    pub fn began(&mut self, after_ns: u64, over: bool) {
        let count = if over { &mut self.unserved } else { &mut self.due };
        *count += 1;
        self.late += u64::from(!over && after_ns > LATE_NS);
    }
    /// Of all that should have begun.
    pub fn late_share(&self) -> f64 {
        (self.late + self.unserved) as f64 / (self.due + self.unserved).max(1) as f64
    }
    pub fn mismatch(&mut self, offset: u64) {
        self.mismatches += 1;
        self.first_mismatch.get_or_insert(offset);
    }
    pub fn lost(&mut self, error: HostError) {
        self.lost.get_or_insert(error);
    }
    pub(crate) fn finish(&mut self, busy_before: u64, busy_after: u64) {
        let elapsed = self.elapsed.as_nanos().max(1) as f64;
        self.busy = Duration::from_nanos(busy_after.saturating_sub(busy_before));
        self.busy_share = (busy_after.saturating_sub(busy_before) as f64 / elapsed).min(1.0);
    }

    /// Adds another reactor's figures of the same run.
    pub fn merge(&mut self, other: &Report) {
        self.elapsed = self.elapsed.max(other.elapsed);
        self.interrupted |= other.interrupted;
        self.reads.merge(&other.reads);
        self.writes.merge(&other.writes);
        self.others.merge(&other.others);
        self.timeline.merge(&other.timeline);
        self.errors += other.errors;
        self.first_error = self.first_error.or(other.first_error);
        self.mismatches += other.mismatches;
        self.first_mismatch = self.first_mismatch.or(other.first_mismatch);
        self.placement.merge(&other.placement);
        self.due += other.due;
        self.late += other.late;
        self.unserved += other.unserved;
        self.traffic.add(&other.traffic);
        self.busy += other.busy;
        self.lost = self.lost.or(other.lost);
        self.busy_share = self.busy_share.max(other.busy_share);
    }

    /// Reads and writes together.
    pub fn all(&self) -> Figures {
        let mut all = self.reads.clone();
        all.merge(&self.writes);
        all
    }

    /// Every command was answered with success, and every read was right.
    pub fn is_clean(&self) -> bool {
        self.errors == 0 && self.mismatches == 0 && self.lost.is_none()
    }
}

impl Figures {
    pub fn merge(&mut self, other: &Figures) {
        self.latency.merge(&other.latency);
        self.bytes += other.bytes;
    }
    pub fn per_second(&self, elapsed: Duration) -> f64 {
        self.latency.count() as f64 / elapsed.as_secs_f64().max(1e-9)
    }
    pub fn bytes_per_second(&self, elapsed: Duration) -> f64 {
        self.bytes as f64 / elapsed.as_secs_f64().max(1e-9)
    }
    /// Microseconds: mean, percentiles and the largest, by their names.
    pub fn latency_us(&self) -> [(&'static str, f64); 8] {
        let us = |nanos: u64| nanos as f64 / 1000.0;
        let q = |share| us(self.latency.quantile(share));
        [
            ("mean", self.latency.mean() / 1000.0),
            ("p50", q(0.5)),
            ("p90", q(0.9)),
            ("p95", q(0.95)),
            ("p99", q(0.99)),
            ("p99.5", q(0.995)),
            ("p99.9", q(0.999)),
            ("max", us(self.latency.max())),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(reads: u64, writes: u64) -> Report {
        let mut r = Report { elapsed: Duration::from_secs(2), ..Report::default() };
        (1..=reads).for_each(|n| {
            r.record(Kind::Read, 4096, n * 1000, Status::SUCCESS);
        });
        (1..=writes).for_each(|n| {
            r.record(Kind::Write, 8192, n * 1000, Status::SUCCESS);
        });
        r
    }

    #[test]
    fn rates_follow_from_counts_and_time() {
        let r = report(100, 50);
        assert_eq!((r.reads.per_second(r.elapsed), r.writes.per_second(r.elapsed)), (50.0, 25.0));
        assert_eq!(r.all().bytes_per_second(r.elapsed), (100.0 * 4096.0 + 50.0 * 8192.0) / 2.0);
        let [mean, p50, .., max] = r.reads.latency_us();
        assert_eq!((mean, max), (("mean", 50.5), ("max", 100.0)));
        assert!((50.0..52.0).contains(&p50.1), "{p50:?}");
    }

    #[test]
    fn parts_of_a_run_add_up() {
        let mut whole = report(100, 0);
        let mut other = report(10, 10);
        other.elapsed = Duration::from_secs(3);
        other.record(Kind::Read, 4096, 5, Status::INTERNAL_ERROR);
        other.mismatch(4096);
        whole.merge(&other);
        assert_eq!((whole.reads.latency.count(), whole.writes.latency.count()), (110, 10));
        assert_eq!((whole.errors, whole.mismatches, whole.elapsed), (1, 1, Duration::from_secs(3)));
        assert!(!whole.is_clean() && report(1, 1).is_clean());
    }
}
