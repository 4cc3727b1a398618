//! What a test holds: the world, its nodes, its disks.

use super::crash::CrashSpace;
use super::disk::{DiskConfig, DiskFaults, DiskStats};
use super::image::Image;
use super::net::LinkConfig;
use super::rng::Rng;
use super::world::{Event, Shared, Stop, WorldConfig};
use crate::device::{DeviceSpec, WriteCache};
use peristyle_base::Duration;
use std::cell::RefCell;
use std::future::Future;
use std::net::Ipv4Addr;
use std::ops::Deref;
use std::rc::Rc;

/// Owns all that is simulated; when it is dropped, every process in it ends.
pub struct World {
    handle: WorldHandle,
}

/// Access to a [`World`], also from tasks inside it.
#[derive(Clone)]
pub struct WorldHandle {
    shared: Rc<Shared>,
}

impl World {
    pub fn new(config: WorldConfig) -> World {
        World { handle: WorldHandle { shared: Shared::new(config) } }
    }
    pub fn handle(&self) -> WorldHandle {
        self.handle.clone()
    }
}

impl Deref for World {
    type Target = WorldHandle;
    fn deref(&self) -> &WorldHandle {
        &self.handle
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.handle.shared.end();
    }
}

impl WorldHandle {
    pub fn add_node(&self, ip: Ipv4Addr) -> NodeHandle {
        NodeHandle { world: self.clone(), node: self.shared.core.borrow_mut().add_node(ip) }
    }

    /// Handles one event: polls one task, completes one operation, delivers one segment. False when nothing is
    /// left that could happen.
    pub fn step(&self) -> bool {
        self.shared.step()
    }

    /// Runs until `condition` holds or `limit` of simulated time has passed, or nothing can happen any more.
    /// True when the condition holds.
    pub fn run_until(&self, mut condition: impl FnMut() -> bool, limit: Duration) -> bool {
        let end = self.now_nanos().saturating_add(limit.as_nanos() as u64);
        loop {
            if condition() {
                return true;
            }
            if self.shared.next_at().is_none_or(|at| at > end) {
                return false;
            }
            self.shared.step();
        }
    }

    /// Runs for this much simulated time.
    pub fn run_for(&self, duration: Duration) {
        let end = self.now_nanos().saturating_add(duration.as_nanos() as u64);
        while self.shared.next_at().is_some_and(|at| at <= end) {
            self.shared.step();
        }
        let mut core = self.shared.core.borrow_mut();
        core.now = core.now.max(end);
    }

    /// Simulated time since the world began.
    pub fn now_nanos(&self) -> u64 {
        self.shared.core.borrow().now
    }
    /// Events so far.
    pub fn events(&self) -> u64 {
        self.shared.core.borrow().events
    }
    /// Hash over every event, its time, and all bytes written and sent: equal for equal runs.
    pub fn trace_hash(&self) -> u64 {
        self.shared.core.borrow().trace
    }
    /// Buffers that ended processes did not give back: held by someone outside, or lost.
    pub fn leaked_buffers(&self) -> u64 {
        self.shared.core.borrow().leaked
    }
    /// A generator of its own for the test, derived from the seed.
    pub fn rng(&self) -> Rng {
        self.shared.core.borrow_mut().rng.fork()
    }

    /// Runs `action` after `delay`. It may use the world, not wait.
    pub fn after(&self, delay: Duration, action: impl FnOnce() + 'static) {
        let mut core = self.shared.core.borrow_mut();
        core.push_in(delay.as_nanos() as u64, Event::Action(Box::new(action)));
    }

    /// Stops or restores what one node sends to the other. Data waits, and connections give up in the end.
    pub fn block(&self, from: &NodeHandle, to: &NodeHandle, blocked: bool) {
        self.shared.core.borrow_mut().net.set_blocked(from.node, to.node, blocked);
    }
    /// Both directions.
    pub fn partition(&self, a: &NodeHandle, b: &NodeHandle, parted: bool) {
        self.block(a, b, parted);
        self.block(b, a, parted);
    }
    /// For connections made from now on.
    pub fn set_link(&self, from: &NodeHandle, to: &NodeHandle, link: LinkConfig) {
        self.shared.core.borrow_mut().net.set_link(from.node, to.node, link);
    }
    /// Resets every connection between the two nodes, for both sides.
    pub fn reset_connections(&self, a: &NodeHandle, b: &NodeHandle) {
        let mut core = self.shared.core.borrow_mut();
        for (id, from, to) in core.net.connections() {
            if (from, to) == (a.node, b.node) || (from, to) == (b.node, a.node) {
                core.reset_both(id);
            }
        }
    }
    /// Connections between the two nodes of which an end is still open, or has not been told of the other's.
    pub fn connections_between(&self, a: &NodeHandle, b: &NodeHandle) -> usize {
        let core = self.shared.core.borrow();
        let pairs = core.net.connections();
        pairs.iter().filter(|&&(_, x, y)| (x, y) == (a.node, b.node) || (x, y) == (b.node, a.node)).count()
    }
    pub fn connection_count(&self) -> usize {
        self.shared.core.borrow().net.connections().len()
    }

