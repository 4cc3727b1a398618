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

/// Time of all cores since the system started, in its ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CoreTime {
    all: u64,
    stolen: u64,
}

impl CoreTime {
    /// Zeros where the system does not tell.
    pub fn now() -> CoreTime {
        CoreTime::of(&std::fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    /// user, nice, system, idle, iowait, irq, softirq, steal: proc_stat(5). Time of guests is in the first two.
    fn of(stat: &str) -> CoreTime {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
        let ticks: Vec<u64> = line.split_whitespace().take(8).map_while(|tick| tick.parse().ok()).collect();
        CoreTime { all: ticks.iter().sum(), stolen: ticks.get(7).copied().unwrap_or(0) }
    }

    /// The share of it, since then, in which something could have run here and the hypervisor ran something else.
    pub fn stolen_share_since(self, before: CoreTime) -> f64 {
        let [all, stolen] = [(self.all, before.all), (self.stolen, before.stolen)]
            .map(|(now, then)| now.saturating_sub(then));
        stolen as f64 / all.max(1) as f64
    }
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
    fn stolen_time_is_told_from_the_rest() {
        let before = CoreTime::of("cpu  100 0 50 800 10 0 10 30 7 7\ncpu0 1 1 1 1 1 1 1 1 1 1\n");
        let after = CoreTime::of("cpu  150 0 70 820 10 0 10 40 9 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n");
        assert_eq!((before.all, before.stolen), (1000, 30));
        assert_eq!(after.stolen_share_since(before), 0.1);
        assert_eq!(CoreTime::of("no such line").stolen_share_since(before), 0.0);
        assert!(CoreTime::now().all > 0);
    }

    #[test]
    fn a_machine_has_cores_and_a_kernel() {
        let machine = describe();
        assert!(machine["cores"].as_u64().unwrap() > 0, "{machine}");
        assert!(!machine["kernel"].as_str().unwrap().is_empty(), "{machine}");
        assert_eq!(field("model name\t: A B\nmodel name\t: C", "model name").as_deref(), Some("A B"));
    }
}
