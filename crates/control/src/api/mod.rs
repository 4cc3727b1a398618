//! The admin protocol: one JSON line per request, one per response, over a Unix socket of this machine.
//!
//! ```text
//! > {"version":1,"request":{"op":"volume-create","name":"demo","bytes":4294967296,"lba_bytes":4096}}
//! < {"version":1,"ok":{"kind":"volume","name":"demo",…}}
//! < {"version":1,"error":{"code":"exists","message":"there is already a volume `demo`: …"}}
//! ```
//!
//! Access is the socket file's: whoever may open it may do everything.

mod cluster;
mod extent;
mod hosts;
mod pool;
mod profile;

pub use cluster::{ClusterInfo, NodeInfo, OwnerInfo, PlaceInfo};
pub use extent::{ExtentColumn, ExtentDomain, ExtentInfo};
pub use hosts::{HostInfo, HostsInfo, PathInfo, PathNode};
pub use pool::{
    BalanceInfo, CollectionInfo, DeviceBalance, ExtentCount, PlanInfo, PlannedUse, PoolInfo, RepairInfo,
};
pub use profile::{PAGE_DEVICES, ProfilePage, RawDevice, RawStage};

use crate::desired::{ControlError, State, Volume, VolumeState};
use crate::meta::MetaError;
use peristyle_base::stage::StageSnapshot;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Rises when a program of the other version would misunderstand.
pub const VERSION: u32 = 1;
/// Bytes of a line, without its newline; longer ones end the connection.
pub const LINE_BYTES_MAX: usize = 1 << 20;
/// Seconds of a maintenance at most: 30 days.
pub const MAINTENANCE_MAX_S: u32 = 30 * 86_400;

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    Status,
    /// Of a node that is one of several.
    ClusterShow,
    /// Who is connected, and to which nodes.
    HostShow,
    /// A node of the cluster is to be emptied, or not any more.
    NodeDrain {
        node: u32,
        draining: bool,
    },
    /// A node of the cluster that does not run, and on which nothing is, is taken out of it.
    NodeRemove {
        node: u32,
    },
    /// A node of the cluster may be away for so many seconds, 1 to [`MAINTENANCE_MAX_S`]. `force`: even if that leaves too little.
    NodeMaintain {
        node: u32,
        seconds: u32,
        #[serde(default)]
        force: bool,
    },
    VolumeList,
    VolumeShow {
        name: String,
    },
    VolumeCreate {
        name: String,
        bytes: u64,
        /// `None`: the node's default.
        #[serde(default)]
        lba_bytes: Option<u32>,
    },
    VolumeResize {
        name: String,
        bytes: u64,
        /// It may become smaller.
        #[serde(default)]
        shrink: bool,
        /// Data behind a smaller end may go.
        #[serde(default)]
        discard_data: bool,
    },
    VolumeDelete {
        name: String,
    },
    /// Makes a volume of a snapshot.
    VolumeClone {
        snapshot: String,
        name: String,
    },
    /// Copies what a volume shares with others.
    VolumeFlatten {
        name: String,
    },
    SnapshotList,
    /// All at one point. Each is a volume's name and the snapshot's.
    SnapshotCreate {
        group: Vec<(String, String)>,
    },
    SnapshotDelete {
        name: String,
    },
    /// Its volume becomes what it was.
    SnapshotRollback {
        name: String,
    },
    /// Hosts see it, read-only, or do not see it any more.
    SnapshotExport {
        name: String,
        exported: bool,
    },
    DeviceList,
    /// A device joins: formatted if it is blank, or has been given up before and `format` is set.
    DeviceAdd {
        path: String,
        #[serde(default)]
        domain: Option<u32>,
        #[serde(default)]
        format: bool,
    },
    /// A device is given up at once, and rebuilt on the others. Here and below: UUID, path, or number in `device list`.
    DeviceFail {
        device: String,
        /// Also when data may become unreadable by it.
        #[serde(default)]
        force: bool,
    },
    /// A device's columns move to the others; then it leaves.
    DeviceRemove {
        device: String,
    },
    /// One joins, another leaves: at once if it does not serve, else when its columns have moved.
    DeviceReplace {
        device: String,
        path: String,
        #[serde(default)]
        format: bool,
    },
    /// A device that was to leave stays.
    DeviceKeep {
        device: String,
    },
    PoolShow,
    PoolBalance,
    /// What would move.
    PoolPlan {
        /// Devices that come, in bytes; each list is a failure domain of its own.
        #[serde(default)]
        add: Vec<Vec<u64>>,
        /// UUID, path, or number in `device list`.
        #[serde(default)]
        remove_devices: Vec<String>,
        #[serde(default)]
        remove_nodes: Vec<u32>,
    },
    /// Another scheme, K+M, for what is written from now on; what is there is converted.
    PoolSet {
        scheme: String,
        #[serde(default)]
        force: bool,
    },
    /// Of a development node: what another node says is lost on its way, or arrives again.
    Hear {
        node: u32,
        heard: bool,
    },
    /// Where an extent is, and why there.
    ExtentWhy {
        extent: u64,
        /// Of this shard only.
        #[serde(default)]
        shard: Option<u32>,
    },
    /// Everything is read and what is damaged is repaired, now.
    PoolScrub,
    Stats,
    /// Stages with their histograms, a page at a time.
    Profile {
        #[serde(default)]
        page: u32,
    },
    /// Makes a device misbehave; development nodes only.
    Inject {
        /// UUID, path, or number in `device list`.
        device: String,
        fault: FaultKind,
        duration_ms: u64,
    },
    Shutdown,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FaultKind {
    /// Every operation answers an I/O error.
    Fail,
    /// No operation answers until it is over.
    Stall,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Response {
    Status(Status),
    Cluster(ClusterInfo),
    Hosts(HostsInfo),
    Volumes {
        volumes: Vec<VolumeInfo>,
    },
    Volume(VolumeInfo),
    Devices {
        devices: Vec<DeviceInfo>,
    },
    Pool(PoolInfo),
    Balance(BalanceInfo),
    Plan(PlanInfo),
    Extents {
        extents: Vec<ExtentInfo>,
    },
    Stats(Stats),
    Profile(ProfilePage),
    /// It is done, and there is nothing to say.
    Done,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub uptime_ms: u64,
    pub nqn: String,
    pub cluster: String,
    pub generation: u64,
    pub scheme: String,
    /// The scheme of new data now, and "full", "fewer-data" or "reduced".
    pub effective_scheme: String,
    pub protection: String,
    pub listen: Vec<String>,
    pub nbd: Vec<String>,
    pub reactors: u32,
    pub shards: Vec<ShardInfo>,
    pub connections: u32,
    pub devices: u32,
    pub devices_healthy: u32,
    pub capacity_bytes: u64,
    pub used_bytes: u64,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ShardInfo {
    pub id: u32,
    pub reactor: u32,
    pub epoch: u64,
    /// "serving", "recovering", or why it waits.
    pub state: String,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct VolumeInfo {
    pub name: String,
    pub nsid: u32,
    pub uuid: String,
    pub nguid: String,
    pub bytes: u64,
    pub lba_bytes: u32,
    pub shard: u32,
    pub state: VolumeState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_of: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageInfo>,
}

/// What a volume or a snapshot takes of the pool, without parity. Each block is in `own_bytes` of one of them at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct UsageInfo {
    /// All that it, and what it is built on, hold: `unique_bytes` and `shared_bytes`.
    pub mapped_bytes: u64,
    /// Of its own layer, if nothing else is built on that.
    pub unique_bytes: u64,
    /// What others use as well.
    pub shared_bytes: u64,
    /// Of its own layer.
    pub own_bytes: u64,
    /// Layers that it consists of.
    pub layers: u32,
}

impl From<&Volume> for VolumeInfo {
    fn from(v: &Volume) -> VolumeInfo {
        VolumeInfo {
            name: v.name.clone(),
            nsid: v.id.0,
            uuid: v.uuid.to_string(),
            nguid: v.nguid.to_string().replace('-', ""),
            bytes: v.bytes,
            lba_bytes: v.lba_bytes,
            shard: v.shard.0,
            state: v.state,
            snapshot_of: v.snapshot_of.clone(),
            usage: None,
        }
    }
}

impl State {
    /// All volumes, by namespace id.
    pub fn volume_infos(&self) -> Vec<VolumeInfo> {
        self.volumes.values().filter(|v| v.snapshot_of.is_none()).map(VolumeInfo::from).collect()
    }
    /// All snapshots.
    pub fn snapshot_infos(&self) -> Vec<VolumeInfo> {
        self.volumes.values().filter(|v| v.snapshot_of.is_some()).map(VolumeInfo::from).collect()
    }
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DeviceInfo {
    pub uuid: String,
    /// The node that has it, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<u32>,
    pub path: String,
    pub domain: u32,
    /// "healthy", "slow", "failed" or "missing"; "draining" while it is to leave, "given-up" when it does not count.
    pub state: String,
    pub slots_total: u32,
    pub slots_used: u32,
    pub bytes: u64,
    pub write_cache: String,
}

/// Counters and stages of everything, as a tree: the node, its volumes, its devices.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Stats {
    pub uptime_ms: u64,
    pub root: StatsNode,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct StatsNode {
    pub name: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StageStats>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counters: BTreeMap<String, u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<StatsNode>,
}

impl StatsNode {
    pub fn new(name: impl Into<String>) -> StatsNode {
        StatsNode { name: name.into(), ..StatsNode::default() }
    }
    pub fn stage(mut self, name: &str, snapshot: &StageSnapshot) -> StatsNode {
        self.stages.push(StageStats::new(name, snapshot));
        self
    }
    pub fn counter(mut self, name: &str, value: u64) -> StatsNode {
        self.counters.insert(name.into(), value);
        self
    }
    pub fn child(mut self, child: StatsNode) -> StatsNode {
        self.children.push(child);
        self
    }
}

/// One stage of a path (DESIGN §9). Times are microseconds.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct StageStats {
    pub name: String,
    pub count: u64,
    pub errors: u64,
    pub in_flight: u64,
    pub mean_in_flight: f64,
    /// Completions per second since the start.
    pub rate: f64,
    pub mean_us: f64,
    pub mean_3s_us: f64,
    pub p50_us: f64,
    pub p95_us: f64,
    pub p99_us: f64,
    #[serde(rename = "p99.5_us")]
    pub p99_5_us: f64,
    #[serde(rename = "p99.9_us")]
    pub p99_9_us: f64,
    pub max_us: f64,
    /// How far Little's law is off: |L - lambda W| / L, with what those in flight have waited in W.
    pub little_error: f64,
}

impl StageStats {
    pub fn new(name: &str, s: &StageSnapshot) -> StageStats {
        let us = |ns: u64| ns as f64 / 1000.0;
        let quantile = |share| us(s.latency.quantile(share));
        StageStats {
            name: name.into(),
            count: s.completed,
            errors: s.errors,
            in_flight: s.in_flight,
            mean_in_flight: s.mean_in_flight(),
            rate: s.rate(),
            mean_us: s.latency.mean() / 1000.0,
            mean_3s_us: s.mean_3s_ns() / 1000.0,
            p50_us: quantile(0.5),
            p95_us: quantile(0.95),
            p99_us: quantile(0.99),
            p99_5_us: quantile(0.995),
            p99_9_us: quantile(0.999),
            max_us: us(s.latency.max()),
            little_error: s.little_error(),
        }
    }
}

/// For programs: what kind of failure it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// Not a request of this protocol version.
    BadRequest,
    NotFound,
    Exists,
    /// A value that is not allowed.
    Invalid,
    /// A limit is reached.
    LimitReached,
    /// Not on this node: fault injection outside of development, for example.
    NotAllowed,
    /// Try again.
    Busy,
    /// It may have happened.
    Unknown,
    Internal,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub code: Code,
    /// For people: what is wrong and what to do.
    pub message: String,
}

impl ApiError {
    pub fn new(code: Code, message: impl Into<String>) -> ApiError {
        ApiError { code, message: message.into() }
    }
}

impl From<ControlError> for ApiError {
    fn from(e: ControlError) -> ApiError {
        use ControlError::*;
        let code = match &e {
            BadName(_)
            | BadNqn(_)
            | UnevenSize { .. }
            | SizeOutOfRange(_)
            | BadLba(_)
            | NotDeleting(_)
            | BadNode(_)
            | DeviceGone(_)
            | DeviceInUse(_)
            | TooFewNodes { .. }
            | IsSnapshot(_)
            | NotSnapshot(_)
            | HasSnapshots(_)
            | WouldShrink { .. } => Code::Invalid,
            Exists { .. } | IdentityTaken(_) | AlreadyThere(_) | NodeTaken(_) => Code::Exists,
            NotFound { .. } => Code::NotFound,
            NodeRuns(_)
            | NodeLeaving(_)
            | Deleting(_)
            | Store(MetaError::Conflict { .. } | MetaError::Unavailable(_)) => Code::Busy,
            TooMany { .. } | LayersUsedUp => Code::LimitReached,
            Store(MetaError::Unknown(_)) => Code::Unknown,
            NoShards | NoPool | Unreadable { .. } | Store(MetaError::TooLarge | MetaError::NoLease) => {
                Code::Internal
            }
        };
        ApiError::new(code, e.to_string())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestLine<R> {
    version: u32,
    request: R,
}

#[derive(Serialize, Deserialize)]
struct ResponseLine<R> {
    version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    ok: Option<R>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ApiError>,
}

fn line(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(value).expect("plain data always serialises");
    bytes.push(b'\n');
    bytes
}

/// A request as a line, newline included.
pub fn encode_request(request: &Request) -> Vec<u8> {
    line(&RequestLine { version: VERSION, request })
}

pub fn decode_request(bytes: &[u8]) -> Result<Request, ApiError> {
    let bad = |e: serde_json::Error| ApiError::new(Code::BadRequest, format!("not a request: {e}"));
    let raw: RequestLine<serde_json::Value> = serde_json::from_slice(bytes).map_err(bad)?;
    if raw.version != VERSION {
        let why = format!(
            "protocol version {} was asked, this node speaks {VERSION}: use its own program",
            raw.version
        );
        return Err(ApiError::new(Code::BadRequest, why));
    }
    serde_json::from_value(raw.request).map_err(bad)
}

/// A response as a line, newline included. One that exceeds [`LINE_BYTES_MAX`] becomes an error.
pub fn encode_response(response: &Result<Response, ApiError>) -> Vec<u8> {
    let version = VERSION;
    let (ok, error) = match response {
        Ok(response) => (Some(response), None),
        Err(error) => (None, Some(error.clone())),
    };
    let bytes = line(&ResponseLine { version, ok, error });
    if bytes.len() <= LINE_BYTES_MAX + 1 {
        return bytes;
    }
    let error = Some(ApiError::new(Code::Internal, "the answer is larger than the protocol's longest line"));
    line(&ResponseLine { version, ok: None::<()>, error })
}

/// What the node answered; an answer that is none is an error too.
pub fn decode_response(bytes: &[u8]) -> Result<Response, ApiError> {
    let bad = |e: serde_json::Error| {
        ApiError::new(Code::Internal, format!("the node's answer cannot be read: {e}"))
    };
    let raw: ResponseLine<serde_json::Value> = serde_json::from_slice(bytes).map_err(bad)?;
    match (raw.ok, raw.error) {
        (Some(response), None) if raw.version == VERSION => serde_json::from_value(response).map_err(bad),
        (None, Some(error)) => Err(error),
        _ => Err(ApiError::new(Code::Internal, "the node speaks another version of the admin protocol")),
    }
}

/// Cuts a stream into lines; bounded.
#[derive(Default)]
pub struct Lines {
    buffer: Vec<u8>,
    /// Bytes at the start that are known to hold no newline.
    searched: usize,
}

/// A line longer than [`LINE_BYTES_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LineTooLong;

impl Lines {
    /// Takes the bytes that arrived; call [`next_line`](Self::next_line) until it has none before the next.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line, without its newline.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, LineTooLong> {
        let Some(at) = self.buffer[self.searched..].iter().position(|&b| b == b'\n') else {
            self.searched = self.buffer.len();
            return if self.searched > LINE_BYTES_MAX { Err(LineTooLong) } else { Ok(None) };
        };
        let end = self.searched + at;
        if end > LINE_BYTES_MAX {
            return Err(LineTooLong);
        }
        let rest = self.buffer.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.buffer, rest);
        line.truncate(end);
        self.searched = 0;
        Ok(Some(line))
    }
}
