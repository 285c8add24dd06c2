//! Attributes that switch something off have a reason: `#[ignore = "…"]`, `#[expect(…, reason = "…")]`,
//! `#[allow(…, reason = "…")]`.

use std::path::Path;

use super::problem::Problem;

/// A longer attribute counts as one without an end.
const ATTRIBUTE_LINES_MAX: usize = 20;

/// Finds attributes without a reason. rustfmt puts an attribute at the start of its line.
pub fn check(path: &Path, text: &str) -> Vec<Problem> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let mut problems = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(body) = line.strip_prefix("#[").or_else(|| line.strip_prefix("#![")) else { continue };
        if body.starts_with("ignore]") {
            problems.push(Problem::new(path, index + 1, "`#[ignore]` without a reason"));
        }
        let Some(name) = ["expect", "allow"].into_iter().find(|name| body.starts_with(&format!("{name}("))) else {
            continue;
        };
        if !attribute(&lines[index..]).contains("reason = \"") {
            problems.push(Problem::new(path, index + 1, format!("`#[{name}(…)]` without a reason")));
        }
    }
    problems
}

/// The attribute that starts here, up to the line that closes it.
fn attribute(lines: &[&str]) -> String {
    let last = lines.iter().take(ATTRIBUTE_LINES_MAX).position(|line| line.contains(")]"));
    lines[..=last.unwrap_or(0)].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        check(Path::new("a.rs"), text).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_ignored_test_needs_a_reason() {
        assert_eq!(lines("\n    #[ignore]\n"), ["a.rs:2: `#[ignore]` without a reason"]);
        assert_eq!(lines("#[ignore = \"needs a tun device\"]\n"), Vec::<String>::new());
    }

    #[test]
    fn an_expected_lint_needs_a_reason() {
        assert_eq!(lines("#![allow(dead_code)]\n"), ["a.rs:1: `#[allow(…)]` without a reason"]);
        assert_eq!(lines("#[expect(unsafe_code, reason = \"pidfd\")]\n"), Vec::<String>::new());
    }

    #[test]
    fn a_reason_may_be_on_a_later_line() {
        assert_eq!(lines("#[expect(\n    unsafe_code,\n    reason = \"pidfd\"\n)]\n"), Vec::<String>::new());
        assert_eq!(lines("#[expect(\n    unsafe_code,\n)]\nlet reason = \"\";\n").len(), 1);
    }

    #[test]
    fn an_attribute_without_an_end_is_named() {
        assert_eq!(lines("#[expect(").len(), 1);
    }
}
