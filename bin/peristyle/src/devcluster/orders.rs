//! What can be done to a running development cluster: `peristyle dev kill 3` and the like, over a socket in its folder, a line
//! each way.

use super::Cluster;
use super::files::Layout;
use super::processes::Node;
use crate::cli::DevOrder;
use crate::client::Client;
use crate::failure::{Failure, Kind};
use peristyle_control::api::{Lines, Request};
use peristyle_rt::{Addr, Buf, IoVec, Listener, NetError, Stream, TaskHandle, spawn};
use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

/// A node answers in this time.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// An order is carried out in this time, or its outcome is not known.
const LIMIT: Duration = Duration::from_secs(30);

/// Takes orders from now on.
pub async fn listen(cluster: Rc<RefCell<Cluster>>) -> Result<TaskHandle, Failure> {
    let path = Layout::socket(&cluster.borrow().layout.dir);
    let listener = Listener::bind(&Addr::Unix(path.clone()), false)
        .await
        .map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
    Ok(spawn(async move {
        while let Ok(stream) = listener.accept().await {
            // One after the other: they are for people and tests.
            let _ = serve(&cluster, stream).await;
        }
    }))
}

async fn serve(cluster: &RefCell<Cluster>, stream: Stream) -> Result<(), NetError> {
    let (mut reader, mut writer) = stream.split();
    let mut lines = Lines::default();
    let line = loop {
        match lines.next_line() {
            Ok(Some(line)) => break line,
            Ok(None) => {}
            Err(_) => return Ok(()),
        }
        let bytes = reader.recv().await?;
        if bytes.is_empty() {
            return Ok(());
        }
        lines.push(&bytes);
    };
    let answer = match carry_out(&mut cluster.borrow_mut(), &String::from_utf8_lossy(&line)) {
        Ok(()) => "ok\n".to_owned(),
        Err(failure) => format!("{failure}\n"),
    };
    let mut buf = Buf::alloc(answer.len()).await;
    buf.copy_from_slice(answer.as_bytes());
    let mut iov = IoVec::new();
    iov.push(buf.freeze());
    writer.send(iov).await
}

fn carry_out(cluster: &mut Cluster, line: &str) -> Result<(), Failure> {
    let unknown = || Failure::usage(format!("`{line}` is no order"));
    match line.trim() {
        "kill-store" => return cluster.store.kill(),
        "start-store" => return cluster.store.launch(),
        _ => {}
    }
    if let Some(pair) = Pair::of(line) {
        return pair.carry_out(cluster);
    }
    let (order, number) = line.trim().split_once(' ').ok_or_else(unknown)?;
    let number: u16 = number.parse().map_err(|_| unknown())?;
    let missing = || Failure::usage(format!("there is no node {number}"));
    let node = cluster.nodes.iter_mut().find(|n| n.number == number).ok_or_else(missing)?;
    match order {
        "kill" => node.kill(),
        "stop" => node.set_stopped(true),
        "cont" => node.set_stopped(false),
        "start" => node.start(),
        "end" => Node::end(node),
        _ => Err(unknown()),
    }
}

/// Two nodes between which the network is cut, or healed.
struct Pair {
    heard: bool,
    /// Who says something, and who is to hear it or not.
    ways: Vec<(u16, u16)>,
}

impl Pair {
    fn of(line: &str) -> Option<Pair> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (order, a, b, one_way) = match words[..] {
            [order, a, b] => (order, a, b, false),
            [order, a, b, "one-way"] => (order, a, b, true),
            _ => return None,
        };
        let heard = match order {
            "cut" => false,
            "heal" => true,
            _ => return None,
        };
        let (a, b) = (a.parse().ok()?, b.parse().ok()?);
        let back = (!one_way).then_some((b, a));
        Some(Pair { heard, ways: [(a, b)].into_iter().chain(back).collect() })
    }

    fn carry_out(self, cluster: &Cluster) -> Result<(), Failure> {
        let node = |number: u16| {
            let missing = || Failure::usage(format!("there is no node {number}"));
            cluster.nodes.iter().find(|n| n.number == number).ok_or_else(missing)
        };
        for &(from, to) in &self.ways {
            node(from)?;
            let mut client = Client::connect_within(Some(node(to)?.admin.clone()), ASK_LIMIT)?;
            client.call(&Request::Hear { node: from.into(), heard: self.heard })?;
        }
        Ok(())
    }
}

/// Gives an order to the cluster that runs in a folder.
pub fn order(order: &DevOrder) -> Result<(), Failure> {
    let (line, dir) = order.as_line();
    let path = Layout::socket(dir);
    let no_cluster = |e: std::io::Error| {
        let hint =
            "no cluster runs there; start one (`peristyle dev --nodes 6`), or name its folder with --dir";
        Failure::new(Kind::NoNode, format!("{}: {e}: {hint}", path.display()))
    };
    let mut stream = UnixStream::connect(&path).map_err(no_cluster)?;
    stream.set_read_timeout(Some(LIMIT)).map_err(Failure::failed)?;
    writeln!(stream, "{line}").map_err(Failure::failed)?;
    let mut answer = String::new();
    let lost = |e: &dyn std::fmt::Display| Failure::new(Kind::Unknown, format!("no answer ({e})"));
    BufReader::new(stream).read_line(&mut answer).map_err(|e| lost(&e))?;
    match answer.trim() {
        "ok" => Ok(()),
        "" => Err(lost(&"it closed the connection")),
        why => Err(Failure::failed(why)),
    }
}
