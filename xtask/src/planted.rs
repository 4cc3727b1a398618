//! `cargo xtask planted`: evidence that the simulator's checkers can fail. Each patch in `crates/sim/planted` takes
//! one rule out of a copy of the tree; the scenarios that its head names have to find that, within its seeds.

use crate::cmd;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

/// What counts here is how long a build takes: what patches change, and what depends on that, is not optimised.
const PROFILE: &[&str] = &["--profile", "dev", "--config", "profile.dev.opt-level=0"];
/// All the others are built once; these do the work on bytes.
const OPTIMISED: &[&str] = &["base", "ec", "rt"];
const FOLDER: &str = "crates/sim/planted";
/// A scenario that takes longer has found nothing.
const LIMIT: Duration = Duration::from_secs(600);

/// One patch and its head: `Rule:`, `Scenarios:` in the order in which they are tried, `Seeds:` of each, and `First:`, the first
/// of these, where few seeds come to what it needs.
pub struct Patch {
    pub name: String,
    path: PathBuf,
    rule: String,
    scenarios: Vec<String>,
    seeds: u64,
    first: u64,
}

impl Patch {
    fn read(path: PathBuf) -> Result<Patch> {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let field = |key: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
            value.map(str::to_string).with_context(|| format!("{name} has no line {key}:"))
        };
        let (rule, scenarios, seeds) = (field("Rule")?, field("Scenarios")?, field("Seeds")?.parse()?);
        let scenarios = scenarios.split_whitespace().map(str::to_string).collect();
        let first = field("First").map_or(Ok(1), |first| first.parse())?;
        Ok(Patch { name, path, rule, scenarios, seeds, first })
    }

    /// An error with git's words unless it applies to the tree at `root`.
    pub fn check(&self, root: &Path) -> Result<()> {
        git(root, &["apply", "--check", &self.path.to_string_lossy()]).map(|_| ())
    }
}

/// All of them, by name.
pub fn patches(root: &Path) -> Result<Vec<Patch>> {
    let mut patches = Vec::new();
    for entry in fs::read_dir(root.join(FOLDER))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "patch") {
            patches.push(Patch::read(path)?);
        }
    }
    patches.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(patches)
}

