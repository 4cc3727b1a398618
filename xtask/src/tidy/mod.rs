//! What the compiler does not check: who imports whom, where `unsafe` and std's outside world may stand, how long a
//! file may be, which documents exist. LAYOUT's table as code: a new edge is an edit here, hence visible.

mod docs;
mod imports;
mod mask;
mod source;
mod spec;
mod stdlib;

use crate::{cmd, planted};
use anyhow::{Context, Result, bail};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// One thing that is not as it should be, and where.
#[derive(Debug)]
pub struct Finding {
    place: String,
    what: String,
}

impl Finding {
    fn new(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self { place: place.into(), what: what.into() }
    }

    fn at(place: &str, line: usize, what: impl Into<String>) -> Self {
        Self::new(format!("{place}:{line}"), what)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// One text file of the repository; `path` is relative to its root, with `/`.
struct File {
    path: String,
    text: String,
}

/// `cargo xtask tidy`.
pub fn run() -> Result<ExitCode> {
    check()?;
    println!("tidy");
    Ok(ExitCode::SUCCESS)
}

/// The same as a step of `cargo xtask test`: prints what it finds, an error if that is anything.
pub fn check() -> Result<()> {
    let findings = examine(&cmd::root())?;
    for finding in &findings {
        println!("{finding}");
    }
    if findings.is_empty() { Ok(()) } else { bail!("{} findings", findings.len()) }
}

fn examine(root: &Path) -> Result<Vec<Finding>> {
    let files = read_tree(root)?;
    let mut findings = imports::check(&files)?;
    findings.extend(source::check(&files));
    findings.extend(stdlib::check(&files));
    findings.extend(docs::check(root, &files));
    findings.extend(spec::check(&files));
    findings.extend(check_planted(root)?);
    Ok(findings)
}

/// A planted bug that does not apply any more proves nothing.
fn check_planted(root: &Path) -> Result<Vec<Finding>> {
    let patches = planted::patches(root)?;
    let finding = |p: &planted::Patch| Some(Finding::new(&p.name, format!("{:#}", p.check(root).err()?)));
    Ok(patches.iter().filter_map(finding).collect())
}

/// Folders that hold no source of ours, from the root on: a folder deeper down may well be called `target`.
const OUTSIDE: &[&str] = &[
    "target",
    ".git",
    "fuzz/target",
    "fuzz/corpus",
    "fuzz/artifacts",
    "fuzz/coverage",
    "fuzz/grown",
    "fuzz/merged",
];
const TEXT: &[&str] = &["rs", "toml", "md", "sh", "yml", "yaml", "py", "service", "conf"];
/// Text files without an extension lie in these folders only.
const SCRIPTS: &[&str] = &["tests/e2e/", ".ci/"];

fn read_tree(root: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type()?;
            if kind.is_dir() {
                let path = entry.path();
                let below = path.strip_prefix(root)?.to_string_lossy().replace('\\', "/");
                if !OUTSIDE.contains(&below.as_str()) && !name.starts_with("peristyle-dev") {
                    folders.push(path);
                }
            } else if kind.is_file() {
                files.extend(read_text(root, entry.path())?);
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn read_text(root: &Path, path: PathBuf) -> Result<Option<File>> {
    let relative = path.strip_prefix(root)?.to_string_lossy().replace('\\', "/");
    let text_file = match path.extension().and_then(|e| e.to_str()) {
        Some(extension) => TEXT.contains(&extension),
        None => SCRIPTS.iter().any(|folder| relative.starts_with(folder)),
    };
    if !text_file {
        return Ok(None);
    }
    let text = fs::read_to_string(&path).with_context(|| relative.clone())?;
    Ok(Some(File { path: relative, text }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_tidy() {
        let findings = examine(&cmd::root()).unwrap();
        let list: Vec<_> = findings.iter().map(ToString::to_string).collect();
        assert!(list.is_empty(), "{} findings:\n{}", list.len(), list.join("\n"));
    }
}
