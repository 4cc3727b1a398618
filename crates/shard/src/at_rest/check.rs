//! Every invariant of a shard that can be checked while nobody serves it.

use super::frames::{ExtentSlots, FrameAtRest, extents_of, read_frames_to, read_rows};
use super::{CopyState, Problem, Problems, Resting};
use crate::columns::{ColumnFault, ListedSlot, SlotState};
use crate::extent::Extent;
use crate::frame::{Entry, FrameKind};
use crate::map::Ptr;
use crate::recover::RecoverError;
use crate::shard::{Shard, State};
use peristyle_base::{BLOCK_BYTES, DeviceId, ExtentId, LayerId, Scheme, Seq, crc32c};
use peristyle_cluster::ShardRecord;
use peristyle_ec::Code;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// How much is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// Slot tables, headers and the checkpoint.
    Headers,
    /// All data and parity, too.
    Data,
}

/// What was looked at, and what is wrong.
#[derive(Clone, Debug, Default)]
pub struct ShardCheck {
    pub extents: u64,
    pub frames: u64,
    /// Blocks that the map points at, and blocks of the map in the log.
    pub live_blocks: u64,
    pub map_blocks: u64,
    /// Blocks of data and parity that were read and compared.
    pub blocks_read: u64,
    /// Extents that nothing refers to any more: the next start or checkpoint frees them.
    pub dead_extents: u64,
    /// The last frame that is committed.
    pub committed: Seq,
    pub problems: Problems,
}

/// One reference into an extent: what has to be there.
#[derive(Clone, Copy)]
enum Wanted {
    Data {
        layer: LayerId,
        block: u64,
    },
    /// Of a layer that is gone, or cut off: not counted yet as dead.
    Remains,
    Map,
}

type References = BTreeMap<ExtentId, Vec<(Ptr, Wanted)>>;
/// Which layers have merged into which.
type Successors = BTreeMap<LayerId, LayerId>;

/// Checks the shard of `record`. `scheme` is the pool's. `progress` gets extents done and extents to do.
pub async fn check_shard<R: Resting>(
    resting: Rc<R>,
    record: &ShardRecord,
    scheme: Scheme,
    depth: Depth,
    mut progress: impl FnMut(u64, u64),
) -> ShardCheck {
    let mut check = ShardCheck::default();
    let lists = resting.list(record.shard).await;
    for (device, list) in &lists {
        if list.is_err() {
            check.problems.add(Problem::DeviceAway { device: *device });
        }
    }
    let extents = extents_of(record.shard, &lists);
    extents.values().for_each(|extent| check_slots(&*resting, record, extent, &mut check.problems));
    check_open_set(record, &lists, &mut check.problems);
    let found = find_references(resting.clone(), record, scheme, &mut check).await;
    let (mut references, successors) = match found {
        Some(found) => found,
        None => return check,
    };
    let all = extents.len() as u64;
    for (done, extent) in extents.values().enumerate() {
        progress(done as u64, all);
        let wanted = references.remove(&extent.id).unwrap_or_default();
        check_extent(&*resting, extent, (&wanted, &successors), depth, &mut check).await;
    }
    progress(all, all);
    for (extent, wanted) in references {
        check.problems.add(Problem::ExtentLost { extent, blocks: wanted.len() as u64 });
    }
    check
}

