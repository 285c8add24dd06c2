//! A killed Kiln leaves no VM behind.

mod support;

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use kiln_engine::home::Home;
use kiln_engine::{Engine as _, Outcome, QemuEngine, Recovered, recover};

use support::{Lab, helper_process, is_alive, spec};

const HOME_VARIABLE: &str = "KILN_TEST_ORPHAN_HOME";
/// The bound that the specification promises.
const ORPHANS_GONE: Duration = Duration::from_secs(2);

#[tokio::test]
#[ignore = "the other half of the test below, started by it in a process of its own"]
async fn launch_and_wait_to_be_killed() {
    let home = Utf8PathBuf::from(std::env::var(HOME_VARIABLE).expect("started by the test below"));
    let engine = QemuEngine::find(&home).expect("QEMU is installed");
    let vm = engine.launch(spec(&home, "idle")).await.expect("starts");
    println!("\npid {}", vm.pid());
    vm.wait().await;
}

#[test]
fn vm_of_a_kiln_that_is_killed_is_gone_within_two_seconds() {
    let lab = Lab::new();
    let mut helper = helper_process("launch_and_wait_to_be_killed", HOME_VARIABLE, lab.home().as_str())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let lines = BufReader::new(helper.stdout.take().expect("piped")).lines();
    let pid = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("pid ")?.parse().ok());
    let pid: u32 = pid.expect("the helper started a VM");
    assert!(is_alive(pid));

    helper.kill().expect("SIGKILL");
    helper.wait().expect("ends");
    let deadline = Instant::now() + ORPHANS_GONE;
    while is_alive(pid) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!is_alive(pid), "the VMM outlived its owner by {ORPHANS_GONE:?}");

    assert_eq!(lab.vms().len(), 1, "SIGKILL leaves the directory to the next start");
    let recovered = recover(&Home::at(lab.home())).expect("recovers");
    assert!(matches!(&recovered[..], [Recovered { outcome: Outcome::Removed, .. }]), "{recovered:?}");
    assert_eq!(lab.vms(), [""; 0]);
}
