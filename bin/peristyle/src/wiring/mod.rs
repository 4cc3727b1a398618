//! Where the program meets the data plane: everything here ends in `node` and `column`.

mod admin;
mod at_rest;
mod busy;
mod devices;
mod extents;
pub mod found;
mod member;
mod offline;
mod planning;
mod serve;
mod serve_store;
mod stats;
mod store;
mod target;

use crate::failure::Failure;
use crate::render::Ready;
use peristyle_base::{GIB, MIB, NodeId, Scheme};
use peristyle_cluster::TooFewPolicy;
use peristyle_column::{Discard, Finding, Severity};
use peristyle_control::config::{self, Config, HugePages, ListenAddr, Poll};
use peristyle_rt::Duration;
use peristyle_rt::device::WriteCache;
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;

/// A development store, as the command line asked for it.
#[derive(Clone, Debug)]
pub struct DevPlan {
    pub dir: PathBuf,
    pub devices: DevDevices,
    pub scheme: Scheme,
    /// Created when they are not there.
    pub volumes: Vec<(String, u64)>,
    /// Whether `volumes` is the default: then a store that has volumes gets no other.
    pub default_volumes: bool,
    pub lba_bytes: u32,
    pub listen: SocketAddr,
    pub advertise: Option<SocketAddr>,
    pub nbd: Option<ListenAddr>,
    pub reactors: u32,
    pub cores: Vec<u32>,
    pub poll: Poll,
    pub admin: PathBuf,
    pub state_file: PathBuf,
}

/// What a node of a development cluster may do that others may not.
#[derive(Clone, Debug)]
pub struct DevNode {
    /// Of files that it makes.
    pub device_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DevDevices {
    /// `device-0`, `device-1`, … in the store's folder.
    Files {
        count: u16,
        bytes: u64,
    },
    Paths(Vec<PathBuf>),
    /// So many bytes each, blank at each start.
    Memory(Vec<u64>),
}

/// What offline tools say of one device.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DeviceReport {
    pub path: PathBuf,
    pub uuid: String,
    pub cluster: String,
    /// Version of the disk format.
    pub format: u32,
    pub bytes: u64,
    pub slots_total: u32,
    pub slots_free: u32,
    pub slots_open: u32,
    pub slots_sealed: u32,
    pub slots_filling: u32,
    pub columns_checked: u64,
    pub rows_checked: u64,
    /// In words, each with where it is.
    pub problems: Vec<String>,
    /// What a crash leaves behind and the next start puts right.
    pub notes: Vec<String>,
    /// The same for machines, of `device check`.
    pub findings: Vec<FindingReport>,
}

#[derive(Clone, Debug, Serialize)]
pub struct FindingReport {
    pub kind: &'static str,
    pub damage: bool,
    pub slot: Option<u32>,
    pub text: String,
}

impl FindingReport {
    fn of(finding: &Finding) -> FindingReport {
        FindingReport {
            kind: finding.kind(),
            damage: finding.severity() == Severity::Damage,
            slot: finding.slot().map(|slot| slot.0),
            text: finding.to_string(),
        }
    }
}

/// What a running node tells the program, on the program's thread.
pub trait Observer {
    fn ready(&mut self, ready: &Ready);
    /// About once a second.
    fn status(&mut self, line: &crate::render::StatusLine);
}

pub use at_rest::{ExtentDump, PoolCheck, Source, dump_extent, pool_check, state_file_in};
pub use offline::{device_check, device_format, device_inspect, progress_bar};
pub use serve_store::run as serve_store;

