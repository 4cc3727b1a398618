//! Where commands spend their time: what `profile --json` says.

use super::charts;
use super::page::Page;
use super::sections::{items, name, number};
use serde_json::Value;

pub fn path(page: &mut Page, profile: &Value, path: &Value) {
    let total = &path["total"];
    page.heading(format!("Stages of a {}", name(path, "path")));
    if number(total, "count") == 0.0 {
        return page.text("Nothing went this way.");
    }
    page.text(format!(
        "{} a second for {:.0} s, {:.1} us each from one end to the other. A command passes these stages one after the other; each has what \
         it adds to the mean of the whole. Variance is what makes some commands slow and others not.",
        charts::short(number(total, "rate")),
        number(profile, "interval_s"),
        number(total, "mean_us"),
    ));
    if let Some(svg) = charts::waterfall(&pieces(path), "microseconds of the mean") {
        page.chart(svg, format!("The way of a {}, stage by stage", name(path, "path")));
    }
    let stages = items(&path["stages"]).map(|row| stage(name(row, "stage"), row));
    page.table(&STAGES, stages.chain([stage("end to end".into(), total)]).collect());
    let broken = items(&path["stages"]).chain([total]).filter(|row| row["little_holds"] == false);
    let broken: Vec<String> = broken.map(|row| name(row, "stage")).collect();
    page.text(match broken.is_empty() {
        true => "As many are in each stage as arrive there times how long they stay (Little's law), so none is counted wrong.".into(),
        false => format!("These count wrong, by Little's law: {}.", broken.join(", ")),
    });
    legs(page, path);
}

/// Name, beginning and length of each stage, of the mean of all commands.
fn pieces(path: &Value) -> Vec<(String, f64, f64)> {
    let mut at = 0.0;
    let between = ("between stages".to_owned(), number(path, "between_us").max(0.0));
    let stages = items(&path["stages"]).map(|row| (name(row, "stage"), number(row, "per_command_us")));
    let all = stages.chain([between]).filter(|(_, us)| *us > 0.0);
    all.map(|(stage, us)| {
        let from = at;
        at += us;
        (stage, from, us)
    })
    .collect()
}

const STAGES: [&str; 10] = [
    "stage",
    "rate",
    "in flight",
    "mean, us",
    "p50",
    "p99",
    "p99.9",
    "share of the mean",
    "to the end, us",
    "of the variance",
];

fn stage(what: String, row: &Value) -> Vec<String> {
    let mut cells =
        vec![what, charts::short(number(row, "rate")), format!("{:.2}", number(row, "in_flight"))];
    cells.extend(["mean_us", "p50_us", "p99_us", "p99.9_us"].map(|key| format!("{:.1}", number(row, key))));
    cells.push(format!("{:.1} %", number(row, "share") * 100.0));
    cells.push(format!("{:.1}", number(row, "remaining_us")));
    cells.push(format!("{:.1} %", number(row, "variance_share") * 100.0));
    cells
}

/// The stage of the columns, taken apart: devices side by side, and the slowest of each command.
fn legs(page: &mut Page, path: &Value) {
    let leg = |of: &str, part: String, row: &Value| {
        let mut cells = vec![of.to_owned(), part, charts::short(number(row, "rate"))];
        cells.extend(
            ["mean_us", "p50_us", "p99_us", "p99.9_us", "max_us"]
                .map(|key| format!("{:.1}", number(row, key))),
        );
        cells
    };
    let slowest = &path["slowest"];
    let mut rows = vec![leg("slowest of each command", name(slowest, "stage"), slowest)];
    for device in items(&path["devices"]) {
        let of = name(device, "device");
        let parts =
            [&device["queue"], &device["service"]].into_iter().filter(|row| number(row, "count") > 0.0);
        rows.extend(parts.map(|row| leg(&of, name(row, "stage"), row)));
    }
    let remote = items(&path["remote"]).filter(|device| number(&device["leg"], "count") > 0.0);
    let remote: Vec<_> = remote
        .map(|device| leg(&name(device, "device"), name(&device["leg"], "stage"), &device["leg"]))
        .collect();
    page.text(
        "A command's columns are on several devices at once; it goes on when the slowest has answered. Queue: until the device is given \
         the request; service: until it has answered.",
    );
    if !remote.is_empty() {
        page.text(
            "Leg: a device of another node, from being asked to being answered, so with the network and the other node in it. What the \
             device itself takes there is in that node's profile.",
        );
    }
    rows.extend(remote);
    page.table(&["leg", "part", "rate", "mean, us", "p50", "p99", "p99.9", "max"], rows);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn stages_follow_each_other_and_legs_stand_side_by_side() {
        let row = |stage: &str, us: f64| json!({"stage": stage, "count": 9, "rate": 1e4, "mean_us": us, "per_command_us": us, "little_holds": stage != "write.encode"});
        let path = json!({
            "path": "write", "total": row("write.total", 30.0), "between_us": 4.0,
            "stages": [row("receive", 6.0), row("write.encode", 0.0), row("write.columns", 20.0)],
            "slowest": row("write.columns", 20.0),
            "devices": [{"device": "d0", "queue": row("append.queue", 1.0), "service": row("append.service", 18.0)}],
            "remote": [{"device": "node 2 d1", "leg": row("append.leg", 19.0)}, {"device": "node 3 d2", "leg": {"count": 0}}],
        });
        let wanted = [("receive", 0.0, 6.0), ("write.columns", 6.0, 20.0), ("between stages", 26.0, 4.0)];
        assert_eq!(pieces(&path), wanted.map(|(name, from, us)| (name.to_owned(), from, us)));
        let mut page = Page::new("t");
        self::path(&mut page, &json!({"interval_s": 2.0}), &path);
        let text = page.markdown();
        for said in [
            "| d0 | append.service |",
            "| node 2 d1 | append.leg |",
            "so with the network",
            "by Little's law: write.encode",
            "| end to end |",
        ] {
            assert!(text.contains(said), "{said} in {text}");
        }
        assert!(!text.contains("d2"), "nothing went there: {text}");
    }
}
