//! Latency against load, predicted and measured: what `model curve --json` says.

use super::charts::{self, Line};
use super::page::Page;
use super::sections::{items, name, number};
use serde_json::Value;

pub fn curve(page: &mut Page, document: &Value, curve: &Value) {
    page.heading(format!("Latency against load: {}", name(curve, "rw")));
    page.text(format!(
        "Commands of {} bytes, more and more of them on their way at once. Dashed: predicted from a profile at light load, before anything was \
         measured under load. The knee is the first depth that reaches 90 % of the highest throughput: beyond it \
         commands wait for each other, and latency grows by more than throughput does.",
        document["block_bytes"]
    ));
    let closed: Vec<&Value> = items(&curve["closed"]).collect();
    let lines: Vec<Line> = [("mean_us", "mean"), ("p99_us", "p99")]
        .into_iter()
        .enumerate()
        .flat_map(|(colour, (key, what))| {
            ["measured", "predicted"].map(|side| Line { colour, ..line(&closed, side, key, what) })
        })
        .filter(|line| !line.points.is_empty())
        .collect();
    if let Some(svg) = charts::log_log(&lines, "commands per second", "latency, us") {
        page.chart(svg, "Latency at each throughput of a closed loop; both axes are logarithmic");
    }
    let rows = closed.iter().map(|row| (format!("depth {}", row["depth"]), *row));
    let open = items(&curve["open"]).map(|row| (format!("{} % of the knee", row["load_percent"]), row));
    page.table(&LOADS, rows.chain(open).map(|(load, row)| load_row(load, row)).collect());
    let bars = items(&curve["bars"]).map(|bar| {
        let holds = if bar["holds"] == true { "within" } else { "NOT within" };
        format!(
            "The prediction's {} is off by {:+.0} %: {holds} {:.0} %.",
            name(bar, "name"),
            number(bar, "off_percent"),
            number(bar, "bar_percent")
        )
    });
    bars.for_each(|said| page.text(said));
    what_if(page, curve);
}

fn line(rows: &[&Value], side: &str, key: &str, what: &str) -> Line {
    let points = rows.iter().filter(|row| row[side].is_object());
    Line {
        name: format!("{what}, {side}"),
        colour: 0,
        points: points.map(|row| (number(&row[side], "iops"), number(&row[side], key))).collect(),
        is_dashed: side == "predicted",
    }
}

const LOADS: [&str; 8] = [
    "load",
    "IOPS, predicted",
    "measured",
    "mean, us, predicted",
    "measured",
    "p99, us, predicted",
    "measured",
    "generator busy",
];

fn load_row(load: String, row: &Value) -> Vec<String> {
    let side = |side: &str, key: &str| match row[side].is_object() {
        true => charts::short(number(&row[side], key)),
        false => "none".into(),
    };
    let mut cells = vec![load];
    for key in ["iops", "mean_us", "p99_us"] {
        cells.extend(["predicted", "measured"].map(|which| side(which, key)));
    }
    cells.push(format!("{:.0} %", number(row, "generator_busy_share") * 100.0));
    cells
}

fn what_if(page: &mut Page, curve: &Value) {
    let rows: Vec<Vec<String>> = items(&curve["what_if"])
        .map(|changed| {
            let said = name(changed, "change");
            let at = |key: &str| match changed["at_load"].is_object() {
                true => charts::short(number(&changed["at_load"], key)),
                false => "overload".into(),
            };
            vec![
                if said.is_empty() { "as it is".into() } else { said },
                charts::short(number(&changed["knee"], "iops")),
                at("mean_us"),
                at("p99_us"),
                name(&changed["limit"], "station"),
            ]
        })
        .collect();
    if !rows.is_empty() {
        page.text("What if one thing were different, everything else the same, at the same load:");
        page.table(&["change", "IOPS at the knee", "mean, us", "p99", "what limits"], rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_curve_has_both_sides_its_bars_and_what_if() {
        let side = |iops: f64| json!({"iops": iops, "mean_us": 20.0, "p50_us": 19.0, "p99_us": 80.0});
        let closed = json!([
            {"depth": 1, "predicted": side(5e4), "measured": side(4e4)},
            {"depth": 8, "predicted": side(2e5), "measured": null, "generator_busy_share": 0.5},
        ]);
        let curve = json!({
            "rw": "randread", "closed": closed, "open": [],
            "bars": [{"name": "throughput at the knee", "off_percent": -20.0, "bar_percent": 15.0, "holds": false}],
            "what_if": [{"change": "encode*0.7", "knee": {"iops": 2.5e5}, "at_load": null, "limit": {"station": "target"}}],
        });
        let mut page = Page::new("t");
        self::curve(&mut page, &json!({"block_bytes": 4096}), &curve);
        let text = page.markdown();
        for said in ["| depth 8 | 200k | none |", "NOT within 15 %", "| encode*0.7 | 250k | overload |"] {
            assert!(text.contains(said), "{said} in {text}");
        }
        let charts = page.blocks.iter().filter(|b| matches!(b, crate::report::page::Block::Chart(..)));
        assert_eq!(charts.count(), 1);
    }
}
