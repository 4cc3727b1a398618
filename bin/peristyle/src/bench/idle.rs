//! `bench idle`: what a process costs while nobody asks it for anything.

use super::IdleOptions;
use crate::failure::{Failure, Kind};
use crate::render::json;
use peristyle_bench::host::{Host, HostOptions};
use peristyle_bench::session::{Digests, Session, Target};
use peristyle_rt::{Addr, PollMode, RuntimeConfig};
use serde_json::json;
use std::fs;
use std::time::{Duration, Instant};

/// As Linux asks for by default.
const KEEP_ALIVE_MS: u32 = 5000;
/// A host that connects has work to do for so long.
const SETTLE: Duration = Duration::from_millis(500);

pub fn command(options: &IdleOptions) -> Result<(), Failure> {
    let share = match &options.target {
        None => share_of(options.pid, options.runtime),
        Some(target) => beside_a_host(target.clone(), options.pid, options.runtime),
    }?;
    let percent = share * 100.0;
    match options.json {
        true => print!("{}", json(&json!({"pid": options.pid, "core_share": share}))),
        false => {
            println!("process {}: {percent:.2} % of a core over {:?}", options.pid, options.runtime)
        }
    }
    match options.bar {
        Some(bar) if percent > bar => {
            Err(Failure::failed(format!("{percent:.2} % of a core is above {bar:.2} %")))
        }
        _ => Ok(()),
    }
}

/// The share while one host has an admin queue and an I/O queue open, and does nothing but keep them alive.
fn beside_a_host(target: Target, pid: u32, runtime: Duration) -> Result<f64, Failure> {
    let config = RuntimeConfig { poll: PollMode::Sleep, ..RuntimeConfig::small() };
    peristyle_rt::block_on(config, async move {
        let no_node = |error: String| Failure::new(Kind::NoNode, format!("{}: {error}", target.addr));
        let session =
            Session::connect(&target, Digests::default()).await.map_err(|e| no_node(e.to_string()))?;
        let host_nqn = format!("nqn.2014-08.org.nvmexpress:uuid:{}", random_uuid());
        let options =
            HostOptions { keep_alive_ms: KEEP_ALIVE_MS, ..HostOptions::new(&host_nqn, session.nqn()) };
        drop(session);
        let host = Host::connect(&Addr::Tcp(target.addr), &options, 1).await;
        let host = host.map_err(|e| no_node(e.to_string()))?;
        peristyle_rt::sleep(SETTLE).await;
        let share = peristyle_rt::blocking(move || share_of(pid, runtime)).await;
        host.close();
        share
    })
}

fn random_uuid() -> peristyle_base::Uuid {
    let mut bytes = [0; 16];
    peristyle_rt::fill_random(&mut bytes);
    peristyle_base::Uuid::from_random(bytes)
}

/// CPU time per time.
fn share_of(pid: u32, runtime: Duration) -> Result<f64, Failure> {
    let (before, start) = (cpu_nanos(pid)?, Instant::now());
    std::thread::sleep(runtime);
    let used = cpu_nanos(pid)?.saturating_sub(before);
    Ok(used as f64 / start.elapsed().as_nanos() as f64)
}

/// Time that all threads of a process have had on a core: the first number of each one's schedstat.
fn cpu_nanos(pid: u32) -> Result<u64, Failure> {
    let dir = format!("/proc/{pid}/task");
    let tasks = fs::read_dir(&dir).map_err(|e| Failure::failed(format!("{dir}: {e}")))?;
    // A thread may end between the two calls: it counts no more.
    let nanos = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    Ok(tasks.flatten().filter_map(nanos).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_computes_has_used_more_afterwards() {
        let me = std::process::id();
        let before = cpu_nanos(me).unwrap();
        while cpu_nanos(me).unwrap() == before {
            std::hint::black_box((0..10_000).sum::<u64>());
        }
        assert!(cpu_nanos(0).is_err());
    }
}
