//! The blocks, run.

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
/// Fewer blocks than this means that they were not found.
const RUN_MIN: usize = 10;

/// How a script ended: its exit code, or nothing within the deadline, and what it said.
struct Ended {
    code: Option<i32>,
    said: String,
}

#[test]
fn every_command_of_the_guide_does_what_its_page_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let home = TestHome::with_downloads();
    let mut pages: Vec<PathBuf> = fs::read_dir(root.join("docs/guide"))
        .expect("the guide")
        .map(|entry| entry.expect("readable").path())
        .collect();
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    pages.push(root.join("README.md"));
    pages.sort();
    let (mut failures, mut run) = (String::new(), 0);
    for page in pages {
        let name = page.file_name().expect("a name").display().to_string();
        let folder = tempfile::tempdir().expect("a folder");
        let found =
            blocks(&fs::read_to_string(&page).expect("readable")).unwrap_or_else(|error| panic!("{name}: {error}"));
        for block in found {
            let script = match block.what {
                What::Run(script) => script,
                What::NotRun(reason) => {
                    println!("skip  {name}:{}: {reason}", block.line);
                    continue;
                }
            };
            run += 1;
            let since = Instant::now();
            let Ended { code, said } = shell(&script, folder.path(), home.path());
            println!("{:5.1} s  {name}:{}: {code:?}", since.elapsed().as_secs_f64(), block.line);
            if code != Some(0) {
                writeln!(failures, "{name}:{}: {code:?}\n{script}\n{said}", block.line).expect("a string takes all");
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
    assert!(run >= RUN_MIN, "only {run} blocks");
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
    // Nothing is left of the group where this fails.
    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    let _ = child.wait();
    Ended { code, said: String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned() }
}
