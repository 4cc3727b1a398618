//! fio's job files: the part of them that means something for a volume of an NVMe/TCP target. Pure.
//!
//! What would change the load and is not known here is an error; what only matters to fio's own engines is left out and told.

use crate::contents::Contents;
use crate::load::{Length, Rate, Workload};
use crate::pattern::{Jump, Pattern};
use peristyle_base::Duration;
use peristyle_base::units::parse_bytes;
use std::collections::BTreeSet;

const JOBS_MAX: usize = 64;
/// Options that say how fio does its I/O, logs or prints: without meaning here.
const LEFT_OUT: [&str; 30] = [
    "allow_file_create",
    "clat_percentiles",
    "clocksource",
    "cpus_allowed",
    "cpus_allowed_policy",
    "create_on_open",
    "direct",
    "directory",
    "disk_util",
    "eta",
    "exitall",
    "fixedbufs",
    "group_reporting",
    "gtod_reduce",
    "hipri",
    "invalidate",
    "iodepth_batch",
    "iodepth_batch_complete",
    "ioengine",
    "log_avg_msec",
    "name",
    "norandommap",
    "percentile_list",
    "randrepeat",
    "refill_buffers",
    "registerfiles",
    "thread",
    "unlink",
    "write_bw_log",
    "write_lat_log",
];

/// One section.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub name: String,
    pub workload: Workload,
    /// From `filename=/dev/nvme0n2` or `ns=2`.
    pub nsid: Option<u32>,
    /// Begins when all before it have ended.
    pub waits: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct JobFile {
    pub jobs: Vec<Job>,
    /// What was left out, by name.
    pub left_out: Vec<String>,
}

/// What a section says, as far as options depend on each other.
#[derive(Clone, Debug, Default)]
struct Section {
    sequential: bool,
    /// `None`: reads and writes, as `mixed` says.
    read_share: Option<u8>,
    mixed: Option<u8>,
    semi: Option<f64>,
    distribution: Option<Pattern>,
    time_based: bool,
    runtime: Option<Duration>,
    io_bytes: Option<u64>,
    size: Option<u64>,
    number: Option<u64>,
    loops: u64,
    rate: Option<f64>,
    poisson: bool,
    nsid: Option<u32>,
    waits: bool,
    workload: Workload,
}

/// Reads it; `base` is what counts where it says nothing. The error names the line.
pub fn parse(text: &str, base: &Workload) -> Result<JobFile, String> {
    let start = Section {
        sequential: base.pattern == Pattern::Sequential,
        read_share: Some(base.read_share),
        loops: 1,
        workload: base.clone(),
        ..Section::default()
    };
    let (mut global, mut jobs, mut left_out) = (start, Vec::new(), BTreeSet::new());
    // The section that is being read; none before the first, and in [global].
    let mut current: Option<(String, Section)> = None;
    let mut in_section = false;
    for (n, line) in text.lines().enumerate() {
        let at = |what: String| format!("line {}: {what}", n + 1);
        let line = line.trim();
        if line.is_empty() || line.starts_with([';', '#']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            jobs.extend(current.take().map(|(name, section)| section.job(name)));
            in_section = true;
            if !name.eq_ignore_ascii_case("global") {
                current = Some((name.to_owned(), global.clone()));
            }
            if jobs.len() >= JOBS_MAX {
                return Err(at(format!("more than {JOBS_MAX} jobs")));
            }
            continue;
        }
        if !in_section {
            return Err(at("an option stands in a section, such as [global]".into()));
        }
        let (key, value) = line.split_once('=').map_or((line, None), |(k, v)| (k.trim(), Some(v.trim())));
        let section = current.as_mut().map_or(&mut global, |(_, section)| section);
        if !section.set(key, value).map_err(|what| at(format!("{key}: {what}")))? {
            if !LEFT_OUT.contains(&key) {
                return Err(at(format!("'{key}' is not known here")));
            }
            left_out.insert(key.to_owned());
        }
    }
    jobs.extend(current.take().map(|(name, section)| section.job(name)));
    if jobs.is_empty() {
        return Err("there is no job in it".into());
    }
    Ok(JobFile { jobs, left_out: left_out.into_iter().collect() })
}

