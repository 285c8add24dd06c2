//! Guests with the agent inside: booted, or forked from the ready-made snapshot that all tests of a home share.
//!
//! ```text
//!   $KILN_HOME: image ──boots once──▶ ready-made snapshot ──copy──▶ lab/snapshots/<id>/ ──▶ forks of one test
//! ```
//! A guest keeps a word in three places, which must agree: a variable of a running process, a file, and a disk.

use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use kiln_engine::home::Home;
use kiln_engine::link::GuestLink;
use kiln_engine::snapshot::{AfterSave, Snapshot, SnapshotError, SnapshotId, SnapshotRequest, SnapshotStore};
use kiln_engine::{
    AccelerationRequest, Disk, DiskFormat, DiskRole, Engine as _, Fork, ForkSpec, QemuEngine, ReadyRequest, SaveError,
    Vm, VmSpec,
};
use kiln_wire::{ExecRequest, SessionSpec};

use super::{STEP_DEADLINE, mini};

/// Memory for the kernel, the agent and some pages to change.
const MEMORY_MIB: u64 = 128;
/// Room for some sectors.
pub const DISK_BYTES: u64 = 1 << 20;
const OUTPUT_BYTES_MAX: u64 = 1 << 16;
/// A boot on a host that is busy with other tests.
const BOOT_DEADLINE: Duration = Duration::from_secs(100);
/// Reads lines from a pipe and executes them.
const PROCESS: &str = r#"exec 3<>/tmp/ask; while read -r line <&3; do eval "$line" > /tmp/answer; done"#;

/// A guest of the image, under TCG.
pub fn spec() -> VmSpec {
    let image = mini();
    VmSpec {
        cmdline: image.cmdline,
        acceleration: AccelerationRequest::Tcg,
        memory_mib: MEMORY_MIB,
        forkable: true,
        ..VmSpec::new(image.kernel, image.initramfs)
    }
}

/// A disk that its guest can write to.
pub fn disk(path: &Utf8Path, format: DiskFormat) -> Disk {
    Disk { path: path.into(), format, role: DiskRole::Scratch }
}

/// A disk of zeros.
pub fn make_disk(path: &Utf8Path) {
    let file = std::fs::File::options().create(true).append(true).open(path).expect("a file");
    file.set_len(DISK_BYTES).expect("sparse");
}

/// A snapshot of a booted guest with one writable raw disk, in `home`'s own store.
pub async fn base(home: &Utf8Path) -> Snapshot {
    let path = shared_home().path().join("test-disk.raw");
    make_disk(&path);
    ready_made(home, &VmSpec { disks: vec![disk(&path, DiskFormat::Raw)], ..spec() }).await
}

/// The ready-made snapshot of a spec, which all tests share, in `home`'s own store.
pub async fn ready_made(home: &Utf8Path, spec: &VmSpec) -> Snapshot {
    let engine = QemuEngine::find(shared_home().path()).expect("QEMU is installed");
    let ready = engine.ready(ReadyRequest::new(spec, "engine tests", BOOT_DEADLINE)).await;
    let ready = ready.expect("boots");
    let snapshots = home.join("snapshots");
    std::fs::create_dir_all(&snapshots).expect("made");
    copy(&ready.links().next_back().expect("itself").directory(), &snapshots);
    open(home, ready.id()).expect("is whole")
}

fn shared_home() -> Home {
    Home::from_env().expect("a home for images")
}

/// Copies a directory, and keeps holes.
pub fn copy(directory: &Utf8Path, into: &Utf8Path) {
    let copied = Command::new("cp").args(["--archive", "--sparse=always"]).args([directory, into]).status();
    assert!(copied.expect("cp runs").success());
}

pub fn open(home: &Utf8Path, id: &SnapshotId) -> Result<Snapshot, SnapshotError> {
    SnapshotStore::new(&Home::at(home)).open(id)
}

pub async fn connect(vm: &Vm) -> GuestLink {
    vm.connect(BOOT_DEADLINE).await.expect("the agent answers")
}

/// One fork.
pub async fn fork(engine: &QemuEngine, snapshot: &Snapshot) -> Fork {
    fork_as(engine, snapshot, ForkSpec::default()).await
}

