//! Words that no file may hold. This file is the one exception, since it lists them.

use std::path::Path;

use super::problem::Problem;

/// Promises to write code later; the code comes now or the thought goes to an issue.
const UNFINISHED: [&str; 5] = ["TODO", "FIXME", "XXX", "todo!(", "unimplemented!("];

/// What belongs to the machine a file was written on, or to where packages happen to come from.
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

/// Files whose text tools or lawyers wrote, and this one.
const EXEMPT: [&str; 4] = ["Cargo.lock", "fuzz/Cargo.lock", "LICENSE", "xtask/src/tidy/words.rs"];

/// Where a word stands for work left undone: code and what builds it, not prose about it.
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
            if holds(line, word) {
                problems.push(Problem::new(path, index + 1, format!("holds `{word}`")));
            }
        }
    }
    problems
}

/// Logs, corpora and snapshots are as they were found.
fn is_data(path: &Path) -> bool {
    let data = ["fixtures", "corpus", "seeds", "snapshots", "benchmarks"];
    path.components().any(|part| data.iter().any(|name| part.as_os_str() == *name))
}

/// Whether the word stands there by itself: `XXX` is no part of `mkstemp.XXXXXX`.
fn holds(line: &str, word: &str) -> bool {
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
        assert_eq!(found("a.rs", "fn a() {\n    todo!()\n}\n"), ["a.rs:2: holds `todo!(`"]);
        assert_eq!(found("Makefile", "# FIXME later\n"), ["Makefile:1: holds `FIXME`"]);
    }

    #[test]
    fn prose_may_speak_of_unfinished_code() {
        assert_eq!(found("CONVENTIONS.md", "no TODO in product code\n"), Vec::<String>::new());
    }

    #[test]
    fn a_word_inside_another_is_none() {
        assert_eq!(found("a.rs", "let template = \"kiln.XXXXXX\";\n"), Vec::<String>::new());
        assert_eq!(found("a.rs", "// see /network/mainland\n"), Vec::<String>::new());
    }

    #[test]
    fn a_path_of_the_machine_it_was_written_on_is_named_even_in_prose() {
        assert_eq!(found("README.md", "run /work/main/kiln\n"), ["README.md:1: holds `/work/main`"]);
        assert_eq!(found("docs/a.md", "in /tmp/target-me/debug\n").len(), 1);
    }

    #[test]
    fn data_is_left_as_it_was_found() {
        assert_eq!(found("crates/detect/tests/fixtures/oops.txt", "TODO /work/main\n"), Vec::<String>::new());
    }
}
