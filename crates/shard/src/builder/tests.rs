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
                assert_ne!(view[0], 0, "zeros are ranges");
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
            let (mut scratch, mut out) = (Scratch::with_room(true), Contents::with_room());
            let mut random = [0u8; 90];
            peristyle_rt::fill_random(&mut random);
            let (mut want, mut got) = (BTreeMap::new(), BTreeMap::new());
            for (i, r) in random.chunks(3).take(3 + seed as usize % 27).enumerate() {
                // Every fourth is zeros.
                let content = if i % 4 == 3 { 0 } else { i as u8 + 1 };
                let (block, count) = (r[0] as u64 % 16, 1 + r[1] as u64 % 5);
                let effect = match r[2] % 3 {
                    0 => {
                        (block..block + count).for_each(|b| _ = want.remove(&b));
                        Effect::Zero { layer: L, block, count: count as u32 }
                    }
                    _ => {
                        (block..block + count).for_each(|b| {
                            match content {
                                0 => want.remove(&b),
                                _ => want.insert(b, content),
                            };
                        });
                        Effect::Write { layer: L, block, data: data(count as usize, content).await }
                    }
                };
                queue.push(Pending { effect, op: ops.start(), since: Instant::ZERO, class: None });
            }
            while !queue.is_empty() {
                queue.take(&mut scratch, &mut out, (usize::MAX, FRAME_BLOCKS_MAX), Some);
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
        let (mut scratch, mut out) = (Scratch::with_room(true), Contents::with_room());
        let event = || Effect::Event(Entry::LayerDropped { layer: L });
        for (block, blocks) in [(0, 128), (200, 112), (400, 1)] {
            let effect = Effect::Write { layer: L, block, data: data(blocks, 1).await };
            queue.push(Pending { effect, op: ops.start(), since: Instant::ZERO, class: None });
        }
        queue.push(Pending { effect: event(), op: ops.start(), since: Instant::ZERO, class: None });
        queue.push(Pending { effect: event(), op: ops.start(), since: Instant::ZERO, class: None });
        let mut taken = Vec::new();
        while !queue.is_empty() {
            queue.take(&mut scratch, &mut out, (usize::MAX, FRAME_BLOCKS_MAX), Some);
            taken.push((out.ops.len(), out.data.len(), out.entries.len()));
        }
        assert_eq!(taken, [(2, 240, 240), (1, 1, 1), (1, 0, 1), (1, 0, 1)]);
    });
}

#[test]
fn blocks_of_zeros_are_ranges_of_the_same_frame_and_take_no_more_room_in_it() {
    sim::run(1, |_| async {
        assert_eq!(crc32c(&ZEROES), ZEROES_CRC);
        let (ops, mut queue, mut out) = (Ops::with_room(512), Queue::with_room(512), Contents::with_room());
        // Zeros and data in turn are the most entries that a frame's blocks can make; ranges fill the rest.
        for detect in [true, false] {
            for i in 0..FRAME_BLOCKS_MAX as u64 {
                let effect = Effect::Write { layer: L, block: i, data: data(1, i as u8 % 2).await };
                queue.push(Pending { effect, op: ops.start(), since: Instant::ZERO, class: None });
            }
            let mut scratch = Scratch::with_room(detect);
            queue.take(&mut scratch, &mut out, (usize::MAX, FRAME_BLOCKS_MAX), Some);
            assert!(queue.is_empty() && out.entries.len() == FRAME_BLOCKS_MAX);
            assert_eq!((out.data.len(), out.zeroes), if detect { (120, 120) } else { (240, 0) });
        }
        let run = Effect::Write { layer: L, block: 7, data: data(100, 0).await };
        queue.push(Pending { effect: run, op: ops.start(), since: Instant::ZERO, class: None });
        queue.take(&mut Scratch::with_room(true), &mut out, (usize::MAX, FRAME_BLOCKS_MAX), Some);
        assert_eq!(out.entries, [Entry::Zero { layer: L, block: 7, count: 100 }]);
    });
}
