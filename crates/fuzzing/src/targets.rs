//! The list of fuzz targets. One line per parser or machine; the entry itself lives in the crate that it attacks.

use crate::seeds;

/// One thing that reads foreign bytes. It fails by panicking.
#[derive(Clone, Copy)]
pub struct Target {
    /// Also the name of its folder in `fuzz/corpus` and of its libFuzzer program.
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Inputs are cut to this length: longer ones find nothing more and take longer.
    pub bytes_max: usize,
    /// Its part of all executions, against the other targets: slow ones get fewer.
    pub weight: u64,
    /// Inputs of our own making that begin the corpus.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

const fn t(
    weight: u64,
    name: &'static str,
    bytes_max: usize,
    run: fn(&[u8]),
    seeds: fn() -> Vec<Vec<u8>>,
) -> Target {
    Target { name, run, bytes_max, weight, seeds }
}

#[rustfmt::skip]
pub const TARGETS: &[Target] = &[
    // From the network: whole connections first, then their parts.
    t(8, "nvme_connection",   4096, peristyle_nvme::qpair::fuzz::stream,  peristyle_nvme::qpair::fuzz::seeds),
    t(1, "nvme_pdus",         1024, peristyle_nvme::qpair::fuzz::pdus,    peristyle_nvme::qpair::fuzz::seeds),
    t(8, "nvme_sqe",           512, peristyle_nvme::qpair::fuzz::sqe,     seeds::io_commands),
    t(8, "nvme_host",         4096, peristyle_nvme::host::fuzz::stream,   peristyle_nvme::host::fuzz::seeds),
    t(8, "nvme_connect",      1088, peristyle_nvme::fuzz::connect,        seeds::connects),
    t(2, "nvme_admin",         513, peristyle_nvme::fuzz::admin_commands, seeds::admin_commands),
    t(8, "nvme_io",           4160, peristyle_nvme::fuzz::io_command,     seeds::io_commands_with_data),
    t(8, "nvme_dsm",          4097, peristyle_nvme::fuzz::dsm_ranges,     seeds::dsm_ranges),
    t(8, "nvme_name",          256, peristyle_nvme::fuzz::name,           seeds::names),
    t(1, "nbd_connection",    4096, peristyle_nbd::testing::fuzz,         seeds::nbd_connections),
    t(8, "peer_server",       4096, peristyle_cluster::peer::fuzz::server, seeds::peer_requests),
    t(8, "peer_client",       4096, peristyle_cluster::peer::fuzz::client, seeds::peer_answers),
    t(8, "store_server",      4096, peristyle_control::served::fuzz::server, seeds::store_requests),
    t(8, "store_client",      4096, peristyle_control::served::fuzz::client, seeds::store_answers),
    // From disk and from the control store.
    t(8, "column_label",      4096, peristyle_column::format::fuzz_label,     seeds::labels),
    t(8, "column_page",       4096, peristyle_column::format::fuzz_page,      seeds::pages),
    t(8, "column_row_table",  4096, peristyle_column::format::fuzz_row_table, seeds::row_tables),
    t(8, "shard_header",      4096, peristyle_shard::frame::fuzz_header,      seeds::frame_headers),
    t(8, "shard_root",        8192, peristyle_shard::checkpoint::root::fuzz_root, seeds::roots),
    t(8, "cluster_record",    4096, peristyle_cluster::fuzz_record,           seeds::records),
];

pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|t| t.name == name)
}
