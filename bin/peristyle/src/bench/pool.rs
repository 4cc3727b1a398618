//! A pool of memory devices in this process, with one shard.

use crate::failure::Failure;
use peristyle_base::units::format_bytes;
use peristyle_base::{BLOCK_BYTES, COLUMN_ROWS, NodeId, Scheme, ShardId, Uuid};
use peristyle_bench::random::Random;
use peristyle_cluster::{BoxedStore, DomainId, MemoryShardStore};
use peristyle_column::{FormatOptions, Server, ServerConfig, format};
use peristyle_node::NodeShard;
use peristyle_node::columns::NodeColumns;
use peristyle_node::devices::{DeviceTable, SharedDevice};
use peristyle_node::message::NodeBus;
use peristyle_rt::{Buf, Device, DeviceSpec, ReactorId, RuntimeConfig, View, now};
use peristyle_shard::ShardConfig;
use peristyle_shard::frame::Layout;
use std::rc::Rc;
use std::time::Duration;

/// No device goes away here.
const REBUILD_AFTER: Duration = Duration::from_secs(3600);
const SHARD: ShardId = ShardId(0);
/// Blocks of a full frame of users' writes.
const FULL_BLOCKS: usize = 240;

pub struct Pool {
    pub columns: Rc<NodeColumns>,
    pub shard: NodeShard,
    pub scheme: Scheme,
    /// Blocks that users can store.
    pub capacity: u64,
}

/// What the reactor of such a pool needs.
pub fn runtime() -> RuntimeConfig {
    let mut config = RuntimeConfig::small();
    config.buffers.counts = [8192, 256, 64, 64, 64, 24];
    config
}

impl Pool {
    /// As many devices as the scheme has columns.
    pub async fn new(device_bytes: u64, config: ShardConfig) -> Pool {
        let scheme = config.scheme;
        let count = scheme.width();
        let id = |i: usize| Uuid::from_random([i as u8 + 1; 16]);
        let cluster = Uuid::from_random([99; 16]);
        let shared = |i: usize| SharedDevice::new(id(i), DomainId(i as u32), ReactorId(0), String::new());
        let table = DeviceTable::new((0..count).map(shared).collect());
        let port = peristyle_rt::mesh(1, 16).pop().expect("one");
        let columns = Rc::new(NodeColumns::new(table, REBUILD_AFTER, Rc::new(NodeBus::new(port.attach()))));
        let mut slots = 0;
        for i in 0..count {
            let device = Device::open(&DeviceSpec::Memory { bytes: device_bytes }).await.expect("memory");
            format(&device, FormatOptions { cluster, device: id(i), force: false }).await.expect("blank");
            let server = Server::open(device, cluster, ServerConfig::default()).await.expect("formatted");
            server.set_reserve(SHARD, peristyle_node::devices::reserve(server.usage().total, 1));
            columns.publish_usage(&server);
            slots = server.usage().total - server.usage().reserved;
            columns.add_server(server);
            columns.table().get(id(i)).expect("listed").set_open();
        }
        let store = BoxedStore::new(MemoryShardStore::default());
        let (shard, _) = columns.take_up(SHARD, NodeId(0), config, store).await.expect("a new shard");
        let capacity = u64::from(slots) * extent_blocks(scheme);
        Pool { columns, shard, scheme, capacity }
    }

    pub fn counter(&self, name: &str) -> u64 {
        let counters = self.shard.stats_snapshot(now()).counters;
        counters.iter().find(|c| c.0 == name).map_or(0, |c| c.1)
    }

    /// Refuses what does not fit, with some room for what waits to come back.
    pub fn expect_room(&self, blocks: u64) -> Result<(), Failure> {
        let bytes = |blocks: u64| format_bytes(blocks * BLOCK_BYTES as u64);
        match blocks <= self.capacity * 9 / 10 {
            true => Ok(()),
            false => Err(Failure::usage(format!(
                "{} of data do not fit into a pool for {}: give --device-size",
                bytes(blocks),
                bytes(self.capacity)
            ))),
        }
    }
}

/// Users' blocks that an extent holds in full frames.
pub fn extent_blocks(scheme: Scheme) -> u64 {
    let rows = Layout::space(FULL_BLOCKS, scheme) / scheme.width();
    (COLUMN_ROWS as usize * FULL_BLOCKS / rows) as u64
}

pub async fn random_view(blocks: usize) -> View {
    let mut buf = Buf::alloc(blocks * BLOCK_BYTES).await;
    let mut random = Random::new(0x9E37_79B9_7F4A_7C15);
    buf.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.next_u64().to_le_bytes()));
    buf.freeze()
}
