//! A development cluster as its users see it: three processes that lose each other, without etcd, which not every machine has.

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const PERISTYLE: &str = env!("CARGO_BIN_EXE_peristyle");
/// What does not come by then does not come.
const LIMIT: Duration = Duration::from_secs(90);

/// Clusters of this file: each has all cores.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct Cluster {
    _turn: MutexGuard<'static, ()>,
    nodes: u64,
    child: Child,
    dir: PathBuf,
    ready: Value,
}

/// From which on the ports of such a cluster are free.
fn free_ports() -> u16 {
    // Below those that the kernel gives to connections: any of these may be taken a moment later.
    let first = |attempt: u32| 18_000 + ((std::process::id() * 13 + attempt * 101) % 12_000) as u16;
    let is_free = |port: &u16| {
        let offsets = [0, 1, 2, 3, 900, 901, 1000, 1016, 1032, 1048];
        offsets.iter().all(|offset| TcpListener::bind(("127.0.0.1", port + offset)).is_ok())
    };
    (0..100).map(first).find(is_free).expect("some ports are free")
}

impl Cluster {
    fn start(nodes: u64, args: &[&str]) -> Cluster {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = std::env::temp_dir().join(format!("peristyle-cluster-{}", std::process::id()));
        let mut command = Command::new(PERISTYLE);
        command.args(["dev", "--nodes", &nodes.to_string(), "--without-etcd", "--scheme", "1+1"]).args(args);
        command.args([
            "--device-size",
            "512MiB",
            "--volume",
            "v=64MiB",
            "--listen",
            &format!("127.0.0.1:{}", free_ports()),
            "--json",
        ]);
        let mut child = command.arg("--dir").arg(&dir).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line).expect("it says that it is ready");
        Cluster { _turn: turn, nodes, child, dir, ready }
    }

    fn order(&self, order: &str, node: u64) {
        let dir = self.dir.display().to_string();
        let status = Command::new(PERISTYLE).args(["dev", order, &node.to_string(), "--dir", &dir]).status();
        assert!(status.unwrap().success(), "{order} {node}");
    }

    /// A node's answer, and whether it ended well.
    fn ask(&self, node: u64, args: &[&str]) -> (bool, String) {
        let admin = self.ready["nodes"][node as usize - 1]["admin"].as_str().unwrap();
        let output = Command::new(PERISTYLE).args(["--admin", admin]).args(args).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    }

    fn show(&self, node: u64) -> Value {
        let (well, said) = self.ask(node, &["cluster", "show", "--json"]);
        if well { serde_json::from_str(&said).unwrap() } else { Value::Null }
    }

    /// Who is to own the volume's shard, and serves it.
    fn owner(&self) -> Option<u64> {
        (1..=self.nodes).find(|&node| {
            let shown = self.show(node);
            let shard = &shown["volumes"][0]["shard"];
            let shards = shown["shards"].as_array().cloned().unwrap_or_default();
            shards.iter().any(|s| s["shard"] == *shard && s["serving"] == true && s["owner"] == node)
        })
    }

    fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < LIMIT, "{what}: {}", self.show(1));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn alive(&self, by: u64) -> Vec<u64> {
        let shown = self.show(by);
        let nodes = shown["nodes"].as_array().cloned().unwrap_or_default();
        nodes.iter().filter(|n| n["alive"] == true).filter_map(|n| n["node"].as_u64()).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-s", "TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn a_volume_goes_to_another_node_when_its_own_is_killed_or_ended_and_commands_say_where_it_is() {
    let mut cluster = Cluster::start(3, &["--tls", "--forward"]);
    let first = cluster.owner().expect("a cluster that is ready serves its volume");
    for (order, owner) in [("kill", first), ("end", 0)] {
        let owner = if owner == 0 { cluster.owner().unwrap() } else { owner };
        let other = owner % 3 + 1;
        cluster.order(order, owner);
        cluster.until("another serves", || cluster.owner().is_some_and(|now| now != owner));
        cluster.until("it is silent", || !cluster.alive(other).contains(&owner));
        cluster.order("start", owner);
        cluster.until("all are alive", || (1..=3).all(|node| cluster.alive(node).len() == 3));
    }
    an_owner_is_not_heard(&cluster);
    // A volume is made on any node; its size is for the node that serves it.
    let (made, said) = cluster.ask(1, &["volume", "create", "w", "32MiB"]);
    assert!(made, "{said}");
    cluster
        .until("all know it", || (1..=3).all(|node| cluster.ask(node, &["volume", "list"]).1.contains("w ")));
    cluster.until("it is served", || cluster.owner().is_some());
    let owner = cluster.owner().unwrap();
    let (resized, said) = cluster.ask(owner % 3 + 1, &["volume", "resize", "v", "80MiB"]);
    assert!(!resized && said.contains(&format!("served by node {owner}")), "{said}");
    let (resized, said) = cluster.ask(owner, &["volume", "resize", "v", "80MiB"]);
    assert!(resized, "{said}");
    // The same place and the same data after all have been stopped and started.
    let size = |cluster: &Cluster| cluster.show(1)["volumes"][0]["bytes"].as_u64();
    cluster.until("all know its size", || size(&cluster) == Some(80 << 20));
    a_host_lacks_a_path(&cluster);
    a_host_reaches_another_node_than_the_owner(&cluster);
    the_pool_gets_another_scheme_and_its_own_again(&cluster);
    what_would_move(&cluster);
    a_node_is_in_maintenance(&cluster, owner);
    a_node_is_emptied(&cluster, owner);
    a_node_leaves_for_good(&cluster, owner);
    assert!(cluster.child.try_wait().unwrap().is_none());
}

/// The others take over from an owner that they do not hear, which serves nothing any more; and from one that does not hear them.
fn an_owner_is_not_heard(cluster: &Cluster) {
    let dir = cluster.dir.display().to_string();
    for to_owner in [false, true] {
        let owner = cluster.owner().unwrap();
        let order = |what: &str| {
            for other in (1..=3).filter(|&n| n != owner) {
                let (from, to) = if to_owner { (other, owner) } else { (owner, other) };
                let pair = [from, to].map(|n| n.to_string());
                let args = ["dev", what, &pair[0], &pair[1], "--one-way", "--dir", &dir];
                assert!(Command::new(PERISTYLE).args(args).status().unwrap().success(), "{what} {from} {to}");
            }
        };
        let serving = || {
            cluster.show(owner)["shards"]
                .as_array()
                .map_or(0, |shards| shards.iter().filter(|s| s["serving"] == true).count())
        };
        order("cut");
        cluster.until("another serves", || cluster.owner().is_some_and(|now| now != owner));
        cluster.until("it serves nothing", || serving() == 0);
        order("heal");
        cluster.until("all are alive", || (1..=3).all(|node| cluster.alive(node).len() == 3));
    }
    let (done, said) = cluster.ask(1, &["extent", "why", "281474976710656"]);
    assert!(!done && said.contains("no extent has a number as high"), "{said}");
}

/// One that knows two of the three nodes is told of, by any of them, with what it lacks; and not any more when it has gone.
fn a_host_lacks_a_path(cluster: &Cluster) {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut host = Command::new(PERISTYLE);
    host.args(["bench", "failover", "--json", "--duration", "10m", "--size", "1MiB", "--pause", "10ms"]);
    host.args(["--nqn", &text(&cluster.ready["nqn"]), "--portal"]);
    host.args([0, 1].map(|node: usize| text(&cluster.ready["nodes"][node]["listen"])));
    let mut host = host.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let shown = || -> Value {
        let (well, said) = cluster.ask(3, &["host", "show", "--json"]);
        if well { serde_json::from_str(&said).unwrap() } else { Value::Null }
    };
    let nodes = |shown: &Value| -> Vec<u64> {
        let paths = shown["hosts"][0]["paths"].as_array().cloned().unwrap_or_default();
        paths.iter().filter_map(|path| path["node"].as_u64()).collect()
    };
    cluster.until("two nodes tell of the host", || nodes(&shown()) == [1, 2]);
    assert_eq!(shown()["hosts"][0]["missing"], serde_json::json!([3]));
    let (well, said) = cluster.ask(2, &["host", "show"]);
    assert!(well && said.contains("2 of 3 paths") && said.contains("no path to node 3"), "{said}");
    let (well, said) = cluster.ask(2, &["host", "show", "nqn.2014-08.org.example:nobody"]);
    assert!(!well && said.contains("no host"), "{said}");
    host.kill().unwrap();
    host.wait().unwrap();
    cluster.until("it is gone", || shown()["hosts"].as_array().is_some_and(Vec::is_empty));
}

/// Its commands are handed on, and every read brings what was written.
fn a_host_reaches_another_node_than_the_owner(cluster: &Cluster) {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let between = cluster.owner().unwrap() % 3;
    let mut host = Command::new(PERISTYLE);
    host.args(["bench", "failover", "--json", "--duration", "3s", "--size", "1MiB", "--qd", "4", "--portal"]);
    host.arg(text(&cluster.ready["nodes"][between as usize]["listen"]));
    let ended = host.args(["--nqn", &text(&cluster.ready["nqn"])]).output().unwrap();
    let said = String::from_utf8(ended.stdout).unwrap();
    assert!(ended.status.success(), "{said}");
    let summary: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!((&summary["errors"], &summary["violations"]), (&Value::from(0), &Value::from(0)), "{summary}");
    assert!(summary["completed"].as_u64() > Some(100), "{summary}");
}

/// While a host writes and compares: everything is converted, on all nodes.
fn the_pool_gets_another_scheme_and_its_own_again(cluster: &Cluster) {
    let set = |scheme: &str| cluster.ask(2, &["pool", "set", "--scheme", scheme]);
    let owner = cluster.owner().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let listen = text(&cluster.ready["nodes"][owner as usize - 1]["listen"]);
    let target = format!("tcp://{listen}/{}", text(&cluster.ready["nqn"]));
    let mut load = Command::new(PERISTYLE);
    load.args(["bench", "run", "--verify", "--rw", "randrw", "--qd", "4", "--target", &target]);
    load.args(["--size", "32MiB", "--rate", "500", "--runtime", "10s"]);
    let load = load.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    an_extent_says_where_it_is(cluster, owner);
    for (scheme, wrong, why) in
        [("1+2", "4+2", "4+2 needs 6 failure domains"), ("1+1", "1+2", "scheme is 1+2")]
    {
        let (done, said) = set(wrong);
        assert!(!done && said.contains(why), "{said}");
        let (done, said) = set(scheme);
        assert!(done, "{said}");
        let pool = |node: u64| -> Value {
            let (well, said) = cluster.ask(node, &["pool", "show", "--json"]);
            if well { serde_json::from_str(&said).unwrap() } else { Value::Null }
        };
        let is_converted = |node| {
            let pool = pool(node);
            pool["scheme"] == scheme && pool["extents_to_convert"] == 0
        };
        cluster.until("every node knows it", || (1..=3).all(|node| pool(node)["scheme"] == scheme));
        cluster.until("it is converted", || (1..=3).all(is_converted));
    }
    let ended = load.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    its_legs_to_other_nodes_are_counted(cluster, owner);
}

fn its_legs_to_other_nodes_are_counted(cluster: &Cluster, owner: u64) {
    let (well, said) = cluster.ask(owner, &["profile", "--since-start", "--json"]);
    assert!(well, "{said}");
    let profile: Value = serde_json::from_str(&said).unwrap();
    for path in profile["paths"].as_array().unwrap() {
        let others: Vec<u64> = (1..=3).filter(|node| *node != owner).collect();
        for node in others {
            let is_its = |leg: &&Value| leg["device"].as_str().unwrap().starts_with(&format!("node {node} "));
            let leg = path["remote"].as_array().unwrap().iter().find(is_its);
            let leg = &leg.unwrap_or_else(|| panic!("no leg to node {node}: {path}"))["leg"];
            let (count, mean) = (&leg["count"], &leg["mean_us"]);
            assert!(count.as_u64() > Some(0) && mean.as_f64() > Some(0.0), "{leg}");
        }
    }
}

/// With a column on two of the three nodes, each a failure domain.
fn an_extent_says_where_it_is(cluster: &Cluster, owner: u64) {
    let why = |id: u64| cluster.ask(owner, &["extent", "why", &id.to_string(), "--json"]);
    let (id, said) =
        (0..200).map(|id| (id, why(id))).find(|(_, (found, _))| *found).expect("there are extents");
    let extents: Value = serde_json::from_str(&said.1).unwrap();
    let extent = &extents[0];
    let names = |list: &Value| -> Vec<String> {
        let name =
            |of: &Value| of["domain"]["name"].as_str().or(of["name"].as_str()).unwrap_or("?").to_owned();
        list.as_array().unwrap().iter().map(name).collect()
    };
    let mut all = [names(&extent["columns"]), names(&extent["others"])].concat();
    all.sort();
    assert_eq!(
        (all, &extent["apart"]),
        (vec!["node 1".into(), "node 2".into(), "node 3".into()], &true.into())
    );
    assert_eq!((&extent["scheme"], &extent["scheme_because"]), (&"1+1".into(), &"the pool's scheme".into()));
    let (found, said) = cluster.ask(owner, &["extent", "why", &id.to_string()]);
    assert!(found && said.contains("no failure domain has two of its columns"), "{said}");
}

/// What a new node would get is said, and what would not fit if two of three went.
fn what_would_move(cluster: &Cluster) {
    let plan = |args: &[&str]| -> Value {
        let (well, said) = cluster.ask(1, &[&["pool", "plan", "--json"], args].concat());
        assert!(well, "{said}");
        serde_json::from_str(&said).unwrap()
    };
    let sum = |plan: &Value, key: &str| -> u64 {
        plan["devices"].as_array().unwrap().iter().map(|d| d[key].as_u64().unwrap()).sum()
    };
    let more = plan(&["--add-node", "512MiB"]);
    let devices = more["devices"].as_array().unwrap();
    let new = devices.last().unwrap();
    assert_eq!((devices.len(), &new["fate"], &new["node"]), (4, &"comes".into(), &Value::Null));
    assert_eq!(
        new["bytes"], devices[0]["bytes"],
        "as large for users as the others, which are on files of 512 MiB"
    );
    let moved = more["moved_bytes"].as_u64().unwrap();
    assert!(moved > 0 && moved >= new["planned_bytes"].as_u64().unwrap(), "{more}");
    assert_eq!(
        (sum(&more, "used_bytes"), &more["left_over_bytes"]),
        (sum(&more, "planned_bytes"), &0.into())
    );
    let less = plan(&["--remove-node", "1", "--remove-node", "2"]);
    assert_eq!((&less["domains"], less["devices"][0]["planned_bytes"].as_u64()), (&1.into(), Some(0)));
    let (_, said) = cluster.ask(1, &["pool", "plan", "--remove-node", "1", "--remove-node", "2"]);
    assert!(said.contains("1+1 needs 2 failure domains"), "{said}");
    let (well, said) = cluster.ask(1, &["pool", "plan", "--remove-node", "9"]);
    assert!(!well && said.contains("no node 9"), "{said}");
}

/// It owns nothing until somebody ends that or its time is over, also when it is started again; a second one cannot be spared.
fn a_node_is_in_maintenance(cluster: &Cluster, node: u64) {
    let (other, third) = (node % 3 + 1, (node + 1) % 3 + 1);
    let left = || cluster.show(other)["nodes"][node as usize - 1]["maintenance"].as_u64();
    let order = |what: &str, node: u64, more: &[&str]| {
        cluster.ask(other, &[&["node", what, &node.to_string()], more].concat())
    };
    let (done, said) = order("maintain", node, &["--for", "2h"]);
    assert!(done, "{said}");
    assert!(left().is_some_and(|left| (7000..=7200).contains(&left)), "{:?}", left());
    cluster.until("another serves", || cluster.owner().is_some_and(|owner| owner != node));
    let (_, said) = cluster.ask(other, &["cluster", "show"]);
    assert!(said.contains("in maintenance for 1"), "{said}");
    let (done, said) = order("maintain", third, &[]);
    assert!(!done && said.contains("1 of 3 nodes would be left"), "{said}");
    cluster.order("end", node);
    cluster.order("start", node);
    cluster.until("it is back", || (1..=3).all(|by| cluster.alive(by).len() == 3));
    assert!(left().is_some(), "a restart does not end it");
    assert_ne!(cluster.owner(), Some(node));
    let (done, said) = order("keep", node, &[]);
    assert!(done && left().is_none(), "{said}");
    let (done, said) = order("maintain", node, &["--for", "1s"]);
    assert!(done, "{said}");
    cluster.until("its time is over", || left().is_none());
    for (node, time) in [(9, "1h"), (node, "40d"), (node, "500ms")] {
        let (done, said) = order("maintain", node, &["--for", time]);
        assert!(!done && left().is_none(), "{node} {time}: {said}");
    }
}

/// Its shards and its columns go to the others, of which no second one can be spared.
fn a_node_is_emptied(cluster: &Cluster, node: u64) {
    let other = node % 3 + 1;
    let seen = |key: &str| {
        let shown = cluster.show(other);
        shown["nodes"]
            .as_array()
            .and_then(|nodes| nodes.iter().find(|n| n["node"] == node))?
            .get(key)
            .cloned()
    };
    assert!(seen("columns").and_then(|c| c.as_u64()).is_some_and(|columns| columns > 0));
    let (done, said) = cluster.ask(other, &["node", "drain", &node.to_string()]);
    assert!(done, "{said}");
    cluster.until("it is empty", || seen("columns") == Some(0.into()) && seen("shards") == Some(0.into()));
    let (_, said) = cluster.ask(other, &["cluster", "show"]);
    assert!(said.contains("alive, empty"), "{said}");
    let (done, said) = cluster.ask(other, &["node", "drain", &other.to_string()]);
    assert!(!done && said.contains("1 failure domains would be left"), "{said}");
    let (done, said) = cluster.ask(other, &["node", "keep", &node.to_string()]);
    assert!(done, "{said}");
    cluster.until("it is used again", || seen("columns").and_then(|c| c.as_u64()).is_some_and(|n| n > 0));
}

/// When it was emptied and has ended: the others decide without it, and neither of them can be spared.
fn a_node_leaves_for_good(cluster: &Cluster, node: u64) {
    let (other, third) = (node % 3 + 1, (node + 1) % 3 + 1);
    let remove = |node: u64| cluster.ask(other, &["node", "remove", &node.to_string()]);
    let (done, said) = remove(node);
    assert!(!done && said.contains("is in use"), "{said}");
    let (done, said) = cluster.ask(other, &["node", "drain", &node.to_string()]);
    assert!(done, "{said}");
    let nodes = || cluster.show(other)["nodes"].as_array().cloned().unwrap_or_default();
    let is_empty = |n: &Value| n["node"] == node && n["columns"] == 0;
    cluster.until("it is empty", || nodes().iter().any(is_empty));
    let (done, said) = remove(node);
    assert!(!done && said.contains("runs: stop it first"), "{said}");
    cluster.order("end", node);
    let (done, said) = remove(node);
    assert!(done, "{said}");
    cluster.until("it is forgotten", || nodes().len() == 2);
    let (done, said) = remove(third);
    assert!(!done && said.contains("of 2 nodes 1 would be left"), "{said}");
    cluster.until("the volume is served", || cluster.owner().is_some_and(|owner| owner != node));
}

/// Which racks an extent's columns are in, as a node says that serves its shard, and whether it takes them for apart.
fn racks_of(cluster: &Cluster, node: u64, id: u64) -> Option<(Vec<String>, bool)> {
    let (found, said) = cluster.ask(node, &["extent", "why", &id.to_string(), "--json"]);
    let extents: Value = found.then(|| serde_json::from_str(&said).unwrap())?;
    let columns = extents[0]["columns"].as_array().unwrap();
    let name = |column: &Value| column["domain"]["name"].as_str().unwrap_or("?").to_owned();
    Some((columns.iter().map(name).collect(), extents[0]["apart"] == true))
}

#[test]
fn no_two_columns_of_an_extent_are_in_one_rack_also_when_a_node_moves_to_another() {
    let cluster = Cluster::start(4, &["--racks", "2"]);
    let owner = cluster.owner().expect("a cluster that is ready serves its volume");
    let all =
        || -> Vec<(Vec<String>, bool)> { (0..60).filter_map(|id| racks_of(&cluster, owner, id)).collect() };
    let is_apart = |(racks, apart): &(Vec<String>, bool)| *apart && racks.len() == 2 && racks[0] != racks[1];
    let (placed, known) = (all(), ["rack r1", "rack r2"]);
    assert!(placed.len() > 2 && placed.iter().all(is_apart), "{placed:?}");
    assert!(placed.iter().flat_map(|e| &e.0).all(|rack| known.contains(&rack.as_str())), "{placed:?}");
    // The second of the rack moves to the other one: what it had beside nodes of that one has to move, and nothing is lost.
    let moves = (1..=4).find(|node| *node != owner && node % 2 == owner % 2).unwrap();
    cluster.order("end", moves);
    let file = cluster.dir.join(format!("node-{moves}/peristyle.toml"));
    let config = std::fs::read_to_string(&file).unwrap();
    let (from, to) = if moves % 2 == 1 { ("r1", "r2") } else { ("r2", "r1") };
    std::fs::write(&file, config.replace(&format!("rack = \"{from}\""), &format!("rack = \"{to}\"")))
        .unwrap();
    cluster.order("start", moves);
    let rack = |node: u64| cluster.show(owner)["nodes"][node as usize - 1]["rack"].clone();
    cluster.until("its label is known", || rack(moves) == to && cluster.alive(owner).len() == 4);
    let are_apart = |all: Vec<_>| all.len() > 2 && all.iter().all(is_apart);
    cluster.until("all are apart again", || are_apart(all()));
    // Counted once a second, and of all shards that it serves.
    let crowded = || cluster.ask(owner, &["pool", "show"]).1.contains("beside another one of their extent");
    cluster.until("none is counted", || !crowded());
}
