//! Every crash of an operation: at each of its events, every state that a crash there may leave on its disks.

use super::crash::CrashState;
use super::disk::DiskConfig;
use super::handle::{DiskHandle, Env, World};
use super::image::Image;
use super::world::{Stop, WorldConfig};
use peristyle_base::Duration;
use std::cell::Cell;
use std::collections::HashSet;
use std::future::Future;
use std::net::Ipv4Addr;
use std::rc::Rc;

/// What an operation starts from, and how much of what may become of it is looked at.
#[derive(Clone)]
pub struct Sweep {
    pub world: WorldConfig,
    pub disks: Vec<(Image, DiskConfig)>,
    pub how: Stop,
    /// States of one crash, at most.
    pub states_per_crash: usize,
    /// Of those, so many are drawn and looked at.
    pub drawn_per_crash: usize,
    /// Nothing in the operation takes longer than this.
    pub limit: Duration,
}

/// One state that a crash has left.
pub struct Crash<'a> {
    /// Events of the operation before the crash.
    pub event: u64,
    /// The operation had returned.
    pub finished: bool,
    pub disks: &'a CrashState,
}

/// How much a [`sweep`] has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Events at which a crash can leave something else than at the one before.
    pub crashes: u64,
    /// Different states of the disks, over all crashes: different in contents, or in what was promised by then.
    pub states: u64,
    /// The operation's own run.
    pub simulated_nanos: u64,
    pub events: u64,
    pub trace: u64,
}

impl Sweep {
    pub fn new(seed: u64, disks: Vec<Image>) -> Sweep {
        Sweep {
            world: WorldConfig::new(seed),
            disks: disks.into_iter().map(|image| (image, DiskConfig::default())).collect(),
            how: Stop::Power,
            states_per_crash: 256,
            drawn_per_crash: usize::MAX,
            limit: Duration::from_secs(3600),
        }
    }

    fn world(&self) -> (World, Env, Vec<DiskHandle>) {
        let world = World::new(self.world.clone());
        let node = world.add_node(Ipv4Addr::new(10, 0, 0, 1));
        let add = |(i, (image, config)): (usize, &(Image, DiskConfig))| {
            node.add_disk_image(&format!("d{i}"), image.clone(), config.clone())
        };
        let disks = self.disks.iter().enumerate().map(add).collect();
        let env = Env { world: world.handle(), node };
        (world, env, disks)
    }

    /// Runs `operation`, and hands `check` every different state that a crash during it or right after it may
    /// leave. What both share tells `check` how far the operation had come; `promised` is a number that changes
    /// with that, because a state that was fine a moment ago is not once more has been promised. Returns the
    /// disks as they are when the operation has returned.
    /// # Panics — when the operation does not return.
    pub fn run<F, Fut>(
        &self,
        operation: F,
        promised: impl Fn() -> u64,
        mut check: impl FnMut(Crash<'_>),
    ) -> (Swept, CrashState)
    where
        F: FnOnce(Env, Vec<DiskHandle>) -> Fut,
        Fut: Future<Output = ()> + 'static,
    {
        let (world, env, disks) = self.world();
        let (node, finished) = (env.node.clone(), Rc::new(Cell::new(false)));
        let start = Cell::new(Some((operation, env, disks.clone(), finished.clone())));
        node.start(vec![()], |()| {
            let (operation, env, disks, finished) = start.take().expect("one reactor, started once");
            let future = operation(env, disks);
            async move {
                future.await;
                finished.set(true);
                // The process stays: what it leaves to its tasks goes on, and its disks stay open.
                std::future::pending::<()>().await;
            }
        });
        let mut swept = Swept::default();
        let mut seen = HashSet::new();
        let mut last = (u64::MAX, 0, false);
        let end = self.limit.as_nanos() as u64;
        loop {
            let now = (disks.iter().map(DiskHandle::changes).sum(), promised(), finished.get());
            if now != last {
                last = now;
                swept.crashes += 1;
                let space = world.crash_space(&disks, self.how);
                let seed = self.world.seed ^ swept.crashes;
                for state in space.drawn(self.states_per_crash, self.drawn_per_crash, seed) {
                    let fresh = seen.insert((now.1, now.2, self.fingerprint(&state)));
                    if fresh {
                        swept.states += 1;
                        check(Crash { event: node.events(), finished: now.2, disks: &state });
                    }
                }
            }
            if finished.get() {
                break;
            }
            assert!(world.step() && world.now_nanos() < end, "seed {}: the operation hangs", self.world.seed);
        }
        assert_eq!(world.leaked_buffers(), 0);
        (swept.simulated_nanos, swept.events) = (world.now_nanos(), world.events());
        swept.trace = world.trace_hash();
        (swept, disks.iter().map(DiskHandle::image).collect())
    }

    fn fingerprint(&self, state: &CrashState) -> u64 {
        let each = state.iter().zip(&self.disks).map(|(image, (base, _))| image.fingerprint_since(base));
        each.fold(0, |sum: u64, one| sum.rotate_left(7).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ one)
    }
}
