//! The list of fuzz targets. One line per parser or machine; the entry itself lives in the crate that it attacks.

/// One thing that reads foreign bytes. It fails by panicking.
#[derive(Clone, Copy)]
pub struct Target {
    /// Also the name of its folder in `fuzz/corpus` and of its libFuzzer program.
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Inputs are cut to this length: longer ones find nothing more and take longer.
    pub bytes_max: usize,
}

pub const TARGETS: &[Target] =
    &[Target { name: "cluster_record", run: peristyle_cluster::fuzz_record, bytes_max: 4096 }];

pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|t| t.name == name)
}
