//! What `dev` and `node` say when they serve, and the status line after it.

use peristyle_base::units::format_bytes;
use peristyle_control::config::ListenAddr;
use serde::Serialize;
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Everything a host needs to attach.
#[derive(Clone, Debug)]
pub struct Ready {
    pub nqn: String,
    /// With the ports that the system chose where 0 was asked for.
    pub listen: Vec<SocketAddr>,
    pub advertise: Option<SocketAddr>,
    pub nbd: Vec<ListenAddr>,
    pub admin: PathBuf,
    pub pid: u32,
    pub volumes: Vec<ReadyVolume>,
}

#[derive(Clone, Debug, Serialize)]
pub struct ReadyVolume {
    pub name: String,
    pub nsid: u32,
    pub bytes: u64,
    pub uuid: String,
}

impl From<&peristyle_control::desired::Volume> for ReadyVolume {
    fn from(v: &peristyle_control::desired::Volume) -> ReadyVolume {
        ReadyVolume { name: v.name.clone(), nsid: v.id.0, bytes: v.bytes, uuid: v.uuid.to_string() }
    }
}

impl Ready {
    /// The line of `--json`.
    pub fn json(&self) -> String {
        super::json(&json!({
            "ready": true,
            "nqn": self.nqn,
            "listen": self.listen.first().map(SocketAddr::to_string),
            "nbd": self.nbd.first().map(ListenAddr::to_string),
            "admin": self.admin,
            "pid": self.pid,
            "volumes": self.volumes,
        }))
    }

    /// The lines for people: volumes, and what to type on the host.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for v in &self.volumes {
            out += &format!(
                "volume     {} (namespace {}, {})  {}\n",
                v.name,
                v.nsid,
                format_bytes(v.bytes),
                v.uuid
            );
        }
        out += &format!("subsystem  {}\n", self.nqn);
        out += &format!("admin      {}\n\n", self.admin.display());
        if let Some(at) = self.advertise.or_else(|| self.listen.first().map(|a| reachable(*a))) {
            let (ip, port) = (at.ip(), at.port());
            out += "attach with NVMe/TCP (as root, after `modprobe nvme-tcp`):\n";
            out += &format!("  nvme discover -t tcp -a {ip} -s {port}\n");
            out += &format!("  nvme connect -t tcp -a {ip} -s {port} -n {}\n", self.nqn);
            out += &format!("  nvme disconnect -n {}\n", self.nqn);
        }
        if let (Some(nbd), Some(volume)) = (self.nbd.first(), self.volumes.first()) {
            out += &format!(
                "attach with NBD:\n  nbdinfo '{uri}'\n  nbdcopy '{uri}' -\n",
                uri = nbd_uri(nbd, &volume.name)
            );
        }
        out
    }
}

/// The address to print for one that listens everywhere: this machine's own.
fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, addr.port())
}

/// NBD URI specification: `nbd://host:port/export`, `nbd+unix:///export?socket=path`.
fn nbd_uri(addr: &ListenAddr, volume: &str) -> String {
    match addr {
        ListenAddr::Tcp(addr) => format!("nbd://{}/{volume}", reachable(*addr)),
        ListenAddr::Unix(path) => format!("nbd+unix:///{volume}?socket={}", path.display()),
    }
}

/// The live line under it all.
#[derive(Clone, Debug, Default)]
pub struct StatusLine {
    pub uptime: Duration,
    pub connections: u64,
    pub devices_healthy: u32,
    pub devices: u32,
    /// Since the last line: operations and bytes per second, and mean latency.
    pub reads: Rates,
    pub writes: Rates,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    pub operations: f64,
    pub bytes: f64,
    pub mean_us: f64,
}

