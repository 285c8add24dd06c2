//! Packing trees into an archive and unpacking them.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use kiln_wire::{ErrorCode, Fault, Text};
use proptest::prelude::*;

use super::{Yard, fifo, link, refused, socket};
use crate::files::{Owners, Packed, Packer, Root, Unpacked, Unpacker};

fn pack(yard: &Yard, path: &str) -> (Vec<u8>, Packed) {
    let mut archive = Vec::new();
    let packer = Packer::open(&yard.root, &path.into()).expect("it can be packed");
    let packed = packer.write_to(&mut archive).expect("it is packed");
    assert_eq!(packed.bytes, archive.len() as u64);
    (archive, packed)
}

fn unpack(yard: &Yard, path: &str, archive: &[u8]) -> Unpacked {
    let unpacker = Unpacker::open(&yard.root, &path.into(), Owners::Archive).expect("a directory");
    let unpacked = unpacker.read_from(archive).expect("it is unpacked");
    assert_eq!(unpacked.bytes, archive.len() as u64);
    unpacked
}

/// The names that another implementation finds in an archive.
fn member_names(archive: &[u8]) -> Vec<Vec<u8>> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().expect("an archive");
    let mut names: Vec<_> = entries.map(|entry| entry.expect("a member").path_bytes().into_owned()).collect();
    names.sort();
    names
}

/// All properties of a tree that an archive keeps, by path.
fn snapshot(top: &Path) -> BTreeMap<PathBuf, (u32, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut open = vec![top.to_owned()];
    while let Some(path) = open.pop() {
        let metadata = std::fs::symlink_metadata(&path).expect("it exists");
        let content = if metadata.is_dir() {
            open.extend(std::fs::read_dir(&path).expect("a directory").map(|entry| entry.expect("an entry").path()));
            b"directory".to_vec()
        } else if metadata.is_symlink() {
            std::fs::read_link(&path).expect("a symlink").into_os_string().into_vec()
        } else {
            std::fs::read(&path).expect("a file")
        };
        let below = path.strip_prefix(top).expect("it is below").to_owned();
        found.insert(below, (metadata.mode(), metadata.mtime(), content));
    }
    found
}

#[derive(Debug, Clone)]
enum Thing {
    File(Vec<u8>, u32),
    Directory(u32),
    Symlink(Vec<u8>),
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let letters = prop::sample::select(b"ab \n\\\"'.\xc3\xbc\xff\x01".to_vec());
    prop_oneof![
        4 => prop::collection::vec(letters.clone(), 1..6),
        1 => prop::collection::vec(letters, 60..255),
    ]
    .prop_filter("a name", |name| !matches!(name.as_slice(), b"." | b".."))
}

fn thing() -> impl Strategy<Value = Thing> {
    let bits = 0_u32..0o1000;
    prop_oneof![
        (prop::collection::vec(any::<u8>(), 0..1500), bits.clone())
            .prop_map(|(content, bits)| Thing::File(content, bits | 0o400)),
        bits.prop_map(|bits| Thing::Directory(bits | 0o700)),
        prop::collection::vec(1_u8..=255, 1..200).prop_map(Thing::Symlink),
    ]
}

