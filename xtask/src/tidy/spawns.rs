//! Programs of the host are started in one place, which decides what they inherit from Kiln's caller.
//!
//! Clippy could refuse `Command::new`, but its list of methods also has those that block, which whole modules of the
//! engine may call.

use std::path::Path;

use super::problem::Problem;

/// The crate that starts programs, and the agent, which starts only programs of its guest.
const EXEMPT: [&str; 2] = ["crates/programs", "crates/agent"];
const START: &str = "Command::new(";

/// The lines of a crate's source file, without its tests, that start a program in another way.
pub fn check(path: &Path, text: &str) -> Vec<Problem> {
    let is_source = path.starts_with("crates") && path.components().any(|part| part.as_os_str() == "src");
    let is_test = path.file_name().is_some_and(|name| name == "tests.rs")
        || path.components().any(|part| part.as_os_str() == "tests");
    if !is_source || is_test || EXEMPT.iter().any(|exempt| path.starts_with(exempt)) {
        return Vec::new();
    }
    let mut is_for_tests = false;
    let lines = text.lines().enumerate().take_while(|(_, line)| {
        // Unit tests are at the end of a file, so the search ends there.
        let is_module = std::mem::replace(&mut is_for_tests, line.trim() == "#[cfg(test)]") && line.contains("mod ");
        !(is_module && line.ends_with('{'))
    });
    let starts = lines.filter(|(_, line)| {
        let code = line.split("//").next().unwrap_or_default();
        code.contains(START)
    });
    let problem = "starts a program: use `kiln_programs::command`, which sets its environment and descriptors";
    starts.map(|(index, _)| Problem::new(path, index + 1, problem)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &str, text: &str) -> usize {
        check(Path::new(path), text).len()
    }

    #[test]
    fn a_program_is_started_in_one_place() {
        let starts = "//! A.\nfn a() { std::process::Command::new(\"ls\"); }\n";
        for path in ["crates/engine/src/a.rs", "crates/cli/src/bench/a.rs", "crates/vdev/src/a.rs"] {
            assert_eq!(lines(path, starts), 1, "{path}");
        }
        for path in [
            "crates/programs/src/lib.rs",
            "crates/agent/src/a.rs",
            "crates/engine/tests/a.rs",
            "e2e/src/a.rs",
            "crates/vdev/benches/a.rs",
        ] {
            assert_eq!(lines(path, starts), 0, "{path}");
        }
    }

    #[test]
    fn tests_and_comments_may_name_it() {
        assert_eq!(
            lines("crates/cli/src/a.rs", "// Command::new( is std's\n#[cfg(test)]\nmod tests {\n Command::new(x)"),
            0
        );
    }
}
