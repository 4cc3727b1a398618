//! `cargo xtask e2e`: the daemon as its users see it, through clients that are not ours.

mod daemon;
mod dev_cluster;
mod files;
mod kernel_cluster;
mod kernel_forward;
mod kernel_host;
mod nbd_fs;
mod nbd_raw;
mod repair;
mod report;
pub mod scratch;
mod space;

use crate::tools;
use anyhow::Result;
use clap::Subcommand;

#[derive(Subcommand)]
pub enum Test {
    /// Debian's kernel under QEMU as NVMe/TCP host: ext4, fio, identifiers, a daemon killed between.
    KernelHost(Size),
    /// The same host with native multipath to all nodes of a cluster, which are killed two at a time. Needs etcd.
    KernelCluster(Size),
    /// The same host reaches one node of a cluster, which does not own its volume. Needs etcd.
    KernelForward(Size),
    /// The same host gives space back: `fstrim`, `mkfs.ext4 -E discard`, and `peristyle pool show` tells.
    KernelSpace(Size),
    /// ext4 and xfs of this machine's kernel over NBD, the daemon killed in the middle. Needs root.
    NbdFs(Size),
    /// nbdcopy, qemu-img and fio's own NBD engine.
    NbdRaw(Size),
    /// Devices are lost and columns damaged under fio: rebuild, balance, scrub.
    Repair(Size),
    /// The report in Chromium, light and dark: text and charts are there.
    Report,
}

#[derive(clap::Args, Clone, Copy)]
pub struct Size {
    /// The size that fits into CI.
    #[arg(long)]
    pub short: bool,
}

pub fn run(test: &Test) -> Result<()> {
    tools::build_daemon()?;
    match test {
        Test::KernelHost(size) => kernel_host::run(*size),
        Test::KernelCluster(size) => kernel_cluster::run(*size),
        Test::KernelForward(size) => kernel_forward::run(*size),
        Test::KernelSpace(size) => space::run(*size),
        Test::NbdFs(size) => nbd_fs::run(*size),
        Test::NbdRaw(size) => nbd_raw::run(*size),
        Test::Repair(size) => repair::run(*size),
        Test::Report => report::run(),
    }
}
