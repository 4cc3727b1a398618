//! What offline tools say of a pool and of an extent.

use super::{device_reports, table};
use crate::wiring::{ExtentDump, PoolCheck};

pub fn pool_check(check: &PoolCheck) -> String {
    let mut out = device_reports(&check.devices);
    let depth = if check.full { "headers, data and parity" } else { "headers" };
    out += &format!("\npool {}, {}: {depth}\n", check.pool, check.scheme);
    let header =
        ["shard", "epoch", "committed", "extents", "dead", "frames", "live", "map", "read", "problems"];
    let rows = check.shards.iter().map(|s| {
        let figures = [s.epoch, s.committed, s.extents, s.dead_extents, s.frames];
        let blocks = [s.live_blocks, s.map_blocks, s.blocks_read, s.problems_total];
        let figures = figures.into_iter().chain(blocks).map(|n| n.to_string());
        std::iter::once(s.shard.to_string()).chain(figures).collect()
    });
    out += &table(&header, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], rows);
    for shard in &check.shards {
        for problem in &shard.problems {
            out += &format!("  shard {}: {}\n", shard.shard, problem.text);
        }
        let more = shard.problems_total - shard.problems.len() as u64;
        if more > 0 {
            out += &format!("  shard {}: and {more} more\n", shard.shard);
        }
    }
    check.problems.iter().for_each(|problem| out += &format!("  {problem}\n"));
    out
}

pub fn extents(dumps: &[ExtentDump]) -> String {
    dumps.iter().map(extent).collect::<Vec<_>>().join("\n")
}

fn extent(dump: &ExtentDump) -> String {
    let sealed = dump.sealed_rows.map_or("not sealed".into(), |rows| format!("sealed at row {rows}"));
    let mut out = format!("extent {} of shard {}, {}, {sealed}\n", dump.extent, dump.shard, dump.scheme);
    let slots = dump.slots.iter().map(|s| {
        let agrees = if s.agrees { "" } else { "says otherwise" };
        let figures = [s.slot.to_string(), s.state.clone(), s.epoch.to_string(), s.rows.to_string()];
        let ends = [vec![s.column.to_string(), s.device.clone()], figures.into(), vec![agrees.into()]];
        ends.concat()
    });
    out += &table(&["column", "device", "slot", "state", "epoch", "rows", ""], &[0, 2, 4, 5], slots);
    for f in &dump.frames {
        out += &format!(
            "row {}, {} rows: {} frame {}, epoch {}, committed {}, {} blocks\n",
            f.row, f.rows, f.kind, f.seq, f.epoch, f.committed, f.blocks
        );
        out += &format!("  headers: {}\n", f.headers.join(", "));
        f.entries.iter().for_each(|entry| out += &format!("  {entry}\n"));
        f.problems.iter().for_each(|problem| out += &format!("  WRONG: {problem}\n"));
    }
    let end = if dump.broken { "no good header here, and the rows go on" } else { "the end" };
    out + &format!("row {}: {end}\n", dump.end_row)
}
