//! Commands that run here: the node itself, and tools for devices that no node has open.

use crate::cli::{DevOptions, DeviceArg, DeviceCommand, NodeOptions, PoolCommand, StoreOptions};
use crate::devcluster;
use crate::failure::{Failure, Kind};
use crate::online::{self, print};
use crate::render::{self, Ready, StatusLine};
use crate::wiring::{self, DevDevices, DevNode, DevPlan, DeviceReport, Observer, Source};
use peristyle_base::GIB;
use peristyle_control::config::Config;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub fn dev(options: DevOptions, admin: Option<PathBuf>) -> Result<(), Failure> {
    if let Some(order) = &options.order {
        return devcluster::order(order);
    }
    if let Some(nodes) = options.nodes {
        return devcluster::run(&options, nodes);
    }
    let json = options.json;
    let plan = plan(options, admin)?;
    let lasting = !matches!(plan.devices, DevDevices::Memory(_));
    wiring::dev(&plan, &mut Terminal { lasting, ..Terminal::new(json) })
}

/// The development store that the options describe; refuses what cannot work before anything is created.
fn plan(options: DevOptions, admin: Option<PathBuf>) -> Result<DevPlan, Failure> {
    let devices = devices(&options)?;
    let count = match &devices {
        DevDevices::Files { count, .. } => *count as usize,
        DevDevices::Paths(paths) => paths.len(),
        DevDevices::Memory(sizes) => sizes.len(),
    };
    let scheme = options.scheme;
    if count <= scheme.m() {
        let m = scheme.m();
        return Err(Failure::usage(format!(
            "{scheme} survives the loss of {m} devices, so it needs {} at least",
            m + 1
        )));
    }
    if !options.cores.is_empty() && options.cores.len() < options.reactors.max(1) as usize {
        return Err(Failure::usage("--cores: one core for each reactor"));
    }
    let names: Vec<_> = options.volumes.iter().map(|v| &v.name).collect();
    if let Some(twin) = twin(&names) {
        return Err(Failure::usage(format!("the volume `{twin}` is given twice")));
    }
    let default_volumes = options.volumes.is_empty();
    let volumes = match default_volumes {
        true => vec![("demo".to_owned(), 4 * GIB)],
        false => options.volumes.into_iter().map(|v| (v.name, v.bytes)).collect(),
    };
    let in_memory = matches!(devices, DevDevices::Memory(_));
    Ok(DevPlan {
        devices,
        scheme,
        volumes,
        default_volumes,
        lba_bytes: options.lba,
        listen: options.listen,
        advertise: options.advertise,
        nbd: options.nbd,
        reactors: match options.reactors {
            0 => options.cores.len() as u32,
            count => count,
        },
        cores: options.cores,
        poll: options.poll.into(),
        admin: admin.unwrap_or_else(|| options.dir.join("admin.sock")),
        // What is in memory is new at each start; a lasting store in the same folder is left alone.
        state_file: options.dir.join(if in_memory { "memory.redb" } else { "state.redb" }),
        dir: options.dir,
    })
}

fn devices(options: &DevOptions) -> Result<DevDevices, Failure> {
    let (mut paths, mut sizes) = (Vec::new(), Vec::new());
    for device in &options.device_list {
        match device {
            DeviceArg::Path(path) => paths.push(path.clone()),
            DeviceArg::Memory(bytes) => sizes.push(*bytes),
        }
    }
    if let Some(twin) = twin(&paths) {
        return Err(Failure::usage(format!("{} is given twice", twin.display())));
    }
    match (paths.is_empty(), sizes.is_empty()) {
        (true, true) => Ok(DevDevices::Files { count: options.devices_alone(), bytes: options.device_size }),
        (false, true) => Ok(DevDevices::Paths(paths)),
        (true, false) => Ok(DevDevices::Memory(sizes)),
        (false, false) => Err(Failure::usage(
            "memory forgets what a path keeps: give devices in memory, or paths, not both",
        )),
    }
}

fn twin<T: PartialEq>(list: &[T]) -> Option<&T> {
    list.iter().enumerate().find(|(i, x)| list[..*i].contains(x)).map(|(_, x)| x)
}

fn read_config(file: &Path) -> Result<Config, Failure> {
    let name = file.display();
    let text = std::fs::read_to_string(file).map_err(|e| Failure::failed(format!("{name}: {e}")))?;
    let config = Config::parse(&text).map_err(|e| Failure::usage(format!("{name}: {e}")))?;
    let secret = config.cluster.as_ref().and_then(|cluster| cluster.token.secret.as_ref());
    let others_read = |metadata: std::fs::Metadata| metadata.mode() & 0o077 != 0;
    if secret.is_some() && std::fs::metadata(file).is_ok_and(others_read) {
        eprintln!("peristyle: {name}: the token's secret is in it, and others than its owner may read it");
    }
    Ok(config)
}

pub fn node(options: NodeOptions, admin: Option<PathBuf>) -> Result<(), Failure> {
    if let Some(order) = options.order {
        return online::node(order, admin);
    }
    let config = read_config(&options.config.expect("clap requires it without a subcommand"))?;
    config.warnings().iter().for_each(|warning| eprintln!("peristyle: warning: {warning}"));
    if options.check {
        return Ok(());
    }
    let development = options.development.map(|device_bytes| DevNode { device_bytes });
    wiring::node(&config, development, &mut Terminal::new(options.json))
}

