//! The pace of work beside the I/O path: one bucket of bytes per second, in which more important work goes first.
//!
//! Repair and collection take turns while both want bytes, so that neither starves the other. Collection waits for its turn
//! as long as there is room enough; then it goes on without, or the pool would be full though there is something to collect.

use crate::columns::Columns;
use crate::frame::Layout;
use crate::shard::Shard;
use peristyle_base::{BLOCK_BYTES, Instant};
use peristyle_cluster::ShardStore;
use peristyle_rt::Duration;
use peristyle_rt::sync::Notify;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

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

/// Bytes that collection takes in one turn: about as many as a rebuild does.
const TURN_BYTES: u64 = 512 << 10;
/// Time between two looks of a side whose turn it is not, and for which the other's turn is waited for.
const TURN_LOOK: Duration = Duration::from_micros(500);
const TURN_MAX: Duration = Duration::from_millis(20);
/// Time between two looks of collection at how much room there is, while it waits.
const ROOM_LOOK: Duration = Duration::from_millis(20);

/// Who takes turns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    /// All kinds of [`Work`], which have an order of their own.
    Repair = 0,
    Collection = 1,
}

impl Side {
    fn other(self) -> Side {
        match self {
            Side::Repair => Side::Collection,
            Side::Collection => Side::Repair,
        }
    }
}

/// Bytes per second for work beside the I/O path, reads and writes together. Those who have a clone share them, on
/// whatever reactor: a shard that has much to do gets what the others leave.
#[derive(Clone, Debug)]
pub struct Pace(Arc<PaceState>);

#[derive(Debug)]
struct PaceState {
    bytes_s: u64,
    /// When the bytes that were given out will have been paid for, in nanoseconds.
    paid_at: AtomicU64,
    /// Which side had the last turn, and how many of each wait for one.
    last: AtomicU8,
    waiting: [AtomicU32; 2],
}

/// Somebody of a side waits, as long as it lives.
struct Waits<'a>(&'a AtomicU32);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Pace {
    pub fn new(bytes_s: u64) -> Pace {
        Pace(Arc::new(PaceState {
            bytes_s: bytes_s.max(1),
            paid_at: AtomicU64::new(0),
            last: AtomicU8::new(Side::Collection as u8),
            waiting: Default::default(),
        }))
    }

