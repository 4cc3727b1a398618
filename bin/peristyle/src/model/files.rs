//! `model class` and `model scaling`: what is predicted from a file.

use super::{ClassOptions, ScalingOptions};
use crate::failure::Failure;
use crate::render::{json, table};
use peristyle_bench::model::class::{Class, Part, PerRequest, bounds};
use peristyle_bench::model::scaling::Scaling;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::path::Path;

pub const CLASS_HELP: &str = "\
A file, with a 4 KiB write of 4+2 as an example:
  [request]
  user_bytes = 4096
  device_ios = 0.188              # requests to devices, reads and writes
  device_bytes_per_byte = 1.59    # bytes of devices for each byte of the user
  network_bytes_per_byte = 1.5    # of a node's links, in the busier direction; 0: no limit
  core_us = 3.1                   # time of a core, of the kind whose core_speed is 1
  [class]
  nodes = 1
  devices = 6                     # of a node, and each one's figures (`peristyle bench raw`)
  device_iops = 500000
  device_bytes_per_s = 2e9
  network_bytes_per_s = 12.5e9    # of a node
  cores = 4                       # that serve
  core_speed = 1.0
Example:
  peristyle model class class.toml";

pub const SCALING_HELP: &str = "\
A file, with at least four different n:
  what = \"nodes\"
  points = [ { n = 1, throughput = 250e3 }, { n = 2, throughput = 480e3 },
             { n = 4, throughput = 900e3 }, { n = 8, throughput = 1600e3 } ]
Example:
  peristyle model scaling nodes.toml --at 16,32,64";

