//! Writes beside an operation that is one point of the order: a snapshot, or a roll back. Which of them come before the
//! point nobody is told, but it is one point: what was acknowledged before another write began does not come after it
//! when that one comes before.

use crate::model::{SECTOR, Tag, holds};
use peristyle_base::LayerId;

/// A write, and when it began and was acknowledged.
#[derive(Clone, Debug)]
struct Written {
    volume: LayerId,
    first: u64,
    count: u64,
    tag: Tag,
    began: u64,
    ended: Option<u64>,
}

/// Counts what happens, from the moment when nothing was under way. Writes of a window are of data, not of zeros.
#[derive(Clone, Debug, Default)]
pub struct Window {
    clock: u64,
    asked: Option<u64>,
    answered: Option<u64>,
    writes: Vec<Written>,
}

/// A write of a window.
#[derive(Clone, Copy)]
pub struct InWindow(usize);

/// A volume's content before the window, and what is there now of the volume, or of its snapshot.
pub struct Seen<'a> {
    pub volume: LayerId,
    pub before: &'a [Tag],
    pub content: &'a [u8],
}

impl Window {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
    pub fn ask(&mut self) {
        self.asked = Some(self.tick());
    }
    pub fn answer(&mut self) {
        self.answered = Some(self.tick());
    }
    pub fn is_asked(&self) -> bool {
        self.asked.is_some()
    }
    pub fn is_answered(&self) -> bool {
        self.answered.is_some()
    }
    pub fn begin(&mut self, volume: LayerId, first: u64, count: u64, tag: Tag) -> InWindow {
        let began = self.tick();
        self.writes.push(Written { volume, first, count, tag, began, ended: None });
        InWindow(self.writes.len() - 1)
    }
    pub fn end(&mut self, write: InWindow) {
        self.writes[write.0].ended = Some(self.tick());
    }

    /// Writes of which something is in what was read.
    fn visible(&self, all: &[Seen<'_>]) -> Vec<bool> {
        let is_in = |w: &Written, seen: &Seen<'_>| {
            let sector = |s: u64| seen.content.get((s * SECTOR) as usize..((s + 1) * SECTOR) as usize);
            (w.first..w.first + w.count).any(|s| sector(s).is_some_and(|chunk| holds(w.tag, s, chunk)))
        };
        let visible = |w: &Written| all.iter().any(|seen| seen.volume == w.volume && is_in(w, seen));
        self.writes.iter().map(visible).collect()
    }

    /// What the snapshots of a group hold: each what its volume did at one point that lies after `ask` and before
    /// `answer`.
    pub fn snapshots(&self, all: &[Seen<'_>]) -> Result<Vec<Vec<Tag>>, String> {
        let (visible, asked) = (self.visible(all), self.asked.ok_or("nobody asked for it")?);
        let late = |(w, visible): (&Written, &bool)| *visible && self.answered.is_some_and(|a| w.began > a);
        if let Some((w, _)) = self.writes.iter().zip(&visible).find(|pair| late(*pair)) {
            return Err(format!("a write that began after it is in it: {w:?}"));
        }
        // Acknowledged before the point, or before something that is in it began.
        let before = |i: usize| {
            let ended = self.writes[i].ended;
            let other = |(w, v): (&Written, &bool)| *v && ended.is_some_and(|ended| ended < w.began);
            visible[i]
                || ended.is_some_and(|ended| ended < asked)
                || self.writes.iter().zip(&visible).any(other)
        };
        let tags = all.iter().map(|seen| self.laid_over(seen, seen.before, before));
        tags.collect()
    }

    /// What a volume holds that has become what a snapshot is: the snapshot's `to`, and writes behind the point.
    pub fn rolled_back(&self, seen: &Seen<'_>, to: &[Tag]) -> Result<Vec<Tag>, String> {
        let visible = self.visible(std::slice::from_ref(seen));
        let asked = self.asked.ok_or("nobody asked for it")?;
        let early = |(w, visible): (&Written, &bool)| *visible && w.ended.is_some_and(|ended| ended < asked);
        if let Some((w, _)) = self.writes.iter().zip(&visible).find(|pair| early(*pair)) {
            return Err(format!("a write that was over before is there: {w:?}"));
        }
        // Acknowledged, and begun after the point, or after something that is there.
        let behind = |i: usize| {
            let w = &self.writes[i];
            let other = |(o, v): (&Written, &bool)| *v && o.ended.is_some_and(|ended| ended < w.began);
            let must = self.answered.is_some_and(|answered| w.began > answered)
                || self.writes.iter().zip(&visible).any(other);
            visible[i] || (w.ended.is_some() && must)
        };
        self.laid_over(seen, to, behind)
    }

    /// What a volume holds to which nothing has happened but writes.
    pub fn written(&self, seen: &Seen<'_>) -> Result<Vec<Tag>, String> {
        let visible = self.visible(std::slice::from_ref(seen));
        self.laid_over(seen, seen.before, |i| visible[i] || self.writes[i].ended.is_some())
    }

    /// Some writes over what was there, in their order; that must be what was read.
    fn laid_over(
        &self,
        seen: &Seen<'_>,
        base: &[Tag],
        takes_part: impl Fn(usize) -> bool,
    ) -> Result<Vec<Tag>, String> {
        let mut tags = base.to_vec();
        let bytes = tags.len() * SECTOR as usize;
        if bytes != seen.content.len() {
            return Err(format!("{} bytes, and not {bytes}", seen.content.len()));
        }
        let mine = |(i, w): &(usize, &Written)| w.volume == seen.volume && takes_part(*i);
        for (_, w) in self.writes.iter().enumerate().filter(mine) {
            tags[w.first as usize..(w.first + w.count) as usize].fill(w.tag);
        }
        let chunks = (0..).zip(seen.content.chunks_exact(SECTOR as usize)).zip(&tags);
        match chunks.into_iter().find(|((sector, chunk), tag)| !holds(**tag, *sector, chunk)) {
            None => Ok(tags),
            Some(((sector, chunk), tag)) => {
                let found = u64::from_le_bytes(chunk[..8].try_into().expect("8 bytes"));
                let of = seen.volume;
                Err(format!(
                    "sector {sector} of {of:?} has write {found:#x}, not {tag:#x}: {:?}",
                    self.writes
                ))
            }
        }
    }

    /// Writes to a volume that nobody was told the end of and that are in its snapshot: the volume has them.
    pub fn unanswered_in<'a>(&'a self, seen: &'a Seen<'_>) -> impl Iterator<Item = (u64, u64, Tag)> + 'a {
        let visible = self.visible(std::slice::from_ref(seen));
        let open = |(w, visible): &(&Written, bool)| *visible && w.ended.is_none();
        self.writes.iter().zip(visible).filter(open).map(|(w, _)| (w.first, w.count, w.tag))
    }
}
