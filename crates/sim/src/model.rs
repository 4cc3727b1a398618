//! What hosts may believe about a volume: per 512-byte sector the last acknowledged content, and what writes that
//! were not answered may have left. Such a write is there wholly or not at all, and once seen it stays so.

use peristyle_rt::sim::Rng;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

pub const SECTOR: u64 = 512;

/// Names the content of a sector; 0 is zeros.
pub type Tag = u64;

/// A write that is under way, or that nobody was told the end of.
#[derive(Clone, Debug)]
struct Open {
    first: u64,
    count: u64,
    tag: Tag,
    /// Its host has gone, or was told of an error: it may or may not have happened.
    orphan: bool,
}

/// A read under way: what its sectors were acknowledged to hold when it began, and the writes that were open then
/// or began since.
struct Reading {
    first: u64,
    tags: Vec<Tag>,
    writes: Vec<(u64, u64, Tag)>,
}

impl Reading {
    fn allows(&self, sector: u64, chunk: &[u8]) -> bool {
        let written = |&&(first, count, _): &&(u64, u64, Tag)| (first..first + count).contains(&sector);
        holds(self.tags[(sector - self.first) as usize], sector, chunk)
            || self.writes.iter().filter(written).any(|&(_, _, tag)| holds(tag, sector, chunk))
    }
}

#[derive(Default)]
struct State {
    sectors: Vec<Tag>,
    open: BTreeMap<u64, Open>,
    reading: BTreeMap<u64, Reading>,
    next: u64,
    acknowledged: u64,
    verified: u64,
}

/// One volume, as its hosts know it. Clones are the same model.
#[derive(Clone, Default)]
pub struct Model(Rc<RefCell<State>>);

/// A write that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteId(u64);

/// A read that has begun.
pub struct ReadId(u64);

/// Fills sectors from `first` on with the content that `tag` names.
pub fn fill(tag: Tag, first: u64, bytes: &mut [u8]) {
    for (sector, chunk) in (first..).zip(bytes.chunks_exact_mut(SECTOR as usize)) {
        fill_sector(tag, sector, chunk);
    }
}

/// Fills sectors from `first` on with what each tag names.
pub fn fill_each(tags: &[Tag], first: u64, bytes: &mut [u8]) {
    for ((sector, chunk), &tag) in (first..).zip(bytes.chunks_exact_mut(SECTOR as usize)).zip(tags) {
        fill_sector(tag, sector, chunk);
    }
}

fn fill_sector(tag: Tag, sector: u64, chunk: &mut [u8]) {
    if tag == 0 {
        return chunk.fill(0);
    }
    let words = chunk.as_chunks_mut::<8>().0;
    let base = (tag.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ sector).wrapping_mul(0xD129_0B26_7A5B_44B5) | 1;
    // No word waits for the one before it.
    for (i, out) in (0x2545_F491_4F6C_DD1D_u64..).zip(words.iter_mut()) {
        *out = base.wrapping_mul(i).rotate_left(23).to_le_bytes();
    }
    words[0] = tag.to_le_bytes();
}

/// Whether a sector has the content that `tag` names.
pub fn holds(tag: Tag, sector: u64, chunk: &[u8]) -> bool {
    let mut expected = [0; SECTOR as usize];
    // The first word is the tag.
    chunk[..8] == tag.to_le_bytes() && {
        fill_sector(tag, sector, &mut expected);
        chunk == expected
    }
}

fn overlap(a: u64, a_count: u64, b: u64, b_count: u64) -> bool {
    a < b + b_count && b < a + a_count
}

