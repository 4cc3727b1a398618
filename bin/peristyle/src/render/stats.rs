//! `peristyle stats`: a section per part of the node.

use super::table;
use peristyle_control::api::{StageStats, Stats, StatsNode};

const STAGE_HEADER: [&str; 14] = [
    "stage",
    "count",
    "errors",
    "in flight",
    "rate/s",
    "mean",
    "3 s",
    "p50",
    "p95",
    "p99",
    "p99.5",
    "p99.9",
    "max",
    "little",
];

/// All sections, depth first; a section's title is its path in the tree.
pub fn stats(stats: &Stats) -> String {
    let mut out = format!("up {:.1} s, times in microseconds\n", stats.uptime_ms as f64 / 1000.0);
    section(&stats.root, "", &mut out);
    out
}

fn section(node: &StatsNode, above: &str, out: &mut String) {
    let title = if above.is_empty() { node.name.clone() } else { format!("{above} / {}", node.name) };
    if !node.stages.is_empty() || !node.counters.is_empty() {
        *out += &format!("\n{title}\n");
    }
    if !node.stages.is_empty() {
        let right: Vec<usize> = (1..STAGE_HEADER.len()).collect();
        *out += &table(&STAGE_HEADER, &right, node.stages.iter().map(stage_row));
    }
    if !node.counters.is_empty() {
        let rows = node.counters.iter().map(|(name, value)| vec![name.clone(), value.to_string()]);
        *out += &table(&["counter", "value"], &[1], rows);
    }
    node.children.iter().for_each(|child| section(child, &title, out));
}

fn stage_row(s: &StageStats) -> Vec<String> {
    let mut row = vec![s.name.clone(), s.count.to_string(), s.errors.to_string(), s.in_flight.to_string()];
    row.push(format!("{:.0}", s.rate));
    let times = [s.mean_us, s.mean_3s_us, s.p50_us, s.p95_us, s.p99_us, s.p99_5_us, s.p99_9_us, s.max_us];
    row.extend(times.map(microseconds));
    row.push(format!("{:.3}", s.little_error));
    row
}

/// Three digits that count: 3.21, 32.1, 321, 3210.
pub fn microseconds(us: f64) -> String {
    match us {
        us if us.abs() < 9.995 => format!("{us:.2}"),
        us if us.abs() < 99.95 => format!("{us:.1}"),
        us => format!("{us:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_tree_has_its_section() {
        let append = StageStats {
            name: "append".into(),
            count: 12,
            errors: 1,
            rate: 99.7,
            mean_us: 321.4,
            p99_us: 3.214,
            max_us: 4321.0,
            little_error: 0.001,
            ..StageStats::default()
        };
        let device =
            StatsNode { stages: vec![append], ..StatsNode::new("device 0") }.counter("write bytes", 4096);
        let root = StatsNode::new("node").child(StatsNode::new("devices").child(device));
        let text = stats(&Stats { uptime_ms: 1500, root });
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(text.lines().next(), Some("up 1.5 s, times in microseconds"));
        assert_eq!(text.lines().nth(2), Some("node / devices / device 0"));
        assert_eq!(
            lines[4],
            [
                "append", "12", "1", "0", "100", "321", "0.00", "0.00", "0.00", "3.21", "0.00", "0.00",
                "4321", "0.001"
            ]
        );
        assert_eq!(lines[6], ["write", "bytes", "4096"]);
        assert_eq!(lines.len(), 7, "{text}");
    }

    #[test]
    fn times_keep_three_digits() {
        let texts = [0.0, 3.214, 9.996, 32.14, 99.96, 321.4, 32_140.0].map(microseconds);
        assert_eq!(texts, ["0.00", "3.21", "10.0", "32.1", "100", "321", "32140"]);
    }
}
