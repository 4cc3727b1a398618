//! Snapshots and clones of a real node, as an operator and a host see them, kill -9 included.

mod daemon;

use daemon::Daemon;
use peristyle_bench::host::{Host, HostError, HostOptions};
use peristyle_nvme::wire::Status;
use peristyle_rt::{Addr, Buf, BufConfig, RuntimeConfig};
use serde_json::Value;
use std::sync::Arc;

async fn host(daemon: &Daemon) -> Host {
    let addr = Addr::Tcp(daemon.ready["listen"].as_str().unwrap().parse().unwrap());
    let nqn = daemon.ready["nqn"].as_str().unwrap();
    Host::connect(&addr, &HostOptions::new("nqn.2026-01.io.peristyle:alice", nqn), 1).await.unwrap()
}

async fn write(host: &Host, nsid: u32, block: u64, byte: u8) -> Result<(), HostError> {
    let mut buf = Buf::alloc(4096).await;
    buf.fill(byte);
    host.io[0].write(nsid, block, 1, buf.freeze()).await
}

async fn holds(host: &Host, nsid: u32, block: u64, byte: u8) -> bool {
    let buf = host.io[0].read(nsid, block, 1, Buf::alloc(4096).await).await.expect("a read");
    buf.iter().all(|b| *b == byte)
}

/// The program is asked on another thread: the host's reactor goes on.
async fn try_to(daemon: &Arc<Daemon>, words: &'static str) -> (Option<i32>, String) {
    let daemon = daemon.clone();
    peristyle_rt::blocking(move || daemon.try_to(&words.split_whitespace().collect::<Vec<_>>())).await
}

async fn done(daemon: &Arc<Daemon>, words: &'static str) -> String {
    let (code, said) = try_to(daemon, words).await;
    assert_eq!(code, Some(0), "{words}: {said}");
    said
}

async fn json(daemon: &Arc<Daemon>, words: &'static str) -> Value {
    serde_json::from_str(&done(daemon, words).await).unwrap()
}

async fn refused(daemon: &Arc<Daemon>, words: &'static str, code: i32, why: &str) {
    let (exit, said) = try_to(daemon, words).await;
    assert!(exit == Some(code) && said.contains(why), "{words}: {exit:?} {said}");
}

/// Bytes that the volume or snapshot has of its own.
async fn own(daemon: &Arc<Daemon>, words: &'static str) -> u64 {
    json(daemon, words).await["usage"]["own_bytes"].as_u64().unwrap() / 4096
}

async fn taken_and_cloned(daemon: &Arc<Daemon>) {
    let host = host(daemon).await;
    write(&host, 1, 1, 1).await.unwrap();
    write(&host, 1, 2, 2).await.unwrap();
    done(daemon, "snapshot create v=monday").await;
    write(&host, 1, 2, 22).await.unwrap();
    let clone = json(daemon, "volume clone monday c --json").await["nsid"].as_u64().unwrap() as u32;
    assert!(
        holds(&host, clone, 1, 1).await && holds(&host, clone, 2, 2).await && holds(&host, 1, 2, 22).await
    );
    write(&host, clone, 1, 111).await.unwrap();
    assert!(holds(&host, 1, 1, 1).await);
    // What it takes: every live block is of one of them.
    let usage = json(daemon, "volume show v --json").await["usage"].clone();
    let blocks = |key: &str| usage[key].as_u64().unwrap() / 4096;
    assert_eq!((blocks("mapped_bytes"), blocks("unique_bytes"), blocks("shared_bytes")), (3, 1, 2));
    let all = own(daemon, "volume show v --json").await
        + own(daemon, "snapshot show monday --json").await
        + own(daemon, "volume show c --json").await;
    assert_eq!(json(daemon, "pool show --json").await["live_blocks"].as_u64(), Some(all));
    // Exported, it cannot be written.
    let exported = json(daemon, "snapshot export monday --json").await["nsid"].as_u64().unwrap() as u32;
    assert!(holds(&host, exported, 2, 2).await);
    let written = write(&host, exported, 2, 9).await;
    assert!(
        matches!(written, Err(HostError::Status(s)) if s.is(Status::NAMESPACE_WRITE_PROTECTED)),
        "{written:?}"
    );
    done(daemon, "snapshot unexport monday").await;
    assert!(host.io[0].read(exported, 2, 1, Buf::alloc(4096).await).await.is_err());
    host.close();
    for (words, code, why) in [
        ("snapshot create v=monday", 5, "already"),
        ("snapshot create nothing=x", 4, "no volume"),
        ("volume delete v --yes", 2, "has snapshots"),
        ("volume resize monday 128MiB", 2, "is a snapshot"),
        ("volume delete monday --yes", 2, "snapshot delete"),
        ("snapshot delete v", 2, "volume delete"),
        ("volume clone v d", 2, "is no snapshot"),
        ("snapshot rollback v --yes", 2, "is no snapshot"),
        ("snapshot create v", 2, "VOLUME=SNAPSHOT"),
    ] {
        refused(daemon, words, code, why).await;
    }
}

