//! What is pending, and how a frame is made of it. Pure but for the views that it carries.

use crate::frame::{ENTRIES_MAX, Entry, FRAME_BLOCKS_MAX};
use crate::map::NOBODY;
use crate::map::Ptr;
use crate::ops::OpId;
use peristyle_base::{BLOCK_BYTES, Instant, LayerId, crc32c};
use peristyle_rt::View;
use std::collections::VecDeque;

mod sort;
pub(crate) use sort::WINDOW;

/// Room that a frame keeps for events and ranges beside its data.
const OTHER_ENTRIES_MAX: usize = ENTRIES_MAX - FRAME_BLOCKS_MAX;

/// One accepted effect that waits for its frame.
pub enum Effect {
    /// Consecutive whole blocks.
    Write { layer: LayerId, block: u64, data: View },
    /// `count` blocks read as zeros.
    Zero { layer: LayerId, block: u64, count: u32 },
    /// Something that happens to a layer, or to a volume.
    Event(Entry),
    /// Events of several volumes at one point of the order.
    Group(Vec<Entry>),
}

pub struct Pending {
    pub effect: Effect,
    pub op: OpId,
    pub since: Instant,
    /// Which class it belongs to, once somebody asked.
    pub class: Option<u8>,
}

impl Pending {
    /// Data blocks that it brings.
    pub fn blocks(&self) -> usize {
        match &self.effect {
            Effect::Write { data, .. } => data.len() / BLOCK_BYTES,
            _ => 0,
        }
    }
}

/// Commands that have been accepted, in order of arrival.
#[derive(Default)]
pub struct Queue {
    items: VecDeque<Pending>,
    blocks: usize,
    /// Commands at the front that an earlier frame has left to another class: they do not wait for company.
    left_over: usize,
    /// Layers that volumes have by events which stand in frames and are not committed yet, in their order.
    heads: Vec<(LayerId, LayerId)>,
}

/// Which volume has which layer from an event on. What is written to a volume that is gone is lost.
fn head_of(event: &Entry) -> Option<(LayerId, LayerId)> {
    match *event {
        Entry::SnapshotTaken { volume, new, .. }
        | Entry::SnapshotCloned { volume, new, .. }
        | Entry::RolledBack { volume, new, .. } => Some((volume, new)),
        Entry::LayerCreated { layer, .. } => Some((layer, layer)),
        Entry::LayerDropped { layer } => Some((layer, NOBODY)),
        _ => None,
    }
}

struct Candidate {
    layer: LayerId,
    block: u64,
    /// Position among the commands taken.
    order: u32,
    view: View,
    /// Its checksum, once it is known to be part of the frame.
    crc: Option<u32>,
}

static ZEROES: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
/// CRC32C of a block of zeros.
const ZEROES_CRC: u32 = 0x98f9_4189;

/// Reused between frames.
#[derive(Default)]
pub struct Scratch {
    candidates: Vec<Candidate>,
    /// Commands that are being sorted by class.
    pub(crate) picked: Vec<Pending>,
    pub(crate) rest: Vec<Pending>,
    /// Zeroed ranges with their place in the order of arrival.
    ranges: Vec<(LayerId, u64, u32, u32)>,
    /// Blocks of zeros that hosts write become ranges, too.
    detect_zeroes: bool,
}

/// What a frame is made of, in memory that is used again.
#[derive(Default)]
pub struct Contents {
    pub entries: Vec<Entry>,
    pub data: Vec<View>,
    pub ops: Vec<(OpId, Instant)>,
    /// Blocks that hosts wrote, and that are ranges because they are zeros.
    pub zeroes: usize,
    /// Which of its kind's streams it belongs to.
    pub class: u8,
    /// Of blocks that collection moves: where the map has to point still, so that an entry takes effect.
    pub moved_from: Vec<Ptr>,
    /// … and when they were written.
    pub birth: u64,
}

