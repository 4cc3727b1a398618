//! What a client makes of the answers to a list and to a watch, without I/O.

use super::wire::{Request, Violation, entry_bytes};
use crate::meta::{Item, Revision, WatchChange};

/// What a list may bring. More than a control store has.
const LIST_BYTES_MAX: usize = 256 << 20;

/// The pages of one list.
pub struct Pages {
    prefix: String,
    limit: usize,
    items: Vec<(String, Item)>,
    bytes: usize,
    revision: Option<Revision>,
}

impl Pages {
    pub fn new(prefix: &str, limit: u32) -> Pages {
        let (items, revision) = (Vec::new(), None);
        Pages { prefix: prefix.to_owned(), limit: limit as usize, items, bytes: 0, revision }
    }

    pub fn add(&mut self, revision: Revision, items: Vec<(String, Item)>) -> Result<(), Violation> {
        if *self.revision.get_or_insert(revision) != revision {
            return Err(Violation::Field("revision"));
        }
        for (key, item) in items {
            self.bytes += entry_bytes(&key, Some(&item.value));
            let follows = self.items.last().is_none_or(|(before, _)| *before < key);
            if !follows || !key.starts_with(&self.prefix) {
                return Err(Violation::Field("key"));
            }
            if item.revision > revision {
                return Err(Violation::Field("revision"));
            }
            if self.items.len() == self.limit || self.bytes > LIST_BYTES_MAX {
                return Err(Violation::Field("items"));
            }
            self.items.push((key, item));
        }
        Ok(())
    }

    pub fn whole(self) -> (Vec<(String, Item)>, Revision) {
        (self.items, self.revision.unwrap_or_default())
    }
}

/// Where a watch is: what outlives its connections.
pub struct Follower {
    prefix: String,
    /// That of the last change that came, or what the watch is from.
    last: Revision,
    /// Changes of that revision that have come.
    told: usize,
    /// How many of these the present connection has still to repeat.
    passing: usize,
}

/// Why nothing follows on what came before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Astray {
    /// What had come is not in the store's history: it is another one.
    Lost,
    Broken(Violation),
}

impl Follower {
    pub fn new(prefix: &str, from: Revision) -> Follower {
        Follower { prefix: prefix.to_owned(), last: from, told: 0, passing: 0 }
    }

    /// What a new connection is asked for. A revision may have come in part, so that it is asked for again.
    pub fn resume(&mut self) -> Request {
        self.passing = self.told;
        let from = Revision(self.last.0 - u64::from(self.told > 0));
        Request::Watch { prefix: self.prefix.clone(), from }
    }

    /// Those of the changes that had not come yet.
    pub fn take(&mut self, changes: Vec<WatchChange>) -> Result<Vec<WatchChange>, Astray> {
        let mut new = Vec::with_capacity(changes.len());
        for change in changes {
            if !change.key.starts_with(&self.prefix) {
                return Err(Astray::Broken(Violation::Field("key")));
            }
            let again = change.revision == self.last && self.told > 0;
            if change.revision <= self.last && !again {
                return Err(Astray::Broken(Violation::Field("revision")));
            }
            match (self.passing, again) {
                (0, true) => self.told += 1,
                (0, false) => (self.last, self.told) = (change.revision, 1),
                (_, true) => {
                    self.passing -= 1;
                    continue;
                }
                (_, false) => return Err(Astray::Lost),
            }
            new.push(change);
        }
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(key: &str, revision: u64) -> WatchChange {
        WatchChange { key: key.into(), value: None, revision: Revision(revision) }
    }

    fn from(follower: &mut Follower) -> u64 {
        let Request::Watch { from, .. } = follower.resume() else { panic!("another request") };
        from.0
    }

    #[test]
    fn a_connection_that_is_lost_within_a_revision_is_followed_by_one_that_tells_the_rest() {
        let all = [change("a", 5), change("b", 7), change("c", 7), change("d", 7), change("e", 9)];
        for cut in 0..=all.len() {
            let mut follower = Follower::new("", Revision(3));
            let mut told = follower.take(all[..cut].to_vec()).unwrap();
            let from = from(&mut follower);
            // In any pieces, too.
            for change in all.iter().filter(|change| change.revision.0 > from) {
                told.extend(follower.take(vec![change.clone()]).unwrap());
            }
            assert_eq!(told, all);
        }
    }

    #[test]
    fn what_had_come_and_is_not_repeated_is_a_store_with_another_history() {
        let mut follower = Follower::new("", Revision(3));
        follower.take(vec![change("a", 5), change("b", 5)]).unwrap();
        assert_eq!(from(&mut follower), 4);
        follower.take(vec![change("a", 5)]).unwrap();
        assert_eq!(follower.take(vec![change("c", 6)]), Err(Astray::Lost));
    }

    #[test]
    fn changes_that_were_not_asked_for_are_no_changes() {
        for wrong in [change("a/x", 3), change("b", 9), change("a/x", 0)] {
            let mut follower = Follower::new("a/", Revision(3));
            assert!(matches!(follower.take(vec![wrong]), Err(Astray::Broken(_))));
        }
    }

    #[test]
    fn pages_are_of_one_moment_in_order_and_within_what_was_asked_for() {
        let item =
            |key: &str, revision| (key.to_owned(), Item { value: vec![], revision: Revision(revision) });
        let page = |items: &[(String, Item)], revision| {
            let mut pages = Pages::new("a", 2);
            pages.add(Revision(9), vec![item("a1", 1)]).unwrap();
            pages.add(Revision(revision), items.to_vec()).map(|()| pages.whole().0.len())
        };
        assert_eq!(page(&[item("a2", 9)], 9), Ok(2));
        assert_eq!(page(&[], 9), Ok(1));
        assert!(page(&[item("a2", 9)], 8).is_err());
        assert!(page(&[item("a2", 10)], 9).is_err());
        assert!(page(&[item("a1", 1)], 9).is_err());
        assert!(page(&[item("b", 1)], 9).is_err());
        assert!(page(&[item("a2", 1), item("a3", 1)], 9).is_err());
    }
}
