//! Debian packages that a step of `cargo xtask test` needs beside Rust.

use crate::cmd;
use anyhow::Result;
use std::process::Command;
use std::time::Duration;

/// One program and the Debian package that brings it.
#[derive(Clone, Copy)]
pub struct Needs {
    pub program: &'static str,
    pub package: &'static str,
}

/// The packages of those programs that are not there.
pub fn missing(all: &[Needs]) -> Vec<&'static str> {
    let mut packages: Vec<_> = all.iter().filter(|n| !cmd::have(n.program)).map(|n| n.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// Installs what is missing if this is Debian and we are root; what is still missing afterwards is the answer.
pub fn provide(all: &[Needs]) -> Result<Vec<&'static str>> {
    let wanted = missing(all);
    if wanted.is_empty() || !cmd::have("apt-get") || !cmd::is_root() {
        return Ok(wanted);
    }
    println!("installing: {}", wanted.join(" "));
    let limit = Duration::from_secs(600);
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["-qq", "-o", "Dpkg::Use-Pty=0"]).args(args);
        cmd::run(&mut command, limit)
    };
    // Old package lists are no failure by themselves: the installation says whether they were too old.
    if let Err(error) = apt(&["update"]) {
        println!("{error:#}");
    }
    let mut install = vec!["install", "-y", "--no-install-recommends"];
    install.extend(&wanted);
    if let Err(error) = apt(&install) {
        println!("{error:#}");
    }
    Ok(missing(all))
}
