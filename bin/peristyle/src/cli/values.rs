//! Values that the command line takes.

use peristyle_base::units::parse_bytes;
use peristyle_control::api::MAINTENANCE_MAX_S;
use peristyle_control::desired::check_name;
use std::path::PathBuf;
use std::time::Duration;

/// `NAME=SIZE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeArg {
    pub name: String,
    pub bytes: u64,
}

pub(super) fn size(text: &str) -> Result<u64, String> {
    parse_bytes(text).ok_or_else(|| format!("`{text}` is not a size: write 512MiB, 4G or a number of bytes"))
}

pub(super) fn device_size(text: &str) -> Result<u64, String> {
    match size(text)? {
        bytes if bytes >= 64 << 20 => Ok(bytes),
        _ => Err("a device needs 64MiB at least".into()),
    }
}

/// Sizes of devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes(pub Vec<u64>);

pub(super) fn device_sizes(text: &str) -> Result<Sizes, String> {
    text.split(',').map(device_size).collect::<Result<_, _>>().map(Sizes)
}

/// What stands for a device of a development store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceArg {
    Path(PathBuf),
    Memory(u64),
}

pub(crate) fn device_arg(text: &str) -> Result<DeviceArg, String> {
    match text.strip_prefix("memory:") {
        Some(bytes) => Ok(DeviceArg::Memory(device_size(bytes)?)),
        None => Ok(DeviceArg::Path(text.into())),
    }
}

pub(super) fn volume_arg(text: &str) -> Result<VolumeArg, String> {
    let (name, bytes) =
        text.split_once('=').ok_or_else(|| format!("`{text}`: write NAME=SIZE, such as demo=4GiB"))?;
    check_name(name).map_err(|e| e.to_string())?;
    Ok(VolumeArg { name: name.into(), bytes: size(bytes)? })
}

/// `VOLUME=SNAPSHOT`.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    let (volume, snapshot) = text
        .split_once('=')
        .ok_or_else(|| format!("`{text}`: write VOLUME=SNAPSHOT, such as db=db-monday"))?;
    check_name(snapshot).map_err(|e| e.to_string())?;
    Ok((volume.into(), snapshot.into()))
}

pub(super) fn lba(text: &str) -> Result<u32, String> {
    match text {
        "4096" => Ok(4096),
        "512" => Ok(512),
        _ => Err("4096 or 512".into()),
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is not a time: write 500ms, 5s or 2m, at most 1h");
    milliseconds(text).filter(|ms| (1..=3_600_000).contains(ms)).map(Duration::from_millis).ok_or_else(bad)
}

/// Seconds for which somebody works on a node.
pub(super) fn maintenance(text: &str) -> Result<u32, String> {
    let bad = || format!("`{text}` is not a time: write 90s, 30m, 2h or 3d, at least 1s and at most 30d");
    let seconds =
        milliseconds(text).map(|ms| ms / 1000).filter(|s| (1..=u64::from(MAINTENANCE_MAX_S)).contains(s));
    seconds.map(|s| s as u32).ok_or_else(bad)
}

fn milliseconds(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "ms" => 1,
        "s" | "" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}
