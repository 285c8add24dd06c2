//! Words that no file may contain. This file is an exception, because it lists them.

use std::path::Path;

use super::problem::Problem;

/// Promises to write code later. Write the code now, or open an issue.
const UNFINISHED: [&str; 5] = ["TODO", "FIXME", "XXX", "todo!(", "unimplemented!("];

/// Paths of a developer's machine, and hosts of package registries.
const FOREIGN: [&str; 9] = [
    "/work/main",
    "/work/shared",
    "/tmp/target",
    "/tmp/k/",
    "crates.io",
    "pypi.org",
    "registry.npmjs.org",
    "deb.debian.org",
    "proxy.golang.org",
];

/// Generated files, the licence, and this file.
const EXEMPT: [&str; 4] = ["Cargo.lock", "fuzz/Cargo.lock", "LICENSE", "xtask/src/tidy/words.rs"];

/// Files in which such a word means unfinished work: code and build files, but not prose.
const CODE_EXTENSIONS: [&str; 3] = ["rs", "toml", "sh"];

/// Finds the words in one file.
pub fn check(path: &Path, text: &str) -> Vec<Problem> {
    if EXEMPT.iter().any(|exempt| path == Path::new(exempt)) || is_data(path) {
        return Vec::new();
    }
    let is_code = path.extension().is_none_or(|extension| CODE_EXTENSIONS.iter().any(|code| extension == *code));
    let unfinished = UNFINISHED.iter().filter(|_| is_code);
    let mut problems = Vec::new();
    for word in FOREIGN.iter().chain(unfinished) {
        for (index, line) in text.lines().enumerate() {
            if contains(line, word) {
                problems.push(Problem::new(path, index + 1, format!("contains `{word}`")));
            }
        }
    }
    problems
}

/// Logs, corpora and snapshots are not changed.
fn is_data(path: &Path) -> bool {
    let data = ["fixtures", "corpus", "seeds", "snapshots", "benchmarks"];
    path.components().any(|part| data.iter().any(|name| part.as_os_str() == *name))
}

/// Whether the line has the word on its own: `mkstemp.XXXXXX` does not contain `XXX`.
fn contains(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next().filter(|_| word.ends_with(char::is_alphanumeric));
        ![before, after].into_iter().flatten().any(char::is_alphanumeric)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        check(Path::new(path), text).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn unfinished_code_is_named_with_its_line() {
        assert_eq!(found("a.rs", "fn a() {\n    todo!()\n}\n"), ["a.rs:2: contains `todo!(`"]);
        assert_eq!(found("Makefile", "# FIXME later\n"), ["Makefile:1: contains `FIXME`"]);
    }

    #[test]
    fn prose_may_mention_unfinished_code() {
        assert_eq!(found("CONVENTIONS.md", "no TODO in product code\n"), Vec::<String>::new());
    }

    #[test]
    fn a_part_of_a_word_is_not_found() {
        assert_eq!(found("a.rs", "let template = \"kiln.XXXXXX\";\n"), Vec::<String>::new());
        assert_eq!(found("a.rs", "// see /network/mainland\n"), Vec::<String>::new());
    }

    #[test]
    fn a_path_of_a_developers_machine_is_named_even_in_prose() {
        assert_eq!(found("README.md", "run /work/main/kiln\n"), ["README.md:1: contains `/work/main`"]);
        assert_eq!(found("docs/a.md", "in /tmp/target-me/debug\n").len(), 1);
    }

    #[test]
    fn data_is_not_checked() {
        assert_eq!(found("crates/detect/tests/fixtures/oops.txt", "TODO /work/main\n"), Vec::<String>::new());
    }
}
