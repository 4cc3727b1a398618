//! What a takeover decides from the headers that it found. Pure.

use crate::frame::{Entry, FrameKind, Header};
use peristyle_base::{Epoch, ExtentId, Seq};
use std::collections::BTreeMap;

/// One frame that a scan found: its header and entries.
#[derive(Clone, Debug)]
pub struct Found {
    pub header: Header,
    pub entries: Vec<Entry>,
}

/// Copies of user frames behind a checkpoint, and what their headers say of the log.
#[derive(Default)]
pub struct Replay {
    /// Copies by sequence number; the newest (epoch, extent) last.
    copies: BTreeMap<Seq, Vec<Found>>,
    /// What each epoch's owner kept at its takeover.
    cuts: BTreeMap<Epoch, Seq>,
    /// Of committed frames with several copies: the extent of the one that counts.
    chosen: BTreeMap<Seq, ExtentId>,
    committed: Seq,
    from: Seq,
}

/// The log that must be there is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gap {
    /// The first sequence number that no copy was found of.
    pub missing: Seq,
    /// Known to be committed.
    pub committed: Seq,
}

impl Replay {
    /// `from`: the checkpoint's sequence number. `committed`: the record's.
    pub fn new(from: Seq, committed: Seq) -> Replay {
        Replay { committed: committed.max(from), from, ..Replay::default() }
    }

    /// Takes note of what a header says of the log. Its own frame is no part of that behind the checkpoint: its extent lies before the
    /// mark and was not open, so what it has of higher numbers was dropped.
    pub fn hear(&mut self, h: &Header) {
        self.committed = self.committed.max(h.committed);
        let cut = self.cuts.entry(h.epoch).or_insert(h.cut);
        *cut = (*cut).min(h.cut);
    }

    /// Takes note of a frame that was found.
    pub fn add(&mut self, found: Found) {
        self.hear(&found.header);
        let h = &found.header;
        if h.kind == FrameKind::User {
            let copies = self.copies.entry(h.seq).or_default();
            let key = |f: &Found| (f.header.epoch, f.header.extent);
            let at = copies.partition_point(|c| key(c) < key(&found));
            copies.insert(at, found);
        }
    }

    /// Beyond the cut of a higher epoch: void for ever (DESIGN §5.6).
    pub fn is_void(&self, header: &Header) -> bool {
        let higher = (std::ops::Bound::Excluded(header.epoch), std::ops::Bound::Unbounded);
        self.cuts.range(higher).any(|(_, &cut)| header.seq > cut)
    }

    /// Highest sequence number that is known to be committed.
    pub fn committed(&self) -> Seq {
        self.committed
    }

    /// The committed frames behind the checkpoint in order, each as its newest copy. Replay must reach the
    /// largest committed number without a gap, or the shard does not serve.
    pub fn committed_frames(&self) -> Result<Vec<&Found>, Gap> {
        let mut frames = Vec::new();
        let mut seq = self.from.next();
        while seq <= self.committed {
            match self.committed_copy(seq) {
                Some(found) => frames.push(found),
                None => return Err(Gap { missing: seq, committed: self.committed }),
            }
            seq = seq.next();
        }
        Ok(frames)
    }

    /// Committed frames that were found more than once: whoever wrote the newer copy may have stopped before it
    /// was complete, so the newest is not always the one that counts.
    pub fn contested(&self) -> Vec<Seq> {
        let several = |seq: &Seq| self.candidates(*seq).nth(1).is_some();
        self.copies.range(..=self.committed).map(|(&seq, _)| seq).filter(several).collect()
    }

    /// The copy in `extent` is complete, and newer ones are not: it counts.
    pub fn choose(&mut self, seq: Seq, extent: ExtentId) {
        self.chosen.insert(seq, extent);
    }

    /// Whether the checkpoint has this frame already.
    pub fn is_in_checkpoint(&self, seq: Seq) -> bool {
        seq <= self.from
    }

    fn committed_copy(&self, seq: Seq) -> Option<&Found> {
        let chosen = self.chosen.get(&seq);
        self.candidates(seq).find(|f| chosen.is_none_or(|&extent| f.header.extent == extent))
    }

    /// Copies of a frame that are not void, newest first.
    pub fn candidates(&self, seq: Seq) -> impl Iterator<Item = &Found> {
        self.copies.get(&seq).into_iter().flatten().rev().filter(|f| !self.is_void(&f.header))
    }

    /// First row of an extent that holds nothing which has to stay: its first user frame that is not known to
    /// be committed, is void, or counts as another extent has it (this one was abandoned before it was complete).
    /// Frames of an extent commit in order, so nothing behind such a frame was committed here.
    pub fn cut_row(&self, extent: ExtentId, headers: &[Header], end: u16) -> u16 {
        headers
            .iter()
            .filter(|h| h.extent == extent)
            .find(|h| {
                let elsewhere = self.chosen.get(&h.seq).is_some_and(|&e| e != extent);
                h.kind == FrameKind::User && (h.seq > self.committed || self.is_void(h) || elsewhere)
            })
            .map_or(end, |h| h.first_row.0)
    }
}

