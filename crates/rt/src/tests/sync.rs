use crate::sync::{Event, Notify, Queue, Semaphore};
use crate::{Duration, RuntimeConfig, block_on, end_of_turn, select, sleep, spawn, timeout, yield_now};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

fn small(future: impl Future<Output = ()> + 'static) {
    block_on(RuntimeConfig::small(), future);
}

#[test]
#[cfg_attr(miri, ignore)]
fn a_notification_between_the_call_and_the_first_poll_is_not_lost() {
    small(async {
        let notify = Notify::default();
        let wait = notify.notified();
        notify.notify_all();
        wait.await;
    });
}

#[test]
#[cfg_attr(miri, ignore)]
fn waits_that_are_dropped_leave_nothing_behind() {
    small(async {
        let event = Event::default();
        let notify = Notify::default();
        for _ in 0..1000 {
            select(yield_now(), event.wait()).await;
            select(notify.notified(), yield_now()).await;
        }
        assert!(!notify.has_waiters());
        event.set();
        event.wait().await;
        assert!(event.is_set());
    });
}

#[test]
#[cfg_attr(miri, ignore)]
fn a_full_queue_hands_the_item_back_and_a_closed_one_drains() {
    small(async {
        let queue = Rc::new(Queue::new(2));
        assert_eq!(queue.try_push(1), Ok(()));
        assert_eq!(queue.try_push(2), Ok(()));
        assert_eq!(queue.try_push(3), Err(3));
        let pusher = queue.clone();
        spawn(async move {
            assert_eq!(pusher.push(3).await, Ok(()));
            pusher.close();
            assert_eq!(pusher.push(4).await, Err(4));
        });
        let mut got = Vec::new();
        while let Some(item) = queue.pop().await {
            got.push(item);
        }
        assert_eq!(got, [1, 2, 3]);
    });
}

#[test]
#[cfg_attr(miri, ignore)]
fn permits_are_given_in_order_of_arrival_and_small_requests_do_not_overtake() {
    small(async {
        let semaphore = Semaphore::new(3);
        let first = semaphore.acquire(2).await;
        let order = Rc::new(RefCell::new(Vec::new()));
        for (name, count) in [("large", 3), ("small", 1), ("also small", 1)] {
            let (semaphore, order) = (semaphore.clone(), order.clone());
            spawn(async move {
                let permit = semaphore.acquire(count).await;
                order.borrow_mut().push(name);
                yield_now().await;
                drop(permit);
            });
        }
        end_of_turn().await;
        assert!(order.borrow().is_empty(), "one permit is free, and the first in line wants three");
        assert!(semaphore.try_acquire(1).is_none());
        drop(first);
        end_of_turn().await;
        assert_eq!(*order.borrow(), ["large", "small", "also small"]);
        assert_eq!(semaphore.available(), 3);
    });
}

#[test]
#[cfg_attr(miri, ignore)]
fn who_gives_up_waiting_for_permits_lets_the_next_one_pass() {
    small(async {
        let semaphore = Semaphore::new(2);
        let one = semaphore.acquire(1).await;
        let passed = Rc::new(Cell::new(false));
        let large = spawn({
            let semaphore = semaphore.clone();
            async move {
                semaphore.acquire(2).await;
            }
        });
        spawn({
            let (semaphore, passed) = (semaphore.clone(), passed.clone());
            async move {
                semaphore.acquire(1).await;
                passed.set(true);
            }
        });
        end_of_turn().await;
        assert!(!passed.get());
        large.abort();
        end_of_turn().await;
        assert!(passed.get());
        drop(one);
        assert_eq!(semaphore.available(), 2);
    });
}

#[test]
#[cfg_attr(miri, ignore)]
fn a_timeout_takes_whichever_comes_first() {
    small(async {
        assert_eq!(timeout(Duration::from_secs(3600), async { 1 }).await, Some(1));
        assert_eq!(timeout(Duration::from_micros(1), sleep(Duration::from_secs(3600))).await, None);
    });
}
