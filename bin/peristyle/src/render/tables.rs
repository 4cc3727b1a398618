//! Tables of volumes, devices and a node's status.

use super::table;
use crate::wiring::DeviceReport;
use peristyle_base::BLOCK_BYTES;
use peristyle_base::units::format_bytes;
use peristyle_control::api::{
    BalanceInfo, CollectionInfo, DeviceBalance, DeviceInfo, PlanInfo, PlannedUse, PoolInfo, RepairInfo,
    Status, VolumeInfo,
};
use peristyle_control::desired::VolumeState;
use std::cmp::Ordering;

fn state(state: VolumeState) -> String {
    match state {
        VolumeState::Active => "active".into(),
        VolumeState::Kept => "kept".into(),
        VolumeState::Deleting => "deleting".into(),
    }
}

pub fn volumes(list: &[VolumeInfo]) -> String {
    if list.is_empty() {
        return "no volumes; create one: peristyle volume create NAME SIZE\n".into();
    }
    let row = |v: &VolumeInfo| {
        vec![
            v.name.clone(),
            v.nsid.to_string(),
            format_bytes(v.bytes),
            v.lba_bytes.to_string(),
            state(v.state),
            v.uuid.clone(),
        ]
    };
    table(&["name", "nsid", "size", "lba", "state", "uuid"], &[1, 2, 3], list.iter().map(row))
}

pub fn snapshots(list: &[VolumeInfo]) -> String {
    if list.is_empty() {
        return "no snapshots; create one: peristyle snapshot create VOLUME=SNAPSHOT\n".into();
    }
    let row = |v: &VolumeInfo| {
        vec![
            v.name.clone(),
            v.snapshot_of.clone().unwrap_or_default(),
            format_bytes(v.bytes),
            state(v.state),
            v.usage.map_or(String::new(), |u| format_bytes(u.own_bytes)),
        ]
    };
    table(&["name", "volume", "size", "state", "own"], &[2, 4], list.iter().map(row))
}

pub fn volume(v: &VolumeInfo) -> String {
    let mut lines = vec![
        ("name", v.name.clone()),
        ("namespace id", v.nsid.to_string()),
        ("size", format!("{} ({} bytes)", format_bytes(v.bytes), v.bytes)),
        ("logical block", format!("{} bytes", v.lba_bytes)),
        ("state", state(v.state)),
        ("uuid", v.uuid.clone()),
        ("nguid", v.nguid.clone()),
        ("shard", v.shard.to_string()),
    ];
    lines.extend(v.snapshot_of.iter().map(|of| ("snapshot of", of.clone())));
    if let Some(u) = &v.usage {
        lines.extend([
            ("mapped", format_bytes(u.mapped_bytes)),
            ("unique", format_bytes(u.unique_bytes)),
            ("shared", format_bytes(u.shared_bytes)),
            ("own layer", format!("{}, the top of {}", format_bytes(u.own_bytes), u.layers)),
        ]);
    }
    pairs(&lines)
}

pub fn devices(list: &[DeviceInfo]) -> String {
    let row = |(i, d): (usize, &DeviceInfo)| {
        let share = 100.0 * d.slots_used as f64 / d.slots_total.max(1) as f64;
        let (size, domain) = (format_bytes(d.bytes), d.domain.to_string());
        let cache = d.write_cache.clone();
        vec![
            i.to_string(),
            d.state.clone(),
            format!("{share:.1} %"),
            size,
            domain,
            cache,
            d.path.clone(),
            d.uuid.clone(),
        ]
    };
    let header = ["#", "state", "used", "size", "domain", "write cache", "path", "uuid"];
    table(&header, &[0, 2, 3, 4], list.iter().enumerate().map(row))
}

pub fn status(s: &Status) -> String {
    let protection = match s.protection.as_str() {
        "full" => s.scheme.clone(),
        "fewer-data" => format!("{} now, of {}: as safe, for more space", s.effective_scheme, s.scheme),
        _ => format!("{} now, of {}: LESS PROTECTION THAN ASKED FOR", s.effective_scheme, s.scheme),
    };
    let share = 100.0 * s.used_bytes as f64 / s.capacity_bytes.max(1) as f64;
    let used = format!("{} of {} ({share:.1} %)", format_bytes(s.used_bytes), format_bytes(s.capacity_bytes));
    let nbd = if s.nbd.is_empty() { "off".into() } else { s.nbd.join(", ") };
    let serving = s.shards.iter().filter(|shard| shard.state == "serving").count();
    let mut out = pairs(&[
        ("version", format!("{} (pid {}), up {} s", s.version, s.pid, s.uptime_ms / 1000)),
        ("subsystem", s.nqn.clone()),
        ("cluster", format!("{}, generation {}", s.cluster, s.generation)),
        ("scheme", protection),
        ("devices", format!("{} of {} healthy", s.devices_healthy, s.devices)),
        ("used", used),
        ("nvme/tcp", format!("{}, {} connections", s.listen.join(", "), s.connections)),
        ("nbd", nbd),
        ("shards", format!("{serving} of {} serving, on {} reactors", s.shards.len(), s.reactors)),
    ]);
    for shard in s.shards.iter().filter(|shard| shard.state != "serving") {
        out += &format!("shard {} (epoch {}): {}\n", shard.id, shard.epoch, shard.state);
    }
    out
}

