//! Who may import whom. Arrows point down the table; `base` imports nothing of ours.

use super::{File, Finding};
use anyhow::{Context, Result};

/// One crate: what of ours and what of others it may import.
struct Row {
    folder: &'static str,
    package: &'static str,
    ours: &'static [&'static str],
    /// Third-party crates in the code itself.
    others: &'static [&'static str],
}

const fn row(
    folder: &'static str,
    package: &'static str,
    ours: &'static [&'static str],
    others: &'static [&'static str],
) -> Row {
    Row { folder, package, ours, others }
}

/// `*` stands for every crate of ours except `sim`: a program may wire anything, the simulator stands above it.
const ANY_BUT_SIM: &[&str] = &["*"];

#[rustfmt::skip]
const TABLE: &[Row] = &[
    // base, cores
    row("crates/base",    "peristyle-base",    &[],       &["crc-fast"]),
    row("crates/nvme",    "peristyle-nvme",    &["base"], &["zerocopy"]),
    row("crates/nbd",     "peristyle-nbd",     &["base"], &["zerocopy"]),
    row("crates/ec",      "peristyle-ec",      &["base"], &[]),
    row("crates/cluster", "peristyle-cluster", &["base"], &[]),
    // the one crate that knows the operating system
    row("crates/rt",      "peristyle-rt",      &["base"], &["crossbeam-queue", "io-uring", "libc", "rtrb", "rustix"]),
    // parts
    row("crates/column",  "peristyle-column",  &["base", "ec", "rt"], &["zerocopy"]),
    row("crates/shard",   "peristyle-shard",   &["base", "ec", "cluster", "rt"], &["hashbrown", "zerocopy"]),
    // wholes
    row("crates/node",    "peristyle-node",
        &["base", "rt", "nvme", "nbd", "ec", "cluster", "column", "shard"],
        // TLS between nodes, in `src/peer/tls`
        &["rcgen", "ring", "rustls", "rustls-webpki"]),
    row("crates/control", "peristyle-control", &["base", "cluster", "rt"],
        // etcd's gRPC; tokio may stand in `src/etcd/` only: see `stdlib.rs`
        &["http", "prost", "redb", "serde", "serde_json", "thiserror", "tokio", "tokio-stream", "toml", "tonic", "tonic-prost"]),
    // a node that follows the control store: the data plane stays without it, and the store without the data plane
    row("crates/member",  "peristyle-member",
        &["base", "rt", "nvme", "node", "shard", "control"], &[]),
    row("crates/bench",   "peristyle-bench",   &["base", "nvme", "rt"], &[]),
    // proof and programs
    row("crates/sim",     "peristyle-sim",     ANY_BUT_SIM, &["clap"]),
    row("crates/fuzzing", "peristyle-fuzzing", &["base", "nvme", "nbd", "cluster", "column", "shard", "control"],
        &["anyhow", "clap"]),
    row("bin/peristyle",  "peristyle",         ANY_BUT_SIM,
        &["anyhow", "clap", "comfy-table", "hdrhistogram", "indicatif", "libc", "plotters", "ratatui", "serde", "serde_json", "toml"]),
    row("xtask",          "xtask",             &[], &["anyhow", "clap", "png", "serde", "serde_json", "toml"]),
];

/// What tests and benchmarks may use beside that (`rustix` tells a thread's CPU time). Of ours they may use what
/// the crate itself may, and `rt`'s simulated backend lies in `rt`.
const IN_TESTS: &[&str] = &["crc32c", "criterion", "proptest", "rustix"];

pub fn check(files: &[File]) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|f| f.path.ends_with("/Cargo.toml")) {
        let folder = file.path.trim_end_matches("/Cargo.toml");
        if folder.starts_with("fuzz") {
            continue; // outside the workspace: libFuzzer's own world
        }
        let manifest: toml::Table = file.text.parse().with_context(|| file.path.clone())?;
        match TABLE.iter().find(|r| r.folder == folder) {
            Some(row) => check_manifest(&file.path, row, &manifest, &mut findings),
            None => findings.push(Finding::new(&file.path, "this crate is not in the import table of xtask")),
        }
    }
    for row in TABLE {
        if !files.iter().any(|f| f.path == format!("{}/Cargo.toml", row.folder)) {
            findings.push(Finding::new(row.folder, "is in the import table of xtask and does not exist"));
        }
    }
    Ok(findings)
}

fn check_manifest(path: &str, row: &Row, manifest: &toml::Table, findings: &mut Vec<Finding>) {
    let name = manifest.get("package").and_then(|p| p.get("name")).and_then(|n| n.as_str());
    if name != Some(row.package) {
        findings.push(Finding::new(path, format!("the package's name is not {}", row.package)));
    }
    let lints = manifest.get("lints").and_then(|l| l.get("workspace")).and_then(|w| w.as_bool());
    if lints != Some(true) {
        findings.push(Finding::new(path, "[lints] workspace = true is missing"));
    }
    let targets = manifest.get("target").and_then(|t| t.as_table()).into_iter().flat_map(|t| t.values());
    for table in std::iter::once(manifest).chain(targets.filter_map(|t| t.as_table())) {
        for (section, test) in
            [("dependencies", false), ("build-dependencies", false), ("dev-dependencies", true)]
        {
            let list = table.get(section).and_then(|d| d.as_table());
            for (dependency, _) in list.into_iter().flatten() {
                if !allowed(row, dependency, test) {
                    let what = format!("[{section}] {dependency}: {} may not import it", row.package);
                    findings.push(Finding::new(path, what));
                }
            }
        }
    }
}

fn allowed(row: &Row, dependency: &str, test: bool) -> bool {
    match dependency.strip_prefix("peristyle-") {
        Some("sim") => false,
        // The target is tested with our own initiator.
        Some("bench") if test && row.folder == "crates/node" => true,
        Some(ours) => row.ours == ANY_BUT_SIM || row.ours.contains(&ours),
        None => row.others.contains(&dependency) || (test && IN_TESTS.contains(&dependency)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(folder: &str, text: &str) -> File {
        File { path: format!("{folder}/Cargo.toml"), text: text.into() }
    }

    fn of_nvme(dependencies: &str) -> Vec<String> {
        let text = format!("[package]\nname = \"peristyle-nvme\"\n[lints]\nworkspace = true\n{dependencies}");
        let all = check(&[file("crates/nvme", &text)]).unwrap();
        all.iter().map(ToString::to_string).filter(|f| f.starts_with("crates/nvme/")).collect()
    }

    #[test]
    fn the_protocol_crate_may_import_base_and_nothing_that_knows_the_operating_system() {
        assert!(of_nvme("[dependencies]\nperistyle-base.workspace = true\n").is_empty());
        assert_eq!(of_nvme("[dependencies]\nperistyle-rt.workspace = true\n").len(), 1);
        assert_eq!(of_nvme("[dependencies]\nlibc = \"0.2\"\n").len(), 1);
        assert_eq!(of_nvme("[target.'cfg(unix)'.dependencies]\nlibc = \"0.2\"\n").len(), 1);
        assert_eq!(of_nvme("[dev-dependencies]\nproptest.workspace = true\n").len(), 0);
        assert_eq!(of_nvme("[dev-dependencies]\nperistyle-shard.workspace = true\n").len(), 1);
    }

    #[test]
    fn a_crate_outside_the_table_is_a_finding() {
        let all = check(&[file("crates/util", "[package]\nname = \"util\"\n")]).unwrap();
        assert!(all.iter().any(|f| f.place == "crates/util/Cargo.toml"));
    }
}
