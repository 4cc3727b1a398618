//! Latencies as an HDR histogram log, which its usual tools read: an interval a second, reads and writes by tags.

use crate::failure::Failure;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use peristyle_bench::report::Report;
use peristyle_bench::timeline::{INTERVAL, Sparse};
use std::path::Path;
use std::time::SystemTime;

/// Nanoseconds: half an hour. What took longer counts as this long.
const VALUE_MAX: u64 = 1_800_000_000_000;
/// Decimal digits; ours have 1/32.
const DIGITS: u8 = 3;

pub fn write(path: &Path, report: &Report) -> Result<(), Failure> {
    let failed = |what: &dyn std::fmt::Display| Failure::failed(format!("{}: {what}", path.display()));
    let bytes = encode(report).map_err(|what| failed(&what))?;
    std::fs::write(path, bytes).map_err(|e| failed(&e))
}

fn encode(report: &Report) -> Result<Vec<u8>, String> {
    let (mut out, mut serializer) = (Vec::new(), V2DeflateSerializer::new());
    let mut builder = IntervalLogWriterBuilder::new();
    builder.add_comment("[peristyle bench run; nanoseconds, of which each is at most 1/32 too large]");
    builder.with_base_time(SystemTime::now() - report.elapsed).with_max_value_divisor(1e6);
    let text = |what: &dyn std::fmt::Debug| format!("{what:?}");
    let mut log = builder.begin_log_with(&mut out, &mut serializer).map_err(|e| e.to_string())?;
    for (n, interval) in report.timeline.intervals().iter().enumerate() {
        for (tag, values) in [("read", &interval.reads), ("write", &interval.writes)] {
            if values.count() == 0 && !has(report, tag) {
                continue;
            }
            let tag = Tag::new(tag);
            log.write_histogram(&histogram(values), INTERVAL * n as u32, INTERVAL, tag)
                .map_err(|e| text(&e))?;
        }
    }
    Ok(out)
}

/// Intervals without any are written as well where the run has such commands: a stall is seen.
fn has(report: &Report, tag: &str) -> bool {
    let figures = if tag == "read" { &report.reads } else { &report.writes };
    figures.latency.count() > 0
}

fn histogram(values: &Sparse) -> Histogram<u64> {
    let mut histogram = Histogram::new_with_bounds(1, VALUE_MAX, DIGITS).expect("valid bounds");
    for &(value, count) in &values.0 {
        histogram.saturating_record_n(value, count);
    }
    histogram
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    #[test]
    fn the_log_is_read_by_the_usual_reader() {
        let mut report = super::super::tests::report(0.1);
        report.timeline.finish(std::time::Duration::from_secs(2));
        let bytes = encode(&report).unwrap();
        let mut seen = Vec::new();
        for entry in IntervalLogIterator::new(&bytes) {
            let LogEntry::Interval(interval) = entry.expect("a valid line") else { continue };
            let raw = base64_decode(interval.encoded_histogram());
            let histogram: Histogram<u64> = Deserializer::new().deserialize(&mut raw.as_slice()).unwrap();
            let tag = interval.tag().unwrap().as_str().to_owned();
            seen.push((tag, interval.start_timestamp().as_secs(), histogram.len(), histogram.max()));
        }
        let of = |tag: &str, at, count| (tag.to_owned(), at, count);
        let counts: Vec<_> = seen.iter().map(|(tag, at, count, _)| (tag.clone(), *at, *count)).collect();
        assert_eq!(counts, [of("read", 0, 2), of("write", 0, 1), of("read", 1, 0), of("write", 1, 0)]);
        assert!((20_000..20_700).contains(&seen[0].3), "{seen:?}");
    }

    fn base64_decode(text: &str) -> Vec<u8> {
        const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let digits = text.bytes().filter_map(|b| ALPHABET.iter().position(|a| *a == b));
        let (mut out, mut bits, mut have) = (Vec::new(), 0u32, 0);
        for digit in digits {
            bits = bits << 6 | digit as u32;
            have += 6;
            if have >= 8 {
                have -= 8;
                out.push((bits >> have) as u8);
            }
        }
        out
    }
}