    /// All that a crash of these disks' nodes at this moment may leave on them, in this order.
    pub fn crash_space(&self, disks: &[DiskHandle], how: Stop) -> CrashSpace {
        let core = self.shared.core.borrow();
        let mut space = CrashSpace::default();
        for disk in disks {
            core.disks[disk.disk as usize].add_to(&mut space, how == Stop::Power);
        }
        space
    }
}

/// One simulated machine.
#[derive(Clone)]
pub struct NodeHandle {
    world: WorldHandle,
    node: u32,
}

impl NodeHandle {
    pub fn world(&self) -> &WorldHandle {
        &self.world
    }
    pub fn ip(&self) -> Ipv4Addr {
        self.world.shared.core.borrow().nodes[self.node as usize].ip
    }

    /// Boots a process with one reactor per seed, as `uring::run` does. It ends when all the futures have returned.
    /// # Panics — when one runs already.
    pub fn start<S, F, Fut>(&self, seeds: Vec<S>, start: F)
    where
        F: Fn(S) -> Fut,
        Fut: Future<Output = ()> + 'static,
    {
        self.world.shared.start(self.node, seeds, start);
    }
    /// Tasks that its reactors have polled since the machine was made; each takes [`WorldConfig::poll_ns`] on average.
    pub fn turns(&self) -> u64 {
        self.world.shared.core.borrow().nodes[self.node as usize].turns
    }
    pub fn is_running(&self) -> bool {
        self.world.shared.core.borrow().nodes[self.node as usize].running
    }
    /// kill -9. From within one of the node's own tasks: as soon as that task yields.
    pub fn kill(&self) {
        self.stop(Stop::Kill);
    }
    /// The machine goes dark, its disks lose or tear what was not stable; [`start`](Self::start) brings it back.
    pub fn power_off(&self) {
        self.stop(Stop::Power);
    }
    pub fn stop(&self, how: Stop) {
        self.world.shared.stop(self.node, how);
    }
    /// The process does nothing for so long, and then goes on as if no time had passed: SIGSTOP and SIGCONT. What it is sent
    /// waits for it.
    pub fn pause(&self, time: Duration) {
        let mut core = self.world.shared.core.borrow_mut();
        let until = core.now.saturating_add(time.as_nanos() as u64);
        core.nodes[self.node as usize].paused_until = until;
    }
    /// Asks the process to end, as SIGTERM does.
    pub fn request_shutdown(&self) {
        self.world.shared.request_shutdown(self.node);
    }

    /// Polls of this node's tasks and completions of its disks so far.
    pub fn events(&self) -> u64 {
        self.world.shared.core.borrow().nodes[self.node as usize].events
    }
    /// Ends the process when that many events have happened in it, instead of the last of them.
    pub fn stop_at_event(&self, event: u64, how: Stop) {
        self.world.shared.core.borrow_mut().nodes[self.node as usize].stop_at = Some((event, how));
    }

    /// A new disk, all zeros.
    pub fn add_disk(&self, name: &str, bytes: u64, config: DiskConfig) -> DiskHandle {
        self.add_disk_image(name, Image::new(bytes), config)
    }
    /// A new disk with contents.
    pub fn add_disk_image(&self, name: &str, image: Image, config: DiskConfig) -> DiskHandle {
        let disk = self.world.shared.core.borrow_mut().add_disk(self.node, name, image, config);
        DiskHandle { world: self.world.clone(), disk }
    }
    /// A disk by its name, also one that the process has created.
    pub fn disk(&self, name: &str) -> Option<DiskHandle> {
        let disk = self.world.shared.core.borrow().find_disk(self.node, name)?;
        Some(DiskHandle { world: self.world.clone(), disk })
    }
}

/// One simulated disk, seen from outside: whatever is done here happens at once and behind its user's back.
#[derive(Clone)]
pub struct DiskHandle {
    world: WorldHandle,
    disk: u32,
}

