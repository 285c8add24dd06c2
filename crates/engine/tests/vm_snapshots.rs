//! What real guests find again in snapshots, forks and chains of them.

mod support;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use kiln_engine::home::Home;
use kiln_engine::snapshot::{AfterSave, MemoryKind, Snapshot, SnapshotError, SnapshotId, SnapshotStore};
use kiln_engine::{
    Disk, DiskFormat, DiskRole, Engine as _, ErrorKind, ForkPart, ForkSpec, LaunchError, QemuEngine, RestoreError,
    SpecError, VmSpec, VolumeFile,
};

use support::guest::{base, connect, disk, fork, make_disk, note, noted, open, save, shell, spec, start_process, tell};
use support::{Lab, is_alive};

/// A word in a variable of the running process and in a file, for each step so far.
async fn remember(link: &kiln_engine::link::GuestLink, step: &str) {
    tell(link, &format!("words=\"$words {step}\"")).await;
    shell(link, &format!("echo {step} > /tmp/step-{step}")).await;
}

async fn remembered(engine: &QemuEngine, snapshot: &Snapshot) -> String {
    let fork = fork(engine, snapshot).await;
    let words = tell(&fork.link, "echo $words").await;
    let files = shell(&fork.link, "cd /tmp; echo $(cat step-*)").await;
    fork.vm.kill().await;
    format!("{words} | {files}")
}

fn flip_bit(path: &Utf8Path) {
    let mut bytes = std::fs::read(path).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(path).expect("removed");
    std::fs::write(path, bytes).expect("written");
}

#[tokio::test]
async fn vm_data_accumulates_from_a_full_snapshot_over_diffs_and_stays_after_compaction() {
    let lab = Lab::new();
    let engine = lab.engine();
    let vm = engine.launch(spec()).await.expect("starts");
    let link = connect(&vm).await;
    start_process(&link).await;
    remember(&link, "1").await;
    let full = save(&vm, &link, AfterSave::End).await.expect("is saved");
    assert_eq!((full.manifest().memory, full.parent()), (MemoryKind::Full, None));
    assert!(!is_alive(vm.pid()));

    let mut chain = vec![full];
    for step in ["2", "3"] {
        let fork = fork(&engine, chain.last().expect("has one")).await;
        remember(&fork.link, step).await;
        let diff = save(&fork.vm, &fork.link, AfterSave::GoOn).await.expect("is saved");
        assert_eq!((diff.manifest().memory, diff.parent()), (MemoryKind::Diff, Some(chain.last().expect("one").id())));
        remember(&fork.link, "lost").await;
        chain.push(diff);
    }
    for (link, expected) in chain.iter().zip(["1 | 1", "1 2 | 1 2", "1 2 3 | 1 2 3"]) {
        assert_eq!(remembered(&engine, link).await, expected);
    }

    let newest = chain.pop().expect("three").id().clone();
    drop(chain);
    let store = SnapshotStore::new(&Home::at(lab.home()));
    store.compact(&newest).expect("compacts");
    let compacted = store.open(&newest).expect("opens");
    assert_eq!((compacted.manifest().memory, compacted.links().len()), (MemoryKind::Full, 1));
    assert_eq!(remembered(&engine, &compacted).await, "1 2 3 | 1 2 3");
    assert_eq!(lab.vms(), [""; 0]);
}

/// Three links above the shared snapshot, sealed. Returns their ids and directories.
async fn chain(lab: &Lab) -> Vec<(SnapshotId, Utf8PathBuf)> {
    let engine = lab.engine();
    let mut last = base(lab.home()).await;
    for step in ["1", "2"] {
        let fork = fork(&engine, &last).await;
        shell(&fork.link, &format!("echo {step} > /tmp/step-{step}")).await;
        last = save(&fork.vm, &fork.link, AfterSave::End).await.expect("is saved");
    }
    last.seal().expect("seals");
    last.links().map(|link| (link.id().clone(), link.directory())).collect()
}

#[tokio::test]
async fn vm_of_a_chain_with_a_broken_or_missing_link_is_refused_by_name_and_the_full_parent_still_restores() {
    let lab = Lab::new();
    let engine = lab.engine();
    let links = chain(&lab).await;
    let [(root, _), (middle, directory), (leaf, _)] = &links[..] else { panic!("{links:?}") };
    let moved = lab.home().join("moved");

    std::fs::rename(directory, &moved).expect("moved");
    let error = open(lab.home(), leaf).expect_err("a link is missing");
    assert!(matches!(&error, SnapshotError::MissingLink { of, missing } if of == leaf && missing == middle), "{error}");
    std::fs::rename(&moved, directory).expect("moved back");
    open(lab.home(), leaf).expect("is whole again");

    flip_bit(&directory.join("pages"));
    for id in [leaf, middle] {
        let error = open(lab.home(), id).expect_err("a link is broken");
        assert!(matches!(&error, SnapshotError::Broken { id, file, .. } if id == middle && file == "pages"), "{error}");
    }
    let error = SnapshotStore::new(&Home::at(lab.home())).compact(leaf).expect_err("a link is broken");
    assert!(matches!(&error, SnapshotError::Broken { id, .. } if id == middle), "{error}");

    let fork = fork(&engine, &open(lab.home(), root).expect("is whole")).await;
    assert_eq!(shell(&fork.link, "ls /tmp").await, "");
}

