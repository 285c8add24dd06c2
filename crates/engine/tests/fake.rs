//! The fake engine against the real agent: what stands in for VMs in the tests of everything above the engine.

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use kiln_engine::{Acceleration, Disk, DiskFormat, Engine as _, ExitReason, FakeEngine, LaunchError, VmEvent, VmSpec};
use kiln_wire::{ExecRequest, Text};

/// No step of these tests takes this long, unless it hangs.
const DEADLINE: Duration = Duration::from_secs(20);

/// What stands still for so long stands still: a guest that runs answers and counts in less than a tenth of it.
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
}

/// `KILN_AGENT_BIN`, else the static agent of this workspace.
fn agent() -> Utf8PathBuf {
    let built = || {
        let exe = Utf8PathBuf::try_from(std::env::current_exe().expect("this binary")).expect("UTF-8");
        // <target>/<profile>/deps/<test>
        let target = exe.ancestors().nth(3).expect("tests run from a target directory").to_owned();
        target.join("x86_64-unknown-linux-gnu/agent/kiln-agent")
    };
    let path = std::env::var("KILN_AGENT_BIN").map_or_else(|_| built(), Utf8PathBuf::from);
    assert!(path.is_file(), "`{path}` is not there: `scripts/build.sh` builds it, or KILN_AGENT_BIN names another");
    path
}

/// Waits for a state; the test's own bound ends one that never comes.
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
async fn a_fake_guest_serves_links_one_after_the_other_and_ends_when_told() {
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
async fn a_paused_fake_guest_stands_still_with_all_that_it_runs() {
    let lab = Lab::new();
    let mut guest = lab.engine().launch(spec()).await.expect("starts");
    let mut events = guest.take_events().expect("not taken");
    assert!(matches!(events.next().await, Some(VmEvent::Started { .. })));
    let link = guest.connect(DEADLINE).await.expect("the agent greets");
    // A shell whose child counts up: the child is no child of the agent's.
    let count = lab.home().join("count");
    let script = format!("(i=0; while :; do i=$((i+1)); echo $i >{count}; done) & wait");
    let argv = ["/bin/sh", "-c", &script].map(Text::from).to_vec();
    let _running = link.exec(ExecRequest { argv, ..ExecRequest::default() }).await.expect("starts");
    let counted = || fs_err::read_to_string(&count).unwrap_or_default();
    until(|| !counted().is_empty()).await;

    guest.pause().await.expect("stops");
    assert_eq!(events.next().await, Some(VmEvent::Paused));
    let stood = counted();
    assert!(tokio::time::timeout(STANDS, link.ping()).await.is_err(), "the agent stands still");
    assert_eq!(counted(), stood);

    guest.resume().await.expect("goes on");
    assert_eq!(events.next().await, Some(VmEvent::Resumed));
    link.ping().await.expect("answers again");
    until(|| counted() != stood).await;
}

#[tokio::test]
async fn a_paused_fake_guest_can_be_shut_down() {
    let lab = Lab::new();
    let guest = lab.engine().launch(spec()).await.expect("starts");
    guest.pause().await.expect("stops");
    assert_eq!(guest.shutdown(DEADLINE).await.reason, ExitReason::Killed);
}

#[tokio::test]
async fn a_fake_guest_has_no_disks_and_says_so() {
    let lab = Lab::new();
    let disk = Disk { path: "/dev/null".into(), format: DiskFormat::Raw, read_only: true };
    let error = lab.engine().launch(VmSpec { disks: vec![disk], ..spec() }).await.expect_err("has none");
    assert!(matches!(error, LaunchError::Unsupported { what: "disks", .. }), "{error:?}");
    let capabilities = lab.engine().capabilities();
    assert!(!capabilities.kernel && !capabilities.console && capabilities.pause && !capabilities.disks);
}

#[tokio::test]
async fn an_agent_that_is_none_is_an_error_and_leaves_nothing() {
    let lab = Lab::new();
    let error = FakeEngine::new(lab.home(), "/bin/false").launch(spec()).await.expect_err("does not listen");
    assert!(matches!(error, LaunchError::VmmFailed { .. }), "{error:?}");
    assert!(
        !lab.home().join("vms").read_dir_utf8().expect("lists").any(|entry| { entry.expect("lists").path().is_dir() })
    );
}
