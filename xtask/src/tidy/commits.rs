//! The form of commits: what CONVENTIONS.md requires of a subject and a body, as far as a program can check it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Commits before this moment were made under other rules.
const SINCE: &str = "2026-11-29T20:30:00Z";

const SUBJECT_CHARS_MAX: usize = 60;

/// A commit that changes more lines than this needs a body.
const TRIVIAL_LINES_MAX: usize = 20;

/// Prefixes of a subject that are not crates: a folder, or the repository as a whole.
const AREAS: [&str; 7] = ["e2e", "xtask", "fuzz", "scripts", "docs", "deps", "repo"];

/// Imperatives that end like another form of a verb.
const IMPERATIVES: [&str; 18] = [
    "address", "bring", "bypass", "compress", "cross", "discuss", "dress", "embed", "exceed", "express", "feed",
    "focus", "miss", "need", "pass", "press", "process", "suppress",
];

struct Commit<'a> {
    hash: &'a str,
    subject: &'a str,
    body: &'a str,
    lines_changed: usize,
}

/// One problem for each rule that a commit breaks. `crates` are the names of the folders below `crates/`.
pub fn check(root: &Path, crates: &[String]) -> Result<Vec<String>> {
    let log = Command::new("git")
        .current_dir(root)
        .args(["log", "--no-merges", "--numstat", "--format=%x1e%h%x00%s%x00%b%x00", &format!("--since={SINCE}")])
        .output()
        .context("failed to run `git log`")?;
    ensure!(log.status.success(), "`git log` failed: {}", String::from_utf8_lossy(&log.stderr));
    let log = String::from_utf8_lossy(&log.stdout);
    Ok(log.split('\x1e').filter_map(parse).flat_map(|commit| faults(&commit, crates)).collect())
}

fn parse(record: &str) -> Option<Commit<'_>> {
    let mut parts = record.splitn(4, '\0');
    let (hash, subject, body) = (parts.next()?, parts.next()?, parts.next()?);
    let counts = parts.next()?.lines().flat_map(|line| line.split('\t').take(2));
    Some(Commit { hash, subject, body, lines_changed: counts.filter_map(|count| count.parse::<usize>().ok()).sum() })
}

fn faults(commit: &Commit<'_>, crates: &[String]) -> Vec<String> {
    let Commit { hash, subject, body, lines_changed } = commit;
    let mut faults = Vec::new();
    let mut add = |fault: String| faults.push(format!("commit {hash} `{subject}`: {fault}"));
    let chars = subject.chars().count();
    if chars > SUBJECT_CHARS_MAX {
        add(format!("its subject has {chars} characters, more than {SUBJECT_CHARS_MAX}"));
    }
    if subject.contains(';') {
        add("a `;` joins two changes: make two commits".into());
    }
    if subject.ends_with('.') {
        add("its subject ends with a full stop".into());
    }
    match subject.split_once(": ") {
        Some((prefix, rest)) => {
            let area = prefix.split('/').next().unwrap_or_default();
            if !AREAS.contains(&area) && !crates.iter().any(|name| name == area) {
                add(format!("`{area}` is neither a crate nor one of {}", AREAS.join(", ")));
            }
            let verb = rest.split(' ').next().unwrap_or_default();
            if !is_imperative(verb) {
                add(format!("`{verb}` is not an imperative"));
            }
        }
        None => add("its subject does not start with `crate: `".into()),
    }
    if body.trim().is_empty() && *lines_changed > TRIVIAL_LINES_MAX {
        add(format!("it changes {lines_changed} lines and has no body with the reason"));
    }
    faults
}

/// Whether a word can be an imperative, by its first letter and its ending.
fn is_imperative(word: &str) -> bool {
    let starts_small = word.starts_with(|first: char| first.is_ascii_lowercase());
    let other_form = ["s", "ed", "ing"].iter().any(|ending| word.ends_with(ending));
    starts_small && (!other_form || IMPERATIVES.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(subject: &str, body: &str, lines_changed: usize) -> Vec<String> {
        let faults = faults(&Commit { hash: "abc", subject, body, lines_changed }, &["engine".to_owned()]);
        faults.iter().map(|fault| fault.split_once("`: ").expect("names the commit").1.to_owned()).collect()
    }

    #[test]
    fn a_good_commit_passes() {
        assert_eq!(found("engine/link: count frames", "They were not.", 500), Vec::<String>::new());
        assert_eq!(found("docs: mend a link", "", 2), Vec::<String>::new());
        assert_eq!(found("engine: pass the deadline on", "", 2), Vec::<String>::new());
    }

    #[test]
    fn each_rule_is_named() {
        let long = format!("engine: {}", "x".repeat(60));
        assert_eq!(found(&long, "Why.", 1), ["its subject has 68 characters, more than 60"]);
        assert_eq!(found("engine: do a; do b", "Why.", 1), ["a `;` joins two changes: make two commits"]);
        assert_eq!(found("engine: do it.", "Why.", 1), ["its subject ends with a full stop"]);
        assert_eq!(found("do it", "Why.", 1), ["its subject does not start with `crate: `"]);
        assert_eq!(found("engine: do it", "\n", 21), ["it changes 21 lines and has no body with the reason"]);
    }

    #[test]
    fn strange_areas_and_other_forms_of_a_verb_are_named() {
        let area = "`motor` is neither a crate nor one of e2e, xtask, fuzz, scripts, docs, deps, repo";
        assert_eq!(found("motor: start", "Why.", 1), [area]);
        for (subject, verb) in [("engine: Adds it", "Adds"), ("engine: fixed it", "fixed"), ("engine: fixes", "fixes")]
        {
            assert_eq!(found(subject, "Why.", 1), [format!("`{verb}` is not an imperative")], "{subject}");
        }
    }

    #[test]
    fn the_log_of_git_is_read() {
        let commit = parse("abc\0engine: do it\0Why.\n\0\n\n3\t4\ta.rs\n-\t-\tb.png\n").expect("a commit");
        assert_eq!((commit.subject, commit.body, commit.lines_changed), ("engine: do it", "Why.\n", 7));
        assert!(parse("").is_none());
    }
}
