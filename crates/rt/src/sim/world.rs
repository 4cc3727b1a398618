//! The event queue, the clocks, and reactors taking turns.

use super::cell::Answer;
use super::disk::{DiskConfig, DiskState, Lost};
use super::host::{Host, give_pool, take_pool};
use super::image::Image;
use super::net::{LinkConfig, Net, NetEvent};
use super::rng::Rng;
use crate::buf::BufConfig;
use crate::reactor::{self, Backend, Reactor, ReactorId};
use crate::task::Class;
use std::cell::{Cell, RefCell, RefMut};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::Future;
use std::net::Ipv4Addr;
use std::rc::Rc;

/// What a world is made from. All that happens follows from it and from what the test does.
#[derive(Clone, Debug)]
pub struct WorldConfig {
    pub seed: u64,
    /// Buffers of each reactor.
    pub buffers: BufConfig,
    /// For disks that a program creates by opening them.
    pub disk: DiskConfig,
    /// Between two nodes, unless set for a pair.
    pub link: LinkConfig,
    /// Simulated time that polling one task takes.
    pub poll_ns: u64,
    /// What a call of [`crate::blocking`] takes.
    pub blocking_ns: u64,
    /// Clocks of nodes run wrong by up to this much.
    pub drift_ppm: u32,
}

impl WorldConfig {
    pub fn new(seed: u64) -> WorldConfig {
        WorldConfig {
            seed,
            buffers: BufConfig::small(),
            disk: DiskConfig::default(),
            link: LinkConfig::default(),
            poll_ns: 150,
            blocking_ns: 200_000,
            drift_ppm: 100,
        }
    }
}

pub(crate) enum Event {
    /// Poll one task of a host.
    Turn(u32),
    Timer(u32),
    Disk {
        disk: u32,
        number: u64,
    },
    Net(NetEvent),
    Answer(Rc<Answer<()>>),
    Stop {
        node: u32,
        how: Stop,
    },
    Action(Box<dyn FnOnce()>),
}

/// How a process ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// Its main tasks have returned.
    Exit,
    /// kill -9: tasks vanish, sockets are closed by the system, writes in flight may or may not happen.
    Kill,
    /// The machine goes: sockets say nothing, unflushed writes may be lost or torn.
    Power,
}

struct Scheduled {
    at: u64,
    tie: u32,
    order: u64,
    event: Event,
}
impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.tie, self.order).cmp(&(other.at, other.tie, other.order))
    }
}

pub(crate) struct Node {
    pub(crate) ip: Ipv4Addr,
    clock_offset: i64,
    drift_ppm: i64,
    pub(crate) running: bool,
    /// Not answering at all: powered off and not started again.
    pub(crate) dark: bool,
    /// Polls of its tasks and completions of its disks so far.
    pub(crate) events: u64,
    pub(crate) stop_at: Option<(u64, Stop)>,
    /// Its process is stopped, as by SIGSTOP, until then.
    pub(crate) paused_until: u64,
    /// Tasks that its reactors have polled.
    pub(crate) turns: u64,
    hosts: Vec<u32>,
}

impl Node {
    pub(super) fn local(&self, world: u64) -> u64 {
        let drift = i128::from(world) * i128::from(self.drift_ppm) / 1_000_000;
        (i128::from(self.clock_offset) + i128::from(world) + drift).max(0) as u64
    }
    /// The earliest world time at which the node's clock shows at least `local`.
    fn world(&self, local: u64) -> u64 {
        let elapsed = (i128::from(local) - i128::from(self.clock_offset)).max(0);
        let exact = elapsed * 1_000_000 / i128::from(1_000_000 + self.drift_ppm);
        let mut world = exact.min(i128::from(u64::MAX / 2)) as u64;
        while world < u64::MAX / 2 && self.local(world) < local {
            world += 1;
        }
        world
    }
}

pub(super) struct HostState {
    node: u32,
    pub(super) reactor: Option<Rc<Reactor>>,
    host: Rc<Host>,
    turn: bool,
    timer_at: u64,
}

pub(crate) struct Core {
    pub(crate) config: WorldConfig,
    pub(crate) now: u64,
    order: u64,
    pub(crate) rng: Rng,
    queue: BinaryHeap<Reverse<Scheduled>>,
    pub(crate) trace: u64,
    pub(crate) events: u64,
    pub(super) hosts: Vec<HostState>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) disks: Vec<DiskState>,
    pub(crate) net: Net,
    /// Buffers that ended processes did not give back.
    pub(crate) leaked: u64,
}

