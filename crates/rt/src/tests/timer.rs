use crate::timer::Timers;
use crate::{Duration, Instant, RuntimeConfig, block_on, now, sleep, sleep_until, spawn};
use std::cell::RefCell;
use std::rc::Rc;
use std::task::Waker;

#[test]
fn timers_fire_in_order_of_their_deadlines_and_equal_ones_in_order_of_arrival() {
    let log = Rc::new(RefCell::new(Vec::new()));
    let kept = log.clone();
    if cfg!(miri) {
        return;
    }
    block_on(RuntimeConfig::small(), async move {
        let base = now() + Duration::from_millis(2);
        for (name, at) in [("c", 300), ("a", 100), ("d", 300), ("b", 200)] {
            let log = log.clone();
            spawn(async move {
                sleep_until(base + Duration::from_micros(at)).await;
                log.borrow_mut().push(name);
            });
        }
        sleep_until(base + Duration::from_micros(400)).await;
    });
    assert_eq!(*kept.borrow(), ["a", "b", "c", "d"]);
}

#[test]
fn a_dropped_sleep_is_not_waited_for() {
    if cfg!(miri) {
        return;
    }
    block_on(RuntimeConfig::small(), async {
        crate::select(sleep(Duration::from_micros(1)), sleep(Duration::from_secs(3600))).await;
        crate::reactor::Reactor::current(|r| assert_eq!(r.timers.next(), None));
    });
}

#[test]
fn deadlines_that_are_met_do_not_fill_the_heap() {
    let timers = Timers::new();
    for i in 0..if cfg!(miri) { 5_000 } else { 100_000u64 } {
        let (slot, order) = timers.insert(Instant(1_000_000 + i), Waker::noop().clone());
        timers.cancel(slot, order);
    }
    assert!(timers.entries() < 5000);
    assert_eq!(timers.next(), None);
    assert!(!timers.fire(Instant::FAR));
}
