//! `peristyle dev --nodes N`: real node processes on this machine, with a store for what they share, and what can be done to them.
//!
//! Nothing of it is in the nodes: they are started as an operator would, from configuration files in the cluster's folder.

mod files;
mod orders;
mod picture;
mod processes;
mod ready;
mod store;

pub use files::ports;
pub use orders::order;

use crate::cli::DevOptions;
use crate::failure::Failure;
use crate::online::print;
use crate::wiring;
use files::Layout;
use peristyle_base::{GIB, Uuid};
use peristyle_cluster::TooFewPolicy;
use peristyle_control::desired::FailureDomain;
use peristyle_control::member::NewCluster;
use peristyle_rt::{Duration, RuntimeConfig, shutdown_requested, sleep};
use processes::Node;
use std::cell::RefCell;
use std::rc::Rc;
use store::SharedStore;

/// Logs of a development cluster.
const SHARDS: usize = 12;
const NAME: &str = "dev";
/// How often the processes are looked at.
const PERIOD: Duration = Duration::from_millis(200);

/// All that runs.
pub struct Cluster {
    layout: Layout,
    nodes: Vec<Node>,
    store: SharedStore,
}

/// Runs a cluster until SIGINT or SIGTERM.
pub fn run(options: &DevOptions, count: u16) -> Result<(), Failure> {
    let layout = Layout::of(options, count)?;
    let volumes = match options.volumes.is_empty() {
        true => vec![("demo".to_owned(), 4 * GIB)],
        false => options.volumes.iter().map(|v| (v.name.clone(), v.bytes)).collect(),
    };
    let token = layout.token()?;
    let store = SharedStore::start(&layout, token.as_ref(), options.without_etcd)?;
    let token = match token {
        Some(token) => token,
        None => {
            let token = wiring::found::create(NAME, &store.at, new_cluster(options))?;
            layout.keep_token(&token)?;
            token
        }
    };
    let mut cluster = Cluster { nodes: Vec::new(), layout, store };
    for number in 1..=count {
        let node = Node::new(&cluster.layout, number, &token, options)?;
        cluster.nodes.push(node);
    }
    let cluster = Rc::new(RefCell::new(cluster));
    let (json, lba) = (options.json, options.lba);
    let shared = cluster.clone();
    let config = RuntimeConfig { signals: true, ..RuntimeConfig::small() };
    let outcome = peristyle_rt::block_on(config, async move { drive(shared, volumes, lba, json).await });
    outcome.and(cluster.borrow_mut().stop())
}

fn new_cluster(options: &DevOptions) -> NewCluster {
    NewCluster {
        uuid: Uuid::default(),
        nqn: None,
        pool_name: "dev".into(),
        scheme: options.scheme,
        too_few_domains: TooFewPolicy::Refuse,
        failure_domain: if options.racks.is_some() { FailureDomain::Rack } else { FailureDomain::Node },
        shards: SHARDS,
    }
}

async fn drive(
    cluster: Rc<RefCell<Cluster>>,
    volumes: Vec<(String, u64)>,
    lba_bytes: u32,
    json: bool,
) -> Result<(), Failure> {
    let orders = orders::listen(cluster.clone()).await?;
    let begin = async {
        cluster.borrow_mut().nodes.iter_mut().try_for_each(Node::start)?;
        ready::wait(&cluster, &volumes, lba_bytes).await
    };
    let ready = match peristyle_rt::select(shutdown_requested(), begin).await {
        peristyle_rt::Either::Left(()) => return Ok(()),
        peristyle_rt::Either::Right(ready) => ready?,
    };
    print(&if json { ready.json() } else { ready.text() });
    let watch = async {
        let mut picture = picture::Picture::new(json);
        loop {
            cluster.borrow_mut().nodes.iter_mut().filter_map(Node::has_ended).for_each(|told| {
                eprintln!("peristyle: {told}");
            });
            picture.draw(&cluster.borrow());
            sleep(PERIOD).await;
        }
    };
    peristyle_rt::select(shutdown_requested(), watch).await;
    orders.abort();
    Ok(())
}

impl Cluster {
    /// All nodes at once, then the store.
    fn stop(&mut self) -> Result<(), Failure> {
        self.nodes.iter_mut().for_each(Node::ask_to_stop);
        self.nodes.iter_mut().for_each(Node::wait_or_kill);
        self.store.stop();
        self.layout.forget_socket();
        Ok(())
    }
}
