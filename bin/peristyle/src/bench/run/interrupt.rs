//! SIGINT and SIGTERM end a run early: what was measured until then is reported. A second one ends the process.

use peristyle_rt::StopSignals;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

const PERIOD: Duration = Duration::from_millis(20);

/// Watches until it is dropped.
pub struct Interrupt {
    flag: Arc<AtomicBool>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Interrupt {
    pub fn watch() -> Interrupt {
        let (signals, flag) = (StopSignals::watch(), Arc::new(AtomicBool::new(false)));
        let (stop, stopped) = channel();
        let set = flag.clone();
        let thread = std::thread::spawn(move || {
            while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                if signals.asked() {
                    set.store(true, Ordering::Relaxed);
                }
            }
        });
        Interrupt { flag, stop: Some(stop), thread: Some(thread) }
    }

    /// Is set when a signal has come.
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.flag.clone()
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.stop.take();
        // It only watches: nothing of the run is lost with it.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
