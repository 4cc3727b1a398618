//! A running node: reactors on threads of their own, what they say on the program's thread.

use super::admin::{Admin, Fronts, Parts};
use super::busy::{in_use, when_free};
use super::{Observer, Plan, store};
use crate::failure::Failure;
use crate::render::{Rates, Ready, ReadyVolume, StatusLine};
use peristyle_base::units::format_bytes;
use peristyle_control::config::{HugePages, ListenAddr, Poll};
use peristyle_control::{AnyStore, Control, ShardRecords, serve_admin};
use peristyle_member::{Member, settle_volume, spec_of};
use peristyle_node::nbd::NbdConfig;
use peristyle_node::stats::{DirectionTotals, IoTotals};
use peristyle_node::{DeviceState, Node, NodeSeed, ShardPhase, VolumeSpec, seeds};
use peristyle_rt::buf::{BufConfig, CLASS_BYTES};
use peristyle_rt::sync::Semaphore;
use peristyle_rt::{Addr, Duration, Listener, PollMode, ReactorId, RuntimeConfig};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};

pub type Store = ShardRecords<AnyStore>;
pub type ThisNode = Node;

/// How often a line of status is made.
const STATUS_PERIOD: Duration = Duration::from_secs(1);
/// A node whose shards do not come up says why, this often.
const WAITING_PERIOD: Duration = Duration::from_secs(5);

/// From the reactors to the program's thread.
enum News {
    Note(String),
    Ready(Ready),
    Status(StatusLine),
    Failed(Failure),
}

/// What the first reactor gets besides its part of the node: the control plane's edge and the voice.
struct Home {
    plan: Plan,
    store: AnyStore,
    news: Sender<News>,
}

/// Opens the store, runs the node until it is asked to stop, and closes the store.
pub fn run(plan: Plan, observer: &mut dyn Observer) -> Result<(), Failure> {
    let opened = store::open(&plan)?;
    for note in &opened.notes {
        eprintln!("peristyle: {note}");
    }
    let config = runtime(&plan);
    let (news, told) = channel();
    let records = ShardRecords(opened.store.clone());
    let mut homes = vec![Some(Home { plan: plan.clone(), store: opened.store.clone(), news })];
    homes.resize_with(plan.reactors, || None);
    let parts: Vec<_> = seeds(&opened.node, plan.reactors, &records)
        .into_iter()
        .zip(homes)
        .map(|(seed, home)| (seed, home, plan.clone(), opened.nqn.clone()))
        .collect();
    let running = std::thread::Builder::new()
        .name("reactors".into())
        .spawn(move || {
            peristyle_rt::run(config, parts, |(seed, home, plan, nqn)| reactor(seed, home, plan, nqn))
        })
        .map_err(|e| Failure::failed(format!("cannot start a thread: {e}")))?;
    let outcome = listen(&told, observer);
    let ended = running.join().map_err(|_| Failure::failed("a reactor panicked"))?;
    ended.map_err(|e| Failure::failed(e.to_string()))?;
    opened.close()?;
    outcome
}

fn listen(told: &Receiver<News>, observer: &mut dyn Observer) -> Result<(), Failure> {
    // Ends when the first reactor drops its sender.
    let mut outcome = Ok(());
    while let Ok(news) = told.recv() {
        match news {
            News::Note(note) => eprintln!("peristyle: {note}"),
            News::Ready(ready) => observer.ready(&ready),
            News::Status(line) => observer.status(&line),
            News::Failed(failure) => outcome = Err(failure),
        }
    }
    outcome
}

fn runtime(plan: &Plan) -> RuntimeConfig {
    let cores = match plan.cores.is_empty() {
        true => None,
        false => Some(plan.cores.iter().cycle().take(plan.reactors).map(|&c| c as usize).collect()),
    };
    RuntimeConfig {
        reactors: plan.reactors,
        cores,
        poll: match plan.poll {
            Poll::Busy => PollMode::Busy,
            Poll::Adaptive => PollMode::Adaptive,
            Poll::Sleep => PollMode::Sleep,
        },
        buffers: buffers(plan.buffers, plan.hugepages != HugePages::Off),
        signals: true,
        ..RuntimeConfig::default()
    }
}

/// The default mixture of sizes, scaled to a budget.
fn buffers(bytes: u64, huge_pages: bool) -> BufConfig {
    let default = BufConfig::default();
    let whole = default.total_bytes() as u64;
    let mut counts = default.counts.map(|n| ((n as u64 * bytes / whole) as usize).max(1));
    // Whatever the budget: recovery reads whole columns, a transfer has 512 KiB, a shard keeps some back.
    let least = [512, 32, 16, 16, 16, 8];
    for (count, least) in counts.iter_mut().zip(least) {
        *count = (*count).max(least);
    }
    debug_assert_eq!(counts.len(), CLASS_BYTES.len());
    BufConfig { counts, huge_pages }
}

