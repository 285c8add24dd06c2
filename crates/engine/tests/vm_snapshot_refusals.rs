//! What is refused around snapshots, by name and before a VMM starts; and what continues in spite of it.

mod support;

use std::os::unix::fs::FileExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use kiln_engine::failpoint::FAIL_POINT_VARIABLE;
use kiln_engine::home::Home;
use kiln_engine::snapshot::{AfterSave, MANIFEST_FILE, Snapshot, SnapshotError, SnapshotRequest, SnapshotStore};
use kiln_engine::{
    Engine as _, ErrorKind, FORKS_MAX, ForkSpec, QemuEngine, RestoreError, SaveError, VhostUser, VhostUserDevice, Vm,
    VmSpec,
};

use support::guest::{self, base, fork, names, note, open, save, shell, start_process, vmms};
use support::{Lab, STEP_DEADLINE, console_until, end, helper_process};

const HOME_VARIABLE: &str = "KILN_TEST_REFUSALS_HOME";

/// Saves a VM whose guest has no link.
async fn save_unlinked(vm: &Vm) -> Result<Snapshot, SaveError> {
    vm.snapshot(SnapshotRequest { link: None, then: AfterSave::GoOn, label: "test".into() }).await
}

/// A refused restore starts nothing.
fn assert_nothing_started(lab: &Lab) {
    assert_eq!(lab.vms(), [""; 0]);
    assert_eq!(vmms(lab.home()), [0; 0]);
}

/// A vhost-user-blk backend. Ended when it is dropped.
struct Backend(Child);

impl Backend {
    fn start(directory: &Utf8Path) -> (Self, Utf8PathBuf) {
        let (disk, socket) = (directory.join("backend.raw"), directory.join("backend.sock"));
        guest::make_disk(&disk);
        let child = Command::new("qemu-storage-daemon")
            .args(["--blockdev", &format!("file,node-name=disk,filename={disk}")])
            .args(["--export", &format!("vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={socket}")])
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-storage-daemon comes with qemu-system-common");
        let this = Self(child);
        // The backend prints nothing when it is ready, and accepts one connection, which must not be the test's. A
        // socket has its path a moment before it listens.
        until("the backend", || listens(&socket));
        (this, socket)
    }
}

/// Whether a socket has a listener: the flag `__SO_ACCEPTCON` in `/proc/net/unix`.
fn listens(socket: &Utf8Path) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").expect("reads");
    sockets.lines().any(|line| line.ends_with(&format!(" {socket}")) && line.split(' ').nth(3) == Some("00010000"))
}

/// Waits until the condition holds.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + STEP_DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} did not come within {STEP_DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test]
async fn vm_with_a_vhost_user_device_or_without_a_memory_file_is_not_saved_and_continues() {
    let lab = Lab::new();
    let (_backend, socket) = Backend::start(lab.home());
    let device = VhostUser::new(VhostUserDevice::Blk, socket.clone());
    let spec = VmSpec { forkable: true, vhost_user: vec![device], ..lab.spec("count") };
    let mut vm = lab.engine().launch(spec).await.expect("starts");
    let error = save_unlinked(&vm).await.expect_err("it can't be saved");
    assert_eq!(error.to_string(), format!("a VM with the vhost-user-blk device `{socket}` can't be saved"));

    let mut other = lab.engine().launch(lab.spec("count")).await.expect("starts");
    let error = save_unlinked(&other).await.expect_err("its memory is QEMU's own");
    assert!(matches!(error, SaveError::NotForkable), "{error}");
    for vm in [&mut vm, &mut other] {
        console_until(&mut vm.take_events().expect("not taken"), "count 3").await;
    }
    assert_eq!(names(lab.home().join("snapshots")), [""; 0]);
}

#[tokio::test]
async fn vm_with_two_concurrent_saves_makes_one_snapshot_and_continues() {
    let lab = Lab::new();
    let fork = fork(&lab.engine(), &base(lab.home()).await).await;
    let (one, other) =
        tokio::join!(save(&fork.vm, &fork.link, AfterSave::GoOn), save(&fork.vm, &fork.link, AfterSave::GoOn),);
    let saved = one.expect("is saved");
    assert!(matches!(other, Err(SaveError::Busy)), "{other:?}");
    assert_eq!(shell(&fork.link, "echo goes on").await, "goes on");
    let next = save(&fork.vm, &fork.link, AfterSave::GoOn).await.expect("is saved again");
    assert_eq!(next.manifest().parent, saved.manifest().parent);
    assert_eq!(names(lab.home().join("snapshots")).len(), 3);
}

#[tokio::test]
async fn vm_counts_that_no_host_can_hold_are_refused_before_anything_starts() {
    let lab = Lab::new();
    let snapshot = base(lab.home()).await;
    for count in [0, FORKS_MAX + 1, 10_000, usize::MAX] {
        let forks = ForkSpec { count, ..ForkSpec::default() };
        let error = lab.engine().restore(&snapshot, forks).await.expect_err("is too many or none");
        assert!(matches!(error, RestoreError::Budget { count: named, .. } if named == count), "{error}");
        assert_nothing_started(&lab);
    }
}

