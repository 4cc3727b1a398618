//! What blocks may hold, told by hosts on many nodes: one history for all of them.
//!
//! Each block has one writer at a time and any readers. A write that was not answered may be there, now or once a later owner has decided; when
//! another write of the block is acknowledged, it may not come back. A read brings what the block may have held at some moment
//! while it was under way. That is linearizability of one register whose writes do not overlap.

use std::collections::BTreeMap;

/// One block.
struct Register {
    /// Salts that may be there now; the first is the last that was acknowledged.
    now: Vec<u64>,
    /// Salts that ceased to be possible, and when.
    past: BTreeMap<u64, u64>,
    writing: bool,
}

/// All blocks of all volumes, and what was counted.
pub struct Registers {
    registers: Vec<Register>,
    next: u64,
    pub writes: u64,
    pub reads: u64,
    /// Writes that were never answered, or with an error.
    pub unsure: u64,
}

impl Registers {
    pub fn new(blocks: usize) -> Registers {
        let registers =
            (0..blocks).map(|_| Register { now: vec![0], past: BTreeMap::new(), writing: false }).collect();
        Registers { registers, next: 0, writes: 0, reads: 0, unsure: 0 }
    }

    /// Commands that were answered.
    pub fn answered(&self) -> u64 {
        self.writes + self.reads
    }

    /// What is to be written; `None` while another host writes the block.
    pub fn begin_write(&mut self, block: usize) -> Option<u64> {
        let register = &mut self.registers[block];
        if register.writing {
            return None;
        }
        self.next += 1;
        register.writing = true;
        register.now.push(self.next);
        Some(self.next)
    }

    pub fn end_write(&mut self, now: u64, block: usize, salt: u64, acknowledged: bool) {
        let register = &mut self.registers[block];
        register.writing = false;
        if acknowledged {
            let gone = std::mem::replace(&mut register.now, vec![salt]);
            register.past.extend(gone.into_iter().filter(|s| *s != salt).map(|s| (s, now)));
            self.writes += 1;
        } else {
            self.unsure += 1;
        }
    }

    /// # Panics — when the read is stale, or brings what was never written.
    pub fn end_read(&mut self, began: u64, now: u64, block: usize, salt: u64, who: usize) {
        let register = &self.registers[block];
        let ceased = register.past.get(&salt).copied();
        assert!(
            register.now.contains(&salt) || ceased.is_some_and(|at| at >= began),
            "node {who} read {salt} of block {block} from {began} to {now} ns; it may hold {:?}, and ceased to hold {salt} at {ceased:?}",
            register.now,
        );
        self.reads += 1;
    }
}
