//! Reads of columns that are under way, for the watchdog: which of them take too long. Nothing is allocated and no
//! timer is set for a read; the watchdog looks at all of them every few milliseconds.

use peristyle_base::{DeviceId, Duration, Instant, RecentP99};
use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Poll, Waker};

/// Reads in flight for which there is memory from the start.
const READS_READY: usize = 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Free,
    Waiting,
    Late,
}

struct Read {
    device: DeviceId,
    started: Instant,
    progress: Progress,
    waker: Option<Waker>,
}

struct State {
    reads: Vec<Read>,
    free: Vec<u32>,
    /// Recent read latency of each device. A handful: searched in order.
    usual: Vec<(DeviceId, RecentP99)>,
}

pub(crate) struct Reads(RefCell<State>);

impl Default for Reads {
    fn default() -> Reads {
        let (reads, free) = (Vec::with_capacity(READS_READY), Vec::with_capacity(READS_READY));
        Reads(RefCell::new(State { reads, free, usual: Vec::new() }))
    }
}

impl Reads {
    pub fn watch(&self, device: DeviceId, started: Instant) -> Watched<'_> {
        let read = Read { device, started, progress: Progress::Waiting, waker: None };
        let state = &mut *self.0.borrow_mut();
        let place = match state.free.pop() {
            Some(place) => {
                state.reads[place as usize] = read;
                place
            }
            None => {
                state.reads.push(read);
                state.reads.len() as u32 - 1
            }
        };
        Watched { reads: self, place }
    }

    pub fn any(&self) -> bool {
        let state = self.0.borrow();
        state.free.len() < state.reads.len()
    }

    /// A device has answered as it usually does.
    pub fn answered(&self, device: DeviceId, now: Instant, took_ns: u64) {
        let usual = &mut self.0.borrow_mut().usual;
        match usual.iter_mut().find(|u| u.0 == device) {
            Some((_, recent)) => recent.record(now, took_ns),
            None => usual.push((device, RecentP99::default())),
        }
    }

    /// Recent p99 of a device's reads in nanoseconds; 0 when unknown.
    pub fn p99_ns(&self, device: DeviceId) -> u64 {
        self.0.borrow().usual.iter().find(|u| u.0 == device).map_or(0, |u| u.1.get())
    }

    /// Wakes whoever waits for longer than `limit` and has not been told; `late` hears of their devices. No read is
    /// late before `least`.
    pub fn flag_late(
        &self,
        now: Instant,
        least: Duration,
        limit: impl Fn(u64) -> Duration,
        late: impl Fn(DeviceId),
    ) {
        let state = &mut *self.0.borrow_mut();
        let waiting = |r: &&mut Read| r.progress == Progress::Waiting && now.since(r.started) >= least;
        for read in state.reads.iter_mut().filter(waiting) {
            let usual = state.usual.iter().find(|u| u.0 == read.device).map_or(0, |u| u.1.get());
            if now.since(read.started) >= limit(usual) {
                read.progress = Progress::Late;
                if let Some(waker) = read.waker.take() {
                    waker.wake();
                }
                late(read.device);
            }
        }
    }
}

/// One read's place. Dropped, it is free again.
pub(crate) struct Watched<'a> {
    reads: &'a Reads,
    place: u32,
}

impl Watched<'_> {
    /// The answer, or `None` as soon as the watchdog has found it late.
    pub async fn answer<R: Future>(&self, mut read: Pin<&mut R>) -> Option<R::Output> {
        poll_fn(|cx| {
            if let Poll::Ready(answer) = read.as_mut().poll(cx) {
                return Poll::Ready(Some(answer));
            }
            let mine = &mut self.reads.0.borrow_mut().reads[self.place as usize];
            if mine.progress == Progress::Late {
                return Poll::Ready(None);
            }
            match &mut mine.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        let state = &mut *self.reads.0.borrow_mut();
        let mine = &mut state.reads[self.place as usize];
        (mine.progress, mine.waker) = (Progress::Free, None);
        state.free.push(self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peristyle_base::Uuid;
    use std::cell::Cell;
    use std::pin::pin;
    use std::task::Context;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_read_is_late_once_and_only_beyond_what_is_usual_for_its_device() {
        let reads = Reads::default();
        let (quick, slow) = (Uuid::from_random([1; 16]), Uuid::from_random([2; 16]));
        for i in 0..=301 {
            // The last two begin windows, so that the first one counts.
            reads.answered(slow, Instant(2_000_000_000 + i * 10 * MS), 8 * MS);
        }
        assert!(reads.p99_ns(slow) >= 8 * MS && reads.p99_ns(quick) == 0);
        let (a, b) = (reads.watch(quick, Instant(0)), reads.watch(slow, Instant(0)));
        let mut context = Context::from_waker(Waker::noop());
        let late = Cell::new(0);
        let look = |ms: u64| {
            let limit = |p99: u64| Duration::from_nanos(p99 * 8).max(Duration::from_millis(10));
            let count = |_| late.set(late.get() + 1);
            reads.flag_late(Instant(ms * MS), Duration::from_millis(10), limit, count);
            late.get()
        };
        let (mut never_a, mut never_b) = (pin!(std::future::pending::<()>()), pin!(std::future::pending()));
        assert!(pin!(a.answer(never_a.as_mut())).poll(&mut context).is_pending());
        assert_eq!((look(9), look(10), look(11), look(63)), (0, 1, 1, 1));
        assert_eq!(pin!(a.answer(never_a.as_mut())).poll(&mut context), Poll::Ready(None));
        let answer: Poll<Option<()>> = pin!(b.answer(never_b.as_mut())).poll(&mut context);
        assert!(answer.is_pending());
        assert_eq!(look(80), 2);
        assert!(reads.any());
        drop((a, b));
        assert!(!reads.any());
        assert_eq!(look(90), 2, "nobody is told of what is over");
    }
}