impl StatusLine {
    pub fn text(&self) -> String {
        let seconds = self.uptime.as_secs();
        let clock = format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
        let rates = |name, r: &Rates| {
            let bytes = format_bytes(r.bytes as u64);
            format!("{name} {:.0}/s {bytes}/s {:.0} us", r.operations, r.mean_us)
        };
        let flag = if self.devices_healthy < self.devices { " DEGRADED" } else { "" };
        format!(
            "up {clock}  connections {}  devices {}/{}{flag}  {}  {}",
            self.connections,
            self.devices_healthy,
            self.devices,
            rates("reads", &self.reads),
            rates("writes", &self.writes)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> Ready {
        Ready {
            nqn: "nqn.2014-08.org.nvmexpress:uuid:x".into(),
            listen: vec!["127.0.0.1:4420".parse().unwrap()],
            advertise: None,
            nbd: vec![],
            admin: "/tmp/admin.sock".into(),
            pid: 7,
            volumes: vec![ReadyVolume { name: "demo".into(), nsid: 1, bytes: 4 << 30, uuid: "u-u".into() }],
        }
    }

    #[test]
    fn the_ready_line_is_one_line_of_json_with_the_agreed_keys() {
        let line = Ready { nbd: vec!["127.0.0.1:10809".parse().unwrap()], ..ready() }.json();
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        let volume = json!({"name": "demo", "nsid": 1, "bytes": 4u64 << 30, "uuid": "u-u"});
        let want = json!({"ready": true, "nqn": "nqn.2014-08.org.nvmexpress:uuid:x", "listen": "127.0.0.1:4420",
            "nbd": "127.0.0.1:10809", "admin": "/tmp/admin.sock", "pid": 7, "volumes": [volume]});
        assert_eq!(value, want);
        let without: serde_json::Value = serde_json::from_str(&ready().json()).unwrap();
        assert!(without["nbd"].is_null());
    }

    #[test]
    fn the_lines_to_type_are_exact() {
        let text = ready().text();
        assert!(text.contains("\n  nvme discover -t tcp -a 127.0.0.1 -s 4420\n"));
        let connect = "\n  nvme connect -t tcp -a 127.0.0.1 -s 4420 -n nqn.2014-08.org.nvmexpress:uuid:x\n";
        assert!(text.contains(connect), "{text}");
        assert!(text.contains("volume     demo (namespace 1, 4.0 GiB)  u-u\n") && !text.contains("nbd"));
    }

    #[test]
    fn who_listens_everywhere_is_reached_here_unless_it_advertises() {
        let everywhere = Ready { listen: vec!["[::]:4421".parse().unwrap()], ..ready() };
        assert!(everywhere.text().contains("-a ::1 -s 4421 "));
        let elsewhere = Ready { advertise: Some("192.0.2.1:4430".parse().unwrap()), ..everywhere };
        assert!(elsewhere.text().contains("-a 192.0.2.1 -s 4430 "));
    }

    #[test]
    fn nbd_exports_are_written_as_uris() {
        let text = Ready { nbd: vec!["unix:/tmp/n.sock".parse().unwrap()], ..ready() }.text();
        assert!(text.contains("nbdinfo 'nbd+unix:///demo?socket=/tmp/n.sock'"), "{text}");
        let text = Ready { nbd: vec!["0.0.0.0:10809".parse().unwrap()], ..ready() }.text();
        assert!(text.contains("nbdinfo 'nbd://127.0.0.1:10809/demo'"), "{text}");
    }

    #[test]
    fn the_status_line_shouts_when_a_device_is_away() {
        let writes = Rates { operations: 12_345.4, bytes: 48.0 * 1024.0 * 1024.0, mean_us: 310.4 };
        let line = StatusLine {
            uptime: Duration::from_secs(3725),
            connections: 3,
            devices_healthy: 6,
            devices: 6,
            writes,
            ..StatusLine::default()
        };
        let want =
            "up 1:02:05  connections 3  devices 6/6  reads 0/s 0 B/s 0 us  writes 12345/s 48.0 MiB/s 310 us";
        assert_eq!(line.text(), want);
        assert!(StatusLine { devices_healthy: 5, ..line }.text().contains("devices 5/6 DEGRADED"));
    }
}
