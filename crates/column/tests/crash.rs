//! Crashes: after every step of format, allocate, append, fence, seal and free the simulated disk may hold any mix of
//! the sectors that had not become stable. Each such state must open, and tell the state before or after.

mod common;
use common::*;
use peristyle_base::{Duration, Epoch, RowIndex, ShardId, Uuid};
use peristyle_column::{
    ColumnError, FormatError, FormatOptions, Geometry, OpenError, RowRange, Seal, Server, ServerConfig,
    SlotInfo, SlotState, check, format, inspect,
};
use peristyle_rt::sim::{DiskConfig, Image, NodeHandle, Stop, World, WorldConfig, run};
use peristyle_rt::{Buf, Device, DeviceSpec, join_all};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::Ipv4Addr;
use std::rc::Rc;

const STATES_PER_POINT: usize = 40;

/// Runs `work` on a disk with `image` and returns what a power loss at any event may leave there, each with what
/// `promised` said at that moment.
fn crash_images<P, F, Fut>(image: Image, work: F, promised: impl Fn() -> P) -> Vec<(P, Image)>
where
    P: PartialEq + Clone,
    F: Fn(DeviceSpec) -> Fut + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let world = World::new(WorldConfig::new(3));
    let node = world.add_node(Ipv4Addr::new(10, 0, 0, 1));
    let disk = node.add_disk_image("d", image, DiskConfig::default());
    node.start(vec![disk.spec()], work);
    let (mut states, mut seen) = (Vec::new(), None);
    while node.is_running() {
        // Only events that change what a crash may leave, or what was promised, make a new point.
        let point = Some((disk.changes(), promised()));
        if point != seen {
            seen = point;
            let space = disk.crash_space(Stop::Power);
            let of_point = space.states(STATES_PER_POINT, disk.changes());
            states.extend(of_point.map(|mut images| (promised(), images.remove(0))));
        }
        assert!(world.step(), "the work waits for ever");
    }
    states.push((promised(), disk.image()));
    states
}

/// What a fresh process does with a disk that holds `image`.
fn after<T: 'static, F, Fut>(image: Image, look: F) -> T
where
    F: FnOnce(Device, NodeHandle) -> Fut + 'static,
    Fut: Future<Output = T> + 'static,
{
    run(5, |env| async move {
        let disk = env.node.add_disk_image("d", image, DiskConfig::default());
        look(Device::open(&disk.spec()).await.unwrap(), env.node.clone()).await
    })
}

fn options(force: bool) -> FormatOptions {
    FormatOptions { force, ..OPTIONS }
}

fn formatted(slots: u32) -> Image {
    run(2, move |env| async move {
        let disk = env.disk("d", Geometry::bytes_for(slots));
        format(&Device::open(&disk.spec()).await.unwrap(), OPTIONS).await.unwrap();
        disk.image()
    })
}

async fn serve(device: Device) -> Server {
    Server::open(device, CLUSTER, ServerConfig::default()).await.unwrap()
}

#[test]
fn a_crash_during_format_leaves_a_blank_or_a_formatted_device() {
    let blank = Image::new(Geometry::bytes_for(70));
    let confirmed = Rc::new(Cell::new(false));
    let flag = confirmed.clone();
    let work = move |spec| {
        let flag = flag.clone();
        async move {
            format(&Device::open(&spec).await.unwrap(), options(false)).await.unwrap();
            flag.set(true);
        }
    };
    let states = crash_images(blank, work, move || confirmed.get());
    let (mut unformatted, mut whole) = (0, 0);
    for (done, image) in &states {
        let done = *done;
        after(image.clone(), move |device, _| async move {
            let report = check(&device, |_, _| ()).await;
            match report.inspection.label {
                Ok(label) => {
                    assert_eq!((label.cluster, label.device), (CLUSTER, DEVICE));
                    let server = serve(device).await;
                    assert_eq!((server.usage().free, server.usage().damaged), (70, 0));
                }
                Err(_) => {
                    assert!(!done, "format had been confirmed");
                    format(&device, options(false)).await.expect("nobody else's data is there");
                }
            }
        });
        if done { whole += 1 } else { unformatted += 1 }
    }
    assert!(unformatted > 100 && whole > 0, "{unformatted} {whole}");
}

