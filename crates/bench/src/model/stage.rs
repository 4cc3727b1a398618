//! A path as stations: who serves, how long it takes, and which of them a request visits.

use crate::random::Random;
use std::sync::Arc;

/// How times lie about their mean; of mean 1.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    Constant,
    Exponential,
    /// Each of these is as likely.
    Empirical(Arc<[f64]>),
}

impl Shape {
    /// As these values lie about their mean. Constant when there are none, or all are 0.
    pub fn of(values: &[f64]) -> Shape {
        let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
        if mean <= 0.0 || !mean.is_finite() {
            return Shape::Constant;
        }
        Shape::Empirical(values.iter().map(|value| value / mean).collect())
    }
    pub fn draw(&self, random: &mut Random) -> f64 {
        match self {
            Shape::Constant => 1.0,
            Shape::Exponential => exponential(random),
            Shape::Empirical(values) => values[random.below(values.len() as u64) as usize],
        }
    }
}

/// Of mean 1.
pub(super) fn exponential(random: &mut Random) -> f64 {
    -(1.0 - random.unit()).ln()
}

/// A part of a time, by the name that a what-if knows it by.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    pub name: String,
    pub us: f64,
    pub shape: Shape,
}

impl Cost {
    pub fn new(name: &str, us: f64, shape: Shape) -> Cost {
        Cost { name: name.to_owned(), us, shape }
    }
    pub fn constant(name: &str, us: f64) -> Cost {
        Cost::new(name, us, Shape::Constant)
    }
    fn draw(&self, random: &mut Random) -> f64 {
        self.us * self.shape.draw(random)
    }
}

/// Stops of a server that do not come from its work: they come with time, whether it is busy or not (breakdowns).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pauses {
    /// Pauses per microsecond.
    pub rate: f64,
    /// Microseconds; each of these is as likely.
    pub lengths: Arc<[f64]>,
}

impl Pauses {
    /// Share of the time that they take.
    pub fn share(&self) -> f64 {
        let mean = self.lengths.iter().sum::<f64>() / self.lengths.len().max(1) as f64;
        (self.rate * mean).min(1.0)
    }
}

/// Who serves. A server takes what waits, at most `batch_max` at once, and is busy for its `turn` and for each request's part of
/// the visit; all of them leave at the end (bulk service), or `leave` at a time, as soon as they are done. With a batch of 1 that is a
/// plain queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Station {
    pub name: String,
    /// Places with a queue of their own, such as reactors or devices; how many times slower than said each one is.
    pub lanes: Vec<f64>,
    /// Servers of each lane; 0 is enough for everybody: a delay.
    pub servers: u32,
    pub batch_max: u32,
    /// Requests of a turn that leave together: as many as fit into what is sent at once.
    pub leave: u32,
    /// What a turn costs, however many requests are in it.
    pub turn: Vec<Cost>,
    pub pauses: Pauses,
}

impl Station {
    /// Servers with one queue, each for one request at a time; times come with the visits.
    pub fn servers(name: &str, servers: u32) -> Station {
        Station {
            name: name.to_owned(),
            lanes: vec![1.0],
            servers,
            batch_max: 1,
            leave: u32::MAX,
            turn: Vec::new(),
            pauses: Pauses::default(),
        }
    }
    /// Nobody waits.
    pub fn delay(name: &str) -> Station {
        Station::servers(name, 0)
    }
    /// So many polled reactors: each takes all that waits.
    pub fn polled(name: &str, lanes: usize, turn: Vec<Cost>) -> Station {
        Station { lanes: vec![1.0; lanes], batch_max: u32::MAX, turn, ..Station::servers(name, 1) }
    }
    /// A turn's own time.
    pub(super) fn draw_turn(&self, random: &mut Random) -> f64 {
        self.turn.iter().map(|cost| cost.draw(random)).sum()
    }
    pub fn turn_us(&self) -> f64 {
        self.turn.iter().map(|cost| cost.us).sum()
    }
}

/// A request comes to a station.
#[derive(Clone, Debug, PartialEq)]
pub struct Visit {
    /// Index into [`Model::stations`].
    pub station: usize,
    /// So many lanes at the same time, all different; the request waits for the slowest (fork and join).
    pub columns: u32,
    /// Requests that have left the last turn together come as one: a frame.
    pub together: bool,
    /// Requests that come here at all, from 0 to 1.
    pub share: f64,
    /// What each request costs here beside the turn.
    pub request: Vec<Cost>,
}

impl Visit {
    pub fn to(station: usize, request: Vec<Cost>) -> Visit {
        Visit { station, columns: 1, together: false, share: 1.0, request }
    }
    pub(super) fn draw(&self, requests: usize, random: &mut Random) -> f64 {
        let each = |cost: &Cost, random: &mut Random| match cost.shape {
            Shape::Constant => cost.us * requests as f64,
            _ => (0..requests).map(|_| cost.draw(random)).sum(),
        };
        self.request.iter().map(|cost| each(cost, random)).sum()
    }
    pub fn request_us(&self) -> f64 {
        self.request.iter().map(|cost| cost.us).sum()
    }
}