impl Core {
    pub(crate) fn push_at(&mut self, at: u64, event: Event) {
        self.order += 1;
        let tie = self.rng.next_u64() as u32;
        self.queue.push(Reverse(Scheduled { at: at.max(self.now), tie, order: self.order, event }));
    }
    pub(crate) fn push_in(&mut self, delay: u64, event: Event) {
        self.push_at(self.now.saturating_add(delay), event);
    }
    /// Adds to the hash of everything that has happened.
    pub(crate) fn mix(&mut self, value: u64) {
        self.trace = (self.trace ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    }
    pub(crate) fn find_disk(&self, node: u32, name: &str) -> Option<u32> {
        self.disks.iter().position(|d| d.node == node && d.name == name).map(|i| i as u32)
    }
    pub(crate) fn add_disk(&mut self, node: u32, name: &str, image: Image, config: DiskConfig) -> u32 {
        assert!(self.find_disk(node, name).is_none(), "the node has a disk of that name");
        let rng = self.rng.fork();
        self.disks.push(DiskState::new(node, name, image, config, rng));
        self.disks.len() as u32 - 1
    }
    pub(crate) fn add_node(&mut self, ip: Ipv4Addr) -> u32 {
        assert!(self.nodes.iter().all(|n| n.ip != ip), "the address is taken");
        let clock_offset = self.rng.below(1_000_000_000_000) as i64;
        let drift = i64::from(self.config.drift_ppm);
        let drift_ppm = self.rng.below(2 * drift as u64 + 1) as i64 - drift;
        self.nodes.push(Node {
            ip,
            clock_offset,
            drift_ppm,
            running: false,
            dark: false,
            events: 0,
            stop_at: None,
            paused_until: 0,
            turns: 0,
            hosts: Vec::new(),
        });
        self.nodes.len() as u32 - 1
    }
    fn schedule_turn(&mut self, host: u32, delay: u64) {
        let state = &mut self.hosts[host as usize];
        if !state.turn && state.reactor.is_some() {
            state.turn = true;
            self.push_in(delay, Event::Turn(host));
        }
    }
    fn schedule_timer(&mut self, host: u32) {
        let state = &self.hosts[host as usize];
        let Some(next) = state.reactor.as_ref().and_then(|r| r.timers.next()) else { return };
        let at = self.nodes[state.node as usize].world(next.nanos());
        if at < state.timer_at {
            self.hosts[host as usize].timer_at = at;
            self.push_at(at, Event::Timer(host));
        }
    }
    /// Until when the host's process is stopped.
    fn pause_of(&self, host: u32) -> u64 {
        self.nodes[self.hosts[host as usize].node as usize].paused_until
    }
    fn process_is_done(&self, node: u32) -> bool {
        let node = &self.nodes[node as usize];
        node.hosts.iter().all(|&h| self.hosts[h as usize].host.main_done.get())
    }
    /// Counts an event of a node; true when it is the one at which the node is to stop.
    fn count(&mut self, node: u32) -> Option<Stop> {
        let node = &mut self.nodes[node as usize];
        node.events += 1;
        match node.stop_at {
            Some((at, how)) if node.events >= at && node.running => {
                node.stop_at = None;
                Some(how)
            }
            _ => None,
        }
    }
}

pub(crate) struct Shared {
    pub(crate) core: RefCell<Core>,
    /// Hosts with a task that became ready outside of their own turn.
    pub(super) woken: RefCell<Vec<u32>>,
    /// Host whose task is being polled.
    running: Cell<Option<u32>>,
}

impl Shared {
    pub(crate) fn new(config: WorldConfig) -> Rc<Shared> {
        let core = Core {
            now: 0,
            order: 0,
            rng: Rng::new(config.seed),
            queue: BinaryHeap::with_capacity(1024),
            trace: 0,
            events: 0,
            hosts: Vec::new(),
            nodes: Vec::new(),
            disks: Vec::new(),
            net: Net::new(),
            leaked: 0,
            config,
        };
        Rc::new(Shared {
            core: RefCell::new(core),
            woken: RefCell::new(Vec::new()),
            running: Cell::new(None),
        })
    }

