//! The table at the end of `cargo xtask test`.

use std::fmt;
use std::time::Duration;

pub enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

pub struct Row {
    pub name: &'static str,
    pub outcome: Outcome,
    pub elapsed: Duration,
}

#[derive(Default)]
pub struct Summary {
    rows: Vec<Row>,
}

impl Summary {
    pub fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    pub fn failed(&self) -> usize {
        self.count(|o| matches!(o, Outcome::Failed(_)))
    }

    fn count(&self, which: impl Fn(&Outcome) -> bool) -> usize {
        self.rows.iter().filter(|r| which(&r.outcome)).count()
    }
}

/// The closing line is read by machines: `N passed, N failed, N skipped`.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|r| r.name.len()).max().unwrap_or(0);
        for row in &self.rows {
            let (word, why) = match &row.outcome {
                Outcome::Passed => ("passed", ""),
                Outcome::Skipped(why) => ("SKIPPED", why.as_str()),
                Outcome::Failed(why) => ("FAILED", why.as_str()),
            };
            let seconds = row.elapsed.as_secs_f64();
            writeln!(f, "{}", format!("{:width$}  {word:7} {seconds:7.1} s  {why}", row.name).trim_end())?;
        }
        let total: f64 = self.rows.iter().map(|r| r.elapsed.as_secs_f64()).sum();
        writeln!(f, "{:width$}          {total:7.1} s", "total")?;
        let passed = self.count(|o| matches!(o, Outcome::Passed));
        let skipped = self.count(|o| matches!(o, Outcome::Skipped(_)));
        writeln!(f, "{passed} passed, {} failed, {skipped} skipped", self.failed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_counts_every_outcome() {
        let mut summary = Summary::default();
        let second = Duration::from_secs(1);
        summary.push(Row { name: "fmt", outcome: Outcome::Passed, elapsed: second });
        summary.push(Row { name: "lab", outcome: Outcome::Skipped("no qemu".into()), elapsed: second });
        summary.push(Row { name: "unit", outcome: Outcome::Failed("exit 101".into()), elapsed: second });
        let text = summary.to_string();
        assert!(text.ends_with("1 passed, 1 failed, 1 skipped\n"), "{text}");
        assert!(text.contains("FAILED      1.0 s  exit 101"), "{text}");
    }
}
