//! The fake engine with the real agent. It takes the place of VMs in the tests of everything above the engine.

#[path = "../support/agent.rs"]
mod agent;
mod ends;
mod kept;
mod pools;
mod saves;

use std::time::{Duration, Instant};

use std::os::unix::fs::MetadataExt as _;

use agent::agent;
use camino::Utf8Path;
use kiln_engine::link::GuestLink;
use kiln_engine::{
    Acceleration, Attachment, Disk, DiskFormat, DiskRole, Engine as _, ExitReason, FakeEngine, ForkPart, ForkSpec,
    LaunchError, MacAddress, Nic, NicPart, RestoreError, Tap, VmEvent, VmSpec,
};
use kiln_wire::{ExecRequest, Text};

/// No step of these tests takes this long, unless it hangs.
const DEADLINE: Duration = Duration::from_secs(20);

/// A guest that does nothing for this long is paused: a running guest counts in less than a tenth of it.
const STANDS: Duration = Duration::from_millis(200);

struct Lab {
    directory: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory") }
    }

    fn home(&self) -> &Utf8Path {
        Utf8Path::from_path(self.directory.path()).expect("UTF-8")
    }

    fn engine(&self) -> FakeEngine {
        FakeEngine::new(self.home(), agent())
    }

    /// Ids of the guests that have a directory.
    fn vms(&self) -> Vec<String> {
        let Ok(entries) = self.home().join("vms").read_dir_utf8() else { return Vec::new() };
        entries.map(|entry| entry.expect("lists").file_name().to_owned()).collect()
    }

    /// The number of listening agents.
    fn agents(&self) -> usize {
        let listens = |id: &String| self.home().join("vms").join(id).join("agent.sock").exists();
        self.vms().iter().filter(|id| listens(id)).count()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A seal in the background would create a part of the home again.
        let snapshots = self.home().join("snapshots");
        let deadline = Instant::now() + DEADLINE;
        while is_in_use(&snapshots) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Whether a snapshot is locked. Takes no lock to find out, because a sweep would skip what is locked.
fn is_in_use(snapshots: &Utf8Path) -> bool {
    let Ok(entries) = snapshots.read_dir_utf8() else { return false };
    let locks = fs_err::read_to_string("/proc/locks").expect("reads");
    let held = |inode: u64| locks.lines().any(|line| line.contains("FLOCK") && line.contains(&format!(":{inode} ")));
    entries.filter_map(|entry| entry.ok()?.metadata().ok()).any(|found| held(found.ino()))
}

/// The output of a script.
async fn shell(link: &GuestLink, script: &str) -> String {
    let request = ExecRequest { argv: ["/bin/sh", "-c", script].map(Text::from).to_vec(), ..ExecRequest::default() };
    let output = tokio::time::timeout(DEADLINE, link.run(request, b"", 1 << 20)).await;
    let output = output.expect("ends in time").expect("runs");
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.exited.status.shell_code(), 0, "`{script}`: {words}");
    String::from_utf8(output.stdout).expect("UTF-8").trim_end().to_owned()
}

/// Waits for a state. If it never comes, the test's own timeout ends the wait.
async fn until(reached: impl Fn() -> bool) {
    let poll = async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(DEADLINE, poll).await.expect("the state comes");
}

fn spec() -> VmSpec {
    VmSpec::new("/unused", "/unused")
}

#[tokio::test]
async fn a_fake_guest_serves_one_link_after_the_other_and_ends_on_request() {
    let lab = Lab::new();
    let mut guest = lab.engine().launch(spec()).await.expect("starts");
    let mut events = guest.take_events().expect("not taken");
    assert_eq!(events.next().await, Some(VmEvent::Started { pid: guest.pid() }));
    assert_eq!(guest.acceleration(), Acceleration::Native);
    for _ in 0..2 {
        guest.connect(DEADLINE).await.expect("the agent greets");
    }
    let exit = guest.shutdown(DEADLINE).await;
    assert_eq!(exit.reason, ExitReason::Killed);
    assert!(!guest.dir().exists());
}

