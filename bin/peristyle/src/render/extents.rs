//! Why an extent is where it is, for people.

use super::table;
use peristyle_control::api::{ExtentDomain, ExtentInfo};

pub fn why(extents: &[ExtentInfo]) -> String {
    extents.iter().map(extent).collect::<Vec<_>>().join("\n")
}

fn extent(e: &ExtentInfo) -> String {
    let mut out = format!("extent {} of shard {}: {}, {}\n", e.extent, e.shard, e.scheme, e.scheme_because);
    let moving = if e.moving { "; what it holds is moved elsewhere" } else { "" };
    out += &format!(
        "{}, {} rows, opened under epoch {}; {} live blocks, {} of the map{moving}\n\n",
        e.phase, e.rows, e.epoch, e.live_blocks, e.map_blocks
    );
    let columns = e.columns.iter().map(|c| {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let mut row = vec![c.column.to_string(), c.part.clone(), c.state.clone(), or_dash(c.device.clone())];
        row.push(or_dash(c.slot.map(|slot| slot.to_string())));
        row.extend(c.domain.as_ref().map_or_else(|| vec!["-".into(); 4], domain));
        row
    });
    let header = ["column", "part", "state", "device", "slot", "failure domain", "next", "used", "now"];
    out += &table(&header, &[0, 4, 6, 7], columns);
    if !e.others.is_empty() {
        out += "\nfailure domains that have none of it\n";
        out += &table(&["failure domain", "next", "used", "now"], &[1, 2], e.others.iter().map(domain));
    }
    out += match e.apart {
        true => "\nno failure domain has two of its columns\n",
        false => {
            "\na failure domain has two of its columns: one of them moves as soon as there is another one for it\n"
        }
    };
    out += "next: the order in which a new extent would take them now, the emptiest for its size first\n";
    out
}

fn domain(domain: &ExtentDomain) -> Vec<String> {
    let rank = domain.rank.map_or("-".into(), |rank| rank.to_string());
    vec![domain.name.clone(), rank, format!("{:.1} %", domain.used_percent), domain.standing.clone()]
}
