//! The simulated backend: determinism, crashes, disks, the network and timers.

use peristyle_rt::sim::{self, DiskConfig, DiskFaults, DiskHandle, Stop, World, WorldConfig};
use peristyle_rt::{Addr, Buf, Device, Duration, IoError, IoVec, Listener, NetError, ReactorId, Stream};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

const MIB: u64 = 1 << 20;

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, last)
}

fn tcp(last: u8, port: u16) -> Addr {
    Addr::Tcp(SocketAddr::from((ip(last), port)))
}

async fn filled(bytes: usize, byte: u8) -> IoVec {
    let mut buf = Buf::alloc(bytes).await;
    buf.fill(byte);
    buf.freeze().into()
}

async fn read(device: &Device, offset: u64, bytes: usize) -> Result<Buf, IoError> {
    let (result, buf) = device.read(offset, Buf::alloc(bytes).await).await;
    result.map(|()| buf)
}

/// Two nodes that talk over TCP and write to a disk each; returns the hash of all that happened.
fn a_busy_world(seed: u64) -> u64 {
    let world = World::new(WorldConfig::new(seed));
    let (server, client) = (world.add_node(ip(1)), world.add_node(ip(2)));
    let disk = server.add_disk("d", MIB, DiskConfig::default());
    let done = Rc::new(Cell::new(false));
    server.start(vec![disk.spec()], |spec| async move {
        let device = Device::open(&spec).await.expect("there");
        let listener = Listener::bind(&tcp(1, 4420), false).await.expect("free");
        let (mut reader, mut writer) = listener.accept().await.expect("connected").split();
        for block in 0..20 {
            let (result, buf) = reader.recv_exact(Buf::alloc(4096).await).await;
            result.expect("sent");
            device.write(block * 4096, buf.freeze().into(), block % 3 == 0).await.expect("sound");
            writer.send(filled(16, block as u8).await).await.expect("open");
        }
        device.flush().await.expect("sound");
    });
    let finished = done.clone();
    client.start(vec![()], move |()| {
        let finished = finished.clone();
        async move {
            let stream = loop {
                match Stream::connect(&tcp(1, 4420)).await {
                    Ok(stream) => break stream,
                    Err(NetError::Refused) => peristyle_rt::sleep(Duration::from_millis(1)).await,
                    Err(error) => panic!("{error}"),
                }
            };
            let (mut reader, mut writer) = stream.split();
            for block in 0..20u8 {
                writer.send(filled(4096, block).await).await.expect("open");
                let (result, buf) = reader.recv_exact(Buf::alloc(16).await).await;
                result.expect("answered");
                assert_eq!(&buf[..], [block; 16]);
                peristyle_rt::sleep(Duration::from_micros(peristyle_rt::random_below(300))).await;
            }
            finished.set(true);
        }
    });
    assert!(world.run_until(|| done.get() && !server.is_running(), Duration::from_secs(10)));
    let mut block = [0; 4096];
    disk.read_raw(7 * 4096, &mut block);
    assert_eq!(block, [7; 4096]);
    assert_eq!(world.leaked_buffers(), 0);
    world.trace_hash()
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    for seed in 0..20 {
        assert_eq!(a_busy_world(seed), a_busy_world(seed), "seed {seed}");
    }
    let different: BTreeSet<u64> = (0..20).map(a_busy_world).collect();
    assert_eq!(different.len(), 20);
}

#[test]
fn a_future_runs_on_a_simulated_node_and_time_passes_only_when_it_waits() {
    let elapsed = sim::run(1, |_| async {
        let start = peristyle_rt::now();
        assert_eq!(peristyle_rt::reactor_id(), ReactorId(0));
        peristyle_rt::sleep(Duration::from_secs(3600)).await;
        peristyle_rt::now() - start
    });
    assert!(elapsed >= Duration::from_secs(3600) && elapsed < Duration::from_secs(3601));
}

