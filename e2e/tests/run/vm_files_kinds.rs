//! `--in` and `--out` with special files, holes and files of `/proc`, and with existing targets.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

use kiln_e2e::{Kiln, until_booted};
use rustix::fs::{CWD, FileType, Mode, mknodat};

fn make_fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("ours");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o7777
}

#[test]
fn an_existing_target_keeps_its_type_and_mode() {
    let folder = tempfile::tempdir().expect("a folder");
    let host = |name: &str| folder.path().join(name);
    fs::write(host("private"), "old").expect("ours");
    fs::set_permissions(host("private"), fs::Permissions::from_mode(0o600)).expect("ours");
    make_fifo(&host("fifo"));
    let reader = thread::spawn({
        let fifo = host("fifo");
        move || fs::read(fifo).expect("it can be read")
    });
    let null = fs::metadata("/dev/null").expect("it is there").rdev();
    let targets =
        [host("private").display().to_string(), host("fifo").display().to_string(), "/dev/null".into(), "-".into()];
    let flags: Vec<String> = targets.iter().flat_map(|target| ["--out".into(), format!("/tmp/f:{target}")]).collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let outcome = Kiln::shell(&flags, "echo said; echo new > /tmp/f; chmod 666 /tmp/f").run();
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert_eq!((fs::read(host("private")).expect("it is there"), mode(&host("private"))), (b"new\n".to_vec(), 0o600));
    assert_eq!(reader.join().expect("it read"), b"new\n");
    assert!(fs::metadata(host("fifo")).expect("it is there").file_type().is_fifo());
    let device = fs::metadata("/dev/null").expect("it is there");
    assert!(device.file_type().is_char_device() && device.rdev() == null);
    assert_eq!(outcome.text(), "said\nnew");
}

#[test]
fn files_of_the_kernel_are_copied_to_their_end_both_ways() {
    let folder = tempfile::tempdir().expect("a folder");
    let host = |name: &str| folder.path().join(name);
    let flags = [
        "--in",
        "/proc/cpuinfo:/tmp/cpuinfo",
        "--out",
        &format!("/tmp/cpuinfo:{}", host("cpuinfo").display()),
        "--out",
        &format!("/proc/version:{}", host("version").display()),
        "--out",
        &format!("/sys/class/net/lo/mtu:{}", host("mtu").display()),
        "--out",
        &format!("/sys/class/net/lo/statistics:{}", host("statistics").display()),
    ];
    let outcome = Kiln::shell(&flags, "cat /proc/version /sys/class/net/lo/mtu").run();
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let read = |name: &str| fs::read_to_string(host(name)).expect(name);
    assert_eq!(format!("{}{}", read("version"), read("mtu")).trim_end(), outcome.text());
    // Some of its numbers change. The number of processors does not.
    let processors = |text: &str| text.matches("processor\t").count();
    let here = fs::read_to_string("/proc/cpuinfo").expect("it can be read");
    assert_eq!(processors(&read("cpuinfo")), processors(&here));
    assert_eq!(read("statistics/rx_bytes"), "0\n");
}

#[test]
fn holes_stay_holes_both_ways() {
    const SIZE: u64 = 10 << 30;
    let folder = tempfile::tempdir().expect("a folder");
    let (source, result) = (folder.path().join("source"), folder.path().join("result"));
    let file = File::create(&source).expect("ours");
    file.write_all_at(b"middle", SIZE / 2).expect("ours");
    file.set_len(SIZE).expect("ours");
    let flags = ["--in", &format!("{}:/tmp/f", source.display()), "--out", &format!("/tmp/f:{}", result.display())];
    let outcome = Kiln::shell(&flags, "stat -c '%s %b' /tmp/f").run();
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let text = outcome.text();
    let (size, blocks) = text.split_once(' ').expect("two numbers");
    assert_eq!(size, SIZE.to_string());
    assert!(blocks.parse::<u64>().expect("a number") < 1000, "{blocks} blocks in the guest");
    let metadata = fs::metadata(&result).expect("it came out");
    assert_eq!(metadata.len(), SIZE);
    assert!(metadata.blocks() < 1000, "{} blocks", metadata.blocks());
    let mut middle = [0; 8];
    File::open(&result).expect("it came out").read_exact_at(&mut middle, SIZE / 2 - 1).expect("it is long enough");
    assert_eq!(&middle, b"\0middle\0");
}