impl Section {
    /// Whether the option is known.
    fn set(&mut self, key: &str, value: Option<&str>) -> Result<bool, String> {
        let text = || value.ok_or_else(|| "a value is missing".to_owned());
        match key {
            "rw" | "readwrite" => self.set_rw(text()?)?,
            "rwmixread" => self.mixed = Some(number(text()?, 0, 100)? as u8),
            "rwmixwrite" => self.mixed = Some(100 - number(text()?, 0, 100)? as u8),
            "bs" | "blocksize" => self.workload.block_bytes = bytes(text()?)? as u32,
            "iodepth" => self.workload.depth = number(text()?, 1, 1024)? as u32,
            "numjobs" => self.workload.jobs = number(text()?, 1, 128)? as u16,
            "percentage_random" => self.semi = Some(1.0 - number(text()?, 0, 100)? as f64 / 100.0),
            "random_distribution" => self.distribution = distribution(text()?)?,
            "offset" => self.workload.region.offset = bytes(text()?)?,
            "size" | "filesize" => self.size = Some(bytes(text()?)?),
            "io_size" => self.io_bytes = Some(bytes(text()?)?),
            "number_ios" => self.number = Some(number(text()?, 1, u64::MAX)?),
            "loops" => self.loops = number(text()?, 1, 1_000_000)?,
            "runtime" => self.runtime = Some(time(text()?)?),
            "ramp_time" => self.workload.warmup = time(text()?)?,
            "time_based" => self.time_based = flag(value)?,
            "rate_iops" => self.rate = Some(number(text()?, 1, 100_000_000)? as f64),
            "rate_process" => self.poisson = text()? == "poisson",
            "randseed" => self.workload.seed = number(text()?, 0, u64::MAX)?,
            "verify" => self.workload.verify = !matches!(text()?, "0" | "null"),
            "zero_buffers" if flag(value)? => self.workload.contents = Contents::Zero,
            "zero_buffers" => {}
            "buffer_compress_percentage" => {
                self.workload.contents = Contents::Compressible(number(text()?, 0, 100)? as u8)
            }
            "stonewall" | "wait_for_previous" => self.waits = flag(value)?,
            "filename" => self.nsid = namespace(text()?).or(self.nsid),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn set_rw(&mut self, text: &str) -> Result<(), String> {
        let (sequential, reads) = match text {
            "read" => (true, Some(100)),
            "write" => (true, Some(0)),
            "randread" => (false, Some(100)),
            "randwrite" => (false, Some(0)),
            "rw" | "readwrite" => (true, None),
            "randrw" => (false, None),
            _ => return Err(format!("'{text}' is none of read, write, randread, randwrite, rw, randrw")),
        };
        self.sequential = sequential;
        self.read_share = reads;
        Ok(())
    }

    fn job(self, name: String) -> Job {
        let mut workload = self.workload;
        // Half of them are reads where fio is not told.
        workload.read_share = self.read_share.or(self.mixed).unwrap_or(50);
        workload.pattern = match (self.sequential, self.semi, self.distribution) {
            (true, ..) => Pattern::Sequential,
            (false, Some(step), _) => Pattern::SemiRandom { step, jump: Jump::Anywhere },
            (false, None, Some(pattern)) => pattern,
            (false, None, None) if workload.pattern == Pattern::Sequential => Pattern::Random,
            (false, None, None) => workload.pattern,
        };
        workload.region.bytes = self.size.unwrap_or(workload.region.bytes);
        let jobs = u64::from(workload.jobs);
        if let Some(rate) = self.rate {
            workload.rate = Some(Rate { per_second: rate * jobs as f64, poisson: self.poisson });
        }
        let per_job = self.io_bytes.or(self.size).map(|bytes| bytes / u64::from(workload.block_bytes.max(1)));
        let count =
            self.number.or(per_job).map(|count| Length::Count(count.saturating_mul(self.loops) * jobs));
        workload.length = match (self.runtime, self.time_based, count) {
            (Some(time), true, _) | (Some(time), false, None) => Length::Time(time),
            // fio stops at whichever comes first. The number of commands does not depend on the machine.
            (_, _, Some(count)) => count,
            (None, _, None) => workload.length,
        };
        Job { name, workload, nsid: self.nsid, waits: self.waits }
    }
}

fn number(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let number = text.parse().ok().filter(|n| (least..=most).contains(n));
    number.ok_or_else(|| format!("'{text}' is no number from {least} to {most}"))
}

fn bytes(text: &str) -> Result<u64, String> {
    parse_bytes(text).filter(|bytes| *bytes <= 1 << 60).ok_or_else(|| format!("'{text}' is no size"))
}

/// Seconds, unless it has a unit.
fn time(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let ms = match unit {
        "ms" => 1,
        "s" | "" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    let time = number.parse::<u64>().ok().filter(|_| ms > 0).and_then(|n| n.checked_mul(ms));
    time.filter(|ms| *ms <= 86_400_000)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("'{text}' is no time up to a day"))
}

fn flag(value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("1" | "") => Ok(true),
        Some("0") => Ok(false),
        Some(text) => Err(format!("'{text}' is neither 0 nor 1")),
    }
}

fn distribution(text: &str) -> Result<Option<Pattern>, String> {
    match text.split_once(':').unwrap_or((text, "")) {
        ("random", "") => Ok(None),
        ("zipf", theta) => format!("zipf:{theta}").parse().map(Some),
        _ => Err(format!("'{text}' is neither random nor zipf:THETA")),
    }
}

/// `/dev/nvme0n2` and `... ns=2` are namespace 2.
fn namespace(text: &str) -> Option<u32> {
    let after = |mark: &str| text.rsplit_once(mark).and_then(|(_, rest)| rest.trim().parse().ok());
    let device = text.strip_prefix("/dev/nvme").and_then(|rest| rest.split_once('n')?.1.parse().ok());
    device.or_else(|| after("ns="))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE: &str = "
; a database
[global]
ioengine=libaio
direct=1
bs=8k
runtime=30
time_based
filename=/dev/nvme1n2

[log]
rw=write
bs=64k
rate_iops=100
rate_process=poisson

[pages]
rw=randrw
rwmixread=70
iodepth=32
numjobs=2
random_distribution=zipf:0.9

[check]
stonewall
rw=randread
percentage_random=25
time_based=0
io_size=1m
verify=crc32c
";

    #[test]
    fn jobs_are_what_fio_would_make_of_them() {
        let file = parse(FILE, &Workload::default()).unwrap();
        assert_eq!(file.left_out, ["direct", "ioengine"]);
        let [log, pages, check] = &file.jobs[..] else { panic!("{file:?}") };
        assert_eq!((log.name.as_str(), log.nsid, log.waits), ("log", Some(2), false));
        let thirty = Length::Time(Duration::from_secs(30));
        assert_eq!((log.workload.pattern, log.workload.read_share), (Pattern::Sequential, 0));
        assert_eq!((log.workload.block_bytes, log.workload.length), (64 << 10, thirty));
        assert_eq!(log.workload.rate, Some(Rate { per_second: 100.0, poisson: true }));
        let w = &pages.workload;
        assert_eq!((w.pattern, w.read_share, w.depth, w.jobs), (Pattern::Zipf { theta: 0.9 }, 70, 32, 2));
        assert_eq!((w.block_bytes, w.length), (8 << 10, thirty));
        let w = &check.workload;
        assert!(check.waits && w.verify);
        assert_eq!(w.pattern, Pattern::SemiRandom { step: 0.75, jump: Jump::Anywhere });
        assert_eq!(w.length, Length::Count(128));
    }

    #[test]
    fn what_would_change_the_load_and_is_not_known_is_refused() {
        for (text, said) in [
            ("", "no job"),
            ("[global]\nbs=4k", "no job"),
            ("bs=4k", "line 1: an option stands in a section"),
            ("[a]\nfsync=1", "line 2: 'fsync' is not known"),
            ("[a]\nrw=trim", "'trim' is none of"),
            ("[a]\nbs=4k,8k", "'4k,8k' is no size"),
            ("[a]\nbs", "a value is missing"),
            ("[a]\nruntime=5x", "is no time"),
            ("[a]\niodepth=0", "from 1 to 1024"),
            ("[a]\nrandom_distribution=pareto:0.2", "neither random nor zipf"),
            ("[a]\ntime_based=2", "neither 0 nor 1"),
        ] {
            let error = parse(text, &Workload::default()).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        assert!(parse(&"[a]\n".repeat(66), &Workload::default()).unwrap_err().contains("more than"));
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "(\\[[a-z]{0,3}\\]|[a-z_]{0,12}=?[0-9a-z:,%]{0,9}|\n){0,12}") {
            let _ = parse(&text, &Workload::default());
        }
    }
}
