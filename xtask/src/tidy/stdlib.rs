//! Only `rt` knows the operating system: nothing above it uses std's clocks, threads, sockets, files, processes or
//! random numbers, or the simulator would not see all that happens.

use super::mask::mask;
use super::source::has_word;
use super::{File, Finding};

/// Paths that reach around `rt`. A path is found also inside a `use std::{..}` tree.
const FORBIDDEN: &[&str] = &[
    "std::time::Instant",
    "std::time::SystemTime",
    "std::time::UNIX_EPOCH",
    "std::thread",
    "std::net",
    "std::fs",
    "std::process",
    "std::os",
    "std::collections::hash_map::RandomState",
    "std::hash::RandomState",
    "std::io::stdin",
    "std::env",
    "rand",
    "getrandom",
    "tokio",
];

/// Of those, what is only a name or a number.
const HARMLESS: &[&str] = &[
    "std::net::SocketAddr",
    "std::net::SocketAddrV4",
    "std::net::SocketAddrV6",
    "std::net::IpAddr",
    "std::net::Ipv4Addr",
    "std::net::Ipv6Addr",
    "std::net::AddrParseError",
    "std::thread::panicking",
];

/// Where the outside world is allowed, and why.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("crates/rt/", "the one crate that knows the operating system"),
    ("bin/", "programs: arguments, configuration files, signals, terminals"),
    ("xtask/", "the build tool"),
    ("crates/fuzzing/", "the mutation loop: files of inputs, threads, a rate"),
    ("fuzz/", "fuzzers run outside of everything"),
    (
        "crates/sim/src/main.rs",
        "the simulator's program: seeds from the command line, threads to run many, real time beside simulated",
    ),
    ("crates/sim/src/bin/", "the same"),
    ("crates/control/src/embedded", "the embedded store: redb opens its own file, off the reactors"),
    (
        "crates/control/src/etcd/",
        "the cluster's store: its client has a thread and a runtime of its own, off the reactors",
    ),
];

pub fn check(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let test_modules = files.iter().flat_map(test_modules).collect::<Vec<_>>();
    for file in files.iter().filter(|f| f.path.ends_with(".rs") && !exempt(&f.path)) {
        if test_modules.iter().any(|m| file.path.starts_with(m)) {
            continue;
        }
        let code = without_test_modules(&mask(&file.text).code);
        for (line, path) in paths(&code) {
            let hit =
                FORBIDDEN.iter().find(|f| within(&path, f) && !HARMLESS.iter().any(|h| within(&path, h)));
            if hit.is_some() {
                findings.push(Finding::at(
                    &file.path,
                    line,
                    format!("{path}: only rt knows the operating system"),
                ));
            }
        }
    }
    findings
}

/// Tests, benchmarks and examples of a crate may do what they like.
fn exempt(path: &str) -> bool {
    EXCEPTIONS.iter().any(|(place, _)| path.starts_with(place))
        || path.contains("/tests/")
        || path.contains("/benches/")
        || path.contains("/examples/")
}

