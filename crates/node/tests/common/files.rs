//! One node over files, on the system's own TCP, with everything in one reactor.

use super::{NQN, TestNode, format, node_config, spec, target_config};
use peristyle_bench::host::HostOptions;
use peristyle_cluster::MemoryShardStore;
use peristyle_node::{Node, VolumeSpec, seeds};
use peristyle_nvme::subsystem::Hosts;
use peristyle_rt::device::WriteCache;
use peristyle_rt::{Addr, DeviceSpec, Duration};
use peristyle_shard::ShardConfig;
use std::path::Path;

/// Of the one volume.
pub const VOLUME_BYTES: u64 = 32 << 20;

/// Sparse files of 2 GiB, formatted anew, in a folder of that name.
pub async fn start(name: &str, devices: usize, scheme: &str) -> (TestNode, Addr) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let device = |i| DeviceSpec::Path {
        path: folder.join(format!("device-{i}")),
        create_bytes: Some(2 << 30),
        write_cache: WriteCache::Protected,
    };
    let shard = ShardConfig {
        ready_extents: 8,
        // A machine that is busy is not to be taken for a device that stalls.
        append_limit_min: Duration::from_secs(60),
        read_limit_min: Duration::from_secs(60),
        ..ShardConfig::new(scheme.parse().unwrap())
    };
    let config = node_config((0..devices).map(device), 1, shard);
    format(config.clone()).await;
    let node = Node::start(seeds(&config, 1, &MemoryShardStore::default()).remove(0), true).await;
    let listen = Addr::Tcp("127.0.0.1:0".parse().unwrap());
    let volumes = vec![VolumeSpec { bytes: VOLUME_BYTES, ..spec() }];
    let addr = node.start_target(target_config(listen, Hosts::Any, volumes)).await.unwrap();
    (node, addr)
}

pub fn host_options(digests: bool) -> HostOptions {
    let mut options = HostOptions::new(super::ALICE, NQN);
    (options.header_digest, options.data_digest) = (digests, digests);
    options
}
