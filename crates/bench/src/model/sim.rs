//! What a load does on a model: a simulation of its events. Percentiles of a request that waits for the slowest of several queues,
//! or that is served in a batch, have no closed form.

use super::queue::QueueError;
use super::stage::{Model, exponential};
use crate::random::Random;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

/// How requests come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// So many per second, independently of each other (Poisson).
    Open { per_second: f64 },
    /// So many in flight: one begins when another ends.
    Closed { depth: u32 },
}

/// What was seen at one load. Times are microseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    pub load: Load,
    /// Requests per second that ended.
    pub throughput: f64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    /// On average, counted over time.
    pub in_flight: f64,
    /// Share of the time in which each station's servers were busy, pauses not counted; 0 of a delay.
    pub busy: Vec<f64>,
    /// Visits in a turn of each station.
    pub batch: Vec<f64>,
}

/// Share of the requests that is not counted: the model begins empty.
const WARMUP_SHARE: usize = 10;
/// An open loop of which so large a share is still there when the last one comes has no steady state.
const BACKLOG_SHARE: usize = 5;

/// Runs `requests` of them, the first tenth of which do not count. A turn takes 0.1 to 0.3 us of this machine's time.
pub fn evaluate(model: &Model, load: Load, requests: usize, seed: u64) -> Result<Point, QueueError> {
    let is_load = match load {
        Load::Open { per_second } => per_second > 0.0 && per_second.is_finite(),
        Load::Closed { depth } => depth > 0,
    };
    if model.check().is_err() || !is_load || requests < 100 {
        return Err(QueueError::Invalid);
    }
    if let (Load::Open { per_second }, Some((_, most))) = (load, model.bottleneck())
        && per_second >= most
    {
        return Err(QueueError::Overloaded { utilisation: per_second / most });
    }
    Sim::new(model, load, requests, seed).run()
}

#[derive(Clone, Copy, PartialEq)]
enum What {
    Arrive,
    Done { turn: usize },
    Pause { lane: usize },
    Resume { lane: usize },
}

#[derive(Clone, Copy, PartialEq)]
struct Event {
    at: f64,
    /// Of two at the same time, the one that was made first.
    order: u64,
    what: What,
}

impl Eq for Event {}
impl Ord for Event {
    /// The earliest is the greatest: a `BinaryHeap` gives the greatest.
    fn cmp(&self, other: &Event) -> Ordering {
        other.at.total_cmp(&self.at).then(other.order.cmp(&self.order))
    }
}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Event) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Requests that go together.
#[derive(Default)]
struct Job {
    /// When each one began.
    members: Vec<f64>,
    visit: usize,
    /// Columns that have not ended.
    left: u32,
}

#[derive(Default)]
struct Turn {
    lane: usize,
    /// In order; those that have left are gone.
    jobs: VecDeque<usize>,
    count: usize,
    /// Who leaves next: how many, and how long after the turn's beginning.
    groups: VecDeque<(usize, f64)>,
    began: f64,
    /// What the lane had paused in all when it began.
    paused: f64,
}

struct Lane {
    station: usize,
    slow: f64,
    waiting: VecDeque<usize>,
    running: u32,
    /// Microseconds of all pauses so far, and when the last one ends.
    paused: f64,
    blocked_until: f64,
    is_touched: bool,
}

struct Sim<'a> {
    model: &'a Model,
    load: Load,
    random: Random,
    now: f64,
    order: u64,
    events: BinaryHeap<Event>,
    lanes: Vec<Lane>,
    /// The first lane of each station.
    first: Vec<usize>,
    touched: Vec<usize>,
    jobs: Vec<Job>,
    free_jobs: Vec<usize>,
    turns: Vec<Turn>,
    free_turns: Vec<usize>,
    seen: Seen,
}

