//! The same model, changed: what if a stage were faster, a server more, a delay longer, one device slow.

use super::stage::{Cost, Model, Station};
use std::fmt;
use std::str::FromStr;

/// A change to a model. Names are those of stations or of costs; a plural s makes no difference.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// `encode*0.7`: takes so many times as long.
    Scale { name: String, factor: f64 },
    /// `reactors+1`, `device-2`: more servers, or fewer.
    Servers { name: String, more: i32 },
    /// `network+20us`: so much longer in each visit, microseconds.
    Delay { name: String, us: f64 },
    /// `device:1*3`: this one of them, counted from 0, takes so many times as long.
    Lane { name: String, lane: usize, factor: f64 },
}

const FORMS: &str = "write encode*0.7, reactors+1, network+20us or device:1*3";
const SERVERS_MAX: i32 = 1024;
const FACTOR_MAX: f64 = 1000.0;
const DELAY_US_MAX: f64 = 1e7;

impl FromStr for Change {
    type Err = String;

    fn from_str(text: &str) -> Result<Change, String> {
        let bad = |what: &str| format!("`{text}`: {what}; {FORMS}");
        let at = text.find(['*', '+', '-']).ok_or_else(|| bad("there is no *, + or -"))?;
        let (name, sign, value) = (&text[..at], &text[at..=at], &text[at + 1..]);
        let (name, lane) = match name.split_once(':') {
            Some((name, lane)) => (name, Some(lane.parse::<usize>().map_err(|_| bad("no such number"))?)),
            None => (name, None),
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if name.is_empty() || !name.chars().all(is_name) {
            return Err(bad("there is no name in front"));
        }
        let name = name.to_owned();
        if sign == "*" {
            let factor = value.parse().ok().filter(|f| (1.0 / FACTOR_MAX..=FACTOR_MAX).contains(f));
            let factor = factor.ok_or_else(|| bad("the factor is from 0.001 to 1000"))?;
            return Ok(match lane {
                None => Change::Scale { name, factor },
                Some(lane) => Change::Lane { name, lane, factor },
            });
        }
        if lane.is_some() {
            return Err(bad("one of several takes a factor"));
        }
        match (delay_us(value), value.parse::<u16>()) {
            (Some(us), _) if sign == "+" && (0.0..=DELAY_US_MAX).contains(&us) => {
                Ok(Change::Delay { name, us })
            }
            (None, Ok(count)) if (1..=SERVERS_MAX).contains(&i32::from(count)) => {
                let count = i32::from(count);
                Ok(Change::Servers { name, more: if sign == "+" { count } else { -count } })
            }
            _ => Err(bad("a number of servers from 1 to 1024, or a time such as 20us or 1.5ms behind a +")),
        }
    }
}

fn delay_us(text: &str) -> Option<f64> {
    let (number, factor) = match (text.strip_suffix("us"), text.strip_suffix("ms")) {
        (Some(number), _) => (number, 1.0),
        (None, Some(number)) => (number, 1000.0),
        (None, None) => return None,
    };
    let is_plain = number.starts_with(|c: char| c.is_ascii_digit());
    number.parse::<f64>().ok().filter(|us| is_plain && us.is_finite()).map(|us| us * factor)
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Scale { name, factor } => write!(f, "{name}*{factor}"),
            Change::Servers { name, more } => write!(f, "{name}{more:+}"),
            Change::Delay { name, us } => write!(f, "{name}+{us}us"),
            Change::Lane { name, lane, factor } => write!(f, "{name}:{lane}*{factor}"),
        }
    }
}

impl Change {
    /// Changes the model. On an error, which says what there is, it is as it was.
    pub fn apply(&self, model: &mut Model) -> Result<(), String> {
        let before = model.clone();
        let result = self.try_apply(model).and_then(|()| model.check());
        if result.is_err() {
            *model = before;
        }
        result.map_err(|why| format!("`{self}`: {why}"))
    }

    fn try_apply(&self, model: &mut Model) -> Result<(), String> {
        match self {
            Change::Scale { name, factor } => scale(model, name, *factor),
            Change::Servers { name, more } => servers(station(model, name)?, *more),
            Change::Delay { name, us } => {
                station(model, name)?.turn.push(Cost::constant("delay", *us));
                Ok(())
            }
            Change::Lane { name, lane, factor } => {
                let station = station(model, name)?;
                let count = station.lanes.len();
                let lane = station.lanes.get_mut(*lane);
                *lane.ok_or_else(|| format!("there are {count} of them, the first is 0"))? *= factor;
                Ok(())
            }
        }
    }
}

fn same(a: &str, b: &str) -> bool {
    a.trim_end_matches('s') == b.trim_end_matches('s')
}

