//! What a reactor counts for the SMART and error logs of the controllers, which live on the home reactor. It goes
//! there in a message per period, not per command.

use super::home::HomeRequest;
use crate::reactor::Node;
use peristyle_nvme::controller::ErrorReport;
use peristyle_nvme::io_command::IoCommand;
use peristyle_nvme::registry::ControllerRef;
use peristyle_nvme::subsystem::IoCounters;
use peristyle_nvme::wire::Status;
use peristyle_rt::{Duration, Instant};
use std::rc::Rc;

/// Figures reach the home reactor, and so the hosts' logs, so late at most.
pub const COUNT_PERIOD: Duration = Duration::from_secs(1);
/// Errors told per period; of more only the first are.
const ERRORS_MAX: usize = 8;

/// The period that is running.
#[derive(Default)]
pub(super) struct Counting {
    io: IoCounters,
    errors: [Option<(ControllerRef, ErrorReport)>; ERRORS_MAX],
    errors_count: usize,
    in_flight: usize,
    busy_since: Instant,
    /// Of time busy, what is not yet a millisecond.
    busy_ns: u64,
}

impl Counting {
    pub fn enter(&mut self, now: Instant) {
        if self.in_flight == 0 {
            self.busy_since = now;
        }
        self.in_flight += 1;
    }

    /// A command has been executed. NVM 4.1.4.2: which commands count as reads and writes.
    pub fn leave(&mut self, now: Instant, io: &IoCommand, bytes: u64, result: Result<(), Status>) {
        let counters = &mut self.io;
        match io {
            IoCommand::Read { .. } | IoCommand::Compare { .. } => {
                (counters.reads, counters.bytes_read) = (counters.reads + 1, counters.bytes_read + bytes);
            }
            IoCommand::Verify { .. } => counters.bytes_read += bytes,
            IoCommand::Write { .. } => {
                (counters.writes, counters.bytes_written) =
                    (counters.writes + 1, counters.bytes_written + bytes);
            }
            _ => {}
        }
        if result.is_err_and(|s| s.is(Status::UNRECOVERED_READ_ERROR)) {
            counters.media_errors += 1;
        }
        self.in_flight -= 1;
        self.count_busy(now);
    }

    /// A fused Compare and Write of so many bytes.
    pub fn leave_fused(&mut self, now: Instant, bytes: u64, written: bool) {
        let counters = &mut self.io;
        (counters.reads, counters.bytes_read) = (counters.reads + 1, counters.bytes_read + bytes);
        if written {
            (counters.writes, counters.bytes_written) = (counters.writes + 1, counters.bytes_written + bytes);
        }
        self.in_flight -= 1;
        self.count_busy(now);
    }

    fn count_busy(&mut self, now: Instant) {
        self.busy_ns += now.nanos_since(self.busy_since);
        self.busy_since = now;
        self.io.busy_ms += self.busy_ns / 1_000_000;
        self.busy_ns %= 1_000_000;
    }

    pub fn error(&mut self, controller: ControllerRef, report: ErrorReport) {
        if let Some(place) = self.errors.get_mut(self.errors_count) {
            *place = Some((controller, report));
            self.errors_count += 1;
        }
    }
}

impl Node {
    /// Tells home what was counted, until the target stops.
    pub(super) async fn tell_counted(self: Rc<Self>) {
        while !self.target.stopping.is_set() {
            peristyle_rt::sleep(COUNT_PERIOD).await;
            let (io, errors) = {
                let mut counting = self.target.counting.borrow_mut();
                counting.errors_count = 0;
                (std::mem::take(&mut counting.io), std::mem::take(&mut counting.errors))
            };
            if io != IoCounters::default() {
                self.ask_home(HomeRequest::Counted(io)).await;
            }
            for (controller, report) in errors.into_iter().flatten() {
                self.ask_home(HomeRequest::Failed(controller, report)).await;
            }
        }
    }
}