async fn reactor(seed: NodeSeed<Store>, home: Option<Home>, plan: Plan, nqn: String) {
    let node: Rc<ThisNode> = Node::start(seed, false).await;
    let Some(home) = home else {
        follow(&node, &plan, nqn).await;
        stop(&node).await;
        return;
    };
    let news = home.news.clone();
    if let Err(failure) = lead(&node, home).await {
        let _ = news.send(News::Failed(failure));
        peristyle_rt::request_shutdown();
    }
    stop(&node).await;
}

/// Another reactor's work: connections that the system gives to it.
async fn follow(node: &Rc<ThisNode>, plan: &Plan, nqn: String) {
    let ready = async {
        while !node.is_ready() {
            peristyle_rt::sleep(Duration::from_millis(1)).await;
        }
    };
    if let peristyle_rt::Either::Right(()) =
        peristyle_rt::select(ready, peristyle_rt::shutdown_requested()).await
    {
        return;
    }
    // Home says that it waits for an address; a reactor that gets none in the end says that.
    if let Err(e) = start_front_ends(node, plan, Vec::new(), nqn, &|_| {}).await {
        eprintln!("peristyle: reactor {}: {e}", node.id().0);
    }
    peristyle_rt::shutdown_requested().await;
}

/// Front ends first: what is in flight is answered before the shards stop.
async fn stop(node: &Rc<ThisNode>) {
    node.stop_nbd().await;
    super::target::stop(node).await;
    node.stop();
}

/// The first reactor's work: front ends, admin socket, status.
async fn lead(node: &Rc<ThisNode>, home: Home) -> Result<(), Failure> {
    let Home { plan, store: shared, news } = home;
    let say = |note: String| drop(news.send(News::Note(note)));
    let control =
        Control::open(shared).await?.ok_or_else(|| Failure::failed("the control store is empty"))?;
    for (id, error) in node.open_errors() {
        let path = node.devices().get(id).map_or(String::new(), |d| d.path.clone());
        say(format!("device {path} is not served: {error}"));
    }
    if !wait_until_ready(node, &say).await {
        return Ok(());
    }
    wait_for_peers(node, &plan, &say).await?;
    let volumes = match plan.node_id() {
        None => settle_volumes(node, &control).await?,
        // Whoever serves their shards settles them.
        Some(_) => control.state().active_volumes().map(spec_of).collect(),
    };
    let nqn = control.state().cluster.nqn.clone();
    let (listen, nbd) = start_front_ends(node, &plan, volumes, nqn.clone(), &say).await?;
    let control = Rc::new(control);
    let (admin_addr, what) =
        (Addr::Unix(plan.admin.clone()), format!("admin socket {}", plan.admin.display()));
    let listener = when_free(&what, &say, in_use, || Listener::bind(&admin_addr, false))
        .await
        .map_err(|e| Failure::failed(format!("{what}: {e}")))?;
    let turn = Semaphore::new(1);
    let member = plan
        .node_id()
        .map(|me| Member::start(me, node.clone(), control.clone(), turn.clone(), Rc::new(store::say)));
    let fronts = Fronts { listen: listen.clone(), nbd: nbd.clone() };
    let parts = Parts { node: node.clone(), control: control.clone(), member: member.clone(), turn };
    let admin = Rc::new(Admin::new(parts, plan.clone(), fronts));
    peristyle_rt::spawn(admin.clone().watch_leaving());
    peristyle_rt::spawn({
        let admin = admin.clone();
        async move {
            let _ = serve_admin(listener, admin).await;
        }
    });
    let _ = news.send(News::Ready(Ready {
        nqn,
        listen,
        advertise: plan.advertise,
        nbd,
        admin: plan.admin.clone(),
        pid: std::process::id(),
        volumes: control.state().active_volumes().map(ReadyVolume::from).collect(),
    }));
    say(format!("memory: {}", memory_line(node, &plan)));
    if plan.cluster.is_some() {
        say(format!("other nodes: {}", node.config().peers.security));
    }
    let status = report_status(node.clone(), news.clone());
    peristyle_rt::select(peristyle_rt::shutdown_requested(), status).await;
    if let Some(member) = member {
        member.leave().await;
    }
    drop(std::fs::remove_file(&plan.admin));
    Ok(())
}

/// Other nodes find this one at its address, or it is of no use to them.
async fn wait_for_peers(node: &Rc<ThisNode>, plan: &Plan, say: &impl Fn(String)) -> Result<(), Failure> {
    let Some(cluster) = &plan.cluster else { return Ok(()) };
    let what = format!("other nodes' port at {}", cluster.listen);
    let listening = || std::future::ready(node.peer_error().map_or(Ok(()), Err));
    when_free(&what, say, in_use, listening).await.map_err(|e| Failure::failed(format!("{what}: {e}")))
}