/// What the slot tables say of one extent.
fn check_slots<R: Resting>(resting: &R, record: &ShardRecord, extent: &ExtentSlots, problems: &mut Problems) {
    let id = extent.id;
    if id >= record.next_extent {
        problems.add(Problem::BeyondTheRecord { extent: id });
    }
    for slot in &extent.strays {
        problems.add(Problem::SlotDisagrees { extent: id, column: slot.name.column.0 as usize });
    }
    let mut domains: HashMap<u32, usize> = HashMap::new();
    for (column, slots) in extent.columns.iter().enumerate() {
        // A column that moves or is made anew has a second slot until that is done: one that is being filled, then a sealed
        // one beside its old self, which may have missed its seal. The next start frees one of them.
        let readable: Vec<_> = slots.iter().filter(|s| s.state != SlotState::Filling).collect();
        let moved = readable.len() == 2 && readable.iter().any(|s| s.state == SlotState::Sealed);
        if readable.len() > 1 && !moved {
            problems.add(Problem::ColumnTwice { extent: id, column });
        }
        let Some(slot) = extent.slot(column) else { continue };
        match resting.domain(slot.place.device) {
            None => problems.add(Problem::ForeignDevice { device: slot.place.device, extent: id }),
            Some(domain) => {
                if let Some(other) = domains.insert(domain, column) {
                    problems.add(Problem::SameDomain { extent: id, columns: [other, column] });
                }
            }
        }
    }
}

/// Every column of the open set is where the record says, or was made anew elsewhere since its extent was sealed: the next
/// record says so. A device that is away says nothing.
fn check_open_set(
    record: &ShardRecord,
    lists: &[(DeviceId, Result<Vec<ListedSlot>, ColumnFault>)],
    problems: &mut Problems,
) {
    let of_device: HashMap<DeviceId, &Vec<ListedSlot>> =
        lists.iter().filter_map(|(device, list)| Some((*device, list.as_ref().ok()?))).collect();
    for open in &record.open_set {
        for (column, place) in open.columns.iter().enumerate() {
            let Some(list) = of_device.get(&place.device) else { continue };
            let is_it = |s: &&ListedSlot| {
                (s.name.extent, s.name.nonce, s.name.column.0 as usize) == (open.extent, open.nonce, column)
            };
            let made_anew = |s: &ListedSlot| is_it(&s) && s.state == SlotState::Sealed;
            if !list.iter().any(|s| s.place == *place && is_it(&s))
                && !of_device.values().copied().flatten().any(made_anew)
            {
                problems.add(Problem::RecordedColumnGone { extent: open.extent, column });
            }
        }
    }
}

/// What the map and the checkpoint point at, by extent. `None`: it cannot be known.
async fn find_references<R: Resting>(
    resting: Rc<R>,
    record: &ShardRecord,
    scheme: Scheme,
    check: &mut ShardCheck,
) -> Option<(References, Successors)> {
    let (shard, rebuilt) = match Shard::look_at_rest(resting, record, scheme).await {
        Ok(found) => found,
        Err(error) => {
            check.problems.add(Problem::NotRecoverable(error));
            return None;
        }
    };
    check.committed = rebuilt.report.committed;
    let mut references = References::new();
    let walked = shard.walk(|state, ptr, of| {
        let wanted = match of {
            Some((layer, block)) if state.map.layer_blocks(layer).is_some() => Wanted::Data { layer, block },
            Some(_) => Wanted::Remains,
            None => Wanted::Map,
        };
        references.entry(ptr.extent()).or_default().push((ptr, wanted));
    });
    if let Err(error) = walked.await {
        check.problems.add(Problem::NotRecoverable(RecoverError::Checkpoint(error)));
        return None;
    }
    let State { map, roots, extents, .. } = &*shard.state.borrow();
    let mut own = |ptr: Ptr| references.entry(ptr.extent()).or_default().push((ptr, Wanted::Map));
    roots.for_each(&mut own);
    map.retired().iter().copied().for_each(own);
    for (&id, wanted) in &references {
        let map_blocks = wanted.iter().filter(|(_, what)| matches!(what, Wanted::Map)).count() as u64;
        check.map_blocks += map_blocks;
        check.live_blocks += wanted.len() as u64 - map_blocks;
        let live = wanted.len() as u32 - map_blocks as u32;
        if extents.get(id).is_some_and(|e| (e.live, e.meta) != (live, map_blocks as u32)) {
            check.problems.add(Problem::CountsDisagree { extent: id });
        }
    }
    let counted = |e: &&Extent| (e.live, e.meta) != (0, 0) && !references.contains_key(&e.id);
    let wrong: Vec<ExtentId> = extents.iter().filter(counted).map(|e| e.id).collect();
    wrong.into_iter().for_each(|extent| check.problems.add(Problem::CountsDisagree { extent }));
    Some((references, map.all_successors()))
}

