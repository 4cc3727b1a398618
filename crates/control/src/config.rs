//! The configuration of `peristyle node --config FILE`: TOML, one struct, unknown keys are errors. The commented
//! sample is `deploy/peristyle.toml`; a test holds it equal to the defaults here.
//!
//! What lives longer than a start (volumes, the shards' number) is not configured but kept in the store.

use crate::desired::{check_name, check_nqn};
use crate::serial::text;
use crate::token::{Token, hide_secrets};
use peristyle_base::units::{format_bytes, parse_bytes};
use peristyle_base::{GIB, MIB, Scheme};
use peristyle_cluster::TooFewPolicy;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

/// A size in bytes; written as a number or as text such as `256MiB`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Bytes(pub u64);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Bytes, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a size: a number of bytes, or text such as \"256MiB\"")]
        enum Raw {
            Number(u64),
            Text(String),
        }
        let bad = |t| {
            serde::de::Error::custom(format!("`{t}` is not a size: write bytes, or text such as \"256MiB\""))
        };
        match Raw::deserialize(d)? {
            Raw::Number(n) => Ok(Bytes(n)),
            Raw::Text(t) => parse_bytes(&t).map(Bytes).ok_or_else(|| bad(t)),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub node: NodeConfig,
    pub nvme: NvmeConfig,
    pub nbd: NbdConfig,
    pub reactors: ReactorsConfig,
    pub memory: MemoryConfig,
    pub pool: PoolConfig,
    /// At least one, but for a node of a cluster, which may have none and vote; there is no default.
    #[serde(rename = "device")]
    pub devices: Vec<DeviceConfig>,
    pub volumes: VolumesConfig,
    pub limits: LimitsConfig,
    /// Of a node that is one of several; `None`: alone.
    pub cluster: Option<ClusterConfig>,
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// Folder of the state file (`state.redb`). Default /var/lib/peristyle.
    pub data_dir: PathBuf,
    /// Unix socket that `peristyle volume`, `stats` and the like talk to. Default /run/peristyle/admin.sock.
    pub admin_socket: PathBuf,
    /// Logs of the store, fixed when it is created; a volume lives in one. Default 8, 1..=64.
    pub shards: u32,
}

impl Default for NodeConfig {
    fn default() -> NodeConfig {
        let (data_dir, admin_socket) = ("/var/lib/peristyle".into(), "/run/peristyle/admin.sock".into());
        NodeConfig { data_dir, admin_socket, shards: 8 }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NvmeConfig {
    /// Addresses for NVMe/TCP. Default 127.0.0.1:4420, 1..=16 of them.
    pub listen: Vec<SocketAddr>,
    /// What the discovery log says when hosts reach the node by another address. Default: the first of `listen`.
    pub advertise: Option<SocketAddr>,
    /// The subsystem's name, fixed when the store is created. Default: made from the store's UUID.
    pub nqn: Option<String>,
    /// Who may connect. Default "any".
    pub hosts: Hosts,
    /// In a cluster: hosts that have no connection to the node that owns a volume reach it here as well, and this node hands their commands
    /// on. Default false: they have to reach the owner.
    pub forward: bool,
}

impl Default for NvmeConfig {
    fn default() -> NvmeConfig {
        let listen = vec![SocketAddr::from(([127, 0, 0, 1], 4420))];
        NvmeConfig { listen, advertise: None, nqn: None, hosts: Hosts::Any, forward: false }
    }
}

/// `"any"`, or a list of host NQNs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Hosts {
    #[default]
    Any,
    Only(BTreeSet<String>),
}

impl<'de> Deserialize<'de> for Hosts {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Hosts, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "\"any\", or a list of host NQNs")]
        enum Raw {
            Word(String),
            List(BTreeSet<String>),
        }
        match Raw::deserialize(d)? {
            Raw::Word(word) if word == "any" => Ok(Hosts::Any),
            Raw::Word(word) => Err(serde::de::Error::custom(format!(
                "`{word}` is neither \"any\" nor a list: write [\"{word}\"] to allow this host alone"
            ))),
            Raw::List(list) => Ok(Hosts::Only(list)),
        }
    }
}