/// What `dev` and `node` come down to.
#[derive(Clone, Debug)]
pub struct Plan {
    pub state_file: PathBuf,
    pub admin: PathBuf,
    pub devices: Vec<PlannedDevice>,
    /// Blank devices are formatted; a production node refuses them.
    pub format_blank: bool,
    pub pool_name: String,
    pub scheme: Scheme,
    pub too_few: TooFewPolicy,
    pub shards: usize,
    pub nqn: Option<String>,
    pub volumes: Vec<(String, u64)>,
    pub default_volumes: bool,
    pub lba_bytes: u32,
    pub listen: Vec<SocketAddr>,
    pub advertise: Option<SocketAddr>,
    pub hosts: config::Hosts,
    /// Commands for volumes of other nodes are handed on.
    pub forward: bool,
    pub nbd: Vec<ListenAddr>,
    pub reactors: usize,
    pub cores: Vec<u32>,
    pub poll: Poll,
    /// Bytes of I/O buffers per reactor.
    pub buffers: u64,
    pub hugepages: HugePages,
    pub map_cache: u64,
    /// Blocks of zeros that hosts write need no space.
    pub detect_zeroes: bool,
    /// Bytes of log after which a shard takes a checkpoint.
    pub checkpoint_log: u64,
    /// Bytes per second of rebuild, rebalance and scrub, over all shards.
    pub background_bytes_s: u64,
    pub rebuild_after: Duration,
    pub scrub_period: Duration,
    /// Faults may be injected.
    pub development: bool,
    /// What makes the node one of several.
    pub cluster: Option<config::ClusterConfig>,
    /// Where a node of a cluster keeps who it is.
    pub data_dir: PathBuf,
}

#[derive(Clone, Debug)]
pub struct PlannedDevice {
    /// Of a device in memory, its name.
    pub path: PathBuf,
    /// Bytes of a device in memory.
    pub memory: Option<u64>,
    /// A missing file is created with this size.
    pub create_bytes: Option<u64>,
    pub write_cache: WriteCache,
    pub discard: Discard,
    pub domain: Option<u32>,
}

impl Plan {
    /// Where hosts are told to come.
    fn portals(&self) -> Vec<SocketAddr> {
        self.advertise.map_or_else(|| self.listen.clone(), |address| vec![address])
    }

    /// Which node of a cluster it is.
    pub fn node_id(&self) -> Option<NodeId> {
        self.cluster.as_ref().map(|cluster| NodeId(cluster.node))
    }
}

fn days(count: u32) -> Duration {
    Duration::from_secs(u64::from(count) * 86_400)
}

fn cores_of_this_machine() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// Creates or opens the store, serves it until SIGINT or SIGTERM, and stops cleanly.
pub fn dev(plan: &DevPlan, observer: &mut dyn Observer) -> Result<(), Failure> {
    let dir = plan.dir.display();
    std::fs::create_dir_all(&plan.dir).map_err(|e| Failure::failed(format!("{dir}: {e}")))?;
    // Sockets have short paths: an absolute one may not fit where a relative one does.
    let file = |path: PathBuf, create_bytes| PlannedDevice {
        path,
        memory: None,
        create_bytes,
        // Development data need not outlive a power cut of this machine; kill -9 it does.
        write_cache: WriteCache::Protected,
        discard: Discard::Auto,
        domain: None,
    };
    let devices = match &plan.devices {
        DevDevices::Files { count, bytes } => {
            (0..*count).map(|i| file(plan.dir.join(format!("device-{i}")), Some(*bytes))).collect()
        }
        DevDevices::Paths(paths) => paths
            .iter()
            .map(|path| PlannedDevice { write_cache: WriteCache::Auto, ..file(path.clone(), None) })
            .collect(),
        DevDevices::Memory(sizes) => (0..)
            .zip(sizes)
            .map(|(i, bytes)| PlannedDevice {
                memory: Some(*bytes),
                ..file(format!("memory-{i}").into(), None)
            })
            .collect(),
    };
    if matches!(plan.devices, DevDevices::Memory(_)) {
        store::forget(&plan.state_file)?;
    }
    let pool = config::PoolConfig::default();
    serve::run(
        Plan {
            state_file: plan.state_file.clone(),
            admin: plan.admin.clone(),
            devices,
            format_blank: true,
            pool_name: "dev".into(),
            scheme: plan.scheme,
            too_few: TooFewPolicy::Refuse,
            shards: 4,
            nqn: None,
            volumes: plan.volumes.clone(),
            default_volumes: plan.default_volumes,
            lba_bytes: plan.lba_bytes,
            listen: vec![plan.listen],
            advertise: plan.advertise,
            hosts: config::Hosts::Any,
            forward: false,
            nbd: plan.nbd.clone().into_iter().collect(),
            reactors: (plan.reactors as usize).max(1),
            cores: plan.cores.clone(),
            poll: plan.poll,
            buffers: 144 * MIB,
            hugepages: HugePages::Auto,
            map_cache: GIB,
            detect_zeroes: true,
            checkpoint_log: GIB,
            background_bytes_s: u64::from(pool.background_mib_s) * MIB,
            rebuild_after: Duration::from_secs(pool.rebuild_after_s.into()),
            scrub_period: days(pool.scrub_days),
            development: true,
            cluster: None,
            data_dir: plan.dir.clone(),
        },
        observer,
    )
}

