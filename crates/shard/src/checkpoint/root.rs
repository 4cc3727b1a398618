//! The bytes of a checkpoint beside its leaves and pages: the root stream, the blocks that list changed pointers, and the
//! directory that names the stream's blocks. Pure. `docs/disk-format.md`, "Checkpoint", has the tables.

use crate::map::CHAIN_MAX;
use crate::map::{LayerPages, LayerTable, Logged, Lookup, PTR_BYTES, PageAt, Ptr, View, pages_of};
use peristyle_base::{BLOCK_BYTES, ExtentId, LayerId, Seq};
use std::collections::{BTreeMap, BTreeSet};

const ROOT_MAGIC: u64 = u64::from_le_bytes(*b"PERIROOT");
const CHANGES_MAGIC: u64 = u64::from_le_bytes(*b"PERICHG1");
const DIRECTORY_MAGIC: u64 = u64::from_le_bytes(*b"PERIDIR1");
const HEADER_BYTES: usize = 64;
/// Behind a layer's number, pages and blocks, in version 2.
const LAYER_ZEROS: usize = 16;
/// Instead of a layer's parent: it has none.
const NO_PARENT: u32 = u32::MAX;
const VIEW_BYTES: usize = 16;
const VIEW_READ_ONLY: u32 = 1;
const PAGE_BYTES: usize = 24;
const EXTENT_BYTES: usize = 16;
const CHANGE_BYTES: usize = 24;
const BLOCK_HEADER_BYTES: usize = 16;
/// Changed pointers that one block lists.
pub const CHANGES_MAX: usize = (BLOCK_BYTES - BLOCK_HEADER_BYTES) / CHANGE_BYTES;
/// Blocks of the stream that one block of the directory names.
pub const DIRECTORY_MAX: usize = (BLOCK_BYTES - BLOCK_HEADER_BYTES) / PTR_BYTES;

const SET_COUNTED: u8 = 1;
const SET: u8 = 2;
const VOID: u8 = 3;
const PAGE_ZERO: u32 = 1;
const PAGE_HOME: u32 = 2;

/// Why a checkpoint's bytes are refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadRoot;

/// Blocks of one extent that a checkpoint refers to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    pub live: u32,
    /// Map blocks, without those of the root stream and of its directory.
    pub map: u32,
}

/// What a root stream says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Root {
    pub seq: Seq,
    pub layers: Vec<LayerPages>,
    /// `None` in versions 1 and 2: no layer has a parent, and each is a volume.
    pub table: Option<LayerTable>,
    /// Blocks that list changes, oldest first, and how many they list.
    pub changes: Vec<Ptr>,
    pub listed: u64,
    /// `None` in version 1: they have to be counted.
    pub extents: Option<Vec<(ExtentId, Counts)>>,
}

