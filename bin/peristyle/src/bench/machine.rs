//! The machine that figures come from, as far as the system tells.

use serde_json::{Value, json};
use std::time::SystemTime;

/// What a figure cannot be compared without.
pub fn describe() -> Value {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let flags = field(&cpu, "flags").unwrap_or_default();
    let kb = field(&memory, "MemTotal").and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    json!({
        "cpu": field(&cpu, "model name"),
        "mhz": field(&cpu, "cpu MHz").and_then(|mhz| mhz.parse::<f64>().ok()),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "virtual": flags.split_whitespace().any(|flag| flag == "hypervisor"),
        "memory_bytes": kb.map(|kb| kb << 10),
        "kernel": kernel.trim(),
        // Of others as well: figures of a machine with much to do are worth less.
        "load_1min": load.split_whitespace().next().and_then(|load| load.parse::<f64>().ok()),
        "version": env!("CARGO_PKG_VERSION"),
        "unix_time": since.map_or(0, |since| since.as_secs()),
    })
}

/// `name : value` of the first line that has it.
fn field(text: &str, name: &str) -> Option<String> {
    let of_line = |line: &str| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    };
    text.lines().find_map(of_line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_cores_and_a_kernel() {
        let machine = describe();
        assert!(machine["cores"].as_u64().unwrap() > 0, "{machine}");
        assert!(!machine["kernel"].as_str().unwrap().is_empty(), "{machine}");
        assert_eq!(field("model name\t: A B\nmodel name\t: C", "model name").as_deref(), Some("A B"));
    }
}