#[tokio::test]
async fn a_paused_fake_guest_is_paused_with_all_its_processes() {
    let lab = Lab::new();
    let mut guest = lab.engine().launch(spec()).await.expect("starts");
    let mut events = guest.take_events().expect("not taken");
    assert!(matches!(events.next().await, Some(VmEvent::Started { .. })));
    let link = guest.connect(DEADLINE).await.expect("the agent greets");
    // A shell whose child counts up, so the counting process is not a child of the agent.
    let count = lab.home().join("count");
    let script = format!("(i=0; while :; do i=$((i+1)); echo $i >{count}; done) & wait");
    let argv = ["/bin/sh", "-c", &script].map(Text::from).to_vec();
    let _running = link.exec(ExecRequest { argv, ..ExecRequest::default() }).await.expect("starts");
    let counted = || fs_err::read_to_string(&count).unwrap_or_default();
    until(|| !counted().is_empty()).await;

    guest.pause().await.expect("stops");
    assert_eq!(events.next().await, Some(VmEvent::Paused));
    let stood = counted();
    assert!(tokio::time::timeout(STANDS, link.ping()).await.is_err(), "the agent is paused");
    assert_eq!(counted(), stood);

    guest.resume().await.expect("goes on");
    assert_eq!(events.next().await, Some(VmEvent::Resumed));
    link.ping().await.expect("answers again");
    until(|| counted() != stood).await;
    // A guest that is only dropped is killed, and no VM takes the counting shell with it here.
    assert_eq!(guest.shutdown(DEADLINE).await.reason, ExitReason::Killed);
}

#[tokio::test]
async fn a_paused_fake_guest_can_be_shut_down() {
    let lab = Lab::new();
    let guest = lab.engine().launch(spec()).await.expect("starts");
    guest.pause().await.expect("stops");
    assert_eq!(guest.shutdown(DEADLINE).await.reason, ExitReason::Killed);
}

#[tokio::test]
async fn a_fake_guest_with_disks_is_refused() {
    let lab = Lab::new();
    let disk = Disk { path: "/dev/null".into(), format: DiskFormat::Raw, role: DiskRole::Shared };
    let error = lab.engine().launch(VmSpec { disks: vec![disk], ..spec() }).await.expect_err("has none");
    assert!(matches!(error, LaunchError::Unsupported { what: "disks", .. }), "{error:?}");
    let capabilities = lab.engine().capabilities();
    assert!(
        !capabilities.kernel
            && !capabilities.console
            && capabilities.pause
            && !capabilities.disks
            && !capabilities.nics
            && capabilities.snapshots
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fake_guest_refuses_network_cards_before_and_after_a_save() {
    let lab = Lab::new();
    let tap = Tap { device: "tap0".into(), namespace: None };
    for attachment in [Attachment::Unplugged, Attachment::Tap(tap)] {
        let nics = vec![Nic { mac: MacAddress::random(), attachment: attachment.clone() }];
        let error = lab.engine().launch(VmSpec { nics, ..spec() }).await.expect_err("has none");
        assert!(matches!(error, LaunchError::Unsupported { what: "network cards", .. }), "{error:?}");

        let snapshot = saves::prepared(&lab.engine()).await;
        let part = ForkPart { nics: vec![NicPart { mac: None, attachment }], ..ForkPart::default() };
        let forks = ForkSpec { parts: vec![part], ..ForkSpec::default() };
        let error = lab.engine().restore(&snapshot, forks).await.expect_err("has none");
        assert!(matches!(error, RestoreError::Part { .. }), "{error:?}");
        assert_eq!(lab.vms(), [""; 0]);
    }
}

#[tokio::test]
async fn a_program_that_is_not_an_agent_is_an_error_and_leaves_nothing() {
    let lab = Lab::new();
    let error = FakeEngine::new(lab.home(), "/bin/false").launch(spec()).await.expect_err("does not listen");
    assert!(matches!(error, LaunchError::VmmFailed { .. }), "{error:?}");
    assert!(
        !lab.home().join("vms").read_dir_utf8().expect("lists").any(|entry| { entry.expect("lists").path().is_dir() })
    );
}