fn build(top: &Path, things: &[(Vec<Vec<u8>>, Thing, u32)]) {
    std::fs::create_dir(top).expect("the yard is writable");
    for (path, thing, modified) in things {
        let path = path.iter().fold(top.to_owned(), |path, name| path.join(OsStr::from_bytes(name)));
        // If a path can't be created, because its parent is not a directory or the name exists, it is not in the model.
        let in_the_tree = path.parent().is_some_and(|parent| {
            std::fs::create_dir_all(parent).is_ok() && parent.canonicalize().is_ok_and(|real| real == parent)
        });
        if !in_the_tree || path.symlink_metadata().is_ok() {
            continue;
        }
        match thing {
            Thing::File(content, bits) => {
                std::fs::write(&path, content).expect("a new file");
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*bits)).expect("it is ours");
            }
            Thing::Directory(bits) => {
                std::fs::create_dir(&path).expect("a new directory");
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*bits)).expect("it is ours");
            }
            Thing::Symlink(target) => link(OsStr::from_bytes(target), &path),
        }
        let time = rustix::fs::Timespec { tv_sec: i64::from(*modified), tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, &path, &times, flags).expect("it is ours");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn an_unpacked_tree_equals_the_packed_one(
        things in prop::collection::vec((prop::collection::vec(name(), 1..4), thing(), any::<u32>()), 0..14),
    ) {
        let yard = Yard::new();
        let top = yard.directory.path().canonicalize().expect("it exists").join("tree");
        build(&top, &things);
        let before = snapshot(&top);
        let (archive, packed) = pack(&yard, "tree");
        prop_assert_eq!(packed.entries, before.len() as u64);
        prop_assert_eq!(member_names(&archive).len(), before.len());
        let unpacked = unpack(&yard, "out", &archive);
        prop_assert_eq!(unpacked.entries, packed.entries);
        prop_assert_eq!(&snapshot(&yard.path("out/tree")), &before);
        // Unpacking it again over itself changes nothing.
        unpack(&yard, "out", &archive);
        prop_assert_eq!(&snapshot(&yard.path("out/tree")), &before);
    }
}

#[test]
fn names_start_with_the_last_part_of_the_path() {
    let yard = Yard::new();
    yard.plant("a/b/f", "x");
    let names = |path: &str| -> Vec<String> {
        member_names(&pack(&yard, path).0).into_iter().map(|name| String::from_utf8_lossy(&name).into_owned()).collect()
    };
    assert_eq!(names("a/b"), ["b/", "b/f"]);
    assert_eq!(names("a/b/"), ["b/", "b/f"]);
    assert_eq!(names("a/b/f"), ["f"]);
    assert_eq!(names("a/b/."), ["./", "./f"]);
    assert_eq!(names("/"), ["./", "./a/", "./a/b/", "./a/b/f"]);
}

#[test]
fn a_symlink_is_packed_as_a_symlink_and_followed_with_a_slash() {
    let yard = Yard::new();
    yard.plant("d/f", "x");
    link("d", yard.path("l"));
    assert_eq!(member_names(&pack(&yard, "l").0), [b"l"]);
    assert_eq!(member_names(&pack(&yard, "l/").0), [b"l/".to_vec(), b"l/f".to_vec()]);
}

#[test]
fn special_files_are_left_out_and_named() {
    let yard = Yard::new();
    yard.plant("d/f", "x");
    for number in 0..20 {
        fifo(&yard.path(&format!("d/p{number}")));
    }
    let _listener = socket(&yard.path("d/s"));
    let (archive, packed) = pack(&yard, "d");
    assert_eq!(member_names(&archive), [b"d/".to_vec(), b"d/f".to_vec()]);
    assert_eq!((packed.entries, packed.left_out.faults.len(), packed.left_out.more), (2, 21, 0));
    for name in (0..20).map(|number| format!("`d/p{number}` is a FIFO")).chain(["`d/s` is a socket".to_owned()]) {
        let named = packed.left_out.faults.iter().find(|fault| fault.message.starts_with(&name)).expect(&name);
        assert_eq!(named.code, ErrorCode::NotAFile);
    }
    let message = refused(Packer::open(&yard.root, &"d/p0".into()), ErrorCode::NotAFile);
    assert!(message.contains("a FIFO"), "{message}");
    refused(Packer::open(&yard.root, &"none".into()), ErrorCode::NotFound);
    refused(Packer::open(&yard.root, &"d/f/".into()), ErrorCode::NotADirectory);
}

#[test]
fn a_kernel_file_system_is_packed_if_it_is_requested_by_name() {
    let root = Root::new(None).expect("there is a /");
    let mut walked = Vec::new();
    let packer = Packer::open(&root, &"/proc/self/fdinfo".into()).expect("it was requested by name");
    let packed = packer.write_to(&mut walked).expect("it is packed");
    assert!(packed.entries > 1 && packed.left_out.faults.is_empty());
}

