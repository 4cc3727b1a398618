//! A model of a target behind the generator, from one profile at light load.
//!
//! What is measured: commands one at a time, and bursts of n at once, each burst after the end of the one before. What is assumed:
//! generator and target are polled reactors, each turn of which costs something by itself and something for each command in it.
//! What carries data leaves in groups of g, as many as fit into what is received at once; then the other side is at work already.
//! With H and h for the generator, T and t for the target, and N for the network there and back:
//!
//! - a command at a time takes `N + T + t + H + h`: the turn that takes one answer sends the next command;
//! - a burst of n keeps the generator at work for `2 H + n h`, one turn to send and one to take the answers, so a line
//!   through the bursts' busy times gives H and h;
//! - where the target tells how long its reactors were at work, a line through those times gives T and t; N is what is left of
//!   the time of a lone command;
//! - where it does not, the last answer of a burst of n comes after `2 H + N + T + n t` and what of the generator's `n h`
//!   the target was not at work beside: the slope of that line is t, and T is what is left of the time of a lone command;
//! - a lone command of an open loop costs the generator two turns as well; what it needs beyond `2 H + h` is its clock's, half of it
//!   in each turn.
//!
//! Lines are least squares of the relative errors. How a lone command's times lie about their mean is how T lies about its own,
//! except for those far above the median: they are pauses, which come with time, not with work ([`Pauses`]).

use super::stage::{Cost, Model, Pauses, Shape, Station, Visit};
use std::sync::Arc;

/// A lone command that takes so many times the median was paused.
const PAUSE_FACTOR: f64 = 3.0;
/// No part of a turn's time is less than this share of its mean, whatever the subtraction says.
const LEAST_SHARE: f64 = 0.05;

/// Bursts of one size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Burst {
    pub size: u32,
    /// From the burst's beginning to its last answer, median, microseconds.
    pub last_us: f64,
    /// The generator at work, for one burst, microseconds.
    pub host_us: f64,
    /// The target's reactors at work, for one burst, microseconds; 0 is not known.
    pub target_us: f64,
}

/// A part of the target's work that is known by name: microseconds of a turn, and of each command in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    pub name: String,
    pub turn_us: f64,
    pub request_us: f64,
}

/// Devices that work beside the reactors.
#[derive(Clone, Debug, PartialEq)]
pub struct Devices {
    pub count: usize,
    /// Requests that one of them works at, at the same time.
    pub depth: u32,
    /// Devices that a command needs.
    pub columns: u32,
    /// Commands of a turn go to them as one.
    pub together: bool,
    /// Commands that need them at all, from 0 to 1.
    pub share: f64,
    pub service_us: f64,
    pub shape: Shape,
}

/// What was measured at light load.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Quantiles of a lone command's latency, at even distances of the share; microseconds.
    pub alone_us: Vec<f64>,
    /// At least two sizes.
    pub bursts: Vec<Burst>,
    /// The generator at work, for one command of an open loop in which commands seldom meet; 0 is not known. Microseconds.
    pub open_host_us: f64,
    /// There and back, of which nobody is kept busy, as far as it is known otherwise; microseconds.
    pub network_us: f64,
    /// The target's reactors at work, for a lone command, microseconds; 0 is not known.
    pub target_us: f64,
    /// Commands whose data is received at once.
    pub group: u32,
    /// Share of the commands that carry data to the target.
    pub writes: f64,
    /// Of the target.
    pub reactors: usize,
    pub named: Vec<Named>,
    pub devices: Option<Devices>,
}

impl Profile {
    /// Share of the generator's `n h` for a burst of n beside which the target is not at work: of what comes in groups, the
    /// first to go and the last to come.
    fn apart(&self, size: u32) -> f64 {
        let (n, group) = (size.max(1), self.group.max(1));
        let first = f64::from(n.min(group)) / f64::from(n);
        let last = f64::from((n - 1) % group + 1) / f64::from(n);
        let sent = 1.0 - self.writes + self.writes * first;
        let received = self.writes + (1.0 - self.writes) * last;
        (sent + received) / 2.0
    }
}

/// The figures of a model, microseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    pub host_turn_us: f64,
    pub host_request_us: f64,
    /// The generator's, for a command of an open loop beside that, when it is alone.
    pub host_clock_us: f64,
    pub turn_us: f64,
    pub request_us: f64,
    pub network_us: f64,
    pub pauses: Pauses,
    turn_shape: Shape,
    group: u32,
    writes: f64,
    reactors: usize,
    named: Vec<Named>,
    devices: Option<Devices>,
}

