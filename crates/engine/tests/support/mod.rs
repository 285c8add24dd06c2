//! Shared by the tests of real VMs: a kernel, and an initramfs whose init does what the command line requires.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod crash;
pub mod guest;
pub mod network;

use std::process::Command;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use kiln_engine::home::Home;
use kiln_engine::image::{Image, ImageStore};
use kiln_engine::{AccelerationRequest, QemuEngine, Vm, VmEvent, VmEvents, VmSpec};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

/// No step of a test waits longer.
pub const STEP_DEADLINE: Duration = Duration::from_secs(50);

/// The kernel to test with. If it is not set, that of the image `mini`.
pub const KERNEL_VARIABLE: &str = "KILN_TEST_KERNEL";

/// `test=` on the kernel command line selects what init does once it is up. It prints `kiln-agent: init` like the
/// agent.
const INIT: &str = r#"#!/bin/busybox sh
echo "kiln-agent: init"
/bin/busybox mkdir -p /proc /sys
/bin/busybox mount -t proc proc /proc
for word in $(/bin/busybox cat /proc/cmdline); do
    case "$word" in
    test=poweroff) /bin/busybox poweroff -f ;;
    test=reboot) /bin/busybox reboot -f ;;
    test=panic) exit 3 ;;
    test=flood) while :; do echo "0123456789012345678901234567890123456789012345678901234567890123456789"; done ;;
    test=much) i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); echo "0123456789012345678901234567890123456789012345678901234567890123456789"; done
        /bin/busybox poweroff -f ;;
    test=count) i=0; while :; do i=$((i + 1)); echo "count $i"; /bin/busybox sleep 0.05; done ;;
    esac
done
while :; do /bin/busybox sleep 1000; done
"#;

/// A home of its own for one test, with all it needs to boot. Everything is removed when it is dropped.
pub struct Lab {
    directory: tempfile::TempDir,
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A seal in the background would create a part of the home again.
        guest::wait_for_snapshots(self.home());
    }
}

impl Lab {
    pub fn new() -> Self {
        let lab = Self { directory: tempfile::tempdir().expect("a directory") };
        std::fs::write(lab.home().join("initramfs"), initramfs()).expect("an initramfs");
        lab
    }

    pub fn home(&self) -> &Utf8Path {
        Utf8Path::from_path(self.directory.path()).expect("UTF-8")
    }

    pub fn engine(&self) -> QemuEngine {
        QemuEngine::find(self.home()).expect("QEMU is installed")
    }

    /// See [`spec`].
    pub fn spec(&self, test: &str) -> VmSpec {
        spec(self.home(), test)
    }

    /// Ids of the VMs that have a directory.
    pub fn vms(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.home().join("vms")) else { return Vec::new() };
        let names = entries.map(|entry| entry.expect("lists").file_name().into_string().expect("UTF-8"));
        names.filter(|name| !name.starts_with('.')).collect()
    }
}

/// A guest that runs `test` under TCG: these tests are about the engine, not about this host's KVM.
pub fn spec(home: &Utf8Path, test: &str) -> VmSpec {
    VmSpec {
        cmdline_extra: vec![format!("test={test}")],
        acceleration: AccelerationRequest::Tcg,
        ..VmSpec::new(kernel(), home.join("initramfs"))
    }
}

/// Waits until the console has printed `text`. Returns all it printed until then.
pub async fn console_until(events: &mut VmEvents, text: &str) -> String {
    let mut console = String::new();
    let wait = async {
        while !console.contains(text) {
            match events.next().await.expect("the VM runs") {
                VmEvent::Console { bytes, .. } => console.push_str(&String::from_utf8_lossy(&bytes)),
                VmEvent::Exited(exit) => panic!("the VM ended before `{text}`: {exit}"),
                _ => {}
            }
        }
    };
    let in_time = tokio::time::timeout(STEP_DEADLINE, wait).await;
    assert!(in_time.is_ok(), "no `{text}` within {STEP_DEADLINE:?}, but: {console}");
    console
}

/// Waits for a VM's end.
pub async fn end(vm: &Vm) -> kiln_engine::VmExit {
    let in_time = tokio::time::timeout(STEP_DEADLINE, vm.wait()).await;
    in_time.unwrap_or_else(|_| panic!("no end within {STEP_DEADLINE:?}: {:#?}", vm.console_tail(20)))
}

/// Whether a process exists and is not a zombie. If its first thread is a zombie while another still ends, it exists:
/// it has its files and its memory.
pub fn is_alive(pid: u32) -> bool {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a pid");
    let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return false };
    let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
    rustix::event::poll(&mut polled, Some(&Timespec::default())).expect("polls") == 0
}

/// The image that all tests share, with the agent in it.
pub fn mini() -> Image {
    let home = Home::from_env().expect("a home for images");
    let image = ImageStore::new(&home).find_boot("mini");
    image.unwrap_or_else(|error| panic!("{error}: `kiln image build mini`, or {KERNEL_VARIABLE}=…"))
}

fn kernel() -> Utf8PathBuf {
    std::env::var(KERNEL_VARIABLE).map_or_else(|_| mini().kernel, Into::into)
}

/// A cpio archive ("newc", see the kernel's buffer-format.rst) of a static busybox and the init above.
fn initramfs() -> Vec<u8> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find_map(|path| std::fs::read(path).ok());
    let busybox = busybox.expect("busybox-static is installed");
    let mut archive = Vec::new();
    for directory in ["bin", "dev", "proc", "sys"] {
        entry(&mut archive, directory, 0o40_755, (0, 0), b"");
    }
    entry(&mut archive, "dev/console", 0o20_600, (5, 1), b"");
    entry(&mut archive, "bin/busybox", 0o100_755, (0, 0), &busybox);
    entry(&mut archive, "init", 0o100_755, (0, 0), INIT.as_bytes());
    entry(&mut archive, "TRAILER!!!", 0, (0, 0), b"");
    archive
}

fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
    let (inode, size, name_size) = (archive.len(), data.len(), name.len() + 1);
    let fields = [inode, mode as usize, 0, 0, 1, 0, size, 0, 0, device.0 as usize, device.1 as usize, name_size, 0];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// Runs this test binary's own test `name` in another process, with `variable` set, to test what happens when it is
/// killed.
pub fn helper_process(name: &str, variable: &str, value: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(["--exact", name, "--nocapture", "--ignored"]).env(variable, value);
    command
}
