//! A hundred blocking operations, which must not delay a guest that runs beside them.

#[path = "support/agent.rs"]
mod agent;

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use agent::agent;
use camino::Utf8Path;
use kiln_engine::guest::Watch;
use kiln_engine::{FakeEngine, Guest, VmSpec, blocking};
use tokio::time::timeout;

/// No step takes this long, unless it waits for a blocking operation.
const DEADLINE: Duration = Duration::from_secs(20);
const OPERATIONS: usize = 100;
const PINGS: usize = 100;

/// A gate that opens once, for all that wait.
#[derive(Debug, Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn pass(&self) {
        let open = self.0.lock().expect("not poisoned");
        drop(self.1.wait_while(open, |open| !*open).expect("not poisoned"));
    }

    fn open(&self) {
        *self.0.lock().expect("not poisoned") = true;
        self.1.notify_all();
    }
}

// One thread runs the links, the timers and the owners of all guests.
#[tokio::test(flavor = "current_thread")]
async fn a_guest_starts_answers_and_ends_while_a_hundred_operations_block() {
    let gate = Arc::new(Gate::default());
    let slow: Vec<_> = (0..OPERATIONS)
        .map(|_| {
            let gate = Arc::clone(&gate);
            tokio::spawn(blocking(move || gate.pass()))
        })
        .collect();
    tokio::task::yield_now().await;

    // None of them ends before the guest has. If it waited for one, it would wait forever.
    let home = tempfile::tempdir().expect("a directory");
    let engine = FakeEngine::new(Utf8Path::from_path(home.path()).expect("UTF-8"), agent());
    let guest = Guest::start(&engine, VmSpec::new("/unused", "/unused"), DEADLINE, Watch::default());
    let guest = timeout(DEADLINE, guest).await.expect("in time").expect("starts");
    for _ in 0..PINGS {
        timeout(DEADLINE, guest.link.ping()).await.expect("in time").expect("answers");
    }
    let output = timeout(DEADLINE, guest.command("echo").arg("here").output()).await.expect("in time").expect("runs");
    assert_eq!(output.stdout, b"here\n");
    timeout(DEADLINE, guest.vm.kill()).await.expect("in time");
    assert_eq!(std::fs::read_dir(home.path().join("vms")).expect("lists").count(), 0, "its directory is gone");
    assert!(slow.iter().all(|task| !task.is_finished()));

    gate.open();
    for task in slow {
        timeout(DEADLINE, task).await.expect("in time").expect("no panic");
    }
}
