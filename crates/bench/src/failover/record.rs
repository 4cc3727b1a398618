//! Completions as a host sees them: in intervals of 50 ms, and the longest time without any, from one mark to the next.

use peristyle_base::{Duration, Instant};

/// Length of an interval.
pub const BUCKET: Duration = Duration::from_millis(50);
/// Of all phases together: a day. Later completions are counted, and in no interval.
const BUCKETS_MAX: usize = 24 * 3600 * 20;
/// Phases of one record.
const PHASES_MAX: usize = 10_000;

/// What ended in one interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    pub completed: u32,
    pub longest_command: Duration,
}

/// From one mark to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    pub name: String,
    pub began: Instant,
    pub completed: u64,
    pub violations: u64,
    /// Commands that failed, by the target's answer or because no path took them.
    pub errors: u64,
    /// The longest time without a completion that ended here, or goes on at the end. It counts as a whole, though it may have
    /// begun before the mark: no stall is hidden by a mark in its middle.
    pub longest_stall: Duration,
    /// From a command's beginning to its end, over all tries.
    pub longest_command: Duration,
    pub buckets: Vec<Bucket>,
}

impl Phase {
    fn new(name: &str, began: Instant) -> Phase {
        Phase {
            name: name.into(),
            began,
            completed: 0,
            violations: 0,
            errors: 0,
            longest_stall: Duration::ZERO,
            longest_command: Duration::ZERO,
            buckets: Vec::new(),
        }
    }
}

/// The beginning of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(usize);

/// All phases of one run; the last one goes on.
pub struct Record {
    phases: Vec<Phase>,
    buckets: usize,
    last: Instant,
}

impl Record {
    pub fn new(name: &str, now: Instant) -> Record {
        Record { phases: vec![Phase::new(name, now)], buckets: 0, last: now }
    }

    fn current(&mut self) -> &mut Phase {
        self.phases.last_mut().expect("there is always one")
    }

    /// A command that began then was done now.
    pub fn completed(&mut self, began: Instant, now: Instant) {
        let (gap, latency) = (now.since(self.last), now.since(began));
        self.last = now;
        let index = (now.since(self.current().began).as_nanos() / BUCKET.as_nanos()) as usize;
        self.reach(index + 1);
        let phase = self.current();
        phase.completed += 1;
        phase.longest_stall = phase.longest_stall.max(gap);
        phase.longest_command = phase.longest_command.max(latency);
        if let Some(bucket) = phase.buckets.get_mut(index) {
            bucket.completed += 1;
            bucket.longest_command = bucket.longest_command.max(latency);
        }
    }

    /// The current phase has so many intervals, as long as there is room.
    fn reach(&mut self, count: usize) {
        let room = BUCKETS_MAX - self.buckets;
        let phase = self.phases.last_mut().expect("there is always one");
        let more = count.saturating_sub(phase.buckets.len()).min(room);
        phase.buckets.resize(phase.buckets.len() + more, Bucket::default());
        self.buckets += more;
    }

    pub fn failed(&mut self) {
        self.current().errors += 1;
    }
    pub fn violated(&mut self, count: u64) {
        self.current().violations += count;
    }

    /// The current phase is as long as it is now: intervals in which nothing ended are there, and what goes on counts.
    pub fn look(&mut self, now: Instant) -> &Phase {
        let count = now.since(self.current().began).as_nanos().div_ceil(BUCKET.as_nanos());
        self.reach(count as usize);
        let silent = self.silent(now);
        let phase = self.current();
        phase.longest_stall = phase.longest_stall.max(silent);
        phase
    }

    /// Time since the last completion.
    pub fn silent(&self, now: Instant) -> Duration {
        now.since(self.last)
    }

    /// Ends the current phase and begins another; `None` when there are too many.
    pub fn mark(&mut self, name: &str, now: Instant) -> Option<Mark> {
        if self.phases.len() == PHASES_MAX {
            return None;
        }
        self.look(now);
        self.phases.push(Phase::new(name, now));
        Some(Mark(self.phases.len() - 1))
    }

    /// All that there were, the current one last.
    pub fn phases(&self) -> &[Phase] {
        &self.phases
    }
    /// The longest time without any completion.
    pub fn longest_stall_since(&self, mark: Mark, now: Instant) -> Duration {
        let ended = self.phases[mark.0..].iter().map(|phase| phase.longest_stall);
        ended.max().unwrap_or_default().max(self.silent(now))
    }
    /// The longest time that a command took which was done.
    pub fn longest_command_since(&self, mark: Mark) -> Duration {
        self.phases[mark.0..].iter().map(|phase| phase.longest_command).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }
    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A command every 10 ms from 1010 on, but for a stall from 1500 to 2200.
    fn record() -> Record {
        let mut record = Record::new("all", at(1000));
        let ends = (1010..=1500).step_by(10).chain((2200..=3000).step_by(10));
        ends.for_each(|end| record.completed(at(end - 5), at(end)));
        record
    }

    #[test]
    fn a_stall_and_the_longest_command_are_told_apart() {
        let mut record = record();
        record.completed(at(2000), at(3001));
        assert_eq!(record.longest_stall_since(Mark(0), at(3001)), ms(700));
        assert_eq!(record.longest_command_since(Mark(0)), ms(1001));
        assert_eq!(record.longest_stall_since(Mark(0), at(4001)), ms(1000), "nothing has ended since");
    }

    #[test]
    fn intervals_in_which_nothing_ended_are_there() {
        let mut record = record();
        let phase = record.look(at(3100)).clone();
        assert_eq!(phase.buckets.len(), 42);
        let empty: Vec<usize> = (0..42).filter(|&i| phase.buckets[i].completed == 0).collect();
        assert_eq!(empty, [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 41]);
        assert_eq!(phase.buckets[1], Bucket { completed: 5, longest_command: ms(5) });
        assert_eq!(phase.completed, 50 + 81);
        assert_eq!(phase.buckets.iter().map(|b| u64::from(b.completed)).sum::<u64>(), phase.completed);
    }

    #[test]
    fn a_mark_begins_anew_and_hides_no_stall() {
        let mut record = Record::new("before", at(0));
        record.completed(at(0), at(10));
        let mark = record.mark("kill", at(400)).unwrap();
        assert_eq!(record.phases()[0].longest_stall, ms(390));
        record.completed(at(500), at(610));
        let quiet = record.mark("after", at(620)).unwrap();
        record.completed(at(620), at(640));
        assert_eq!(record.phases()[1].longest_stall, ms(600), "from the last one before the mark on");
        assert_eq!(record.longest_stall_since(mark, at(650)), ms(600));
        assert_eq!(record.longest_stall_since(quiet, at(650)), ms(30));
        assert_eq!(record.longest_command_since(quiet), ms(20));
        assert_eq!(record.phases()[1].buckets.len(), 5);
    }

    #[test]
    fn a_record_that_is_full_counts_on() {
        let mut record = Record::new("", at(0));
        record.completed(at(0), at(48 * 3600 * 1000));
        record.completed(at(0), at(1));
        assert_eq!((record.phases()[0].buckets.len(), record.phases()[0].completed), (BUCKETS_MAX, 2));
        assert!((1..PHASES_MAX).all(|_| record.mark("", at(2)).is_some()));
        assert_eq!(record.mark("", at(2)), None);
    }
}