#[tokio::test]
async fn vm_disks_follow_their_snapshots_and_forks_write_only_to_their_own_layers() {
    let lab = Lab::new();
    let engine = lab.engine();
    let (raw, qcow2) = (lab.home().join("disk.raw"), lab.home().join("disk.qcow2"));
    make_disk(&raw);
    let made = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2", qcow2.as_str(), "1M"]).status();
    assert!(made.expect("qemu-img is installed").success());
    let disks = vec![disk(&raw, DiskFormat::Raw), disk(&qcow2, DiskFormat::Qcow2)];
    let vm = engine.launch(VmSpec { disks, ..spec() }).await.expect("starts");
    let link = connect(&vm).await;

    write(&link, 0, "first").await;
    let full = save(&vm, &link, AfterSave::GoOn).await.expect("is saved");
    write(&link, 1, "owner").await;
    let one = fork(&engine, &full).await;
    assert_eq!(read(&one.link).await, ["first", "", "first", ""], "a snapshot is of its moment");
    write(&one.link, 1, "fork").await;
    let diff = save(&one.vm, &one.link, AfterSave::GoOn).await.expect("is saved");
    write(&one.link, 0, "later").await;

    let other = fork(&engine, &full).await;
    assert_eq!(read(&other.link).await, ["first", "", "first", ""]);
    let next = fork(&engine, &diff).await;
    assert_eq!(read(&next.link).await, ["first", "fork", "first", "fork"]);
    assert_eq!((full.disk_layers(1).len(), diff.disk_layers(0).len(), diff.disk_layers(1).len()), (1, 2, 2));
    assert_eq!(read(&one.link).await, ["later", "fork", "later", "fork"]);
    assert_eq!(read(&link).await, ["first", "owner", "first", "owner"]);

    vm.kill().await;
    let words = std::fs::read(&raw).expect("reads");
    assert!(words.starts_with(b"first") && words[512..].starts_with(b"owner"), "the disk of the VM that was launched");
    assert!(std::fs::read(&full.disk_layers(0)[0]).expect("reads")[512..].starts_with(&[0; 8]));
    let checked = Command::new("qemu-img").args(["check", "-q", full.disk_layers(1)[0].as_str()]).status();
    assert!(checked.expect("runs").success(), "the copy of a qcow2 disk is one");

    let last = diff.disk_layers(1).pop().expect("two");
    diff.seal().expect("seals");
    flip_bit(&last);
    let error = open(lab.home(), diff.id()).expect_err("a disk is broken");
    assert!(matches!(&error, SnapshotError::Broken { id, file, .. } if id == diff.id() && file == "disk-1"), "{error}");
}

/// Writes a word to a sector of both disks.
async fn write(link: &kiln_engine::link::GuestLink, sector: usize, word: &str) {
    let to = |device| {
        format!("printf '%-12s' {word} | dd of=/dev/{device} bs=512 seek={sector} conv=fsync,notrunc 2> /dev/null")
    };
    shell(link, &format!("{}; {}", to("vda"), to("vdb"))).await;
}

/// The words in the first two sectors of both disks.
async fn read(link: &kiln_engine::link::GuestLink) -> [String; 4] {
    let mut words = [const { String::new() }; 4];
    shell(link, "echo 3 > /proc/sys/vm/drop_caches").await;
    for (index, word) in words.iter_mut().enumerate() {
        let (device, sector) = (["vda", "vdb"][index / 2], index % 2);
        let script = format!("dd if=/dev/{device} bs=512 skip={sector} count=1 2> /dev/null | tr -d '\\0 '");
        *word = shell(link, &script).await;
    }
    words
}