    /// Starts a process: one reactor for each future maker.
    pub(crate) fn start<S, F, Fut>(self: &Rc<Self>, node: u32, seeds: Vec<S>, start: F)
    where
        F: Fn(S) -> Fut,
        Fut: Future<Output = ()> + 'static,
    {
        for (index, seed) in seeds.into_iter().enumerate() {
            let (host, reactor) = self.boot(node, index as u16);
            reactor.enter(|| {
                let main = start(seed);
                let mine = host.clone();
                crate::spawn(async move {
                    main.await;
                    mine.main_done.set(true);
                });
            });
            self.core.borrow_mut().schedule_turn(host.id, 0);
        }
    }

    fn boot(self: &Rc<Self>, node: u32, index: u16) -> (Rc<Host>, Rc<Reactor>) {
        let mut core = self.core.borrow_mut();
        let id = core.hosts.len() as u32;
        assert!(index > 0 || !core.nodes[node as usize].running, "the node runs already");
        let state = &mut core.nodes[node as usize];
        state.running = true;
        state.dark = false;
        state.hosts.push(id);
        let host = Rc::new(Host::new(self.clone(), id, node));
        let seed = core.rng.next_u64();
        let pool = take_pool(core.config.buffers);
        let slot = reactor::reserve_local_slot();
        let reactor = Reactor::new(slot, ReactorId(index), pool, Backend::Sim(host.clone()), seed);
        reactor.register();
        core.hosts.push(HostState {
            node,
            reactor: Some(reactor.clone()),
            host: host.clone(),
            turn: false,
            timer_at: u64::MAX,
        });
        (host, reactor)
    }

    /// Handles the next event. False when there is none.
    pub(crate) fn step(self: &Rc<Self>) -> bool {
        let mut core = self.core.borrow_mut();
        let Some(Reverse(Scheduled { at, order, event, .. })) = core.queue.pop() else { return false };
        core.now = at;
        core.events += 1;
        core.mix(at ^ order << 40);
        match event {
            Event::Turn(host) | Event::Timer(host) if core.pause_of(host) > at => {
                let until = core.pause_of(host);
                core.push_at(until, event);
                drop(core);
            }
            Event::Turn(host) => {
                drop(core);
                self.turn(host);
            }
            Event::Timer(host) => self.timer(core, host),
            Event::Disk { disk, number } => self.disk(core, disk, number),
            Event::Net(event) => {
                core.net_event(event);
                drop(core);
            }
            Event::Answer(answer) => {
                drop(core);
                answer.fill(());
            }
            Event::Stop { node, how } => {
                drop(core);
                self.stop(node, how);
            }
            Event::Action(action) => {
                drop(core);
                action();
            }
        }
        self.schedule_woken();
        true
    }

    fn schedule_woken(&self) {
        let mut woken = self.woken.borrow_mut();
        if woken.is_empty() {
            return;
        }
        let mut core = self.core.borrow_mut();
        for host in woken.drain(..) {
            core.hosts[host as usize].host.woken.set(false);
            let delay = core.rng.below(500);
            core.schedule_turn(host, delay);
        }
    }

    fn timer(&self, mut core: RefMut<'_, Core>, host: u32) {
        let now = core.now;
        let state = &mut core.hosts[host as usize];
        if now < state.timer_at {
            return; // stale: the timer that it was for has fired or was moved
        }
        state.timer_at = u64::MAX;
        let Some(reactor) = state.reactor.clone() else { return };
        drop(core);
        reactor.timers.fire(reactor.now());
        self.core.borrow_mut().schedule_timer(host);
    }

    fn disk(self: &Rc<Self>, mut core: RefMut<'_, Core>, disk: u32, number: u64) {
        let now = core.now;
        let state = &mut core.disks[disk as usize];
        let Some(node) = state.operation_node(number) else { return };
        if now < state.faults.stall_until {
            let at = state.faults.stall_until;
            core.push_at(at, Event::Disk { disk, number });
            return;
        }
        if let Some(how) = core.count(node) {
            drop(core);
            return self.stop(node, how);
        }
        core.disks[disk as usize].complete(now, number);
    }