impl Contents {
    pub fn with_room() -> Contents {
        Contents {
            entries: Vec::with_capacity(ENTRIES_MAX),
            data: Vec::with_capacity(FRAME_BLOCKS_MAX),
            ops: Vec::with_capacity(FRAME_BLOCKS_MAX),
            zeroes: 0,
            class: 0,
            moved_from: Vec::with_capacity(FRAME_BLOCKS_MAX),
            birth: 0,
        }
    }
    pub fn clear(&mut self) {
        self.entries.clear();
        self.data.clear();
        self.ops.clear();
        self.moved_from.clear();
        (self.zeroes, self.class, self.birth) = (0, 0, 0);
    }
    /// Lets go of the blocks.
    pub fn clear_data(&mut self) {
        self.data.clear();
        self.moved_from.clear();
    }
}

impl Queue {
    pub fn with_room(commands: usize) -> Queue {
        Queue { items: VecDeque::with_capacity(commands), blocks: 0, left_over: 0, heads: Vec::new() }
    }
    pub fn push(&mut self, pending: Pending) {
        self.blocks += pending.blocks();
        self.items.push_back(pending);
    }
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
    pub fn len(&self) -> usize {
        self.items.len()
    }
    /// When the first command that waits came.
    pub fn oldest(&self) -> Option<Instant> {
        self.items.front().map(|p| p.since)
    }
    /// Data blocks that wait.
    pub fn blocks(&self) -> usize {
        self.blocks
    }
    pub fn left_over(&self) -> usize {
        self.left_over
    }
    pub fn drain(&mut self) -> impl Iterator<Item = Pending> + '_ {
        (self.blocks, self.left_over) = (0, 0);
        self.items.drain(..)
    }
    /// Whether a command that waits touches a block of the range.
    pub fn touches(&self, layer: LayerId, block: u64, count: u64) -> bool {
        self.items.iter().any(|p| match &p.effect {
            Effect::Write { layer: l, block: b, .. } => {
                *l == layer && overlap(*b, p.blocks() as u64, block, count)
            }
            Effect::Zero { layer: l, block: b, count: n } => {
                *l == layer && overlap(*b, *n as u64, block, count)
            }
            // What the volume holds may become something else with it.
            Effect::Event(entry) => head_of(entry).is_some_and(|(volume, _)| volume == layer),
            Effect::Group(entries) => entries.iter().filter_map(head_of).any(|(volume, _)| volume == layer),
        })
    }

    /// An event that gives the volume another layer is in a frame that is not committed.
    pub fn changes_layer(&self, volume: LayerId) -> bool {
        self.heads.iter().any(|(of, _)| *of == volume)
    }

    /// A frame is committed: whoever asks for the layers of volumes knows its events.
    pub fn committed(&mut self, entries: &[Entry]) {
        if !self.heads.is_empty() {
            let known =
                |head: &(LayerId, LayerId)| entries.iter().filter_map(head_of).any(|known| known == *head);
            self.heads.retain(|head| !known(head));
        }
    }

    /// Takes whole commands from the front while they fit into `limit` blocks (the first one in any case), and makes a
    /// frame's contents of them.
    ///
    /// A frame has at most one effect per (layer, block), the last in arrival order; ranges come first, then
    /// data sorted by (layer, block), so that a contiguous run lies in one column (DESIGN §3, §11). An event
    /// stands alone: what follows it belongs to the next frame, so that order within a frame never matters.
    ///
    /// At most `commands` of them. `head` is the committed layer of each volume: which layer a write goes to is decided
    /// here, so that a snapshot has all that was accepted before it, and nothing else.
    pub fn take(
        &mut self,
        scratch: &mut Scratch,
        out: &mut Contents,
        (commands, limit): (usize, usize),
        head: impl Fn(LayerId) -> Option<LayerId>,
    ) {
        out.clear();
        scratch.candidates.clear();
        scratch.ranges.clear();
        let (mut blocks, mut others) = (0, 0);
        while let Some(next) = self.items.front() {
            let is_event = matches!(next.effect, Effect::Event(_) | Effect::Group(_));
            let fits = match next.effect {
                Effect::Write { .. } => out.ops.is_empty() || blocks + next.blocks() <= limit,
                Effect::Zero { .. } => others < OTHER_ENTRIES_MAX,
                Effect::Event(_) | Effect::Group(_) => out.ops.is_empty(),
            };
            if !fits || out.ops.len() == out.ops.capacity().min(commands) {
                break;
            }
            let next = self.items.pop_front().expect("just seen");
            self.left_over = self.left_over.saturating_sub(1);
            let order = out.ops.len() as u32;
            self.blocks -= next.blocks();
            out.ops.push((next.op, next.since));
            let layer_of = |volume| {
                let event = self.heads.iter().rev().find(|(of, _)| *of == volume);
                event.map(|(_, layer)| *layer).or_else(|| head(volume)).unwrap_or(NOBODY)
            };
            match next.effect {
                Effect::Write { layer, block, data } => {
                    let layer = layer_of(layer);
                    for (i, at) in (0..data.len()).step_by(BLOCK_BYTES).enumerate() {
                        let view = data.slice(at..at + BLOCK_BYTES);
                        let block = block + i as u64;
                        scratch.candidates.push(Candidate { layer, block, order, view, crc: None });
                        blocks += 1;
                    }
                }
                Effect::Zero { layer, block, count } => {
                    others += 1;
                    scratch.ranges.push((layer_of(layer), block, count, order));
                }
                Effect::Event(entry) => out.entries.push(entry),
                Effect::Group(entries) => out.entries.extend(entries),
            }
            if is_event {
                self.heads.extend(out.entries.iter().filter_map(head_of));
                break;
            }
        }
        scratch.finish(out);
    }
}