impl Fit {
    /// An error says what the profile does not have.
    pub fn new(profile: &Profile) -> Result<Fit, String> {
        if profile.alone_us.is_empty() || profile.reactors == 0 {
            return Err("no commands, or no reactors".to_owned());
        }
        let of = |value: fn(&Burst) -> f64| {
            profile.bursts.iter().map(|b| (f64::from(b.size), value(b))).collect::<Vec<_>>()
        };
        let (two_turns, host_request_us) = line(&of(|burst| burst.host_us))?;
        let (host_turn_us, host_request_us) = ((two_turns / 2.0).max(0.0), host_request_us.max(0.0));
        let told = profile.target_us > 0.0 && profile.bursts.iter().all(|burst| burst.target_us > 0.0);
        let request_us = match told {
            true => line(&of(|burst| burst.target_us))?.1,
            false => {
                let (_, both) = line(&of(|burst| burst.last_us))?;
                let mean = profile.bursts.iter().map(|b| profile.apart(b.size)).sum::<f64>()
                    / profile.bursts.len() as f64;
                both - host_request_us * mean
            }
        };
        if request_us <= 0.0 {
            return Err(format!(
                "a burst takes {request_us:.2} us more of the target for each command, the generator {host_request_us:.2}: \
                 too noisy, or the generator is the limit"
            ));
        }
        let (body, pauses) = split(&profile.alone_us);
        let mean = body.iter().sum::<f64>() / body.len() as f64;
        let devices_us = profile.devices.as_ref().map_or(0.0, |devices| devices.share * devices.service_us);
        let others = host_turn_us + host_request_us + request_us + devices_us;
        let (turn_us, network_us) = match told {
            true => {
                let turn_us = (profile.target_us - request_us).max(LEAST_SHARE * mean);
                (turn_us, (mean - others - turn_us).max(0.0))
            }
            false => ((mean - others - profile.network_us).max(LEAST_SHARE * mean), profile.network_us),
        };
        let turns: Vec<f64> =
            body.iter().map(|us| (turn_us + us - mean).max(LEAST_SHARE * turn_us)).collect();
        Ok(Fit {
            host_turn_us,
            host_request_us,
            host_clock_us: (profile.open_host_us - 2.0 * host_turn_us - host_request_us).max(0.0),
            turn_us,
            request_us,
            network_us,
            pauses,
            group: profile.group.max(1),
            writes: profile.writes,
            turn_shape: Shape::of(&turns),
            reactors: profile.reactors,
            named: named(&profile.named, turn_us, request_us),
            devices: profile.devices.clone(),
        })
    }

    /// Of a closed loop: the turn that takes answers sends the next commands.
    pub fn closed(&self) -> Model {
        self.model(&[], &["send", "receive"])
    }

    /// Of an open loop: commands begin by themselves, in turns of their own.
    pub fn open(&self) -> Model {
        self.model(&["send"], &["receive"])
    }

    fn model(&self, first: &[&str], last: &[&str]) -> Model {
        let host = |parts: &[&str]| {
            let costs = parts.iter().map(|part| Cost::constant(part, self.host_request_us / 2.0));
            Visit::to(0, costs.collect())
        };
        let (mut turn, mut request) = (
            vec![Cost::new("turn", self.turn_us, self.turn_shape.clone())],
            vec![Cost::constant("request", self.request_us)],
        );
        for part in &self.named {
            turn[0].us -= part.turn_us;
            request[0].us -= part.request_us;
            turn.push(Cost::constant(&part.name, part.turn_us));
            request.push(Cost::constant(&part.name, part.request_us));
        }
        // A command alone has two turns of an open loop; with more load they are shared, as all turns are.
        let clock_us = if first.is_empty() { 0.0 } else { self.host_clock_us / 2.0 };
        let group = |carries_data: bool| if carries_data { self.group } else { u32::MAX };
        // What goes to devices beside the reactors goes as one, whatever carries data later.
        let answers = self.writes < 1.0 && self.devices.is_none();
        let host_turn = vec![Cost::constant("host_turn", self.host_turn_us + clock_us)];
        let mut stations = vec![
            Station { leave: group(self.writes > 0.0), ..Station::polled("host", 1, host_turn) },
            Station { turn: vec![Cost::constant("wire", self.network_us)], ..Station::delay("network") },
            Station {
                pauses: self.pauses.clone(),
                leave: group(answers),
                ..Station::polled("reactors", self.reactors, turn)
            },
        ];
        let mut route = vec![Visit::to(1, Vec::new()), Visit::to(2, request)];
        if let Some(devices) = &self.devices {
            stations.push(Station {
                lanes: vec![1.0; devices.count],
                turn: vec![Cost::new("service", devices.service_us, devices.shape.clone())],
                ..Station::servers("device", devices.depth)
            });
            let Devices { columns, together, share, .. } = *devices;
            route.push(Visit { columns, together, share, ..Visit::to(3, Vec::new()) });
        }
        if !first.is_empty() {
            route.insert(0, host(first));
        }
        route.push(host(last));
        Model { stations, route }
    }
}