fn git(folder: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("git").current_dir(folder).args(arguments).output().context("git")?;
    if !output.status.success() {
        bail!("git {}: {}", arguments[0], String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// A copy of the tree as it is now, at a place that stays the same: what it does not change is built once.
struct Copy {
    folder: PathBuf,
}

impl Copy {
    fn make() -> Result<Copy> {
        let (root, folder) = (cmd::root(), cmd::target().join("planted"));
        let copy = Copy { folder };
        copy.remove();
        // What is not committed belongs to it, too.
        let stash = git(&root, &["stash", "create"])?;
        let commit = if stash.is_empty() { "HEAD" } else { &stash };
        git(&root, &["worktree", "add", "--detach", "--force", &copy.folder.to_string_lossy(), commit])?;
        Ok(copy)
    }
    fn remove(&self) {
        let folder = self.folder.to_string_lossy();
        let _ = git(&cmd::root(), &["worktree", "remove", "--force", &folder]);
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Who found it, or that nobody did.
struct Verdict {
    name: String,
    rule: String,
    found: Option<String>,
}

/// Plants the bugs whose names contain one of these words, or all; an error unless every one of them is found.
pub fn run(only: &[String]) -> Result<()> {
    let wanted = |p: &Patch| only.is_empty() || only.iter().any(|word| p.name.contains(word.as_str()));
    let patches: Vec<Patch> = patches(&cmd::root())?.into_iter().filter(wanted).collect();
    if patches.is_empty() {
        bail!("no patch of {FOLDER} is called like that");
    }
    let copy = Copy::make()?;
    build(&copy.folder, "the tree as it is")?;
    fs::copy(program(), sound())?;
    let mut verdicts = Vec::new();
    for patch in &patches {
        println!("\n==== {} ====\n{}", patch.name, patch.rule);
        // One that does not build any more, or is found elsewhere as well, does not keep the others from being tried.
        let found = try_one(&copy.folder, patch).unwrap_or_else(|error| {
            println!("{error:#}");
            None
        });
        println!("---- {}", found.as_deref().unwrap_or("NOT FOUND"));
        verdicts.push(Verdict { name: patch.name.clone(), rule: patch.rule.clone(), found });
    }
    println!("\n| planted bug | what it takes away | found by |\n|---|---|---|");
    for v in &verdicts {
        println!("| {} | {} | {} |", v.name, v.rule, v.found.as_deref().unwrap_or("NOT FOUND"));
    }
    let missed = verdicts.iter().filter(|v| v.found.is_none()).count();
    if missed > 0 { bail!("{missed} planted bugs were not found") } else { Ok(()) }
}

fn try_one(folder: &Path, patch: &Patch) -> Result<Option<String>> {
    git(folder, &["checkout", "--quiet", "--force", "--", "."])?;
    git(folder, &["apply", &patch.path.to_string_lossy()])?;
    build(folder, &patch.name)?;
    for scenario in &patch.scenarios {
        let began = Instant::now();
        let (seeds, first) = (patch.seeds.to_string(), patch.first.to_string());
        // One seed after the other: the same one finds it everywhere.
        let answer = run_scenario(
            &program(),
            scenario,
            &["--first", &first, "--seeds", &seeds, "--jobs", "1", "--until-failure"],
        )?;
        let seconds = began.elapsed().as_secs_f64();
        println!("{scenario}: {seconds:.0} s");
        let Some((status, text)) = answer else { continue };
        if status.success() {
            continue;
        }
        let Some(line) = text.lines().find(|line| line.contains(": FAILED; again: ")) else {
            bail!("{scenario} ended with {status}: {text}");
        };
        let found = line.split(": FAILED").next().unwrap_or_default();
        let seed = found.rsplit(' ').next().unwrap_or_default();
        let sound = run_scenario(&sound(), scenario, &["--seed", seed])?;
        if !sound.is_some_and(|(status, _)| status.success()) {
            bail!("{found} fails without any planted bug");
        }
        return Ok(Some(format!("{found}, {seconds:.0} s: {}", words_of_panic(&text))));
    }
    Ok(None)
}

fn run_scenario(program: &Path, scenario: &str, options: &[&str]) -> Result<Option<(ExitStatus, String)>> {
    let mut command = Command::new(program);
    cmd::answer(
        command.args(["--scenario", scenario]).args(options),
        &cmd::target().join("planted.log"),
        LIMIT,
    )
}

fn build(folder: &Path, what: &str) -> Result<()> {
    let began = Instant::now();
    let mut command = cmd::cargo(&["build", "--quiet", "--package", "peristyle-sim"]);
    command.args(PROFILE).current_dir(folder).env("CARGO_TARGET_DIR", cmd::target());
    for name in OPTIMISED {
        command.args(["--config", &format!("profile.dev.package.peristyle-{name}.opt-level=3")]);
    }
    let status = command.status()?;
    if !status.success() {
        bail!("{what} does not build");
    }
    println!("built in {:.0} s", began.elapsed().as_secs_f64());
    Ok(())
}

fn program() -> PathBuf {
    cmd::target().join("debug").join("peristyle-sim")
}

/// The program without a planted bug.
fn sound() -> PathBuf {
    cmd::target().join("debug").join("peristyle-sim-sound")
}

/// What the first panic said, in one line.
fn words_of_panic(err: &str) -> String {
    let mut lines = err.lines().skip_while(|line| !line.contains("panicked at")).skip(1);
    let words: String = lines.next().unwrap_or("it does not replay").replace('|', "/");
    words.chars().take(120).collect()
}