#[tokio::test]
async fn vm_with_a_volume_is_saved_without_it_and_each_fork_gets_its_own() {
    let lab = Lab::new();
    let engine = lab.engine();
    let [volume, first, second] = ["volume", "first", "second"].map(|name| lab.home().join(name));
    for path in [&volume, &first, &second] {
        make_disk(path);
        // A VMM with a user of its own could not open it.
        std::fs::set_permissions(path, Permissions::from_mode(0o600)).expect("is ours");
    }
    let disks = vec![Disk { role: DiskRole::Volume, ..disk(&volume, DiskFormat::Raw) }];
    let vm = engine.launch(VmSpec { disks, ..spec() }).await.expect("starts");
    let link = connect(&vm).await;
    let snapshot = save(&vm, &link, AfterSave::End).await.expect("is saved");
    assert!(snapshot.manifest().files.iter().all(|file| !file.name.starts_with("disk")), "no byte of the volume");
    assert_eq!(snapshot.manifest().volumes[0].path, volume);

    let error = engine.restore(&snapshot, ForkSpec::default()).await.expect_err("has no volume");
    assert!(matches!(&error, RestoreError::NoVolume { index: 0, path, .. } if *path == volume), "{error:?}");
    assert_eq!((error.kind(), lab.vms()), (ErrorKind::Invalid, vec![]));

    let part = |name: &str, path: &Utf8PathBuf| ForkPart {
        hostname: Some(name.into()),
        volumes: vec![VolumeFile { index: 0, path: path.clone() }],
        ..ForkPart::default()
    };
    let forks = ForkSpec { count: 2, parts: vec![part("one", &first), part("two", &second)], ..ForkSpec::default() };
    let mut forks = engine.restore(&snapshot, forks).await.expect("are restored");
    for (fork, name) in forks.iter().zip(["one", "two"]) {
        assert_eq!(shell(&fork.link, "cat /proc/sys/kernel/hostname").await, name);
        shell(&fork.link, &format!("echo {name} >/dev/vda; sync")).await;
    }
    forks.pop().expect("two").vm.kill().await;
    let start = |path: &Utf8PathBuf| std::fs::read(path).expect("reads")[..4].to_vec();
    assert_eq!([&volume, &first, &second].map(start), [*b"\0\0\0\0", *b"one\n", *b"two\n"]);

    let one = forks.remove(0);
    let id = one.vm.id().clone();
    save(&one.vm, &one.link, AfterSave::Stop).await.expect("stops");
    let one = engine.resume(&id).await.expect("goes on with its volume");
    assert_eq!(shell(&one.link, "head -c 3 /dev/vda; cat /proc/sys/kernel/hostname").await, "oneone");
    save(&one.vm, &one.link, AfterSave::Stop).await.expect("stops again");
    std::fs::write(&first, vec![b'x'; 1 << 20]).expect("written");
    let error = engine.resume(&id).await.expect_err("its volume is another one");
    assert!(matches!(&error, RestoreError::DiskMoved { path, .. } if *path == first), "{error:?}");
}