/// Where it crosses the axis, and the slope, of the line through the points whose relative errors have the least squares.
pub fn line(points: &[(f64, f64)]) -> Result<(f64, f64), String> {
    let is_valid = points.iter().all(|(x, y)| x.is_finite() && *y > 0.0 && y.is_finite());
    let sum = |f: fn(f64, f64) -> f64| points.iter().map(|&(x, y)| f(x, y) / (y * y)).sum::<f64>();
    let (one, x, y) = (sum(|_, _| 1.0), sum(|x, _| x), sum(|_, y| y));
    let (xx, xy) = (sum(|x, _| x * x), sum(|x, y| x * y));
    let determinant = one * xx - x * x;
    if !is_valid || determinant <= 1e-9 * one * xx {
        return Err("a line needs bursts of two sizes at least, with times above 0".to_owned());
    }
    let slope = (one * xy - x * y) / determinant;
    Ok(((y - slope * x) / one, slope))
}

/// Times of work, and what is left: pauses, as often as they came.
fn split(alone_us: &[f64]) -> (Vec<f64>, Pauses) {
    let mut sorted = alone_us.to_vec();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    let count = sorted.iter().take_while(|us| **us <= PAUSE_FACTOR * median).count();
    let total: f64 = sorted.iter().sum();
    let lengths: Arc<[f64]> = sorted[count..].iter().map(|us| us - median).collect();
    // Pauses come in the middle of others as well, so they are counted over all of the time.
    let rate = lengths.len() as f64 / total;
    sorted.truncate(count);
    (sorted, Pauses { rate, lengths })
}

/// The parts that have a name: all together no more than the whole.
fn named(parts: &[Named], turn_us: f64, request_us: f64) -> Vec<Named> {
    let fit =
        |whole: f64, of: fn(&Named) -> f64| (whole / parts.iter().map(of).sum::<f64>().max(whole)).min(1.0);
    let (turn, request) = (fit(turn_us, |part| part.turn_us), fit(request_us, |part| part.request_us));
    let scaled = parts.iter().map(|part| Named {
        name: part.name.clone(),
        turn_us: part.turn_us * turn,
        request_us: part.request_us * request,
    });
    scaled.collect()
}

#[cfg(test)]
mod tests {
    use super::super::sim::{Load, evaluate};
    use super::*;

    /// As a target of 7 + 4 n us and a generator of 3 + n us would be seen, with a wire of 2 us.
    fn profile() -> Profile {
        let burst = |size: u32| {
            let n = f64::from(size);
            Burst { size, last_us: 6.0 + 2.0 + 7.0 + n * 5.0, host_us: 6.0 + n, target_us: 0.0 }
        };
        Profile {
            alone_us: vec![17.0; 1000],
            bursts: [1, 4, 16, 32].map(burst).to_vec(),
            open_host_us: 9.0,
            network_us: 2.0,
            target_us: 0.0,
            group: 1000,
            writes: 0.0,
            reactors: 1,
            named: Vec::new(),
            devices: None,
        }
    }

    fn near(value: f64, expected: f64) {
        assert!((value - expected).abs() < 1e-6 * (1.0 + expected), "{value} beside {expected}");
    }

    #[test]
    fn what_a_profile_was_made_of_is_found_again() {
        let fit = Fit::new(&profile()).unwrap();
        near(fit.host_turn_us, 3.0);
        near(fit.host_request_us, 1.0);
        near(fit.request_us, 4.0);
        near(fit.turn_us, 7.0);
        assert_eq!(fit.pauses, Pauses::default());
        let alone = evaluate(&fit.closed(), Load::Closed { depth: 1 }, 2000, 1).unwrap();
        near(alone.mean_us, 17.0);
        // An open loop sends in a turn of its own, and looks at the clock.
        near(fit.host_clock_us, 2.0);
        let light = evaluate(&fit.open(), Load::Open { per_second: 100.0 }, 2000, 1).unwrap();
        assert!((light.mean_us - 22.0).abs() < 0.2, "{light:?}");
        near(fit.closed().capacity(2).unwrap(), 250e3);
    }