    /// Polls one task of a host.
    fn turn(self: &Rc<Self>, id: u32) {
        let (reactor, host, first) = {
            let mut core = self.core.borrow_mut();
            let state = &mut core.hosts[id as usize];
            state.turn = false;
            let node = state.node;
            let (Some(reactor), host) = (state.reactor.clone(), state.host.clone()) else { return };
            if let Some(how) = core.count(node) {
                drop(core);
                return self.stop(node, how);
            }
            core.nodes[node as usize].turns += 1;
            let first = [Class::Foreground, Class::Background][core.rng.below(2) as usize];
            (reactor, host, first)
        };
        self.running.set(Some(id));
        let _running = Running(&self.running);
        reactor.enter(|| {
            if host.poked.take() {
                let pollers = reactor.pollers.borrow().clone();
                pollers.iter().for_each(|poll| {
                    poll();
                });
            }
            reactor.tasks.run_one(reactor.slot, first);
        });
        self.running.set(None);
        let mut core = self.core.borrow_mut();
        if reactor.tasks.has_ready() {
            let poll_ns = core.config.poll_ns;
            let delay = poll_ns / 2 + core.rng.below(poll_ns + 1);
            core.schedule_turn(id, delay);
        }
        core.schedule_timer(id);
        if host.main_done.get() && core.process_is_done(host.node) {
            drop(core);
            self.stop(host.node, Stop::Exit);
        }
    }

    /// Ends the node's process. From within one of its own tasks: as soon as that task's poll returns.
    pub(crate) fn stop(self: &Rc<Self>, node: u32, how: Stop) {
        let (reactors, _lost): (Vec<Rc<Reactor>>, Vec<Lost>) = {
            let mut core = self.core.borrow_mut();
            let core = &mut *core;
            if let Some(running) = self.running.get()
                && core.hosts[running as usize].node == node
            {
                core.push_in(0, Event::Stop { node, how });
                return;
            }
            let state = &mut core.nodes[node as usize];
            state.dark |= how == Stop::Power;
            if how == Stop::Power {
                // CLOCK_BOOTTIME begins anew.
                state.clock_offset = core.rng.below(10_000_000_000) as i64 - core.now as i64;
            }
            state.running = false;
            let hosts = std::mem::take(&mut state.hosts);
            let reactors = hosts.iter().filter_map(|&h| core.hosts[h as usize].reactor.take()).collect();
            core.process_ended(node, how);
            let mut lost = Vec::new();
            for disk in core.disks.iter_mut().filter(|d| d.node == node) {
                lost.push(disk.crash(how == Stop::Power));
            }
            (reactors, lost)
        };
        for reactor in &reactors {
            reactor.enter(|| {
                // A drop may spawn: what it spawns is dropped too.
                for _ in 0..64 {
                    if reactor.tasks.alive() == 0 {
                        break;
                    }
                    reactor.tasks.clear();
                }
            });
            reactor.timers.clear();
            reactor.pollers.borrow_mut().clear();
            reactor.unregister();
        }
        drop(_lost);
        let config = self.core.borrow().config.buffers;
        for reactor in reactors {
            let missing = give_pool(config, reactor.pool.clone());
            self.core.borrow_mut().leaked += missing as u64;
        }
    }

    /// When the next event happens.
    pub(crate) fn next_at(&self) -> Option<u64> {
        self.schedule_woken();
        self.core.borrow().queue.peek().map(|Reverse(next)| next.at)
    }

    pub(crate) fn request_shutdown(&self, node: u32) {
        let reactors: Vec<Rc<Reactor>> = {
            let core = self.core.borrow();
            let hosts = &core.nodes[node as usize].hosts;
            hosts.iter().filter_map(|&h| core.hosts[h as usize].reactor.clone()).collect()
        };
        reactors.iter().for_each(|reactor| reactor.shutdown.set());
        self.schedule_woken();
    }

    /// Ends all processes, so that nothing refers to this world any more.
    pub(crate) fn end(self: &Rc<Self>) {
        let nodes = self.core.borrow().nodes.len() as u32;
        for node in 0..nodes {
            self.stop(node, Stop::Kill);
        }
        let queue = std::mem::take(&mut self.core.borrow_mut().queue);
        drop(queue);
        let hosts = std::mem::take(&mut self.core.borrow_mut().hosts);
        drop(hosts);
    }
}

struct Running<'a>(&'a Cell<Option<u32>>);
impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}
