//! A real QEMU through the tap: its firmware reads the disk, and no byte is lost or changed.

use std::process::{Child, Command, Stdio};

use kiln_e2e::until;
use rustix::process::{Pid, Signal, kill_process};

use crate::place::{Place, vhost};

/// Killed with its test.
struct Qemu(Child);

impl Qemu {
    fn terminate(mut self) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).expect("a child has a pid");
        kill_process(pid, Signal::TERM).expect("it runs");
        self.0.wait().expect("a child can be waited for");
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn qemu(socket: &str) -> Qemu {
    let program = std::env::var_os("KILN_QEMU").unwrap_or_else(|| "qemu-system-x86_64".into());
    let child = Command::new(program)
        .args(["-M", "q35,memory-backend=m0", "-accel", "tcg", "-m", "128", "-nodefaults", "-display", "none"])
        .args(["-object", "memory-backend-memfd,id=m0,size=128M,share=on"])
        .args(["-chardev", &format!("socket,id=c,path={socket}")])
        .args(["-device", "vhost-user-blk-pci,chardev=c,num-queues=1,bootindex=1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Qemu(child.expect("QEMU starts"))
}

#[test]
fn qemu_reads_its_disk_through_a_tap_and_its_session_can_be_replayed() {
    let place = Place::new();
    let _daemon = place.storage_daemon();
    let mut tap = place.tap(&["--sessions", "1"]);
    let firmware = qemu(&place.text("a"));
    until("a ring that runs", || {
        let recorded = std::fs::read_to_string(place.path("f")).unwrap_or_default();
        recorded.contains("\"SET_VRING_ENABLE\"").then_some(())
    });
    // It stops its ring before it ends.
    firmware.terminate();
    assert_eq!(tap.wait(), 0);
    let shown = vhost(&["show", &place.text("f")]).text();
    for words in
        ["SET_BACKEND_REQ_FD", "[socket]", "[memfd of 134217728 bytes]", "GET_VRING_BASE reply  index 0", "device blk"]
    {
        assert!(shown.contains(words), "{words} in {shown}");
    }
    let outcome = vhost(&["replay", &place.text("f"), "--connect", &place.text("b")]);
    assert_eq!(outcome.code, 0, "{}", outcome.text());
}