/// Changes the manifest of a snapshot.
fn forge(home: &Utf8Path, snapshot: &Snapshot, change: impl FnOnce(&mut serde_json::Value)) -> Snapshot {
    let path = home.join("snapshots").join(snapshot.id().as_str()).join(MANIFEST_FILE);
    let mut manifest = serde_json::from_slice(&std::fs::read(&path).expect("reads")).expect("JSON");
    change(&mut manifest);
    std::fs::write(&path, serde_json::to_vec(&manifest).expect("JSON")).expect("written");
    open(home, snapshot.id()).expect("is whole")
}

#[tokio::test]
async fn vm_of_another_machine_is_refused_with_both_named() {
    let lab = Lab::new();
    let snapshot = base(lab.home()).await;
    let here = snapshot.manifest().clone();
    let kernel = lab.home().join("kernel");
    std::fs::copy(&here.spec.kernel, &kernel).expect("copied");
    let file = std::fs::File::options().append(true).open(&kernel).expect("opens");
    file.set_len(file.metadata().expect("facts").len() + 1).expect("longer");
    let restore = async |what: &str, saved: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let forged = forge(lab.home(), &snapshot, change);
        let error = lab.engine().restore(&forged, ForkSpec::default()).await.expect_err("is another machine");
        let words = error.to_string();
        assert!(words.contains(&format!("was taken with {what} {saved}")), "{words}");
        assert_nothing_started(&lab);
        forge(lab.home(), &snapshot, |manifest| *manifest = serde_json::to_value(&here).expect("JSON"));
        words
    };

    let words = restore("VMM", "QEMU 99.0", &|manifest| manifest["machine"]["vmm"] = "QEMU 99.0".into()).await;
    assert!(words.ends_with(&format!("but this host has {}", here.machine.vmm)), "{words}");
    let words = restore("CPU", "486", &|manifest| manifest["machine"]["cpu"] = "486".into()).await;
    assert!(words.ends_with(&format!("but this host has {}", here.machine.cpu)), "{words}");
    let release = &here.machine.kernel_release;
    let words = restore("kernel", release, &|manifest| manifest["spec"]["kernel"] = kernel.as_str().into()).await;
    let (saved, here_kernel) = words.split_once(", but this host has ").expect("names both");
    assert!(saved.contains(&here.machine.kernel[..12]) && here_kernel.starts_with(release.as_str()), "{words}");
    let fork = fork(&lab.engine(), &snapshot).await;
    assert_eq!(shell(&fork.link, "echo restores").await, "restores");
}

#[tokio::test]
async fn vm_whose_files_are_cut_or_changed_is_refused_by_name_before_anything_starts() {
    let lab = Lab::new();
    let fork = fork(&lab.engine(), &base(lab.home()).await).await;
    note(&fork.link, "here").await;
    let diff = save(&fork.vm, &fork.link, AfterSave::End).await.expect("is saved");
    diff.seal().expect("seals");
    let links: Vec<_> = diff.links().map(|link| (link.id().clone(), link.directory())).collect();
    let [(root, root_directory), (leaf, leaf_directory)] = &links[..] else { panic!("{links:?}") };
    let files = [
        (root, root_directory, "memory"),
        (root, root_directory, "disk-0"),
        (leaf, leaf_directory, "pages"),
        (leaf, leaf_directory, "device"),
        (leaf, leaf_directory, "disk-0"),
    ];
    for (id, directory, file) in files {
        let path = directory.join(file);
        let aside = lab.home().join("aside");
        std::fs::rename(&path, &aside).expect("moved");
        for spoil in [cut, flip_last_bit] {
            let copied = Command::new("cp").args(["--sparse=always", aside.as_str(), path.as_str()]).status();
            assert!(copied.expect("cp runs").success());
            spoil(&path);
            let error = open(lab.home(), leaf).expect_err("is broken");
            assert!(
                matches!(&error, SnapshotError::Broken { id: named, file: of, .. } if named == id && of == file),
                "{file}: {error}"
            );
        }
        std::fs::rename(&aside, &path).expect("moved back");
    }
    assert_nothing_started(&lab);
    open(lab.home(), leaf).expect("is whole again");
}

fn cut(path: &Utf8Path) {
    let file = std::fs::File::options().write(true).open(path).expect("opens");
    file.set_len(file.metadata().expect("facts").len() - 1).expect("cut");
}

fn flip_last_bit(path: &Utf8Path) {
    let file = std::fs::File::options().read(true).write(true).open(path).expect("opens");
    let last = file.metadata().expect("facts").len() - 1;
    let mut byte = [0];
    file.read_exact_at(&mut byte, last).expect("reads");
    file.write_all_at(&[byte[0] ^ 1], last).expect("written");
}

