//! A node whose devices are pulled, come back, are given up, leave, join and rot, under hosts that write and compare.

use crate::common::*;
use peristyle_base::ShardId;
use peristyle_column::Geometry;
use peristyle_node::{DeviceConfig, Wish};
use peristyle_rt::sim::{DiskConfig, DiskHandle, Rng};
use peristyle_rt::{Duration, ReactorId};
use peristyle_shard::RepairFigures;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

const PIECE: u64 = MIB / 4;
const PIECES: u64 = 64 * MIB / PIECE;

/// A node with devices of so many slots, each a failure domain.
fn rig_of(seed: u64, scheme: &str, slots: &[u32]) -> Rig {
    let mut rig = Rig::new(seed, scheme, 1, 1);
    rig.config.devices.clear();
    rig.disks.clear();
    for (i, &slots) in slots.iter().enumerate() {
        let disk = rig.node.add_disk(&format!("s{i}"), Geometry::bytes_for(slots), DiskConfig::default());
        let mut one = node_config([disk.spec()], 1, rig.config.shard.clone()).devices.remove(0);
        one.id = device_id(i);
        one.domain = peristyle_cluster::DomainId(i as u32);
        rig.config.devices.push(one);
        rig.disks.push(disk);
    }
    run_story(&rig.world, &rig.node, vec![rig.config.clone()], format);
    rig.node.kill();
    rig.config.rebuild_after = Duration::from_secs(2);
    rig
}

fn figures(node: &TestNode) -> RepairFigures {
    node.shard(ShardId(0)).unwrap().repair_figures(peristyle_rt::now())
}

/// Waits until every column is where it should be, and nothing moves any more.
async fn at_rest(node: &TestNode) {
    let (mut calm, mut last) = (0, figures(node));
    for _ in 0..1200 {
        peristyle_rt::sleep(Duration::from_millis(250)).await;
        let now = figures(node);
        let busy = now.lost_columns + now.away_columns + now.draining_columns > 0 || now.working_ns > 0;
        calm = if busy || now.moved_columns != last.moved_columns { 0 } else { calm + 1 };
        last = now;
        if calm == 10 {
            return;
        }
    }
    panic!("never at rest: {last:?}");
}

/// How far devices are from their share of the pool, the furthest of those that serve.
fn unevenness(node: &TestNode) -> f64 {
    let mut views = Vec::new();
    views.extend(node.devices().all().map(|d| d.view(peristyle_shard::AllocClass::User)));
    peristyle_cluster::deviations(&views).map(f64::abs).fold(0.0, f64::max)
}

/// Hosts that write all over the volume, and compare what they read with what they wrote.
#[derive(Clone)]
struct Hosts {
    volume: TestVolume,
    /// What each piece holds.
    salts: Rc<RefCell<Vec<u64>>>,
    stop: Rc<Cell<bool>>,
    running: Rc<Cell<usize>>,
    done: Rc<Cell<u64>>,
}

impl Hosts {
    async fn new(volume: &TestVolume) -> Hosts {
        let salts = (0..PIECES).collect::<Vec<u64>>();
        for piece in 0..PIECES {
            write(volume, piece * PIECE, &fill(PIECE as usize, piece)).await.unwrap();
        }
        let salts = Rc::new(RefCell::new(salts));
        Hosts {
            volume: volume.clone(),
            salts,
            stop: Rc::default(),
            running: Rc::default(),
            done: Rc::default(),
        }
    }

    fn start(&self, hosts: u64) {
        self.stop.set(false);
        self.running.set(hosts as usize);
        for host in 0..hosts {
            let me = self.clone();
            peristyle_rt::spawn(async move {
                let mut rng = Rng::new(host + 1);
                while !me.stop.get() {
                    // Each host has pieces of its own.
                    let piece = rng.below(PIECES / hosts) * hosts + host;
                    me.check(piece).await;
                    let salt = rng.next_u64() | 1 << 40;
                    write(&me.volume, piece * PIECE, &fill(PIECE as usize, salt))
                        .await
                        .expect("no host error");
                    me.salts.borrow_mut()[piece as usize] = salt;
                    me.done.set(me.done.get() + 1);
                    peristyle_rt::sleep(Duration::from_millis(20)).await;
                }
                me.running.set(me.running.get() - 1);
            });
        }
    }

    async fn check(&self, piece: u64) {
        let salt = self.salts.borrow()[piece as usize];
        let data = read(&self.volume, piece * PIECE, PIECE).await.expect("no host error");
        assert!(data == fill(PIECE as usize, salt), "piece {piece} is not what was written");
    }

    async fn finish(&self) {
        self.stop.set(true);
        while self.running.get() > 0 {
            peristyle_rt::sleep(Duration::from_millis(1)).await;
        }
        for piece in 0..PIECES {
            self.check(piece).await;
        }
    }
}

fn pull(disk: &DiskHandle) {
    disk.update_faults(|faults| faults.gone = true);
}

fn plug(disk: &DiskHandle) {
    disk.update_faults(|faults| faults.gone = false);
}

