//! `bench amplification`: what a request of a host becomes below, and between nodes, counted on stores of our own, beside floors and
//! minima.

mod cell;
mod store;
mod table;

use super::run::fill;
use super::{machine, raw_size, size64, time};
use crate::failure::Failure;
use crate::render::json;
use cell::Cell;
use clap::Args;
use peristyle_base::Scheme;
use peristyle_bench::series::{Order, Test};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;
use store::Store;

/// Device, network and latency amplification of each scheme, beside the least that a write in place and an appending one cost
///
/// For each scheme a store of its own on six sparse files and one reactor. Each pattern is measured at depth 1, and at the largest depth at
/// which its p99 stays within twice that of depth 1; device requests and bytes are the node's own counts. A device (file) and a TCP echo
/// are measured by themselves in the same minute. With --nodes the store is a cluster of processes on this machine, and what goes
/// between them is counted as well.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Examples:
  peristyle bench amplification --cores 0,1
  peristyle bench amplification --nodes 6 --scheme 4+2 --qd 32
  peristyle bench amplification --scheme 4+2 --bs 4k --runtime 300ms --json")]
pub struct AmplificationOptions {
    #[arg(long, default_value = "1+1,2+2,4+2", value_name = "K+M,...", value_delimiter = ',')]
    pub scheme: Vec<Scheme>,
    #[arg(long, default_value = "4k,64k", value_name = "SIZE,...", value_delimiter = ',', value_parser = raw_size)]
    pub bs: Vec<u32>,
    /// Bytes of the volume, which is written from end to end first
    #[arg(long, default_value = "512MiB", value_name = "SIZE", value_parser = size64)]
    pub data: u64,
    /// Of each figure
    #[arg(long, default_value = "1s", value_name = "TIME", value_parser = time)]
    pub runtime: Duration,
    /// The largest depth that is tried
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub qd_max: u32,
    /// The depth, in place of the one that is looked for
    #[arg(long, conflicts_with = "qd_max", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub qd: Option<u32>,
    /// Bytes side by side in a column of an array that writes in place
    #[arg(long, default_value = "64k", value_name = "SIZE", value_parser = raw_size)]
    pub unit: u32,
    /// Folder for the stores [default: the system's temporary folder]
    #[arg(long, value_name = "PATH")]
    pub dir: Option<PathBuf>,
    /// A cluster of so many nodes with a device each, in place of one node with six devices
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=32))]
    pub nodes: Option<u16>,
    /// Cores of target and generator; a cluster's nodes are not pinned [default: not pinned]
    #[arg(long, value_delimiter = ',', value_name = "TARGET,GENERATOR")]
    pub cores: Vec<usize>,
    #[arg(long)]
    pub json: bool,
}

pub fn command(options: &AmplificationOptions) -> Result<(), Failure> {
    if let Some(nodes) = options.nodes
        && let Some(scheme) = options.scheme.iter().find(|scheme| scheme.width() > usize::from(nodes))
    {
        return Err(Failure::usage(format!("{scheme} needs {} nodes at least", scheme.width())));
    }
    let root = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = root.join(format!("peristyle-amplification-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(Failure::failed)?;
    let cells: Result<Vec<Vec<Cell>>, Failure> =
        options.scheme.iter().map(|scheme| of_scheme(options, *scheme, &dir)).collect();
    let _ = std::fs::remove_dir_all(&dir);
    let cells: Vec<Cell> = cells?.into_iter().flatten().collect();
    if options.json {
        let rows: Vec<Value> = cells.iter().map(|cell| table::row(cell, options.unit)).collect();
        let mut document =
            json!({ "machine": machine::describe(), "unit_bytes": options.unit, "cells": rows });
        options.nodes.into_iter().for_each(|nodes| document["nodes"] = json!(nodes));
        print!("{}", json(&document));
    } else {
        print!("{}", table::text(&cells, options.unit));
    }
    Ok(())
}

fn of_scheme(options: &AmplificationOptions, scheme: Scheme, dir: &Path) -> Result<Vec<Cell>, Failure> {
    let folder = dir.join(format!("store-{scheme}"));
    let store = Store::start(options, scheme, &folder)?;
    fill(&store.place(options)?, options.data, &scheme.to_string())?;
    let mut cells = Vec::new();
    for test in tests(&options.bs) {
        cells.push(Cell::measure(options, &store, scheme, test, dir)?);
    }
    drop(store);
    // What is left goes with the folder above.
    let _ = std::fs::remove_dir_all(&folder);
    Ok(cells)
}

/// Reads first, then writes, each in three orders.
fn tests(sizes: &[u32]) -> Vec<Test> {
    let orders = [Order::Random, Order::SemiRandom, Order::Sequential];
    let of = |write| {
        orders.into_iter().flat_map(move |order| sizes.iter().map(move |&bytes| Test { write, order, bytes }))
    };
    of(false).chain(of(true)).collect()
}