fn memory_line(node: &Rc<ThisNode>, plan: &Plan) -> String {
    let buffers = buffers(plan.buffers, false).total_bytes() as u64 * plan.reactors as u64;
    // A node of a cluster may come to own all shards.
    let shards = node.config().shards.len() + node.config().peer_shards.len();
    let map = node.config().shard.map_cache_bytes * shards as u64;
    let slots: u64 = node.devices().all().map(|d| u64::from(d.slots())).sum();
    let config = &node.config().shard;
    let extents = peristyle_shard::extent::memory_bytes(slots / (config.scheme.m() as u64 + 1));
    let tables = peristyle_column::slot::memory_bytes(slots) + extents;
    let [buffers, map, tables] = [buffers, map, tables].map(format_bytes);
    format!("buffers {buffers}, map at most {map}, tables of columns and extents at most {tables}")
}

/// Waits for every shard; says why when that takes long. False when the node is to stop.
async fn wait_until_ready(node: &Rc<ThisNode>, say: &impl Fn(String)) -> bool {
    let mut next = peristyle_rt::now() + WAITING_PERIOD;
    let ready = async {
        while !node.is_ready() {
            peristyle_rt::sleep(Duration::from_millis(1)).await;
            if peristyle_rt::now() >= next {
                next = peristyle_rt::now() + WAITING_PERIOD;
                for (shard, phase) in node.shard_phases() {
                    if let ShardPhase::Recovering(Some(error)) = phase {
                        say(format!("shard {shard} waits: {error}"));
                    }
                }
            }
        }
    };
    matches!(
        peristyle_rt::select(ready, peristyle_rt::shutdown_requested()).await,
        peristyle_rt::Either::Left(())
    )
}

/// Brings the shards' layers to what the control store says; what hosts are to see.
async fn settle_volumes(
    node: &Rc<ThisNode>,
    control: &Control<AnyStore>,
) -> Result<Vec<VolumeSpec>, Failure> {
    let all: Vec<_> = control.state().volumes.values().cloned().collect();
    for volume in &all {
        settle_volume(node, control, volume).await.map_err(|e| Failure::failed(e.to_string()))?;
    }
    Ok(control.state().active_volumes().map(spec_of).collect())
}

fn addr_of(listen: &ListenAddr) -> Addr {
    match listen {
        ListenAddr::Tcp(addr) => Addr::Tcp(*addr),
        ListenAddr::Unix(path) => Addr::Unix(path.clone()),
    }
}

/// Listens for NVMe/TCP on every reactor, and for NBD on the first.
async fn start_front_ends(
    node: &Rc<ThisNode>,
    plan: &Plan,
    volumes: Vec<VolumeSpec>,
    nqn: String,
    say: &impl Fn(String),
) -> Result<(Vec<std::net::SocketAddr>, Vec<ListenAddr>), Failure> {
    let listen = super::target::start(node, plan, &volumes, &nqn, say).await?;
    let mut nbd = Vec::new();
    if node.id() == ReactorId(0) && !plan.nbd.is_empty() {
        node.set_exports(volumes);
        let addrs: Vec<Addr> = plan.nbd.iter().map(addr_of).collect();
        let what = format!("NBD on {}", plan.nbd[0]);
        let bound = when_free(&what, say, in_use, || node.start_nbd(NbdConfig::new(addrs.clone()))).await;
        let bound = bound.map_err(|e| Failure::failed(format!("{what}: {e}")))?;
        nbd.extend(bound.into_iter().map(|addr| match addr {
            Addr::Tcp(addr) => ListenAddr::Tcp(addr),
            Addr::Unix(path) => ListenAddr::Unix(path),
        }));
    }
    Ok((listen, nbd))
}

async fn report_status(node: Rc<ThisNode>, news: Sender<News>) {
    let started = peristyle_rt::now();
    let mut last = IoTotals::default();
    let mut at = started;
    loop {
        peristyle_rt::sleep(STATUS_PERIOD).await;
        let now = peristyle_rt::now();
        let totals = node.all_totals().await;
        let line = status_line(&totals, &last, now.since(at), now.since(started), &node);
        (last, at) = (totals, now);
        if news.send(News::Status(line)).is_err() {
            return;
        }
    }
}

/// `totals` since the start, of which the line shows what came since `last`, so much time ago.
fn status_line(
    totals: &IoTotals,
    last: &IoTotals,
    passed: Duration,
    uptime: Duration,
    node: &ThisNode,
) -> StatusLine {
    let seconds = passed.as_secs_f64().max(1e-9);
    let rates = |new: &DirectionTotals, old: &DirectionTotals| {
        let operations = new.completed.saturating_sub(old.completed) as f64;
        let took = new.latency_ns.saturating_sub(old.latency_ns) as f64;
        let mean_us = if operations > 0.0 { took / operations / 1000.0 } else { 0.0 };
        let bytes = new.bytes.saturating_sub(old.bytes) as f64;
        Rates { operations: operations / seconds, bytes: bytes / seconds, mean_us }
    };
    let devices = || node.devices().all().filter(|d| d.wish().serves());
    StatusLine {
        uptime,
        connections: totals.connections,
        devices_healthy: devices().filter(|d| d.state() == DeviceState::Healthy).count() as u32,
        devices: devices().count() as u32,
        reads: rates(&totals.reads, &last.reads),
        writes: rates(&totals.writes, &last.writes),
    }
}