/// Stations, and the order in which each request visits them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    pub stations: Vec<Station>,
    pub route: Vec<Visit>,
}

impl Model {
    /// Requests per second that a station can serve at most, with turns as full as they may be. `None`: without limit.
    ///
    /// The utilisation law: a lane that gets `columns / lanes` of the visits is busy for that share of their time (Lazowska,
    /// Zahorjan, Graham, Sevcik, "Quantitative System Performance", 1984, section 3.3). The slowest lane is the limit.
    pub fn capacity(&self, station: usize) -> Option<f64> {
        let it = &self.stations[station];
        let mut us = 0.0;
        for visit in self.route.iter().filter(|visit| visit.station == station) {
            let full = if visit.together { f64::INFINITY } else { f64::from(it.batch_max) };
            let full = if it.batch_max == u32::MAX { f64::INFINITY } else { full };
            us += visit.share * f64::from(visit.columns) * (visit.request_us() + it.turn_us() / full);
        }
        let slowest = it.lanes.iter().copied().fold(0.0, f64::max);
        let servers = it.lanes.len() as f64 * f64::from(it.servers);
        let busy = us * slowest;
        (it.servers > 0 && busy > 0.0).then(|| servers * (1.0 - it.pauses.share()) / busy * 1e6)
    }

    /// The station that limits, and requests per second that it lets through. `None`: nothing limits.
    pub fn bottleneck(&self) -> Option<(&str, f64)> {
        let all = (0..self.stations.len()).filter_map(|i| Some((&*self.stations[i].name, self.capacity(i)?)));
        all.min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// What is wrong with it, in words.
    pub fn check(&self) -> Result<(), String> {
        let positive = |us: f64| us >= 0.0 && us.is_finite();
        for station in &self.stations {
            let lanes =
                !station.lanes.is_empty() && station.lanes.iter().all(|slow| *slow > 0.0 && positive(*slow));
            if !lanes
                || station.batch_max.min(station.leave) == 0
                || !station.turn.iter().all(|cost| positive(cost.us))
            {
                return Err(format!("station {} has no servers, or a time that is none", station.name));
            }
            if station.pauses.share() >= 1.0
                || (station.pauses.rate > 0.0 && station.pauses.lengths.is_empty())
            {
                return Err(format!("station {} only pauses", station.name));
            }
        }
        for visit in &self.route {
            let Some(station) = self.stations.get(visit.station) else {
                return Err("a visit to no station".to_owned());
            };
            let fits = (1..=station.lanes.len() as u32).contains(&visit.columns);
            if !fits
                || !(0.0..=1.0).contains(&visit.share)
                || !visit.request.iter().all(|cost| positive(cost.us))
            {
                return Err(format!(
                    "a visit to {} needs more lanes, or takes no time that is one",
                    station.name
                ));
            }
        }
        let all_come = self.route.iter().any(|visit| visit.share == 1.0);
        if all_come { Ok(()) } else { Err("a request may visit nobody".to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_keeps_the_mean() {
        let mut random = Random::new(1);
        for shape in [Shape::Constant, Shape::Exponential, Shape::of(&[1.0, 2.0, 9.0])] {
            let mean = (0..50_000).map(|_| shape.draw(&mut random)).sum::<f64>() / 50_000.0;
            assert!((mean - 1.0).abs() < 0.02, "{shape:?} {mean}");
        }
        assert_eq!((Shape::of(&[]), Shape::of(&[0.0])), (Shape::Constant, Shape::Constant));
    }

    #[test]
    fn the_slowest_lane_and_what_a_full_turn_costs_limit() {
        let mut model = Model {
            stations: vec![
                Station::polled("reactors", 2, vec![Cost::constant("turn", 6.0)]),
                Station { lanes: vec![1.0; 6], ..Station::servers("device", 1) },
                Station::delay("network"),
            ],
            route: vec![Visit::to(0, vec![Cost::constant("request", 2.0)]), Visit::to(2, vec![])],
        };
        assert_eq!(model.bottleneck(), Some(("reactors", 1e6)));
        model.stations[0].batch_max = 3;
        assert_eq!(model.capacity(0), Some(0.5e6));
        model.route.push(Visit { columns: 6, ..Visit::to(1, vec![Cost::constant("write", 5.0)]) });
        assert_eq!(model.bottleneck(), Some(("device", 0.2e6)));
        model.stations[1].lanes[3] = 4.0;
        assert_eq!((model.capacity(1), model.capacity(2)), (Some(0.05e6), None));
        assert!(model.check().is_ok());
        model.route[2].columns = 7;
        assert!(model.check().unwrap_err().contains("more lanes"));
    }
}
