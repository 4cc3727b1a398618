//! What `peristyle top` shows: figures of the last second, and of the minute before. Pure.

use crate::cli::FocusArg;
use crate::profile::{PathFigures, Profile, Snapshot};
use std::collections::VecDeque;

/// Seconds that the small curves show.
pub const HISTORY: usize = 60;

/// One second of one path.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    pub rate: f64,
    pub bytes_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
}

impl From<&PathFigures> for Point {
    fn from(p: &PathFigures) -> Point {
        let total = &p.total;
        Point { rate: total.rate, bytes_per_s: p.bytes_per_s, p50_us: total.p50_us, p99_us: total.p99_us }
    }
}

#[derive(Default)]
pub struct Model {
    last: Option<Snapshot>,
    pub profile: Option<Profile>,
    /// By path, the oldest first.
    pub history: [VecDeque<Point>; 2],
    pub focus: Option<usize>,
    pub paused: bool,
    pub uptime_ms: u64,
}

/// What a key asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key {
    Quit,
    Focus(FocusArg),
    Pause,
}

impl Key {
    pub fn of(c: char, control: bool) -> Option<Key> {
        Some(match (c, control) {
            ('q', false) | ('c', true) => Key::Quit,
            ('r', false) => Key::Focus(FocusArg::Read),
            ('w', false) => Key::Focus(FocusArg::Write),
            ('b', false) => Key::Focus(FocusArg::Both),
            ('p', false) => Key::Pause,
            _ => return None,
        })
    }
}

impl Model {
    pub fn new(focus: FocusArg) -> Model {
        let mut model = Model::default();
        model.set_focus(focus);
        model
    }

    fn set_focus(&mut self, focus: FocusArg) {
        self.focus = match focus {
            FocusArg::Both => None,
            FocusArg::Read => Some(0),
            FocusArg::Write => Some(1),
        };
    }

    /// False: it is to end.
    pub fn press(&mut self, key: Key) -> bool {
        match key {
            Key::Quit => return false,
            Key::Focus(focus) => self.set_focus(focus),
            Key::Pause => self.paused = !self.paused,
        }
        true
    }

    /// A new look at the node. While the picture is held it is only kept, so that the next one has its own second.
    pub fn take(&mut self, snapshot: Snapshot) {
        let profile = match &self.last {
            Some(before) => Profile::between(Some(before), &snapshot),
            None => None,
        };
        self.uptime_ms = snapshot.uptime_ms;
        self.last = Some(snapshot);
        let Some(profile) = profile.filter(|_| !self.paused) else { return };
        for (points, path) in self.history.iter_mut().zip(&profile.paths) {
            if points.len() == HISTORY {
                points.pop_front();
            }
            points.push_back(Point::from(path));
        }
        self.profile = Some(profile);
    }

    /// Paths in view.
    pub fn paths(&self) -> Vec<(usize, &PathFigures)> {
        let all = self.profile.iter().flat_map(|p| p.paths.iter().enumerate());
        all.filter(|(i, _)| self.focus.is_none_or(|focus| focus == *i)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(second: u64) -> Snapshot {
        Snapshot { at_ns: second * 1_000_000_000, uptime_ms: second * 1000, ..Snapshot::default() }
    }

    #[test]
    fn a_minute_is_kept_and_a_held_picture_stays() {
        let mut model = Model::new(FocusArg::Both);
        model.take(snapshot(1));
        assert!(model.profile.is_none(), "one look is no time");
        (2..=100).for_each(|second| model.take(snapshot(second)));
        assert_eq!(model.history[1].len(), HISTORY);
        assert!(model.press(Key::Pause) && model.paused);
        model.take(Snapshot { write_bytes: 500, ..snapshot(101) });
        assert_eq!(model.profile.as_ref().unwrap().paths[1].bytes_per_s, 0.0);
        model.press(Key::Pause);
        model.take(Snapshot { write_bytes: 700, ..snapshot(102) });
        assert_eq!(model.profile.as_ref().unwrap().paths[1].bytes_per_s, 200.0, "of its own second");
        assert_eq!(model.history[1].back().unwrap().bytes_per_s, 200.0);
    }

    #[test]
    fn keys_choose_a_path_and_end() {
        let mut model = Model::new(FocusArg::Write);
        (1..=2).for_each(|second| model.take(snapshot(second)));
        assert_eq!(model.paths().iter().map(|p| p.1.path).collect::<Vec<_>>(), ["write"]);
        assert!(model.press(Key::of('r', false).unwrap()));
        assert_eq!(model.paths().iter().map(|p| p.1.path).collect::<Vec<_>>(), ["read"]);
        assert!(model.press(Key::of('b', false).unwrap()));
        assert_eq!(model.paths().len(), 2);
        assert_eq!((Key::of('x', false), Key::of('r', true)), (None, None));
        for end in [Key::of('q', false), Key::of('c', true)] {
            assert!(!model.press(end.unwrap()));
        }
    }
}