pub fn or_online_device(command: DeviceCommand, admin: Option<PathBuf>) -> Result<(), Failure> {
    let (reports, json) = match command {
        DeviceCommand::Format { paths, force, json } => (wiring::device_format(&paths, force)?, json),
        DeviceCommand::Inspect { paths, json } => (wiring::device_inspect(&paths)?, json),
        DeviceCommand::Check { paths, json } => (wiring::device_check(&paths)?, json),
        online => return online::device(online, admin),
    };
    print(&if json.json { render::json(&reports) } else { render::device_reports(&reports) });
    verdict(&reports)
}

pub fn or_online_pool(command: PoolCommand, admin: Option<PathBuf>) -> Result<(), Failure> {
    match command {
        online @ (PoolCommand::Show(_)
        | PoolCommand::Balance(_)
        | PoolCommand::Plan(_)
        | PoolCommand::Set { .. }
        | PoolCommand::Scrub) => online::pool(online, admin),
        PoolCommand::Check { store, full, json } => {
            let report = wiring::pool_check(&source(store)?, full)?;
            print(&if json.json { render::json(&report) } else { render::pool_check(&report) });
            match report.problems() {
                0 => Ok(()),
                n => Err(Failure::new(Kind::Damage, format!("{n} problems"))),
            }
        }
        PoolCommand::DumpExtent { extent, shard, store, json } => {
            let dumps = wiring::dump_extent(&source(store)?, extent, shard)?;
            print(&if json.json { render::json(&dumps) } else { render::extents(&dumps) });
            Ok(())
        }
    }
}

fn source(store: StoreOptions) -> Result<Source, Failure> {
    let (state_file, mut devices) = match &store.config {
        None => (wiring::state_file_in(&store.dir), Vec::new()),
        Some(file) => {
            let config = read_config(file)?;
            (config.state_file(), config.devices.iter().map(|d| d.path.clone()).collect())
        }
    };
    if !store.devices.is_empty() {
        devices = store.devices;
    }
    Ok(Source { state_file, devices })
}

fn verdict(reports: &[DeviceReport]) -> Result<(), Failure> {
    match reports.iter().filter(|r| !r.problems.is_empty()).count() {
        0 => Ok(()),
        n => {
            let told = format!("{n} of {} devices have problems", reports.len());
            Err(Failure::new(Kind::Damage, told))
        }
    }
}

/// Prints what a node says while it runs.
struct Terminal {
    json: bool,
    live: bool,
    /// The data outlives the process.
    lasting: bool,
}

impl Terminal {
    fn new(json: bool) -> Terminal {
        Terminal { json, live: !json && std::io::stdout().is_terminal(), lasting: true }
    }
}

impl Observer for Terminal {
    fn ready(&mut self, ready: &Ready) {
        let end = match self.lasting {
            true => "Ctrl-C stops it; the data stays.",
            false => "Ctrl-C stops it; the devices are memory, and the data goes with them.",
        };
        print(&if self.json { ready.json() } else { format!("{}\n{end}\n", ready.text()) });
    }

    fn status(&mut self, line: &StatusLine) {
        // A status line in a log file is noise: it is for terminals.
        if self.live {
            print(&format!("\r\x1b[K{}", line.text()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn plan_of(line: &str) -> Result<DevPlan, Failure> {
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Dev(options) = cli.command else { panic!("not dev") };
        plan(options, cli.admin)
    }

    #[test]
    fn dev_alone_means_six_files_and_a_demo_volume() {
        let p = plan_of("peristyle dev").unwrap();
        assert_eq!(p.devices, DevDevices::Files { count: 6, bytes: 4 * GIB });
        assert_eq!(p.volumes, [("demo".to_owned(), 4 * GIB)]);
        assert!(p.default_volumes);
        assert_eq!(p.admin, PathBuf::from("./peristyle-dev/admin.sock"));
        assert_eq!(p.state_file, PathBuf::from("./peristyle-dev/state.redb"));
    }

    #[test]
    fn what_is_given_takes_the_place_of_the_defaults() {
        let p =
            plan_of("peristyle dev --dir /d --device /a --device /b --scheme 1+1 --volume x=1G --admin /s")
                .unwrap();
        assert_eq!(p.devices, DevDevices::Paths(vec!["/a".into(), "/b".into()]));
        assert!(!p.default_volumes && p.volumes == [("x".to_owned(), GIB)] && p.admin == *"/s");
    }

    #[test]
    fn devices_in_memory_have_a_state_of_their_own() {
        let p = plan_of("peristyle dev --dir /d --device memory:1G --device memory:1G --scheme 1+1").unwrap();
        assert_eq!(p.devices, DevDevices::Memory(vec![GIB, GIB]));
        assert_eq!(p.state_file, PathBuf::from("/d/memory.redb"));
    }

    #[test]
    fn what_cannot_work_is_refused_before_anything_is_created() {
        for (line, word) in [
            ("peristyle dev --devices 2", "needs 3 at least"),
            ("peristyle dev --device /a --device /a --scheme 1+1", "/a is given twice"),
            ("peristyle dev --device /a --device memory:1G --scheme 1+1", "not both"),
            ("peristyle dev --reactors 2 --cores 0", "one core for each"),
            ("peristyle dev --volume a=1G --volume a=2G", "`a` is given twice"),
        ] {
            let failure = plan_of(line).unwrap_err();
            assert!(failure.exit_code() == 2 && failure.to_string().contains(word), "{line}: {failure}");
        }
    }

    #[test]
    fn a_device_with_problems_makes_the_check_fail() {
        let sound = DeviceReport::default();
        let damaged = DeviceReport { problems: vec!["slot 1".into()], ..DeviceReport::default() };
        assert_eq!(verdict(std::slice::from_ref(&sound)), Ok(()));
        let failure = verdict(&[sound, damaged]).unwrap_err();
        assert_eq!((failure.exit_code(), failure.to_string().as_str()), (7, "1 of 2 devices have problems"));
    }
}