pub async fn fork_as(engine: &QemuEngine, snapshot: &Snapshot, forks: ForkSpec) -> Fork {
    engine.restore(snapshot, forks).await.expect("is restored").pop().expect("one")
}

/// Saves a VM whose guest has the link.
pub async fn save(vm: &Vm, link: &GuestLink, then: AfterSave) -> Result<Snapshot, SaveError> {
    vm.snapshot(SnapshotRequest { link: Some(link), then, label: "test".into() }).await
}

/// The output of a script.
pub async fn shell(link: &GuestLink, script: &str) -> String {
    let output = tokio::time::timeout(STEP_DEADLINE, link.run(request(script), b"", OUTPUT_BYTES_MAX));
    let output = output.await.expect("ends in time").expect("runs");
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.exited.status.shell_code(), 0, "`{script}`: {words}");
    String::from_utf8(output.stdout).expect("UTF-8").trim_end().to_owned()
}

fn request(script: &str) -> ExecRequest {
    ExecRequest { argv: ["sh", "-c", script].map(Into::into).to_vec(), ..ExecRequest::default() }
}

/// Starts the process that keeps variables.
pub async fn start_process(link: &GuestLink) {
    shell(link, "mkfifo /tmp/ask /tmp/answer").await;
    let session = Some(SessionSpec { name: Some("memory".into()), ..SessionSpec::default() });
    link.exec(ExecRequest { session, ..request(PROCESS) }).await.expect("starts");
}

/// Sends a line to that process, and returns its output.
pub async fn tell(link: &GuestLink, line: &str) -> String {
    shell(link, &format!("echo '{line}' > /tmp/ask; cat /tmp/answer")).await
}

/// Notes a word of at most twelve letters in all three places of a guest with [`base`]'s disk.
pub async fn note(link: &GuestLink, word: &str) {
    let script = format!(
        "echo 'word={word}' > /tmp/ask; cat /tmp/answer; echo {word} > /tmp/word; \
         printf '%-12s' {word} | dd of=/dev/vda conv=fsync,notrunc 2> /dev/null"
    );
    shell(link, &script).await;
}

/// The three words. The disk itself is read, not the guest's cache of it.
pub async fn noted(link: &GuestLink) -> [String; 3] {
    let script = "echo 3 > /proc/sys/vm/drop_caches; echo 'echo $word' > /tmp/ask; cat /tmp/answer; cat /tmp/word; \
                  dd if=/dev/vda bs=12 count=1 2> /dev/null";
    let words = shell(link, script).await;
    let words: Vec<_> = words.lines().map(|word| word.trim_end().to_owned()).collect();
    words.try_into().unwrap_or_else(|words| panic!("three words, not {words:?}"))
}

/// Waits until no snapshot of this home is open in a VMM or in a task that seals it.
pub fn wait_for_snapshots(home: &Utf8Path) {
    let snapshots = home.join("snapshots");
    let deadline = Instant::now() + STEP_DEADLINE;
    while names(snapshots.clone()).iter().any(|name| is_held(&snapshots.join(name))) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a directory is locked. Takes no lock to find out, because a sweep at that moment would skip what is locked.
pub fn is_held(directory: &Utf8Path) -> bool {
    let Ok(found) = std::fs::metadata(directory) else { return false };
    // `1: FLOCK ADVISORY READ 4242 fe:00:131 0 EOF`, see proc_locks(5).
    let locks = std::fs::read_to_string("/proc/locks").expect("reads");
    let inode = format!(":{}", found.ino());
    locks.lines().any(|line| line.contains("FLOCK") && line.split(' ').any(|word| word.ends_with(&inode)))
}

/// VMMs of this home. Each works in its VM's directory.
pub fn vmms(home: &Utf8Path) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("lists").map_while(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_of_home = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let directory = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(kiln_engine::QEMU_PROGRAM) && directory.starts_with(home)
    };
    pids.filter(is_of_home).collect()
}

/// Names in a directory of a home, sorted.
pub fn names(directory: Utf8PathBuf) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let names = entries.map(|entry| entry.expect("lists").file_name().into_string().expect("UTF-8"));
    let mut names: Vec<_> = names.filter(|name| name != "ready").collect();
    names.sort();
    names
}
