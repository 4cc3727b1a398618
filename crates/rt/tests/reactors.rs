//! Several reactors, threads beside them, and signals.

use peristyle_rt::{
    Duration, PollMode, ReactorId, RuntimeConfig, RuntimeError, block_on, blocking, memory_budget, mesh,
    request_shutdown, run, shutdown_requested, sleep, spawn,
};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn two(poll: PollMode) -> RuntimeConfig {
    RuntimeConfig { reactors: 2, poll, ..RuntimeConfig::small() }
}

fn ping_pong(poll: PollMode, rounds: u32) {
    run(two(poll), mesh::<u32>(2, 4), move |seed| async move {
        let port = seed.attach();
        let other = ReactorId(1 - port.me().0);
        for round in 0..rounds {
            if port.me().0 == 0 {
                port.send(other, round).await;
            }
            assert_eq!(port.recv().await, (other, round));
            if port.me().0 == 1 {
                port.send(other, round).await;
            }
        }
    })
    .expect("no wake-up was lost");
}

#[test]
fn messages_between_reactors_that_sleep_at_once_are_never_lost() {
    ping_pong(PollMode::Sleep, 20_000);
}

#[test]
fn messages_between_reactors_that_spin_and_then_sleep_are_never_lost() {
    ping_pong(PollMode::Adaptive, 20_000);
}

#[test]
fn a_full_ring_makes_the_sender_wait_and_keeps_the_order() {
    run(two(PollMode::Adaptive), mesh::<u32>(2, 4), |seed| async move {
        let port = seed.attach();
        for i in 0..10_000 {
            if port.me().0 == 0 {
                port.send(ReactorId(1), i).await;
            } else {
                assert_eq!(port.recv().await.1, i);
            }
        }
    })
    .expect("both ended");
}

#[test]
fn blocking_work_returns_its_result_to_a_reactor_that_sleeps() {
    block_on(RuntimeConfig { poll: PollMode::Sleep, ..RuntimeConfig::small() }, async {
        for i in 0..2000u64 {
            assert_eq!(blocking(move || i * 2).await, i * 2);
        }
    });
}

#[test]
fn blocking_work_whose_future_is_dropped_still_runs_and_its_result_is_dropped() {
    let ran = Arc::new(AtomicUsize::new(0));
    let count = ran.clone();
    block_on(RuntimeConfig::small(), async move {
        for _ in 0..10 {
            let count = count.clone();
            let work = blocking(move || count.fetch_add(1, Ordering::SeqCst));
            peristyle_rt::select(work, peristyle_rt::yield_now()).await;
        }
        // Two threads take the jobs in order: when a later one has run on each, the earlier ones have.
        peristyle_rt::join_all((0..10).map(|_| blocking(|| ()))).await;
        while ran.load(Ordering::SeqCst) < 10 {
            sleep(Duration::from_micros(100)).await;
        }
    });
}

#[test]
fn a_panic_in_blocking_work_goes_on_in_the_task_that_waits() {
    let result = std::panic::catch_unwind(|| {
        block_on(RuntimeConfig::small(), async {
            blocking(|| panic!("on purpose")).await;
        })
    });
    assert!(result.is_err());
}

#[test]
fn a_panic_on_one_reactor_stops_the_others_and_is_reported() {
    let result = run(two(PollMode::Adaptive), vec![0, 1], |i| async move {
        assert!(i == 0, "on purpose");
        shutdown_requested().await;
    });
    assert!(matches!(result, Err(RuntimeError::Panicked { reactor: 1 })));
}

#[test]
fn a_stop_asked_for_on_one_reactor_reaches_all() {
    run(two(PollMode::Sleep), vec![0, 1], |i| async move {
        if i == 0 {
            sleep(Duration::from_millis(5)).await;
            request_shutdown();
        }
        shutdown_requested().await;
    })
    .expect("both ended");
}

#[test]
fn a_reactor_goes_on_with_its_tasks_until_the_last_main_future_has_ended() {
    run(two(PollMode::Adaptive), mesh::<u32>(2, 4), |seed| async move {
        let port = seed.attach();
        if port.me().0 == 1 {
            spawn(async move {
                let (from, n) = port.recv().await;
                port.send(from, n + 1).await;
            });
            return;
        }
        sleep(Duration::from_millis(2)).await;
        port.send(ReactorId(1), 1).await;
        assert_eq!(port.recv().await.1, 2);
    })
    .expect("both ended");
}

#[test]
fn a_core_that_does_not_exist_is_reported() {
    let config = RuntimeConfig { cores: Some(vec![9999]), ..RuntimeConfig::small() };
    let result = run(config, vec![()], |()| async {});
    assert!(matches!(result, Err(RuntimeError::Pin { reactor: 0, core: 9999 })));
}

#[test]
fn the_memory_budget_names_what_was_configured() {
    block_on(RuntimeConfig::small(), async {
        let budget = memory_budget();
        assert_eq!(budget.buffer_bytes(), peristyle_rt::BufConfig::small().total_bytes());
        assert!(budget.to_string().starts_with("41.0 MiB of buffers (1024 x 4 KiB, "), "{budget}");
    });
}

#[test]
fn random_bytes_differ() {
    block_on(RuntimeConfig::small(), async {
        let (mut a, mut b) = ([0; 32], [0; 32]);
        peristyle_rt::fill_random(&mut a);
        peristyle_rt::fill_random(&mut b);
        assert_ne!(a, b);
        assert!((0..1000).all(|_| peristyle_rt::random_below(7) < 7));
    });
}

#[test]
#[ignore = "the next test runs it in a process of its own"]
fn child_that_waits_for_a_signal() {
    let config = RuntimeConfig { signals: true, ..two(PollMode::Sleep) };
    run(config, vec![0, 1], |i| async move {
        if i == 0 {
            println!("ready");
        }
        shutdown_requested().await;
        println!("stopped {i}");
    })
    .expect("both ended");
}

#[test]
fn a_signal_asks_every_reactor_to_stop() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["child_that_waits_for_a_signal", "--exact", "--ignored", "--nocapture"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains("ready")));
        // SAFETY: sends a signal to our own child, which has not been waited for.
        unsafe { libc::kill(child.id() as i32, signal) };
        assert_eq!(lines.filter(|line| line.contains("stopped")).count(), 2);
        assert!(child.wait().expect("it ends").success());
    }
}