#[test]
fn a_crash_during_a_forced_format_leaves_the_old_or_the_new_device_or_none() {
    let other = Uuid([0xaa; 16]);
    let confirmed = Rc::new(Cell::new(false));
    let flag = confirmed.clone();
    let work = move |spec| {
        let flag = flag.clone();
        async move {
            let device = Device::open(&spec).await.unwrap();
            let refused = format(&device, options(false)).await;
            assert_eq!(refused, Err(FormatError::Labelled { cluster: CLUSTER, device: DEVICE }));
            format(&device, FormatOptions { device: other, ..options(true) }).await.unwrap();
            flag.set(true);
        }
    };
    let states = crash_images(formatted(5), work, move || confirmed.get());
    for (done, image) in states {
        after(image, move |device, _| async move {
            match Server::open(device.clone(), CLUSTER, ServerConfig::default()).await {
                Ok(server) => {
                    assert!(server.id() == other || (server.id() == DEVICE && !done));
                    assert_eq!((server.usage().free, server.usage().damaged), (5, 0));
                }
                Err(OpenError::NoLabel(_)) => {
                    assert!(!done);
                    // The old label may be torn, which is not for us to call blank: then it takes force again.
                    if format(&device, options(false)).await.is_err() {
                        format(&device, options(true)).await.unwrap();
                    }
                    assert!(check(&device, |_, _| ()).await.is_clean());
                }
                Err(error) => panic!("{error}"),
            }
        });
    }
}

/// Columns that live at the same time, so that their table writes are shared.
const COLUMNS: u64 = 9;
/// How many steps of its life each column has had confirmed.
type Done = Rc<RefCell<[u8; COLUMNS as usize]>>;
const ALLOCATED: u8 = 1;
const APPENDED: u8 = 2;
const FENCED: u8 = 3;
const SEALED: u8 = 4;
const FREED: u8 = 5;

async fn life(server: &Server, extent: u64, done: &Done) {
    let confirm = |step| done.borrow_mut()[extent as usize] = step;
    let slot = server.allocate(wish(extent)).await.unwrap();
    confirm(ALLOCATED);
    append(server, slot, extent, E1, 0, &[1]).await.unwrap();
    append(server, slot, extent, E1, 2, &[3]).await.unwrap();
    confirm(APPENDED);
    let mut epoch = E1;
    if extent % 3 != 1 {
        epoch = E2;
        server.fence(slot, &name(extent), epoch).await.unwrap();
        confirm(FENCED);
    }
    let holes = [RowRange::new(1, 1)];
    let seal = Seal { rows: RowIndex(3), holes: &holes, crcs: None };
    server.seal(slot, &name(extent), epoch, seal).await.unwrap();
    confirm(SEALED);
    if extent % 3 == 2 {
        server.free(slot, &name(extent), epoch).await.unwrap();
        confirm(FREED);
    }
}

async fn lives(spec: DeviceSpec, done: Done) {
    let server = serve(Device::open(&spec).await.unwrap()).await;
    join_all((0..COLUMNS).map(|extent| life(&server, extent, &done))).await;
}

async fn promises_hold(server: &Server, done: &[u8; COLUMNS as usize]) {
    assert_eq!(server.usage().damaged, 0, "a torn page loses no entry");
    let columns = server.list(ShardId(7));
    for extent in 0..COLUMNS {
        let column = columns.iter().find(|c| c.name == name(extent));
        promises_to(server, extent, column, done[extent as usize]).await;
    }
}

/// Each promise holds from the step that confirmed it until the step that may end it has begun.
async fn promises_to(server: &Server, extent: u64, column: Option<&SlotInfo>, done: u8) {
    let Some(column) = column else {
        let freeing = done >= SEALED && extent % 3 == 2;
        assert!(done < ALLOCATED || freeing, "extent {extent} is gone: step {done}");
        return;
    };
    assert!(done < FREED, "extent {extent} was freed, and is back");
    let (slot, n) = (column.slot, column.name);
    if done >= SEALED {
        assert_eq!((column.state, column.rows), (SlotState::Sealed, RowIndex(3)));
    }
    if done >= FENCED && extent % 3 != 1 {
        let refused = append(server, slot, extent, E1, 5, &[1]).await;
        assert_eq!(refused, Err(ColumnError::Stale { have: E2 }), "a fence is for ever");
    }
    if column.state == SlotState::Sealed {
        let (read, buf) = server.read_verified(slot, &n, RowIndex(0), Buf::alloc(3 * 4096).await).await;
        assert_eq!((read, buf[0], buf[4096], buf[8192]), (Ok(()), 1, 0, 3));
    } else if done >= APPENDED {
        for (row, tag) in [(0, 1), (2, 3)] {
            let (read, buf) = server.read(slot, &n, RowIndex(row), Buf::alloc(4096).await).await;
            assert_eq!((read, buf[0], buf[4095]), (Ok(()), tag, tag), "an acknowledged row");
        }
    }
}

