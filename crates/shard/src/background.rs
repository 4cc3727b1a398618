//! The pace of work beside the I/O path: one bucket of bytes per second, in which more important work goes first.

use peristyle_base::Instant;
use peristyle_rt::Duration;
use peristyle_rt::sync::Notify;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What bytes are read and written for, the most important first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Work {
    /// Redundancy comes back: columns that are lost, damaged, or on a device that is to leave.
    Rebuild = 0,
    /// Sound columns move to emptier devices.
    Rebalance = 1,
    /// Columns are read to see whether they are sound.
    Scrub = 2,
}

const KINDS: usize = 3;
/// What was not used may be caught up on, so much of it.
const BURST: Duration = Duration::from_millis(20);

/// Bytes per second for work beside the I/O path, reads and writes together. Those who have a clone share them, on
/// whatever reactor: a shard that has much to do gets what the others leave.
#[derive(Clone, Debug)]
pub struct Pace(Arc<PaceState>);

#[derive(Debug)]
struct PaceState {
    bytes_s: u64,
    /// When the bytes that were given out will have been paid for, in nanoseconds.
    paid_at: AtomicU64,
}

impl Pace {
    pub fn new(bytes_s: u64) -> Pace {
        Pace(Arc::new(PaceState { bytes_s: bytes_s.max(1), paid_at: AtomicU64::new(0) }))
    }

    /// Takes so many bytes, or tells when it is worth asking again.
    fn try_take(&self, bytes: u64, now: Instant) -> Result<(), Instant> {
        let Pace(state) = self;
        let cost = (u128::from(bytes) * 1_000_000_000 / u128::from(state.bytes_s)) as u64;
        let least = now.0.saturating_sub(BURST.as_nanos() as u64);
        let next = |paid_at: u64| (paid_at <= now.0).then(|| paid_at.max(least) + cost);
        state.paid_at.fetch_update(Relaxed, Relaxed, next).map(|_| ()).map_err(Instant)
    }
}

/// A shard's work beside the I/O path, and its pace.
pub struct Quota {
    pace: Pace,
    at_work: [Cell<u32>; KINDS],
    changed: Notify,
}

/// Somebody at work, as long as it lives: less important work waits.
pub struct AtWork<'a> {
    quota: &'a Quota,
    work: Work,
}

impl Quota {
    pub fn new(pace: Pace) -> Quota {
        Quota { pace, at_work: Default::default(), changed: Notify::default() }
    }

    pub fn begin(&self, work: Work) -> AtWork<'_> {
        let count = &self.at_work[work as usize];
        count.set(count.get() + 1);
        AtWork { quota: self, work }
    }
}

impl AtWork<'_> {
    /// Waits until so many bytes may be read or written. Whoever gives up waiting has lost its turn and nothing else.
    pub async fn take(&self, bytes: u64) {
        let quota = self.quota;
        loop {
            if !self.is_first() {
                quota.changed.notified().await;
                continue;
            }
            match quota.pace.try_take(bytes, peristyle_rt::now()) {
                Ok(()) => return,
                Err(later) => peristyle_rt::sleep_until(later).await,
            }
        }
    }

    fn is_first(&self) -> bool {
        self.quota.at_work[..self.work as usize].iter().all(|count| count.get() == 0)
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        let count = &self.quota.at_work[self.work as usize];
        count.set(count.get() - 1);
        self.quota.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peristyle_rt::sim;
    use std::cell::RefCell;
    use std::rc::Rc;

    #[test]
    fn bytes_are_given_out_at_the_quotas_pace() {
        sim::run(1, |_| async {
            let quota = Quota::new(Pace::new(1_000_000));
            let (started, work) = (peristyle_rt::now(), quota.begin(Work::Rebuild));
            for _ in 0..50 {
                work.take(10_000).await;
            }
            let took = peristyle_rt::now().since(started);
            assert!(took >= Duration::from_millis(450) && took <= Duration::from_millis(510), "{took:?}");
        });
    }

    #[test]
    fn more_important_work_goes_first() {
        sim::run(2, |_| async {
            let (quota, order) =
                (Rc::new(Quota::new(Pace::new(1_000_000))), Rc::new(RefCell::new(Vec::new())));
            for work in [Work::Scrub, Work::Rebalance, Work::Rebuild] {
                let (quota, order) = (quota.clone(), order.clone());
                peristyle_rt::spawn(async move {
                    let at_work = quota.begin(work);
                    for _ in 0..3 {
                        at_work.take(100_000).await;
                        order.borrow_mut().push(work);
                    }
                });
            }
            peristyle_rt::sleep(Duration::from_secs(2)).await;
            // Whoever came while nobody was at work had a turn.
            let order = order.borrow();
            assert_eq!(order.len(), 9);
            assert!(order[1..].is_sorted(), "{order:?}");
        });
    }

    #[test]
    fn who_shares_a_pace_has_what_the_others_leave() {
        sim::run(3, |_| async {
            let pace = Pace::new(1_000_000);
            let (busy, idle) = (Quota::new(pace.clone()), Quota::new(pace));
            let _idle = idle.begin(Work::Rebuild);
            let (started, work) = (peristyle_rt::now(), busy.begin(Work::Scrub));
            for _ in 0..50 {
                work.take(10_000).await;
            }
            let took = peristyle_rt::now().since(started);
            assert!(took >= Duration::from_millis(450) && took <= Duration::from_millis(510), "{took:?}");
        });
    }
}