async fn after_a_kill(daemon: &Arc<Daemon>) {
    let host = host(daemon).await;
    let clone = json(daemon, "volume show c --json").await["nsid"].as_u64().unwrap() as u32;
    assert!(
        holds(&host, 1, 2, 22).await && holds(&host, clone, 1, 111).await && holds(&host, clone, 2, 2).await
    );
    assert!(done(daemon, "snapshot list").await.contains("monday"));
    assert_eq!(
        json(daemon, "volume list --json").await.as_array().unwrap().len(),
        2,
        "no snapshot among them"
    );
    // Both at one point.
    done(daemon, "snapshot create v=v-1 c=c-1").await;
    write(&host, 1, 1, 50).await.unwrap();
    done(daemon, "snapshot rollback v-1 --yes").await;
    assert!(holds(&host, 1, 1, 1).await && holds(&host, 1, 2, 22).await);
    done(daemon, "snapshot rollback monday --yes").await;
    assert!(holds(&host, 1, 2, 2).await);
    done(daemon, "volume resize v 128MiB").await;
    done(daemon, "snapshot create v=large").await;
    // The volume gets the snapshot's size, be it smaller or larger, and hosts hear of it.
    let (small, large) = (64 << 20, 128 << 20);
    let (monday, larger) = ("snapshot rollback monday --yes", "snapshot rollback large --yes");
    for (words, bytes) in [(monday, small), (larger, large), (monday, small)] {
        done(daemon, words).await;
        assert_eq!(json(daemon, "volume show v --json").await["bytes"].as_u64(), Some(bytes));
        write(&host, 1, bytes / 4096 - 1, 60).await.unwrap();
        assert!(write(&host, 1, bytes / 4096, 61).await.is_err(), "behind its end");
        assert!(holds(&host, 1, 2, 2).await);
    }
    done(daemon, "snapshot delete large").await;
    done(daemon, "volume flatten c").await;
    for snapshot in ["snapshot delete monday", "snapshot delete v-1", "snapshot delete c-1"] {
        done(daemon, snapshot).await;
    }
    done(daemon, "volume delete v --yes").await;
    assert!(holds(&host, clone, 1, 111).await && holds(&host, clone, 2, 2).await);
    host.close();
}

#[test]
fn a_real_node_takes_clones_exports_and_returns_to_snapshots_and_kill_9_loses_none() {
    let config = RuntimeConfig { buffers: BufConfig::small(), ..RuntimeConfig::default() };
    peristyle_rt::block_on(config, async {
        let daemon = Arc::new(Daemon::on_files());
        taken_and_cloned(&daemon).await;
        let mut daemon = Arc::into_inner(daemon).expect("nobody asks any more");
        daemon.kill();
        daemon.again();
        after_a_kill(&Arc::new(daemon)).await;
    });
}
