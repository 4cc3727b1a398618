//! The store that is measured: a node of its own, or a cluster of them, and what they have counted.

use super::AmplificationOptions;
use crate::bench::daemon::{DEVICES, Daemon, Spawn, one_reactor};
use crate::bench::nodes::Nodes;
use crate::bench::run::Place;
use crate::client::Client;
use crate::failure::Failure;
use peristyle_base::Scheme;
use peristyle_control::api::{Request, Response, StatsNode};
use std::collections::BTreeMap;
use std::path::Path;

pub enum Store {
    One(Daemon),
    Many(Nodes),
}

impl Store {
    pub fn start(options: &AmplificationOptions, scheme: Scheme, dir: &Path) -> Result<Store, Failure> {
        let raw = options.data * 2 / scheme.k() as u64 * scheme.width() as u64;
        let devices = options.nodes.map_or(DEVICES, u64::from);
        let spawn = Spawn {
            device_bytes: (raw / devices).next_multiple_of(1 << 20) + (1 << 30),
            memory: None,
            scheme,
            volume: ("amplification", options.data),
            more: Vec::new(),
        };
        match options.nodes {
            None => {
                let spawn = Spawn { more: one_reactor(&options.cores), ..spawn };
                Ok(Store::One(Daemon::spawn(&spawn, dir)?))
            }
            Some(nodes) => Ok(Store::Many(Nodes::spawn(&spawn, nodes, dir)?)),
        }
    }

    /// Where the load goes; of a cluster, to the volume's owner.
    pub fn place(&self, options: &AmplificationOptions) -> Result<Place, Failure> {
        let target = match self {
            Store::One(daemon) => daemon.target.clone(),
            Store::Many(nodes) => nodes.owner()?,
        };
        Ok(Place { cores: options.cores.get(1).copied().into_iter().collect(), ..Place::of(&target) })
    }

    /// Of all nodes together.
    pub fn counts(&self) -> Result<Counts, Failure> {
        let admins = match self {
            Store::One(daemon) => vec![daemon.admin.as_path()],
            Store::Many(nodes) => nodes.admins().collect(),
        };
        let mut counts = Counts::default();
        for admin in admins {
            match Client::connect(Some(admin.into()))?.call(&Request::Stats)? {
                Response::Stats(stats) => counts.add(&stats.root),
                _ => return Err(Failure::failed("a node answered something else than statistics")),
            }
        }
        Ok(counts)
    }
}

/// What has been counted so far.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub write_bytes: u64,
    pub busy_ns: u64,
    /// Between nodes, by the kind of the request.
    pub between: BTreeMap<String, Messages>,
}

/// Requests to other nodes, and their answers; bytes are of both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Messages {
    pub requests: u64,
    pub answers: u64,
    pub bytes: u64,
}

impl Messages {
    pub fn minus(&self, before: &Messages) -> Messages {
        Messages {
            requests: self.requests - before.requests,
            answers: self.answers - before.answers,
            bytes: self.bytes - before.bytes,
        }
    }
}

fn parts<'a>(root: &'a StatsNode, name: &'a str) -> impl Iterator<Item = &'a StatsNode> {
    root.children.iter().filter(move |node| node.name == name)
}

impl Counts {
    pub fn add(&mut self, root: &StatsNode) {
        for (name, value) in
            parts(root, "devices").flat_map(|all| &all.children).flat_map(|device| &device.counters)
        {
            match name.as_str() {
                "reads" => self.reads += value,
                "read_bytes" => self.read_bytes += value,
                // Slots are zeroed before they are used, in the background; it is no write of a host's data.
                name if name.ends_with(".zero") || name.ends_with(".label") => {}
                name if name.starts_with("writes.") => self.writes += value,
                name if name.starts_with("write_bytes.") => self.write_bytes += value,
                _ => {}
            }
        }
        let busy = parts(root, "reactors").flat_map(|all| &all.children);
        self.busy_ns += busy.filter_map(|reactor| reactor.counters.get("busy_ns")).sum::<u64>();
        for (name, value) in parts(root, "other nodes").flat_map(|node| &node.counters) {
            let Some((figure, kind)) = name.split_once('.') else { continue };
            let messages = self.between.entry(kind.to_owned()).or_default();
            match figure {
                "requests" => messages.requests += value,
                "answers" => messages.answers += value,
                "request_bytes" | "answer_bytes" => messages.bytes += value,
                _ => {}
            }
        }
    }

    /// Messages since then, by kind.
    pub fn between_since(&self, before: &Counts) -> BTreeMap<String, Messages> {
        let none = Messages::default();
        let since = |(kind, messages): (&String, &Messages)| {
            (kind.clone(), messages.minus(before.between.get(kind).unwrap_or(&none)))
        };
        self.between.iter().map(since).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_of_all_devices_and_nodes_without_zeroing() {
        let device = |name: &str| {
            StatsNode::new(name)
                .counter("reads", 5)
                .counter("read_bytes", 5 * 4096)
                .counter("writes.append user", 3)
                .counter("writes.slot table", 1)
                .counter("writes.zero", 100)
                .counter("write_bytes.append user", 8192)
                .counter("write_bytes.zero", 1 << 30)
        };
        let devices = StatsNode::new("devices").child(device("a")).child(device("b"));
        let reactors = StatsNode::new("reactors").child(StatsNode::new("0").counter("busy_ns", 4_000_000));
        let others = StatsNode::new("other nodes")
            .counter("requests.append user", 3)
            .counter("request_bytes.append user", 3000)
            .counter("answers.append user", 2)
            .counter("answer_bytes.append user", 48)
            .counter("requests.ping", 9);
        let root = StatsNode::new("node").child(devices).child(reactors).child(others);
        let (mut one, mut two) = (Counts::default(), Counts::default());
        one.add(&root);
        assert_eq!((one.reads, one.writes, one.write_bytes, one.busy_ns), (10, 8, 16384, 4_000_000));
        two.add(&root);
        two.add(&root);
        let since = two.between_since(&one);
        assert_eq!(since["append user"], Messages { requests: 3, answers: 2, bytes: 3048 });
        assert_eq!(since["ping"].requests, 9);
        assert_eq!(two.between_since(&Counts::default())["ping"].requests, 18);
    }
}
