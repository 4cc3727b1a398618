//! `peristyle report`: figures that were kept, as one page to read.

mod charts;
mod curves;
mod html;
mod page;
mod sections;
mod stages;

use crate::bench::{compare, read_text, unlike};
use crate::failure::Failure;
use crate::render::json;
use clap::{Args, ValueEnum};
use page::Page;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const BYTES_MAX: u64 = 256 << 20;

/// One page of figures that `bench run`, `series`, `amplification`, `record`, `model curve` and `profile` have written with --json or --out
///
/// HTML stands by itself: charts and style are in it, light and dark. Files of different machines are refused.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Examples:
  peristyle report series.json amplification.json --out report.html
  peristyle report after.json --before before.json --out change.html
  peristyle report series.json --format markdown")]
pub struct ReportOptions {
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// An earlier file to compare the first one with
    #[arg(long, value_name = "FILE")]
    pub before: Option<PathBuf>,
    /// Where it is written [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = Format::Html)]
    pub format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Html,
    Markdown,
    /// What the page is made of
    Json,
}

pub fn command(options: &ReportOptions) -> Result<(), Failure> {
    let documents = options.files.iter().map(|path| read(path)).collect::<Result<Vec<Value>, Failure>>()?;
    for (document, path) in documents.iter().zip(&options.files).skip(1) {
        if unlike(&documents[0]["machine"], &document["machine"]) {
            return Err(Failure::usage(format!(
                "{} and {} are of different machines: a page is of one",
                options.files[0].display(),
                path.display()
            )));
        }
    }
    let mut page = Page::new("Peristyle: what was measured");
    sections::machine(&mut page, &documents[0]["machine"]);
    let mut changes = Vec::new();
    if let Some(before) = &options.before {
        changes = compare::compare(&read(before)?, &documents[0], &[]).map_err(Failure::usage)?;
        sections::changes(&mut page, &changes);
    }
    for (document, path) in documents.iter().zip(&options.files) {
        if !sections::document(&mut page, document) {
            return Err(Failure::usage(format!(
                "{}: no figures of a kind that is known here",
                path.display()
            )));
        }
    }
    let text = match options.format {
        Format::Html => html::render(&page),
        Format::Markdown => page.markdown(),
        Format::Json => {
            let changes: Vec<Value> = changes.iter().map(compare::line_json).collect();
            json(&json!({ "documents": documents, "changes": changes }))
        }
    };
    match &options.out {
        None => print!("{text}"),
        Some(path) => {
            std::fs::write(path, text).map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
            eprintln!("written to {}", path.display());
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Value, Failure> {
    serde_json::from_str(&read_text(path, BYTES_MAX)?)
        .map_err(|e| Failure::usage(format!("{}: {e}", path.display())))
}
