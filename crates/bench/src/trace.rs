//! Traces: requests with the moments at which they came. A plain text format of our own; pure.
//!
//! A line is `SECONDS OP OFFSET BYTES`: seconds since the trace began (with a fraction), `R` (read), `W` (write), `D`
//! (deallocate) or `F` (flush, without offset and bytes), and two sizes in bytes, or with a unit (`128k`). What stands behind
//! `#` is not looked at.

use peristyle_base::units::parse_bytes;

/// Requests of one trace: 24 bytes of memory each.
pub const REQUESTS_MAX: usize = 1 << 24;
/// Seconds: a year.
const SECONDS_MAX: f64 = 366.0 * 86_400.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Read,
    Write,
    Deallocate,
    Flush,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Nanoseconds since the trace began.
    pub at_ns: u64,
    pub offset: u64,
    pub bytes: u32,
    pub op: Op,
}

/// Requests in the order of time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    pub requests: Vec<Request>,
}

impl Trace {
    /// Reads the format above; the error names the line.
    pub fn parse(text: &str) -> Result<Trace, String> {
        let mut requests = Vec::new();
        for (n, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or("").trim();
            if line.is_empty() {
                continue;
            }
            if requests.len() == REQUESTS_MAX {
                return Err(format!("line {}: more than {REQUESTS_MAX} requests", n + 1));
            }
            requests.push(request(line).map_err(|what| format!("line {}: {what}", n + 1))?);
        }
        if requests.is_empty() {
            return Err("there is no request in it".into());
        }
        requests.sort_by_key(|request| request.at_ns);
        Ok(Trace { requests })
    }

    /// Bytes of the largest request.
    pub fn bytes_max(&self) -> u32 {
        self.requests.iter().filter(|r| r.op != Op::Deallocate).map(|r| r.bytes).max().unwrap_or(0)
    }

    /// What keeps it from a volume of so many bytes in blocks of `lba_bytes`, whose target takes `transfer_bytes_max` at once.
    pub fn check(&self, volume_bytes: u64, lba_bytes: u32, transfer_bytes_max: u32) -> Result<(), String> {
        for request in self.requests.iter().filter(|request| request.op != Op::Flush) {
            let Request { offset, bytes, .. } = *request;
            if offset % u64::from(lba_bytes) != 0 || bytes % lba_bytes != 0 || bytes == 0 {
                return Err(format!("{bytes} bytes at {offset} are no whole blocks of {lba_bytes} bytes"));
            }
            if offset.checked_add(u64::from(bytes)).is_none_or(|end| end > volume_bytes) {
                return Err(format!(
                    "{bytes} bytes at {offset} lie behind the volume's end at {volume_bytes}; see --wrap"
                ));
            }
            if request.op != Op::Deallocate && bytes > transfer_bytes_max {
                return Err(format!(
                    "{bytes} bytes at {offset}: the target takes at most {transfer_bytes_max} at once"
                ));
            }
        }
        Ok(())
    }

    /// Requests behind the end come to the front: offsets count modulo the volume's size.
    pub fn wrap(&mut self, volume_bytes: u64) {
        for request in &mut self.requests {
            let room = volume_bytes.saturating_sub(u64::from(request.bytes));
            request.offset %= volume_bytes.max(1);
            request.offset = request.offset.min(room);
        }
    }
}

fn request(line: &str) -> Result<Request, String> {
    let mut words = line.split_whitespace();
    let mut word = |what: &str| words.next().ok_or_else(|| format!("{what} is missing"));
    let seconds = word("the time")?;
    let at = seconds.parse::<f64>().ok().filter(|s| (0.0..=SECONDS_MAX).contains(s));
    let at = at.ok_or_else(|| format!("'{seconds}' is no time in seconds"))?;
    let op = match word("the operation")? {
        "R" | "r" => Op::Read,
        "W" | "w" => Op::Write,
        "D" | "d" => Op::Deallocate,
        "F" | "f" => Op::Flush,
        other => return Err(format!("'{other}' is none of R, W, D, F")),
    };
    let (offset, bytes) = match op {
        Op::Flush => (0, 0),
        _ => {
            let mut size = |what: &str| {
                let text = word(what)?;
                parse_bytes(text).ok_or_else(|| format!("'{text}' is no size"))
            };
            (size("the offset")?, size("the length")?)
        }
    };
    if let Some(more) = words.next() {
        return Err(format!("'{more}' is too much"));
    }
    let bytes = u32::try_from(bytes).map_err(|_| format!("{bytes} bytes are too many for a request"))?;
    Ok(Request { at_ns: (at * 1e9) as u64, offset, bytes, op })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_trace_is_read_and_put_into_order() {
        let text = "# time op offset bytes\n0.5 W 8k 4096\n\n0.000001 r 0 512 # first\n1 F\n2 D 1MiB 1MiB\n";
        let trace = Trace::parse(text).unwrap();
        let of = |at_ns, op, offset, bytes| Request { at_ns, offset, bytes, op };
        let expected = [
            of(1000, Op::Read, 0, 512),
            of(500_000_000, Op::Write, 8192, 4096),
            of(1_000_000_000, Op::Flush, 0, 0),
            of(2_000_000_000, Op::Deallocate, 1 << 20, 1 << 20),
        ];
        assert_eq!(trace.requests, expected);
        assert_eq!(trace.bytes_max(), 4096);
        assert!(trace.check(2 << 20, 512, 4096).is_ok());
    }

    #[test]
    fn what_cannot_be_replayed_is_refused_and_named() {
        for (text, said) in [
            ("", "no request"),
            ("# nothing", "no request"),
            ("0 R 0 4k\n0 X 0 4k", "line 2: 'X'"),
            ("-1 R 0 4k", "line 1: '-1'"),
            ("nan R 0 4k", "is no time"),
            ("0 R 0", "the length is missing"),
            ("0 R 0 4k 7", "'7' is too much"),
            ("0 F 4k", "'4k' is too much"),
            ("0 R 0 8GiB", "too many"),
        ] {
            let error = Trace::parse(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        let check = |text: &str| Trace::parse(text).unwrap().check(1 << 20, 4096, 1 << 17).unwrap_err();
        assert!(check("0 R 512 4k").contains("whole blocks"));
        assert!(check("0 R 0 0").contains("whole blocks"));
        assert!(check("0 W 1MiB 4k").contains("behind the volume's end"));
        assert!(check("0 R 0 256k").contains("at most 131072"));
    }

    proptest! {
        #[test]
        fn wrapped_requests_lie_in_the_volume(offsets in proptest::collection::vec(0u64..1 << 40, 1..50), blocks in 1u64..300) {
            let text: String = offsets.iter().map(|o| format!("0 R {} 4096\n", o & !4095)).collect();
            let mut trace = Trace::parse(&text).unwrap();
            trace.wrap(blocks * 4096);
            prop_assert!(trace.check(blocks * 4096, 4096, 4096).is_ok());
        }

        #[test]
        fn no_text_is_too_strange(text in "[ 0-9RWDFx.#\n-]{0,200}") {
            let _ = Trace::parse(&text);
        }
    }
}
