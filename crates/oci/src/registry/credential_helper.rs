//! Asks a program `docker-credential-NAME` for the credentials of a registry.
//!
//! The program reads the registry's name from stdin and writes JSON to stdout. It is chosen by the user's configuration
//! of docker and finds keys and agents through the user's environment, so it inherits that. It may wait for the user to
//! unlock a key, up to a deadline.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use kiln_programs::{Environment, command};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Deserialize;

/// How long a helper may take.
pub const HELPER_DEADLINE: Duration = Duration::from_secs(60);
/// The longest answer.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// The longest name of a helper.
const NAME_BYTES_MAX: usize = 64;
/// What helpers print if they have nothing for a registry.
const NOT_FOUND: &str = "credentials not found";
/// How often it is checked whether a helper has exited after its answer.
const EXIT_CHECK: Duration = Duration::from_millis(10);

/// A user and a password, or a token.
#[derive(Deserialize)]
pub(crate) struct Found {
    #[serde(rename = "Username")]
    pub user: String,
    #[serde(rename = "Secret")]
    pub secret: String,
}

/// Why a helper has no answer.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// Its name is not a name of a program.
    #[error("`{}` is not the name of a credential helper", .name.escape_debug())]
    Name {
        /// The name.
        name: String,
    },
    /// It can't be started or read.
    #[error("failed to run `{program}`")]
    Run {
        /// The program.
        program: String,
        /// The error.
        source: io::Error,
    },
    /// It failed.
    #[error("`{program}` failed: {}", .message.escape_debug())]
    Failed {
        /// The program.
        program: String,
        /// What it printed.
        message: String,
    },
    /// It took too long.
    #[error("`{program}` did not answer within {waited:?}")]
    Deadline {
        /// The program.
        program: String,
        /// How long it had.
        waited: Duration,
    },
    /// Its answer is malformed or too long.
    #[error("the answer of `{program}` is malformed")]
    Answer {
        /// The program.
        program: String,
    },
}

/// The credentials that a helper has for a registry.
pub(crate) fn get(name: &str, registry: &str) -> Result<Option<Found>, HelperError> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_part) {
        return Err(HelperError::Name { name: name.chars().take(NAME_BYTES_MAX).collect() });
    }
    ask(format!("docker-credential-{name}"), registry, HELPER_DEADLINE)
}

fn ask(program: String, registry: &str, deadline: Duration) -> Result<Option<Found>, HelperError> {
    let run = |source| HelperError::Run { program: program.clone(), source };
    let mut helper = command(&program, Environment::Callers);
    helper.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = Running(helper.spawn().map_err(run)?);
    // A pipe holds more than a registry's name, so this does not block.
    let mut stdin = child.0.stdin.take().expect("is piped");
    match stdin.write_all(registry.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(run(error)),
        _ => drop(stdin),
    }
    let end = Instant::now() + deadline;
    let late = || HelperError::Deadline { program: program.clone(), waited: deadline };
    let answer = child.answer(end).map_err(run)?.ok_or_else(late)?;
    if answer.len() > ANSWER_BYTES_MAX {
        return Err(HelperError::Answer { program });
    }
    let status = loop {
        match child.0.try_wait().map_err(run)? {
            Some(status) => break status,
            None if Instant::now() > end => return Err(late()),
            None => std::thread::sleep(EXIT_CHECK),
        }
    };
    if !status.success() {
        let message: String = String::from_utf8_lossy(&answer).trim().chars().take(200).collect();
        return if message.contains(NOT_FOUND) { Ok(None) } else { Err(HelperError::Failed { program, message }) };
    }
    serde_json::from_slice(&answer).map(Some).map_err(|_| HelperError::Answer { program })
}

/// A helper that does not outlive its call.
struct Running(Child);

impl Running {
    /// What it prints until it closes stdout; `None` at the deadline.
    fn answer(&mut self, end: Instant) -> io::Result<Option<Vec<u8>>> {
        let mut stdout = self.0.stdout.take().expect("is piped");
        let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
        while answer.len() <= ANSWER_BYTES_MAX {
            let left = end.saturating_duration_since(Instant::now());
            let wait = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            let ready = poll(&mut [PollFd::new(&stdout.as_fd(), PollFlags::IN)], Some(&wait));
            match ready {
                Ok(0) => return Ok(None),
                Err(rustix::io::Errno::INTR) => continue,
                ready => ready?,
            };
            match stdout.read(&mut buffer)? {
                0 => break,
                count => answer.extend_from_slice(&buffer[..count]),
            }
        }
        Ok(Some(answer))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if it has exited and was waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// The answer of a helper that is this script.
    fn answer(script: &str, deadline: Duration) -> Result<Option<(String, String)>, String> {
        let home = tempfile::tempdir().expect("a directory");
        let program = home.path().join("docker-credential-test");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("a file");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).expect("is ours");
        let name = program.to_str().expect("is text").to_owned();
        match ask(name.clone(), "registry.example", deadline) {
            Ok(found) => Ok(found.map(|found| (found.user, found.secret))),
            Err(error) => Err(error.to_string().replace(&name, "HELPER")),
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_helper_reads_the_registry_and_prints_the_secret() {
        let script = r#"read -r registry; printf '{"ServerURL":"%s","Username":"me","Secret":"%s"}' "$1" "$registry""#;
        assert_eq!(answer(script, LONG), Ok(Some(("me".to_owned(), "registry.example".to_owned()))));
        let nothing = "echo 'credentials not found in native keychain'; exit 1";
        assert_eq!(answer(nothing, LONG), Ok(None));
    }

    #[test]
    fn a_helper_that_fails_is_named() {
        let lines = [
            answer("echo locked; exit 1", LONG),
            answer("echo '{}'", LONG),
            answer("head -c 100000 /dev/zero; exec sleep 1000", LONG),
            answer("exec sleep 1000", Duration::from_millis(200)),
            answer("exec >&-; exec sleep 1000", Duration::from_millis(200)),
        ];
        insta::assert_snapshot!(lines.map(|outcome| outcome.expect_err("fails")).join("\n"));
    }

    #[test]
    fn a_name_that_is_a_path_is_refused() {
        for name in ["", "../x", "a/b", "a b", "x\0"] {
            assert!(matches!(get(name, "registry.example"), Err(HelperError::Name { .. })), "{name}");
        }
        assert!(matches!(get("kiln-test-missing", "registry.example"), Err(HelperError::Run { .. })));
    }
}
