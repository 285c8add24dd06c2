//! VMs that outlive the process that started them, and are adopted by another one.

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use kiln_engine::home::Home;
use kiln_engine::link::GuestLink;
use kiln_engine::{
    AccelerationRequest, AdoptError, Engine as _, ExitReason, Outcome, OwnerLoss, QemuEngine, ReopenError, Vm, VmId,
    VmSpec, VmmStatus, recover,
};
use kiln_wire::ExecRequest;

use support::{Lab, STEP_DEADLINE, console_until, helper_process, is_alive, mini, spec};

const HOME_VARIABLE: &str = "KILN_TEST_ADOPT_HOME";
const SCENE_VARIABLE: &str = "KILN_TEST_ADOPT_SCENE";
const OUTPUT_BYTES_MAX: u64 = 1 << 16;

/// A VM whose owner was killed. It is killed at the end, if the test did not do so.
struct Orphan {
    lab: Lab,
    id: VmId,
    pid: u32,
}

impl Orphan {
    /// Starts a VM in another process, as `scene` requires, and kills that process.
    fn make(scene: &str) -> Self {
        let lab = Lab::new();
        let mut owner = helper_process("own_a_vm_and_wait_to_be_killed", HOME_VARIABLE, lab.home().as_str())
            .env(SCENE_VARIABLE, scene)
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let ready = ready_line(&mut owner);
        owner.kill().expect("SIGKILL");
        owner.wait().expect("ends");
        let (id, pid) = ready.split_once(' ').expect("two words");
        Self { lab, id: id.parse().expect("an id"), pid: pid.parse().expect("a pid") }
    }

    fn outcome(&self) -> Outcome {
        let recovered = recover(&Home::at(self.lab.home())).expect("recovers");
        let [recovered] = &recovered[..] else { panic!("{recovered:?}") };
        assert_eq!(recovered.id, self.id);
        recovered.outcome.clone()
    }

    async fn adopt(&self) -> Vm {
        self.lab.engine().adopt(&self.id).await.expect("is adopted")
    }

    fn journal_path(&self) -> Utf8PathBuf {
        self.lab.home().join("vms").join(self.id.as_str()).join("journal")
    }

    fn journal(&self) -> String {
        std::fs::read_to_string(self.journal_path()).expect("reads")
    }

    /// The last state of the journal, as JSON.
    fn last_state(&self) -> String {
        let journal = self.journal();
        let record: serde_json::Value = serde_json::from_str(journal.lines().last().expect("has lines")).expect("JSON");
        record["state"].to_string()
    }

    /// Leaves what a save leaves that was interrupted after these lines of the journal. Returns its unfinished
    /// directory.
    fn interrupt_save(&self, journal: &str) -> Utf8PathBuf {
        let saving =
            r#"{"generation":9,"state":{"saving":{"snapshot":"0123456789abcdef","then":"stop"}},"at_unix_ms":0}"#;
        std::fs::write(self.journal_path(), format!("{journal}{saving}\n")).expect("written");
        let partial = self.lab.home().join("snapshots/0123456789abcdef-0.partial");
        std::fs::create_dir_all(&partial).expect("made");
        partial
    }
}

impl Drop for Orphan {
    fn drop(&mut self) {
        if is_alive(self.pid) {
            // This was the VMM's pid a moment ago, and nothing else starts so many processes meanwhile.
            drop(Command::new("kill").args(["-9", &self.pid.to_string()]).status());
        }
    }
}

fn ready_line(owner: &mut Child) -> String {
    let lines = BufReader::new(owner.stdout.take().expect("piped")).lines();
    lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("ready ").map(str::to_owned))
        .expect("the owner started a VM")
}

async fn link(vm: &Vm) -> GuestLink {
    vm.connect(STEP_DEADLINE).await.expect("the agent answers")
}