/// What one look at a copy of a tail frame says (DESIGN §11, "Recovery").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Enough pieces to decode it are readable: keep it.
    Complete,
    /// A column that had to hold a piece answered, without error, that it does not: it was never committed.
    NeverCommitted,
    /// Columns are away or unreadable: wait for them, never guess.
    Unknown,
}

/// The verdict over all copies of one frame: any complete one keeps it, any unknown one makes the shard wait.
pub fn decide(verdicts: &[Verdict]) -> Verdict {
    if verdicts.contains(&Verdict::Complete) {
        Verdict::Complete
    } else if verdicts.contains(&Verdict::Unknown) {
        Verdict::Unknown
    } else {
        Verdict::NeverCommitted
    }
}

/// What the copies of one frame's header at one row say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HeaderCopies {
    /// Readable, without the extent's nonce.
    pub absent: usize,
    /// The nonce with a bad checksum.
    pub damaged: usize,
    /// Read errors, and columns that are away.
    pub unreadable: usize,
}

/// What no valid copy of a header at a row of an unsealed extent means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoHeader {
    /// The log of this extent ends here.
    End,
    /// It cannot be told: wait.
    Wait,
}

impl HeaderCopies {
    /// A committed frame has its header in all m+1 header columns. One that answers without the nonce proves
    /// that no frame was committed here. If there is none, but one is damaged: within the fault model at most m
    /// of the m+1 copies of a committed header are lost, so all of them being damaged or away means that the
    /// damaged ones are torn writes of a frame that was never committed.
    pub fn meaning(&self) -> NoHeader {
        match self.absent > 0 || self.damaged > 0 {
            true => NoHeader::End,
            false => NoHeader::Wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peristyle_base::{Nonce, RowIndex, Scheme, ShardId};

    fn found(epoch: u64, extent: u64, seq: u64, committed: u64, cut: u64) -> Found {
        Found {
            header: Header {
                kind: FrameKind::User,
                nonce: Nonce::default(),
                shard: ShardId(0),
                epoch: Epoch(epoch),
                extent: ExtentId(extent),
                seq: Seq(seq),
                committed: Seq(committed),
                cut: Seq(cut),
                first_row: RowIndex(seq as u16),
                scheme: Scheme::new(1, 1).unwrap(),
                blocks: 0,
                entries: 0,
            },
            entries: Vec::new(),
        }
    }

    #[test]
    fn of_several_copies_the_newest_epoch_and_extent_counts() {
        let mut replay = Replay::new(Seq(0), Seq(0));
        replay.add(found(1, 5, 1, 0, 0));
        replay.add(found(2, 9, 1, 0, 1));
        replay.add(found(1, 7, 1, 0, 0));
        let order: Vec<u64> = replay.candidates(Seq(1)).map(|f| f.header.extent.0).collect();
        assert_eq!(order, [9, 7, 5]);
    }

    #[test]
    fn frames_beyond_a_higher_epochs_cut_are_void_for_ever() {
        let mut replay = Replay::new(Seq(0), Seq(0));
        (1..=4).for_each(|seq| replay.add(found(1, 5, seq, seq - 1, 0)));
        // Epoch 2 kept up to 3, and wrote a 4 of its own.
        replay.add(found(2, 9, 4, 3, 3));
        assert_eq!(replay.committed(), Seq(3));
        assert_eq!(replay.candidates(Seq(4)).map(|f| f.header.epoch.0).collect::<Vec<_>>(), [2]);
        assert_eq!(replay.candidates(Seq(3)).count(), 1);
    }

    #[test]
    fn a_gap_below_what_is_known_to_be_committed_stops_the_shard() {
        let mut replay = Replay::new(Seq(10), Seq(0));
        replay.add(found(1, 5, 11, 10, 0));
        replay.add(found(1, 5, 13, 12, 0));
        assert_eq!(replay.committed_frames().unwrap_err(), Gap { missing: Seq(12), committed: Seq(12) });
    }

    #[test]
    fn the_record_counts_as_a_witness_of_commits() {
        let replay = Replay::new(Seq(10), Seq(12));
        assert!(replay.committed_frames().is_err());
    }

    #[test]
    fn header_copies_end_the_log_only_with_proof() {
        let copies = |absent, damaged, unreadable| HeaderCopies { absent, damaged, unreadable }.meaning();
        assert_eq!(copies(3, 0, 0), NoHeader::End);
        assert_eq!(copies(1, 0, 2), NoHeader::End);
        assert_eq!(copies(0, 3, 0), NoHeader::End, "torn on all of them");
        assert_eq!(copies(0, 0, 3), NoHeader::Wait);
    }

    #[test]
    fn a_frame_is_kept_dropped_or_waited_for() {
        use Verdict::*;
        assert_eq!(decide(&[NeverCommitted, Complete]), Complete);
        assert_eq!(decide(&[NeverCommitted, Unknown]), Unknown);
        assert_eq!(decide(&[NeverCommitted]), NeverCommitted);
        assert_eq!(decide(&[]), NeverCommitted);
    }
}