/// Beyond so many times the largest n that was measured a prediction is a guess.
const FAR: f64 = 4.0;

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct ClassFile {
    request: RequestPart,
    class: ClassPart,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct RequestPart {
    user_bytes: f64,
    device_ios: f64,
    device_bytes_per_byte: f64,
    network_bytes_per_byte: f64,
    core_us: f64,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct ClassPart {
    nodes: f64,
    devices: f64,
    device_iops: f64,
    device_bytes_per_s: f64,
    network_bytes_per_s: f64,
    cores: f64,
    core_speed: f64,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct ScalingFile {
    #[serde(default = "nodes")]
    what: String,
    points: Vec<ScalingPoint>,
}

fn nodes() -> String {
    "nodes".to_owned()
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct ScalingPoint {
    n: f64,
    throughput: f64,
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let bad = |e: &dyn std::fmt::Display| Failure::usage(format!("{}: {e}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| bad(&e))?;
    toml::from_str(&text).map_err(|e| bad(&e))
}

fn of_file(file: &ClassFile) -> (PerRequest, Class) {
    let ClassFile { request: r, class: c } = file;
    let request = PerRequest {
        user_bytes: r.user_bytes,
        device_ios: r.device_ios,
        device_bytes_per_byte: r.device_bytes_per_byte,
        network_bytes_per_byte: r.network_bytes_per_byte,
        core_us: r.core_us,
    };
    let class = Class {
        nodes: c.nodes,
        devices: c.devices,
        device_iops: c.device_iops,
        device_bytes_per_s: c.device_bytes_per_s,
        network_bytes_per_s: c.network_bytes_per_s,
        cores: c.cores,
        core_speed: c.core_speed,
    };
    (request, class)
}

pub fn class(options: &ClassOptions) -> Result<(), Failure> {
    let (request, class) = of_file(&read(&options.file)?);
    let bounds = bounds(&request, &class).map_err(Failure::usage)?;
    let (binds, most) = bounds[0];
    if options.json {
        let list = bounds.iter().map(|(part, per_s)| json!({"part": part.name(), "iops": per_s}));
        let document = json!({
            "iops": most,
            "bytes_per_s": most * request.user_bytes,
            "binds": binds.name(),
            "bounds": list.collect::<Vec<_>>(),
        });
        print!("{}", json(&document));
        return Ok(());
    }
    let lines = bounds.iter().map(|(part, per_s)| {
        let binds = if *part == binds { "binds" } else { "" };
        let used = format!("{:.0}", most / per_s * 100.0);
        vec![part.name().to_owned(), format!("{per_s:.0}"), mbytes(&request, *per_s), used, binds.to_owned()]
    });
    print!("{}", table(&["", "IOPS at most", "MB/s", "in use, %", ""], &[1, 2, 3], lines));
    if binds == Part::Cores {
        println!(
            "note: `core_us` falls with load, as turns get fuller: take it from where the class shall work"
        );
    }
    Ok(())
}

fn mbytes(request: &PerRequest, per_s: f64) -> String {
    format!("{:.0}", per_s * request.user_bytes / 1e6)
}

pub fn scaling(options: &ScalingOptions) -> Result<(), Failure> {
    let file: ScalingFile = read(&options.file)?;
    if let Some(n) = options.at.iter().find(|n| !n.is_finite() || **n < 1.0) {
        return Err(Failure::usage(format!("--at {n}: at least 1")));
    }
    let points: Vec<(f64, f64)> = file.points.iter().map(|p| (p.n, p.throughput)).collect();
    let law = Scaling::fit(&points).map_err(Failure::usage)?;
    if options.json {
        let point = |n: f64, is_measured: bool| json!({"n": n, "throughput": law.throughput(n), "measured": is_measured});
        let measured =
            points.iter().map(|(n, x)| json!({"n": n, "throughput": x, "predicted": law.throughput(*n)}));
        let document = json!({
            "what": file.what,
            "lambda": law.lambda,
            "sigma": law.sigma,
            "kappa": law.kappa,
            "peak": law.peak(),
            "worst_error": law.worst,
            "points": measured.collect::<Vec<_>>(),
            "predicted": options.at.iter().map(|n| point(*n, false)).collect::<Vec<_>>(),
        });
        print!("{}", json(&document));
        return Ok(());
    }
    let line = |n: f64, measured: Option<f64>| {
        let x = law.throughput(n);
        let off = measured.map_or(String::new(), |m| format!("{:+.1}", (x / m - 1.0) * 100.0));
        let measured = measured.map_or(String::new(), |m| format!("{m:.0}"));
        vec![n.to_string(), format!("{x:.0}"), measured, off, format!("{:.2}", x / law.lambda / n)]
    };
    let lines =
        points.iter().map(|(n, x)| line(*n, Some(*x))).chain(options.at.iter().map(|n| line(*n, None)));
    print!(
        "{}",
        table(&[&file.what, "predicted", "measured", "off, %", "of linear"], &[0, 1, 2, 3, 4], lines)
    );
    println!(
        "lambda {:.1}, sigma {:.4} (contention), kappa {:.6} (coherency)",
        law.lambda, law.sigma, law.kappa
    );
    if let Some(peak) = law.peak() {
        println!("most at {peak:.0}");
    }
    if options.at.iter().any(|n| *n > FAR * law.measured_to) {
        println!("note: more than {FAR} times as many as were measured: a guess");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the help shows, without its first line and what follows the file.
    fn sample(help: &str) -> String {
        help.lines()
            .skip(1)
            .take_while(|line| !line.starts_with("Example"))
            .map(|line| format!("{line}\n"))
            .collect()
    }

    #[test]
    fn the_files_in_the_help_are_read() {
        let file: ClassFile = toml::from_str(&sample(CLASS_HELP)).unwrap();
        let (request, class) = of_file(&file);
        assert_eq!(bounds(&request, &class).unwrap()[0].0, Part::Cores);
        let file: ScalingFile = toml::from_str(&sample(SCALING_HELP)).unwrap();
        let points: Vec<(f64, f64)> = file.points.iter().map(|p| (p.n, p.throughput)).collect();
        assert!(Scaling::fit(&points).unwrap().throughput(16.0) > 1.6e6);
        assert!(toml::from_str::<ScalingFile>("points = []\nmore = 1").is_err());
    }
}
