//! Who may start now: commands in flight are bounded per reactor, by class. Hosts come first; work that can wait
//! (rebuild, rebalance, scrub) has its own, smaller share, so that neither starves the other.

use peristyle_rt::sync::{Permit, Semaphore};
use std::rc::Rc;

/// Commands of hosts that one reactor executes at once.
pub const FOREGROUND_MAX: usize = 1024;
/// Pieces of background work that one reactor executes at once.
pub const BACKGROUND_MAX: usize = 32;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    Foreground,
    Background,
}

/// One reactor's admission.
pub struct Qos {
    foreground: Rc<Semaphore>,
    background: Rc<Semaphore>,
}

impl Default for Qos {
    fn default() -> Qos {
        Qos { foreground: Semaphore::new(FOREGROUND_MAX), background: Semaphore::new(BACKGROUND_MAX) }
    }
}

impl Qos {
    /// A place, if nobody has to wait for one.
    pub fn try_admit(&self, class: Class) -> Option<Permit> {
        self.of(class).try_acquire(1)
    }

    /// Waits for a place, in order of arrival within the class. The place is given back with the permit.
    pub async fn admit(&self, class: Class) -> Permit {
        self.of(class).acquire(1).await
    }

    fn of(&self, class: Class) -> &Rc<Semaphore> {
        match class {
            Class::Foreground => &self.foreground,
            Class::Background => &self.background,
        }
    }
}