#[test]
fn timers_fire_in_order_and_never_early() {
    sim::run(2, |_| async {
        let fired = Rc::new(RefCell::new(Vec::new()));
        for i in (0..50u64).rev() {
            let fired = fired.clone();
            peristyle_rt::spawn(async move {
                let at = peristyle_rt::now() + Duration::from_micros(i * 100);
                peristyle_rt::sleep_until(at).await;
                assert!(peristyle_rt::now() >= at);
                fired.borrow_mut().push(i);
            });
        }
        peristyle_rt::sleep(Duration::from_millis(10)).await;
        assert_eq!(*fired.borrow(), (0..50).collect::<Vec<_>>());
    });
}

#[test]
fn completed_writes_are_read_and_a_disk_is_opened_once_at_a_time() {
    sim::run(3, |env| async move {
        let disk = env.disk("d", MIB);
        let device = Device::open(&disk.spec()).await.expect("there");
        device.write(8192, filled(8192, 5).await, false).await.expect("sound");
        assert_eq!(read(&device, 12288, 4096).await.expect("sound")[..], [5; 4096]);
        assert_eq!(read(&device, 0, 4096).await.expect("sound")[..], [0; 4096]);
        assert!(matches!(Device::open(&disk.spec()).await, Err(IoError::Busy)));
        assert_eq!(read(&device, MIB, 4096).await.err(), Some(IoError::OutOfRange));
        device.write_zeroes(8192, 4096).await.expect("sound");
        assert_eq!(read(&device, 8192, 4096).await.expect("sound")[..], [0; 4096]);
        drop(device);
        Device::open(&disk.spec()).await.expect("closed before");
    });
}

#[test]
fn every_subset_and_tear_of_an_unflushed_write_is_enumerated() {
    sim::run(4, |env| async move {
        let disk = env.disk("d", MIB);
        let device = Device::open(&disk.spec()).await.expect("there");
        device.write(0, filled(4096, 1).await, true).await.expect("sound");
        assert_eq!(disk.crash_space(Stop::Power).count(), 1, "a durable write is stable");
        device.write(0, filled(4096, 2).await, false).await.expect("sound");
        let space = disk.crash_space(Stop::Power);
        assert_eq!(space.count(), 256);
        let mut seen = BTreeSet::new();
        for state in space.states(1000, 0) {
            let mut block = [0; 4096];
            state[0].read(0, &mut block);
            assert!(block.chunks(512).all(|sector| sector == [1; 512] || sector == [2; 512]));
            seen.insert(block.to_vec());
        }
        assert_eq!(seen.len(), 256);
        assert_eq!(disk.crash_space(Stop::Kill).count(), 1, "a completed write outlives its process");
        device.flush().await.expect("sound");
        assert_eq!(disk.crash_space(Stop::Power).count(), 1);
    });
}

#[test]
fn a_bounded_enumeration_has_each_write_alone_and_all_but_one() {
    sim::run(5, |env| async move {
        let disk = env.disk("d", MIB);
        let device = Device::open(&disk.spec()).await.expect("there");
        for write in 0..4u8 {
            device.write(u64::from(write) * 4096, filled(4096, 1 + write).await, false).await.expect("sound");
        }
        let space = disk.crash_space(Stop::Power);
        assert_eq!((space.count(), space.undecided_writes()), (1 << 32, 4));
        let states: Vec<Vec<u8>> = (space.states(500, 9))
            .map(|state| {
                let mut bytes = vec![0; 4 * 4096];
                state[0].read(0, &mut bytes);
                bytes
            })
            .collect();
        assert_eq!(states.len(), 500);
        assert_eq!(states.iter().collect::<BTreeSet<_>>().len(), 500, "no state comes twice");
        let whole = |mask: u8| -> Vec<u8> {
            (0..4u8).flat_map(|w| [if mask >> w & 1 == 1 { 1 + w } else { 0 }; 4096]).collect()
        };
        for mask in [0, 15, 1, 2, 4, 8, 14, 13, 11, 7] {
            assert!(states.contains(&whole(mask)), "{mask:b}");
        }
    });
}

