//! Rules that every change must keep, checked in one pass over the files that git tracks or would add.

mod arrows;
mod attributes;
mod claims;
mod commits;
mod english;
mod modules;
mod orphans;
mod problem;
mod spawns;
mod words;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use cargo_metadata::{Metadata, MetadataCommand};

use problem::Problem;

/// A longer file usually has two ideas.
const FILE_LINES_MAX: usize = 700;

/// Crates without I/O and unsafe code, so that they fit the guest and work on saved data.
const LEVEL_ZERO: [&str; 3] = ["wire", "detect", "api"];

/// Prints every problem. The exit code is 1 if there was one.
pub fn run(root: &Path) -> Result<ExitCode> {
    let mut problems = check(root)?;
    problems.sort();
    let commits = commits::check(root, &crates(root)?)?;
    let found: Vec<String> = problems.iter().map(ToString::to_string).chain(commits).collect();
    if found.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}", found.join("\n"));
    eprintln!("{} problems; the rules are in CONVENTIONS.md", found.len());
    Ok(ExitCode::FAILURE)
}

fn check(root: &Path) -> Result<Vec<Problem>> {
    let workspace = metadata(&root.join("Cargo.toml"))?;
    let fuzz = metadata(&root.join("fuzz/Cargo.toml"))?;
    let files = files(root)?;

    let mut problems = arrows::check(&workspace);
    problems.extend(stale_lock(root, "fuzz"));
    problems.extend(orphans::check(root, &[&workspace, &fuzz], &files));
    problems.extend(modules::check(&files, |path| std::fs::read_to_string(root.join(path)).ok()));
    let mut functions = BTreeSet::new();
    for path in &files {
        let bytes = std::fs::read(root.join(path)).with_context(|| format!("failed to read `{}`", path.display()))?;
        let Ok(text) = String::from_utf8(bytes) else { continue };
        problems.extend(words::check(path, &text));
        problems.extend(english::check(path, &text));
        if path.extension().is_some_and(|extension| extension == "rs") {
            problems.extend(check_source(path, &text));
            claims::functions(&text, &mut functions);
        }
    }
    for page in claims::PAGES.map(Path::new) {
        let text =
            std::fs::read_to_string(root.join(page)).with_context(|| format!("failed to read `{}`", page.display()))?;
        problems.extend(claims::check(page, &text, &functions));
    }
    Ok(problems)
}

/// The workspace in `folder` takes crates of the main one, and a new dependency of those makes its lock file stale. No
/// build of the main workspace notices.
fn stale_lock(root: &Path, folder: &str) -> Option<Problem> {
    let manifest = root.join(folder).join("Cargo.toml");
    let checked = Command::new(env!("CARGO"))
        .args(["update", "--quiet", "--workspace", "--locked", "--manifest-path"])
        .arg(&manifest)
        .output();
    let words = match checked {
        Ok(output) if output.status.success() => return None,
        Ok(output) => String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().to_owned(),
        Err(error) => error.to_string(),
    };
    let lock = Path::new(folder).join("Cargo.lock");
    Some(Problem::new(&lock, 1, format!("does not fit: {words}; `cargo update --workspace` in `{folder}` mends it")))
}

/// The names of the folders below `crates/`.
fn crates(root: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(root.join("crates")).context("failed to list `crates`")?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

fn metadata(manifest: &Path) -> Result<Metadata> {
    MetadataCommand::new()
        .manifest_path(manifest)
        .no_deps()
        .exec()
        .with_context(|| format!("failed to read the packages of `{}`", manifest.display()))
}

/// Files that are tracked or that `git add` would track, relative to the root, without deleted ones.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .current_dir(root)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("failed to run `git ls-files`")?;
    ensure!(output.status.success(), "`git ls-files` failed: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    let paths = names.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from);
    Ok(paths.filter(|path| root.join(path).is_file()).collect())
}

/// The rules that a Rust file can break on its own.
fn check_source(path: &Path, text: &str) -> Vec<Problem> {
    let mut problems = attributes::check(path, text);
    problems.extend(spawns::check(path, text));
    if !text.starts_with("//!") {
        problems.push(Problem::new(path, 1, "does not open with `//!`: describe what the file is for"));
    }
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        problems.push(Problem::new(path, lines, format!("has {lines} lines, more than {FILE_LINES_MAX}")));
    }
    let level_zero = LEVEL_ZERO.iter().any(|name| path == Path::new("crates").join(name).join("src/lib.rs"));
    if level_zero && !text.lines().any(|line| line == "#![forbid(unsafe_code)]") {
        problems.push(Problem::new(path, 1, "lacks `#![forbid(unsafe_code)]`, which this crate promises"));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        check_source(Path::new(path), text).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_file_opens_with_its_purpose() {
        assert_eq!(found("a.rs", "//! A.\nfn a() {}\n"), Vec::<String>::new());
        assert_eq!(found("a.rs", "fn a() {}\n"), ["a.rs:1: does not open with `//!`: describe what the file is for"]);
    }

    #[test]
    fn a_file_over_the_limit_is_named_with_its_length() {
        let text = "//! Long.\n".repeat(FILE_LINES_MAX + 1);
        assert_eq!(found("a.rs", &text), ["a.rs:701: has 701 lines, more than 700"]);
        assert_eq!(found("a.rs", &text[10..]), Vec::<String>::new());
    }

    #[test]
    fn level_zero_forbids_unsafe_code() {
        assert_eq!(found("crates/wire/src/lib.rs", "//! W.\n").len(), 1);
        assert_eq!(found("crates/wire/src/lib.rs", "//! W.\n#![forbid(unsafe_code)]\n"), Vec::<String>::new());
        assert_eq!(found("crates/engine/src/lib.rs", "//! E.\n"), Vec::<String>::new());
    }

    /// Each rule that reads one file, broken once. The other rules match their messages in their own tests.
    #[test]
    fn messages_read_like_this() {
        let long = "//! Long.\n".repeat(FILE_LINES_MAX + 1);
        let broken = [
            ("a.rs", "fn a() {}\n"),
            ("a.rs", &long),
            ("crates/wire/src/lib.rs", "//! W.\n"),
            ("crates/cli/src/a.rs", "//! A.\nfn a() { Command::new(\"ls\"); }\n"),
            ("a.rs", "//! A.\n#[ignore]\n"),
            ("a.rs", "//! A.\n#[allow(dead_code)]\n"),
            ("a.rs", "//! A.\n// TO\u{44}O: later\n"),
            ("docs/a.md", "Whoe\u{76}er reads this.\n"),
        ];
        let mut messages = Vec::new();
        for (path, text) in broken {
            let path = Path::new(path);
            let problems = words::check(path, text).into_iter().chain(english::check(path, text));
            let problems = problems.chain(if path.extension().is_some_and(|extension| extension == "rs") {
                check_source(path, text)
            } else {
                Vec::new()
            });
            messages.extend(problems.map(|problem| problem.to_string()));
        }
        assert_eq!(messages.len(), broken.len(), "one message for each file");
        insta::assert_snapshot!(messages.join("\n"));
    }
}