    #[test]
    fn a_target_that_tells_how_long_it_works_tells_work_from_the_way() {
        let mut profile = profile();
        // 5 of the 7 us of a lone command's turn are on the way.
        profile.target_us = 6.0;
        profile.bursts.iter_mut().for_each(|burst| burst.target_us = 2.0 + 4.0 * f64::from(burst.size));
        let fit = Fit::new(&profile).unwrap();
        near(fit.turn_us, 2.0);
        near(fit.request_us, 4.0);
        near(fit.network_us, 7.0);
        near(evaluate(&fit.closed(), Load::Closed { depth: 1 }, 2000, 1).unwrap().mean_us, 17.0);
    }

    #[test]
    fn what_comes_in_groups_is_worked_at_by_both_sides_at_once() {
        let mut profile = Profile { group: 8, ..profile() };
        near(profile.apart(4), 1.0);
        // Of 16 answers the last 8 come when the target is done; commands without data all go at once.
        near(profile.apart(16), 0.75);
        profile.writes = 1.0;
        near(profile.apart(16), 0.75);
        near(profile.apart(17), (8.0 / 17.0 + 1.0) / 2.0);
        let model = Fit::new(&profile).unwrap().closed();
        assert_eq!((model.stations[0].leave, model.stations[2].leave), (8, u32::MAX));
    }

    #[test]
    fn pauses_are_told_from_work() {
        let mut profile = profile();
        profile.alone_us[990..].fill(1017.0);
        profile.alone_us[..100].fill(16.0);
        profile.alone_us[100..200].fill(18.0);
        let fit = Fit::new(&profile).unwrap();
        near(fit.turn_us, 7.0);
        assert_eq!((fit.pauses.lengths.len(), fit.pauses.lengths[0]), (10, 1000.0));
        near(fit.pauses.rate, 10.0 / 27_000.0);
        let alone = evaluate(&fit.closed(), Load::Closed { depth: 1 }, 200_000, 1).unwrap();
        let mean = profile.alone_us.iter().sum::<f64>() / 1000.0;
        assert!((alone.mean_us / mean - 1.0).abs() < 0.1, "{} beside {mean}", alone.mean_us);
        assert!((alone.p50_us - 17.0).abs() < 0.1);
    }

    #[test]
    fn parts_with_a_name_are_within_the_whole() {
        let mut profile = profile();
        let part = |name: &str, turn_us, request_us| Named { name: name.to_owned(), turn_us, request_us };
        profile.named = vec![part("encode", 1.0, 0.5), part("lookup", 0.0, 7.5)];
        let model = Fit::new(&profile).unwrap().closed();
        near(model.route[1].request_us(), 4.0);
        near(model.stations[2].turn_us(), 7.0);
        near(model.route[1].request[1].us, 0.25);
        near(model.stations[2].turn[1].us, 1.0);
    }

    #[test]
    fn devices_have_their_own_time() {
        let mut profile = profile();
        profile.alone_us.fill(117.0);
        profile.devices = Some(Devices {
            count: 6,
            depth: 1,
            columns: 6,
            together: true,
            share: 1.0,
            service_us: 100.0,
            shape: Shape::Constant,
        });
        let fit = Fit::new(&profile).unwrap();
        near(fit.turn_us, 7.0);
        near(evaluate(&fit.closed(), Load::Closed { depth: 1 }, 2000, 1).unwrap().mean_us, 117.0);
        assert!(fit.open().check().is_ok());
    }

    #[test]
    fn a_profile_that_tells_too_little_is_refused() {
        let fit = |change: fn(&mut Profile)| {
            let mut profile = profile();
            change(&mut profile);
            Fit::new(&profile).unwrap_err()
        };
        assert!(fit(|p| p.bursts.truncate(1)).contains("two sizes"));
        assert!(fit(|p| p.bursts.iter_mut().for_each(|b| b.last_us = b.host_us)).contains("too noisy"));
        assert!(fit(|p| p.alone_us.clear()).contains("no commands"));
        assert!(fit(|p| p.bursts[0].host_us = f64::NAN).contains("above 0"));
    }
}