/// The columns of one extent, its headers against what refers to it, and with `Depth::Data` its blocks.
async fn check_extent<R: Resting>(
    resting: &R,
    extent: &ExtentSlots,
    (wanted, successors): (&[(Ptr, Wanted)], &Successors),
    depth: Depth,
    check: &mut ShardCheck,
) {
    check.extents += 1;
    let id = extent.id;
    let have = (0..extent.scheme.width()).filter(|&c| extent.slot(c).is_some()).count();
    if wanted.is_empty() {
        check.dead_extents += (extent.sealed_rows().is_some()) as u64;
        return;
    }
    for column in (0..extent.scheme.width()).filter(|&c| extent.slot(c).is_none()) {
        check.problems.add(Problem::ColumnLost { extent: id, column });
    }
    if have < extent.scheme.k() {
        check.problems.add(Problem::ExtentLost { extent: id, blocks: wanted.len() as u64 });
        return;
    }
    let frames = read_frames_to(resting, extent, rows_in_use(extent, wanted, &mut check.problems)).await;
    if frames.broken {
        check.problems.add(Problem::LogBroken { extent: id, row: frames.end });
    }
    let is_sealed = extent.sealed_rows().is_some();
    let committed = check.committed;
    // Behind what is known to be committed, frames need not be on all of their columns: the next owner appends those that it
    // keeps anew. And an extent without a seal may end with frames that never were.
    let is_whole = |f: &&FrameAtRest| {
        let rows = f.header.first_row.0..f.header.layout().end_row();
        let is_tail = f.header.kind == FrameKind::User && f.header.seq > committed;
        is_sealed || (!is_tail && wanted.iter().any(|(ptr, _)| rows.contains(&ptr.row().0)))
    };
    let code = Code::new(extent.scheme);
    for frame in frames.list.iter().filter(is_whole) {
        check.frames += 1;
        for &(column, state) in
            frame.copies.iter().filter(|c| !matches!(c.1, CopyState::Good | CopyState::NoColumn))
        {
            let row = frame.header.first_row.0;
            check.problems.add(Problem::HeaderCopy { extent: id, column, row, state });
        }
        if depth == Depth::Data {
            check.blocks_read += check_blocks(resting, extent, frame, &code, &mut check.problems).await;
        }
    }
    check_references(id, &frames.list, (wanted, successors), &mut check.problems);
}

/// Rows that count of a sealed extent: those that all of its columns have. A column that is too short for what is referred to was
/// sealed wrongly, and the longest tells how many rows there are.
fn rows_in_use(extent: &ExtentSlots, wanted: &[(Ptr, Wanted)], problems: &mut Problems) -> Option<u16> {
    let (rows, longest) = (extent.sealed_rows()?, extent.longest_rows()?);
    if wanted.iter().all(|(ptr, _)| ptr.row().0 < rows) {
        return Some(rows);
    }
    for column in 0..extent.scheme.width() {
        let slot = extent.slot(column).filter(|slot| slot.state == SlotState::Sealed);
        if slot.is_some_and(|slot| slot.rows < longest) {
            problems.add(Problem::RowsDisagree { extent: extent.id, column });
        }
    }
    Some(longest)
}

