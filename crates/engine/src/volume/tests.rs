//! Volumes on this host's e2fsprogs, without a VM. `debugfs` writes and reads files as a guest would, without a mount.

use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::*;
use crate::home::Home;

const MIB: u64 = 1 << 20;

struct Place {
    directory: tempfile::TempDir,
    store: VolumeStore,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let store = VolumeStore::new(&Home::at(Utf8Path::from_path(directory.path()).expect("UTF-8")));
        Self { directory, store }
    }

    fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8Path::from_path(self.directory.path()).expect("UTF-8").join(name)
    }

    fn data(&self, volume: &str) -> Utf8PathBuf {
        self.path("volumes").join(volume).join("data")
    }

    /// A volume with one file, `/f`.
    fn volume(&self, volume: &str, content: &str) {
        self.store.create(&name(volume), 16 * MIB, Content::Ext4).expect("is made");
        self.write(volume, content);
    }

    fn write(&self, volume: &str, content: &str) {
        let source = self.path("source");
        fs::write(&source, content).expect("written");
        debugfs(&self.data(volume), "rm /f");
        debugfs(&self.data(volume), &format!("write {source} /f"));
    }

    fn read(&self, volume: &str) -> String {
        debugfs(&self.data(volume), "cat /f")
    }

    fn state(&self, volume: &str) -> VolumeState {
        self.store.inspect(&name(volume)).expect("is there").state
    }

    /// Names of all that is below `volumes`.
    fn names(&self) -> Vec<String> {
        let Ok(entries) = self.path("volumes").read_dir_utf8() else { return Vec::new() };
        let mut names: Vec<_> = entries.map(|entry| entry.expect("lists").file_name().to_owned()).collect();
        names.sort();
        names
    }

    /// Leaves the volume as a crash of its only user does.
    fn crash(&self, volume: &str) {
        drop(self.store.hold(&name(volume), Access::Write).expect("is free"));
    }
}

fn name(text: &str) -> VolumeName {
    text.parse().expect("a name")
}