    fn wait(&self, side: Side) -> Waits<'_> {
        let waiting = &self.0.waiting[side as usize];
        waiting.fetch_add(1, Relaxed);
        Waits(waiting)
    }

    /// Takes so many bytes, or tells when it is worth asking again.
    fn try_take(&self, side: Side, bytes: u64, now: Instant) -> Result<(), Instant> {
        let Pace(state) = self;
        let due = Instant(state.paid_at.load(Relaxed));
        let had_last = state.last.load(Relaxed) == side as u8;
        let others_turn = had_last && state.waiting[side.other() as usize].load(Relaxed) > 0;
        // Who does not come for its turn, because its reactor hangs, holds nobody up for long.
        if others_turn && now < due + TURN_MAX {
            return Err(due.max(now) + TURN_LOOK);
        }
        let cost = (u128::from(bytes) * 1_000_000_000 / u128::from(state.bytes_s)) as u64;
        let least = now.0.saturating_sub(BURST.as_nanos() as u64);
        let next = |paid_at: u64| (paid_at <= now.0).then(|| paid_at.max(least) + cost);
        state.paid_at.fetch_update(Relaxed, Relaxed, next).map_err(Instant)?;
        state.last.store(side as u8, Relaxed);
        Ok(())
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
            match quota.pace.try_take(Side::Repair, bytes, peristyle_rt::now()) {
                Ok(()) => return,
                Err(later) => {
                    let _waits = quota.pace.wait(Side::Repair);
                    peristyle_rt::sleep_until(later).await;
                }
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

impl Quota {
    /// Waits until collection may read and write so many bytes, as long as there is room enough. Without, it has what is left
    /// and does not wait. True: it had to wait.
    async fn take_for_collection(&self, bytes: u64, has_room: impl Fn(bool) -> bool) -> bool {
        let (mut left, mut waited) = (bytes, false);
        while left > 0 {
            let (turn, now) = (left.min(TURN_BYTES), peristyle_rt::now());
            let taken = self.pace.try_take(Side::Collection, turn, now);
            if !has_room(waited || taken.is_err()) {
                return false;
            }
            match taken {
                Ok(()) => left -= turn,
                Err(later) => {
                    waited = true;
                    let _waits = self.pace.wait(Side::Collection);
                    peristyle_rt::sleep_until(later.min(now + ROOM_LOOK)).await;
                }
            }
        }
        waited
    }
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// Collection pays for reading so many blocks and for writing them as one frame.
    pub(crate) async fn pay_for_moves(&self, blocks: usize) {
        let bytes = (blocks + Layout::space(blocks, self.scheme())) * BLOCK_BYTES;
        let has_room = |waits: bool| {
            self.assess();
            let state = &mut *self.state.borrow_mut();
            let has_room = state.stopped.is_none() && !state.short && state.collect.is_gentle();
            state.collect.held_back = has_room && waits;
            has_room
        };
        let waited = self.quota.take_for_collection(bytes as u64, has_room).await;
        self.state.borrow_mut().collect.held_back = waited;
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

    /// Bytes that each side had in a second, both asking all the time; `has_room` for collection.
    fn shared(has_room: bool) -> [u64; 2] {
        let had: Rc<[Cell<u64>; 2]> = Rc::default();
        let seen = had.clone();
        sim::run(4, move |_| async move {
            let quota = Rc::new(Quota::new(Pace::new(64 << 20)));
            for _ in 0..4 {
                let (quota, had) = (quota.clone(), had.clone());
                peristyle_rt::spawn(async move {
                    let work = quota.begin(Work::Rebuild);
                    loop {
                        work.take(640 << 10).await;
                        had[0].set(had[0].get() + (640 << 10));
                        peristyle_rt::sleep(Duration::from_millis(1)).await;
                    }
                });
            }
            let had = had.clone();
            peristyle_rt::spawn(async move {
                loop {
                    quota.take_for_collection(2400 << 10, |_| has_room).await;
                    had[1].set(had[1].get() + (2400 << 10));
                    peristyle_rt::sleep(Duration::from_millis(1)).await;
                }
            });
            peristyle_rt::sleep(Duration::from_secs(1)).await;
        });
        [seen[0].get(), seen[1].get()]
    }

    #[test]
    fn repair_and_collection_have_about_half_each_while_both_ask() {
        let [rebuilt, collected] = shared(true);
        let all = (rebuilt + collected) as f64 / f64::from(64 << 20);
        assert!((0.9..1.05).contains(&all), "{all}");
        let share = rebuilt as f64 / (rebuilt + collected) as f64;
        assert!((0.4..0.65).contains(&share), "{share}");
    }

    #[test]
    fn collection_in_need_waits_for_nobody_and_leaves_repair_its_half() {
        let [rebuilt, collected] = shared(false);
        assert!(collected > 900 * (2400 << 10), "{collected}");
        assert!(rebuilt > (64 << 20) * 2 / 5, "{rebuilt}");
    }

    #[test]
    fn collection_alone_has_the_whole_pace() {
        sim::run(5, |_| async {
            let quota = Quota::new(Pace::new(64 << 20));
            let started = peristyle_rt::now();
            assert!(!quota.take_for_collection(TURN_BYTES, |_| true).await);
            for _ in 0..10 {
                quota.take_for_collection(3200 << 10, |_| true).await;
            }
            let took = peristyle_rt::now().since(started);
            assert!(took >= Duration::from_millis(450) && took <= Duration::from_millis(520), "{took:?}");
        });
    }
}