fn within(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// The paths of modules that a file declares as `#[cfg(test)] mod name;`.
fn test_modules(file: &File) -> Vec<String> {
    let code = mask(&file.text).code;
    let folder = match file.path.strip_suffix("/mod.rs").or_else(|| file.path.strip_suffix("/lib.rs")) {
        Some(folder) => folder.to_owned(),
        None => file.path.trim_end_matches(".rs").to_owned(),
    };
    let mut modules = Vec::new();
    for part in code.split("#[cfg(test)]").skip(1) {
        let declaration = part.trim_start().trim_start_matches("pub(crate) ").trim_start_matches("pub ");
        if let Some(name) =
            declaration.strip_prefix("mod ").and_then(|d| d.split_once(';')).map(|(n, _)| n.trim())
            && name.chars().all(|c| c.is_alphanumeric() || c == '_')
        {
            modules.push(format!("{folder}/{name}.rs"));
            modules.push(format!("{folder}/{name}/"));
        }
    }
    modules
}

/// Blanks `#[cfg(test)] mod name { .. }`.
fn without_test_modules(code: &str) -> String {
    let mut result = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        let (before, marked) = rest.split_at(at);
        result.push_str(before);
        let end = item_end(marked);
        let (item, after) = marked.split_at(end);
        result.extend(item.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = after;
    }
    result + rest
}

/// Length of the item at the start: up to its closing brace, or to a semicolon that comes before any brace.
fn item_end(code: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// Every path that starts with `std`, `rand`, `getrandom` or `tokio`, with its line; trees of `use` are spread out.
fn paths(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut offset = 0;
    for (index, line) in code.lines().enumerate() {
        for root in ["std", "rand", "getrandom", "tokio"] {
            for (at, _) in line.match_indices(root).filter(|(at, _)| starts_path(line, *at, root)) {
                let mut spread = Vec::new();
                spread_tree(&code[offset + at..], String::new(), &mut spread);
                found.extend(spread.into_iter().map(|path| (index + 1, path)));
            }
        }
        offset += line.len() + 1;
    }
    found
}

fn starts_path(line: &str, at: usize, root: &str) -> bool {
    let alone = !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '.');
    alone && has_word(&line[at..], root) && line[at + root.len()..].starts_with("::")
}

/// Reads `a::b::{c, d::e}` at the start of `code` and pushes `a::b::c`, `a::b::d::e`. Returns how much it read.
fn spread_tree(code: &str, prefix: String, found: &mut Vec<String>) -> usize {
    let mut path = prefix;
    let mut at = 0;
    loop {
        let rest = &code[at..];
        at += rest.len() - rest.trim_start().len();
        let rest = &code[at..];
        if rest.starts_with('{') {
            return at + spread_group(rest, &path, found);
        }
        let word: String =
            rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == '*').collect();
        at += word.len();
        if word.is_empty() || word == "self" {
            found.push(path.trim_end_matches("::").to_owned());
            return at;
        }
        path.push_str(&word);
        if !code[at..].starts_with("::") {
            found.push(path);
            return at;
        }
        path.push_str("::");
        at += 2;
    }
}

fn spread_group(code: &str, prefix: &str, found: &mut Vec<String>) -> usize {
    let mut at = 1;
    while at < code.len() {
        match code.as_bytes()[at] {
            b'}' => return at + 1,
            b',' | b' ' | b'\n' | b'\t' => at += 1,
            _ => {
                let read = spread_tree(&code[at..], prefix.to_owned(), found);
                at += read.max(1);
                // `as name`: skip to the next comma or the end of the group.
                at += code[at..].find([',', '}']).unwrap_or(code.len() - at);
            }
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        check(&[File { path: path.into(), text: text.into() }]).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_clock_is_found_however_it_is_named() {
        for text in [
            "use std::time::Instant;\n",
            "use std::{fmt, time::{Duration, Instant as Clock}};\n",
            "fn f() { std::time::Instant::now(); }\n",
            "use std::{\n    io,\n    thread::{self, JoinHandle},\n};\n",
            "let r = rand::random();\n",
            "use std::fs::File;\n",
            "use tokio::{sync::mpsc, time::sleep};\n",
        ] {
            assert!(!findings("crates/shard/src/map.rs", text).is_empty(), "{text}");
            assert!(!findings("crates/control/src/election.rs", text).is_empty(), "{text}");
            assert!(findings("crates/control/src/etcd/client.rs", text).is_empty());
            assert!(findings("crates/rt/src/time.rs", text).is_empty());
            assert!(findings("crates/shard/tests/map.rs", text).is_empty());
        }
    }

    #[test]
    fn durations_addresses_and_words_in_comments_are_harmless() {
        for text in [
            "use std::time::Duration;\n",
            "use std::net::{IpAddr, SocketAddr};\n",
            "// std::fs is not used here\nlet s = \"std::fs\";\n",
            "fn f() { if std::thread::panicking() {} }\n",
            "use crate::std::fs;\n",
        ] {
            assert_eq!(findings("crates/shard/src/map.rs", text), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn test_modules_may_use_what_they_like() {
        let inline = "#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n";
        assert!(findings("crates/shard/src/map.rs", inline).is_empty());
        assert_eq!(findings("crates/shard/src/map.rs", &format!("{inline}use std::fs;\n")).len(), 1);
        let parent =
            File { path: "crates/shard/src/lib.rs".into(), text: "#[cfg(test)]\nmod proofs;\n".into() };
        let child = File { path: "crates/shard/src/proofs.rs".into(), text: "use std::fs;\n".into() };
        assert!(check(&[parent, child]).is_empty());
    }
}
