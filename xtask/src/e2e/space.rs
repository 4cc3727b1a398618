//! What the guest's file system gives back comes back to the pool, as `peristyle pool show` tells it.

use super::daemon::{self, Daemon, Devices, Setup, free_port, store};
use super::kernel_host::Guest;
use super::scratch::Scratch;
use super::{Size, kernel_host};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::path::Path;
use std::time::{Duration, Instant};

/// What the guest prints before a moment's name and the size by which it is told to go on.
pub const SPACE: &str = "SPACE ";
/// A file system without files has fewer blocks, and one that the guest has filled has more.
const EMPTY_BLOCKS: u64 = 16 << 8;
/// Space comes back behind the next checkpoint, within seconds; the machine may be busy with other things.
const LIMIT: Duration = Duration::from_secs(90);

/// What is looked at of `peristyle pool show --json`.
#[derive(Deserialize, Debug, Clone, Copy, Default)]
struct Space {
    slots_total: u64,
    slots_used: u64,
    live_blocks: u64,
    discarded_bytes: u64,
}

/// The pool is so small that the guest can make it low on room: then freed space comes back at once, and not with some
/// later checkpoint.
pub fn run(size: Size) -> Result<()> {
    let lab = kernel_host::lab()?;
    let scratch = Scratch::new("space")?;
    let port = free_port()?;
    let setup = Setup {
        dir: store(scratch.path()),
        devices: Devices::Memory("112M"),
        scheme: "4+2",
        volumes: &["demo=256M"],
        lba: "4096",
        port,
        nbd_port: free_port()?,
        advertise: Some(format!("10.0.2.2:{port}")),
    };
    let mut daemon = Daemon::start(&setup)?;
    let guest = Guest { lab: &lab, scratch: scratch.path(), port, nqn: daemon.ready.nqn.clone(), size };
    let mut full = Space::default();
    guest.boot("space", &[], |asked| {
        let Some((moment, bytes)) = asked.strip_prefix(SPACE).and_then(|rest| rest.split_once(' ')) else {
            bail!("the guest asks for {asked}");
        };
        match moment {
            "made" => println!("nothing written: {:?}", look(&setup.dir)?),
            "fill" => full = when(&setup.dir, |now| now.is_low() && now.live_blocks > EMPTY_BLOCKS)?,
            "given-back" => {
                // Once there is room, the rest waits for a checkpoint that comes by itself; and what was freed goes to the
                // medium at leisure.
                let is_back = |now: Space| {
                    now.live_blocks <= EMPTY_BLOCKS
                        && !now.is_low()
                        && now.discarded_bytes > full.discarded_bytes
                };
                let now = when(&setup.dir, is_back)?;
                ensure!(now.slots_used < full.slots_used, "{full:?}, and then {now:?}");
                println!("given back: {full:?}, then {now:?}");
            }
            other => bail!("the guest speaks of {other}"),
        }
        kernel_host::resize(&setup.dir, bytes)
    })?;
    ensure!(full.live_blocks > 0, "the guest has written nothing");
    daemon.alive()?;
    scratch.passed();
    Ok(())
}

impl Space {
    /// An eighth is free: the shards take checkpoints early, so that what is dead can be freed.
    fn is_low(self) -> bool {
        (self.slots_total - self.slots_used) * 8 <= self.slots_total
    }
}

/// The pool's space once it is as wanted.
fn when(store: &Path, wanted: impl Fn(Space) -> bool) -> Result<Space> {
    let until = Instant::now() + LIMIT;
    loop {
        let now = look(store)?;
        if wanted(now) {
            return Ok(now);
        }
        ensure!(Instant::now() < until, "the pool's space stays like this: {now:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn look(store: &Path) -> Result<Space> {
    let text = daemon::ask(store, &["pool", "show", "--json"])?;
    serde_json::from_str(&text).with_context(|| format!("pool show: {text}"))
}
