//! Names: what the log, its extents and their columns are called. Plain numbers with types around them,
//! so that a row is never taken for a column.

use core::fmt;
use core::str::FromStr;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl $name {
            pub fn next(self) -> Self { $name(self.0 + 1) }
        }
    };
}

number! {
    /// A daemon process's place in the cluster; 0 on one machine.
    NodeId(u32)
}
number! {
    /// One log and the maps of its volumes.
    ShardId(u32)
}
number! {
    /// A shard's ownership number; whoever shows a lower one is refused.
    Epoch(u64)
}
number! {
    /// A set of k+m columns; numbers of one shard only grow and are never used twice. 48 bits.
    ExtentId(u64)
}
number! {
    /// A frame's place in its shard's log.
    Seq(u64)
}
number! {
    /// One generation of a volume's map.
    LayerId(u32)
}
number! {
    /// The place on a device that holds one column.
    SlotIndex(u32)
}
number! {
    /// Row (block) within a column, 0..=512.
    RowIndex(u16)
}
number! {
    /// Which column of its extent: 0..k data, k..k+m parity.
    ColumnIndex(u8)
}
number! {
    /// A volume, and the namespace ID under which hosts see it.
    VolumeId(u32)
}
number! {
    PoolId(u32)
}

impl ExtentId {
    pub const MAX: ExtentId = ExtentId((1 << 48) - 1);
}

/// 16 bytes written as `8-4-4-4-12` hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Uuid(pub [u8; 16]);

/// A device's identity, from its label.
pub type DeviceId = Uuid;

impl Uuid {
    /// A version 4 UUID out of 16 random bytes (RFC 9562 §5.4).
    pub fn from_random(mut bytes: [u8; 16]) -> Uuid {
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Uuid(bytes)
    }
    pub fn is_nil(&self) -> bool {
        self.0 == [0; 16]
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}
impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl FromStr for Uuid {
    type Err = ();
    fn from_str(s: &str) -> Result<Uuid, ()> {
        let bytes = s.as_bytes();
        if bytes.len() != 36 {
            return Err(());
        }
        let (mut out, mut digits) = ([0u8; 16], 0);
        for (i, &c) in bytes.iter().enumerate() {
            if matches!(i, 8 | 13 | 18 | 23) {
                if c != b'-' {
                    return Err(());
                }
                continue;
            }
            let value = (c as char).to_digit(16).ok_or(())? as u8;
            out[digits / 2] = out[digits / 2] << 4 | value;
            digits += 1;
        }
        Ok(Uuid(out))
    }
}

/// 16 secret random bytes of an extent, so that no user data can pass for one of its headers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Nonce(pub [u8; 16]);

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nonce(..)") // secret: not for logs
    }
}

/// k data columns and m parity columns. 1+m is replication.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scheme {
    k: u8,
    m: u8,
}

impl Scheme {
    pub const K_MAX: u8 = 16;
    pub const M_MAX: u8 = 4;
    pub const WIDTH_MAX: usize = (Self::K_MAX + Self::M_MAX) as usize;

    /// `None` unless k is in 1..=16 and m in 0..=4.
    pub const fn new(k: u8, m: u8) -> Option<Scheme> {
        if k >= 1 && k <= Self::K_MAX && m <= Self::M_MAX { Some(Scheme { k, m }) } else { None }
    }
    pub const fn k(self) -> usize {
        self.k as usize
    }
    pub const fn m(self) -> usize {
        self.m as usize
    }
    /// k + m.
    pub const fn width(self) -> usize {
        self.k as usize + self.m as usize
    }
    /// The narrow scheme with the same protection: 1+m.
    pub const fn narrow(self) -> Scheme {
        Scheme { k: 1, m: self.m }
    }
    pub const fn is_narrow(self) -> bool {
        self.k == 1
    }
}
impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.k, self.m)
    }
}
impl fmt::Debug for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl FromStr for Scheme {
    type Err = String;
    fn from_str(s: &str) -> Result<Scheme, String> {
        let bad = || format!("`{s}` is not a scheme: write k+m with k in 1..=16 and m in 0..=4, such as 4+2");
        let (k, m) = s.split_once('+').ok_or_else(bad)?;
        Scheme::new(k.trim().parse().map_err(|_| bad())?, m.trim().parse().map_err(|_| bad())?)
            .ok_or_else(bad)
    }
}

/// Everything that every request to a column names, and that its slot must still hold (DESIGN §6: "the
/// column server compares, always").
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ColumnName {
    pub shard: ShardId,
    pub extent: ExtentId,
    pub column: ColumnIndex,
    pub nonce: Nonce,
}

/// Where a column is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ColumnPlace {
    pub device: DeviceId,
    pub slot: SlotIndex,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_outside_the_range_are_refused() {
        assert_eq!("4+2".parse::<Scheme>().unwrap().width(), 6);
        for bad in ["0+2", "17+2", "4+5", "4", "4+", "+2", "a+b", "4+2+1", "4-2"] {
            assert!(bad.parse::<Scheme>().is_err(), "{bad}");
        }
    }

    #[test]
    fn uuids_print_and_parse_back() {
        let uuid = Uuid::from_random([0xab; 16]);
        assert_eq!(uuid.to_string().parse(), Ok(uuid));
        assert_eq!(&uuid.to_string()[14..15], "4");
        for bad in ["", "abababab-abab-4bab-abab-abababababa", "abababab_abab-4bab-abab-abababababab", "g"] {
            assert!(bad.parse::<Uuid>().is_err());
        }
    }
}
