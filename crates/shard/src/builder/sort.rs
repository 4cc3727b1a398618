//! Hot and cold commands apart: those of one class come to the front of the queue, so that a frame takes only them. Pure.

use super::{Effect, Pending, Queue, Scratch};
use crate::stream::USER_CLASSES_MAX;
use peristyle_base::LayerId;

/// Commands that are looked at for one frame.
pub(crate) const WINDOW: usize = 512;
/// Blocks that a class needs for a frame of its own: fewer are not worth another header.
const APART_MIN: usize = 24;
const FILTER_BITS: u64 = 4096;

/// Blocks that something may touch: whoever hits the filter is taken to touch the same.
struct Filter([u64; FILTER_BITS as usize / 64]);

impl Filter {
    fn bits(layer: LayerId, block: u64, count: usize) -> impl Iterator<Item = u64> {
        let hash = move |block: u64| (block ^ u64::from(layer.0) << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (block..block + count as u64).map(move |block| hash(block) >> 32 & (FILTER_BITS - 1))
    }
    fn add(&mut self, bits: impl Iterator<Item = u64>) {
        bits.for_each(|bit| self.0[bit as usize / 64] |= 1 << (bit % 64));
    }
    fn hits(&self, mut bits: impl Iterator<Item = u64>) -> bool {
        bits.any(|bit| self.0[bit as usize / 64] >> (bit % 64) & 1 == 1)
    }
}

impl Queue {
    /// Brings commands of the class of the first one to the front. Returns that class and how many commands of it there are;
    /// `usize::MAX` when the next frame is to take all classes, because one is too small for a frame of its own.
    ///
    /// No command overtakes one that touches a block of it, or an unmap or an event: those that would stay where they are.
    pub fn sort_by_class(
        &mut self,
        scratch: &mut Scratch,
        limit: usize,
        class_of: impl Fn(LayerId, u64) -> u8,
    ) -> (u8, usize) {
        let (mut counts, mut window) = ([0; USER_CLASSES_MAX], 0);
        for pending in self.items.iter_mut().take(WINDOW) {
            let Effect::Write { layer, block, .. } = pending.effect else { break };
            let class = *pending.class.get_or_insert_with(|| class_of(layer, block));
            counts[class as usize] += pending.blocks();
            window += 1;
        }
        let all: usize = counts.iter().sum();
        let most = (0..USER_CLASSES_MAX).max_by_key(|&c| counts[c]).unwrap_or(0) as u8;
        let Some(first) = self.items.front().and_then(|p| p.class).filter(|_| window > 0) else {
            return (most, usize::MAX);
        };
        let mine = counts[first as usize];
        if mine == all {
            return (first, usize::MAX);
        }
        if mine < APART_MIN || all - mine < APART_MIN {
            return (most, usize::MAX);
        }
        let (mut blocks, mut passed) = (0, Filter([0; FILTER_BITS as usize / 64]));
        for _ in 0..window {
            if blocks >= limit {
                break;
            }
            let next = self.items.pop_front().expect("just counted");
            let Effect::Write { layer, block, .. } = next.effect else { unreachable!("just counted") };
            let count = next.blocks();
            if next.class == Some(first) && !passed.hits(Filter::bits(layer, block, count)) {
                blocks += count;
                scratch.picked.push(next);
            } else {
                passed.add(Filter::bits(layer, block, count));
                scratch.rest.push(next);
            }
        }
        let (picked, rest) = (scratch.picked.len(), scratch.rest.len());
        scratch.rest.drain(..).rev().for_each(|p: Pending| self.items.push_front(p));
        scratch.picked.drain(..).rev().for_each(|p: Pending| self.items.push_front(p));
        self.left_over = picked + rest;
        (first, picked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Contents;
    use crate::frame::{Entry, FRAME_BLOCKS_MAX};
    use crate::ops::Ops;
    use peristyle_base::{BLOCK_BYTES, Instant};
    use peristyle_rt::{Buf, sim};

    const L: LayerId = LayerId(1);

    /// Writes of single blocks, each with its number in the order of arrival as its content.
    async fn queue(blocks: &[u64]) -> Queue {
        let (ops, mut queue) = (Ops::with_room(blocks.len()), Queue::with_room(blocks.len()));
        for (i, &block) in blocks.iter().enumerate() {
            let mut buf = Buf::zeroed(BLOCK_BYTES).await;
            buf[..8].copy_from_slice(&(i as u64 + 1).to_le_bytes());
            let effect = Effect::Write { layer: L, block, data: buf.freeze() };
            queue.push(Pending { effect, op: ops.start(), since: Instant::ZERO, class: None });
        }
        queue
    }

    /// Everything, frame by frame: the class, and block and content of each entry.
    fn frames(queue: &mut Queue, class_of: impl Fn(u64) -> u8) -> Vec<(u8, Vec<(u64, u64)>)> {
        let (mut scratch, mut out) = (Scratch::with_room(true), Contents::with_room());
        let mut frames = Vec::new();
        while !queue.is_empty() {
            let (class, commands) =
                queue.sort_by_class(&mut scratch, FRAME_BLOCKS_MAX, |_, block| class_of(block));
            queue.take(&mut scratch, &mut out, (commands, FRAME_BLOCKS_MAX), Some);
            let entry = |(entry, data): (&Entry, &peristyle_rt::View)| match *entry {
                Entry::Data { block, .. } => (block, u64::from_le_bytes(data[..8].try_into().unwrap())),
                _ => panic!("{entry:?}"),
            };
            frames.push((class, out.entries.iter().zip(&out.data).map(entry).collect()));
        }
        frames
    }

    #[test]
    fn commands_of_one_class_share_a_frame() {
        sim::run(1, |_| async {
            let blocks: Vec<u64> = (0..100).collect();
            let frames = frames(&mut queue(&blocks).await, |block| (block % 2) as u8);
            assert_eq!(frames.len(), 2);
            for (class, entries) in frames {
                // But for the few that the filter takes for overlapping.
                assert!(entries.iter().filter(|e| e.0 % 2 == class as u64).count() >= 45, "{entries:?}");
            }
        });
    }

    #[test]
    fn a_class_that_is_too_small_shares_the_frame_of_the_others() {
        sim::run(2, |_| async {
            let blocks: Vec<u64> = (0..100).collect();
            let frames = frames(&mut queue(&blocks).await, |block| (block < 5) as u8);
            assert_eq!((frames.len(), frames[0].0, frames[0].1.len()), (1, 0, 100));
        });
    }

    #[test]
    fn no_command_overtakes_an_earlier_one_to_the_same_block() {
        sim::run(3, |_| async {
            let mut rng = sim::Rng::new(1);
            let blocks: Vec<u64> = (0..400).map(|_| rng.below(60)).collect();
            // A class that follows nothing: the same block has another one each time.
            let turn = std::cell::Cell::new(0u8);
            let class_of = |_| {
                turn.set((turn.get() + 1) % 3);
                turn.get()
            };
            let mut last = std::collections::HashMap::new();
            for (_, entries) in frames(&mut queue(&blocks).await, class_of) {
                for (block, order) in entries {
                    assert!(last.insert(block, order).is_none_or(|before| before < order), "block {block}");
                }
            }
            for (block, order) in last {
                assert_eq!(blocks.iter().rposition(|b| *b == block), Some(order as usize - 1));
            }
        });
    }
}