#[test]
fn two_of_eight_unequal_devices_are_pulled_under_verifying_writers() {
    let rig = rig_of(31, "2+2", &[100, 120, 140, 110, 130, 100, 150, 120]);
    let disks = rig.disks.clone();
    rig.run(move |node, volume| {
        let disks = disks.clone();
        async move {
            let hosts = Hosts::new(&volume).await;
            hosts.start(8);
            peristyle_rt::sleep(Duration::from_secs(1)).await;
            [2, 6].iter().for_each(|&d: &usize| pull(&disks[d]));
            peristyle_rt::sleep(Duration::from_secs(5)).await;
            let before = hosts.done.get();
            at_rest_of_rebuild(&node).await;
            assert!(hosts.done.get() > before, "writes go on");
            hosts.finish().await;
            at_rest(&node).await;
            let f = figures(&node);
            assert!(f.remade_columns > 10 && f.lost_columns == 0, "{f:?}");
            assert!(unevenness(&node) <= 0.02, "{}", unevenness(&node));
            // Two more may go now.
            [0, 4].iter().for_each(|&d: &usize| pull(&disks[d]));
            hosts.finish().await;
        }
    });
}

async fn at_rest_of_rebuild(node: &TestNode) {
    for _ in 0..600 {
        peristyle_rt::sleep(Duration::from_millis(100)).await;
        let f = figures(node);
        if f.remade_columns > 0 && f.lost_columns + f.away_columns == 0 {
            return;
        }
    }
    panic!("the rebuild did not end: {:?}", figures(node));
}

#[test]
fn a_pulled_device_that_comes_back_serves_again_and_keeps_nothing_that_is_elsewhere() {
    let rig = rig_of(32, "4+2", &[100; 8]);
    let disks = rig.disks.clone();
    rig.run(move |node, volume| {
        let disks = disks.clone();
        async move {
            let hosts = Hosts::new(&volume).await;
            hosts.start(4);
            // Away for less than the patience: nothing is rebuilt but what it missed.
            pull(&disks[3]);
            peristyle_rt::sleep(Duration::from_secs(1)).await;
            plug(&disks[3]);
            peristyle_rt::sleep(Duration::from_secs(5)).await;
            let short = figures(&node);
            // Away for longer: rebuilt elsewhere, and what it still has is freed when it is back.
            pull(&disks[5]);
            peristyle_rt::sleep(Duration::from_secs(10)).await;
            plug(&disks[5]);
            peristyle_rt::sleep(Duration::from_secs(5)).await;
            hosts.finish().await;
            at_rest(&node).await;
            let long = figures(&node);
            assert!(short.remade_columns < 6, "{short:?}");
            assert!(long.remade_columns > short.remade_columns + 6, "{long:?}");
            assert!(long.leftovers_freed > 0, "{long:?}");
            assert!(unevenness(&node) <= 0.03, "{}", unevenness(&node));
            hosts.finish().await;
        }
    });
    // A start finds each column once, and the same data.
    rig.node.kill();
    rig.run(|node, volume| async move {
        peristyle_rt::sleep(Duration::from_secs(2)).await;
        for piece in 0..PIECES {
            assert!(read(&volume, piece * PIECE, PIECE).await.is_ok());
        }
        assert_eq!(figures(&node).remade_columns, 0);
    });
}

#[test]
fn what_is_in_maintenance_may_be_away_for_long_and_is_rebuilt_when_its_time_is_over() {
    let rig = rig_of(36, "4+2", &[100; 8]);
    let disks = rig.disks.clone();
    rig.run(move |node, volume| {
        let disks = disks.clone();
        async move {
            let hosts = Hosts::new(&volume).await;
            node.set_wish(device_id(3), Wish::Spared);
            // What takes writes on it is replaced by others.
            peristyle_rt::sleep(Duration::from_secs(2)).await;
            let before = figures(&node);
            pull(&disks[3]);
            // Somebody reads from it, and finds out.
            hosts.finish().await;
            peristyle_rt::sleep(Duration::from_secs(60)).await;
            let away = figures(&node);
            assert!(away.away_columns > 3 && away.lost_columns == 0, "{away:?}");
            assert_eq!(away.remade_columns, before.remade_columns, "{away:?}");
            plug(&disks[3]);
            peristyle_rt::sleep(Duration::from_secs(5)).await;
            node.set_wish(device_id(3), Wish::Active);
            at_rest(&node).await;
            assert_eq!(figures(&node).remade_columns, before.remade_columns, "it missed nothing");
            node.set_wish(device_id(3), Wish::Spared);
            pull(&disks[3]);
            hosts.finish().await;
            peristyle_rt::sleep(Duration::from_secs(20)).await;
            node.set_wish(device_id(3), Wish::Active);
            at_rest_of_rebuild(&node).await;
            assert!(figures(&node).remade_columns > before.remade_columns + 3, "{:?}", figures(&node));
            hosts.finish().await;
        }
    });
}