/// Writes blocks of 1 durably, then blocks of 2 without flushing, and cuts the power. What is there afterwards?
fn after_power_loss(seed: u64) -> Vec<u8> {
    let world = World::new(WorldConfig::new(seed));
    let node = world.add_node(ip(1));
    let disk = node.add_disk("d", MIB, DiskConfig::default());
    let ready = Rc::new(Cell::new(false));
    let flag = ready.clone();
    node.start(vec![disk.spec()], move |spec| {
        let flag = flag.clone();
        async move {
            let device = Device::open(&spec).await.expect("there");
            device.write(0, filled(16384, 1).await, true).await.expect("sound");
            device.write(0, filled(16384, 2).await, false).await.expect("sound");
            flag.set(true);
            std::future::pending::<()>().await;
        }
    });
    assert!(world.run_until(|| ready.get(), Duration::from_secs(1)));
    node.power_off();
    let mut bytes = vec![0; 16384];
    disk.read_raw(0, &mut bytes);
    bytes
}

#[test]
fn power_loss_keeps_loses_or_tears_what_was_not_flushed() {
    let (mut kept, mut lost, mut torn) = (0, 0, 0);
    for seed in 0..40 {
        let bytes = after_power_loss(seed);
        assert_eq!(bytes, after_power_loss(seed));
        let twos = bytes.chunks(512).filter(|s| *s == [2; 512]).count();
        let ones = bytes.chunks(512).filter(|s| *s == [1; 512]).count();
        assert_eq!(ones + twos, 32, "nothing else can be there");
        match ones {
            0 => kept += 1,
            32 => lost += 1,
            _ => torn += 1,
        }
    }
    assert!(kept > 0 && lost > 0 && torn > 0);
}

#[test]
fn kill_drops_tasks_and_their_buffers_come_back() {
    struct Dropped(Rc<Cell<u32>>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }
    let world = World::new(WorldConfig::new(6));
    let node = world.add_node(ip(1));
    let disk = node.add_disk("d", MIB, DiskConfig::default());
    let dropped = Rc::new(Cell::new(0));
    let counter = dropped.clone();
    node.start(vec![disk.spec()], move |spec| {
        let counter = counter.clone();
        async move {
            let device = Device::open(&spec).await.expect("there");
            for i in 0..10 {
                let (guard, device) = (Dropped(counter.clone()), device.clone());
                peristyle_rt::spawn(async move {
                    let _guard = guard;
                    let _held = Buf::alloc(65536).await;
                    loop {
                        device.write(i * 4096, filled(4096, 1).await, true).await.expect("sound");
                    }
                });
            }
            std::future::pending::<()>().await;
        }
    });
    world.run_for(Duration::from_millis(1));
    assert!(disk.stats().writes > 10);
    node.kill();
    assert_eq!((dropped.get(), world.leaked_buffers(), node.is_running()), (10, 0, false));
    node.start(vec![disk.spec()], |spec| async move {
        Device::open(&spec).await.expect("the dead process holds no lock");
    });
    assert!(world.run_until(|| !node.is_running(), Duration::from_secs(1)));
}

#[test]
fn a_node_can_be_stopped_at_each_of_its_events() {
    let attempt = |stop: Option<u64>| {
        let world = World::new(WorldConfig::new(7));
        let node = world.add_node(ip(1));
        let disk = node.add_disk("d", MIB, DiskConfig::default());
        if let Some(event) = stop {
            node.stop_at_event(event, Stop::Kill);
        }
        node.start(vec![disk.spec()], |spec| async move {
            let device = Device::open(&spec).await.expect("there");
            for i in 0..5u8 {
                device.write(u64::from(i) * 4096, filled(4096, 1 + i).await, true).await.expect("sound");
            }
        });
        assert!(world.run_until(|| !node.is_running(), Duration::from_secs(1)));
        let mut bytes = vec![0; 5 * 4096];
        disk.read_raw(0, &mut bytes);
        (node.events(), bytes)
    };
    let (events, whole) = attempt(None);
    assert!(events >= 10);
    let ends: BTreeSet<Vec<u8>> = (1..=events).map(|event| attempt(Some(event)).1).collect();
    assert!(ends.len() > 5 && ends.contains(&whole) && ends.contains(&vec![0; 5 * 4096]));
}