impl Model {
    /// A volume of zeros.
    pub fn new(bytes: u64) -> Model {
        let model = Model::default();
        model.0.borrow_mut().sectors = vec![0; (bytes / SECTOR) as usize];
        model
    }
    /// A volume with this content, that nobody writes to yet. Its writes are other ones than those of volumes with
    /// another number.
    pub fn of(sectors: Vec<Tag>, number: u32) -> Model {
        Model(Rc::new(RefCell::new(State { sectors, next: u64::from(number) << 40, ..State::default() })))
    }
    pub fn sectors(&self) -> u64 {
        self.0.borrow().sectors.len() as u64
    }
    /// What was acknowledged last, sector by sector.
    pub fn tags(&self) -> Vec<Tag> {
        self.0.borrow().sectors.clone()
    }
    /// The volume holds this now, whatever of its writes was not answered.
    pub fn become_tags(&self, sectors: Vec<Tag>) {
        let state = &mut *self.0.borrow_mut();
        (state.sectors, state.open) = (sectors, BTreeMap::new());
    }
    /// The volume has another size. What it gains is zeros.
    pub fn resize(&self, sectors: u64) {
        self.0.borrow_mut().sectors.resize(sectors as usize, 0);
    }
    pub fn acknowledged(&self) -> u64 {
        self.0.borrow().acknowledged
    }
    pub fn verified(&self) -> u64 {
        self.0.borrow().verified
    }

    /// Begins a write (of zeros, with `zero`) unless another one is open on any of its sectors: two at once would
    /// leave their order open.
    pub fn begin_write(&self, first: u64, count: u64, zero: bool) -> Option<(WriteId, Tag)> {
        let state = &mut *self.0.borrow_mut();
        if state.open.values().any(|o| overlap(first, count, o.first, o.count)) {
            return None;
        }
        state.next += 1;
        let tag = if zero { 0 } else { state.next };
        state.open.insert(state.next, Open { first, count, tag, orphan: false });
        for reading in state.reading.values_mut() {
            if overlap(first, count, reading.first, reading.tags.len() as u64) {
                reading.writes.push((first, count, tag));
            }
        }
        Some((WriteId(state.next), tag))
    }

    /// Begins a write to sectors that nothing is open on, and says what they hold.
    pub fn begin_swap(&self, first: u64, count: u64) -> Option<(WriteId, Tag, Vec<Tag>)> {
        let (id, tag) = self.begin_write(first, count, false)?;
        Some((id, tag, self.0.borrow().sectors[first as usize..(first + count) as usize].to_vec()))
    }

    /// The write was refused, or never sent: it has not happened and never will.
    pub fn cancel(&self, id: WriteId) {
        self.0.borrow_mut().open.remove(&id.0).expect("begun, and answered once");
    }

    /// The write was acknowledged: from now on it must be there.
    pub fn acknowledge(&self, id: WriteId) {
        let state = &mut *self.0.borrow_mut();
        let open = state.open.remove(&id.0).expect("begun, and answered once");
        state.sectors[open.first as usize..(open.first + open.count) as usize].fill(open.tag);
        state.acknowledged += 1;
    }

    /// The write failed: whether it happened stays open until somebody looks.
    pub fn orphan(&self, id: WriteId) {
        self.0.borrow_mut().open.get_mut(&id.0).expect("begun").orphan = true;
    }

    /// All hosts are gone: nobody will hear of the writes and reads that are under way.
    pub fn lose_hosts(&self) {
        let state = &mut *self.0.borrow_mut();
        state.open.values_mut().for_each(|open| open.orphan = true);
        state.reading.clear();
    }

    /// Writes of which nobody knows whether they happened: number, first sector, count.
    pub fn orphans(&self) -> Vec<(WriteId, u64, u64)> {
        let state = self.0.borrow();
        state.open.iter().filter(|(_, o)| o.orphan).map(|(&id, o)| (WriteId(id), o.first, o.count)).collect()
    }

    /// Decides an orphan by what all its sectors hold now.
    pub fn decide(&self, id: WriteId, bytes: &[u8]) -> Result<(), String> {
        let state = &mut *self.0.borrow_mut();
        let open = state.open[&id.0].clone();
        let sectors = open.first..open.first + open.count;
        let chunks = || sectors.clone().zip(bytes.chunks_exact(SECTOR as usize));
        let old = chunks().all(|(s, chunk)| holds(state.sectors[s as usize], s, chunk));
        let new = chunks().all(|(s, chunk)| holds(open.tag, s, chunk));
        if !old && !new {
            let bad =
                chunks().find(|&(s, c)| !holds(state.sectors[s as usize], s, c) && !holds(open.tag, s, c));
            return Err(match bad {
                Some((s, chunk)) => self.describe(&state.sectors, s, chunk),
                None => format!(
                    "an unanswered write of {} sectors at {} is there in part",
                    open.count, open.first
                ),
            });
        }
        if new {
            state.sectors[sectors.start as usize..sectors.end as usize].fill(open.tag);
        }
        state.open.remove(&id.0);
        state.verified += open.count;
        Ok(())
    }