#[tokio::test]
async fn vm_snapshot_is_removed_only_after_its_last_fork_has_ended() {
    let lab = Lab::new();
    let snapshot = base(lab.home()).await;
    let id = snapshot.id().clone();
    let forks = ForkSpec { count: 2, ..ForkSpec::default() };
    let mut forks = lab.engine().restore(&snapshot, forks).await.expect("are restored");
    drop(snapshot);
    let store = SnapshotStore::new(&Home::at(lab.home()));
    while let Some(fork) = forks.pop() {
        let error = store.remove(&id).expect_err("a fork of it lives");
        assert!(matches!(&error, SnapshotError::InUse { id: named, .. } if *named == id), "{error}");
        assert_eq!(shell(&fork.link, "echo lives").await, "lives");
        fork.vm.kill().await;
    }
    // Copies in this process are closed with its tasks.
    let deadline = Instant::now() + STEP_DEADLINE;
    while store.remove(&id).is_err() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(names(lab.home().join("snapshots")), [""; 0]);
}

/// Room for the guest's memory and a part of a copy of it.
const SMALL_DISK_MIB: u64 = 160;

#[tokio::test]
#[ignore = "the other half of the test below, started by it with a small disk of its own"]
async fn save_on_a_small_disk() {
    let home = Utf8PathBuf::from(std::env::var(HOME_VARIABLE).expect("started by the test below"));
    // A home that others may write to is refused.
    let size = format!("size={SMALL_DISK_MIB}m,mode=0700");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none", home.as_str()]).status();
    assert!(mounted.expect("mount runs").success());
    let engine = QemuEngine::find(&home).expect("QEMU is installed");
    let vm = engine.launch(guest::spec()).await.expect("starts");
    let link = guest::connect(&vm).await;
    start_process(&link).await;

    let error = save(&vm, &link, AfterSave::GoOn).await.expect_err("its memory has no room");
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
    assert_goes_on(&vm, &link, &home).await;

    let filler = home.join("filler");
    drop(std::fs::write(&filler, vec![1; (SMALL_DISK_MIB << 20) as usize]));
    for then in [AfterSave::GoOn, AfterSave::Stop] {
        let error = save(&vm, &link, then).await.expect_err("nothing has room");
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
        assert_goes_on(&vm, &link, &home).await;
    }
    std::fs::remove_file(filler).expect("removed");

    save(&vm, &link, AfterSave::Stop).await.expect("takes no room but for its devices");
    let fork = engine.resume(vm.id()).await.expect("goes on");
    assert_eq!(guest::tell(&fork.link, "echo $word").await, "three");
}

async fn assert_goes_on(vm: &Vm, link: &kiln_engine::link::GuestLink, home: &Utf8Path) {
    assert_eq!(guest::tell(link, "word=three; echo $word").await, "three");
    assert_eq!(names(home.join("snapshots")), [""; 0]);
    vm.pause().await.expect("is paused");
    vm.resume().await.expect("goes on");
}

#[test]
fn vm_on_a_full_disk_is_not_saved_and_continues() {
    let lab = Lab::new();
    let helper = helper_process("save_on_a_small_disk", HOME_VARIABLE, lab.home().as_str());
    let mut command = Command::new("unshare");
    // A user who is not root becomes root in a user namespace.
    command.args(if rustix::process::geteuid().is_root() { &["--mount"][..] } else { &["--map-root-user", "--mount"] });
    command.arg(helper.get_program()).args(helper.get_args());
    command.env(HOME_VARIABLE, lab.home());
    let output = command.output().expect("util-linux is installed");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(vmms(lab.home()), [0; 0]);
}

#[tokio::test]
#[ignore = "the other half of the test below, started by it with a save that waits for it"]
async fn lose_the_vmm_during_a_save() {
    let home = Utf8PathBuf::from(std::env::var(HOME_VARIABLE).expect("started by the test below"));
    let engine = QemuEngine::find(&home).expect("QEMU is installed");
    let base = names(home.join("snapshots"))[0].parse().expect("an id");
    let fork = fork(&engine, &open(&home, &base).expect("is whole")).await;
    let saved = save(&fork.vm, &fork.link, AfterSave::Stop).await;
    println!("\nrefused {}", saved.expect_err("its VMM is gone"));
    end(&fork.vm).await;
}

#[tokio::test]
async fn vm_whose_vmm_is_killed_during_a_save_leaves_nothing() {
    for point in ["save.begun", "save.paused", "save.device"] {
        let lab = Lab::new();
        // Made here: if the ready-made one does not exist yet, its boot saves too.
        drop(base(lab.home()).await);
        let reached = lab.home().join("reached");
        let mut helper = helper_process("lose_the_vmm_during_a_save", HOME_VARIABLE, lab.home().as_str());
        helper.env(FAIL_POINT_VARIABLE, format!("{point}:wait-{reached}")).stdout(Stdio::piped());
        let helper = helper.spawn().expect("starts");
        until("the save", || reached.exists());
        for pid in vmms(lab.home()) {
            let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a pid");
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("is killed");
        }
        until("the end of the VMM", || vmms(lab.home()).is_empty());
        std::fs::remove_file(reached).expect("removed");
        let output = helper.wait_with_output().expect("ends");
        assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("refused"), "{output:?}");
        assert_nothing_started(&lab);
        assert_eq!(names(lab.home().join("snapshots")).len(), 1, "{point}");
    }
}