/// Serves what the configuration says until SIGINT or SIGTERM, and stops cleanly.
/// Of a development cluster, missing files are made, blank ones formatted, and faults may be injected.
pub fn node(
    config: &Config,
    development: Option<DevNode>,
    observer: &mut dyn Observer,
) -> Result<(), Failure> {
    let create_bytes = development.as_ref().map(|d| d.device_bytes);
    let development = development.is_some();
    let devices = config
        .devices
        .iter()
        .map(|d| PlannedDevice {
            path: d.path.clone(),
            memory: None,
            create_bytes,
            write_cache: match d.write_cache {
                config::WriteCache::Auto => WriteCache::Auto,
                config::WriteCache::Protected => WriteCache::Protected,
            },
            discard: match d.discard {
                config::Discard::Auto => Discard::Auto,
                config::Discard::On => Discard::On,
                config::Discard::Off => Discard::Off,
            },
            domain: d.domain,
        })
        .collect();
    for dir in [Some(config.node.data_dir.as_path()), config.node.admin_socket.parent()].into_iter().flatten()
    {
        std::fs::create_dir_all(dir).map_err(|e| Failure::failed(format!("{}: {e}", dir.display())))?;
    }
    let reactors = match (config.reactors.count, config.reactors.cores.len()) {
        (0, 0) => cores_of_this_machine(),
        (0, cores) => cores,
        (count, _) => count as usize,
    };
    serve::run(
        Plan {
            state_file: config.state_file(),
            admin: config.node.admin_socket.clone(),
            devices,
            format_blank: development,
            pool_name: config.pool.name.clone(),
            scheme: config.pool.scheme,
            too_few: config.pool.too_few_domains,
            shards: config.node.shards as usize,
            nqn: config.nvme.nqn.clone(),
            volumes: Vec::new(),
            default_volumes: true,
            lba_bytes: config.volumes.lba_bytes,
            listen: config.nvme.listen.clone(),
            advertise: config.nvme.advertise,
            hosts: config.nvme.hosts.clone(),
            forward: config.nvme.forward,
            nbd: config.nbd.listen.clone(),
            reactors,
            cores: config.reactors.cores.clone(),
            poll: config.reactors.poll,
            buffers: config.memory.buffers.0,
            hugepages: config.memory.hugepages,
            map_cache: config.memory.map_cache.0,
            detect_zeroes: config.pool.detect_zeroes,
            checkpoint_log: config.pool.checkpoint_log.0,
            background_bytes_s: u64::from(config.pool.background_mib_s) * MIB,
            rebuild_after: Duration::from_secs(config.pool.rebuild_after_s.into()),
            scrub_period: days(config.pool.scrub_days),
            development,
            cluster: config.cluster.clone(),
            data_dir: config.node.data_dir.clone(),
        },
        observer,
    )
}
