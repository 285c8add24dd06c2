//! Sums an LCOV report into lines per crate and fails if a named crate is below the floor.
//!
//! Only product code counts: unit tests always run in full and would make a file look better than it is.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

/// Lines that could run, and lines that ran.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Lines {
    found: u64,
    hit: u64,
}

impl Lines {
    /// The percentage of lines that ran; 0 for a crate without lines.
    fn percent(self) -> f64 {
        if self.found == 0 { 0.0 } else { 100.0 * self.hit as f64 / self.found as f64 }
    }
}

/// Prints a table. The exit code is 1 if one of `crates` is below `floor` percent.
pub fn run(root: &Path, lcov: &Path, floor: f64, crates: &[&str]) -> Result<ExitCode> {
    let report = std::fs::read_to_string(lcov).with_context(|| format!("failed to read `{}`", lcov.display()))?;
    let counted = fold(&report, |file| {
        let file = Path::new(file).strip_prefix(root).ok()?;
        Some((crate_of(file)?, first_test_line(&std::fs::read_to_string(root.join(file)).ok()?)))
    });

    println!("{:<8} {:>7} {:>7} {:>7}", "crate", "lines", "hit", "%");
    for (name, lines) in &counted {
        println!("{name:<8} {:>7} {:>7} {:>7.1}", lines.found, lines.hit, lines.percent());
    }
    let below = below(&counted, floor, crates);
    for (name, lines) in &below {
        eprintln!("`{name}` has {:.1} % of its lines covered, less than {floor} %", lines.percent());
    }
    Ok(if below.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The crate whose product code a file belongs to, by its path `crates/NAME/src/`.
fn crate_of(file: &Path) -> Option<String> {
    let mut parts = file.iter().map(|part| part.to_str().unwrap_or_default());
    let is_source = parts.next() == Some("crates");
    let name = parts.next()?;
    (is_source && parts.next() == Some("src") && !file.ends_with("tests.rs")).then(|| name.to_owned())
}

/// The line at which a file's unit tests start, counted from 1. They are at the end of the file.
fn first_test_line(text: &str) -> u64 {
    let line = text.lines().position(|line| line == "#[cfg(test)]");
    line.map_or(u64::MAX, |index| index as u64 + 1)
}

/// Sums a report's `DA:line,count` records by crate. `place` returns a file's crate and the line at which its tests
/// start.
fn fold(report: &str, place: impl Fn(&str) -> Option<(String, u64)>) -> BTreeMap<String, Lines> {
    let mut counted: BTreeMap<String, Lines> = BTreeMap::new();
    let mut current = None;
    for record in report.lines() {
        if let Some(file) = record.strip_prefix("SF:") {
            current = place(file);
        }
        let Some((line, count)) = record.strip_prefix("DA:").and_then(|record| record.split_once(',')) else {
            continue;
        };
        let Some((name, tests)) = &current else { continue };
        if line.parse().is_ok_and(|line: u64| line < *tests) {
            let lines = counted.entry(name.clone()).or_default();
            lines.found += 1;
            lines.hit += u64::from(count != "0");
        }
    }
    counted
}

fn below<'a>(counted: &BTreeMap<String, Lines>, floor: f64, crates: &[&'a str]) -> Vec<(&'a str, Lines)> {
    let lines = crates.iter().map(|name| (*name, counted.get(*name).copied().unwrap_or_default()));
    lines.filter(|(_, lines)| lines.percent() < floor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "SF:wire/a\nDA:1,5\nDA:2,0\nDA:9,1\nend_of_record\nSF:other\nDA:1,1\nend_of_record\n";

    fn counted() -> BTreeMap<String, Lines> {
        fold(REPORT, |file| file.strip_suffix("/a").map(|name| (name.to_owned(), 9)))
    }

    #[test]
    fn only_product_lines_count() {
        assert_eq!(counted(), BTreeMap::from([("wire".to_owned(), Lines { found: 2, hit: 1 })]));
    }

    #[test]
    fn a_crate_below_the_floor_or_absent_fails() {
        let names: Vec<_> = below(&counted(), 50.1, &["wire", "agent"]).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["wire", "agent"]);
        assert_eq!(below(&counted(), 50.0, &["wire"]), []);
    }

    #[test]
    fn a_file_belongs_to_the_crate_of_its_folder() {
        assert_eq!(crate_of(Path::new("crates/wire/src/a/b.rs")), Some("wire".to_owned()));
        assert_eq!(crate_of(Path::new("crates/wire/tests/wire/main.rs")), None);
        assert_eq!(crate_of(Path::new("crates/wire/src/a/tests.rs")), None);
        assert_eq!(crate_of(Path::new("xtask/src/main.rs")), None);
    }

    #[test]
    fn unit_tests_start_at_their_attribute() {
        assert_eq!(first_test_line("fn a() {}\n#[cfg(test)]\nmod tests {}\n"), 2);
        assert_eq!(first_test_line("fn a() {}\n"), u64::MAX);
    }
}
