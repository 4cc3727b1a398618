//! Names of commands in flight that outlive the command without confusion.

/// A command slot and its generation: a completion that comes late names a generation that is over and
/// is refused, so it cannot reach the slot's next command.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tag {
    index: u16,
    generation: u16,
}

impl Tag {
    pub(crate) const fn new(index: u16, generation: u16) -> Tag {
        Tag { index, generation }
    }
    /// Below the machine's number of slots: the driver may keep an array beside it.
    pub const fn index(self) -> usize {
        self.index as usize
    }
    pub(crate) const fn generation(self) -> u16 {
        self.generation
    }
    /// As one number, for a driver that has to carry it through a `u64` of its own.
    pub const fn to_bits(self) -> u32 {
        self.index as u32 | (self.generation as u32) << 16
    }
    pub const fn from_bits(bits: u32) -> Tag {
        Tag { index: bits as u16, generation: (bits >> 16) as u16 }
    }
}
