//! SIGINT and SIGTERM end a run early: what was measured until then is reported. A second one ends the process.

use super::beside::Beside;
use peristyle_rt::StopSignals;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PERIOD: Duration = Duration::from_millis(20);

/// Watches until it is dropped.
pub struct Interrupt {
    flag: Arc<AtomicBool>,
    _watching: Beside,
}

impl Interrupt {
    pub fn watch() -> Interrupt {
        let (signals, flag) = (StopSignals::watch(), Arc::new(AtomicBool::new(false)));
        let set = flag.clone();
        let look = move |signals: &mut StopSignals| {
            if signals.asked() {
                set.store(true, Ordering::Relaxed);
            }
        };
        Interrupt { flag, _watching: Beside::each(PERIOD, signals, look, drop) }
    }

    /// Is set when a signal has come.
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.flag.clone()
    }
}