fn one_fault(
    seed: u64,
    faults: DiskFaults,
) -> (Result<(), IoError>, Result<Vec<u8>, IoError>, DiskHandleImage) {
    sim::run(seed, move |env| async move {
        let disk = env.disk("d", MIB);
        let device = Device::open(&disk.spec()).await.expect("there");
        disk.set_faults(faults);
        let written = device.write(4096, filled(4096, 9).await, true).await;
        let back = read(&device, 4096, 4096).await.map(|buf| buf.to_vec());
        (written, back, DiskHandleImage::of(&disk))
    })
}

struct DiskHandleImage(Vec<u8>);
impl DiskHandleImage {
    fn of(disk: &DiskHandle) -> DiskHandleImage {
        let mut bytes = vec![0; MIB as usize];
        disk.read_raw(0, &mut bytes);
        DiskHandleImage(bytes)
    }
    fn count(&self, byte: u8) -> usize {
        self.0.iter().filter(|b| **b == byte).count()
    }
}

#[test]
fn disks_fail_and_lie_as_told() {
    let always = 1_000_000;
    let (written, back, _) = one_fault(1, DiskFaults { read_error_ppm: always, ..Default::default() });
    assert_eq!((written, back), (Ok(()), Err(IoError::Os(5))));
    let (written, back, image) = one_fault(1, DiskFaults { lost_write_ppm: always, ..Default::default() });
    assert_eq!((written, back, image.count(9)), (Ok(()), Ok(vec![0; 4096]), 0));
    let (written, back, image) =
        one_fault(1, DiskFaults { misdirected_write_ppm: always, ..Default::default() });
    assert_eq!((written, back, image.count(9)), (Ok(()), Ok(vec![0; 4096]), 4096));
    let (written, back, image) = one_fault(1, DiskFaults { flipped_write_ppm: always, ..Default::default() });
    assert_eq!((written, image.count(9)), (Ok(()), 4095));
    assert!(back.is_ok_and(|bytes| bytes.iter().map(|b| (b ^ 9).count_ones()).sum::<u32>() == 1));
    let (written, _, image) = one_fault(1, DiskFaults { full: true, ..Default::default() });
    assert_eq!((written, image.count(9)), (Err(IoError::Full), 0));
    let (written, back, _) = one_fault(1, DiskFaults { gone: true, ..Default::default() });
    assert_eq!((written, back), (Err(IoError::Gone), Err(IoError::Gone)));
}

#[test]
fn a_latent_error_lasts_until_the_page_is_written_and_a_stall_until_its_end() {
    sim::run(8, |env| async move {
        let disk = env.disk("d", MIB);
        let device = Device::open(&disk.spec()).await.expect("there");
        disk.add_latent_error(5000, 1);
        assert_eq!(read(&device, 0, 4096).await.expect("sound").len(), 4096);
        assert_eq!(read(&device, 0, 8192).await.err(), Some(IoError::Os(5)));
        device.write(4096, filled(4096, 1).await, false).await.expect("sound");
        read(&device, 0, 8192).await.expect("written anew");
        let until = env.world.now_nanos() + 5_000_000_000;
        disk.update_faults(|f| f.stall_until = until);
        read(&device, 0, 4096).await.expect("late");
        assert!(env.world.now_nanos() >= until);
    });
}

