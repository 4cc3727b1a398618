//! The operations that take several steps, and how many crash states each of them has seen.

use std::cell::Cell;
use std::rc::Rc;

/// What was under way when the power failed. The list, by the level at which each lives; every one of them
/// must have had states, or a run of the simulator fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    Format,
    Allocate,
    Append,
    Fence,
    Seal,
    Free,
    /// A frame of users' data: all its columns, and its commit.
    Frame,
    /// Ready extents: their columns are allocated, then the control store's record lists them.
    Refill,
    /// Map blocks in the log, then the record that points at them.
    Checkpoint,
    /// All columns of one extent.
    SealExtent,
    /// An extent that was not used leaves the record, then its columns are freed.
    GiveBack,
    /// A layer that becomes smaller and grows back.
    Resize,
    /// A snapshot that is taken, and deleted again: its layer merges into its child's.
    Snapshot,
    /// Snapshots of several volumes at one point.
    GroupSnapshot,
    /// A new volume on a snapshot.
    Clone,
    /// A volume becomes what a snapshot is.
    RollBack,
    /// A volume gets a copy of what it shares with others.
    Flatten,
    /// Extents that hold nothing any more, behind a checkpoint, while the shard serves.
    FreeUnused,
    /// What is alive in an extent is appended to another one, while hosts write.
    Relocate,
    /// Columns of a device that is to leave, or is given up, are made anew on others while the shard serves.
    Rebuild,
    /// The pool gets another scheme, all is converted, and then its own again.
    Convert,
    /// From the raised epoch until the shard serves.
    Recovery,
    /// Sealing and giving back what earlier epochs left.
    Settle,
    /// Recovery of a state that a crash during recovery has left.
    RecoveryAgain,
}

const COUNT: usize = Operation::RecoveryAgain as usize + 1;

impl Operation {
    /// Those of one device's column server.
    pub const OF_COLUMNS: &[Operation] = &[
        Operation::Format,
        Operation::Allocate,
        Operation::Append,
        Operation::Fence,
        Operation::Seal,
        Operation::Free,
    ];
    /// Those of a shard over several devices and the control store.
    pub const OF_SHARDS: &[Operation] = &[
        Operation::Frame,
        Operation::Refill,
        Operation::Checkpoint,
        Operation::SealExtent,
        Operation::GiveBack,
        Operation::Resize,
        Operation::Snapshot,
        Operation::GroupSnapshot,
        Operation::Clone,
        Operation::RollBack,
        Operation::Flatten,
        Operation::FreeUnused,
        Operation::Relocate,
        Operation::Rebuild,
        Operation::Convert,
        Operation::Recovery,
        Operation::Settle,
        Operation::RecoveryAgain,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Operation::Format => "device: format",
            Operation::Allocate => "device: allocate a column",
            Operation::Append => "device: append rows",
            Operation::Fence => "device: fence a column",
            Operation::Seal => "device: seal a column",
            Operation::Free => "device: free a column",
            Operation::Frame => "shard: append a frame",
            Operation::Refill => "shard: refill the open set",
            Operation::Checkpoint => "shard: checkpoint",
            Operation::SealExtent => "shard: seal an extent",
            Operation::GiveBack => "shard: give an extent back",
            Operation::Resize => "shard: resize a layer",
            Operation::Snapshot => "shard: snapshot and merge",
            Operation::GroupSnapshot => "shard: snapshot of a group",
            Operation::Clone => "shard: clone a snapshot",
            Operation::RollBack => "shard: roll back to a snapshot",
            Operation::Flatten => "shard: flatten a clone",
            Operation::FreeUnused => "shard: free unused extents",
            Operation::Relocate => "shard: move blocks",
            Operation::Rebuild => "shard: make columns anew",
            Operation::Convert => "shard: convert to another scheme",
            Operation::Recovery => "shard: recovery",
            Operation::Settle => "shard: settle old extents",
            Operation::RecoveryAgain => "shard: recovery, crashed in recovery",
        }
    }
}

/// Crash states by what was under way; a state counts for every operation that was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally([u64; COUNT]);

impl Tally {
    pub fn states(&self, operation: Operation) -> u64 {
        self.0[operation as usize]
    }
    pub fn add(&mut self, under_way: u32) {
        let bits = self.0.iter_mut().enumerate();
        bits.for_each(|(i, states)| *states += u64::from(under_way >> i & 1));
    }
    pub fn and(mut self, other: Tally) -> Tally {
        self.0.iter_mut().zip(other.0).for_each(|(mine, more)| *mine += more);
        self
    }
}

/// What is under way. Clones are the same.
#[derive(Clone, Default)]
pub struct UnderWay(Rc<[Cell<u32>; COUNT]>);

/// One operation, as long as it lives.
pub struct Step {
    of: UnderWay,
    operation: Operation,
}

impl UnderWay {
    pub fn begin(&self, operation: Operation) -> Step {
        let count = &self.0[operation as usize];
        count.set(count.get() + 1);
        Step { of: self.clone(), operation }
    }
    pub fn has(&self, operation: Operation) -> bool {
        self.0[operation as usize].get() > 0
    }
    /// A bit for each.
    pub fn bits(&self) -> u32 {
        self.0.iter().enumerate().fold(0, |bits, (i, count)| bits | u32::from(count.get() > 0) << i)
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        let count = &self.of.0[self.operation as usize];
        count.set(count.get() - 1);
    }
}
