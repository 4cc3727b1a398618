//! Where everything of a development cluster is: folders, ports, configuration files.

use crate::cli::DevOptions;
use crate::failure::Failure;
use peristyle_base::MIB;
use peristyle_base::units::format_bytes;
use peristyle_control::Token;
use std::fmt::Write;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Ports from the first of NVMe/TCP on: of the shared store and its peers, and of the nodes for each other.
const STORE_PORTS: u16 = 900;
const PEER_PORTS: u16 = 1000;
/// Reactors of a node at most, each with a port for other nodes.
const REACTORS_MAX: u16 = 16;
/// I/O buffers of a reactor: several nodes share this machine.
const BUFFERS: u64 = 96 * MIB;

/// How far behind the first port the others lie that a cluster uses, with a reactor each.
pub fn ports(nodes: u16) -> impl Iterator<Item = u16> {
    let between = (0..nodes).map(|node| PEER_PORTS + node * REACTORS_MAX);
    (0..nodes).chain([STORE_PORTS, STORE_PORTS + 1]).chain(between)
}

pub struct Layout {
    /// Absolute.
    pub dir: PathBuf,
    /// Of the first node; the others follow.
    pub listen: SocketAddr,
    pub advertise: Option<SocketAddr>,
    pub reactors: u16,
    pub devices: u16,
    /// Between nodes.
    pub tls: bool,
    /// Nodes hand on what is another's.
    pub forward: bool,
    pub racks: Option<u16>,
}

fn failed(path: &Path, e: impl std::fmt::Display) -> Failure {
    Failure::failed(format!("{}: {e}", path.display()))
}

impl Layout {
    pub fn of(options: &DevOptions, nodes: u16) -> Result<Layout, Failure> {
        let (scheme, m) = (options.scheme, options.scheme.m());
        if usize::from(nodes) <= m {
            return Err(Failure::usage(format!(
                "{scheme} survives the loss of {m} nodes, so it needs {} at least",
                m + 1
            )));
        }
        if options.racks.is_some_and(|racks| usize::from(racks) <= m || racks > nodes) {
            return Err(Failure::usage(format!(
                "--racks: {scheme} survives the loss of {m} racks, so it needs {} at least, each with a node",
                m + 1
            )));
        }
        if options.nbd.is_some() || !options.device_list.is_empty() || !options.cores.is_empty() {
            return Err(Failure::usage("--nodes does not go with --device, --nbd and --cores"));
        }
        let reactors = options.reactors.max(1) as u16;
        if reactors > REACTORS_MAX {
            return Err(Failure::usage(format!("--nodes: {REACTORS_MAX} reactors for each node at most")));
        }
        let last = PEER_PORTS + nodes * REACTORS_MAX;
        let room = |addr: &SocketAddr| addr.port() != 0 && addr.port().checked_add(last).is_some();
        if !room(&options.listen) {
            return Err(Failure::usage("--nodes: --listen needs a port with some 2000 free ones behind it"));
        }
        std::fs::create_dir_all(&options.dir).map_err(|e| failed(&options.dir, e))?;
        let dir = std::fs::canonicalize(&options.dir).map_err(|e| failed(&options.dir, e))?;
        if dir.join("state.redb").exists() {
            return Err(failed(&dir, "it holds the store of a single node: name another folder with --dir"));
        }
        let layout = Layout {
            dir,
            listen: options.listen,
            advertise: options.advertise,
            reactors,
            devices: options.devices_of_node(),
            tls: options.tls,
            forward: options.forward,
            racks: options.racks,
        };
        if layout.admin(nodes).as_os_str().len() > 107 {
            return Err(failed(&layout.dir, "its path is too long for the sockets in it: use a shorter one"));
        }
        Ok(layout)
    }

    pub fn node_dir(&self, number: u16) -> PathBuf {
        self.dir.join(format!("node-{number}"))
    }
    pub fn admin(&self, number: u16) -> PathBuf {
        self.node_dir(number).join("admin.sock")
    }
    /// Where orders are taken.
    pub fn socket(dir: &Path) -> PathBuf {
        dir.join("dev.sock")
    }
    pub fn forget_socket(&self) {
        drop(std::fs::remove_file(Layout::socket(&self.dir)));
    }
    /// Where a node serves hosts.
    pub fn portal(&self, number: u16) -> SocketAddr {
        behind(self.listen, number - 1)
    }
    /// … and where they find it.
    pub fn advertised(&self, number: u16) -> SocketAddr {
        behind(self.advertise.unwrap_or(self.listen), number - 1)
    }
    fn peers(&self, number: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.listen.port() + PEER_PORTS + (number - 1) * REACTORS_MAX))
    }
    /// Of the shared store, for clients and for itself.
    pub fn store_ports(&self) -> [u16; 2] {
        [0, 1].map(|i| self.listen.port() + STORE_PORTS + i)
    }

    fn token_file(&self) -> PathBuf {
        self.dir.join("token")
    }

    /// Of a cluster that is there.
    pub fn token(&self) -> Result<Option<Token>, Failure> {
        let file = self.token_file();
        match std::fs::read_to_string(&file) {
            Ok(text) => text.trim().parse().map(Some).map_err(|e: String| failed(&file, e)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed(&file, e)),
        }
    }

    pub fn keep_token(&self, token: &Token) -> Result<(), Failure> {
        let file = self.token_file();
        write_private(&file, &format!("{token}\n"))
    }

    /// Writes a node's configuration; it is what an operator would write.
    pub fn write_config(&self, number: u16, token: &Token) -> Result<PathBuf, Failure> {
        let dir = self.node_dir(number);
        std::fs::create_dir_all(&dir).map_err(|e| failed(&dir, e))?;
        let (name, buffers) = (dir.display(), format_bytes(BUFFERS).replace(' ', ""));
        let mut text = format!(
            "[node]\ndata_dir = \"{name}\"\nadmin_socket = \"{name}/admin.sock\"\n\n[nvme]\nlisten = [\"{}\"]\nforward = {}\n",
            self.portal(number),
            self.forward
        );
        if self.advertise.is_some() {
            let _ = writeln!(text, "advertise = \"{}\"", self.advertised(number));
        }
        let _ =
            writeln!(text, "\n[reactors]\ncount = {}\n\n[memory]\nbuffers = \"{buffers}\"", self.reactors);
        let _ = writeln!(
            text,
            "\n[cluster]\ntoken = \"{token}\"\nnode = {number}\nlisten = \"{}\"\ntls = \"{}\"",
            self.peers(number),
            if self.tls { "on" } else { "off" }
        );
        if let Some(racks) = self.racks {
            let _ = writeln!(text, "rack = \"r{}\"", (number - 1) % racks + 1);
        }
        for device in 0..self.devices {
            let _ = writeln!(
                text,
                "\n[[device]]\npath = \"{name}/device-{device}\"\nwrite_cache = \"protected\""
            );
        }
        let file = dir.join("peristyle.toml");
        write_private(&file, &text)?;
        Ok(file)
    }
}

/// For its owner's eyes: the token's secret is in it.
fn write_private(file: &Path, text: &str) -> Result<(), Failure> {
    let write = || {
        let mut options = std::fs::OpenOptions::new();
        let mut to = options.write(true).create(true).truncate(true).mode(0o600).open(file)?;
        to.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        to.write_all(text.as_bytes())
    };
    write().map_err(|e| failed(file, e))
}

fn behind(addr: SocketAddr, ports: u16) -> SocketAddr {
    SocketAddr::new(addr.ip(), addr.port() + ports)
}