#[tokio::test]
async fn vm_forks_write_to_their_own_qcow2_volumes_which_outlive_them() {
    let lab = Lab::new();
    let engine = lab.engine();
    let image = |name: &str, arguments: &[&str]| {
        let path = lab.home().join(name);
        let mut made = Command::new("qemu-img");
        made.args(["create", "-q", "-f", "qcow2"]).args(arguments).args([path.as_str(), "1M"]);
        assert!(made.status().expect("qemu-img is installed").success());
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("is ours");
        path
    };
    let on_the_host = |path: &Utf8Path| {
        let raw = lab.home().join("raw");
        let arguments = ["convert", "-f", "qcow2", "-O", "raw", path.as_str(), raw.as_str()];
        assert!(Command::new("qemu-img").args(arguments).status().expect("runs").success());
        std::fs::read(raw).expect("reads")[..4].to_vec()
    };
    let [saved, first, second] = ["saved", "first", "second"].map(|name| image(name, &[]));
    let shadow = image("shadow", &["-u", "-b", "/etc/shadow", "-F", "raw"]);
    let volume = |path: &Utf8Path| Disk { role: DiskRole::Volume, ..disk(path, DiskFormat::Qcow2) };
    let launch = |path: &Utf8Path| engine.launch(VmSpec { disks: vec![volume(path)], ..spec() });

    let error = launch(&shadow).await.expect_err("its guest would read a file of the host");
    let problem = "has a backing file";
    let is_it = matches!(&error, LaunchError::Spec(SpecError::Disk { problem: found, .. }) if found.contains(problem));
    assert!(is_it && error.kind() == ErrorKind::Invalid, "{error:?}");

    let vm = launch(&saved).await.expect("starts");
    let link = connect(&vm).await;
    let snapshot = save(&vm, &link, AfterSave::End).await.expect("is saved");
    assert_eq!(snapshot.manifest().volumes[0].disk_bytes, Some(1 << 20));
    let part = |path: &Utf8PathBuf| ForkPart {
        volumes: vec![VolumeFile { index: 0, path: path.clone() }],
        ..ForkPart::default()
    };
    let forks = |paths: &[&Utf8PathBuf]| ForkSpec {
        count: paths.len(),
        parts: paths.iter().map(|path| part(path)).collect(),
        ..ForkSpec::default()
    };
    let large = lab.home().join("large");
    let made = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2", large.as_str(), "2M"]).status();
    assert!(made.expect("runs").success());
    for (path, problem) in [(&shadow, problem), (&large, "has 2097152 bytes, the one that was saved 1048576")] {
        let error = engine.restore(&snapshot, forks(&[path])).await.expect_err("does not fit");
        assert!(matches!(&error, RestoreError::Part { problem: found } if found.contains(problem)), "{error:?}");
    }
    assert_eq!(lab.vms(), [""; 0]);

    let two = engine.restore(&snapshot, forks(&[&first, &second])).await.expect("are restored");
    for (fork, word) in two.iter().zip(["one", "two"]) {
        // This flushes the disk, which `sync` does not: QEMU keeps the tables of an image in memory until then.
        let script = format!("echo {word} | dd of=/dev/vda conv=fsync,notrunc 2>/dev/null");
        shell(&fork.link, &script).await;
    }
    for fork in &two {
        fork.vm.kill().await;
    }
    drop(two);
    assert_eq!([&saved, &first, &second].map(|path| on_the_host(path)), [*b"\0\0\0\0", *b"one\n", *b"two\n"]);
    // The next fork finds what the last one wrote.
    let again = engine.restore(&snapshot, forks(&[&second])).await.expect("is restored").remove(0);
    let read = "echo 3 >/proc/sys/vm/drop_caches; head -c 3 /dev/vda";
    assert_eq!(shell(&again.link, read).await, "two");
    // A stop flushes what no command flushed.
    shell(&again.link, "echo six >/dev/vda; sync").await;
    let id = again.vm.id().clone();
    save(&again.vm, &again.link, AfterSave::Stop).await.expect("stops");
    drop(again);
    assert_eq!(on_the_host(&second), b"six\n");
    let back = engine.resume(&id).await.expect("goes on with its volume");
    assert_eq!(shell(&back.link, read).await, "six");
}

#[tokio::test]
async fn vm_with_a_read_only_disk_that_was_written_since_is_not_restored() {
    let lab = Lab::new();
    let engine = lab.engine();
    let path = lab.home().join("shared.raw");
    make_disk(&path);
    let disks = vec![Disk { role: DiskRole::Shared, ..disk(&path, DiskFormat::Raw) }];
    let vm = engine.launch(VmSpec { disks, ..spec() }).await.expect("starts");
    let link = connect(&vm).await;
    let snapshot = save(&vm, &link, AfterSave::End).await.expect("is saved");
    assert!(snapshot.disk_layers(0).is_empty(), "no copy of a disk that is not written");
    let fork = fork(&engine, &snapshot).await;
    assert_eq!(shell(&fork.link, "head -c 4 /dev/vda | tr '\\0' .").await, "....");
    fork.vm.kill().await;

    std::fs::write(&path, vec![b'x'; 1 << 20]).expect("written");
    let error = engine.restore(&snapshot, ForkSpec::default()).await.expect_err("it is another disk");
    assert!(matches!(&error, RestoreError::DiskMoved { id, path: moved } if id == snapshot.id() && *moved == path));
    std::fs::remove_file(&path).expect("removed");
    let error = engine.restore(&snapshot, ForkSpec::default()).await.expect_err("it is gone");
    assert!(matches!(error, RestoreError::DiskMoved { .. }));
    assert_eq!(lab.vms(), [""; 0]);
}

#[tokio::test]
async fn vm_that_was_stopped_continues_any_number_of_times() {
    let lab = Lab::new();
    let engine = lab.engine();
    let fork = fork(&engine, &base(lab.home()).await).await;
    start_process(&fork.link).await;
    let id = fork.vm.id().clone();
    let identity = "cat /proc/sys/kernel/hostname /etc/machine-id";
    let who = shell(&fork.link, identity).await;
    let mut running = fork;
    for step in ["one", "two", "three"] {
        note(&running.link, step).await;
        save(&running.vm, &running.link, AfterSave::Stop).await.expect("is saved");
        assert!(!is_alive(running.vm.pid()));
        running = engine.resume(&id).await.expect("goes on");
        assert_eq!(noted(&running.link).await, [step; 3]);
        assert_eq!((running.vm.id(), shell(&running.link, identity).await), (&id, who.clone()));
    }
    running.vm.kill().await;
    assert_eq!(lab.vms(), [""; 0], "a VM that is killed is over");
}
