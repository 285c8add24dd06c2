//! Commands with the interface of `std::process::Command`, against the real agent as a process of this host.

#[path = "support/agent.rs"]
mod agent;

use std::time::Duration;

use agent::agent;
use camino::Utf8Path;
use kiln_engine::link::{GuestLink, Input, StreamError};
use kiln_engine::{Engine as _, FakeEngine, Vm, VmSpec};
use kiln_wire::{ErrorCode, ExitStatus};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::time::{sleep, timeout};

/// No step of these tests takes this long, unless it hangs.
const DEADLINE: Duration = Duration::from_secs(20);

/// A guest, which ends when this is dropped.
struct Lab {
    link: GuestLink,
    vm: Vm,
    _home: tempfile::TempDir,
}

impl Lab {
    async fn new() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let engine = FakeEngine::new(Utf8Path::from_path(home.path()).expect("UTF-8"), agent());
        let vm = engine.launch(VmSpec::new("/unused", "/unused")).await.expect("starts");
        let link = vm.connect(DEADLINE).await.expect("the agent greets");
        Self { link, vm, _home: home }
    }

    async fn end(self) {
        self.vm.kill().await;
    }
}

async fn in_time<T>(step: impl Future<Output = T>) -> T {
    timeout(DEADLINE, step).await.expect("in time")
}

async fn until_gone(pid: u32) {
    let path = format!("/proc/{pid}");
    in_time(async {
        while Utf8Path::new(&path).exists() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_command_gets_its_input_and_returns_its_output() {
    let lab = Lab::new().await;
    let output = lab
        .link
        .command("sh")
        .arg("-c")
        .args(["echo $ONE $TWO $1; pwd; cat; echo words >&2; exit 3", "sh", "argument"])
        .env("ONE", "1")
        .envs([("TWO", "2"), ("UNUSED", "3")])
        .current_dir("/tmp")
        .stdin("from the host")
        .output();
    let output = in_time(output).await.expect("runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1 2 argument\n/tmp\nfrom the host");
    assert_eq!((&output.stderr[..], output.code(), output.success()), (&b"words\n"[..], Some(3), false));

    let mut env = lab.link.command("/usr/bin/env");
    let output = in_time(env.env("LOST", "x").env_clear().env("KEPT", "y").output()).await.expect("runs");
    assert_eq!((&output.stdout[..], output.success()), (&b"KEPT=y\n"[..], true));
    lab.end().await;
}

#[tokio::test]
async fn a_command_can_be_run_again_and_return_only_its_status() {
    let lab = Lab::new().await;
    let mut command = lab.link.command("sh");
    command.args(["-c", "head -c 1000000 /dev/zero; read line; kill -TERM $$"]).stdin(b"line\n".as_slice());
    for _ in 0..2 {
        assert_eq!(in_time(command.status()).await, Ok(ExitStatus::Signal(15)));
    }
    let output = in_time(command.output_bytes_max(10).output()).await.expect("runs");
    assert_eq!((output.stdout.len(), output.exited.truncated, output.code()), (10, true, None));
    lab.end().await;
}

#[tokio::test]
async fn a_missing_program_is_a_fault_with_its_name() {
    let lab = Lab::new().await;
    for missing in [lab.link.command("no-such-program").status().await.map(drop), {
        lab.link.command("no-such-program").spawn().await.map(drop)
    }] {
        let Err(StreamError::Fault(fault)) = missing else { panic!("{missing:?}") };
        assert_eq!(fault.code, ErrorCode::CommandNotFound);
    }
    lab.end().await;
}

#[tokio::test]
async fn a_child_reads_and_writes_line_by_line() {
    let lab = Lab::new().await;
    let script = "while read -r line; do echo \"got $line\"; echo \"noted $line\" >&2; done; exit 4";
    let mut command = lab.link.command("sh");
    let mut child = in_time(command.args(["-c", script]).stdin(Input::Piped).spawn()).await.expect("starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    let mut stdout = BufReader::new(child.stdout.take().expect("it is there")).lines();
    for word in ["one", "two"] {
        in_time(stdin.write_all(format!("{word}\n").as_bytes())).await.expect("it reads");
        let line = in_time(stdout.next_line()).await.expect("it writes");
        assert_eq!(line, Some(format!("got {word}")));
    }
    drop(stdin);
    assert_eq!(in_time(stdout.next_line()).await.expect("it ends"), None);
    let mut stderr = String::new();
    let mut words = child.stderr.take().expect("it is there");
    in_time(words.read_to_string(&mut stderr)).await.expect("it ends");
    assert_eq!(stderr, "noted one\nnoted two\n");
    for _ in 0..2 {
        assert_eq!(in_time(child.wait()).await.expect("it ends").status, ExitStatus::Code(4));
    }
    lab.end().await;
}

#[tokio::test]
async fn a_childs_output_is_read_up_to_a_bound_and_it_still_ends() {
    let lab = Lab::new().await;
    let mut command = lab.link.command("sh");
    command.args(["-c", "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2; echo end"]);
    let child = in_time(command.spawn()).await.expect("starts");
    let output = in_time(child.wait_with_output(1_000_000)).await.expect("it ends");
    assert_eq!(output.stdout.len() + output.stderr.len(), 1_000_000);
    assert!(output.exited.truncated && output.success());

    // Its output has no reader at all.
    let mut child = in_time(command.spawn()).await.expect("starts");
    (child.stdout, child.stderr) = (None, None);
    assert_eq!(in_time(child.wait()).await.expect("it ends").status, ExitStatus::Code(0));
    lab.end().await;
}

#[tokio::test]
async fn a_child_is_killed_on_request_and_on_drop() {
    let lab = Lab::new().await;
    let mut command = lab.link.command("sh");
    command.args(["-c", "head -c 10000000 /dev/zero; sleep 1000"]);
    // Its output is full and has no reader.
    let mut child = in_time(command.spawn()).await.expect("starts");
    assert_eq!(in_time(child.kill()).await.expect("it ends").status, ExitStatus::Signal(9));
    assert!(matches!(child.start_kill(), Err(StreamError::Ended)));

    let child = in_time(command.spawn()).await.expect("starts");
    let pid = child.id();
    assert!(Utf8Path::new(&format!("/proc/{pid}")).exists());
    drop(child);
    until_gone(pid).await;
    lab.end().await;
}

#[tokio::test]
async fn a_child_of_a_lost_link_ends_with_an_error() {
    let lab = Lab::new().await;
    let mut child = in_time(lab.link.command("sleep").arg("1000").spawn()).await.expect("starts");
    let mut stdout = child.stdout.take().expect("it is there");
    lab.end().await;
    assert!(matches!(in_time(child.wait()).await, Err(StreamError::LinkLost(_))));
    assert_eq!(in_time(stdout.read(&mut [0; 8])).await.expect("no error of its own"), 0);
}
