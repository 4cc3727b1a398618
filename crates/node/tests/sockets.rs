//! The target over the system's own TCP, in every way in which sockets receive and send.

use peristyle_base::{DeviceId, LayerId, NodeId, ShardId, Uuid};
use peristyle_bench::host::{Host, HostOptions, Queue};
use peristyle_cluster::{DomainId, MemoryShardStore};
use peristyle_column::FormatOptions;
use peristyle_node::{DeviceConfig, Node, NodeConfig, TargetConfig, VolumeSpec, seeds};
use peristyle_nvme::QpairLimits;
use peristyle_nvme::subsystem::Hosts;
use peristyle_nvme::wire::fabrics::Nqn;
use peristyle_rt::device::WriteCache;
use peristyle_rt::{
    Addr, Buf, Device, DeviceSpec, Duration, ReactorId, Receive, RuntimeConfig, ZeroCopy, block_on, join_all,
    random_below,
};
use peristyle_shard::ShardConfig;
use std::rc::Rc;

const NQN: &str = "nqn.2026-01.io.peristyle:pool";
const VOLUME_BYTES: u64 = 32 << 20;
/// Blocks of each of the tasks that write at the same time.
const SHARE: u64 = 512;
const TASKS: u64 = 8;
const ROUNDS: u64 = 40;

async fn start(name: &str) -> (Rc<Node<MemoryShardStore>>, Addr) {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let cluster = Uuid::from_random([9; 16]);
    let mut devices = Vec::new();
    for i in 0..2u32 {
        let id: DeviceId = Uuid::from_random([i as u8 + 1; 16]);
        let path = folder.join(format!("device-{i}"));
        let spec = DeviceSpec::Path { path, create_bytes: Some(2 << 30), write_cache: WriteCache::Protected };
        let disk = Device::open(&spec).await.unwrap();
        let options = FormatOptions { cluster, device: id, force: true };
        peristyle_column::format(&disk, options).await.unwrap();
        devices.push(DeviceConfig { id, spec, domain: DomainId(i), home: ReactorId(0) });
    }
    let shards = vec![(ShardId(0), ReactorId(0))];
    let scheme = "1+1".parse().unwrap();
    // A machine that is busy is not to be taken for a device that stalls.
    let shard = ShardConfig { append_limit_min: Duration::from_secs(60), ..ShardConfig::new(scheme) };
    let config = NodeConfig { node: NodeId(0), cluster, devices, shards, shard, development: false };
    let node = Node::start(seeds(&config, 1, &MemoryShardStore::default()).remove(0), true).await;
    let volume = VolumeSpec {
        name: "v".into(),
        nsid: 1,
        uuid: Uuid::from_random([1; 16]),
        nguid: [1; 16],
        bytes: VOLUME_BYTES,
        lba_bytes: 4096,
        shard: ShardId(0),
        layer: LayerId(1),
    };
    let target = TargetConfig {
        listen: Addr::Tcp("127.0.0.1:0".parse().unwrap()),
        portals: Vec::new(),
        nqn: Nqn::new(NQN).unwrap(),
        serial: "0123456789".into(),
        hosts: Hosts::Any,
        volumes: vec![volume],
        limits: QpairLimits::default(),
    };
    let addr = node.start_target(target).await.unwrap();
    (node, addr)
}

fn byte(salt: u64, i: usize) -> u8 {
    ((i as u64 * 31 + salt * 17) % 251) as u8
}

/// Writes and reads back, in sizes from one block to half a MiB.
async fn write_and_read(queue: Queue, task: u64) {
    for round in 0..ROUNDS {
        let most = [1, 4, 32, 128][random_below(4) as usize];
        let blocks = 1 + random_below(most);
        let at = task * SHARE + random_below(SHARE - blocks);
        let bytes = blocks as usize * 4096;
        let salt = task * ROUNDS + round;
        let mut data = Buf::alloc(bytes).await;
        data.iter_mut().enumerate().for_each(|(i, b)| *b = byte(salt, i));
        queue.write(1, at, blocks as u32, data.freeze()).await.unwrap();
        let back = queue.read(1, at, blocks as u32, Buf::alloc(bytes).await).await.unwrap();
        assert!(back.iter().enumerate().all(|(i, &b)| b == byte(salt, i)), "{blocks} blocks at {at}");
    }
}

fn use_a_target(receive: Receive, zero_copy: ZeroCopy, digests: bool) {
    block_on(RuntimeConfig { receive, zero_copy, ..RuntimeConfig::default() }, async move {
        let (node, addr) = start(&format!("sockets-{receive:?}-{zero_copy:?}-{digests}")).await;
        let mut options = HostOptions::new("nqn.2026-01.io.peristyle:alice", NQN);
        (options.header_digest, options.data_digest) = (digests, digests);
        let host = Host::connect(&addr, &options, 2).await.unwrap();
        let tasks = (0..TASKS).map(|task| write_and_read(host.io[task as usize % 2].clone(), task));
        join_all(tasks).await;
        host.close();
        node.stop();
    });
}

#[test]
fn what_is_written_is_read_back_however_sockets_receive_and_send_with_and_without_digests() {
    for digests in [false, true] {
        use_a_target(Receive::Ring, ZeroCopy::Never, digests);
        use_a_target(Receive::Ring, ZeroCopy::Always(1), digests);
        use_a_target(Receive::Calls, ZeroCopy::Never, digests);
        use_a_target(Receive::Calls, ZeroCopy::Always(4096), digests);
    }
}
