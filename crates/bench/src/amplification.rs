//! What a request costs devices, and the network between nodes, at least: by read-modify-write in place, as classic erasure-coded
//! arrays do it, and by appending to a log. Pure arithmetic, to stand beside what is measured.
//!
//! Counts are requests per user request, bytes are bytes per user byte. Requests begin at a multiple of their
//! size. Neither knows of metadata, collection or rebuild: no system is better, all are somewhat worse.

/// k data and m parity columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    pub k: u32,
    pub m: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    pub reads: f64,
    pub writes: f64,
    pub read_bytes: f64,
    pub write_bytes: f64,
}

/// How parity follows a write in place that covers a part of a stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convention {
    /// Old data and old parity are read, and their difference with the new data applied: 3R + 3W for a block of 4+2.
    Delta,
    /// The same, with old data in a cache: 2R + 3W.
    DeltaCached,
    /// The rest of the stripe is read, and parity made anew.
    Reconstruct,
}

impl Convention {
    pub const ALL: [Convention; 3] = [Convention::Delta, Convention::DeltaCached, Convention::Reconstruct];

    pub fn name(self) -> &'static str {
        match self {
            Convention::Delta => "delta",
            Convention::DeltaCached => "delta, old data cached",
            Convention::Reconstruct => "reconstruct",
        }
    }
}

/// A write in place of so many bytes, where `unit` bytes lie side by side in a column. Whole stripes need no reads; what
/// is left over goes by the convention, column by column.
pub fn classic_write(code: Code, bytes: u32, unit: u32, convention: Convention) -> Cost {
    let (k, m) = (f64::from(code.k), f64::from(code.m));
    let stripe = code.k * unit;
    let (full, rest) = (f64::from(bytes / stripe), bytes % stripe);
    let mut cost =
        Cost { writes: full * (k + m), write_bytes: full * (k + m) * f64::from(unit), ..Cost::default() };
    if rest > 0 {
        // Columns that are touched, and bytes of each; less than a unit lies in one column.
        let touched = f64::from(rest.div_ceil(unit));
        let piece = f64::from(rest.min(unit));
        let reads = match convention {
            Convention::Delta => touched + m,
            Convention::DeltaCached => m,
            Convention::Reconstruct => k - touched,
        };
        cost.reads += reads;
        cost.writes += touched + m;
        cost.read_bytes += reads * piece;
        cost.write_bytes += (touched + m) * piece;
    }
    let user = f64::from(bytes);
    Cost { read_bytes: cost.read_bytes / user, write_bytes: cost.write_bytes / user, ..cost }
}

/// A read of what lies in columns of `unit` bytes: a request to each column that it touches.
pub fn classic_read(bytes: u32, unit: u32) -> Cost {
    Cost { reads: f64::from(bytes.div_ceil(unit)), read_bytes: 1.0, ..Cost::default() }
}

/// Data blocks of the largest frame.
pub const FRAME_BLOCKS: u32 = 240;
const BLOCK: u32 = 4096;

/// A write that is appended alone: frames of its own, as 1+m where that takes less room.
pub fn log_write_alone(code: Code, bytes: u32) -> Cost {
    let (mut writes, mut device_bytes, mut left) = (0.0, 0.0, bytes.div_ceil(BLOCK));
    while left > 0 {
        let n = left.min(FRAME_BLOCKS);
        let narrow = Code { k: 1, m: code.m };
        let code = if space(narrow, n) < space(code, n) { narrow } else { code };
        let (w, b) = frame(code, n);
        writes += w;
        device_bytes += b;
        left -= n;
    }
    Cost { writes, write_bytes: device_bytes / f64::from(bytes), ..Cost::default() }
}

/// A write that shares full frames with others: the least that can be had with many in flight.
pub fn log_write_shared(code: Code, bytes: u32) -> Cost {
    let full = frame(code, FRAME_BLOCKS);
    let per_byte = f64::from(FRAME_BLOCKS * BLOCK);
    Cost { writes: full.0 / per_byte * f64::from(bytes), write_bytes: full.1 / per_byte, ..Cost::default() }
}

/// A read: one request where its blocks lie side by side, which no layout can better.
pub fn log_read() -> Cost {
    Cost { reads: 1.0, read_bytes: 1.0, ..Cost::default() }
}

/// Bytes of a message's head: of a request to a column, of an answer, and in an append of each block's checksum.
pub const REQUEST_HEAD: u32 = 84;
pub const ANSWER_HEAD: u32 = 24;
pub const CHECKSUM: u32 = 4;

/// What one node asks others for a request of a user. Each request has an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Between {
    pub reads: f64,
    pub writes: f64,
    /// Of all messages, heads with them.
    pub bytes: f64,
}

impl Between {
    /// Requests and answers.
    pub fn messages(&self) -> f64 {
        2.0 * (self.reads + self.writes)
    }
}

/// The same requests to devices, each a message to the node that has the device, but for those of the node that asks. Columns lie evenly
/// on all nodes, and who asks is any of them: of n nodes it has one column of n. Heads are those of our messages for both designs.
pub fn between_nodes(cost: Cost, bytes: u32, nodes: u32) -> Between {
    let others = f64::from(nodes - 1) / f64::from(nodes);
    let heads = (cost.reads + cost.writes) * f64::from(REQUEST_HEAD + ANSWER_HEAD) / f64::from(bytes);
    let checksums = cost.write_bytes * f64::from(CHECKSUM) / f64::from(BLOCK);
    Between {
        reads: cost.reads * others,
        writes: cost.writes * others,
        bytes: (cost.read_bytes + cost.write_bytes + heads + checksums) * others,
    }
}

