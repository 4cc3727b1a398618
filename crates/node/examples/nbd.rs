//! One volume over NBD on file devices, without a control plane: for trying clients. The volume is new each time.
//!
//! `cargo run --release -p peristyle-node --example nbd <folder> <ip:port | socket path>`

use peristyle_base::{LayerId, NodeId, ShardId, Uuid};
use peristyle_cluster::{DomainId, MemoryShardStore};
use peristyle_column::FormatOptions;
use peristyle_node::{DeviceConfig, NbdConfig, Node, NodeConfig, VolumeSpec, Wish, seeds};
use peristyle_rt::device::WriteCache;
use peristyle_rt::{Addr, Device, DeviceSpec, Duration, ReactorId, RuntimeConfig};
use peristyle_shard::ShardConfig;

const DEVICES: usize = 4;
const DEVICE_BYTES: u64 = 2 << 30;
const VOLUME_BYTES: u64 = 1 << 30;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, listen] = &args[..] else {
        eprintln!("usage: nbd <folder> <ip:port | socket path>");
        std::process::exit(2);
    };
    let addr = listen.parse().map_or_else(|_| Addr::Unix(listen.into()), Addr::Tcp);
    let devices = (0..DEVICES).map(|i| DeviceConfig {
        id: Uuid::from_random([i as u8 + 1; 16]),
        spec: DeviceSpec::Path {
            path: format!("{folder}/device-{i}").into(),
            create_bytes: Some(DEVICE_BYTES),
            write_cache: WriteCache::Auto,
        },
        domain: DomainId(i as u32),
        home: ReactorId(0),
        wish: Wish::Active,
        discard: peristyle_column::Discard::Auto,
    });
    let config = NodeConfig {
        node: NodeId(0),
        cluster: Uuid::from_random([9; 16]),
        devices: devices.collect(),
        shards: vec![(ShardId(0), ReactorId(0))],
        shard: ShardConfig::new("2+1".parse().expect("a scheme")),
        rebuild_after: Duration::from_secs(300),
        development: true,
    };
    let runtime = RuntimeConfig { signals: true, ..RuntimeConfig::default() };
    peristyle_rt::block_on(runtime, serve(config, addr));
}

async fn serve(config: NodeConfig, addr: Addr) {
    for DeviceConfig { id: device, spec, .. } in &config.devices {
        let disk = Device::open(spec).await.expect("a device");
        let options = FormatOptions { cluster: config.cluster, device: *device, force: true };
        peristyle_column::format(&disk, options).await.expect("formatted");
    }
    let seed = seeds(&config, 1, &MemoryShardStore::default()).remove(0);
    let node = Node::start(seed, true).await;
    let spec = VolumeSpec {
        name: "demo".into(),
        nsid: 1,
        uuid: Uuid::default(),
        nguid: [0; 16],
        bytes: VOLUME_BYTES,
        lba_bytes: 4096,
        shard: ShardId(0),
        layer: LayerId(1),
        read_only: false,
    };
    let volume = node.volume(&spec).expect("the shard has a home");
    volume.ensure_layer(VOLUME_BYTES / 4096).await.expect("room for the map");
    node.set_exports([spec]);
    let addrs = node.start_nbd(NbdConfig::new(vec![addr])).await.expect("the address is free");
    println!("listens on {}", addrs[0]);
    peristyle_rt::shutdown_requested().await;
    node.stop_nbd().await;
    node.stop();
}
