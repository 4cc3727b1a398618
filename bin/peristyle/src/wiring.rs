//! Where the program meets the data plane: everything here ends in `node` and `column`.

use crate::failure::Failure;
use crate::render::Ready;
use peristyle_base::Scheme;
use peristyle_control::config::{Config, ListenAddr, Poll};
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
    pub poll: Poll,
    pub admin: PathBuf,
    pub state_file: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DevDevices {
    /// `device-0`, `device-1`, … in the store's folder.
    Files {
        count: u16,
        bytes: u64,
    },
    Paths(Vec<PathBuf>),
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
    /// In words, each with where it is.
    pub problems: Vec<String>,
}

/// What a running node tells the program, on the program's thread.
pub trait Observer {
    fn ready(&mut self, ready: &Ready);
    /// About once a second.
    fn status(&mut self, line: &crate::render::StatusLine);
}

fn missing(what: &str) -> Failure {
    Failure::failed(format!("{what}: this build has no data plane"))
}

/// Creates or opens the store, serves it until SIGINT or SIGTERM, and stops cleanly.
pub fn dev(plan: &DevPlan, _observer: &mut dyn Observer) -> Result<(), Failure> {
    Err(missing(&format!("dev in {}", plan.dir.display())))
}

/// Serves what the configuration says until SIGINT or SIGTERM, and stops cleanly.
pub fn node(config: &Config, _observer: &mut dyn Observer) -> Result<(), Failure> {
    Err(missing(&format!("node in {}", config.node.data_dir.display())))
}

pub fn device_format(_paths: &[PathBuf], _force: bool) -> Result<Vec<DeviceReport>, Failure> {
    Err(missing("device format"))
}

pub fn device_inspect(_paths: &[PathBuf]) -> Result<Vec<DeviceReport>, Failure> {
    Err(missing("device inspect"))
}

pub fn device_check(_paths: &[PathBuf]) -> Result<Vec<DeviceReport>, Failure> {
    Err(missing("device check"))
}
