//! Packing the upper layer of an overlay.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::{Yard, fifo, link, socket};
use crate::files::ChangesPacker;

fn open(path: &Path) -> OwnedFd {
    File::open(path).expect("a directory").into()
}

/// A line for each member: its kind, its name, what it links to, and its size.
fn members(yard: &Yard) -> (Vec<String>, Vec<String>) {
    let packer = ChangesPacker::of(open(&yard.path("upper")), open(&yard.path("merged")));
    let mut archive = Vec::new();
    let packed = packer.write_to(&mut archive).expect("is packed");
    assert_eq!(packed.bytes, archive.len() as u64);
    let mut archive = tar::Archive::new(archive.as_slice());
    let lines = archive.entries().expect("an archive").map(|member| {
        let member = member.expect("a member");
        let link = member.link_name_bytes().map(|link| format!(" -> {}", String::from_utf8_lossy(&link)));
        let (kind, name) = (member.header().entry_type(), member.path_bytes());
        let name = String::from_utf8_lossy(&name).into_owned();
        format!("{kind:?} {name}{} {}", link.unwrap_or_default(), member.size())
    });
    let mut lines: Vec<String> = lines.collect();
    lines.sort();
    (lines, packed.left_out.faults.into_iter().map(|fault| fault.message).collect())
}

#[test]
fn changes_are_a_layer_with_marks_links_and_all_kinds_of_files() {
    let yard = Yard::new();
    yard.plant("upper/opt/new", "12345");
    fs::hard_link(yard.path("upper/opt/new"), yard.path("upper/opt/same")).expect("a link");
    link("/etc/passwd", yard.path("upper/opt/link"));
    fifo(&yard.path("upper/opt/fifo"));
    let _socket = socket(&yard.path("upper/opt/socket"));
    // Any user may make a device 0:0.
    let mode = Mode::from_raw_mode(0);
    mknodat(CWD, yard.path("upper/opt/gone"), FileType::CharacterDevice, mode, 0).expect("a mark of the overlay");
    for machine in ["etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/machine-id", "tmp/x", "run/x", "dev/x"] {
        yard.plant(&format!("upper/{machine}"), "of this machine");
    }
    yard.plant("upper/etc/hosts.d/mine", "");
    fs::create_dir_all(yard.path("merged")).expect("a directory");
    let (lines, left_out) = members(&yard);
    let (first, second) = match lines.iter().any(|line| line.starts_with("Regular opt/new")) {
        true => ("opt/new", "opt/same"),
        false => ("opt/same", "opt/new"),
    };
    let mut expected = vec![
        "Directory etc/ 0".to_owned(),
        "Directory etc/hosts.d/ 0".into(),
        "Regular etc/hosts.d/mine 0".into(),
        "Directory opt/ 0".into(),
        "Fifo opt/fifo 0".into(),
        "Regular opt/.wh.gone 0".into(),
        "Symlink opt/link -> /etc/passwd 0".into(),
        format!("Link {second} -> {first} 0"),
        format!("Regular {first} 5"),
    ];
    expected.sort();
    assert_eq!(lines, expected);
    assert_eq!(left_out.len(), 1, "{left_out:?}");
    assert!(left_out[0].contains("opt/socket"), "{left_out:?}");
}

#[test]
fn times_modes_and_attributes_are_exact() {
    let yard = Yard::new();
    yard.plant("upper/file", "x");
    fs::create_dir_all(yard.path("merged")).expect("a directory");
    let path = yard.path("upper/file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4751)).expect("ours");
    let time = SystemTime::UNIX_EPOCH - Duration::new(5, 250_000_000);
    File::options().write(true).open(&path).expect("ours").set_modified(time).expect("is set");
    rustix::fs::setxattr(&path, c"user.note", b"a\0b", rustix::fs::XattrFlags::empty()).expect("has attributes");
    let mut archive = Vec::new();
    let packer = ChangesPacker::of(open(&yard.path("upper")), open(&yard.path("merged")));
    packer.write_to(&mut archive).expect("is packed");
    // GNU tar unpacks what it is.
    fs::write(yard.path("layer.tar"), archive).expect("ours");
    fs::create_dir(yard.path("out")).expect("ours");
    let mut tar = Command::new("tar");
    tar.args(["--xattrs", "-xpf"]).arg(yard.path("layer.tar")).arg("-C").arg(yard.path("out"));
    assert!(tar.status().expect("tar is installed").success());
    let meta = fs::metadata(yard.path("out/file")).expect("is unpacked");
    assert_eq!((meta.mtime(), meta.mtime_nsec(), meta.mode() & 0o7777), (-6, 750_000_000, 0o4751));
    let mut value = [0; 8];
    let count = rustix::fs::getxattr(yard.path("out/file"), c"user.note", &mut value[..]).expect("is kept");
    assert_eq!(&value[..count], b"a\0b");
}
