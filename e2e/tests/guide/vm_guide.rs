//! Runs the blocks of each page.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kiln_e2e::{TestHome, kiln_binary};

use crate::blocks::{What, blocks};

/// One block; the longest one makes two ready-made snapshots.
const BLOCK_DEADLINE: Duration = Duration::from_secs(120);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Pages with blocks that can be run.
const PAGES: [&str; 10] = [
    "README.md",
    "docs/guide/doctor.md",
    "docs/guide/image.md",
    "docs/guide/kernels.md",
    "docs/guide/lab.md",
    "docs/guide/run.md",
    "docs/guide/scan.md",
    "docs/guide/snapshots.md",
    "docs/guide/vhost.md",
    "docs/guide/volumes.md",
];

/// How a script ended: its exit code (`None` after the deadline) and its output.
struct Ended {
    code: Option<i32>,
    said: String,
}

/// Each page is a test, so pages run in parallel. Each has its own folder, and its own home with the image and the
/// snapshot that `make test` has made.
fn run_page(path: &str) {
    let text = fs::read_to_string(root().join(path)).expect("readable");
    let (home, folder) = (TestHome::with_everything(), tempfile::tempdir().expect("a folder"));
    let (mut failures, mut run) = (String::new(), 0);
    for block in blocks(&text).unwrap_or_else(|error| panic!("{path}: {error}")) {
        let script = match block.what {
            What::Run(script) => script,
            What::NotRun(reason) => {
                println!("skip  {path}:{}: {reason}", block.line);
                continue;
            }
        };
        run += 1;
        let since = Instant::now();
        let Ended { code, said } = shell(&script, folder.path(), home.path());
        println!("{:5.1} s  {path}:{}: {code:?}", since.elapsed().as_secs_f64(), block.line);
        if code != Some(0) {
            writeln!(failures, "{path}:{}: {code:?}\n{script}\n{said}", block.line).expect("a string takes all");
        }
    }
    assert!(failures.is_empty(), "{failures}");
    assert!(run > 0, "no block of {path} was found");
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn every_command_of_the_readme_does_what_its_page_says() {
    run_page("README.md");
}

#[test]
fn every_command_of_doctor_does_what_its_page_says() {
    run_page("docs/guide/doctor.md");
}

#[test]
fn every_command_of_image_does_what_its_page_says() {
    run_page("docs/guide/image.md");
}

#[test]
fn every_command_of_kernels_does_what_its_page_says() {
    run_page("docs/guide/kernels.md");
}

#[test]
fn every_command_of_run_does_what_its_page_says() {
    run_page("docs/guide/run.md");
}

#[test]
fn every_command_of_scan_does_what_its_page_says() {
    run_page("docs/guide/scan.md");
}

#[test]
fn every_command_of_snapshots_does_what_its_page_says() {
    run_page("docs/guide/snapshots.md");
}

#[test]
fn every_command_of_vhost_does_what_its_page_says() {
    run_page("docs/guide/vhost.md");
}

#[test]
fn every_command_of_volumes_does_what_its_page_says() {
    run_page("docs/guide/volumes.md");
}

#[test]
fn every_command_of_the_lab_does_what_its_page_says() {
    run_page("docs/guide/lab.md");
}

#[test]
fn every_page_has_a_test_or_no_block_to_run() {
    let listed = fs::read_dir(root().join("docs/guide")).expect("the guide");
    let names = listed.map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8"));
    let mut pages: Vec<String> =
        names.filter(|name| name.ends_with(".md")).map(|name| format!("docs/guide/{name}")).collect();
    pages.push("README.md".to_owned());
    pages.retain(|page| {
        let text = fs::read_to_string(root().join(page)).expect("readable");
        let blocks = blocks(&text).unwrap_or_else(|error| panic!("{page}: {error}"));
        blocks.iter().any(|block| matches!(block.what, What::Run(_)))
    });
    pages.sort();
    assert_eq!(pages, PAGES);
}

/// Runs a script to its end, in a group of its own that is killed at the end with whatever it left behind.
fn shell(script: &str, folder: &Path, home: &Path) -> Ended {
    let kiln = kiln_binary();
    let path = format!("{}:{}", kiln.parent().expect("a folder").display(), std::env::var("PATH").unwrap_or_default());
    let log = folder.join(".log");
    let output = fs::File::create(&log).expect("a new file");
    let mut command = Command::new("sh");
    command.args(["-exc", script]).current_dir(folder).env("PATH", path).env("KILN_HOME", home).env("HOME", folder);
    if let Some(agent) = std::env::var_os("KILN_AGENT_BIN") {
        command.env("KILN_AGENT", agent);
    }
    let output_too = output.try_clone().expect("a descriptor");
    command.stdin(Stdio::null()).stdout(output).stderr(output_too).process_group(0);
    let mut child = command.spawn().expect("sh starts");
    let group = rustix::process::Pid::from_child(&child);
    let deadline = Instant::now() + BLOCK_DEADLINE;
    let code = loop {
        match child.try_wait().expect("a child can be waited for") {
            Some(status) => break status.code(),
            None if Instant::now() > deadline => break None,
            None => std::thread::sleep(LOOK_INTERVAL),
        }
    };
    // Fails only if the group has ended.
    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    let _ = child.wait();
    Ended { code, said: String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned() }
}
