//! The stricter rules for layers: what programs disagree about is refused, and all that a layer needs is returned.

use kiln_archive::{ArchiveError, EntryType, Member, Members};
use tar::Header;

const BLOCK: usize = 512;

fn blocks(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// A header and its data. The change comes before the sum.
fn changed(kind: u8, name: &str, data: &[u8], change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkflag = [kind];
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    change(&mut header);
    header.set_cksum();
    [header.as_bytes().to_vec(), blocks(data)].concat()
}

fn member(kind: u8, name: &str, data: &[u8]) -> Vec<u8> {
    changed(kind, name, data, |_| {})
}

fn record(key: &str, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    let rest = key.len() + value.len() + 3;
    let length = (1..).find(|length: &usize| *length == rest + length.to_string().len()).expect("a length");
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

fn pax(records: &[Vec<u8>]) -> Vec<u8> {
    member(b'x', "pax", &records.concat())
}

/// Reads a layer that consists of these parts and an end mark: its members with their data.
fn layer(parts: &[Vec<u8>]) -> Result<Vec<(Member, Vec<u8>)>, ArchiveError> {
    raw(&[parts.concat(), vec![0; 2 * BLOCK]].concat())
}

fn raw(archive: &[u8]) -> Result<Vec<(Member, Vec<u8>)>, ArchiveError> {
    let mut members = Members::of_layer(archive);
    let mut found = Vec::new();
    while let Some(member) = members.next()? {
        let (mut content, mut buffer) = (Vec::new(), [0; 1000]);
        while let Some(data) = members.read(&mut buffer)? {
            content.resize(usize::try_from(data.offset).expect("small"), 0);
            content.extend_from_slice(&buffer[..data.bytes]);
        }
        assert_eq!(members.length()?, member.size);
        found.push((member, content));
    }
    assert_eq!(members.bytes(), archive.len() as u64, "the archive is read to its end");
    Ok(found)
}

fn one(parts: &[Vec<u8>]) -> Member {
    let mut members = layer(parts).expect("a layer");
    assert_eq!(members.len(), 1);
    members.remove(0).0
}

fn file() -> Vec<u8> {
    member(b'0', "f", b"data")
}

#[test]
fn what_programs_disagree_about_is_refused() {
    let zeros = || vec![0; BLOCK];
    let long_name = |name: &str| member(b'L', "././@LongLink", format!("{name}\0").as_bytes());
    let sparse_1 = [record("GNU.sparse.major", "1"), record("GNU.sparse.minor", "0")].concat();
    let map = [record("GNU.sparse.map", "0,4"), record("GNU.sparse.size", "4")].concat();
    let faults: [(&str, Vec<Vec<u8>>); 36] = [
        ("a lone block of zeros", vec![file(), zeros(), file()]),
        ("a hard link with data", vec![member(b'1', "l", &file())]),
        ("a symlink with data", vec![member(b'2', "l", b"x")]),
        ("a character device with data", vec![member(b'3', "l", b"x")]),
        ("a block device with data", vec![member(b'4', "l", b"x")]),
        ("a directory with data", vec![member(b'5', "l", b"x")]),
        ("a FIFO with data", vec![member(b'6', "l", b"x")]),
        ("an old directory with data", vec![member(b'0', "l/", b"x")]),
        ("a link with a pax size", vec![pax(&[record("size", "512")]), member(b'1', "l", b"")]),
        ("a volume label", vec![member(b'V', "label", b"")]),
        ("a type that is a control character", vec![member(0x1b, "l", b"")]),
        ("a mode that is not octal", vec![changed(b'0', "f", b"", |header| header.as_old_mut().mode[0] = b'9')]),
        ("an owner that is not a number", vec![changed(b'0', "f", b"", |header| header.as_old_mut().uid = [b'x'; 8])]),
        ("a group of 2^95", vec![changed(b'0', "f", b"", |header| header.as_old_mut().gid = [0x81; 8])]),
        ("a time that is not a number", vec![changed(b'0', "f", b"", |header| header.as_old_mut().mtime = [b'-'; 12])]),
        ("a device without numbers", vec![changed(b'3', "d", b"", |header| header.as_old_mut().pad = [b'x'; 255])]),
        ("a size of 2^95", vec![changed(b'0', "f", b"", |header| header.as_old_mut().size = [0x80; 12])]),
        ("a negative size", vec![changed(b'0', "f", b"", |header| header.as_old_mut().size = [0xff; 12])]),
        ("two pax headers", vec![pax(&[record("uid", "1")]), pax(&[record("uid", "2")]), file()]),
        ("two long names", vec![long_name("a"), long_name("a"), file()]),
        ("two names", vec![long_name("a"), pax(&[record("path", "b")]), file()]),
        ("two names, the pax one first", vec![pax(&[record("path", "b")]), long_name("a"), file()]),
        ("a NUL in a name", vec![pax(&[record("path", "a\0b")]), file()]),
        ("a NUL in the target of a link", vec![pax(&[record("linkpath", "a\0b")]), member(b'2', "l", b"")]),
        ("a NUL in a key", vec![pax(&[record("a\0b", "x")]), file()]),
        ("a record without a key", vec![pax(&[record("", "x")]), file()]),
        ("zeros after the records", vec![pax(&[record("uid", "1"), vec![0]]), file()]),
        ("a length that is too small", vec![pax(&[b"4 path=abc\n".to_vec()]), file()]),
        ("a length that is too large", vec![pax(&[b"99 path=abc\n".to_vec()]), file()]),
        ("a length with a sign", vec![pax(&[b"+12 path=abc\n".to_vec()]), file()]),
        ("a record without a line end", vec![pax(&[b"11 path=abcd".to_vec()]), file()]),
        ("a negative pax size", vec![pax(&[record("size", "-4")]), file()]),
        ("a pax size of 2^63", vec![pax(&[record("size", "9223372036854775808")]), file()]),
        ("an attribute that is not base64", vec![pax(&[record("LIBARCHIVE.xattr.user.a", "!")]), file()]),
        ("two maps", vec![pax(&[map.clone(), sparse_1]), file()]),
        ("a map of version 2", vec![pax(&[map, record("GNU.sparse.major", "2")]), file()]),
    ];
    let lines = faults.map(|(fault, parts)| format!("{fault}: {}", layer(&parts).expect_err(fault)));
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn a_global_header_with_a_name_or_a_size_is_refused() {
    let global = |key: &str, value: &str| layer(&[member(b'g', "g", &record(key, value)), file()]);
    for key in ["path", "linkpath", "size", "GNU.sparse.major", "SCHILY.devmajor"] {
        let error = global(key, "1").expect_err(key).to_string();
        assert!(error.contains(key), "{error}");
    }
    let error = global("SCHILY.xattr.user.a", &"x".repeat(5000)).expect_err("too large");
    assert!(matches!(error, ArchiveError::TooLarge(_)), "{error}");
    global("comment", &"x".repeat(5000)).expect("a commit of git, for example");
}

#[test]
fn global_headers_apply_to_the_members_after_them() {
    let global = |records: &[Vec<u8>]| member(b'g', "g", &records.concat());
    let members = layer(&[
        file(),
        global(&[record("uid", "7"), record("mtime", "1.5"), record("SCHILY.xattr.user.a", "1")]),
        file(),
        pax(&[record("uid", "8"), record("SCHILY.xattr.user.a", "2")]),
        file(),
        global(&[record("uid", "9"), record("mtime", "")]),
        file(),
    ])
    .expect("a layer");
    let uids: Vec<_> = members.iter().map(|(member, _)| member.uid).collect();
    assert_eq!(uids, [0, 7, 8, 9]);
    let times: Vec<_> = members.iter().map(|(member, _)| member.modified).collect();
    assert_eq!(times, [(0, 0), (1, 500_000_000), (1, 500_000_000), (0, 0)]);
    let last: Vec<_> = members.iter().map(|(member, _)| member.xattrs.last().map(|(_, value)| value.clone())).collect();
    assert_eq!(last, [None, Some(b"1".to_vec()), Some(b"2".to_vec()), Some(b"1".to_vec())]);
}

#[test]
fn the_pax_size_is_that_of_the_member() {
    // The header has 0 and the member 1024 bytes, which hold a whole member of their own, and the other way round.
    let inner = [member(b'0', "inner", b""), vec![b'x'; BLOCK]].concat();
    let outer = changed(b'0', "outer", &inner, |header| header.set_size(0));
    let members = layer(&[pax(&[record("size", "1024")]), outer]).expect("one member");
    assert_eq!(members.len(), 1);
    assert_eq!((members[0].0.path.as_slice(), members[0].1.as_slice()), (&b"outer"[..], inner.as_slice()));
    let outer = changed(b'0', "outer", &[b'x'; 2048], |header| header.set_size(16));
    assert_eq!(layer(&[pax(&[record("size", "2048")]), outer]).expect("one member")[0].1.len(), 2048);
}

#[test]
fn the_last_of_two_records_counts_and_an_empty_one_takes_back() {
    let first = one(&[pax(&[record("path", "a"), record("path", "b"), record("uid", "5"), record("uid", "")]), file()]);
    assert_eq!((first.path.as_slice(), first.uid), (&b"b"[..], 0));
    let both = one(&[pax(&[record("path", "a"), record("path", ""), record("SCHILY.xattr.user.a", "")]), file()]);
    assert_eq!((both.path.as_slice(), both.xattrs), (&b"f"[..], vec![(b"user.a".to_vec(), Vec::new())]));
}

#[test]
fn a_long_name_and_pax_records_without_a_name_go_together() {
    let long = member(b'L', "././@LongLink", b"a long name\0");
    let found = one(&[long.clone(), pax(&[record("uid", "3000000000")]), file()]);
    assert_eq!((found.path.as_slice(), found.uid), (&b"a long name"[..], 3_000_000_000));
    let same = one(&[long, pax(&[record("path", "a long name")]), file()]);
    assert_eq!(same.path, b"a long name");
}

#[test]
fn devices_have_their_numbers() {
    let numbers = |header: &mut Header| {
        header.set_device_major(8).expect("ustar has it");
        header.set_device_minor(1_048_575).expect("ustar has it");
    };
    let found = one(&[changed(b'3', "d", b"", numbers)]);
    assert_eq!((found.kind, found.device), (EntryType::Char, (8, 1_048_575)));
    let large = pax(&[record("SCHILY.devmajor", "4095"), record("SCHILY.devminor", "7")]);
    assert_eq!(one(&[large, changed(b'4', "d", b"", numbers)]).device, (4095, 7));
    assert_eq!(one(&[changed(b'0', "f", b"", numbers)]).device, (0, 0));
}

#[test]
fn an_archive_of_the_oldest_format_is_read() {
    let members = layer(&[
        changed(0, "f", b"data", |header| header.as_old_mut().pad = [0; 255]),
        changed(0, "d/", b"", |header| header.as_old_mut().pad = [0; 255]),
    ])
    .expect("a layer");
    assert_eq!((members[0].0.kind, members[1].0.kind), (EntryType::Regular, EntryType::Directory));
}

#[test]
fn what_is_behind_the_end_mark_is_read_and_ignored() {
    let end = vec![0; 2 * BLOCK];
    for rest in [vec![], vec![0; 9000], b"garbage".to_vec(), file()] {
        assert_eq!(raw(&[file(), end.clone(), rest].concat()).expect("a layer").len(), 1);
    }
    // Some programs write half of the mark.
    assert_eq!(raw(&[file(), vec![0; BLOCK]].concat()).expect("a layer").len(), 1);
    raw(&file()).expect_err("an archive without its end may have lost members");
    raw(&[file(), vec![0; BLOCK], vec![1; 7]].concat()).expect_err("it goes on");
    raw(b"").expect_err("nothing is not an archive");
}

#[test]
fn the_record_of_a_file_that_shrank_is_ignored_in_a_layer() {
    let shrank = [file(), member(b'g', "g", &record("KILN.size", "2"))];
    assert_eq!(layer(&shrank).expect("a layer")[0].0.size, 4);
}