impl Scratch {
    pub fn with_room(detect_zeroes: bool) -> Scratch {
        Scratch {
            detect_zeroes,
            candidates: Vec::with_capacity(FRAME_BLOCKS_MAX),
            picked: Vec::with_capacity(WINDOW),
            rest: Vec::with_capacity(WINDOW),
            ranges: Vec::with_capacity(OTHER_ENTRIES_MAX),
        }
    }

    fn finish(&mut self, out: &mut Contents) {
        // The order makes the key unique, so an unstable sort (which needs no memory) is stable enough.
        self.candidates.sort_unstable_by_key(|c| (c.layer, c.block, c.order));
        for &(layer, block, count, _) in &self.ranges {
            out.entries.push(Entry::Zero { layer, block, count });
        }
        let asked = out.entries.len();
        for i in 0..self.candidates.len() {
            let c = &self.candidates[i];
            let superseded =
                self.candidates.get(i + 1).is_some_and(|n| (n.layer, n.block) == (c.layer, c.block))
                    || self.ranges.iter().any(|&(layer, block, count, order)| {
                        layer == c.layer && order > c.order && overlap(block, count as u64, c.block, 1)
                    });
            if superseded {
                continue;
            }
            let crc = crc32c(&c.view);
            // The checksum is needed anyway: only a block that has the one of zeros is looked at.
            if self.detect_zeroes && crc == ZEROES_CRC && c.view[..] == ZEROES {
                add_zero(&mut out.entries, asked, c.layer, c.block);
                out.zeroes += 1;
            } else {
                self.candidates[i].crc = Some(crc);
            }
        }
        for c in self.candidates.drain(..) {
            if let Some(crc) = c.crc {
                out.entries.push(Entry::Data { layer: c.layer, block: c.block, crc });
                out.data.push(c.view);
            }
        }
    }
}

/// Adds a block to the ranges from the `first` entry on: it takes no more room than its data entry would have.
fn add_zero(entries: &mut Vec<Entry>, first: usize, layer: LayerId, block: u64) {
    if let Some(Entry::Zero { layer: l, block: b, count }) = entries[first..].last_mut()
        && (*l, *b + *count as u64) == (layer, block)
    {
        *count += 1;
        return;
    }
    entries.push(Entry::Zero { layer, block, count: 1 });
}

pub(crate) fn overlap(a: u64, a_count: u64, b: u64, b_count: u64) -> bool {
    a < b.saturating_add(b_count) && b < a.saturating_add(a_count)
}

#[cfg(test)]
mod tests;