impl DiskHandle {
    fn with<R>(&self, f: impl FnOnce(&mut super::disk::DiskState) -> R) -> R {
        f(&mut self.world.shared.core.borrow_mut().disks[self.disk as usize])
    }
    pub fn name(&self) -> String {
        self.with(|d| d.name.clone())
    }
    /// What a program opens.
    pub fn spec(&self) -> DeviceSpec {
        DeviceSpec::Path { path: self.name().into(), create_bytes: None, write_cache: WriteCache::Auto }
    }
    pub fn bytes(&self) -> u64 {
        self.with(|d| d.current.bytes())
    }
    /// What reads see now.
    pub fn image(&self) -> Image {
        self.with(|d| d.current.clone())
    }
    /// Replaces the contents; all of it is stable.
    pub fn set_image(&self, image: Image) {
        self.with(|d| d.set_image(image));
    }
    pub fn read_raw(&self, offset: u64, into: &mut [u8]) {
        self.with(|d| d.current.read(offset, into));
    }
    pub fn write_raw(&self, offset: u64, bytes: &[u8]) {
        self.with(|d| d.plant(|image| image.write(offset, bytes)));
    }
    pub fn flip_bit(&self, offset: u64, bit: u8) {
        self.with(|d| d.plant(|image| image.flip_bit(offset, bit)));
    }
    /// Reads of the pages in this range fail until they are written.
    pub fn add_latent_error(&self, offset: u64, bytes: u64) {
        self.with(|d| d.latent.extend(offset / 4096..(offset + bytes).div_ceil(4096)));
    }
    pub fn clear_latent_errors(&self) {
        self.with(|d| d.latent.clear());
    }
    pub fn set_faults(&self, faults: DiskFaults) {
        self.with(|d| d.faults = faults);
    }
    pub fn faults(&self) -> DiskFaults {
        self.with(|d| d.faults.clone())
    }
    pub fn update_faults(&self, change: impl FnOnce(&mut DiskFaults)) {
        self.with(|d| change(&mut d.faults));
    }
    pub fn stats(&self) -> DiskStats {
        self.with(|d| d.stats)
    }
    /// Grows whenever what a crash may leave changes.
    pub fn changes(&self) -> u64 {
        self.with(|d| d.changes)
    }
    /// All that a crash at this moment may leave on this disk.
    pub fn crash_space(&self, how: Stop) -> CrashSpace {
        self.world.crash_space(std::slice::from_ref(self), how)
    }
}

/// What a future under [`run`] gets.
#[derive(Clone)]
pub struct Env {
    pub world: WorldHandle,
    /// The node on which it runs.
    pub node: NodeHandle,
}

impl Env {
    /// A new disk of this node with default latencies.
    pub fn disk(&self, name: &str, bytes: u64) -> DiskHandle {
        self.node.add_disk(name, bytes, DiskConfig::default())
    }
}

/// Runs one future on a simulated node with one reactor, and returns what it returns.
/// # Panics — when the future waits for something that can never happen, or for more than a simulated day.
pub fn run<F, Fut>(seed: u64, f: F) -> Fut::Output
where
    F: FnOnce(Env) -> Fut,
    Fut: Future + 'static,
    Fut::Output: 'static,
{
    run_with(WorldConfig::new(seed), f)
}

/// The clock of the machine that simulates: for reports of how fast that goes, never for what is simulated.
pub fn real_time() -> Duration {
    let clock = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(clock.tv_sec as u64, clock.tv_nsec as u32)
}

/// What this thread has used of a processor: for the same reports, when others use it as well.
pub fn thread_time() -> Duration {
    let clock = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(clock.tv_sec as u64, clock.tv_nsec as u32)
}

/// [`run`] in a world of a certain kind.
pub fn run_with<F, Fut>(config: WorldConfig, f: F) -> Fut::Output
where
    F: FnOnce(Env) -> Fut,
    Fut: Future + 'static,
    Fut::Output: 'static,
{
    let seed = config.seed;
    let world = World::new(config);
    let node = world.add_node(Ipv4Addr::new(10, 0, 0, 1));
    let output = Rc::new(RefCell::new(None));
    let env = Env { world: world.handle(), node: node.clone() };
    let (f, slot) = (RefCell::new(Some(f)), output.clone());
    node.start(vec![()], move |()| {
        let future = (f.borrow_mut().take().expect("one reactor, started once"))(env.clone());
        let slot = slot.clone();
        async move {
            let value = future.await;
            *slot.borrow_mut() = Some(value);
        }
    });
    let done = world.run_until(|| output.borrow().is_some(), Duration::from_secs(86_400));
    assert!(done, "seed {seed}: the future waits for ever (simulated time {} ns)", world.now_nanos());
    output.take().expect("just seen")
}