#[test]
fn fifos_sockets_and_devices_are_named_and_the_rest_is_copied_both_ways() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, result) = (folder.path().join("source"), folder.path().join("result"));
    fs::create_dir(&source).expect("ours");
    fs::write(source.join("f"), "x").expect("ours");
    make_fifo(&source.join("p"));
    let _socket = UnixListener::bind(source.join("s")).expect("a socket");
    let flags = ["--in", &format!("{}:/job", source.display()), "--out", &format!("/job:{}", result.display())];
    let outcome = Kiln::shell(&flags, "cd /job && ls && mkfifo q && mknod n c 1 3").run();
    assert_eq!((outcome.code, outcome.text().as_str()), (0, "f"), "{}", outcome.stderr);
    for words in
        ["source/p` is a FIFO", "source/s` is a socket", "`/job/q` is a FIFO", "`/job/n` is a character device"]
    {
        assert!(outcome.stderr.contains(words), "{words}: {}", outcome.stderr);
    }
    assert_eq!(fs::read_dir(&result).expect("it came out").count(), 1);
}

#[test]
fn an_unreadable_file_fails_the_copy_and_the_others_are_copied() {
    let folder = tempfile::tempdir().expect("a folder");
    let result = folder.path().join("result");
    let copy_out = format!("/proc/1/task/1:{}", result.display());
    let outcome = Kiln::shell(&["--out", &copy_out], "true").run();
    assert_eq!(outcome.code, 125, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("/proc/1/task/1/mem`"), "{}", outcome.stderr);
    assert!(fs::read_to_string(result.join("status")).expect("it came out").contains("Pid:\t1\n"));
}

#[test]
fn the_umask_is_kept_for_any_mode_from_the_guest() {
    let folder = tempfile::tempdir().expect("a folder");
    let result = folder.path().join("o");
    let flags = ["--out", &format!("/tmp/o:{}", result.display())];
    let script = "mkdir /tmp/o; echo x > /tmp/o/f; chmod -R 7777 /tmp/o";
    let outcome = Kiln::shell(&flags, script).umask(0o077).run();
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert_eq!((mode(&result), mode(&result.join("f"))), (0o700, 0o700));
}

#[test]
fn a_conflict_changes_nothing_and_other_copies_are_made() {
    let folder = tempfile::tempdir().expect("a folder");
    let (taken, other) = (folder.path().join("taken"), folder.path().join("other"));
    fs::create_dir(&taken).expect("ours");
    fs::write(taken.join("sub"), "a file").expect("ours");
    let flags = ["--out", &format!("/tmp/d:{}", taken.display()), "--out", &format!("/tmp/d:{}", other.display())];
    let outcome = Kiln::shell(&flags, "mkdir -p /tmp/d/sub; echo 1 > /tmp/d/a; echo 2 > /tmp/d/sub/b").run();
    assert_eq!(outcome.code, 125, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("`sub` is a file in the target"), "{}", outcome.stderr);
    assert_eq!(fs::read_dir(&taken).expect("ours").count(), 1);
    assert_eq!(fs::read_to_string(other.join("sub/b")).expect("it came out"), "2\n");
}

#[test]
fn too_many_files_leave_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let flags = ["--out-limit", "4M", "--out", &format!("/tmp/d:{}", folder.path().join("d").display())];
    let script = "mkdir /tmp/d; cd /tmp/d; for i in $(seq 300); do : > $i; done";
    let outcome = Kiln::shell(&flags, script).run();
    assert_eq!(outcome.code, 125, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("--out-limit"), "{}", outcome.stderr);
    assert_eq!(fs::read_dir(folder.path()).expect("ours").count(), 0);
}

#[test]
fn the_leftovers_of_a_killed_kiln_are_removed_by_the_next_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let names = || -> Vec<String> {
        let entries = fs::read_dir(folder.path()).expect("ours");
        entries.map(|entry| entry.expect("ours").file_name().to_string_lossy().into_owned()).collect()
    };
    let copy_out = format!("/tmp/f:{}", folder.path().join("f").display());
    // Larger than the part that arrives before this test looks again.
    let script = "head -c 150000000 /dev/zero > /tmp/f";
    let mut killed = Kiln::shell(&["-m", "512", "--out", &copy_out], script).start();
    until_booted("a folder for what comes out", || (!names().is_empty()).then_some(()));
    killed.signal(rustix::process::Signal::KILL);
    killed.wait();
    assert!(names()[0].starts_with(".kiln-out-"), "{:?}", names());
    let outcome = Kiln::shell(&["--out", &copy_out], "echo x > /tmp/f").run();
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert_eq!(names(), ["f"]);
}