pub fn pool(p: &PoolInfo) -> String {
    let share = 100.0 * p.used_bytes as f64 / p.capacity_bytes.max(1) as f64;
    let (used, capacity) = (format_bytes(p.used_bytes), format_bytes(p.capacity_bytes));
    let blocks = |n: u64| format!("{n} blocks ({})", format_bytes(n * BLOCK_BYTES as u64));
    let extents: Vec<String> =
        p.extents.iter().map(|e| format!("{} {} {}", e.extents, e.phase, e.kind)).collect();
    let extents = if extents.is_empty() { "none".into() } else { extents.join(", ") };
    let mut lines = vec![
        ("pool", format!("{}, {}", p.name, p.scheme)),
        ("used", format!("{used} of {capacity} ({share:.1} %)")),
        ("slots", format!("{} of {} in use, {} free", p.slots_used, p.slots_total, p.slots_free)),
        ("live", blocks(p.live_blocks)),
        ("map", blocks(p.map_blocks)),
        ("dead", blocks(p.dead_blocks)),
        ("extents", extents),
        ("to be freed", format!("{} extents; {} were since the start", p.waiting_extents, p.freed_extents)),
        ("discarded", format!("{} since the start", format_bytes(p.discarded_bytes))),
    ];
    if p.extents_to_convert > 0 {
        lines.push(("to be converted", format!("{} extents of another scheme", p.extents_to_convert)));
    }
    lines.extend(collection(&p.collection));
    lines.extend(repair(&p.repair));
    pairs(&lines)
}

