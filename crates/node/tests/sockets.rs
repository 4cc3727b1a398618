//! The target over the system's own TCP, in every way in which sockets receive and send.

use crate::common::files;
use peristyle_bench::host::{Host, Queue};
use peristyle_rt::{Buf, Receive, RuntimeConfig, ZeroCopy, block_on, join_all, random_below};

/// Blocks of each of the tasks that write at the same time.
const SHARE: u64 = 512;
const TASKS: u64 = 8;
const ROUNDS: u64 = 40;

fn byte(salt: u64, i: usize) -> u8 {
    ((i as u64 * 31 + salt * 17) % 251) as u8
}

/// Writes and reads back, in sizes from one block to half a MiB.
async fn write_and_read(queue: Queue, task: u64) {
    for round in 0..ROUNDS {
        let most = [1, 4, 32, 128][random_below(4) as usize];
        let blocks = 1 + random_below(most);
        let at = task * SHARE + random_below(SHARE - blocks);
        let bytes = blocks as usize * 4096;
        let salt = task * ROUNDS + round;
        let mut data = Buf::alloc(bytes).await;
        data.iter_mut().enumerate().for_each(|(i, b)| *b = byte(salt, i));
        queue.write(1, at, blocks as u32, data.freeze()).await.unwrap();
        let back = queue.read(1, at, blocks as u32, Buf::alloc(bytes).await).await.unwrap();
        assert!(back.iter().enumerate().all(|(i, &b)| b == byte(salt, i)), "{blocks} blocks at {at}");
    }
}

fn use_a_target(receive: Receive, zero_copy: ZeroCopy, digests: bool) {
    block_on(RuntimeConfig { receive, zero_copy, ..RuntimeConfig::default() }, async move {
        let name = format!("sockets-{receive:?}-{zero_copy:?}-{digests}");
        let (node, addr) = files::start(&name, 2, "1+1").await;
        let host = Host::connect(&addr, &files::host_options(digests), 2).await.unwrap();
        let tasks = (0..TASKS).map(|task| write_and_read(host.io[task as usize % 2].clone(), task));
        join_all(tasks).await;
        host.close();
        node.stop();
    });
}

#[test]
fn what_is_written_is_read_back_however_sockets_receive_and_send_with_and_without_digests() {
    for digests in [false, true] {
        use_a_target(Receive::Ring, ZeroCopy::Never, digests);
        use_a_target(Receive::Ring, ZeroCopy::Always(1), digests);
        use_a_target(Receive::Calls, ZeroCopy::Never, digests);
        use_a_target(Receive::Calls, ZeroCopy::Always(4096), digests);
    }
}
