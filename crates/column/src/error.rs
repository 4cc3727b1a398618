//! Why a request or a device is refused. Closed enums, `Copy`, no text made in the data path.

use peristyle_base::{DeviceId, Epoch, RowIndex, Uuid};
use peristyle_rt::IoError;
use std::fmt;

/// Why the column server refuses a request, or could not carry it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnError {
    /// The request's epoch is lower than the slot's.
    Stale { have: Epoch },
    /// The request's epoch is higher than the slot's, which has not been fenced at it; or an append to a column
    /// that was fenced since it was opened (such a column is never appended to again).
    NotOpener { have: Epoch },
    /// The slot holds another column.
    WrongName,
    /// The slot holds nothing, or does not exist.
    NotFound,
    /// An append to a column that is sealed or being sealed, or a different seal of a sealed one.
    Sealed,
    /// The operation needs a sealed column, and this one is not.
    NotSealed,
    /// A read of a column that is being filled.
    Filling,
    /// Rows beyond the column or beyond its sealed length, an empty range, or data that is not whole rows with one
    /// CRC each.
    RowRange,
    /// The row holds, or is being given, other content: rows are written once.
    RowTaken { row: RowIndex },
    /// A seal names a row that this server has never been given.
    RowMissing { row: RowIndex },
    /// A row's CRC is not that of its content, or not the one it was appended with.
    CrcMismatch { row: RowIndex },
    /// A seal leaves out CRCs that this server does not know.
    CrcUnknown { row: RowIndex },
    /// The row checksums of a sealed column are unreadable or damaged.
    CrcTableDamaged,
    /// A name or scheme that cannot be.
    Invalid,
    /// No free slot that this class may use.
    Full,
    /// As many columns are open as the server has memory for.
    TooManyOpen,
    /// The device failed.
    Device(IoError),
}

impl fmt::Display for ColumnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ColumnError::Stale { have } => write!(f, "refused: the column is at epoch {have}"),
            ColumnError::NotOpener { have } => {
                write!(f, "refused: the column was opened under another epoch, it is at {have}")
            }
            ColumnError::WrongName => f.write_str("the slot holds another column"),
            ColumnError::NotFound => f.write_str("the slot holds no column"),
            ColumnError::Sealed => f.write_str("the column is sealed"),
            ColumnError::NotSealed => f.write_str("the column is not sealed"),
            ColumnError::Filling => f.write_str("the column is being filled"),
            ColumnError::RowRange => f.write_str("not whole rows within the column"),
            ColumnError::RowTaken { row } => write!(f, "row {row} has other content"),
            ColumnError::RowMissing { row } => write!(f, "row {row} was never written"),
            ColumnError::CrcMismatch { row } => write!(f, "row {row} does not match its checksum"),
            ColumnError::CrcUnknown { row } => write!(f, "the checksum of row {row} is not known"),
            ColumnError::CrcTableDamaged => f.write_str("the row checksums are damaged"),
            ColumnError::Invalid => f.write_str("a name or scheme that cannot be"),
            ColumnError::Full => f.write_str("no free slot for this class"),
            ColumnError::TooManyOpen => f.write_str("too many open columns"),
            ColumnError::Device(error) => write!(f, "device: {error}"),
        }
    }
}
impl std::error::Error for ColumnError {}

impl From<IoError> for ColumnError {
    fn from(error: IoError) -> Self {
        ColumnError::Device(error)
    }
}

/// What is wrong with one copy of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelError {
    /// Only zeros.
    Blank,
    /// A format that was begun and not finished.
    Formatting,
    /// Something that is not ours.
    Foreign,
    /// Ours, with a wrong checksum.
    Damaged,
    /// A version that this program does not know.
    Version(u32),
    /// A right checksum over figures that cannot be.
    Geometry,
    Device(IoError),
}

impl fmt::Display for LabelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LabelError::Blank => f.write_str("blank"),
            LabelError::Formatting => f.write_str("a format that was not finished"),
            LabelError::Foreign => f.write_str("data of something else"),
            LabelError::Damaged => f.write_str("damaged"),
            LabelError::Version(v) => write!(f, "format version {v}, which this program does not know"),
            LabelError::Geometry => f.write_str("impossible geometry"),
            LabelError::Device(error) => write!(f, "unreadable: {error}"),
        }
    }
}
impl std::error::Error for LabelError {}

/// Why a device is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// Neither copy of the label is good: what is wrong with each.
    NoLabel([LabelError; 2]),
    /// Both copies are good and name different devices.
    LabelsDisagree,
    ForeignCluster {
        found: Uuid,
    },
    /// Another device than the one that was expected here (swapped, or an old copy).
    WrongDevice {
        found: DeviceId,
    },
    /// Smaller than when it was formatted.
    Shrunk {
        was: u64,
        is: u64,
    },
    Device(IoError),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::NoLabel([first, last]) => {
                write!(f, "no usable label (first block: {first}; last block: {last})")
            }
            OpenError::LabelsDisagree => f.write_str("the two labels name different devices"),
            OpenError::ForeignCluster { found } => write!(f, "belongs to cluster {found}"),
            OpenError::WrongDevice { found } => write!(f, "is device {found}, another one than expected"),
            OpenError::Shrunk { was, is } => write!(f, "was formatted with {was} bytes and has {is} now"),
            OpenError::Device(error) => write!(f, "device: {error}"),
        }
    }
}
impl std::error::Error for OpenError {}

impl From<IoError> for OpenError {
    fn from(error: IoError) -> Self {
        OpenError::Device(error)
    }
}

/// Why a device was not formatted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormatError {
    /// It belongs to a cluster already; `force` would overwrite it.
    Labelled {
        cluster: Uuid,
        device: DeviceId,
    },
    /// It holds data of something else; `force` would overwrite it.
    NotBlank {
        offset: u64,
    },
    /// Not one column fits.
    TooSmall,
    Device(IoError),
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FormatError::Labelled { cluster, device } => {
                write!(f, "is device {device} of cluster {cluster} already")
            }
            FormatError::NotBlank { offset } => write!(f, "holds other data (at byte {offset})"),
            FormatError::TooSmall => f.write_str("too small for one column"),
            FormatError::Device(error) => write!(f, "device: {error}"),
        }
    }
}
impl std::error::Error for FormatError {}

impl From<IoError> for FormatError {
    fn from(error: IoError) -> Self {
        FormatError::Device(error)
    }
}