/// Rows of a frame with its header over the extent's whole width, blocks.
fn space(code: Code, n: u32) -> u32 {
    (1 + n.div_ceil(code.k)) * (code.k + code.m)
}

/// Device writes and bytes of a frame of n blocks: R = ceil(n/k) rows, parity in each of them, and a header row in the first
/// and in every parity column. A column that gets nothing is not written.
fn frame(code: Code, n: u32) -> (f64, f64) {
    let rows = n.div_ceil(code.k);
    let data_columns = n.div_ceil(rows);
    let blocks = n + code.m * rows + 1 + code.m;
    (f64::from(data_columns + code.m), f64::from(blocks) * f64::from(BLOCK))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: u32 = 64 << 10;

    fn code(k: u32, m: u32) -> Code {
        Code { k, m }
    }

    #[test]
    fn a_block_of_4_plus_2_in_place_is_3_reads_and_3_writes() {
        let of = |convention| {
            let cost = classic_write(code(4, 2), 4096, UNIT, convention);
            (cost.reads, cost.writes, cost.read_bytes + cost.write_bytes)
        };
        assert_eq!(of(Convention::Delta), (3.0, 3.0, 6.0));
        assert_eq!(of(Convention::DeltaCached), (2.0, 3.0, 5.0));
        assert_eq!(of(Convention::Reconstruct), (3.0, 3.0, 6.0));
        // A mirror reads nothing back by reconstruction: its parity is the data.
        let mirror = classic_write(code(1, 1), 4096, UNIT, Convention::Reconstruct);
        assert_eq!((mirror.reads, mirror.writes, mirror.write_bytes), (0.0, 2.0, 2.0));
    }

    #[test]
    fn whole_stripes_need_no_reads_and_the_rest_goes_by_columns() {
        let full = classic_write(code(4, 2), 4 * UNIT, UNIT, Convention::Delta);
        assert_eq!((full.reads, full.writes, full.write_bytes), (0.0, 6.0, 1.5));
        let more = classic_write(code(4, 2), 5 * UNIT, UNIT, Convention::Delta);
        assert_eq!((more.reads, more.writes), (3.0, 9.0));
        let half = classic_write(code(4, 2), 2 * UNIT, UNIT, Convention::Reconstruct);
        assert_eq!((half.reads, half.writes, half.read_bytes, half.write_bytes), (2.0, 4.0, 1.0, 2.0));
        assert_eq!(classic_read(4096, UNIT).reads, 1.0);
        assert_eq!(classic_read(4 * UNIT, UNIT).reads, 4.0);
    }

    #[test]
    fn a_log_writes_m_plus_1_columns_alone_and_little_over_the_code_together() {
        let alone = log_write_alone(code(4, 2), 4096);
        assert_eq!((alone.reads, alone.writes, alone.write_bytes), (0.0, 3.0, 6.0));
        let shared = log_write_shared(code(4, 2), 4096);
        assert!((shared.writes - 6.0 / 240.0).abs() < 1e-9);
        assert!((shared.write_bytes - (240.0 + 120.0 + 3.0) / 240.0).abs() < 1e-9);
        let large = log_write_alone(code(4, 2), 512 << 10);
        assert_eq!((large.writes, large.write_bytes), (6.0, (128.0 + 64.0 + 3.0) / 128.0));
        assert_eq!(log_write_alone(code(1, 1), 4096).write_bytes, 4.0);
    }

    #[test]
    fn of_six_nodes_five_sixths_of_the_columns_are_on_others() {
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} and {b}");
        // Three columns of a header and a block each.
        let log = between_nodes(log_write_alone(code(4, 2), 4096), 4096, 6);
        assert_eq!((log.reads, log.writes, log.messages()), (0.0, 2.5, 5.0));
        near(log.bytes, 2.5 * (2.0 * 4096.0 + 84.0 + 2.0 * 4.0 + 24.0) / 4096.0);
        // Three blocks are read and three are written.
        let delta = between_nodes(classic_write(code(4, 2), 4096, UNIT, Convention::Delta), 4096, 6);
        assert_eq!((delta.reads, delta.writes, delta.messages()), (2.5, 2.5, 10.0));
        near(delta.bytes, (2.5 * (84.0 + 24.0 + 4096.0) + 2.5 * (84.0 + 4.0 + 4096.0 + 24.0)) / 4096.0);
        let read = between_nodes(log_read(), 4096, 6);
        near(read.messages(), 10.0 / 6.0);
        near(read.bytes, (84.0 + 24.0 + 4096.0) / 4096.0 * 5.0 / 6.0);
        // A full stripe on as many nodes as it has columns: all but one of them.
        let full = between_nodes(classic_write(code(4, 2), 4 * UNIT, UNIT, Convention::Delta), 4 * UNIT, 6);
        near(full.messages(), 10.0);
        near(full.bytes, 5.0 * (65536.0 + 16.0 * 4.0 + 84.0 + 24.0) / (4.0 * 65536.0));
        // A node that is alone asks nobody.
        assert_eq!(between_nodes(log_write_alone(code(1, 1), 4096), 4096, 1), Between::default());
    }
}