/// Each reference has its entry in a header, with the same checksum. The header names the layer that the block was of when
/// it was written, which may have merged into another.
fn check_references(
    extent: ExtentId,
    frames: &[FrameAtRest],
    (wanted, successors): (&[(Ptr, Wanted)], &Successors),
    problems: &mut Problems,
) {
    for (ptr, what) in wanted {
        let (column, row) = (ptr.column().0 as usize, ptr.row().0);
        let at = frames.partition_point(|f| f.header.first_row.0 <= row);
        let frame = at.checked_sub(1).map(|at| &frames[at]);
        let entry = frame.and_then(|f| Some(*f.data_entry(f.header.layout().block_at(column, row)?)));
        let agrees = match (what, entry) {
            (&Wanted::Data { layer, block }, Some(Entry::Data { layer: l, block: b, crc })) => {
                let mut named = std::iter::successors(Some(l), |l| successors.get(l).copied());
                (block, ptr.crc()) == (b, crc) && named.any(|named| named == layer)
            }
            (Wanted::Remains, Some(Entry::Data { crc, .. }))
            | (Wanted::Map, Some(Entry::Map { crc, .. })) => crc == ptr.crc(),
            _ => false,
        };
        if !agrees {
            problems.add(match *what {
                Wanted::Data { layer, block } => Problem::MapDisagrees { layer, block, extent, column, row },
                Wanted::Remains | Wanted::Map => Problem::CheckpointDisagrees { extent, column, row },
            });
        }
    }
}

/// Reads a frame's data and parity; returns what is wrong with them.
pub async fn check_frame<R: Resting>(resting: &R, extent: &ExtentSlots, frame: &FrameAtRest) -> Problems {
    let mut problems = Problems::default();
    check_blocks(resting, extent, frame, &Code::new(extent.scheme), &mut problems).await;
    problems
}

/// Row by row; returns how many blocks were looked at.
async fn check_blocks<R: Resting>(
    resting: &R,
    extent: &ExtentSlots,
    frame: &FrameAtRest,
    code: &Code,
    problems: &mut Problems,
) -> u64 {
    let mut blocks = 0;
    let (layout, scheme, id) = (frame.header.layout(), extent.scheme, extent.id);
    let (first, rows) = (layout.first_row.0 + 1, layout.data_rows() as u16);
    let mut columns = Vec::with_capacity(scheme.width());
    for column in 0..scheme.width() {
        let has_data = column >= scheme.k() || !layout.blocks_of(column).is_empty();
        columns.push(match has_data && rows > 0 {
            true => read_rows(resting, extent, column, first, rows).await,
            false => vec![None; rows as usize],
        });
    }
    let mut parity = vec![0u8; scheme.m() * BLOCK_BYTES];
    for row in first..first + rows {
        let block_of = |c: usize| columns[c][(row - first) as usize].as_deref();
        let mut data: Vec<Option<&[u8]>> = vec![None; scheme.k()];
        let mut whole = true;
        for (column, data) in data.iter_mut().enumerate() {
            let Some(i) = layout.block_at(column, row) else { continue };
            blocks += 1;
            *data = block_of(column).filter(|b| Some(crc32c(b)) == frame.data_entry(i).data_crc());
            whole &= data.is_some();
            match (*data, block_of(column)) {
                (None, Some(_)) => problems.add(Problem::BlockDamaged { extent: id, column, row }),
                (None, None) if extent.slot(column).is_some() => {
                    problems.add(Problem::BlockUnreadable { extent: id, column, row });
                }
                _ => {}
            }
        }
        if !whole {
            continue; // what parity has to be is not known
        }
        let mut sums: Vec<&mut [u8]> = parity.chunks_exact_mut(BLOCK_BYTES).collect();
        code.encode_sparse(&data, &mut sums);
        for (p, sum) in sums.iter().enumerate() {
            let column = scheme.k() + p;
            blocks += 1;
            match block_of(column) {
                Some(there) if there != &**sum => {
                    problems.add(Problem::ParityDamaged { extent: id, column, row });
                }
                None if extent.slot(column).is_some() => {
                    problems.add(Problem::BlockUnreadable { extent: id, column, row });
                }
                _ => {}
            }
        }
    }
    blocks
}