fn station<'a>(model: &'a mut Model, name: &str) -> Result<&'a mut Station, String> {
    let names: Vec<String> = model.stations.iter().map(|station| station.name.clone()).collect();
    let found = model.stations.iter_mut().find(|station| same(&station.name, name));
    found.ok_or_else(|| format!("stations are {}", names.join(", ")))
}

/// A station with all of its costs, or a cost wherever it is.
fn scale(model: &mut Model, name: &str, factor: f64) -> Result<(), String> {
    let mut names = Vec::new();
    let mut found = false;
    let of: Vec<bool> = model.stations.iter().map(|station| same(&station.name, name)).collect();
    let turns = model.stations.iter_mut().enumerate().map(|(i, station)| (i, &mut station.turn));
    let visits = model.route.iter_mut().map(|visit| (visit.station, &mut visit.request));
    for (station, costs) in turns.chain(visits) {
        for cost in costs {
            if of[station] || same(&cost.name, name) {
                cost.us *= factor;
                found = true;
            }
            names.push(cost.name.clone());
        }
    }
    names.extend(model.stations.iter().map(|station| station.name.clone()));
    names.sort();
    names.dedup();
    if found { Ok(()) } else { Err(format!("what takes time is {}", names.join(", "))) }
}

fn servers(station: &mut Station, more: i32) -> Result<(), String> {
    if station.servers == 0 {
        return Err("nobody waits there: it has no number of servers".to_owned());
    }
    let is_pool = station.servers > 1 && station.lanes.len() == 1;
    let now = if is_pool { station.servers as i32 } else { station.lanes.len() as i32 };
    if !(1..=SERVERS_MAX).contains(&(now + more)) {
        return Err(format!("there are {now}, and at least 1 and at most {SERVERS_MAX} must be"));
    }
    if is_pool {
        station.servers = (now + more) as u32;
    } else {
        station.lanes.resize((now + more) as usize, 1.0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::stage::Visit;
    use super::*;

    fn model() -> Model {
        Model {
            stations: vec![
                Station::polled("reactors", 1, vec![Cost::constant("turn", 6.0)]),
                Station::delay("network"),
                Station { lanes: vec![1.0; 6], ..Station::servers("device", 4) },
            ],
            route: vec![
                Visit::to(1, vec![]),
                Visit::to(0, vec![Cost::constant("request", 2.0), Cost::constant("encode", 1.0)]),
                Visit { columns: 6, ..Visit::to(2, vec![Cost::constant("write", 10.0)]) },
            ],
        }
    }

    fn after(text: &str) -> Model {
        let mut model = model();
        text.parse::<Change>().unwrap().apply(&mut model).unwrap();
        model
    }

    #[test]
    fn changes_are_read_and_written() {
        for text in ["encode*0.7", "reactors+1", "device-2", "network+20us", "device:1*3"] {
            assert_eq!(text.parse::<Change>().unwrap().to_string(), text);
        }
        assert_eq!("network+1.5ms".parse(), Ok(Change::Delay { name: "network".into(), us: 1500.0 }));
    }

    #[test]
    fn what_is_no_change_is_answered_with_what_to_write() {
        for text in [
            "",
            "encode",
            "*2",
            "encode*",
            "encode*0",
            "encode*-1",
            "encode*nan",
            "a b*2",
            "reactors+0",
            "reactors+1.5",
            "network-20us",
            "network+20",
            "network+infus",
            "network+-3us",
            "device:x*2",
            "device:1+1",
            "reactors+99999",
        ] {
            match text.parse::<Change>() {
                Err(said) => assert!(said.contains("encode*0.7"), "{said}"),
                // A number of servers is a number of servers: the network refuses it later.
                Ok(change) => assert!(change.apply(&mut model()).is_err(), "{text}"),
            }
        }
    }

    #[test]
    fn a_change_changes_what_it_says() {
        assert_eq!(after("encode*0.5").route[1].request_us(), 2.5);
        let reactors = after("reactor*0.5");
        assert_eq!((reactors.route[1].request_us(), reactors.stations[0].turn_us()), (1.5, 3.0));
        assert_eq!(after("reactors+1").stations[0].lanes.len(), 2);
        assert_eq!(after("network+20us").stations[1].turn_us(), 20.0);
        assert_eq!(after("device:1*3").stations[2].lanes, [1.0, 3.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(after("devices+2").stations[2].lanes.len(), 8);
    }

    #[test]
    fn a_change_that_does_not_fit_leaves_the_model_alone() {
        for (text, word) in [
            ("decode*2", "encode"),
            ("disk+1", "device"),
            ("device:6*2", "there are 6"),
            ("device-1", "more lanes"),
            ("reactors-1", "at least 1"),
            ("network+3", "nobody waits"),
        ] {
            let mut changed = model();
            let said = text.parse::<Change>().unwrap().apply(&mut changed).unwrap_err();
            assert!(said.contains(word), "{said}");
            assert_eq!(changed, model());
        }
    }
}
