//! Pages that name tests: each test that SECURITY.md or SPECIFICATION.md gives as evidence exists.

use std::collections::BTreeSet;
use std::path::Path;

use super::problem::Problem;

/// The pages, by name.
pub const PAGES: [&str; 2] = ["SECURITY.md", "SPECIFICATION.md"];

/// A name with fewer parts may be anything in code; a test's name is a sentence.
const PARTS_MIN: usize = 4;

/// Collects the names of a file's functions.
pub fn functions(text: &str, names: &mut BTreeSet<String>) {
    for rest in text.split("fn ").skip(1) {
        let end = rest.find(|c: char| !is_part(c)).unwrap_or(rest.len());
        names.insert(rest[..end].to_owned());
    }
}

/// Finds each name in backticks that looks like a test's and is not a function of any file. A name may end in `…`, and
/// stands for all that begin so.
pub fn check(path: &Path, text: &str, names: &BTreeSet<String>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for quoted in line.split('`').skip(1).step_by(2) {
            let name = quoted.rsplit("::").next().unwrap_or_default();
            let start = name.trim_end_matches('…');
            if !start.chars().all(is_part) || start.split('_').count() < PARTS_MIN {
                continue;
            }
            let exists = names
                .range(start.to_owned()..)
                .next()
                .is_some_and(|found| if start.len() < name.len() { found.starts_with(start) } else { found == start });
            if !exists {
                problems.push(Problem::new(path, index + 1, format!("names the test `{name}`, which does not exist")));
            }
        }
    }
    problems
}

fn is_part(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(page: &str) -> Vec<String> {
        let mut names = BTreeSet::new();
        functions("#[test]\nfn a_door_is_closed_at_night() {}\n", &mut names);
        check(Path::new("SECURITY.md"), page, &names).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_test_that_does_not_exist_is_named() {
        let words = "SECURITY.md:2: names the test `a_door_is_open_at_night`, which does not exist";
        assert_eq!(found("a\n`a_door_is_open_at_night`\n"), [words]);
        assert_eq!(
            found("`cli::a_door_is_closed_at_night`, `a_door_is…`, `kiln_out`, `KILN_HOME`\n"),
            Vec::<String>::new()
        );
        assert_eq!(found("`a_door_is_closed`\n").len(), 1, "the beginning of a name is not a name");
    }
}
