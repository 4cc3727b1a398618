//! What the node tells of its stages while it is profiled.

use super::CurveOptions;
use crate::client::Client;
use crate::failure::Failure;
use peristyle_bench::model::fit::{Devices, Named, line};
use peristyle_bench::model::stage::Shape;
use peristyle_control::api::{Request, Response, StatsNode};

/// Stages that are work of a reactor from their beginning to their end, and how a what-if calls them.
const WORK: [(&str, &str); 3] =
    [("write.encode", "encode"), ("read.lookup", "lookup"), ("read.verify", "verify")];
/// Those of devices: work of the reactor as well when the device is memory.
const DEVICE_WORK: [(&str, &str); 2] = [("read.service", "device_read"), ("append.service", "device_write")];
const MEMORY: &str = "memory";
/// What takes less than this is not told from nothing, microseconds of a burst.
const LEAST_US: f64 = 0.01;

/// How often a stage was passed, and how long that took in all, microseconds.
type Sum = (f64, f64);

pub struct Told<'a> {
    node: &'a mut Client,
    device_depth: u32,
    stages: Vec<(&'static str, &'static str)>,
    devices: usize,
    in_memory: bool,
    before: Vec<Sum>,
    /// Of each stage: microseconds of a burst, by its size.
    bursts: Vec<Vec<(f64, f64)>>,
    /// Of each stage: for a lone command.
    alone: Vec<Sum>,
    /// Of all reactors, in all, nanoseconds.
    busy_before: u64,
}

impl<'a> Told<'a> {
    pub fn new(node: &'a mut Client, options: &CurveOptions) -> Result<Told<'a>, Failure> {
        let root = stats(node)?;
        let mut names = Vec::new();
        devices(&root, &mut names);
        let stages: Vec<_> = WORK.into_iter().chain(DEVICE_WORK).collect();
        let before = stages.iter().map(|(stage, _)| sum(&root, stage)).collect();
        let busy_before = busy_ns(&root);
        Ok(Told {
            busy_before,
            node,
            device_depth: options.device_depth,
            bursts: vec![Vec::new(); stages.len()],
            alone: vec![(0.0, 0.0); stages.len()],
            stages,
            devices: names.len(),
            in_memory: names.iter().all(|name| name == MEMORY),
            before,
        })
    }

    /// From here on things count: what the reactors did before, and for this question, does not.
    pub fn begin(&mut self) -> Result<(), Failure> {
        self.since().map(drop)
    }

    /// What came since the last call, and how long all reactors were at work, microseconds.
    fn since(&mut self) -> Result<(Vec<Sum>, f64), Failure> {
        let root = stats(self.node)?;
        let busy_before = std::mem::replace(&mut self.busy_before, busy_ns(&root));
        let busy_us = self.busy_before.saturating_sub(busy_before) as f64 / 1000.0;
        let now: Vec<Sum> = self.stages.iter().map(|(stage, _)| sum(&root, stage)).collect();
        let since = now.iter().zip(&self.before).map(|(now, before)| (now.0 - before.0, now.1 - before.1));
        let since = since.map(|(count, us)| (count.max(0.0), us.max(0.0))).collect();
        self.before = now;
        Ok((since, busy_us))
    }

    /// So many lone commands were made, those that were not measured among them. How long the reactors worked for all of them.
    pub fn alone(&mut self, commands: u64) -> Result<f64, Failure> {
        let per = |(count, us): Sum| (count / commands as f64, us / commands as f64);
        let (since, busy_us) = self.since()?;
        self.alone = since.into_iter().map(per).collect();
        Ok(busy_us)
    }

    pub fn bursts(&mut self, size: u32, bursts: usize) -> Result<f64, Failure> {
        let (since, busy_us) = self.since()?;
        for (stage, (_, us)) in self.bursts.iter_mut().zip(since) {
            stage.push((f64::from(size), us / bursts.max(1) as f64));
        }
        Ok(busy_us)
    }

    /// Work of the reactors that has a name.
    pub fn named(&self) -> Vec<Named> {
        let count = if self.in_memory { self.stages.len() } else { WORK.len() };
        let stages = self.stages.iter().zip(&self.bursts).take(count);
        let parts = stages.filter(|(_, points)| points.iter().all(|(_, us)| *us >= LEAST_US));
        let parts = parts.filter_map(|((_, name), points)| {
            let (turn_us, request_us) = line(points).ok()?;
            Some(Named {
                name: (*name).to_owned(),
                turn_us: turn_us.max(0.0),
                request_us: request_us.max(0.0),
            })
        });
        parts.collect()
    }

    /// Devices that work beside the reactors. Reads go to one of them, writes to several and a turn's as one.
    pub fn devices(&self) -> Option<Devices> {
        let (reads, writes) = (self.alone[WORK.len()], self.alone[WORK.len() + 1]);
        let is_write = writes.0 > reads.0;
        let (count, us) = if is_write { writes } else { reads };
        if self.in_memory || self.devices == 0 || count < 0.001 {
            return None;
        }
        let columns = (count.round() as u32).clamp(1, self.devices as u32);
        Some(Devices {
            count: self.devices,
            depth: self.device_depth,
            columns,
            together: is_write,
            share: (count / f64::from(columns)).min(1.0),
            service_us: us / count,
            shape: Shape::Constant,
        })
    }
}

fn stats(node: &mut Client) -> Result<StatsNode, Failure> {
    match node.call(&Request::Stats)? {
        Response::Stats(stats) => Ok(stats.root),
        _ => Err(Failure::failed("the node told something else than its figures")),
    }
}

/// Of all reactors.
fn busy_ns(node: &StatsNode) -> u64 {
    let mine = node.counters.get("busy_ns").copied().unwrap_or(0);
    mine + node.children.iter().map(busy_ns).sum::<u64>()
}

/// Of this stage, over the whole tree.
fn sum(node: &StatsNode, stage: &str) -> Sum {
    let mine = node.stages.iter().filter(|it| it.name == stage);
    let mine = mine.map(|it| (it.count as f64, it.count as f64 * it.mean_us));
    let below = node.children.iter().map(|child| sum(child, stage));
    mine.chain(below).fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1))
}

/// Names of all that has a device's stages.
fn devices(node: &StatsNode, into: &mut Vec<String>) {
    if node.stages.iter().any(|it| it.name == DEVICE_WORK[0].0) {
        into.push(node.name.clone());
    }
    node.children.iter().for_each(|child| devices(child, into));
}

#[cfg(test)]
mod tests {
    use super::*;
    use peristyle_control::api::StageStats;

    #[test]
    fn figures_of_a_stage_are_added_over_the_tree() {
        let stage = |name: &str, count, mean_us| StageStats {
            name: name.into(),
            count,
            mean_us,
            ..Default::default()
        };
        let device =
            |name: &str| StatsNode { stages: vec![stage("read.service", 10, 2.0)], ..StatsNode::new(name) };
        let shards = StatsNode { stages: vec![stage("write.encode", 4, 0.5)], ..StatsNode::new("shards") };
        let root = StatsNode::new("node").child(shards).child(device("a")).child(device("b"));
        assert_eq!((sum(&root, "read.service"), sum(&root, "write.encode")), ((20.0, 40.0), (4.0, 2.0)));
        let mut names = Vec::new();
        devices(&root, &mut names);
        assert_eq!(names, ["a", "b"]);
        let reactor = |name: &str, ns| StatsNode::new(name).counter("busy_ns", ns);
        let root = StatsNode::new("node").child(reactor("0", 700)).child(reactor("1", 50));
        assert_eq!(busy_ns(&root), 750);
    }
}