fn collection(c: &CollectionInfo) -> [(&'static str, String); 4] {
    let mut now = vec![c.state.clone()];
    if c.pace > 0.0 {
        now.push(format!("{:.1} blocks for each that users write", c.pace));
    }
    if c.moved_bytes_s > 0 {
        now.push(format!("{}/s", format_bytes(c.moved_bytes_s)));
    }
    let share = c.live_share.map_or(String::new(), |s| format!(", {:.0} % alive on average", 100.0 * s));
    let collected =
        format!("{} extents{share}; {} moved since the start", c.extents, format_bytes(c.moved_bytes));
    let room = format!(
        "{} with parity; collection begins below {}",
        format_bytes(c.room_bytes),
        format_bytes(c.begins_below_bytes)
    );
    let written = match c.write_amplification {
        None => "nothing by hosts since the start".into(),
        Some(ratio) => format!(
            "{} by hosts, {ratio:.2} device bytes for each byte since the start, {:.2} of them for collection",
            format_bytes(c.user_bytes),
            c.collection_bytes as f64 / c.user_bytes as f64
        ),
    };
    [("room", room), ("collection", now.join(", ")), ("collected", collected), ("written", written)]
}

fn repair(r: &RepairInfo) -> [(&'static str, String); 3] {
    let mut to_do = Vec::new();
    for (count, what) in [
        (r.lost_columns, "to rebuild"),
        (r.draining_columns, "to move off devices that leave"),
        (r.crowded_columns, "beside another one of their extent in its failure domain"),
        (r.away_columns, "on devices that may come back"),
    ] {
        if count > 0 {
            to_do.push(format!("{count} columns {what}"));
        }
    }
    if r.scrub_left > 0 {
        to_do.push(format!("{} extents to scrub", r.scrub_left));
    }
    if r.bytes_s > 0 {
        to_do.push(format!("{}/s", format_bytes(r.bytes_s)));
    }
    if let Some(seconds) = r.remaining_s {
        to_do.push(format!("about {seconds} s left"));
    }
    let to_do = if to_do.is_empty() { "nothing to do".into() } else { to_do.join(", ") };
    let done = format!(
        "{} columns rebuilt, {} moved, {} attempts failed since the start",
        r.remade_columns, r.moved_columns, r.failed_remakes
    );
    let hours = r.unverified_s as f64 / 3600.0;
    let scrub = format!(
        "{} columns read, {} rows damaged in {} columns; all read within the last {hours:.1} h",
        r.scrubbed_columns, r.damaged_rows, r.damaged_columns
    );
    [("repair", to_do), ("repaired", done), ("scrub", scrub)]
}

pub fn balance(b: &BalanceInfo) -> String {
    let row = |d: &DeviceBalance| {
        let percent =
            |slots: u32| format!("{:.1} %", 100.0 * f64::from(slots) / f64::from(d.slots_total.max(1)));
        vec![
            d.path.clone(),
            d.state.clone(),
            d.slots_total.to_string(),
            d.slots_used.to_string(),
            percent(d.slots_used),
            d.slots_share.to_string(),
            format!("{:+.1} %", d.deviation_percent),
        ]
    };
    let header = ["path", "state", "slots", "used", "full", "share", "off"];
    let mut out = table(&header, &[2, 3, 4, 5, 6], b.devices.iter().map(row));
    out += &format!("\nno device is more than {:.1} % of its capacity off its share\n", b.deviation_percent);
    out += &pairs(&repair(&b.repair));
    out
}

/// What would move, for people.
pub fn plan(p: &PlanInfo) -> String {
    let change = |d: &PlannedUse| match d.planned_bytes.cmp(&d.used_bytes) {
        Ordering::Greater => format!("+{}", format_bytes(d.planned_bytes - d.used_bytes)),
        Ordering::Less => format!("-{}", format_bytes(d.used_bytes - d.planned_bytes)),
        Ordering::Equal => String::new(),
    };
    let row = |d: &PlannedUse| {
        let node = d.node.map(|node| node.to_string()).unwrap_or_default();
        let sizes = [d.bytes, d.used_bytes, d.planned_bytes].map(format_bytes);
        [vec![d.path.clone(), node, d.fate.clone()], sizes.to_vec(), vec![change(d)]].concat()
    };
    let header = ["device", "node", "", "size", "now", "then", "change"];
    let mut out = table(&header, &[3, 4, 5, 6], p.devices.iter().map(row));
    let capacity =
        format!("{} now, {} then", format_bytes(p.capacity_bytes), format_bytes(p.planned_capacity_bytes));
    let time = format!("{} s at least, as the background class allows on every node", p.seconds_at_least);
    out.push('\n');
    out += &pairs(&[
        ("would move", format_bytes(p.moved_bytes)),
        ("takes", time),
        ("capacity", capacity),
        ("domains", format!("{} failure domains for {}", p.domains, p.scheme)),
    ]);
    let needed = p.scheme.split('+').filter_map(|n| n.parse::<usize>().ok()).sum();
    if p.left_over_bytes > 0 {
        out += &format!("\nwarning: {} do not fit\n", format_bytes(p.left_over_bytes));
    }
    if p.domains < needed {
        out += &format!(
            "\nwarning: {} needs {needed} failure domains; with fewer, new data gets a smaller k\n",
            p.scheme
        );
    }
    out
}

/// Offline reports of devices, one after the other.
pub fn device_reports(reports: &[DeviceReport]) -> String {
    let mut out = String::new();
    for r in reports {
        if !out.is_empty() {
            out.push('\n');
        }
        out += &pairs(&[
            ("device", r.path.display().to_string()),
            ("uuid", r.uuid.clone()),
            ("cluster", r.cluster.clone()),
            ("format", r.format.to_string()),
            ("size", format!("{} ({} bytes)", format_bytes(r.bytes), r.bytes)),
            (
                "slots",
                format!(
                    "{}: {} free, {} open, {} sealed, {} filling",
                    r.slots_total, r.slots_free, r.slots_open, r.slots_sealed, r.slots_filling
                ),
            ),
            ("problems", if r.problems.is_empty() { "none".into() } else { r.problems.len().to_string() }),
        ]);
        r.problems.iter().for_each(|problem| out += &format!("  {problem}\n"));
        r.notes.iter().for_each(|note| out += &format!("  note: {note}; the next start puts that right\n"));
    }
    out
}

fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    pairs.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use peristyle_control::api::{ExtentCount, ShardInfo};

    fn demo() -> VolumeInfo {
        VolumeInfo {
            name: "demo".into(),
            nsid: 1,
            uuid: "0102".into(),
            nguid: "0304".into(),
            bytes: 4 << 30,
            lba_bytes: 4096,
            shard: 2,
            state: VolumeState::Active,
            snapshot_of: None,
            usage: None,
        }
    }

    fn words(text: &str) -> Vec<Vec<&str>> {
        text.lines().map(|line| line.split_whitespace().collect()).collect()
    }

    #[test]
    fn volumes_are_a_table_and_none_says_what_to_do() {
        let text = volumes(&[demo()]);
        assert_eq!(words(&text)[1], ["demo", "1", "4.0", "GiB", "4096", "active", "0102"], "{text}");
        assert!(volumes(&[]).contains("volume create"));
        assert!(
            volume(&demo()).contains("size           4.0 GiB (4294967296 bytes)\n"),
            "{}",
            volume(&demo())
        );
    }

    #[test]
    fn devices_show_their_number_for_inject() {
        let device = |path: &str, state: &str| DeviceInfo {
            node: None,
            uuid: "u".into(),
            path: path.into(),
            domain: 0,
            state: state.into(),
            slots_total: 1000,
            slots_used: 125,
            bytes: 4 << 30,
            write_cache: "protected".into(),
        };
        let text = devices(&[device("/a", "healthy"), device("/b", "failed")]);
        assert_eq!(
            words(&text)[2],
            ["1", "failed", "12.5", "%", "4.0", "GiB", "0", "protected", "/b", "u"],
            "{text}"
        );
    }

    #[test]
    fn a_status_with_less_protection_shouts_and_names_shards_that_wait() {
        let mut s = Status {
            version: "0.1.0".into(),
            pid: 1,
            uptime_ms: 2500,
            nqn: "nqn".into(),
            cluster: "c".into(),
            generation: 3,
            scheme: "4+2".into(),
            effective_scheme: "4+2".into(),
            protection: "full".into(),
            listen: vec!["127.0.0.1:4420".into()],
            nbd: vec![],
            reactors: 2,
            shards: vec![ShardInfo { id: 0, reactor: 0, epoch: 4, state: "serving".into() }],
            connections: 9,
            devices: 6,
            devices_healthy: 6,
            capacity_bytes: 100,
            used_bytes: 50,
        };
        let text = status(&s);
        assert!(
            text.contains("scheme     4+2\n") && text.contains("1 of 1 serving") && text.contains("50.0 %"),
            "{text}"
        );
        (s.effective_scheme, s.protection) = ("1+1".into(), "reduced".into());
        s.shards[0].state = "waits for device u".into();
        let text = status(&s);
        assert!(text.contains("1+1 now, of 4+2: LESS PROTECTION"), "{text}");
        assert!(text.contains("shard 0 (epoch 4): waits for device u\n"), "{text}");
    }

    #[test]
    fn a_pool_tells_what_is_live_and_what_comes_back() {
        let count = |phase: &str, kind: &str, extents| ExtentCount {
            phase: phase.into(),
            kind: kind.into(),
            extents,
        };
        let text = pool(&PoolInfo {
            name: "main".into(),
            scheme: "4+2".into(),
            slots_total: 1000,
            slots_used: 250,
            slots_free: 750,
            capacity_bytes: 1000 << 21,
            used_bytes: 250 << 21,
            live_blocks: 256,
            extents: vec![count("open", "narrow", 1), count("sealed", "wide", 41)],
            waiting_extents: 3,
            collection: CollectionInfo {
                state: "running".into(),
                pace: 0.25,
                moved_bytes: 3 << 30,
                moved_bytes_s: 20 << 20,
                extents: 900,
                live_share: Some(0.4),
                user_bytes: 4 << 30,
                device_bytes: 8 << 30,
                collection_bytes: 3 << 29,
                write_amplification: Some(2.0),
                room_bytes: 120 << 20,
                begins_below_bytes: 132 << 20,
                ..CollectionInfo::default()
            },
            ..PoolInfo::default()
        });
        for line in [
            "pool         main, 4+2",
            "used         500.0 MiB of 2.0 GiB (25.0 %)",
            "slots        250 of 1000 in use, 750 free",
            "live         256 blocks (1.0 MiB)",
            "extents      1 open narrow, 41 sealed wide",
            "to be freed  3 extents; 0 were since the start",
            "room         120.0 MiB with parity; collection begins below 132.0 MiB",
            "collection   running, 0.2 blocks for each that users write, 20.0 MiB/s",
            "collected    900 extents, 40 % alive on average; 3.0 GiB moved since the start",
            "written      4.0 GiB by hosts, 2.00 device bytes for each byte since the start, 0.38 of them for collection",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}: {text}");
        }
    }

    #[test]
    fn a_devices_problems_are_listed() {
        let report = DeviceReport {
            path: "/dev/a".into(),
            slots_total: 9,
            slots_free: 8,
            slots_sealed: 1,
            problems: vec!["slot 3: checksum of row 7".into()],
            ..DeviceReport::default()
        };
        let text = device_reports(&[report.clone(), DeviceReport { problems: vec![], ..report }]);
        assert!(
            text.contains("problems  1\n  slot 3: checksum of row 7\n") && text.contains("problems  none\n"),
            "{text}"
        );
    }
}