fn debugfs(disk: &Utf8Path, request: &str) -> String {
    let output = Command::new("/sbin/debugfs").args(["-w", "-R", request]).arg(disk).output().expect("e2fsprogs");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn is_sound(disk: &Utf8Path) -> bool {
    let checked = Command::new("/sbin/e2fsck").args(["-f", "-n"]).arg(disk).output().expect("e2fsprogs");
    checked.status.success()
}

#[test]
fn a_new_volume_is_an_empty_ext4_that_takes_little_space() {
    let place = Place::new();
    assert_eq!(place.store.list().expect("lists").len(), 0);
    place.store.create(&name("data"), 1 << 30, Content::Ext4).expect("is made");
    place.store.create(&name("disk"), 9 * MIB - 1, Content::Raw).expect("is made");
    let listed = place.store.list().expect("lists");
    let [data, disk] = [0, 1].map(|index| listed[index].inspection.as_ref().expect("is whole"));
    assert_eq!((data.content, data.bytes, data.state), (Content::Ext4, 1 << 30, VolumeState::Clean));
    assert!(data.bytes_on_disk < 4 * MIB, "{}", data.bytes_on_disk);
    let filesystem = data.filesystem.as_ref().expect("is ext4");
    assert!(filesystem.clean && filesystem.bytes == 1 << 30 && filesystem.free_bytes > 900 * MIB, "{filesystem:?}");
    assert!(is_sound(&data.path));
    let dump = Command::new("/sbin/dumpe2fs").arg("-h").arg(&data.path).output().expect("e2fsprogs");
    let dump = String::from_utf8(dump.stdout).expect("UTF-8");
    let features = dump.lines().find(|line| line.starts_with("Filesystem features")).expect("a line");
    assert!(features.contains("has_journal"), "{features}");
    assert!(!["orphan_file", "metadata_csum_seed", "quota"].iter().any(|new| features.contains(new)), "{features}");
    assert!(dump.contains("Reserved block count:     0"), "{dump}");
    assert_eq!((disk.content, disk.bytes, disk.bytes_on_disk, &disk.filesystem), (Content::Raw, 9 * MIB, 0, &None));
    assert_eq!(fs::metadata(&disk.path).expect("is there").mode() & 0o777, 0o600);
}

#[test]
fn taken_names_unknown_names_and_odd_sizes_are_refused() {
    let place = Place::new();
    place.volume("data", "kept");
    for taken in [
        place.store.create(&name("data"), 16 * MIB, Content::Ext4),
        place.store.clone_volume(&name("data"), &name("data")),
        place.store.import(&place.data("data"), &name("data"), Content::Ext4).map(drop),
    ] {
        assert!(matches!(taken, Err(VolumeError::Exists(_))), "{taken:?}");
    }
    for bytes in [0, VOLUME_BYTES_MIN - 1, VOLUME_BYTES_MAX + 1, u64::MAX] {
        let error = place.store.create(&name("other"), bytes, Content::Raw).expect_err("can't be");
        assert!(matches!(error, VolumeError::Size { bytes: of, .. } if of == bytes), "{error}");
    }
    let none = name("none");
    for unknown in [
        place.store.inspect(&none).map(drop),
        place.store.hold(&none, Access::Write).map(drop),
        place.store.hold(&none, Access::Read).map(drop),
        place.store.remove(&none),
        place.store.grow(&none, 16 * MIB).map(drop),
        place.store.clone_volume(&none, &name("other")),
        place.store.export(&none, Target::Stream(&mut Vec::new())).map(drop),
    ] {
        assert!(matches!(unknown, Err(VolumeError::Unknown(_))), "{unknown:?}");
    }
    assert_eq!((place.names(), place.read("data").as_str()), (vec!["data".to_owned()], "kept"));
}

#[test]
fn one_writes_or_many_read() {
    let place = Place::new();
    place.volume("data", "kept");
    let hold = |access| place.store.hold(&name("data"), access);
    let busy = |error: VolumeError| match error {
        VolumeError::InUse { by, .. } => assert_eq!(by, [std::process::id()]),
        other => panic!("{other:?}"),
    };
    let readers = [hold(Access::Read), hold(Access::Read)].map(|held| held.expect("any number reads"));
    assert!(readers.iter().all(|held| held.repair().is_none() && held.disk().role.is_read_only()));
    busy(hold(Access::Write).expect_err("is read"));
    busy(place.store.remove(&name("data")).expect_err("is read"));
    busy(place.store.grow(&name("data"), 32 * MIB).expect_err("is read"));
    assert_eq!(place.state("data"), VolumeState::Clean);
    assert!(readers.into_iter().all(|held| held.release(Ended::Cut).expect("ends")), "a reader leaves no trace");

    let writer = hold(Access::Write).expect("is free");
    assert_eq!(writer.disk().path, place.data("data"));
    for access in [Access::Read, Access::Write] {
        busy(hold(access).expect_err("is written to"));
    }
    busy(place.store.clone_volume(&name("data"), &name("copy")).expect_err("is written to"));
    assert_eq!(place.state("data"), VolumeState::Writing);
    assert!(writer.release(Ended::Cleanly).expect("ends"));
    assert_eq!(place.state("data"), VolumeState::Clean);
    place.store.remove(&name("data")).expect("is free");
    assert_eq!(place.names(), [""; 0]);
}

#[test]
fn a_volume_whose_user_crashed_is_repaired_before_its_next_use() {
    let place = Place::new();
    place.volume("data", "kept");
    for access in [Access::Write, Access::Read] {
        place.crash("data");
        assert_eq!(place.state("data"), VolumeState::Dirty);
        let held = place.store.hold(&name("data"), access).expect("is repaired");
        assert_eq!(held.repair(), Some(&Repair::Replayed));
        assert!(held.release(Ended::Cleanly).expect("ends"));
        assert_eq!((place.state("data"), place.read("data").as_str()), (VolumeState::Clean, "kept"));
    }
    // What a kernel writes when it finds an error, and a count that is wrong: both are repaired.
    debugfs(&place.data("data"), "set_super_value free_blocks_count 1");
    debugfs(&place.data("data"), "set_super_value state 2");
    place.crash("data");
    let held = place.store.hold(&name("data"), Access::Write).expect("is repaired");
    assert!(matches!(held.repair(), Some(Repair::Corrected(_))), "{:?}", held.repair());
    assert!(held.release(Ended::Cut).is_ok_and(|clean| !clean), "a cut leaves the mark");
    assert_eq!((place.state("data"), place.read("data").as_str()), (VolumeState::Dirty, "kept"));
    assert!(is_sound(&place.data("data")));

    place.store.create(&name("raw"), 16 * MIB, Content::Raw).expect("is made");
    place.crash("raw");
    let held = place.store.hold(&name("raw"), Access::Read).expect("is usable");
    assert_eq!(held.repair(), Some(&Repair::Unchecked));
}

#[test]
fn a_filesystem_that_is_still_mounted_is_not_taken_for_clean() {
    let place = Place::new();
    place.volume("data", "kept");
    let held = place.store.hold(&name("data"), Access::Write).expect("is free");
    debugfs(&place.data("data"), "feature needs_recovery");
    assert!(!held.release(Ended::Cleanly).expect("reads"));
    assert_eq!(place.state("data"), VolumeState::Dirty);
}

#[test]
fn damage_that_e2fsck_does_not_repair_on_its_own_is_refused_and_left_as_it_is() {
    let place = Place::new();
    place.volume("data", "kept");
    let data = fs::OpenOptions::new().write(true).open(place.data("data")).expect("opens");
    data.file().write_all_at(&[0xff; 4096], 1024).expect("written");
    place.crash("data");
    let before = fs::read(place.data("data")).expect("reads");
    for access in [Access::Write, Access::Read] {
        let error = place.store.hold(&name("data"), access).expect_err("is damaged");
        assert!(matches!(&error, VolumeError::Damaged { found, .. } if !found.is_empty()), "{error}");
    }
    assert_eq!(place.state("data"), VolumeState::Dirty);
    assert!(fs::read(place.data("data")).expect("reads") == before);
    let mut copy = Vec::new();
    place.store.export(&name("data"), Target::Stream(&mut copy)).expect("can be repaired by hand");
    assert!(copy == before);
    place.store.remove(&name("data")).expect("a damaged volume can be removed");
}

#[test]
fn a_vmm_that_outlives_its_kiln_is_waited_for() {
    let place = Place::new();
    place.store.create(&name("disk"), 16 * MIB, Content::Raw).expect("is made");
    let path = place.data("disk");
    for options in [["-f", "raw"].as_slice(), &["-r", "-f", "raw"]] {
        // It has the file open and locked until its stdin ends.
        let mut vmm = Command::new("qemu-io");
        vmm.args(options).arg(&path).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut vmm = vmm.spawn().expect("qemu-utils");
        let data = fs::OpenOptions::new().read(true).write(true).open(&path).expect("opens").into_file();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while locks::no_vmm_within(&data, Duration::ZERO).expect("locks") {
            assert!(std::time::Instant::now() < deadline, "it never opens the disk");
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(vmm.stdin.take());
        let held = place.store.hold(&name("disk"), Access::Write).expect("waits for its end");
        assert!(held.release(Ended::Cleanly).expect("ends"));
        vmm.wait().expect("has ended");
    }
}

#[test]
fn a_volume_grows_with_its_files_and_never_shrinks() {
    let place = Place::new();
    place.volume("data", "kept");
    let grown = place.store.grow(&name("data"), 3 << 30).expect("grows");
    assert_eq!(grown, Grown { bytes_before: 16 * MIB, bytes: 3 << 30, repair: None });
    let now = place.store.inspect(&name("data")).expect("is there");
    assert_eq!((now.bytes, now.state), (3 << 30, VolumeState::Clean));
    assert_eq!(now.filesystem.expect("is ext4").bytes, 3 << 30);
    assert!(now.bytes_on_disk < 32 * MIB && is_sound(&place.data("data")), "{}", now.bytes_on_disk);
    assert_eq!(place.read("data"), "kept");
    place.store.grow(&name("data"), 3 << 30).expect("has that size already");
    let error = place.store.grow(&name("data"), 1 << 30).expect_err("would lose data");
    assert!(matches!(error, VolumeError::Shrink { now, wanted, .. } if (now, wanted) == (3 << 30, 1 << 30)));

    place.crash("data");
    let grown = place.store.grow(&name("data"), 4 << 30).expect("is repaired first");
    assert_eq!(grown.repair, Some(Repair::Replayed));
    place.store.create(&name("raw"), 16 * MIB, Content::Raw).expect("is made");
    place.store.grow(&name("raw"), 17 * MIB).expect("grows");
    assert_eq!(place.store.inspect(&name("raw")).expect("is there").bytes, 17 * MIB);
}

#[test]
fn a_clone_has_the_same_files_and_holes_and_then_a_life_of_its_own() {
    let place = Place::new();
    place.volume("data", "kept");
    place.store.grow(&name("data"), 1 << 30).expect("grows");
    place.store.clone_volume(&name("data"), &name("copy")).expect("is copied");
    assert_eq!(place.read("copy"), "kept");
    let [data, copy] = ["data", "copy"].map(|one| place.store.inspect(&name(one)).expect("is there"));
    assert_eq!((copy.bytes, copy.content), (data.bytes, data.content));
    assert!(copy.bytes_on_disk <= data.bytes_on_disk + MIB, "{} {}", copy.bytes_on_disk, data.bytes_on_disk);
    place.write("copy", "changed");
    assert_eq!((place.read("data"), place.read("copy")), ("kept".into(), "changed".into()));
}

#[test]
fn an_exported_disk_has_its_holes_and_becomes_the_same_volume_elsewhere() {
    let place = Place::new();
    place.volume("data", "kept");
    let file = place.path("disk.img");
    assert_eq!(place.store.export(&name("data"), Target::File(&file)).expect("is written"), 16 * MIB);
    let meta = fs::metadata(&file).expect("is there");
    assert!(meta.len() == 16 * MIB && meta.blocks() * 512 < 4 * MIB, "{meta:?}");
    let error = place.store.export(&name("data"), Target::File(&file)).expect_err("would replace it");
    assert!(matches!(error, VolumeError::TargetExists(_)), "{error}");
    let mut stream = Vec::new();
    place.store.export(&name("data"), Target::Stream(&mut stream)).expect("is written");
    assert!(stream == fs::read(&file).expect("reads"), "holes are zeros in a stream");

    let imported = place.store.import(&file, &name("again"), Content::Ext4).expect("is clean");
    assert_eq!(imported, Imported { bytes: 16 * MIB, found: None });
    assert_eq!((place.read("again").as_str(), place.state("again")), ("kept", VolumeState::Clean));
    let left = fs::read_dir(place.directory.path()).expect("lists").filter_map(Result::ok);
    assert!(!left.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().contains("partial")));
}

#[test]
fn only_a_plain_file_with_a_filesystem_that_fits_becomes_a_volume() {
    let place = Place::new();
    place.volume("data", "kept");
    let [fifo, short, text, cut, odd] = ["fifo", "short", "text", "cut", "odd"].map(|one| place.path(one));
    rustix::fs::mknodat(rustix::fs::CWD, fifo.as_std_path(), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .expect("a FIFO");
    fs::write(&short, [0; 100]).expect("written");
    fs::write(&text, vec![b'x'; 1 << 20]).expect("written");
    let disk = fs::read(place.data("data")).expect("reads");
    fs::write(&cut, &disk[..9 << 20]).expect("written");
    for (path, problem) in [
        (&place.path("."), "not an ordinary file"),
        (&fifo, "not an ordinary file"),
        (&"/dev/zero".into(), "not an ordinary file"),
        (&place.path("none"), "does not exist"),
        (&short, "has 100 bytes"),
        (&text, "no ext4 filesystem"),
        (&cut, "more than the file"),
    ] {
        let error = place.store.import(path, &name("new"), Content::Ext4).expect_err("is refused");
        assert!(
            matches!(&error, VolumeError::NotImportable { problem: found, .. } if found.contains(problem)),
            "{path}: {error}"
        );
    }
    assert_eq!(place.names(), ["data"]);
    let raw = place.store.import(&text, &name("raw"), Content::Raw).expect("a disk may hold anything");
    assert_eq!(raw, Imported { bytes: 1 << 20, found: None });

    // Its filesystem has errors: it is taken, that is reported, and the first use repairs it.
    fs::write(&odd, &disk).expect("written");
    debugfs(&odd, "set_super_value free_blocks_count 1");
    debugfs(&odd, "set_super_value state 2");
    let imported = place.store.import(&odd, &name("odd"), Content::Ext4).expect("can be repaired");
    assert!(imported.found.is_some_and(|found| !found.is_empty()));
    assert_eq!(place.state("odd"), VolumeState::Dirty);
    let held = place.store.hold(&name("odd"), Access::Write).expect("is repaired");
    assert!(matches!(held.repair(), Some(Repair::Corrected(_))), "{:?}", held.repair());
    assert_eq!(place.read("odd"), "kept");
}

#[test]
fn what_is_no_volume_is_listed_as_broken_and_can_be_removed() {
    let place = Place::new();
    let volumes = place.path("volumes");
    fs::create_dir_all(volumes.join("empty")).expect("made");
    fs::create_dir_all(volumes.join("odd")).expect("made");
    fs::write(volumes.join("odd/volume.json"), vec![b'['; 1 << 20]).expect("written");
    fs::write(volumes.join("a file"), "x").expect("written");
    place.volume("fifo", "x");
    fs::remove_file(place.data("fifo")).expect("is there");
    rustix::fs::mknodat(rustix::fs::CWD, place.data("fifo").as_std_path(), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .expect("a FIFO");
    for one in place.store.list().expect("lists") {
        let error = one.inspection.expect_err("is broken");
        assert!(matches!(error, VolumeError::Broken { .. }), "{error:?}");
        let error = place.store.hold(&one.name, Access::Write).expect_err("is broken");
        assert!(matches!(error, VolumeError::Broken { .. }), "{error:?}");
        place.store.remove(&one.name).expect("is removed");
    }
    assert_eq!(place.names(), ["a file"]);
}

/// A process is killed at each step of each operation.
#[cfg(feature = "failpoints")]
mod killed {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;
    use crate::failpoint::{FAIL_POINT_VARIABLE, FAIL_POINTS};

    const HOME_VARIABLE: &str = "KILN_TEST_VOLUME_HOME";
    const ACT_VARIABLE: &str = "KILN_TEST_VOLUME_ACT";

    #[test]
    #[ignore = "the other half of the tests below, started by them in a process of its own"]
    fn act_and_be_killed() {
        let home = Utf8PathBuf::from(std::env::var(HOME_VARIABLE).expect("started by the tests below"));
        let store = VolumeStore::new(&Home::at(&home));
        let (data, new) = (name("data"), name("new"));
        match std::env::var(ACT_VARIABLE).expect("started by the tests below").as_str() {
            "create" => store.create(&new, 16 * MIB, Content::Ext4).expect("is made"),
            "clone" => store.clone_volume(&data, &new).expect("is copied"),
            "import" => drop(store.import(&home.join("image"), &new, Content::Ext4).expect("is copied")),
            "use" => {
                let held = store.hold(&data, Access::Write).expect("is free");
                assert!(held.release(Ended::Cleanly).expect("ends"));
            }
            "grow" => drop(store.grow(&data, 64 * MIB).expect("grows")),
            "export" => drop(store.export(&data, Target::File(&home.join("out"))).expect("is written")),
            "remove" => store.remove(&data).expect("is free"),
            other => panic!("{other}"),
        }
    }

    /// A home with the volume `data` after a process was killed there.
    fn killed(act: &str, point: &str, crashed: bool) -> Place {
        let place = Place::new();
        place.volume("data", "kept");
        fs::copy(place.data("data"), place.path("image")).expect("copied");
        if crashed {
            place.crash("data");
        }
        let ended = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "volume::tests::killed::act_and_be_killed", "--ignored"])
            .env(HOME_VARIABLE, place.path(""))
            .env(ACT_VARIABLE, act)
            .env(FAIL_POINT_VARIABLE, point)
            .output()
            .expect("runs");
        assert_eq!(ended.status.signal(), Some(9), "{act} {point}: {ended:?}");
        place
    }

    const MAKING: [&str; 4] = ["volume.data", "volume.filled", "volume.recorded", "volume.published"];

    #[test]
    fn a_volume_exists_whole_or_not_at_all() {
        for act in ["create", "clone", "import"] {
            for point in MAKING {
                let place = killed(act, point, false);
                let new = place.store.list().expect("lists").into_iter().find(|one| one.name == name("new"));
                assert_eq!(new.is_some(), point == "volume.published", "{act} {point}");
                if let Some(new) = new {
                    let new = new.inspection.expect("is whole");
                    assert!(new.state == VolumeState::Clean && is_sound(&new.path), "{act} {point}");
                }
                assert_eq!(place.read("data"), "kept");
                // The next one removes what is left, and succeeds.
                place.store.create(&name("next"), 16 * MIB, Content::Ext4).expect("is made");
                assert!(!place.names().iter().any(|name| name.contains("partial")), "{:?}", place.names());
            }
        }
    }

    #[test]
    fn a_volume_in_use_is_checked_before_its_next_use_and_keeps_its_files() {
        let cases = [
            ("use", "volume.marked", false, true),
            ("use", "volume.ended", false, true),
            ("use", "volume.unmarked", false, false),
            ("use", "volume.checked", true, true),
            ("use", "volume.unmarked", true, false),
            ("grow", "volume.marked", false, true),
            ("grow", "volume.larger", false, true),
            ("grow", "volume.grown", false, true),
            ("grow", "volume.unmarked", false, false),
        ];
        for (act, point, crashed, marked) in cases {
            let place = killed(act, point, crashed);
            let held = place.store.hold(&name("data"), Access::Write).expect("is usable");
            assert_eq!(held.repair().is_some(), marked, "{act} {point}");
            assert!(held.release(Ended::Cleanly).expect("ends"));
            assert_eq!((place.read("data").as_str(), is_sound(&place.data("data"))), ("kept", true), "{act} {point}");
            place.store.grow(&name("data"), 64 * MIB).expect("the growth is completed");
            let grown = place.store.inspect(&name("data")).expect("is there");
            assert_eq!(grown.filesystem.map(|filesystem| filesystem.bytes), Some(64 * MIB), "{act} {point}");
            assert_eq!(place.read("data"), "kept");
        }
    }

    #[test]
    fn a_removed_volume_is_gone_and_an_export_has_no_name_before_it_is_whole() {
        let place = killed("remove", "volume.unnamed", false);
        assert_eq!(place.store.list().expect("lists").len(), 0);
        place.store.create(&name("data"), 16 * MIB, Content::Ext4).expect("the name is free");
        assert_eq!(place.names(), ["data"]);
        let place = killed("export", "volume.exported", false);
        assert!(!place.path("out").exists());
        assert_eq!(place.read("data"), "kept");
    }

    #[test]
    fn every_step_of_a_volume_is_tested_here() {
        let more = ["marked", "ended", "unmarked", "checked", "larger", "grown", "exported", "unnamed"];
        let mut tested: Vec<_> = MAKING.into_iter().map(str::to_owned).collect();
        tested.extend(more.map(|step| format!("volume.{step}")));
        let all: Vec<_> = FAIL_POINTS.iter().filter(|point| point.starts_with("volume.")).collect();
        assert_eq!(all, tested.iter().collect::<Vec<_>>());
    }
}