    fn describe(&self, sectors: &[Tag], sector: u64, chunk: &[u8]) -> String {
        let found = u64::from_le_bytes(chunk[..8].try_into().expect("8 bytes"));
        let expected = sectors[sector as usize];
        let whole = if holds(found, sector, chunk) { "whole" } else { "not of this sector, or damaged" };
        format!("sector {sector} holds write {found} ({whole}), acknowledged was {expected}")
    }

    pub fn begin_read(&self, first: u64, count: u64) -> ReadId {
        let state = &mut *self.0.borrow_mut();
        let tags = state.sectors[first as usize..(first + count) as usize].to_vec();
        let open = state.open.values().filter(|o| overlap(first, count, o.first, o.count));
        let writes = open.map(|o| (o.first, o.count, o.tag)).collect();
        state.next += 1;
        state.reading.insert(state.next, Reading { first, tags, writes });
        ReadId(state.next)
    }

    /// Compares what a read returned with all that its sectors may have held meanwhile.
    pub fn end_read(&self, id: ReadId, bytes: &[u8]) -> Result<(), String> {
        let state = &mut *self.0.borrow_mut();
        let reading = state.reading.remove(&id.0).expect("begun");
        let chunks = bytes.chunks_exact(SECTOR as usize);
        assert_eq!(chunks.len(), reading.tags.len());
        for (sector, chunk) in (reading.first..).zip(chunks) {
            if !reading.allows(sector, chunk) {
                let found = self.describe(&state.sectors, sector, chunk);
                let was = reading.tags[(sector - reading.first) as usize];
                return Err(format!("{found}; when the read began {was}, open {:?}", reading.writes));
            }
        }
        state.verified += reading.tags.len() as u64;
        Ok(())
    }

    /// Gives a read up: it failed.
    pub fn drop_read(&self, id: ReadId) {
        self.0.borrow_mut().reading.remove(&id.0);
    }

    /// A copy that goes its own way, with every open write orphaned: what a crash at this moment makes of it.
    pub fn crashed_copy(&self) -> Model {
        let state = self.0.borrow();
        let copy = Model::default();
        *copy.0.borrow_mut() = State {
            sectors: state.sectors.clone(),
            open: state.open.clone(),
            next: state.next,
            ..State::default()
        };
        copy.lose_hosts();
        copy
    }
}

/// How hosts use a volume.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// Of 100 operations.
    pub reads: u64,
    pub zeroes: u64,
    /// Of 100 operations: not whole blocks.
    pub partial: u64,
    /// Of 100 operations: up to 512 KiB.
    pub large: u64,
    /// Sectors that are used: a few are hit again and again.
    pub spread: u64,
}

impl Habits {
    pub fn draw(rng: &mut Rng, sectors: u64) -> Habits {
        Habits {
            reads: rng.between(10, 50),
            zeroes: *rng.pick(&[0, 5, 10]),
            partial: *rng.pick(&[0, 0, 20]),
            large: *rng.pick(&[0, 2, 10]),
            spread: *rng.pick(&[sectors, sectors, sectors / 8]),
        }
    }

    /// A range of sectors.
    pub fn range(&self, rng: &mut Rng) -> (u64, u64) {
        let small = rng.below(100) < self.partial;
        let unit = if small { 1 } else { 8 };
        let most: u64 = match rng.below(100) < self.large {
            true => 1024,
            false => *rng.pick(&[1, 1, 8, 64]) * unit,
        };
        let count = (rng.between(1, most.div_ceil(unit)) * unit).min(self.spread / unit * unit);
        let first = rng.below((self.spread - count) / unit + 1) * unit;
        (first, count)
    }
}