/// Whatever the state, the owner can finish: fence, seal or free everything, and use every slot again.
async fn the_owner_can_finish(server: &Server) {
    let last = Epoch(9);
    for column in server.list(ShardId(7)) {
        server.fence(column.slot, &column.name, last).await.unwrap();
        server.free(column.slot, &column.name, last).await.unwrap();
    }
    assert_eq!(server.usage().free, server.usage().total);
    for extent in 100..100 + server.usage().total as u64 {
        server.allocate(wish(extent)).await.unwrap();
    }
}

/// The states that a crash during [`lives`] may leave, beside what had been confirmed.
fn crashed_lives() -> Vec<([u8; COLUMNS as usize], Image)> {
    let done: Done = Rc::default();
    let of_work = done.clone();
    let work = move |spec| lives(spec, of_work.clone());
    crash_images(formatted(COLUMNS as u32 + 1), work, move || *done.borrow())
}

#[test]
fn every_crash_in_the_life_of_columns_keeps_what_was_confirmed() {
    let states = crashed_lives();
    assert!(states.len() > 1000, "{} states", states.len());
    for (done, image) in states {
        after(image, move |device, _| async move {
            assert!(inspect(&device).await.label.is_ok());
            let server = serve(device.clone()).await;
            promises_hold(&server, &done).await;
            drop(server);
            let report = check(&device, |_, _| ()).await;
            assert!(report.is_clean(), "{done:?}: {report:?}");
            assert!(report.inspection.differing_pages.is_empty(), "opening repairs");
            the_owner_can_finish(&serve(device).await).await;
        });
    }
}

#[test]
fn a_crash_during_the_repair_after_a_crash_loses_nothing_either() {
    // States whose table copies differ are those in which opening writes.
    let differing = crashed_lives().into_iter().filter(|(_, image)| {
        after(image.clone(), |device, _| async move { !inspect(&device).await.differing_pages.is_empty() })
    });
    let mut nested = 0;
    for (done, image) in differing.step_by(5) {
        let work = |spec| async move {
            serve(Device::open(&spec).await.unwrap()).await;
        };
        for (_, again) in crash_images(image, work, || ()) {
            nested += 1;
            after(again, move |device, _| async move { promises_hold(&serve(device).await, &done).await });
        }
    }
    assert!(nested > 500, "{nested} states");
}

#[test]
fn what_a_restart_has_shown_once_no_later_damage_takes_back() {
    for (_, image) in crashed_lives().into_iter().step_by(17) {
        // Opened, the process ends at once, and one copy of the table decays: the other says the same.
        for copy in 0..2 {
            let image = image.clone();
            run(6, move |env| async move {
                let disk = env.node.add_disk_image("d", image, DiskConfig::default());
                let device = Device::open(&disk.spec()).await.unwrap();
                let server = serve(device.clone()).await;
                let shown = server.list(ShardId(7));
                let geometry = server.label().geometry;
                drop(server);
                disk.write_raw(geometry.page_offset(copy, 0), &[0x5a; 4096]);
                let columns = serve(device).await.list(ShardId(7));
                let key = |c: &SlotInfo| (c.slot, c.name, c.state, c.epoch, c.fenced);
                assert!(columns.iter().map(key).eq(shown.iter().map(key)));
            });
        }
    }
}

#[test]
fn a_crash_at_every_event_keeps_what_was_confirmed() {
    let image = formatted(COLUMNS as u32 + 1);
    for event in 1.. {
        let world = World::new(WorldConfig::new(event));
        let node = world.add_node(Ipv4Addr::new(10, 0, 0, 1));
        let disk = node.add_disk_image("d", image.clone(), DiskConfig::default());
        let done: Done = Rc::default();
        let steps = done.clone();
        node.stop_at_event(event, if event % 2 == 0 { Stop::Kill } else { Stop::Power });
        node.start(vec![disk.spec()], move |spec| lives(spec, steps.clone()));
        world.run_until(|| !node.is_running(), Duration::from_secs(60));
        node.stop_at_event(u64::MAX, Stop::Kill);
        let (reached, looked) = (*done.borrow(), Rc::new(Cell::new(false)));
        let flag = looked.clone();
        node.start(vec![disk.spec()], move |spec| {
            let flag = flag.clone();
            async move {
                promises_hold(&serve(Device::open(&spec).await.unwrap()).await, &reached).await;
                flag.set(true);
            }
        });
        world.run_until(|| !node.is_running(), Duration::from_secs(60));
        assert!(looked.get(), "event {event}");
        if (0..COLUMNS).all(|e| reached[e as usize] == if e % 3 == 2 { FREED } else { SEALED }) {
            return assert!(event > 200, "{event}");
        }
    }
}