impl Hosts {
    pub fn allows(&self, host_nqn: &str) -> bool {
        match self {
            Hosts::Any => true,
            Hosts::Only(list) => list.contains(host_nqn),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NbdConfig {
    /// Addresses of the NBD front end, `IP:PORT` or `unix:/path`. Default none, at most 16.
    pub listen: Vec<ListenAddr>,
}

/// `IP:PORT`, or `unix:/path`.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum ListenAddr {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for ListenAddr {
    type Err = String;
    fn from_str(s: &str) -> Result<ListenAddr, String> {
        match s.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') || path.starts_with("./") => {
                Ok(ListenAddr::Unix(path.into()))
            }
            Some(path) => Err(format!("`{path}`: write a path that starts with / or ./ after `unix:`")),
            None => s.parse().map(ListenAddr::Tcp).map_err(|_| {
                format!("`{s}` is not an address: write IP:PORT, such as 127.0.0.1:10809, or unix:/path")
            }),
        }
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddr::Tcp(addr) => addr.fmt(f),
            ListenAddr::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl<'de> Deserialize<'de> for ListenAddr {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<ListenAddr, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What a reactor does when there is nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Poll {
    /// Polls always: shortest latency, a whole core per reactor.
    Busy,
    /// Polls while there is work and a little longer, then sleeps.
    #[default]
    Adaptive,
    /// Sleeps at once.
    Sleep,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReactorsConfig {
    /// How many. Default 0: as many as `cores` lists, or else one per core of the machine; at most 256.
    pub count: u32,
    /// Cores they are pinned to, in turn. Default none: not pinned.
    pub cores: Vec<u32>,
    /// Default "adaptive".
    pub poll: Poll,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HugePages {
    /// When the system has them.
    #[default]
    Auto,
    Off,
    /// Without them the node does not start.
    Require,
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryConfig {
    /// I/O buffers of each reactor. Default 256MiB, 32MiB..=64GiB.
    pub buffers: Bytes,
    /// Default "auto".
    pub hugepages: HugePages,
    /// Cached map blocks of the whole node, spread over its shards. Default 256MiB, 16MiB..=1TiB.
    pub map_cache: Bytes,
}

impl Default for MemoryConfig {
    fn default() -> MemoryConfig {
        MemoryConfig { buffers: Bytes(256 * MIB), hugepages: HugePages::Auto, map_cache: Bytes(256 * MIB) }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolConfig {
    /// Default "main".
    pub name: String,
    /// k+m with k in 1..=16 and m in 0..=4. Default "4+2". A change holds for new data.
    #[serde(with = "text")]
    pub scheme: Scheme,
    /// "refuse" (default) or "continue": what to do with fewer than m+1 failure domains.
    #[serde(with = "text")]
    pub too_few_domains: TooFewPolicy,
    /// Blocks of zeros that hosts write need no space. Default true.
    pub detect_zeroes: bool,
    /// Bytes of log after which a shard takes a checkpoint: a start replays about so much. Default 1GiB, 16MiB..=64GiB.
    pub checkpoint_log: Bytes,
    /// MiB per second that rebuild, rebalance, scrub and collection read and write, over all of the node's shards; collection
    /// goes beyond it when there is little room. Default 512, 1..=1048576.
    pub background_mib_s: u32,
    /// Seconds after which a device that vanished is rebuilt on the others. Default 300, 10..=2592000.
    pub rebuild_after_s: u32,
    /// Days in which a scrub reads everything once. Default 14, 1..=365.
    pub scrub_days: u32,
}

impl Default for PoolConfig {
    fn default() -> PoolConfig {
        let scheme = Scheme::new(4, 2).expect("a valid scheme");
        let too_few_domains = TooFewPolicy::Refuse;
        PoolConfig {
            name: "main".into(),
            scheme,
            too_few_domains,
            detect_zeroes: true,
            checkpoint_log: Bytes(GIB),
            background_mib_s: 512,
            rebuild_after_s: 300,
            scrub_days: 14,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WriteCache {
    /// Every write is made durable before it counts (FUA, or a flush that waiting writes share).
    #[default]
    Auto,
    /// The device's cache survives a power cut (or durability does not matter): a completed write is durable.
    Protected,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Discard {
    /// Freed slots are zeroed where the device does that by itself, and discarded where it says that it discards.
    #[default]
    Auto,
    /// Also discarded where it says nothing.
    On,
    /// Freed slots are left as they are.
    Off,
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    /// A formatted block device or file; prefer /dev/disk/by-id/…
    pub path: PathBuf,
    /// Default "auto".
    #[serde(default)]
    pub write_cache: WriteCache,
    /// Whether freed space goes back to the medium. Default "auto".
    #[serde(default)]
    pub discard: Discard,
    /// What it fails together with: devices of equal number share a failure domain. Default: each its own.
    #[serde(default)]
    pub domain: Option<u32>,
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VolumesConfig {
    /// Logical block size of new volumes: 4096 (default) or 512.
    pub lba_bytes: u32,
}

impl Default for VolumesConfig {
    fn default() -> VolumesConfig {
        VolumesConfig { lba_bytes: crate::desired::LBA_BYTES_DEFAULT }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Connections (queue pairs) at the same time. Default 512, 4..=4096.
    pub connections: u32,
    /// Entries of an I/O queue. Default 128, 8..=1024.
    pub queue_depth: u32,
    /// I/O queues of one controller. Default 32, 1..=128.
    pub io_queues: u32,
}

impl Default for LimitsConfig {
    fn default() -> LimitsConfig {
        LimitsConfig { connections: 512, queue_depth: 128, io_queues: 32 }
    }
}

/// What makes the node one of a cluster.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    /// As `peristyle cluster create` printed it.
    #[serde(with = "text")]
    pub token: Token,
    /// The node's number, 1..=64, its own for good.
    pub node: u32,
    /// Where it listens for other nodes, and where they reach it: reactor i at the port + i.
    pub listen: SocketAddr,
    /// What it fails together with, where the pool's failure domain is one of these.
    #[serde(default)]
    pub rack: Option<String>,
    #[serde(default)]
    pub zone: Option<String>,
    /// Whether nodes speak TLS with each other.
    #[serde(default)]
    pub tls: PeerTls,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerTls {
    /// On, unless `listen` is an address of this machine alone.
    #[default]
    Auto,
    On,
    /// Spoken with those that do; others are let in as well. On the way from one to the other, or to another secret.
    Optional,
    Off,
}

impl ClusterConfig {
    /// What is meant by `tls` here: never [`PeerTls::Auto`].
    pub fn peer_tls(&self) -> PeerTls {
        match self.tls {
            PeerTls::Auto if self.listen.ip().is_loopback() => PeerTls::Off,
            PeerTls::Auto => PeerTls::On,
            told => told,
        }
    }
}

/// Why a configuration is refused: the key, and what is wrong with its value.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not TOML, an unknown key, or a value of the wrong kind; with line and column.
    #[error("{0}")]
    Syntax(String),
    #[error("{key}: {problem}")]
    Value { key: String, problem: String },
}

fn bad(key: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError::Value { key: key.into(), problem: problem.into() }
}

fn within(key: &str, value: u64, range: RangeInclusive<u64>) -> Result<(), ConfigError> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(bad(key, format!("{value} is outside {}..={}", range.start(), range.end())))
}

fn within_bytes(key: &str, value: Bytes, range: RangeInclusive<u64>) -> Result<(), ConfigError> {
    if range.contains(&value.0) {
        return Ok(());
    }
    let [value, least, most] = [value.0, *range.start(), *range.end()].map(format_bytes);
    Err(bad(key, format!("{value} is outside {least} to {most}")))
}

impl Config {
    /// Reads and checks a configuration.
    pub fn parse(toml_text: &str) -> Result<Config, ConfigError> {
        // An error quotes the line that it is in, and that may be the token's.
        let config: Config = toml::from_str(toml_text)
            .map_err(|e| ConfigError::Syntax(hide_secrets(e.to_string().trim_end())))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let NodeConfig { data_dir, admin_socket, shards } = &self.node;
        for (key, path) in [("node.data_dir", data_dir), ("node.admin_socket", admin_socket)] {
            if !path.is_absolute() {
                return Err(bad(key, format!("`{}` must start with /", path.display())));
            }
        }
        // sockaddr_un holds 108 bytes with the final NUL.
        if admin_socket.as_os_str().len() > 107 {
            return Err(bad("node.admin_socket", "a socket's path has at most 107 bytes"));
        }
        within("node.shards", (*shards).into(), 1..=crate::desired::SHARDS_MAX as u64)?;
        self.check_network()?;
        within("reactors.count", self.reactors.count.into(), 0..=256)?;
        if has_twins(&self.reactors.cores) {
            return Err(bad("reactors.cores", "a core is listed twice"));
        }
        within_bytes("memory.buffers", self.memory.buffers, 32 * MIB..=64 * GIB)?;
        within_bytes("memory.map_cache", self.memory.map_cache, 16 * MIB..=1024 * GIB)?;
        within_bytes("pool.checkpoint_log", self.pool.checkpoint_log, 16 * MIB..=64 * GIB)?;
        within("pool.background_mib_s", self.pool.background_mib_s.into(), 1..=1 << 20)?;
        within("pool.rebuild_after_s", self.pool.rebuild_after_s.into(), 10..=30 * 86_400)?;
        within("pool.scrub_days", self.pool.scrub_days.into(), 1..=365)?;
        within("limits.connections", self.limits.connections.into(), 4..=4096)?;
        within("limits.queue_depth", self.limits.queue_depth.into(), 8..=1024)?;
        within("limits.io_queues", self.limits.io_queues.into(), 1..=128)?;
        if !matches!(self.volumes.lba_bytes, 512 | 4096) {
            return Err(bad(
                "volumes.lba_bytes",
                format!("{} is neither 4096 nor 512", self.volumes.lba_bytes),
            ));
        }
        if let Some(cluster) = &self.cluster {
            within("cluster.node", cluster.node.into(), 1..=crate::desired::NODES_MAX as u64)?;
            for (key, label) in [("cluster.rack", &cluster.rack), ("cluster.zone", &cluster.zone)] {
                label.as_ref().map_or(Ok(()), |l| check_name(l)).map_err(|e| bad(key, e.to_string()))?;
            }
            if cluster.listen.ip().is_unspecified() {
                return Err(bad("cluster.listen", "other nodes have to reach it there: name an address"));
            }
            if cluster.peer_tls() != PeerTls::Off && cluster.token.secret.is_none() {
                return Err(bad(
                    "cluster.tls",
                    "nodes speak TLS outside of one machine, and the token has no secret for that: `peristyle \
                     cluster token --new-secret` prints one for all nodes; \"off\" does without, on a network that \
                     belongs to the nodes alone",
                ));
            }
        }
        self.check_devices()
    }

    fn check_network(&self) -> Result<(), ConfigError> {
        within("number of nvme.listen", self.nvme.listen.len() as u64, 1..=16)?;
        within("number of nbd.listen", self.nbd.listen.len() as u64, 0..=16)?;
        if has_twins(&self.nvme.listen) {
            return Err(bad("nvme.listen", "an address is listed twice"));
        }
        for addr in &self.nbd.listen {
            let nvme = |a: &SocketAddr| *addr == ListenAddr::Tcp(*a) && a.port() != 0;
            if self.nvme.listen.iter().any(nvme) {
                return Err(bad("nbd.listen", format!("{addr} is NVMe's (nvme.listen)")));
            }
        }
        let unusable = |a: &SocketAddr| a.ip().is_unspecified() || a.port() == 0;
        if let Some(advertise) = self.nvme.advertise.filter(unusable) {
            return Err(bad(
                "nvme.advertise",
                format!("hosts cannot connect to {advertise}: write the address they use"),
            ));
        }
        if let Some(nqn) = &self.nvme.nqn {
            check_nqn(nqn).map_err(|e| bad("nvme.nqn", e.to_string()))?;
        }
        if let Hosts::Only(list) = &self.nvme.hosts {
            within("number of nvme.hosts", list.len() as u64, 1..=1024)?;
            for nqn in list {
                check_nqn(nqn).map_err(|e| bad("nvme.hosts", e.to_string()))?;
            }
        }
        Ok(())
    }

    fn check_devices(&self) -> Result<(), ConfigError> {
        check_name(&self.pool.name).map_err(|e| bad("pool.name", e.to_string()))?;
        // A node of a cluster may have none: it votes.
        if self.devices.is_empty() && self.cluster.is_none() {
            let how = "list at least one: [[device]] with path = \"/dev/disk/by-id/…\" (`peristyle device format` first)";
            return Err(bad("device", how));
        }
        within("number of device", self.devices.len() as u64, 0..=crate::desired::DEVICES_MAX as u64)?;
        let mut paths = BTreeSet::new();
        for device in &self.devices {
            let path = device.path.display();
            if !device.path.is_absolute() {
                return Err(bad("device.path", format!("`{path}` must start with /")));
            }
            if !paths.insert(&device.path) {
                return Err(bad("device.path", format!("`{path}` is listed twice")));
            }
        }
        let (domains, m) = (self.domains(), self.pool.scheme.m());
        if self.cluster.is_none() && domains <= m && self.pool.too_few_domains == TooFewPolicy::Refuse {
            let scheme = self.pool.scheme;
            return Err(bad(
                "device",
                format!(
                    "{domains} failure domains cannot keep what {scheme} promises: add devices up to {} at least, choose a smaller m, or set pool.too_few_domains = \"continue\"",
                    m + 1
                ),
            ));
        }
        Ok(())
    }

    /// How many failure domains the devices make.
    pub fn domains(&self) -> usize {
        let named: BTreeSet<u32> = self.devices.iter().filter_map(|d| d.domain).collect();
        named.len() + self.devices.iter().filter(|d| d.domain.is_none()).count()
    }

    /// What is allowed and probably not meant.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let (domains, scheme) = (self.domains(), self.pool.scheme);
        if self.cluster.is_none() && domains < scheme.width() {
            warnings.push(format!(
                "pool.scheme {scheme} needs {} failure domains and there are {domains}: data is kept with a smaller k until there are more",
                scheme.width()
            ));
        }
        let open = |c: &&ClusterConfig| {
            !c.listen.ip().is_loopback() && matches!(c.peer_tls(), PeerTls::Off | PeerTls::Optional)
        };
        if let Some(cluster) = self.cluster.as_ref().filter(open) {
            warnings.push(format!(
                "without cluster.tls = \"on\" whoever reaches cluster.listen, {}, reads and writes all data: it belongs on a network of its own",
                cluster.listen
            ));
        }
        if self.cluster.is_some()
            && self.nvme.listen.iter().any(|a| a.port() == 0 || a.ip().is_unspecified())
            && self.nvme.advertise.is_none()
        {
            warnings.push("nvme.advertise is unset: other nodes tell hosts where this one is, and know no address of it".into());
        }
        let open = self.nvme.listen.iter().any(|a| !a.ip().is_loopback());
        if open && self.nvme.hosts == Hosts::Any {
            warnings.push("nvme.hosts is \"any\": every machine that reaches nvme.listen can read and write all volumes".into());
        }
        if self.nvme.listen[0].ip().is_unspecified() && self.nvme.advertise.is_none() {
            warnings.push(format!(
                "nvme.listen is {}: set nvme.advertise to the address that hosts use, or discovery answers with the one they came by",
                self.nvme.listen[0]
            ));
        }
        warnings
    }

    pub fn state_file(&self) -> PathBuf {
        self.node.data_dir.join("state.redb")
    }
}

fn has_twins<T: PartialEq>(list: &[T]) -> bool {
    list.iter().enumerate().any(|(i, x)| list[..i].contains(x))
}