/// A server that echoes; a client that sends `bytes` in pieces and compares. Returns what the client saw.
fn echo(
    config: WorldConfig,
    bytes: usize,
    during: impl FnOnce(&World, &[sim::NodeHandle; 2]),
) -> Result<(), NetError> {
    let world = World::new(config);
    let nodes = [world.add_node(ip(1)), world.add_node(ip(2))];
    nodes[0].start(vec![()], |()| async {
        let listener = Listener::bind(&tcp(1, 7), false).await.expect("free");
        loop {
            let Ok(stream) = listener.accept().await else { return };
            peristyle_rt::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                while let Ok(view) = reader.recv().await {
                    if view.is_empty() || writer.send(view.into()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    world.run_for(Duration::from_millis(1));
    let outcome = Rc::new(Cell::new(None));
    let result = outcome.clone();
    nodes[1].start(vec![()], move |()| {
        let result = result.clone();
        async move { result.set(Some(echo_client(bytes).await)) }
    });
    world.run_for(Duration::from_millis(1));
    during(&world, &nodes);
    assert!(world.run_until(|| outcome.get().is_some(), Duration::from_secs(60)), "the client hangs");
    outcome.get().expect("just seen")
}

async fn echo_client(bytes: usize) -> Result<(), NetError> {
    let (mut reader, mut writer) = Stream::connect(&tcp(1, 7)).await?.split();
    let sender = Rc::new(Cell::new(None));
    let sent = sender.clone();
    peristyle_rt::spawn(async move {
        for start in (0..bytes).step_by(50_000) {
            let mut buf = Buf::alloc(50_000.min(bytes - start)).await;
            buf.iter_mut().enumerate().for_each(|(i, b)| *b = ((start + i) % 251) as u8);
            if let Err(error) = writer.send(buf.freeze().into()).await {
                return sent.set(Some(error));
            }
        }
        std::future::pending::<()>().await; // keeps the connection open
    });
    let mut seen = 0;
    while seen < bytes {
        let view = reader.recv().await?;
        if view.is_empty() {
            return Err(NetError::Closed);
        }
        for byte in view.iter() {
            assert_eq!(*byte, (seen % 251) as u8, "at {seen}");
            seen += 1;
        }
    }
    Ok(())
}

#[test]
fn bytes_arrive_in_order_whatever_the_segments() {
    for seed in 0..30 {
        let mut config = WorldConfig::new(seed);
        config.link.cut_ppm = 500_000;
        config.link.window_bytes = 5_000;
        assert_eq!(echo(config, 600_000, |_, _| {}), Ok(()), "seed {seed}");
    }
}

#[test]
fn a_short_partition_delays_and_a_long_one_ends_the_connection() {
    let part = |millis: u64| {
        move |world: &World, nodes: &[sim::NodeHandle; 2]| {
            world.block(&nodes[1], &nodes[0], true);
            let (handle, nodes) = (world.handle(), nodes.clone());
            world.after(Duration::from_millis(millis), move || handle.block(&nodes[1], &nodes[0], false));
        }
    };
    assert_eq!(echo(WorldConfig::new(1), 10_000_000, part(500)), Ok(()));
    assert_eq!(echo(WorldConfig::new(1), 10_000_000, part(30_000)), Err(NetError::Closed));
}

#[test]
fn the_peer_of_a_killed_process_sees_the_end_and_that_of_a_dark_machine_times_out() {
    let killed = |seed| echo(WorldConfig::new(seed), 10_000_000, |_, nodes| nodes[0].kill());
    assert!((0..10).all(|seed| killed(seed) == Err(NetError::Closed)));
    let mut took = 0;
    let dark = echo(WorldConfig::new(1), 10_000_000, |world, nodes| {
        took = world.now_nanos();
        nodes[0].power_off();
    });
    assert_eq!(dark, Err(NetError::Closed));
    let reset =
        echo(WorldConfig::new(1), 10_000_000, |world, nodes| world.reset_connections(&nodes[0], &nodes[1]));
    assert_eq!(reset, Err(NetError::Closed));
}

#[test]
fn connecting_to_nobody_is_refused_and_to_a_dark_machine_times_out() {
    let world = World::new(WorldConfig::new(3));
    let (a, b, dark) = (world.add_node(ip(1)), world.add_node(ip(2)), world.add_node(ip(3)));
    dark.power_off();
    let outcomes = Rc::new(RefCell::new(Vec::new()));
    let results = outcomes.clone();
    a.start(vec![()], move |()| {
        let results = results.clone();
        async move {
            for last in [2, 3, 9] {
                let outcome = Stream::connect(&tcp(last, 1)).await.err();
                results.borrow_mut().push(outcome);
            }
        }
    });
    assert!(world.run_until(|| !a.is_running(), Duration::from_secs(60)));
    let expected = [NetError::Refused, NetError::Os(libc::ETIMEDOUT), NetError::Os(libc::EHOSTUNREACH)];
    assert_eq!(*outcomes.borrow(), expected.map(Some));
    assert!(!b.is_running());
}

#[test]
fn unix_sockets_live_in_their_own_node() {
    let world = World::new(WorldConfig::new(4));
    let (a, b) = (world.add_node(ip(1)), world.add_node(ip(2)));
    let path = Addr::Unix("/run/admin".into());
    let served = path.clone();
    a.start(vec![()], move |()| {
        let path = served.clone();
        async move {
            let listener = Listener::bind(&path, false).await.expect("free");
            peristyle_rt::spawn(async move {
                let (_, mut writer) = listener.accept().await.expect("connected").split();
                writer.send(filled(3, 7).await).await.expect("open");
            });
            let (mut reader, _writer) = Stream::connect(&path).await.expect("bound").split();
            assert_eq!(reader.recv().await.expect("sent")[..], [7; 3]);
        }
    });
    b.start(vec![()], move |()| {
        let path = path.clone();
        async move { assert_eq!(Stream::connect(&path).await.err(), Some(NetError::Refused)) }
    });
    assert!(world.run_until(|| !a.is_running() && !b.is_running(), Duration::from_secs(1)));
}

#[test]
fn reactors_of_one_node_exchange_messages_and_blocking_calls_return() {
    let world = World::new(WorldConfig::new(5));
    let node = world.add_node(ip(1));
    let total = Rc::new(Cell::new(0));
    let sum = total.clone();
    node.start(peristyle_rt::mesh::<u64>(3, 4), move |seed| {
        let sum = sum.clone();
        async move {
            let port = seed.attach();
            if port.me() == ReactorId(0) {
                for _ in 0..200 {
                    sum.set(sum.get() + port.recv().await.1);
                }
            } else {
                for i in 0..100 {
                    let value = peristyle_rt::blocking(move || i * 2).await;
                    port.send(ReactorId(0), value).await;
                }
            }
        }
    });
    assert!(world.run_until(|| !node.is_running(), Duration::from_secs(10)));
    assert_eq!(total.get(), 2 * 9900);
}

#[test]
fn a_request_to_stop_reaches_every_reactor() {
    let world = World::new(WorldConfig::new(6));
    let node = world.add_node(ip(1));
    node.start(vec![1, 2], |_| peristyle_rt::shutdown_requested());
    world.run_for(Duration::from_millis(1));
    assert!(node.is_running());
    node.request_shutdown();
    assert!(world.run_until(|| !node.is_running(), Duration::from_millis(1)));
}

#[test]
fn a_sweep_finds_the_crash_that_breaks_a_two_step_update() {
    // Two blocks are to be equal. Written one after the other without a journal, a crash shows them different,
    // and torn; with the first one flushed before the second it cannot be the second one alone.
    let mut second_alone = [0, 0];
    for (flushed, found) in [false, true].into_iter().zip(&mut second_alone) {
        let acknowledged = Rc::new(Cell::new(false));
        let done = acknowledged.clone();
        let sweep = sim::Sweep { states_per_crash: 2000, ..sim::Sweep::new(1, vec![sim::Image::new(MIB)]) };
        let (swept, last) = sweep.run(
            |_, disks| async move {
                let device = Device::open(&disks[0].spec()).await.expect("there");
                device.write(0, filled(4096, 1).await, flushed).await.expect("sound");
                device.write(4096, filled(4096, 1).await, false).await.expect("sound");
                device.flush().await.expect("sound");
                done.set(true);
            },
            || u64::from(acknowledged.get()),
            |crash| {
                let mut bytes = [0; 8192];
                crash.disks[0].read(0, &mut bytes);
                if acknowledged.get() {
                    assert_eq!(bytes, [1; 8192]);
                }
                if bytes[..4096] == [0; 4096] && bytes[4096..] == [1; 4096] {
                    *found += 1;
                }
            },
        );
        assert!(swept.states > 500, "{swept:?}");
        assert_eq!(last[0].pages_used(), 2);
    }
    assert!(second_alone[0] > 0 && second_alone[1] == 0, "{second_alone:?}");
}

#[test]
fn connections_leave_nothing_behind() {
    let world = World::new(WorldConfig::new(9));
    let (server, client) = (world.add_node(ip(1)), world.add_node(ip(2)));
    server.start(vec![()], |()| async {
        let listener = Listener::bind(&tcp(1, 7), false).await.expect("free");
        for _ in 0..5 {
            drop(listener.accept().await.expect("connected"));
        }
        peristyle_rt::sleep(Duration::from_millis(5)).await; // the others wait in vain
    });
    world.run_for(Duration::from_millis(1));
    client.start(vec![()], |()| async {
        for i in 0..10 {
            match i % 2 {
                0 => drop(Stream::connect(&tcp(1, 7)).await),
                _ => drop(peristyle_rt::timeout(Duration::from_micros(1), Stream::connect(&tcp(1, 7))).await),
            }
        }
    });
    assert!(world.run_until(|| !server.is_running() && !client.is_running(), Duration::from_secs(20)));
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.connection_count(), 0);
}

#[test]
fn discarded_sectors_read_as_anything_and_others_as_before() {
    let mut seen = BTreeSet::new();
    for seed in 0..10 {
        let (inside, beside, stats) = sim::run(seed, |env| async move {
            let disk = env.disk("d", MIB);
            let device = Device::open(&disk.spec()).await.expect("there");
            for page in 0..32 {
                device.write(page * 4096, filled(4096, 1 + page as u8).await, true).await.expect("sound");
            }
            device.discard(8 * 4096, 8 * 4096).await.expect("sound");
            assert_eq!(device.discard(100, 4096).await, Err(IoError::OutOfRange));
            device.flush().await.expect("sound");
            let mut bytes = vec![0; 32 * 4096];
            disk.read_raw(0, &mut bytes);
            let pages: Vec<u8> = bytes.chunks(4096).map(|page| page[0]).collect();
            (pages[8..16].to_vec(), [&pages[..8], &pages[16..]].concat(), disk.stats())
        });
        assert_eq!(beside, (1..=8).chain(17..=32).collect::<Vec<u8>>());
        assert_eq!((stats.discards, stats.bytes_discarded), (1, 8 * 4096));
        for (page, byte) in (9..).zip(inside) {
            seen.insert(match byte {
                0 => "zeros",
                b if b == page => "as before",
                1..=32 => "of another place",
                _ => "nonsense",
            });
        }
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[test]
fn images_have_the_same_fingerprint_only_if_they_hold_the_same() {
    // Half a page that ends in its own CRC-32C: whatever it says, its CRC is the same.
    let half = |byte: u8| {
        let mut bytes = vec![byte; 2048];
        let sum = peristyle_base::crc32c(&bytes[..2044]);
        bytes[2044..].copy_from_slice(&sum.to_le_bytes());
        bytes
    };
    let base = sim::Image::new(MIB);
    let image = |offset: u64, byte: u8| {
        let mut image = base.clone();
        image.write(offset, &half(byte));
        image.write(offset + 2048, &half(byte));
        image
    };
    let places = [(0, 1), (0, 2), (4096, 1), (4096, 2), (0, 0)];
    let seen: BTreeSet<u64> =
        places.iter().map(|&(at, byte)| image(at, byte).fingerprint_since(&base)).collect();
    assert_eq!(seen.len(), places.len());

    let mut zeroed = image(0, 1);
    zeroed.write(0, &[0; 4096]);
    assert_eq!(zeroed.fingerprint_since(&base), base.fingerprint_since(&base), "zeros that were written");
    let mut same = image(8192, 1);
    same.write(0, &half(1));
    same.write(2048, &half(1));
    same.write(8192, &[0; 4096]);
    assert_eq!(same.fingerprint_since(&base), image(0, 1).fingerprint_since(&base));
}
