//! Rules about single source files: unsafe code, unfinished code, length.

use super::mask::mask;
use super::{File, Finding};

/// Folders (or files) where the word may stand; each block has its SAFETY comment, which clippy checks.
const UNSAFE_LIVES_IN: &[(&str, &str)] = &[
    ("crates/rt/", "system calls, io_uring and pinned memory"),
    ("crates/ec/src/arch", "SIMD kernels, each with a plain twin that it is tested against"),
];

/// A longer file is two ideas until shown otherwise.
const LINES_MAX: usize = 700;
/// Files that are longer today. A number here may shrink, not grow.
const LONG_FILES: &[(&str, usize)] = &[];

const UNFINISHED: &[&str] = &["todo!", "unimplemented!", "dbg!"];

pub fn check(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|f| f.path.ends_with(".rs")) {
        let masked = mask(&file.text);
        check_code(&file.path, &masked.code, &mut findings);
        check_comments(&file.path, &masked.comments, &mut findings);
        check_length(file, &mut findings);
        check_forbid(file, &masked.code, &mut findings);
    }
    findings
}

fn check_code(path: &str, code: &str, findings: &mut Vec<Finding>) {
    let unsafe_may = UNSAFE_LIVES_IN.iter().any(|(place, _)| path.starts_with(place));
    for (number, line) in code.lines().enumerate() {
        if !unsafe_may && has_word(line, "unsafe") {
            findings.push(Finding::at(path, number + 1, "unsafe code lives in rt and ec::arch only"));
        }
        for unfinished in
            UNFINISHED.iter().filter(|u| has_word(line, u.trim_end_matches('!')) && line.contains(**u))
        {
            findings.push(Finding::at(path, number + 1, format!("{unfinished} is not finished code")));
        }
    }
}

/// A TODO says what is to be done and why it is not yet: at least a sentence.
fn check_comments(path: &str, comments: &str, findings: &mut Vec<Finding>) {
    for (number, line) in comments.lines().enumerate() {
        for word in ["TODO", "FIXME", "XXX"].iter().filter(|w| has_word(line, w)) {
            let explanation = line.split(word).nth(1).unwrap_or("").trim_start_matches([':', ' ']);
            if explanation.split_whitespace().count() < 5 {
                findings.push(Finding::at(path, number + 1, format!("{word} without an explanation")));
            }
        }
    }
}

fn check_length(file: &File, findings: &mut Vec<Finding>) {
    let lines = file.text.lines().count();
    let limit = LONG_FILES.iter().find(|(path, _)| *path == file.path).map_or(LINES_MAX, |(_, lines)| *lines);
    if lines > limit {
        findings.push(Finding::new(&file.path, format!("{lines} lines; at most {limit}: is it two ideas?")));
    }
}

/// Every crate's root forbids unsafe code, except the two that need it.
fn check_forbid(file: &File, code: &str, findings: &mut Vec<Finding>) {
    let parts: Vec<_> = file.path.split('/').collect();
    let root = matches!(
        parts[..],
        ["crates" | "bin", _, "src", "lib.rs" | "main.rs"]
            | ["xtask", "src", "main.rs"]
            | ["crates" | "bin", _, "src", "bin", _]
    );
    let exempt = ["crates/rt/", "crates/ec/"].iter().any(|c| file.path.starts_with(c));
    if root && !exempt && !is_placeholder(file) && !code.contains("#![forbid(unsafe_code)]") {
        findings.push(Finding::new(&file.path, "#![forbid(unsafe_code)] is missing"));
    }
}

/// A crate that the workspace names and nobody has begun: nothing to check yet.
pub fn is_placeholder(file: &File) -> bool {
    file.text.trim() == "//! Placeholder." || file.text.trim() == "fn main() {}"
}

/// Whether `word` stands in `line` with no letter, digit or underscore around it.
pub fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(part) && !line[at + word.len()..].starts_with(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        check(&[File { path: path.into(), text: text.into() }]).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn unsafe_code_is_found_outside_its_two_homes() {
        let text = "fn f() { unsafe { g() } }\n";
        assert_eq!(findings("crates/shard/src/map.rs", text).len(), 1);
        assert!(findings("crates/rt/src/uring.rs", text).is_empty());
        assert!(findings("crates/ec/src/arch/avx2.rs", text).is_empty());
        assert_eq!(findings("crates/ec/src/code.rs", text).len(), 1);
        assert!(findings("crates/shard/src/map.rs", "// unsafe\n#[deny(unsafe_code)]\n").is_empty());
    }

    #[test]
    fn unfinished_code_is_found() {
        assert_eq!(findings("crates/shard/src/map.rs", "fn f() { todo!() }\n").len(), 1);
        assert_eq!(findings("crates/shard/src/map.rs", "// TODO\n").len(), 1);
        assert!(
            findings("crates/shard/src/map.rs", "// TODO: merge runs here once collection exists\n")
                .is_empty()
        );
    }

    #[test]
    fn a_crate_root_forbids_unsafe_code() {
        assert_eq!(findings("crates/shard/src/lib.rs", "//! A log.\npub mod map;\n").len(), 1);
        assert!(findings("crates/shard/src/lib.rs", "//! A log.\n#![forbid(unsafe_code)]\n").is_empty());
    }

    #[test]
    fn a_file_that_is_too_long_is_found() {
        assert_eq!(findings("crates/shard/src/map.rs", &"\n".repeat(LINES_MAX + 1)).len(), 1);
    }
}
