//! What a program inherits from a process that has a secret in its environment and descriptors 3 to 300 open.
//!
//! The process is another run of this test binary. The first run can't be used: its environment and descriptors are the
//! test runner's.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::process::{Command, Output, Stdio};

use kiln_programs::{APT, Environment, PATH_ONLY, command, keep};

/// Names what the second process does. This variable is also the secret.
const ACT: &str = "KILN_TEST_SECRET_ACT";
/// Prints the names of the environment and the numbers of open descriptors. `ls` opens one more to read the list.
const SHOW: &str = "cat /proc/self/environ | tr '\\0' '\\n' | cut -d= -f1; echo; ls -1 /proc/self/fd";
const LAST: i32 = 300;

/// Runs this test alone in a second process with everything set, and returns the output of its child.
fn act(name: &str, what: &str) -> Output {
    let mut again = Command::new(std::env::current_exe().expect("this binary"));
    again.args(["--exact", name, "--nocapture"]).env_clear().env("PATH", std::env::var_os("PATH").expect("is set"));
    again.env(ACT, what).env("http_proxy", "http://proxy").env("HOME", "/").env("LANG", "C");
    again.stdin(Stdio::null()).output().expect("runs")
}

/// Opens descriptors 3 to 300 so that every child inherits them. The process exits after its act.
fn open_many() {
    let file = std::fs::File::open("/dev/null").expect("opens");
    while let Ok(next) = rustix::io::dup(file.as_fd()) {
        let number = std::os::fd::IntoRawFd::into_raw_fd(next);
        if number >= LAST {
            break;
        }
    }
}

/// The names of the environment, and the numbers of open descriptors above stderr.
fn shown(output: &Output) -> (BTreeSet<String>, Vec<i32>) {
    let text = String::from_utf8_lossy(&output.stdout);
    let begun =
        text.split_once("<<<\n").unwrap_or_else(|| panic!("{text} {}", String::from_utf8_lossy(&output.stderr))).1;
    let (names, numbers) = begun.split_once(">>>").expect("an end").0.split_once("\n\n").expect("two parts");
    let numbers = numbers.split_whitespace().map(|number| number.parse().expect("a number"));
    (names.lines().map(str::to_owned).collect(), numbers.filter(|number| *number > 2).collect())
}

fn show(mut program: Command) {
    let output = program.args(["-c", SHOW]).output().expect("runs");
    println!("<<<\n{}>>>", String::from_utf8_lossy(&output.stdout));
}

fn in_the_act() -> Option<String> {
    let act = std::env::var(ACT).ok();
    if act.is_some() {
        open_many();
    }
    act
}

#[test]
fn a_program_has_the_named_environment_and_no_descriptors() {
    if let Some(act) = in_the_act() {
        return show(command("/bin/sh", if act == "apt" { APT } else { PATH_ONLY }));
    }
    // `PWD` and the like are the shell's own.
    let shells = ["PWD", "OLDPWD", "SHLVL", "_"];
    for (act_name, wanted) in [("path", &["PATH"][..]), ("apt", &["HOME", "PATH", "http_proxy"])] {
        let (names, open) = shown(&act("a_program_has_the_named_environment_and_no_descriptors", act_name));
        let named = names.iter().map(String::as_str).filter(|name| !shells.contains(name));
        assert_eq!(named.collect::<Vec<_>>(), wanted, "{act_name}");
        assert_eq!(open.len(), 1, "only that of `ls`: {open:?}");
    }
}

#[test]
fn a_program_of_the_users_has_the_environment_and_no_descriptors() {
    if in_the_act().is_some() {
        return show(command("/bin/sh", Environment::Callers));
    }
    let (names, open) = shown(&act("a_program_of_the_users_has_the_environment_and_no_descriptors", "all"));
    assert!(names.contains(ACT) && names.contains("LANG"), "{names:?}");
    assert_eq!(open.len(), 1, "only that of `ls`: {open:?}");
}

#[test]
fn a_descriptor_that_is_named_is_kept() {
    if in_the_act().is_some() {
        let mut shell = command("/bin/sh", PATH_ONLY);
        #[expect(unsafe_code, reason = "a descriptor that the act has opened")]
        // SAFETY: it stays open until this process ends.
        keep(&mut shell, unsafe { BorrowedFd::borrow_raw(250) });
        return show(shell);
    }
    let (_, open) = shown(&act("a_descriptor_that_is_named_is_kept", "keep"));
    assert!(open.contains(&250) && open.len() == 2, "that and the descriptor of `ls`: {open:?}");
}

/// Shows that the tests above can fail: without `command`, everything is inherited.
#[test]
fn a_program_that_is_started_otherwise_inherits_everything() {
    if in_the_act().is_some() {
        return show(Command::new("/bin/sh"));
    }
    let (names, open) = shown(&act("a_program_that_is_started_otherwise_inherits_everything", "plain"));
    assert!(names.contains(ACT));
    assert!((100..=LAST).all(|number| open.contains(&number)), "{open:?}");
}