/// Changes a file after its header was written.
struct Meddler<F: FnMut()> {
    archive: Vec<u8>,
    meddle: Option<F>,
}

impl<F: FnMut()> Write for Meddler<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.archive.extend_from_slice(bytes);
        if let Some(mut meddle) = self.meddle.take() {
            meddle();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_file_that_changes_while_it_is_packed_has_the_bytes_that_were_read() {
    // The first 64 KiB are read before the header. The rest is read later, as far as it still exists.
    for (new_bytes, read) in [(10, 65_536), (100_000, 100_000), (500_000, 200_000)] {
        let yard = Yard::new();
        yard.plant("f", vec![7; 200_000]);
        let path = yard.path("f");
        let meddle = || {
            std::fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .and_then(|file| file.set_len(new_bytes))
                .expect("it is ours");
        };
        let mut meddler = Meddler { archive: Vec::new(), meddle: Some(meddle) };
        let packer = Packer::open(&yard.root, &"f".into()).expect("it can be packed");
        let packed = packer.write_to(&mut meddler).expect("it is packed");
        assert_eq!((packed.entries, packed.left_out.faults.len()), (1, 0));
        unpack(&yard, "out", &meddler.archive);
        assert!(yard.content("out/f") == vec![7; read], "{new_bytes}: {} bytes", yard.content("out/f").len());
        // Other programs find the first size, with zeros for missing bytes.
        let mut archive = tar::Archive::new(meddler.archive.as_slice());
        let mut member = archive.entries().expect("an archive").next().expect("a member").expect("a whole one");
        let mut content = Vec::new();
        member.read_to_end(&mut content).expect("memory");
        assert!(content[..read].iter().all(|byte| *byte == 7) && content[read..].iter().all(|byte| *byte == 0));
        assert_eq!(content.len(), 200_000);
    }
}

#[test]
fn files_of_the_kernel_are_packed_to_their_end_although_their_size_is_wrong() {
    let root = Root::new(None).expect("there is a /");
    let yard = Yard::new();
    // A short and a long file with the size 0, and a short file with the size 4096.
    for path in ["/proc/self/limits", "/proc/kallsyms", "/sys/kernel/mm/transparent_hugepage/enabled"] {
        let Ok(content) = std::fs::read(path) else { continue };
        let mut archive = Vec::new();
        let packer = Packer::open(&root, &path.into()).expect("it can be packed");
        packer.write_to(&mut archive).expect("it is packed");
        unpack(&yard, "out", &archive);
        let name = Path::new(path).file_name().expect("a name").to_str().expect("text");
        assert!(yard.content(&format!("out/{name}")) == content, "{path}");
    }
    assert!(yard.path("out/limits").is_file());
}

#[test]
fn an_unreadable_file_is_named_and_the_rest_is_packed() {
    // Root may open every file, but no process can read memory at an unmapped address.
    let root = Root::new(None).expect("there is a /");
    let mut archive = Vec::new();
    let packer = Packer::open(&root, &"/proc/self/task".into()).expect("it can be packed");
    let packed = packer.write_to(&mut archive).expect("it is packed");
    let mem = packed.left_out.faults.iter().find(|fault| fault.message.contains("/mem`")).expect("it is named");
    assert_ne!(mem.code, ErrorCode::NotAFile);
    assert!(packed.entries > 10);
}

#[test]
fn holes_stay_holes_when_packed_and_unpacked() {
    let yard = Yard::new();
    let size = 64_u64 << 30;
    let file = std::fs::File::create(yard.path("f")).expect("the yard is writable");
    std::os::unix::fs::FileExt::write_all_at(&file, b"middle", 5 << 30).expect("it is ours");
    file.set_len(size).expect("it is ours");
    let (archive, packed) = pack(&yard, "f");
    assert!(packed.bytes < 1 << 20, "{} bytes", packed.bytes);
    unpack(&yard, "out", &archive);
    let metadata = std::fs::metadata(yard.path("out/f")).expect("it is there");
    assert_eq!(metadata.len(), size);
    assert!(metadata.blocks() < 1 << 11, "{} blocks", metadata.blocks());
    let copy = std::fs::File::open(yard.path("out/f")).expect("it is there");
    let mut middle = [0; 8];
    std::os::unix::fs::FileExt::read_exact_at(&copy, &mut middle, (5 << 30) - 1).expect("it has that much");
    assert_eq!(&middle, b"\0middle\0");
}

#[test]
fn a_deep_tree_with_files_at_each_level_is_packed_completely() {
    const DEPTH: usize = 300;
    let yard = Yard::new();
    super::hostile::dig(yard.directory.path(), "deep", DEPTH);
    let mut level = yard.path("deep");
    for _ in 0..100 {
        for number in 0..3 {
            std::fs::write(level.join(format!("f{number}")), "x").expect("the yard is writable");
        }
        level.push("d");
    }
    let (archive, packed) = pack(&yard, "deep");
    assert_eq!(packed.entries, DEPTH as u64 + 300);
    let mut names = member_names(&archive);
    names.dedup();
    assert_eq!(names.len(), DEPTH + 300);
    unpack(&yard, "out", &archive);
    assert_eq!(snapshot(&yard.path("out/deep")), snapshot(&yard.path("deep")));
}

#[test]
fn the_fault_of_a_failed_stream_is_returned() {
    struct Cancelled;
    impl Write for Cancelled {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::other(Fault::new(ErrorCode::Cancelled, "cancelled")))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let yard = Yard::new();
    yard.plant("f", "x");
    let packer = Packer::open(&yard.root, &"f".into()).expect("it can be packed");
    refused(packer.write_to(Cancelled), ErrorCode::Cancelled);
}

#[test]
fn archives_of_another_program_are_unpacked_completely() {
    let yard = Yard::new();
    yard.plant("kept", "kept");
    let long: String = "long/".repeat(60);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions([("path", b"pax\nname".as_slice()), ("mtime", b"1000.25")]).expect("memory");
    let mut header = tar::Header::new_ustar();
    header.set_size(3);
    header.set_mode(0o640);
    header.set_cksum();
    builder.append_data(&mut header, "short", b"pax".as_slice()).expect("memory");
    builder.append_data(&mut header, format!("{long}name"), b"gnu".as_slice()).expect("memory");
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Link);
    header.set_size(0);
    builder.append_link(&mut header, "hard", format!("{long}name")).expect("memory");
    let archive = builder.into_inner().expect("memory");
    let unpacked = unpack(&yard, "not/there", &archive);
    assert_eq!(unpacked.entries, 3);
    let metadata = std::fs::metadata(yard.path("not/there/pax\nname")).expect("it is there");
    assert_eq!((metadata.mtime(), metadata.mtime_nsec(), metadata.mode() & 0o777), (1000, 250_000_000, 0o640));
    assert_eq!(yard.content("not/there/hard"), b"gnu");
    assert_eq!(std::fs::metadata(yard.path("not/there/hard")).expect("it is there").nlink(), 2);
}

#[test]
fn names_of_any_bytes_are_kept() {
    let yard = Yard::new();
    let name = OsString::from_vec([b"\xff\xfe\n ".as_slice(), &[b'\xe4'; 150]].concat());
    std::fs::create_dir(yard.path("d")).expect("the yard is writable");
    std::fs::write(yard.path("d").join(&name), "x").expect("the yard is writable");
    let (archive, _) = pack(&yard, "d");
    unpack(&yard, "out", &archive);
    assert_eq!(std::fs::read(yard.path("out/d").join(&name)).expect("it is there"), b"x");
    let list = crate::files::list(&yard.root, &"out/d".into(), None, None).expect("a page");
    assert_eq!(list.entries[0].name, Text::from(name));
}