async fn shell(link: &GuestLink, script: &str) -> String {
    let argv = ["sh", "-c", script].map(Into::into).to_vec();
    let output = link.run(ExecRequest { argv, ..ExecRequest::default() }, b"", OUTPUT_BYTES_MAX).await.expect("runs");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[tokio::test]
#[ignore = "the other half of the tests below, started by them in a process of its own"]
async fn own_a_vm_and_wait_to_be_killed() {
    let home = Utf8PathBuf::from(std::env::var(HOME_VARIABLE).expect("started by a test below"));
    let scene = std::env::var(SCENE_VARIABLE).expect("started by a test below");
    let engine = QemuEngine::find(&home).expect("QEMU is installed");
    let spec = match scene.as_str() {
        "linked" => {
            let image = mini();
            let acceleration = AccelerationRequest::Tcg;
            VmSpec { cmdline: image.cmdline, acceleration, ..VmSpec::new(image.kernel, image.initramfs) }
        }
        "paused" => spec(&home, "count"),
        other => spec(&home, other),
    };
    let mut vm = engine.launch(VmSpec { owner_loss: OwnerLoss::KeepRunning, ..spec }).await.expect("starts");
    let mut events = vm.take_events().expect("not taken");
    let mut held = None;
    match scene.as_str() {
        "linked" => {
            let link = link(&vm).await;
            shell(&link, "echo before > /tmp/word; echo for the first owner > /dev/ttyS0").await;
            console_until(&mut events, "for the first owner").await;
            held = Some(link);
        }
        "much" => drop(console_until(&mut events, "0123456789").await),
        _ => drop(console_until(&mut events, "count 3").await),
    }
    if scene == "paused" {
        vm.pause().await.expect("pauses");
    }
    println!("\nready {} {}", vm.id(), vm.pid());
    std::io::stdout().flush().expect("written");
    vm.wait().await;
    drop(held);
}

#[tokio::test]
async fn vm_that_outlived_its_owner_is_adopted_with_link_and_console() {
    let orphan = Orphan::make("linked");
    assert!(is_alive(orphan.pid));
    assert_eq!(orphan.outcome(), Outcome::Adoptable);

    let mut vm = orphan.adopt().await;
    assert_eq!(vm.pid(), orphan.pid);
    let again = orphan.lab.engine().adopt(&orphan.id).await.expect_err("it has an owner");
    assert!(matches!(again, AdoptError::Directory(ReopenError::Owned(_))), "{again:?}");
    let mut events = vm.take_events().expect("not taken");
    let link = link(&vm).await;
    assert_eq!(shell(&link, "cat /tmp/word; echo to the console > /dev/ttyS0").await, "before\n");
    console_until(&mut events, "to the console").await;
    // A thread of its own writes the log, so the log may be behind the events.
    let log = || std::fs::read_to_string(vm.dir().join("console.log")).expect("reads");
    for _ in 0..500 {
        if log().contains("to the console") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(log().contains("for the first owner") && log().contains("to the console"), "the log goes on");

    let exit = vm.kill().await;
    assert_eq!((exit.status, exit.reason), (VmmStatus::Unknown, ExitReason::Killed));
    assert!(!is_alive(orphan.pid));
    assert_eq!(orphan.lab.vms(), [""; 0]);
}

#[tokio::test]
async fn vm_without_an_owner_does_not_wait_for_a_reader() {
    let orphan = Orphan::make("much");
    let deadline = Instant::now() + STEP_DEADLINE;
    while is_alive(orphan.pid) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!is_alive(orphan.pid), "it prints more than any pipe holds, and powers off");
    let outcome = orphan.outcome();
    assert!(matches!(&outcome, Outcome::Lost { reason } if reason.contains("while it had no owner")), "{outcome:?}");
    let refused = orphan.lab.engine().adopt(&orphan.id).await.expect_err("it is over");
    assert!(matches!(refused, AdoptError::NotAdoptable(_)), "{refused:?}");
}

#[tokio::test]
async fn vm_that_was_paused_is_adopted_paused() {
    let orphan = Orphan::make("paused");
    assert!(orphan.journal().contains(r#""state":"paused""#), "{}", orphan.journal());
    assert_eq!(orphan.outcome(), Outcome::Adoptable);
    let mut vm = orphan.adopt().await;
    let mut events = vm.take_events().expect("not taken");
    assert!(orphan.journal().ends_with('\n') && orphan.journal().matches(r#""running""#).count() == 1);
    vm.resume().await.expect("resumes");
    console_until(&mut events, "count ").await;
}

#[tokio::test]
async fn vm_that_an_interrupted_save_left_paused_continues() {
    let orphan = Orphan::make("paused");
    // The save has paused it, so its user did not.
    let journal = orphan.journal();
    let begun: String =
        journal.lines().filter(|line| !line.contains("paused")).map(|line| format!("{line}\n")).collect();
    assert_eq!(begun.lines().count() + 1, journal.lines().count());
    let partial = orphan.interrupt_save(&begun);

    let mut vm = orphan.adopt().await;
    let mut events = vm.take_events().expect("not taken");
    console_until(&mut events, "count ").await;
    assert!(!partial.exists());
    assert_eq!(orphan.last_state(), r#""running""#);
}

#[tokio::test]
async fn vm_that_was_paused_before_an_interrupted_save_is_adopted_paused() {
    let orphan = Orphan::make("paused");
    let partial = orphan.interrupt_save(&orphan.journal());

    let mut vm = orphan.adopt().await;
    assert!(!partial.exists());
    assert_eq!(orphan.last_state(), r#""paused""#);
    let mut events = vm.take_events().expect("not taken");
    vm.resume().await.expect("resumes");
    console_until(&mut events, "count ").await;
}