#[test]
fn a_device_leaves_another_joins_and_a_third_is_replaced_while_hosts_write() {
    let rig = rig_of(33, "2+1", &[120, 90, 120, 100, 110, 120, 130]);
    let new = rig.node.add_disk("new", Geometry::bytes_for(140), DiskConfig::default());
    let config = rig.config.clone();
    rig.run(move |node, volume| {
        let (new, config) = (new.clone(), config.clone());
        async move {
            let hosts = Hosts::new(&volume).await;
            hosts.start(4);
            node.set_wish(device_id(1), Wish::Draining);
            at_rest(&node).await;
            let used = |i| node.devices().get(device_id(i)).unwrap().usage().1;
            for _ in 0..40 {
                // What the hosts overwrite goes with checkpoints.
                node.shard(ShardId(0)).unwrap().checkpoint().await.unwrap();
                peristyle_rt::sleep(Duration::from_millis(500)).await;
            }
            assert_eq!(used(1), 0, "{:?}", figures(&node));
            node.set_wish(device_id(1), Wish::Removed);
            // A new one joins, and gets its share.
            let added = DeviceConfig {
                id: device_id(20),
                spec: new.spec(),
                domain: peristyle_cluster::DomainId(20),
                home: ReactorId(0),
                discard: peristyle_column::Discard::Auto,
                wish: Wish::Active,
            };
            let one = peristyle_node::NodeConfig { devices: vec![added.clone()], ..config.clone() };
            format(one).await;
            node.add_device(added).await.unwrap();
            at_rest(&node).await;
            assert!(used(20) > 10, "{}", used(20));
            // Another is given up: at once, whatever it could still do.
            node.set_wish(device_id(4), Wish::Failed);
            peristyle_rt::sleep(Duration::from_millis(1500)).await;
            at_rest_of_rebuild(&node).await;
            hosts.finish().await;
            at_rest(&node).await;
            assert!(unevenness(&node) <= 0.02, "{}", unevenness(&node));
            assert_eq!(figures(&node).lost_columns, 0);
            hosts.finish().await;
        }
    });
}

#[test]
fn bits_flipped_all_over_two_devices_reach_no_host_and_a_scrub_repairs_all() {
    let rig = rig_of(34, "4+2", &[100; 8]);
    let disks = rig.disks.clone();
    rig.run(move |node, volume| {
        let disks = disks.clone();
        async move {
            let hosts = Hosts::new(&volume).await;
            let shard = node.shard(ShardId(0)).unwrap();
            shard.checkpoint().await.unwrap();
            peristyle_rt::sleep(Duration::from_secs(3)).await;
            // In sealed columns: what is open has its checksums in the map, and is read with them.
            let (mut rows, mut columns) = (0, 0);
            for d in [1, 6usize] {
                let server = node.columns().server(device_id(d)).unwrap();
                for slot in server.list(ShardId(0)) {
                    if slot.state != peristyle_column::SlotState::Sealed {
                        continue;
                    }
                    columns += 1;
                    for row in (0..slot.rows.0).step_by(5) {
                        let at = server.label().geometry.row_offset(slot.slot, row);
                        disks[d].flip_bit(at + u64::from(row * 7 % 4096), row as u8 % 8);
                        rows += 1;
                    }
                }
            }
            assert!(columns > 4, "{columns}");
            hosts.finish().await;
            shard.scrub_now();
            while !shard.is_scrubbed() {
                peristyle_rt::sleep(Duration::from_millis(100)).await;
            }
            at_rest(&node).await;
            let f = figures(&node);
            assert_eq!((f.damaged_rows, f.damaged_columns, f.remade_columns), (rows, columns, columns));
            hosts.finish().await;
            shard.scrub_now();
            while !shard.is_scrubbed() {
                peristyle_rt::sleep(Duration::from_millis(100)).await;
            }
            assert_eq!(figures(&node).damaged_rows, rows, "nothing is damaged any more");
        }
    });
}

#[test]
fn a_node_that_dies_in_the_middle_of_a_rebuild_goes_on_with_it() {
    let mut rig = rig_of(35, "4+2", &[100; 8]);
    rig.config.shard.background = peristyle_shard::Pace::new(40 << 20);
    rig.run(|node, volume| async move {
        Hosts::new(&volume).await;
        node.shard(ShardId(0)).unwrap().checkpoint().await.unwrap();
        peristyle_rt::sleep(Duration::from_secs(3)).await;
    });
    rig.config.devices[2].wish = Wish::Failed;
    for (round, after) in [300, 700, 900, 1300].into_iter().enumerate() {
        rig.node.kill();
        rig.run(move |node, volume| async move {
            peristyle_rt::sleep(Duration::from_millis(after)).await;
            if round == 0 {
                assert!(figures(&node).lost_columns > 0, "it goes on while we look");
            }
            assert!(read(&volume, 0, PIECE).await.unwrap() == fill(PIECE as usize, 0));
        });
    }
    rig.node.kill();
    rig.run(|node, volume| async move {
        peristyle_rt::sleep(Duration::from_secs(2)).await;
        at_rest(&node).await;
        for piece in 0..PIECES {
            assert!(read(&volume, piece * PIECE, PIECE).await.unwrap() == fill(PIECE as usize, piece));
        }
        let filling: u32 = node.columns().servers().iter().map(|s| s.usage().filling).sum();
        assert_eq!(filling, 0);
    });
}
