//! A guest whose root is a read-only disk below an overlay.

use std::fs;
use std::path::Path;
use std::process::Command;

use camino::Utf8PathBuf;
use kiln_e2e::guest::{Guest, in_vm};
use kiln_engine::{Disk, DiskFormat, DiskRole, RootSpec};

/// An ext4 disk with busybox and one file. Making it needs no root.
fn disk(folder: &Path) -> Utf8PathBuf {
    let tree = folder.join("tree");
    for directory in ["bin", "proc", "sys", "dev", "run", "tmp", "etc", "mnt", "root"] {
        fs::create_dir_all(tree.join(directory)).expect("a folder");
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("busybox-static is installed");
    for applet in ["sh", "cat", "mount", "touch", "ls", "true"] {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet)).expect("a link");
    }
    fs::write(tree.join("etc/where"), "on the disk\n").expect("a file");
    let disk = folder.join("disk.ext4");
    let made = Command::new("/sbin/mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&tree).arg(&disk).arg("16M").output();
    let made = made.expect("e2fsprogs is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Utf8PathBuf::from_path_buf(disk).expect("a plain path")
}

#[test]
fn commands_see_the_disk_and_write_to_its_overlay() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = disk(folder.path());
    let before = fs::read(&path).expect("readable");
    in_vm(async {
        let guest = Guest::boot(|spec| {
            spec.disks = vec![Disk { path: path.clone(), format: DiskFormat::Raw, role: DiskRole::Shared }];
            spec.root = Some(RootSpec {
                device: "/dev/vda".into(),
                fstype: "ext4".into(),
                upper: None,
                image: None,
                init: false,
            });
        })
        .await;
        let script = "set -e; cat /etc/where; touch /etc/new /bin/new; echo changed > /etc/where; cat /etc/where; \
             ls -d /proc/1 /dev/null /sys/fs/cgroup/*jobs* > /dev/null; mount | cat";
        let seen = guest.text(script).await;
        assert!(seen.starts_with("on the disk\nchanged\n"), "{seen}");
        assert!(seen.contains("on / type overlay"), "{seen}");
    });
    assert!(fs::read(&path).expect("readable") == before, "the disk itself is as it was");
}
