//! What SPECIFICATION.md names exists: tests by their functions, code as `crate::name`, files by their path.

use super::{File, Finding};

const SPECIFICATION: &str = "SPECIFICATION.md";

pub fn check(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|f| f.path == SPECIFICATION) {
        for (number, line) in file.text.lines().enumerate() {
            for word in line.split('`').skip(1).step_by(2) {
                if let Some(what) = missing(word, files) {
                    findings.push(Finding::at(SPECIFICATION, number + 1, what));
                }
            }
        }
    }
    findings
}

fn missing(word: &str, files: &[File]) -> Option<String> {
    let mut sources = files.iter().filter(|f| f.path.ends_with(".rs"));
    if let Some((crate_name, name)) = word.split_once("::") {
        let folder = format!("crates/{crate_name}/src/");
        let found = sources.any(|f| f.path.starts_with(&folder) && f.text.contains(name));
        return (!found).then(|| format!("there is no {name} in {folder}"));
    }
    if is_test_name(word) {
        let function = format!("fn {word}(");
        return (!sources.any(|f| f.text.contains(&function))).then(|| format!("there is no test {word}"));
    }
    let is_path = ["crates/", "bin/", "docs/", "xtask/"].iter().any(|folder| word.starts_with(folder));
    let found = files.iter().any(|f| f.path.starts_with(word));
    (is_path && !found).then(|| format!("there is no {word}"))
}

/// A test's name is a sentence.
fn is_test_name(word: &str) -> bool {
    let letters = word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    letters && word.matches('_').count() >= 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_specification_names_and_nobody_wrote_is_found() {
        let files = |spec: &str| {
            let file = |path: &str, text: &str| File { path: path.into(), text: text.into() };
            let test = file("crates/a/tests/t.rs", "#[test]\nfn a_is_b_for_ever() {}\n");
            vec![file(SPECIFICATION, spec), test, file("crates/a/src/lib.rs", "pub fn decide() {}\n")]
        };
        let fine = "| x | `a::decide` | `a_is_b_for_ever`, `crates/a/tests/t.rs`, `cargo xtask sim` |\n";
        assert!(check(&files(fine)).is_empty());
        for bad in ["`a_is_c_for_ever`", "`a::undecided`", "`b::decide`", "`crates/a/tests/u.rs`"] {
            assert_eq!(check(&files(&format!("| x | {bad} |\n"))).len(), 1, "{bad}");
        }
    }
}
