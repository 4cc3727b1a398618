//! `peristyle volume resize` of a real node: what it says, what a host that stays connected sees, and that kill -9 at
//! any moment leaves the old size or the new one.

mod daemon;

use daemon::Daemon;
use peristyle_bench::host::{Host, HostError, HostOptions};
use peristyle_nvme::wire::Status;
use peristyle_rt::{Addr, Buf, BufConfig, Duration, RuntimeConfig};
use std::sync::Arc;

const MIB: u64 = 1 << 20;
const KILLS: u64 = 12;

async fn host(daemon: &Daemon) -> Host {
    let addr = Addr::Tcp(daemon.ready["listen"].as_str().unwrap().parse().unwrap());
    let nqn = daemon.ready["nqn"].as_str().unwrap();
    Host::connect(&addr, &HostOptions::new("nqn.2026-01.io.peristyle:alice", nqn), 1).await.unwrap()
}

async fn write(host: &Host, block: u64, byte: u8) -> Result<(), HostError> {
    let mut buf = Buf::alloc(4096).await;
    buf.fill(byte);
    host.io[0].write(1, block, 1, buf.freeze()).await
}

async fn holds(host: &Host, block: u64, byte: u8) -> bool {
    let buf = host.io[0].read(1, block, 1, Buf::alloc(4096).await).await.expect("a read");
    buf.iter().all(|b| *b == byte)
}

async fn blocks(host: &Host) -> u64 {
    let id = host.admin.identify(0, 1).await.unwrap();
    u64::from_le_bytes(id[..8].try_into().unwrap())
}

/// The program is asked on another thread: the host's reactor goes on.
async fn resize(daemon: &Arc<Daemon>, args: &'static [&'static str]) -> (Option<i32>, String) {
    let daemon = daemon.clone();
    let args = [&["volume", "resize", "v"], args].concat();
    peristyle_rt::blocking(move || daemon.try_to(&args)).await
}

async fn what_it_says(daemon: Arc<Daemon>) {
    let host = host(&daemon).await;
    let end = 64 * MIB / 4096;
    write(&host, end - 1, 1).await.unwrap();
    let beyond = write(&host, end, 2).await;
    assert!(matches!(beyond, Err(HostError::Status(s)) if s.is(Status::LBA_OUT_OF_RANGE)), "{beyond:?}");

    let (code, said) = resize(&daemon, &["96MiB", "--json"]).await;
    let volume: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, volume["bytes"].as_u64()), (Some(0), Some(96 * MIB)), "{said}");
    assert_eq!(blocks(&host).await, 96 * MIB / 4096);
    assert!(holds(&host, end, 0).await);
    write(&host, end, 2).await.unwrap();

    for (args, code, words) in [
        (&["80MiB"][..], 2, "has 100663296 bytes, more than 83886080: --shrink"),
        (&["60MiB", "--shrink"], 2, "has data up to byte 67112959, behind a new end at 62914560"),
        (&["100000001"], 2, "multiple of 4096"),
        (&["4KiB", "--shrink"], 2, "outside"),
        (&["600TiB"], 2, "256.0 TiB"),
    ] {
        let (exit, said) = resize(&daemon, args).await;
        assert!(exit == Some(code) && said.contains(words), "{args:?}: {exit:?} {said}");
    }
    assert!(blocks(&host).await == 96 * MIB / 4096 && holds(&host, end, 2).await, "as it was");
    let (code, said) = resize(&daemon, &["80MiB", "--shrink"]).await;
    assert!(code == Some(0) && said.contains("80"), "{said}");
    let (code, _) = resize(&daemon, &["60MiB", "--shrink", "--discard-data"]).await;
    assert_eq!((code, blocks(&host).await), (Some(0), 60 * MIB / 4096));
    assert!(write(&host, end - 1, 3).await.is_err());
    assert_eq!(resize(&daemon, &["64MiB"]).await.0, Some(0));
    assert!(holds(&host, end - 1, 0).await, "what was cut off is gone");
    host.close();
}

/// Grown and shrunk in turn, killed in the middle of it, at another moment each time.
async fn killed(mut daemon: Daemon) {
    let (mut known, mut kept, mut changed) = (64 * MIB, 0, 0);
    for kill in 0..KILLS {
        let wanted = if known == 64 * MIB { 128 * MIB } else { 64 * MIB };
        let (size, admin) = (wanted.to_string(), daemon.ready["admin"].as_str().unwrap().to_owned());
        let asking = std::process::Command::new(daemon::PERISTYLE)
            .args(["--admin", &admin, "volume", "resize", "v", &size, "--shrink", "--discard-data"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn();
        let mut asking = asking.unwrap();
        peristyle_rt::sleep(Duration::from_millis(kill * 3)).await;
        if kill == KILLS - 1 {
            asking.wait().unwrap(); // once surely afterwards
        }
        daemon.kill();
        let answered = asking.wait().unwrap().success();
        daemon.again();
        let host = host(&daemon).await;
        let found = blocks(&host).await * 4096;
        assert!(found == wanted || found == known && !answered, "{known} to {wanted}: {found}");
        *(if found == known { &mut kept } else { &mut changed }) += 1;
        if found > known {
            assert!(holds(&host, 64 * MIB / 4096, 0).await && holds(&host, found / 4096 - 1, 0).await);
        }
        assert!(write(&host, found / 4096 - 1, kill as u8 + 1).await.is_ok(), "up to the end");
        assert!(write(&host, found / 4096, 1).await.is_err(), "and no further");
        known = found;
        host.close();
    }
    assert!(kept > 0 && changed > 0, "{kept} kept, {changed} changed");
}

#[test]
fn a_real_node_resizes_a_volume_under_its_host_and_kill_9_leaves_one_size_or_the_other() {
    let config = RuntimeConfig { buffers: BufConfig::small(), ..RuntimeConfig::default() };
    peristyle_rt::block_on(config, async {
        let daemon = Arc::new(Daemon::on_files());
        what_it_says(daemon.clone()).await;
        killed(Arc::into_inner(daemon).expect("nobody asks any more")).await;
    });
}
