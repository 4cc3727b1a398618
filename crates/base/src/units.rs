//! Sizes. A *block* is the unit of mapping, checksums and device I/O; a *column* is 512 of them.

/// Bytes of one block. DESIGN §2.
pub const BLOCK_BYTES: usize = 4096;
/// Rows (blocks) of one column. DESIGN §2.
pub const COLUMN_ROWS: u16 = 512;
/// Bytes of one column: 2 MiB.
pub const COLUMN_BYTES: u64 = COLUMN_ROWS as u64 * BLOCK_BYTES as u64;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;
pub const TIB: u64 = 1 << 40;

const _: () = assert!(COLUMN_BYTES == 2 * MIB);

/// `n` bytes as a person reads them: `4.0 GiB`, `512 B`.
pub fn format_bytes(n: u64) -> String {
    let (unit, size) = match n {
        n if n >= TIB => ("TiB", TIB),
        n if n >= GIB => ("GiB", GIB),
        n if n >= MIB => ("MiB", MIB),
        n if n >= KIB => ("KiB", KIB),
        n => return format!("{n} B"),
    };
    format!("{:.1} {unit}", n as f64 / size as f64)
}

/// Parses `4G`, `4GiB`, `512M`, `64k`, `1048576`. Units are binary. `None` when it is not a size.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" | "kb" => KIB,
        "m" | "mib" | "mb" => MIB,
        "g" | "gib" | "gb" => GIB,
        "t" | "tib" | "tb" => TIB,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let value = number.parse::<f64>().ok()? * factor as f64;
    (value.is_finite() && value >= 0.0 && value < u64::MAX as f64).then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_as_an_operator_writes_them() {
        assert_eq!(parse_bytes("4G"), Some(4 * GIB));
        assert_eq!(parse_bytes("4 GiB"), Some(4 * GIB));
        assert_eq!(parse_bytes("1.5k"), Some(1536));
        assert_eq!(parse_bytes("123"), Some(123));
        for bad in ["", "G", "4X", "-1", "99999999999T", "1..5k"] {
            assert_eq!(parse_bytes(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn sizes_print_with_one_decimal() {
        assert_eq!(format_bytes(512), "512 B");
        assert_eq!(format_bytes(4 * GIB), "4.0 GiB");
        assert_eq!(format_bytes(1536), "1.5 KiB");
    }
}