/// What is counted from the end of the warm-up on.
struct Seen {
    requests: usize,
    born: usize,
    ended: usize,
    since: f64,
    /// In flight now, and its integral over time up to `counted`.
    in_flight: usize,
    area: f64,
    counted: f64,
    latencies: Vec<f64>,
    busy: Vec<f64>,
    turns: Vec<u64>,
    visits: Vec<u64>,
    overloaded: bool,
}

impl<'a> Sim<'a> {
    fn new(model: &'a Model, load: Load, requests: usize, seed: u64) -> Sim<'a> {
        let (mut lanes, mut first) = (Vec::new(), Vec::new());
        for (station, it) in model.stations.iter().enumerate() {
            first.push(lanes.len());
            lanes.extend(it.lanes.iter().map(|&slow| Lane {
                station,
                slow,
                waiting: VecDeque::new(),
                running: 0,
                paused: 0.0,
                blocked_until: 0.0,
                is_touched: false,
            }));
        }
        let stations = model.stations.len();
        let seen = Seen {
            requests,
            born: 0,
            ended: 0,
            since: 0.0,
            in_flight: 0,
            area: 0.0,
            counted: 0.0,
            latencies: Vec::with_capacity(requests),
            busy: vec![0.0; stations],
            turns: vec![0; stations],
            visits: vec![0; stations],
            overloaded: false,
        };
        Sim {
            model,
            load,
            random: Random::new(seed),
            now: 0.0,
            order: 0,
            events: BinaryHeap::new(),
            lanes,
            first,
            touched: Vec::new(),
            jobs: Vec::new(),
            free_jobs: Vec::new(),
            turns: Vec::new(),
            free_turns: Vec::new(),
            seen,
        }
    }

    fn run(mut self) -> Result<Point, QueueError> {
        for lane in 0..self.lanes.len() {
            self.pause_later(lane);
        }
        match self.load {
            Load::Open { .. } => self.at(0.0, What::Arrive),
            Load::Closed { depth } => (0..depth).for_each(|_| self.arrive()),
        }
        self.start_touched();
        while self.seen.ended < self.seen.requests && !self.seen.overloaded {
            let event = self.events.pop().expect("something is always to come");
            self.now = event.at;
            match event.what {
                What::Arrive => self.next_arrival(),
                What::Done { turn } => self.done(turn),
                What::Pause { lane } => self.pause(lane),
                What::Resume { lane } => self.touch(lane),
            }
            // What comes at the same moment is there when a turn begins.
            if self.events.peek().is_some_and(|next| next.at <= self.now) {
                continue;
            }
            self.start_touched();
        }
        self.point()
    }

    fn at(&mut self, at: f64, what: What) {
        self.order += 1;
        self.events.push(Event { at, order: self.order, what });
    }

    fn next_arrival(&mut self) {
        let Load::Open { per_second } = self.load else { return };
        self.arrive();
        if self.seen.born < self.seen.requests {
            let gap = exponential(&mut self.random) * 1e6 / per_second;
            self.at(self.now + gap, What::Arrive);
        } else {
            self.seen.overloaded = self.seen.in_flight > self.seen.requests / BACKLOG_SHARE;
        }
    }

    fn arrive(&mut self) {
        self.seen.born += 1;
        self.seen.count(self.now);
        self.seen.in_flight += 1;
        let job = self.job(0);
        self.jobs[job].members.push(self.now);
        self.go(job);
    }

    fn job(&mut self, visit: usize) -> usize {
        let job = self.free_jobs.pop().unwrap_or_else(|| {
            self.jobs.push(Job::default());
            self.jobs.len() - 1
        });
        self.jobs[job].visit = visit;
        job
    }

    /// To the job's visit, or past it, or to the end.
    fn go(&mut self, job: usize) {
        while let Some(visit) = self.model.route.get(self.jobs[job].visit) {
            if visit.share >= 1.0 || self.random.unit() < visit.share {
                self.jobs[job].left = visit.columns;
                return self.queue(job, visit.station, visit.columns);
            }
            self.jobs[job].visit += 1;
        }
        for n in 0..self.jobs[job].members.len() {
            let born = self.jobs[job].members[n];
            self.seen.end(self.now, born);
        }
        let ended = self.jobs[job].members.len();
        self.jobs[job].members.clear();
        self.free_jobs.push(job);
        if matches!(self.load, Load::Closed { .. }) {
            (0..ended).for_each(|_| self.arrive());
        }
    }

    /// Onto `columns` lanes of a station, all different, all as likely: those of a random place on, in a ring.
    fn queue(&mut self, job: usize, station: usize, columns: u32) {
        let count = self.model.stations[station].lanes.len();
        let from = if count == 1 { 0 } else { self.random.below(count as u64) as usize };
        for n in 0..columns as usize {
            let lane = self.first[station] + (from + n) % count;
            self.lanes[lane].waiting.push_back(job);
            self.touch(lane);
        }
    }

    fn touch(&mut self, lane: usize) {
        if !std::mem::replace(&mut self.lanes[lane].is_touched, true) {
            self.touched.push(lane);
        }
    }

    /// Turns begin when all that comes at this moment is there.
    fn start_touched(&mut self) {
        while let Some(lane) = self.touched.pop() {
            self.lanes[lane].is_touched = false;
            while self.can_start(lane) {
                self.start(lane);
            }
        }
    }

    fn can_start(&self, lane: usize) -> bool {
        let it = &self.lanes[lane];
        let servers = self.model.stations[it.station].servers;
        !it.waiting.is_empty() && (servers == 0 || it.running < servers) && self.now >= it.blocked_until
    }

    fn start(&mut self, lane: usize) {
        let turn = self.free_turns.pop().unwrap_or_else(|| {
            self.turns.push(Turn::default());
            self.turns.len() - 1
        });
        let it = &mut self.lanes[lane];
        let station = &self.model.stations[it.station];
        let count = it.waiting.len().min(station.batch_max as usize);
        let into = &mut self.turns[turn];
        into.jobs.extend(it.waiting.drain(..count));
        (into.lane, into.began, into.paused) = (lane, self.now, it.paused);
        it.running += 1;
        into.count = count;
        let mut us = station.draw_turn(&mut self.random);
        for (n, &job) in (1..).zip(&into.jobs) {
            let job = &self.jobs[job];
            us += self.model.route[job.visit].draw(job.members.len(), &mut self.random);
            let group = n % station.leave as usize;
            if group == 0 || n == count {
                let members = if group == 0 { station.leave as usize } else { group };
                into.groups.push_back((members, us * it.slow));
            }
        }
        let first = self.now + into.groups.front().expect("a turn has jobs").1;
        self.at(first, What::Done { turn });
    }

    fn done(&mut self, turn: usize) {
        let lane = self.turns[turn].lane;
        let owed = self.lanes[lane].paused - self.turns[turn].paused;
        if owed > 0.0 {
            self.turns[turn].paused += owed;
            self.turns[turn].began += owed;
            return self.at(self.now + owed, What::Done { turn });
        }
        let it = &mut self.turns[turn];
        let (members, _) = it.groups.pop_front().expect("somebody leaves");
        match it.groups.front() {
            Some(&(_, us)) => {
                let at = it.began + us;
                self.at(at, What::Done { turn });
            }
            None => {
                let (began, count) = (it.began, it.count);
                self.lanes[lane].running -= 1;
                self.touch(lane);
                self.seen.turn(self.lanes[lane].station, self.now, began, count);
            }
        }
        self.go_on(turn, members);
    }

    /// So many of a turn's jobs leave.
    fn go_on(&mut self, turn: usize, members: usize) {
        // The first of those that go on as one.
        let mut frame: Option<usize> = None;
        for _ in 0..members {
            let job = self.turns[turn].jobs.pop_front().expect("it has not left");
            self.jobs[job].left -= 1;
            if self.jobs[job].left > 0 {
                continue;
            }
            self.jobs[job].visit += 1;
            let next = self.jobs[job].visit;
            let together = self.model.route.get(next).is_some_and(|visit| visit.together);
            match frame {
                Some(into) if together && self.jobs[into].visit == next => self.merge(into, job),
                _ if together && frame.is_none() => frame = Some(job),
                _ => self.split(job, together),
            }
        }
        if let Some(frame) = frame {
            self.go(frame);
        }
        if self.turns[turn].jobs.is_empty() {
            self.free_turns.push(turn);
        }
    }

    fn merge(&mut self, into: usize, job: usize) {
        let mut members = std::mem::take(&mut self.jobs[job].members);
        self.jobs[into].members.append(&mut members);
        self.jobs[job].members = members;
        self.free_jobs.push(job);
    }

    /// Requests that were one go on by themselves, unless the next visit is together as well.
    fn split(&mut self, job: usize, together: bool) {
        while !together && self.jobs[job].members.len() > 1 {
            let born = self.jobs[job].members.pop().expect("more than one");
            let alone = self.job(self.jobs[job].visit);
            self.jobs[alone].members.push(born);
            self.go(alone);
        }
        self.go(job);
    }

    fn pause_later(&mut self, lane: usize) {
        let rate = self.model.stations[self.lanes[lane].station].pauses.rate;
        if rate > 0.0 {
            let gap = exponential(&mut self.random) / rate;
            self.at(self.now + gap, What::Pause { lane });
        }
    }

    fn pause(&mut self, lane: usize) {
        let lengths = &self.model.stations[self.lanes[lane].station].pauses.lengths;
        let length = lengths[self.random.below(lengths.len() as u64) as usize];
        let it = &mut self.lanes[lane];
        it.paused += length;
        it.blocked_until = it.blocked_until.max(self.now) + length;
        let until = it.blocked_until;
        self.at(until, What::Resume { lane });
        self.pause_later(lane);
    }

    fn point(self) -> Result<Point, QueueError> {
        let mut seen = self.seen;
        if seen.overloaded {
            return Err(QueueError::Overloaded { utilisation: 1.0 });
        }
        seen.count(self.now);
        let elapsed = (self.now - seen.since).max(1e-9);
        seen.latencies.sort_by(f64::total_cmp);
        let count = seen.latencies.len();
        let quantile = |share: f64| seen.latencies[((share * count as f64) as usize).min(count - 1)];
        let per = |lanes: usize, servers: u32| lanes as f64 * f64::from(servers);
        let busy = self.model.stations.iter().zip(&seen.busy).map(|(it, us)| match it.servers {
            0 => 0.0,
            servers => us / elapsed / per(it.lanes.len(), servers),
        });
        Ok(Point {
            load: self.load,
            throughput: count as f64 / elapsed * 1e6,
            mean_us: seen.latencies.iter().sum::<f64>() / count as f64,
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            in_flight: seen.area / elapsed,
            busy: busy.collect(),
            batch: seen.visits.iter().zip(&seen.turns).map(|(v, t)| *v as f64 / (*t).max(1) as f64).collect(),
        })
    }
}

impl Seen {
    fn is_warm(&self) -> bool {
        self.ended >= self.requests / WARMUP_SHARE
    }
    fn count(&mut self, now: f64) {
        self.area += self.in_flight as f64 * (now - self.counted);
        self.counted = now;
    }
    fn end(&mut self, now: f64, born: f64) {
        self.count(now);
        self.in_flight -= 1;
        if self.is_warm() && self.ended < self.requests {
            self.latencies.push(now - born);
        }
        self.ended += 1;
        if self.ended == self.requests / WARMUP_SHARE {
            (self.since, self.area) = (now, 0.0);
        }
    }
    fn turn(&mut self, station: usize, now: f64, began: f64, jobs: usize) {
        if self.is_warm() {
            self.busy[station] += now - began.max(self.since);
            self.turns[station] += 1;
            self.visits[station] += jobs as u64;
        }
    }
}

#[cfg(test)]
mod tests;
