//! A thread beside a run that looks at something again and again.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Goes on until it is dropped.
pub struct Beside {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Beside {
    /// `look` once each period, and `end` when it is over.
    pub fn each<T: Send + 'static>(
        period: Duration,
        mut state: T,
        look: impl Fn(&mut T) + Send + 'static,
        end: impl FnOnce(T) + Send + 'static,
    ) -> Beside {
        let (stop, stopped) = channel();
        let thread = std::thread::spawn(move || {
            while stopped.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
                look(&mut state);
            }
            end(state);
        });
        Beside { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.stop.take();
        // It only looks: nothing of the run is lost with it.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
