//! A process that serves a disk of ours, right or wrong: this test binary, started again as one test of it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use kiln_vdev::backend::{Options, Server};
use kiln_vdev::devices::blk::{Backing, Blk, BlkOptions};
use kiln_vdev::socket::{Event, Listener};

use super::wrong;

const SOCKET: &str = "KILN_TEST_SERVE_SOCKET";
const DISK: &str = "KILN_TEST_SERVE_DISK";
const WRONG: &str = "KILN_TEST_SERVE_WRONG";
const ARGUMENTS: [&str; 4] = ["backend::serves_a_disk", "--exact", "--ignored", "--nocapture"];

/// The command that serves a disk, wrong in this way; right where it is empty.
pub fn command(wrong: &str, disk: &Path) -> String {
    let program = std::env::current_exe().expect("we run");
    format!(
        "env {SOCKET}={{socket}} {DISK}='{}' {WRONG}={wrong} '{}' {}",
        disk.display(),
        program.display(),
        ARGUMENTS.join(" ")
    )
}

/// Starts it without the suite.
pub fn start(socket: &Path, disk: &Path) -> Child {
    Command::new(std::env::current_exe().expect("we run"))
        .args(ARGUMENTS)
        .env(SOCKET, socket)
        .env(DISK, disk)
        .env(WRONG, "")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts")
}

#[test]
#[ignore = "is the backend that other tests start"]
fn serves_a_disk() {
    let variable = |name| std::env::var(name).expect("is started by another test");
    let disk = PathBuf::from(variable(DISK));
    let wrong = variable(WRONG);
    let backing = if wrong == "forgets-writes" { Backing::Null { bytes: 16 << 20 } } else { Backing::File(disk) };
    let device = Blk::open(&BlkOptions::new(backing)).expect("a disk");
    let options = Options { faults: wrong::faults(&wrong), ..Options::default() };
    let server = Server::new(Arc::new(device), options).expect("a server");
    let listener = Listener::bind(Path::new(&variable(SOCKET))).expect("listens");
    let never = Event::new().expect("an event");
    server.serve(&listener, &never).expect("serves until it is killed");
}
