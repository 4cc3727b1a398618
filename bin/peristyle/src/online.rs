//! Commands that ask a running node.

use crate::cli::{
    DeviceCommand, ExtentCommand, HostCommand, InjectOptions, JsonOption, NodeOrder, PlanOptions,
    PoolCommand, SnapshotCommand, StatsOptions, VolumeCommand,
};
use crate::client::Client;
use crate::failure::{Failure, Kind};
use crate::render;
use peristyle_control::api::{Request, Response};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

type Admin = Option<PathBuf>;

/// Prints; a reader that went away (`| head`) is no failure.
pub fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush());
}

fn call(admin: Admin, request: Request) -> Result<Response, Failure> {
    Client::connect(admin)?.call(&request)
}

pub fn unexpected(response: Response) -> Failure {
    let kind = render::json(&response);
    let start: String = kind.chars().take(60).collect();
    Failure::failed(format!("the node gave an answer to another question: {start}"))
}

pub fn volume(command: VolumeCommand, admin: Admin) -> Result<(), Failure> {
    let (request, json) = match command {
        VolumeCommand::List(json) => (Request::VolumeList, json),
        VolumeCommand::Show { name, json } => (Request::VolumeShow { name }, json),
        VolumeCommand::Create { name, size, lba, json } => {
            (Request::VolumeCreate { name, bytes: size, lba_bytes: lba }, json)
        }
        VolumeCommand::Resize { name, size, shrink, discard_data, json } => {
            (Request::VolumeResize { name, bytes: size, shrink, discard_data }, json)
        }
        VolumeCommand::Clone { snapshot, name, json } => (Request::VolumeClone { snapshot, name }, json),
        VolumeCommand::Flatten { name, json } => (Request::VolumeFlatten { name }, json),
        VolumeCommand::Delete { name, yes } => {
            if !yes {
                confirm(&format!("Delete volume `{name}` and everything on it"), &name)?;
            }
            (Request::VolumeDelete { name }, JsonOption { json: false })
        }
    };
    match call(admin, request)? {
        Response::Volumes { volumes } if json.json => print(&render::json(&volumes)),
        Response::Volumes { volumes } => print(&render::volumes(&volumes)),
        Response::Volume(volume) if json.json => print(&render::json(&volume)),
        Response::Volume(volume) => print(&render::volume(&volume)),
        Response::Done => {}
        other => return Err(unexpected(other)),
    }
    Ok(())
}

pub fn snapshot(command: SnapshotCommand, admin: Admin) -> Result<(), Failure> {
    let (request, json) = match command {
        SnapshotCommand::Create { group, json } => (Request::SnapshotCreate { group }, json),
        SnapshotCommand::List(json) => (Request::SnapshotList, json),
        SnapshotCommand::Show { name, json } => (Request::VolumeShow { name }, json),
        SnapshotCommand::Delete { name } => (Request::SnapshotDelete { name }, JsonOption { json: false }),
        SnapshotCommand::Rollback { name, yes } => {
            if !yes {
                confirm(&format!("Give up what was written since snapshot `{name}`"), &name)?;
            }
            (Request::SnapshotRollback { name }, JsonOption { json: false })
        }
        SnapshotCommand::Export { name, json } => (Request::SnapshotExport { name, exported: true }, json),
        SnapshotCommand::Unexport { name, json } => (Request::SnapshotExport { name, exported: false }, json),
    };
    match call(admin, request)? {
        Response::Volumes { volumes } if json.json => print(&render::json(&volumes)),
        Response::Volumes { volumes } => print(&render::snapshots(&volumes)),
        Response::Volume(volume) if json.json => print(&render::json(&volume)),
        Response::Volume(volume) => print(&render::volume(&volume)),
        Response::Done => {}
        other => return Err(unexpected(other)),
    }
    Ok(())
}

/// Asks on the terminal; without one, `--yes` is needed.
fn confirm(what: &str, name: &str) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("what cannot be undone needs --yes when nobody can be asked"));
    }
    print(&format!("{what}? Type its name: "));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(Failure::failed)?;
    if answer.trim() == name { Ok(()) } else { Err(Failure::failed("nothing was done")) }
}

pub fn status(options: JsonOption, admin: Admin) -> Result<(), Failure> {
    match call(admin, Request::Status)? {
        Response::Status(status) if options.json => print(&render::json(&status)),
        Response::Status(status) => print(&render::status(&status)),
        other => return Err(unexpected(other)),
    }
    Ok(())
}

/// Who is connected, and to which nodes.
pub fn host(command: HostCommand, admin: Admin) -> Result<(), Failure> {
    let HostCommand::Show { nqn, json } = command;
    let mut info = match call(admin, Request::HostShow)? {
        Response::Hosts(info) => info,
        other => return Err(unexpected(other)),
    };
    if let Some(nqn) = nqn {
        info.hosts.retain(|host| host.nqn == nqn);
        if info.hosts.is_empty() {
            return Err(Failure::new(Kind::NotFound, format!("no host {nqn} is connected")));
        }
    }
    print(&if json.json { render::json(&info) } else { render::hosts(&info) });
    Ok(())
}

