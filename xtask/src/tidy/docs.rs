//! Rules about documents: each crate has its README, links lead somewhere, nothing names one person's machine.

use super::source::is_placeholder;
use super::{File, Finding};
use std::path::Path;

/// Folders that exist on somebody's machine only. The tidy rules themselves have to name them.
const MACHINE_PATHS: &[&str] = &["/root/", "/home/", "/Users/", "/work/", "/workspace/"];
const NAMES_THEM: &str = "xtask/src/tidy/docs.rs";

pub fn check(root: &Path, files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    check_readmes(root, files, &mut findings);
    for file in files {
        if file.path != NAMES_THEM {
            check_paths(file, &mut findings);
        }
        if file.path.ends_with(".md") {
            check_links(root, file, &mut findings);
        }
    }
    findings
}

fn check_readmes(root: &Path, files: &[File], findings: &mut Vec<Finding>) {
    for file in files {
        let Some(folder) =
            file.path.strip_suffix("/src/lib.rs").or_else(|| file.path.strip_suffix("/src/main.rs"))
        else {
            continue;
        };
        if !is_placeholder(file) && !root.join(folder).join("README.md").is_file() {
            findings.push(Finding::new(folder, "README.md is missing"));
        }
    }
}

fn check_paths(file: &File, findings: &mut Vec<Finding>) {
    for (number, line) in file.text.lines().enumerate() {
        for path in MACHINE_PATHS {
            // An absolute path starts a word; `$dir/work/` and `docs/home/` do not.
            let absolute = line.match_indices(path).any(|(at, _)| {
                !line[..at].ends_with(|c: char| c.is_alphanumeric() || "_-}.)]>*$".contains(c))
            });
            if absolute {
                findings.push(Finding::at(
                    &file.path,
                    number + 1,
                    format!("{path} exists on one machine only"),
                ));
            }
        }
    }
}

/// Every `[text](target)` that is not an address on the net names a file of the repository.
fn check_links(root: &Path, file: &File, findings: &mut Vec<Finding>) {
    let folder = Path::new(&file.path).parent().unwrap_or(Path::new(""));
    let mut code_block = false;
    for (number, line) in file.text.lines().enumerate() {
        code_block ^= line.trim_start().starts_with("```");
        if code_block {
            continue;
        }
        for target in line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(t, _)| t) {
            let target = target.split(['#', ' ']).next().unwrap_or("");
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            if !root.join(folder).join(target).exists() {
                findings.push(Finding::at(
                    &file.path,
                    number + 1,
                    format!("the link to {target} leads nowhere"),
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd;

    fn findings(path: &str, text: &str) -> usize {
        let files = [File { path: path.into(), text: text.into() }];
        check(&cmd::root(), &files).len()
    }

    #[test]
    fn a_link_that_leads_nowhere_is_found() {
        assert_eq!(findings("crates/a.md", "see [that](no-such-file.md#part)\n"), 1);
        assert_eq!(
            findings(
                "crates/a.md",
                "see [that](../Cargo.toml), [net](https://example.org/x), [here](#part)\n"
            ),
            0
        );
        assert_eq!(findings("crates/a.md", "```\n[x](y)\n```\n"), 0);
    }

    #[test]
    fn a_path_of_one_machine_is_found() {
        assert_eq!(findings("crates/a.md", &format!("run {}me/x\n", "/home/")), 1);
        assert_eq!(findings("crates/a.md", &format!("run $cache{}x\n", "/work/")), 0);
    }
}
