use super::*;
use crate::ops::Ops;
use peristyle_rt::{Buf, sim};
use std::collections::BTreeMap;

const L: LayerId = LayerId(1);

async fn data(blocks: usize, content: u8) -> View {
    let mut buf = Buf::alloc(blocks * BLOCK_BYTES).await;
    buf.fill(content);
    buf.freeze()
}

/// What the blocks are after a frame: its ranges first, then its data (DESIGN §11).
fn replayed(contents: &Contents, model: &mut BTreeMap<u64, u8>) {
    let mut views = contents.data.iter();
    for entry in &contents.entries {
        match *entry {
            Entry::Zero { block, count, .. } => {
                (block..block + count as u64).for_each(|b| _ = model.remove(&b))
            }
            Entry::Data { block, crc, .. } => {
                let view = views.next().expect("one for each entry");
                assert_eq!(crc, crc32c(view));
                model.insert(block, view[0]);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(views.next().is_none());
}

#[test]
fn a_frame_has_one_effect_per_block_and_it_is_the_last_that_arrived() {
    for seed in 0..300u64 {
        sim::run(seed, |_| async move {
            let (ops, mut queue) = (Ops::with_room(64), Queue::with_room(64));
            let (mut scratch, mut out) = (Scratch::with_room(), Contents::with_room());
            let mut random = [0u8; 90];
            peristyle_rt::fill_random(&mut random);
            let (mut want, mut got) = (BTreeMap::new(), BTreeMap::new());
            for (i, r) in random.chunks(3).take(3 + seed as usize % 27).enumerate() {
                let (block, count, content) = (r[0] as u64 % 16, 1 + r[1] as u64 % 5, i as u8 + 1);
                let effect = match r[2] % 3 {
                    0 => {
                        (block..block + count).for_each(|b| _ = want.remove(&b));
                        Effect::Zero { layer: L, block, count: count as u32 }
                    }
                    _ => {
                        (block..block + count).for_each(|b| _ = want.insert(b, content));
                        Effect::Write { layer: L, block, data: data(count as usize, content).await }
                    }
                };
                queue.push(Pending { effect, op: ops.start(), since: Instant::ZERO });
            }
            while !queue.is_empty() {
                queue.take(&mut scratch, &mut out);
                let blocks: Vec<_> = out
                    .entries
                    .iter()
                    .filter_map(|e| match *e {
                        Entry::Data { layer, block, .. } => Some((layer, block)),
                        _ => None,
                    })
                    .collect();
                assert!(blocks.is_sorted_by(|a, b| a < b), "in order, each once: {blocks:?}");
                assert!(out.entries.is_sorted_by_key(|e| e.data_crc().is_some()), "ranges come first");
                replayed(&out, &mut got);
            }
            assert_eq!(got, want);
        });
    }
}

#[test]
fn a_command_is_never_split_over_frames_and_an_event_stands_alone() {
    sim::run(1, |_| async {
        let (ops, mut queue) = (Ops::with_room(8), Queue::with_room(8));
        let (mut scratch, mut out) = (Scratch::with_room(), Contents::with_room());
        let event = || Effect::Event(Entry::LayerDropped { layer: L });
        for (block, blocks) in [(0, 128), (200, 112), (400, 1)] {
            let effect = Effect::Write { layer: L, block, data: data(blocks, 1).await };
            queue.push(Pending { effect, op: ops.start(), since: Instant::ZERO });
        }
        queue.push(Pending { effect: event(), op: ops.start(), since: Instant::ZERO });
        queue.push(Pending { effect: event(), op: ops.start(), since: Instant::ZERO });
        let mut taken = Vec::new();
        while !queue.is_empty() {
            queue.take(&mut scratch, &mut out);
            taken.push((out.ops.len(), out.data.len(), out.entries.len()));
        }
        assert_eq!(taken, [(2, 240, 240), (1, 1, 1), (1, 0, 1), (1, 0, 1)]);
    });
}