/// What is done to a node of the cluster.
pub fn node(order: NodeOrder, admin: Admin) -> Result<(), Failure> {
    let request = match order {
        NodeOrder::Drain { node } => Request::NodeDrain { node, draining: true },
        NodeOrder::Keep { node } => Request::NodeDrain { node, draining: false },
        NodeOrder::Remove { node } => Request::NodeRemove { node },
        NodeOrder::Maintain { node, seconds, force } => Request::NodeMaintain { node, seconds, force },
    };
    done(call(admin, request)?)
}

/// Commands for the devices of a running node.
pub fn device(command: DeviceCommand, admin: Admin) -> Result<(), Failure> {
    // The node may run elsewhere in the file system.
    let absolute = |path: PathBuf| -> Result<String, Failure> {
        let path = std::path::absolute(&path).map_err(Failure::failed)?;
        Ok(path.display().to_string())
    };
    let (request, json) = match command {
        DeviceCommand::List(json) => (Request::DeviceList, json.json),
        DeviceCommand::Add { path, domain, format } => {
            (Request::DeviceAdd { path: absolute(path)?, domain, format }, false)
        }
        DeviceCommand::Fail { device, force } => (Request::DeviceFail { device, force }, false),
        DeviceCommand::Remove { device } => (Request::DeviceRemove { device }, false),
        DeviceCommand::Keep { device } => (Request::DeviceKeep { device }, false),
        DeviceCommand::Replace { device, path, format } => {
            (Request::DeviceReplace { device, path: absolute(path)?, format }, false)
        }
        DeviceCommand::Format { .. } | DeviceCommand::Inspect { .. } | DeviceCommand::Check { .. } => {
            unreachable!("these need no node")
        }
    };
    match call(admin, request)? {
        Response::Devices { devices } if json => print(&render::json(&devices)),
        Response::Devices { devices } => print(&render::devices(&devices)),
        Response::Done => {}
        other => return Err(unexpected(other)),
    }
    Ok(())
}

pub fn pool(command: PoolCommand, admin: Admin) -> Result<(), Failure> {
    let (request, json) = match command {
        PoolCommand::Show(json) => (Request::PoolShow, json.json),
        PoolCommand::Balance(json) => (Request::PoolBalance, json.json),
        PoolCommand::Plan(PlanOptions { add_nodes, remove_devices, remove_nodes, json }) => {
            let add = add_nodes.into_iter().map(|sizes| sizes.0).collect();
            (Request::PoolPlan { add, remove_devices, remove_nodes }, json.json)
        }
        PoolCommand::Set { scheme, force } => (Request::PoolSet { scheme: scheme.to_string(), force }, false),
        PoolCommand::Scrub => (Request::PoolScrub, false),
        PoolCommand::Check { .. } | PoolCommand::DumpExtent { .. } => unreachable!("asked of no node"),
    };
    match call(admin, request)? {
        Response::Pool(pool) if json => print(&render::json(&pool)),
        Response::Pool(pool) => print(&render::pool(&pool)),
        Response::Balance(balance) if json => print(&render::json(&balance)),
        Response::Balance(balance) => print(&render::balance(&balance)),
        Response::Plan(plan) if json => print(&render::json(&plan)),
        Response::Plan(plan) => print(&render::plan(&plan)),
        Response::Done => {}
        other => return Err(unexpected(other)),
    }
    Ok(())
}

pub fn extent(command: ExtentCommand, admin: Admin) -> Result<(), Failure> {
    let ExtentCommand::Why { extent, shard, json } = command;
    match call(admin, Request::ExtentWhy { extent, shard })? {
        Response::Extents { extents } if json.json => print(&render::json(&extents)),
        Response::Extents { extents } => print(&render::why(&extents)),
        other => return Err(unexpected(other)),
    }
    Ok(())
}

pub fn stats(options: StatsOptions, admin: Admin) -> Result<(), Failure> {
    let mut client = Client::connect(admin)?;
    loop {
        let stats = match client.call(&Request::Stats)? {
            Response::Stats(stats) => stats,
            other => return Err(unexpected(other)),
        };
        // On a terminal the new figures take the place of the old ones.
        let clear = options.watch.is_some() && !options.json && std::io::stdout().is_terminal();
        let start = if clear { "\x1b[H\x1b[2J" } else { "" };
        let text = if options.json { render::json(&stats) } else { render::stats(&stats) };
        print(&format!("{start}{text}"));
        match options.watch {
            None => return Ok(()),
            Some(seconds) => std::thread::sleep(Duration::from_secs(seconds.into())),
        }
    }
}

pub fn inject(options: InjectOptions, admin: Admin) -> Result<(), Failure> {
    let duration_ms = options.duration.as_millis() as u64;
    let request = Request::Inject { device: options.device, fault: options.fault.into(), duration_ms };
    done(call(admin, request)?)
}

pub fn stop(admin: Admin) -> Result<(), Failure> {
    done(call(admin, Request::Shutdown)?)
}

fn done(response: Response) -> Result<(), Failure> {
    match response {
        Response::Done => Ok(()),
        other => Err(unexpected(other)),
    }
}
