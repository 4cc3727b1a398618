//! The simulation beside closed forms.

use super::super::queue::{Mmc, mg1_mean_wait};
use super::super::stage::{Cost, Pauses, Shape, Station, Visit};
use super::*;
use proptest::prelude::*;
use std::sync::Arc;

const COUNT: usize = 400_000;

fn near(value: f64, expected: f64, off: f64) {
    assert!((value / expected - 1.0).abs() <= off, "{value} beside {expected}");
}

fn one(servers: u32, shape: Shape) -> Model {
    Model {
        stations: vec![Station::servers("server", servers)],
        route: vec![Visit::to(0, vec![Cost::new("work", 1.0, shape)])],
    }
}

fn open(model: &Model, per_us: f64) -> Point {
    evaluate(model, Load::Open { per_second: per_us * 1e6 }, COUNT, 1).unwrap()
}

#[test]
fn queues_of_the_textbook_are_simulated_as_they_are_computed() {
    for (servers, load) in [(1, 0.5), (1, 0.8), (2, 0.5), (8, 0.8)] {
        let rate = load * f64::from(servers);
        let (seen, queue) =
            (open(&one(servers, Shape::Exponential), rate), Mmc::new(rate, 1.0, servers).unwrap());
        near(seen.mean_us, queue.mean_in_system(), 0.04);
        near(seen.p50_us, queue.quantile(0.5), 0.04);
        near(seen.p99_us, queue.quantile(0.99), 0.07);
        near(seen.busy[0], load, 0.02);
        near(seen.in_flight, queue.in_system(), 0.05);
    }
}

#[test]
fn service_of_any_shape_waits_as_pollaczek_and_khinchine_say() {
    let shape = Shape::of(&[1.0, 1.0, 1.0, 5.0]);
    let cv2 = 3.0 / 4.0;
    for (shape, cv2) in [(Shape::Constant, 0.0), (shape, cv2)] {
        let wait = open(&one(1, shape), 0.7).mean_us - 1.0;
        near(wait, mg1_mean_wait(0.7, 1.0, cv2).unwrap(), 0.04);
    }
}

#[test]
fn who_leaves_early_is_not_waited_for_and_two_reactors_work_at_the_same_time() {
    let model = |leave: u32| {
        let reactor =
            |name: &str| Station { leave, ..Station::polled(name, 1, vec![Cost::constant("turn", 4.0)]) };
        let work = |us: f64| vec![Cost::constant("request", us)];
        Model {
            stations: vec![reactor("target"), reactor("host")],
            route: vec![Visit::to(0, work(2.0)), Visit::to(1, work(1.0))],
        }
    };
    let seen = |leave: u32| evaluate(&model(leave), Load::Closed { depth: 32 }, COUNT, 1).unwrap();
    // All together: one reactor after the other, a turn of each for all 32.
    let cycle = 4.0 + 32.0 * 2.0 + 4.0 + 32.0;
    near(seen(u32::MAX).throughput, 32e6 / cycle, 0.001);
    // In eighths: the target always has something to do, a turn costs 4 us for as many as have come meanwhile.
    let apart = seen(4);
    assert!(apart.busy[0] > 0.95, "{apart:?}");
    assert!(apart.throughput > 1.2 * seen(u32::MAX).throughput, "{apart:?}");
    near(apart.in_flight, 32.0, 0.001);
    // A request alone leaves alone.
    let alone = evaluate(&model(4), Load::Closed { depth: 1 }, 1000, 1).unwrap();
    near(alone.mean_us, 11.0, 1e-6);
}

#[test]
fn more_than_can_be_served_is_said() {
    let load = Load::Open { per_second: 1e6 };
    let overloaded = evaluate(&one(1, Shape::Constant), load, 1000, 1);
    assert!(matches!(overloaded, Err(QueueError::Overloaded { utilisation }) if utilisation >= 1.0));
    assert_eq!(
        evaluate(&one(1, Shape::Constant), Load::Closed { depth: 0 }, 1000, 1),
        Err(QueueError::Invalid)
    );
}

/// A reactor with turns of 6 us and 2 us for each request.
fn polled() -> Model {
    Model {
        stations: vec![Station::polled("reactor", 1, vec![Cost::constant("turn", 6.0)])],
        route: vec![Visit::to(0, vec![Cost::constant("request", 2.0)])],
    }
}

#[test]
fn a_polled_reactor_takes_all_that_waits() {
    for depth in [1, 4, 32] {
        let seen = evaluate(&polled(), Load::Closed { depth }, 10_000, 1).unwrap();
        near(seen.mean_us, 6.0 + 2.0 * f64::from(depth), 1e-9);
        near(seen.throughput, f64::from(depth) / seen.mean_us * 1e6, 0.01);
        near(seen.batch[0], f64::from(depth), 1e-9);
    }
    // Each turn is one and a half times as long as a lone request's, with far more than 1 / 8 us of load.
    let seen = open(&polled(), 0.3);
    assert!(seen.batch[0] > 2.0 && seen.p99_us < 60.0, "{seen:?}");
    near(seen.throughput, 0.3e6, 0.01);
}

