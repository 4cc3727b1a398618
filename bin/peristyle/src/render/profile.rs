//! `peristyle profile`: a section for each path, its stages in order, its legs side by side.

use super::stats::microseconds;
use super::table;
use crate::profile::{PathFigures, Profile, Row};

const STAGES: [&str; 16] = [
    "stage",
    "rate/s",
    "in flight",
    "queue",
    "mean",
    "3 s",
    "p50",
    "p95",
    "p99",
    "p99.9",
    "max",
    "per cmd",
    "share",
    "to end",
    "variance",
    "little",
];
const LEGS: [&str; 11] =
    ["leg", "part", "rate/s", "in flight", "mean", "3 s", "p50", "p95", "p99", "p99.9", "max"];

pub fn profile(profile: &Profile) -> String {
    let over = if profile.since_start { "since the start" } else { "between two looks" };
    let mut out = format!("{:.1} s {over}, times in microseconds\n", profile.interval_s);
    if !profile.counted {
        out += "This node was built to count nothing (feature stages-off).\n";
    }
    profile.paths.iter().for_each(|p| path(p, &mut out));
    let broken = profile.broken_laws();
    out += &match broken.is_empty() {
        true => "\nLittle's law (in flight = rate x latency) holds in every stage and from end to end.\n"
            .to_owned(),
        false => format!("\nLittle's law is OFF, these count wrong: {}\n", broken.join(", ")),
    };
    out
}

fn path(p: &PathFigures, out: &mut String) {
    *out += &format!("\n{}: {:.0}/s, {:.1} MB/s\n", p.path, p.total.rate, p.bytes_per_s / 1e6);
    if p.total.count == 0 {
        return *out += "nothing went this way\n";
    }
    let between = [microseconds(p.between_us), percent(p.between_us / p.total.mean_us)];
    let mut gap = vec![String::new(); STAGES.len()];
    gap[0] = "between stages".into();
    gap[11..13].clone_from_slice(&between);
    gap[14] = percent(1.0 - p.variance_sum);
    let rows = p.stages.iter().map(stage_row).chain([gap, total_row(&p.total)]);
    *out += &table(&STAGES, &(1..STAGES.len()).collect::<Vec<_>>(), rows);
    if let Some(most) = &p.variance_most {
        *out += &format!(
            "Most of the variance: {most}. Stages are not independent: the {} of `between stages` are covariance and the time between.\n",
            percent(1.0 - p.variance_sum)
        );
    }
    *out += "\n";
    let slowest = leg_row("slowest of each command", &p.slowest.stage, &p.slowest);
    let inside = p.inside.iter().filter(|row| row.count > 0).map(|row| leg_row("all", &row.stage, row));
    let devices = p.devices.iter().flat_map(|d| {
        [leg_row(&d.device, &d.queue.stage, &d.queue), leg_row("", &d.service.stage, &d.service)]
    });
    let remote = p.remote.iter().filter(|d| d.leg.count > 0);
    let remote = remote.map(|d| leg_row(&d.device, &d.leg.stage, &d.leg));
    *out += &table(
        &LEGS,
        &(2..LEGS.len()).collect::<Vec<_>>(),
        [slowest].into_iter().chain(inside).chain(devices).chain(remote),
    );
}

fn stage_row(s: &Row) -> Vec<String> {
    let mut row = vec![s.stage.clone(), format!("{:.0}", s.rate), format!("{:.2}", s.in_flight)];
    row.push(s.queue.map_or(String::new(), |queue| format!("{queue:.2}")));
    row.extend(times(s));
    row.extend([microseconds(s.per_command_us), percent(s.share), microseconds(s.remaining_us)]);
    row.push(percent(s.variance_share));
    let mark = if s.little_holds { "" } else { " !" };
    row.push(format!("{:.3}{mark}", s.little_error));
    row
}

fn total_row(s: &Row) -> Vec<String> {
    let mut row = stage_row(s);
    row[0] = "end to end".into();
    row
}

fn leg_row(leg: &str, part: &str, s: &Row) -> Vec<String> {
    let mut row =
        vec![leg.to_owned(), part.to_owned(), format!("{:.0}", s.rate), format!("{:.2}", s.in_flight)];
    row.extend(times(s));
    row
}

fn times(s: &Row) -> [String; 7] {
    [s.mean_us, s.mean_3s_us, s.p50_us, s.p95_us, s.p99_us, s.p99_9_us, s.max_us].map(microseconds)
}

pub fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}