impl Root {
    /// The bytes, in whole blocks.
    /// # Panics — when a page has no place yet: the caller writes pages first.
    pub fn encode(&self) -> Vec<u8> {
        let extents = self.extents.as_deref().unwrap_or_default();
        let mut out = Vec::new();
        out.extend(ROOT_MAGIC.to_le_bytes());
        out.extend(if self.table.is_some() { 3u32 } else { 2 }.to_le_bytes());
        out.extend((self.layers.len() as u32).to_le_bytes());
        out.extend(self.seq.0.to_le_bytes());
        out.extend((self.changes.len() as u32).to_le_bytes());
        out.extend((extents.len() as u32).to_le_bytes());
        out.extend(self.listed.to_le_bytes());
        if let Some(table) = &self.table {
            let counts = [table.views.len(), table.aliases.len(), table.origins.len()];
            counts.iter().for_each(|count| out.extend((*count as u32).to_le_bytes()));
            out.extend(table.next_layer.to_le_bytes());
            out.extend(table.freeing.to_le_bytes());
        }
        out.resize(HEADER_BYTES, 0);
        for (i, (id, blocks, pages)) in self.layers.iter().enumerate() {
            out.extend(id.0.to_le_bytes());
            out.extend((pages.len() as u32).to_le_bytes());
            out.extend(blocks.to_le_bytes());
            match self.table.as_ref().map(|table| table.layers[i]) {
                Some((_, parent, live)) => {
                    out.extend(parent.map_or(NO_PARENT, |parent| parent.0).to_le_bytes());
                    out.extend([0; 4]);
                    out.extend(live.to_le_bytes());
                }
                None => out.extend([0; LAYER_ZEROS]),
            }
            for &(number, at) in pages {
                let (kind, ptr) = match at {
                    PageAt::Zero => (PAGE_ZERO, Ptr::ABSENT),
                    PageAt::Home(home) => (PAGE_HOME, home),
                    PageAt::Written(_) => panic!("a page's place is known before the root is written"),
                };
                out.extend(number.to_le_bytes());
                out.extend(kind.to_le_bytes());
                out.extend(ptr.encode());
            }
        }
        self.table.iter().for_each(|table| encode_table(table, &mut out));
        self.changes.iter().for_each(|ptr| out.extend(ptr.encode()));
        for (id, counts) in extents {
            out.extend(id.0.to_le_bytes());
            out.extend(counts.live.to_le_bytes());
            out.extend(counts.map.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(BLOCK_BYTES), 0);
        out
    }

    /// Parses a root stream of any version. The bytes were verified by their checksums; what they say is validated all
    /// the same.
    pub fn decode(bytes: &[u8]) -> Result<Root, BadRoot> {
        let mut reader = Reader { bytes, at: 0 };
        if reader.u64()? != ROOT_MAGIC {
            return Err(BadRoot);
        }
        match reader.u32()? {
            1 => decode_version_1(reader),
            version @ (2 | 3) => decode_version_2_or_3(reader, version == 3),
            _ => Err(BadRoot),
        }
    }

    /// Whether a block begins a root stream, rather than the directory of one.
    pub fn begins_in(block: &[u8]) -> bool {
        block[..8] == ROOT_MAGIC.to_le_bytes()
    }
}

fn encode_table(table: &LayerTable, out: &mut Vec<u8>) {
    for (id, view) in &table.views {
        let flags = if view.writable { 0 } else { VIEW_READ_ONLY };
        [id.0, view.layer.0, flags, 0].iter().for_each(|word| out.extend(word.to_le_bytes()));
    }
    for (from, to) in &table.aliases {
        [from.0, to.0].iter().for_each(|word| out.extend(word.to_le_bytes()));
    }
    table.origins.iter().for_each(|of| out.extend(of.0.to_le_bytes()));
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], BadRoot> {
        let part = self.bytes.get(self.at..self.at + N).ok_or(BadRoot)?;
        self.at += N;
        Ok(part.try_into().expect("as long as asked"))
    }
    fn u32(&mut self) -> Result<u32, BadRoot> {
        self.take().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Result<u64, BadRoot> {
        self.take().map(u64::from_le_bytes)
    }
    fn zeros<const N: usize>(&mut self) -> Result<(), BadRoot> {
        if self.take::<N>()? == [0; N] { Ok(()) } else { Err(BadRoot) }
    }
    fn ptr(&mut self) -> Result<Ptr, BadRoot> {
        self.take::<PTR_BYTES>().map(|bytes| Ptr::decode(&bytes))
    }
    fn data_ptr(&mut self) -> Result<Ptr, BadRoot> {
        self.ptr().ok().filter(|ptr| matches!(ptr.lookup(), Lookup::Data(_))).ok_or(BadRoot)
    }
    /// So many items of a size may follow: nothing is allocated for more.
    fn holds(&self, items: usize, bytes: usize) -> Result<usize, BadRoot> {
        let left = self.bytes.len() - self.at;
        if items.checked_mul(bytes).is_some_and(|n| n <= left) { Ok(items) } else { Err(BadRoot) }
    }
    fn end(self) -> Result<(), BadRoot> {
        if self.bytes[self.at..].iter().all(|&b| b == 0) { Ok(()) } else { Err(BadRoot) }
    }
}

fn decode_version_1(mut reader: Reader) -> Result<Root, BadRoot> {
    let (count, seq) = (reader.u32()? as usize, Seq(reader.u64()?));
    reader.zeros::<8>()?;
    let mut root = Root { seq, ..Root::default() };
    for _ in 0..count {
        let (id, pages, blocks) = (LayerId(reader.u32()?), reader.u32()? as usize, reader.u64()?);
        if pages_of(blocks) != reader.holds(pages, PTR_BYTES)? {
            return Err(BadRoot);
        }
        let mut there = Vec::new();
        for number in 0..pages as u32 {
            match reader.ptr()?.lookup() {
                Lookup::Data(home) => there.push((number, PageAt::Home(home))),
                Lookup::Zero => there.push((number, PageAt::Zero)),
                _ => {}
            }
        }
        root.layers.push((id, blocks, there));
    }
    reader.end()?;
    Ok(root)
}

fn decode_version_2_or_3(mut reader: Reader, has_table: bool) -> Result<Root, BadRoot> {
    let (layers, seq) = (reader.u32()?, Seq(reader.u64()?));
    let (changes, extents, listed) = (reader.u32()? as usize, reader.u32()? as usize, reader.u64()?);
    let mut root = Root { seq, listed, ..Root::default() };
    let (mut table, mut counts) = (LayerTable::default(), [0; 3]);
    if has_table {
        for count in &mut counts {
            *count = reader.u32()? as usize;
        }
        (table.next_layer, table.freeing) = (reader.u32()?, reader.u64()? as i64);
    } else {
        reader.zeros::<24>()?;
    }
    for _ in 0..layers {
        let (id, pages, blocks) = (LayerId(reader.u32()?), reader.u32()? as usize, reader.u64()?);
        if has_table {
            let parent = Some(LayerId(reader.u32()?)).filter(|parent| parent.0 != NO_PARENT);
            reader.zeros::<4>()?;
            table.layers.push((id, parent, reader.u64()? as i64));
        } else {
            reader.zeros::<LAYER_ZEROS>()?;
        }
        let mut there = Vec::with_capacity(reader.holds(pages, PAGE_BYTES)?);
        for _ in 0..pages {
            let (number, kind) = (reader.u32()?, reader.u32()?);
            let in_order = there.last().is_none_or(|&(last, _)| last < number);
            if !in_order || u64::from(number) >= pages_of(blocks) as u64 {
                return Err(BadRoot);
            }
            there.push((
                number,
                match kind {
                    PAGE_ZERO => reader.zeros::<PTR_BYTES>().map(|()| PageAt::Zero)?,
                    PAGE_HOME => PageAt::Home(reader.data_ptr()?),
                    _ => return Err(BadRoot),
                },
            ));
        }
        if root.layers.iter().any(|(other, ..)| *other == id) {
            return Err(BadRoot);
        }
        root.layers.push((id, blocks, there));
    }
    if has_table {
        decode_table(&mut reader, &mut table, counts)?;
        root.table = Some(table);
    }
    for _ in 0..reader.holds(changes, PTR_BYTES)? {
        root.changes.push(reader.data_ptr()?);
    }
    let mut counts = Vec::with_capacity(reader.holds(extents, EXTENT_BYTES)?);
    for _ in 0..extents {
        let id = ExtentId(reader.u64()?);
        let in_order = counts.last().is_none_or(|&(last, _)| last < id);
        if !in_order || id >= ExtentId::MAX {
            return Err(BadRoot);
        }
        counts.push((id, Counts { live: reader.u32()?, map: reader.u32()? }));
    }
    root.extents = Some(counts);
    reader.end()?;
    Ok(root)
}

fn decode_table(
    reader: &mut Reader,
    table: &mut LayerTable,
    [views, aliases, origins]: [usize; 3],
) -> Result<(), BadRoot> {
    let there: BTreeSet<LayerId> = table.layers.iter().map(|(id, ..)| *id).collect();
    for _ in 0..reader.holds(views, VIEW_BYTES)? {
        let (id, layer, flags) = (LayerId(reader.u32()?), LayerId(reader.u32()?), reader.u32()?);
        reader.zeros::<4>()?;
        let is_there = there.contains(&layer);
        let in_order = table.views.last().is_none_or(|(last, _)| *last < id);
        if !is_there || !in_order || flags > VIEW_READ_ONLY {
            return Err(BadRoot);
        }
        table.views.push((id, View { layer, writable: flags == 0 }));
    }
    for _ in 0..reader.holds(aliases, 8)? {
        let (from, to) = (LayerId(reader.u32()?), LayerId(reader.u32()?));
        if table.aliases.last().is_some_and(|(last, _)| *last >= from) {
            return Err(BadRoot);
        }
        table.aliases.push((from, to));
    }
    for _ in 0..reader.holds(origins, 4)? {
        table.origins.push(LayerId(reader.u32()?));
    }
    match has_loops(table) {
        true => Err(BadRoot),
        false => Ok(()),
    }
}

/// A chain of parents, or of aliases, that does not end.
fn has_loops(table: &LayerTable) -> bool {
    let parents: BTreeMap<LayerId, LayerId> =
        table.layers.iter().filter_map(|(id, parent, _)| Some((*id, (*parent)?))).collect();
    let aliases: BTreeMap<LayerId, LayerId> = table.aliases.iter().copied().collect();
    let ends = |links: &BTreeMap<LayerId, LayerId>, from: &LayerId| {
        std::iter::successors(Some(*from), |at| links.get(at).copied()).nth(CHAIN_MAX).is_none()
    };
    let there: BTreeSet<LayerId> = table.layers.iter().map(|(id, ..)| *id).collect();
    let lost = |parent: &LayerId| !there.contains(parent);
    // What an alias leads to is there, or gone for good.
    let dangling = |(from, to): (&LayerId, &LayerId)| aliases.contains_key(to) || from == to;
    parents.values().any(lost)
        || !parents.keys().all(|from| ends(&parents, from))
        || aliases.iter().any(dangling)
}

/// One block of changed pointers.
/// # Panics — with more than [`CHANGES_MAX`].
pub fn encode_changes(changes: &[Logged], out: &mut [u8]) {
    assert!(changes.len() <= CHANGES_MAX && out.len() == BLOCK_BYTES);
    out.fill(0);
    out[..8].copy_from_slice(&CHANGES_MAGIC.to_le_bytes());
    out[8..12].copy_from_slice(&(changes.len() as u32).to_le_bytes());
    for (change, bytes) in changes.iter().zip(out[BLOCK_HEADER_BYTES..].chunks_exact_mut(CHANGE_BYTES)) {
        let (layer, number, kind) = match *change {
            Logged::Set { layer, block, counted: true, .. } => (layer, block, SET_COUNTED),
            Logged::Set { layer, block, counted: false, .. } => (layer, block, SET),
            Logged::Void { layer, leaf, .. } => (layer, leaf, VOID),
        };
        bytes[..4].copy_from_slice(&layer.0.to_le_bytes());
        bytes[4..12].copy_from_slice(&(number | u64::from(kind) << 48).to_le_bytes());
        match *change {
            Logged::Set { ptr, .. } => bytes[12..24].copy_from_slice(&ptr.encode()[..12]),
            Logged::Void { count, .. } => bytes[12..16].copy_from_slice(&count.to_le_bytes()),
        }
    }
}

pub fn decode_changes(block: &[u8]) -> Result<Vec<Logged>, BadRoot> {
    let mut reader = Reader { bytes: block, at: 0 };
    let (magic, count) = (reader.u64()?, reader.u32()? as usize);
    reader.zeros::<4>()?;
    if magic != CHANGES_MAGIC || count > CHANGES_MAX {
        return Err(BadRoot);
    }
    let mut changes = Vec::with_capacity(count);
    for _ in 0..count {
        let (layer, word) = (LayerId(reader.u32()?), reader.u64()?);
        let (number, kind) = (word & ((1 << 48) - 1), word >> 48);
        let mut value = [0; PTR_BYTES];
        value[..12].copy_from_slice(&reader.take::<12>()?);
        changes.push(match u8::try_from(kind) {
            Ok(kind @ (SET | SET_COUNTED)) => {
                Logged::Set { layer, block: number, ptr: Ptr::decode(&value), counted: kind == SET_COUNTED }
            }
            Ok(VOID) if value[4..] == [0; 12] => {
                let count = u32::from_le_bytes(value[..4].try_into().expect("4"));
                Logged::Void { layer, leaf: number, count }
            }
            _ => return Err(BadRoot),
        });
    }
    reader.end()?;
    Ok(changes)
}

/// The `number`-th block of a directory.
/// # Panics — with more than [`DIRECTORY_MAX`].
pub fn encode_directory(number: u32, blocks: &[Ptr], out: &mut [u8]) {
    assert!(blocks.len() <= DIRECTORY_MAX && out.len() == BLOCK_BYTES);
    out.fill(0);
    out[..8].copy_from_slice(&DIRECTORY_MAGIC.to_le_bytes());
    out[8..12].copy_from_slice(&number.to_le_bytes());
    out[12..16].copy_from_slice(&(blocks.len() as u32).to_le_bytes());
    for (ptr, bytes) in blocks.iter().zip(out[BLOCK_HEADER_BYTES..].chunks_exact_mut(PTR_BYTES)) {
        bytes.copy_from_slice(&ptr.encode());
    }
}

pub fn decode_directory(number: u32, block: &[u8]) -> Result<Vec<Ptr>, BadRoot> {
    let mut reader = Reader { bytes: block, at: 0 };
    if reader.u64()? != DIRECTORY_MAGIC || reader.u32()? != number {
        return Err(BadRoot);
    }
    let count = reader.u32()? as usize;
    let blocks = (0..reader.holds(count, PTR_BYTES)?).map(|_| reader.data_ptr()).collect::<Result<_, _>>()?;
    reader.end()?;
    Ok(blocks)
}

/// For the fuzzer: what is accepted is what would be written.
pub fn fuzz_root(input: &[u8]) {
    if let Ok(root) = Root::decode(input)
        && root.extents.is_some()
    {
        assert_eq!(Root::decode(&root.encode()), Ok(root));
    }
    if let Ok(changes) = decode_changes(input) {
        let mut block = [0; BLOCK_BYTES];
        encode_changes(&changes, &mut block);
        assert_eq!(decode_changes(&block), Ok(changes));
    }
    if let Ok(blocks) = decode_directory(0, input) {
        let mut block = [0; BLOCK_BYTES];
        encode_directory(0, &blocks, &mut block);
        assert_eq!(decode_directory(0, &block), Ok(blocks));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peristyle_base::{ColumnIndex, RowIndex};
    use proptest::prelude::*;

    fn ptr(n: u64) -> Ptr {
        Ptr::new(ExtentId(n + 1), ColumnIndex((n % 6) as u8), RowIndex((n % 512) as u16), n as u32)
    }

    fn page() -> impl Strategy<Value = PageAt> {
        prop_oneof![Just(PageAt::Zero), (0u64..1000).prop_map(|n| PageAt::Home(ptr(n)))]
    }

    fn logged() -> impl Strategy<Value = Logged> {
        prop_oneof![
            (any::<u32>(), 0u64..1 << 48, 0u64..1000, any::<bool>()).prop_map(
                |(layer, block, n, counted)| {
                    Logged::Set { layer: LayerId(layer), block, ptr: ptr(n), counted }
                }
            ),
            (any::<u32>(), 0u64..1 << 40, any::<u32>()).prop_map(|(layer, leaf, count)| Logged::Void {
                layer: LayerId(layer),
                leaf,
                count
            }),
        ]
    }

    /// Every layer on the one before it, every second one a volume.
    fn table_of(ids: Vec<u32>, next_layer: u32) -> LayerTable {
        let ids: Vec<LayerId> = ids.into_iter().map(LayerId).collect();
        let parent = |i: usize| i.checked_sub(1).map(|i| ids[i]);
        let view = |i: usize| (LayerId(7 + i as u32), View { layer: ids[i], writable: i % 4 == 0 });
        LayerTable {
            layers: (0..ids.len()).map(|i| (ids[i], parent(i), 5 - i as i64)).collect(),
            views: (0..ids.len()).step_by(2).map(view).collect(),
            aliases: ids.iter().map(|id| (LayerId(id.0 / 2), LayerId(u32::MAX))).take(1).collect(),
            origins: ids.clone(),
            next_layer,
            freeing: -3,
        }
    }

    proptest! {
        #[test]
        fn a_checkpoints_parts_survive_their_bytes(
            seq in any::<u64>(), listed in any::<u64>(), has_table in any::<bool>(), next_layer in any::<u32>(),
            layers in proptest::collection::btree_map(any::<u32>(), (0u64..1 << 24, proptest::collection::btree_map(0u32..200, page(), 0..20)), 0..8),
            changes in proptest::collection::vec((0u64..1000).prop_map(ptr), 0..20),
            extents in proptest::collection::btree_map(0u64..1 << 47, (any::<u32>(), any::<u32>()), 0..300),
            logged in proptest::collection::vec(logged(), 0..CHANGES_MAX),
            blocks in proptest::collection::vec((0u64..1000).prop_map(ptr), 0..DIRECTORY_MAX), number in any::<u32>(),
        ) {
            let table = has_table.then(|| table_of(layers.keys().copied().collect(), next_layer));
            let layers = layers.into_iter().map(|(id, (blocks, pages))| {
                let fits = |n: &u32| (*n as usize) < pages_of(blocks);
                (LayerId(id), blocks, pages.into_iter().filter(|(n, _)| fits(n)).collect())
            });
            let counts = extents.into_iter().map(|(id, (live, map))| (ExtentId(id), Counts { live, map }));
            let root = Root { seq: Seq(seq), layers: layers.collect(), table, changes, listed, extents: Some(counts.collect()) };
            let bytes = root.encode();
            prop_assert!(bytes.len() % BLOCK_BYTES == 0 && Root::begins_in(&bytes));
            prop_assert_eq!(Root::decode(&bytes), Ok(root));
            prop_assert_eq!(Root::decode(&bytes[..40]), Err(BadRoot));
            let mut block = [0; BLOCK_BYTES];
            encode_changes(&logged, &mut block);
            prop_assert_eq!(decode_changes(&block), Ok(logged));
            encode_directory(number, &blocks, &mut block);
            prop_assert!(!Root::begins_in(&block));
            prop_assert_eq!(decode_directory(number, &block), Ok(blocks));
            prop_assert_eq!(decode_directory(number ^ 1, &block), Err(BadRoot));
        }

        #[test]
        fn any_bytes_are_parsed_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
            fuzz_root(&bytes);
        }
    }
}