#[test]
fn what_has_left_a_turn_together_comes_together_also_behind_a_delay() {
    for delay in [0.0, 5.0] {
        let mut model = polled();
        model
            .stations
            .push(Station { turn: vec![Cost::constant("wire", delay)], ..Station::delay("network") });
        model.route.insert(0, Visit::to(1, vec![]));
        let seen = evaluate(&model, Load::Closed { depth: 16 }, 10_000, 1).unwrap();
        near(seen.batch[0], 16.0, 0.01);
        near(seen.mean_us, 38.0 + delay, 0.01);
    }
}

#[test]
fn a_request_waits_for_the_slowest_of_its_columns() {
    // The largest of n exponential times has the mean 1 + 1/2 + … + 1/n.
    let stations = vec![Station { lanes: vec![1.0; 6], servers: 0, ..Station::servers("device", 0) }];
    let work = vec![Cost::new("write", 1.0, Shape::Exponential)];
    let mut model = Model { stations, route: vec![Visit { columns: 6, ..Visit::to(0, work) }] };
    near(open(&model, 0.01).mean_us, 2.45, 0.01);
    // One of six is three times as slow: it is among any four of them twice out of three times.
    model.route[0] = Visit { columns: 4, ..Visit::to(0, vec![Cost::constant("write", 1.0)]) };
    model.stations[0].lanes[1] = 3.0;
    near(open(&model, 0.01).mean_us, 3.0 * 2.0 / 3.0 + 1.0 / 3.0, 0.01);
}

#[test]
fn what_leaves_a_turn_together_is_one_frame() {
    let mut model = polled();
    model.stations.push(Station { lanes: vec![1.0; 2], ..Station::servers("device", 1) });
    model.stations[1].turn = vec![Cost::constant("write", 10.0)];
    model.route.push(Visit { columns: 2, together: true, ..Visit::to(1, vec![]) });
    let seen = evaluate(&model, Load::Closed { depth: 8 }, 20_000, 1).unwrap();
    // All eight in a turn of 22 us, then in a write of 10.
    near(seen.mean_us, 32.0, 1e-6);
    model.route[1].together = false;
    let seen = evaluate(&model, Load::Closed { depth: 8 }, 20_000, 1).unwrap();
    assert!(seen.throughput < 0.101e6, "{seen:?}");
}

#[test]
fn a_pause_hits_who_comes_while_it_lasts() {
    let mut model = one(1, Shape::Constant);
    model.stations[0].pauses = Pauses { rate: 1e-4, lengths: Arc::from([500.0]) };
    let seen = open(&model, 0.01);
    // Nearly one of twenty comes during a pause, and waits for half of it on average.
    near(seen.mean_us, 1.0 + 0.05 * 250.0, 0.15);
    assert!((300.0..520.0).contains(&seen.p99_us) && seen.p50_us < 1.1, "{seen:?}");
    near(evaluate(&model, Load::Closed { depth: 1 }, COUNT, 1).unwrap().throughput, 1e6 / 1.05, 0.02);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn one_seed_gives_one_answer_and_little_holds(
        turn in 0.0..10.0f64, request in 0.1..5.0f64, load in 0.05..0.9f64, lanes in 1usize..4, seed: u64,
    ) {
        let model = Model {
            stations: vec![Station::polled("r", lanes, vec![Cost::new("turn", turn, Shape::Exponential)])],
            route: vec![Visit::to(0, vec![Cost::constant("request", request)])],
        };
        let per_second = model.capacity(0).unwrap() * load;
        let run = || evaluate(&model, Load::Open { per_second }, 20_000, seed).unwrap();
        let seen = run();
        prop_assert_eq!(&seen, &run());
        let little = seen.throughput * seen.mean_us / 1e6;
        prop_assert!((seen.in_flight / little - 1.0).abs() < 0.05, "{} beside {}", seen.in_flight, little);
        prop_assert!(seen.p50_us <= seen.p99_us && seen.p99_us <= seen.p999_us && seen.busy[0] <= 1.001);
    }

    #[test]
    fn more_in_flight_end_more_and_wait_longer(depth in 1u32..32, request in 0.1..5.0f64, seed: u64) {
        let mut model = polled();
        model.route[0].request[0] = Cost::new("request", request, Shape::Exponential);
        let of = |depth| evaluate(&model, Load::Closed { depth }, 20_000, seed).unwrap();
        let (less, more) = (of(depth), of(depth * 2));
        prop_assert!(more.throughput > less.throughput * 0.98 && more.mean_us > less.mean_us);
    }
}
