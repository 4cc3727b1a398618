//! Takeovers from an owner that still serves: what is read before the shard is owned, and what its owner does meanwhile.

use crate::pool::*;
use peristyle_base::NodeId;
use peristyle_rt::{Duration, random_below, sim};
use peristyle_shard::{ColumnFault, RecoverError};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

#[test]
fn what_was_read_before_the_shard_was_owned_is_not_read_again() {
    sim::run(1, |_| async {
        let home = Home::new("2+1", 5);
        let shard = home.start().await;
        for block in 0..30 {
            write(&shard, block, 1, block).await.unwrap();
        }
        shard.checkpoint().await.unwrap();
        for block in 30..91 {
            write(&shard, block * 4, 1 + block as usize % 3, block).await.unwrap();
        }
        home.pool.take_log();
        let next = home.recover_on(NodeId(1)).await.unwrap();
        let report = home.report.get();
        assert!(report.foreseen && report.frames_foreseen >= 61, "{report:?}");
        assert_eq!(report.replayed + report.tail_kept, 61, "{report:?}");
        assert_eq!(report.scanned, 0, "nobody wrote meanwhile: {report:?}");
        let log = home.pool.take_log();
        let owned = log.iter().position(|(a, _)| a.what == What::Fence).expect("columns are fenced");
        let served = log.iter().position(|(a, _)| a.what == What::Append).expect("the cut is recorded");
        let again = log[owned..served].iter().filter(|(a, _)| a.what == What::Read);
        assert!(again.clone().all(|(a, _)| a.rows == 1), "{:?}", again.collect::<Vec<_>>());
        for block in 30..91 {
            expect(&next, block * 4, 1 + block as usize % 3, block).await;
        }
        for block in 0..30 {
            expect(&next, block, 1, block).await;
        }
    });
}

/// Blocks with the last contents that a host knows to be there, and those that may be.
#[derive(Default)]
struct Known {
    acknowledged: BTreeMap<u64, u64>,
    begun: Cell<Option<(u64, u64)>>,
}

/// Writes one block after the other until the shard does not take any more.
async fn write_on(shard: TestShard, known: Rc<RefCell<Known>>, first: u64) {
    for salt in first.. {
        let block = random_below(60);
        known.borrow().begun.set(Some((block, salt)));
        if write(&shard, block, 1, salt).await.is_err() {
            return;
        }
        known.borrow_mut().acknowledged.insert(block, salt);
        if random_below(40) == 0 {
            let shard = shard.clone();
            peristyle_rt::spawn(async move {
                let _ = shard.checkpoint().await;
            });
        }
    }
}

#[test]
fn what_an_owner_acknowledges_while_the_next_one_reads_its_log_is_there() {
    let mut foreseen = 0;
    for seed in 0..25 {
        foreseen += sim::run(seed, move |_| async move {
            let home = Home::new("2+1", 5);
            let mut shard = home.start().await;
            let mut foreseen = 0;
            for node in 1..6u32 {
                let known = Rc::new(RefCell::new(Known::default()));
                // Devices take their time, and now and then one fails an append, so that extents are given up.
                home.pool.rule(|asked| match asked.what {
                    What::Append if random_below(100) == 0 => Do::Fail(ColumnFault::Device),
                    _ => Do::Late(Duration::from_micros(random_below(300))),
                });
                peristyle_rt::spawn(write_on(shard.clone(), known.clone(), u64::from(node) * 100_000));
                peristyle_rt::sleep(Duration::from_micros(random_below(100_000))).await;
                let mut next = home.recover_on(NodeId(node)).await;
                if let Err(RecoverError::HeadersUnreadable { .. }) = next {
                    // Its owner gave an extent back a moment ago, which nothing keeps it from here.
                    next = home.recover_on(NodeId(node)).await;
                }
                let next = next.unwrap();
                foreseen += home.report.get().frames_foreseen;
                home.kill(shard);
                shard = next;
                let Known { acknowledged, begun } = known.take();
                for (block, salt) in acknowledged {
                    let there = read(&shard, block, 1).await.unwrap();
                    let begun = begun.get().filter(|begun| begun.0 == block).map(|begun| begun.1);
                    let right = there == fill(1, salt) || begun.is_some_and(|salt| there == fill(1, salt));
                    assert!(right, "seed {seed}: block {block} on node {node}");
                }
            }
            foreseen
        });
    }
    assert!(foreseen > 1000, "{foreseen} frames were read before");
}
