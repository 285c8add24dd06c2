//! Named steps at which a test can kill the process, make the step fail, or act itself.
//!
//! ```text
//!   KILN_FAILPOINT=save.device:kill kiln …    ──▶ hit("save.device") ──▶ SIGKILL at once
//! ```
//! Without the feature `failpoints`, `hit` is empty and the variable is not read.
//!
//! A name is `act.step`. It is hit right *after* the step: `save.device` when the device state is written.

use std::io;

/// Names one fail point and its action: `name`, `name:kill`, `name:error` or `name:wait-PATH`. The last creates that
/// file and continues once the test has removed it.
pub const FAIL_POINT_VARIABLE: &str = "KILN_FAILPOINT";

/// All fail points, in the order in which the life of a VM passes them, then those of a volume and of a kernel.
pub const FAIL_POINTS: &[&str] = &[
    "launch.dir",
    "launch.spawned",
    "launch.running",
    "save.begun",
    "save.paused",
    "save.device",
    "save.memory",
    "save.disks",
    "save.manifest",
    "save.published",
    "save.resumed",
    "stop.killed",
    "stop.journaled",
    "restore.dir",
    "restore.spawned",
    "restore.loaded",
    "restore.pages",
    "restore.running",
    "seal.hashed",
    "seal.renamed",
    "recover.killed",
    "recover.lost",
    "recover.decided",
    "adopt.connected",
    "adopt.resumed",
    "volume.data",
    "volume.filled",
    "volume.recorded",
    "volume.published",
    "volume.marked",
    "volume.ended",
    "volume.unmarked",
    "volume.checked",
    "volume.larger",
    "volume.grown",
    "volume.exported",
    "volume.unnamed",
    "kernel.modules",
    "kernel.recorded",
    "kernel.published",
];

/// A step that was made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stopped at the fail point `{0}`")]
pub struct FailPoint(pub(crate) &'static str);

impl From<FailPoint> for io::Error {
    fn from(error: FailPoint) -> Self {
        Self::other(error)
    }
}

/// Acts as [`FAIL_POINT_VARIABLE`] requires, if it names this place.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub(crate) fn hit(_name: &'static str) -> Result<(), FailPoint> {
    Ok(())
}

/// Acts as [`FAIL_POINT_VARIABLE`] requires, if it names this place.
#[cfg(feature = "failpoints")]
pub(crate) fn hit(name: &'static str) -> Result<(), FailPoint> {
    armed::hit(name)
}

#[cfg(feature = "failpoints")]
#[expect(clippy::disallowed_methods, reason = "a test that stops a thread here wants that")]
mod armed {
    use std::sync::OnceLock;
    use std::time::{Duration, Instant};

    use camino::Utf8PathBuf;
    use rustix::process::Signal;

    use super::{FAIL_POINT_VARIABLE, FAIL_POINTS, FailPoint};

    /// The time for a test to act and remove the file.
    const WAIT_DEADLINE: Duration = Duration::from_secs(60);
    const LOOK_INTERVAL: Duration = Duration::from_millis(2);

    /// The action at a fail point.
    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Action {
        Kill,
        Error,
        Wait(Utf8PathBuf),
    }

    pub(super) fn hit(name: &'static str) -> Result<(), FailPoint> {
        static CHOSEN: OnceLock<Option<(String, Action)>> = OnceLock::new();
        debug_assert!(FAIL_POINTS.contains(&name), "`{name}` is not in the list that tests walk");
        let chosen = CHOSEN.get_or_init(|| {
            let value = std::env::var(FAIL_POINT_VARIABLE).ok()?;
            // With a misspelt name, a test would pass without having tested anything.
            Some(parse(&value).unwrap_or_else(|| panic!("`{FAIL_POINT_VARIABLE}={value}` names no fail point")))
        });
        match chosen {
            Some((chosen, action)) if chosen == name => act(name, action),
            _ => Ok(()),
        }
    }

    fn act(name: &'static str, action: &Action) -> Result<(), FailPoint> {
        match action {
            Action::Kill => {
                let myself = rustix::process::getpid();
                rustix::process::kill_process(myself, Signal::KILL).expect("a process may kill itself");
                // The signal may take a moment. This thread must not continue until then.
                loop {
                    std::thread::park();
                }
            }
            Action::Error => Err(FailPoint(name)),
            Action::Wait(path) => {
                fs_err::write(path, name).expect("a test may write there");
                let deadline = Instant::now() + WAIT_DEADLINE;
                while path.exists() {
                    assert!(Instant::now() < deadline, "`{path}` was not removed within {WAIT_DEADLINE:?}");
                    std::thread::sleep(LOOK_INTERVAL);
                }
                Ok(())
            }
        }
    }

    fn parse(value: &str) -> Option<(String, Action)> {
        let (name, action) = value.split_once(':').unwrap_or((value, "kill"));
        let action = match action.strip_prefix("wait-") {
            Some(path) if path.starts_with('/') => Action::Wait(path.into()),
            None if action == "kill" => Action::Kill,
            None if action == "error" => Action::Error,
            _ => return None,
        };
        FAIL_POINTS.contains(&name).then(|| (name.to_owned(), action))
    }

    #[cfg(test)]
    mod tests {
        use std::os::unix::process::ExitStatusExt as _;
        use std::process::Command;

        use super::*;

        #[test]
        fn a_value_names_a_point_and_its_action() {
            let save = |action| Some(("save.device".to_owned(), action));
            assert_eq!(parse("save.device"), save(Action::Kill));
            assert_eq!(parse("save.device:kill"), save(Action::Kill));
            assert_eq!(parse("save.device:error"), save(Action::Error));
            assert_eq!(parse("save.device:wait-/tmp/a:b"), save(Action::Wait("/tmp/a:b".into())));
            for wrong in ["", "save", "save.device:", "save.device:wait-", "save.device:wait-here", "no.such:kill"] {
                assert_eq!(parse(wrong), None, "{wrong}");
            }
        }

        #[test]
        #[ignore = "the other half of the test below, started by it in a process of its own"]
        fn pass_two_points() {
            println!("first {:?}", hit("save.begun"));
            println!("second {:?}", hit("save.paused"));
        }

        #[test]
        fn only_the_named_fail_point_acts() {
            let run = |value: &str| {
                let mut command = Command::new(std::env::current_exe().expect("this binary"));
                command.args(["--exact", "failpoint::armed::tests::pass_two_points", "--nocapture", "--ignored"]);
                let output = command.env(FAIL_POINT_VARIABLE, value).output().expect("runs");
                (output.status, String::from_utf8(output.stdout).expect("UTF-8"))
            };
            let (status, words) = run("save.paused");
            assert_eq!(status.signal(), Some(9));
            assert!(words.contains("first Ok") && !words.contains("second"), "{words}");
            let path = std::env::temp_dir().join(format!("kiln-fail-point-{}", std::process::id()));
            let value = format!("save.begun:wait-{}", path.display());
            let (status, words) = std::thread::scope(|scope| {
                let waiting = scope.spawn(|| run(&value));
                let deadline = Instant::now() + WAIT_DEADLINE;
                while fs_err::remove_file(&path).is_err() {
                    assert!(Instant::now() < deadline, "it does not come there");
                    std::thread::sleep(LOOK_INTERVAL);
                }
                waiting.join().expect("no panic")
            });
            assert!(status.success() && words.contains("first Ok"), "{words}");
            let (status, words) = run("save.begun:error");
            assert!(status.success());
            assert!(words.contains("first Err") && words.contains("second Ok"), "{words}");
        }
    }
}
