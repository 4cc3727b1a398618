use crate::task::{Class, Tasks};
use crate::{RuntimeConfig, TaskHandle, block_on, end_of_turn, spawn, yield_now};
use peristyle_base::Instant;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Counts drops.
struct Drops(Rc<Cell<usize>>);
impl Drop for Drops {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

#[test]
fn futures_of_all_sizes_run_once_and_are_dropped_once() {
    let tasks = Tasks::new();
    let (drops, ran) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    for _ in 0..3 {
        let (d, r) = (Drops(drops.clone()), ran.clone());
        tasks.spawn(0, Class::Foreground, async move {
            let _d = d;
            r.set(r.get() + 1);
        });
        let (d, r, large) = (Drops(drops.clone()), ran.clone(), [1u8; 5000]);
        tasks.spawn(0, Class::Foreground, async move {
            let _d = d;
            r.set(r.get() + large[4999] as usize);
        });
        assert!(!tasks.run(0, 100, || Instant::ZERO));
    }
    assert_eq!((ran.get(), drops.get(), tasks.alive()), (6, 6, 0));
}

#[test]
fn tasks_that_never_end_are_dropped_with_the_reactor() {
    let drops = Rc::new(Cell::new(0));
    let tasks = Tasks::new();
    for _ in 0..5 {
        let d = Drops(drops.clone());
        tasks.spawn(0, Class::Foreground, async move {
            let _d = d;
            std::future::pending::<()>().await;
        });
    }
    tasks.run(0, 3, || Instant::ZERO);
    assert_eq!((tasks.alive(), drops.get()), (5, 0));
    drop(tasks);
    assert_eq!(drops.get(), 5);
}

#[test]
fn a_waker_of_a_finished_task_wakes_nobody() {
    let tasks = Tasks::new();
    tasks.spawn(0, Class::Foreground, async {});
    tasks.run(0, 10, || Instant::ZERO);
    let ran = Rc::new(Cell::new(0));
    let count = ran.clone();
    tasks.spawn(
        0,
        Class::Foreground,
        std::future::poll_fn(move |_| {
            count.set(count.get() + 1);
            std::task::Poll::Pending
        }),
    );
    tasks.run(0, 10, || Instant::ZERO);
    // The second task has the first one's entry, in another generation.
    tasks.wake(0, 0);
    tasks.run(0, 10, || Instant::ZERO);
    assert_eq!(ran.get(), 1);
    tasks.wake(0, 1);
    tasks.run(0, 10, || Instant::ZERO);
    assert_eq!(ran.get(), 2);
}

#[test]
fn the_budget_ends_a_turn_with_tasks_left() {
    let tasks = Tasks::new();
    for _ in 0..5 {
        tasks.spawn(0, Class::Foreground, async {});
    }
    assert!(tasks.run(0, 3, || Instant::ZERO));
    assert_eq!(tasks.alive(), 2);
    assert!(!tasks.run(0, 3, || Instant::ZERO));
}

#[test]
fn background_tasks_go_last_and_for_a_moment_and_one_has_its_turn_whatever_is_ready() {
    let (tasks, log) = (Rc::new(Tasks::new()), Rc::new(RefCell::new(Vec::new())));
    let spawn = |class, name: &'static str, then: Option<&'static str>| {
        let (log, inner) = (log.clone(), tasks.clone());
        tasks.spawn(0, class, async move {
            log.borrow_mut().push(name);
            if let Some(then) = then {
                let more = log.clone();
                inner.spawn(0, Class::Foreground, async move { more.borrow_mut().push(then) });
            }
        });
    };
    let clock = Cell::new(0);
    // Each look at it finds it a millisecond later.
    let slow = || Instant(clock.replace(clock.get() + 1_000_000));
    for name in ["b1", "b2", "b3", "b4", "b5"] {
        spawn(Class::Background, name, (name == "b3").then_some("f4"));
    }
    ["f1", "f2", "f3"].into_iter().for_each(|name| spawn(Class::Foreground, name, None));
    assert!(tasks.run(0, 2, slow));
    assert_eq!(log.take(), ["f1", "f2", "b1"], "nothing is left of the budget, and one goes on all the same");
    assert!(tasks.run(0, 100, slow));
    assert_eq!(log.take(), ["f3", "b2"], "the moment is over");
    assert!(!tasks.run(0, 100, || Instant::ZERO));
    assert_eq!(log.take(), ["b3", "f4", "b4", "b5"], "what one has woken goes before the next");
}

#[test]
#[cfg_attr(miri, ignore)]
fn tasks_run_in_the_order_in_which_they_were_woken_and_the_end_of_the_turn_comes_last() {
    block_on(RuntimeConfig::small(), async {
        let log = Rc::new(RefCell::new(Vec::new()));
        for i in 0..3 {
            let log = log.clone();
            spawn(async move {
                log.borrow_mut().push(i);
                yield_now().await;
                log.borrow_mut().push(10 + i);
            });
        }
        end_of_turn().await;
        assert_eq!(*log.borrow(), [0, 1, 2, 10, 11, 12]);
    });
}

#[test]
#[cfg_attr(miri, ignore)]
fn a_task_can_abort_another_and_itself() {
    block_on(RuntimeConfig::small(), async {
        let drops = Rc::new(Cell::new(0));
        let d = Drops(drops.clone());
        let idle = spawn(async move {
            let _d = d;
            std::future::pending::<()>().await;
        });
        let d = Drops(drops.clone());
        let me: Rc<Cell<Option<TaskHandle>>> = Rc::default();
        let mine = me.clone();
        let own = spawn(async move {
            let _d = d;
            mine.get().expect("set before the first poll").abort();
            std::future::pending::<()>().await;
        });
        me.set(Some(own));
        end_of_turn().await;
        assert!(own.is_finished() && !idle.is_finished());
        idle.abort();
        assert!(idle.is_finished());
        idle.abort();
        assert_eq!(drops.get(), 2);
    });
}
