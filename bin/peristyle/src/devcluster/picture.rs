//! The cluster, drawn anew each second on a terminal.

use super::Cluster;
use super::ready::{ask, show};
use crate::online::print;
use crate::render;
use peristyle_base::units::format_bytes;
use peristyle_control::api::{ClusterInfo, Request, Response, Status};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(1);

pub struct Picture {
    live: bool,
    drawn: Option<Instant>,
    lines: usize,
}

impl Picture {
    pub fn new(json: bool) -> Picture {
        Picture { live: !json && std::io::stdout().is_terminal(), drawn: None, lines: 0 }
    }

    pub fn draw(&mut self, cluster: &Cluster) {
        if !self.live || self.drawn.is_some_and(|drawn| drawn.elapsed() < PERIOD) {
            return;
        }
        self.drawn = Some(Instant::now());
        let text = text(cluster);
        let up = if self.lines > 0 { format!("\x1b[{}A", self.lines) } else { String::new() };
        self.lines = text.lines().count();
        print(&format!("{up}\x1b[J{text}"));
    }
}

fn text(cluster: &Cluster) -> String {
    let seen = cluster.nodes.iter().find_map(show);
    let rows = cluster.nodes.iter().map(|node| {
        let status = match ask(node, &Request::Status) {
            Some(Response::Status(status)) => Some(status),
            _ => None,
        };
        row(node, seen.as_ref(), status.as_ref())
    });
    let header = ["node", "process", "others see it", "", "shards", "hosts", "pool as it sees it"];
    render::table(&header, &[0, 4, 5], rows)
}

fn row(node: &super::Node, seen: Option<&ClusterInfo>, status: Option<&Status>) -> Vec<String> {
    let number = u32::from(node.number);
    let known = seen.and_then(|info| info.nodes.iter().find(|n| n.node == number));
    let is_manager = seen.is_some_and(|info| info.manager == Some(number));
    let pool = status.map(|s| {
        let (used, all) = (format_bytes(s.used_bytes), format_bytes(s.capacity_bytes));
        format!("{} of {} devices, {used} of {all}, {}", s.devices_healthy, s.devices, s.effective_scheme)
    });
    vec![
        number.to_string(),
        node.state().into(),
        known.map_or("", |n| if n.alive { "alive" } else { "silent" }).into(),
        if is_manager { "manager" } else { "" }.into(),
        known.map_or(String::new(), |n| n.shards.to_string()),
        status.map_or(String::new(), |s| s.connections.to_string()),
        pool.unwrap_or_default(),
    ]
}
