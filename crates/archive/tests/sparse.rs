//! Holes, with the `tar` of this host: we read each of its formats, and it reads ours.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use kiln_archive::{ArchiveError, Attributes, EXTENTS_MAX, EntryType, Members, Writer};
use proptest::prelude::*;

/// Makes a file with data at some offsets and a size.
fn plant(path: &Path, parts: &[(u64, Vec<u8>)], size: u64) {
    let file = File::create(path).expect("ours");
    for (offset, bytes) in parts {
        file.write_all_at(bytes, *offset).expect("ours");
    }
    file.set_len(size).expect("ours");
}

/// Packs one file with our writer.
fn packed(path: &Path) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut writer = Writer::new(&mut archive);
    let attributes = Attributes { permissions: 0o644, ..Attributes::default() };
    writer.file(b"f", &attributes, &mut File::open(path).expect("ours")).expect("it can be read");
    writer.finish().expect("memory");
    archive
}

/// Packs one file with the host's tar.
fn packed_by_tar(path: &Path, dialect: &[&str]) -> Vec<u8> {
    let (folder, name) = (path.parent().expect("a folder"), path.file_name().expect("a name"));
    let output = Command::new("tar").arg("-C").arg(folder).args(["-S", "-cf", "-"]).args(dialect).arg(name).output();
    let output = output.expect("tar is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Unpacks an archive of one file with our reader and returns the name.
fn unpack(archive: &[u8], path: &Path) -> Result<Vec<u8>, ArchiveError> {
    let mut members = Members::new(archive);
    let member = members.next()?.expect("a member");
    assert_eq!(member.kind, EntryType::Regular);
    let file = File::create(path).expect("ours");
    let mut buffer = vec![0; 10_000];
    while let Some(data) = members.read(&mut buffer)? {
        file.write_all_at(&buffer[..data.bytes], data.offset).expect("ours");
    }
    let length = members.length()?;
    assert!(length <= member.size);
    file.set_len(length).expect("ours");
    assert!(members.next()?.is_none());
    Ok(member.path)
}

#[track_caller]
fn same(one: &Path, other: &Path) {
    let status = Command::new("cmp").arg(one).arg(other).status().expect("cmp is installed");
    assert!(status.success());
}

/// Makes a file with this many parts, each of one page after a hole of one page.
fn comb(path: &Path, teeth: u64) {
    let parts: Vec<_> = (0..teeth).map(|tooth| (tooth * 8192 + 4096, vec![7; 4096])).collect();
    plant(path, &parts, teeth * 8192 + 100_000);
}

#[test]
fn every_sparse_format_of_tar_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, copy) = (folder.path().join("f"), folder.path().join("copy"));
    for teeth in [1, 3, 4, 5, 30, 200] {
        comb(&source, teeth);
        for dialect in [
            &["--format=gnu"][..],
            &["--format=pax", "--sparse-version=0.0"],
            &["--format=pax", "--sparse-version=0.1"],
            &["--format=pax", "--sparse-version=1.0"],
        ] {
            let archive = packed_by_tar(&source, dialect);
            assert_eq!(unpack(&archive, &copy).expect("it is read"), b"f", "{dialect:?}");
            same(&source, &copy);
            let blocks = copy.metadata().expect("it is there").blocks();
            assert!(blocks <= teeth * 8 + 64, "{dialect:?}: {blocks} blocks for {teeth} parts");
        }
    }
}

#[test]
fn tar_reads_our_holes() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, out) = (folder.path().join("source"), folder.path().join("out"));
    std::fs::create_dir(&out).expect("ours");
    for teeth in [1, 3, 4, 5, 30, 200] {
        comb(&source, teeth);
        let mut tar = Command::new("tar");
        let mut tar =
            tar.arg("-C").arg(&out).args(["-xf", "-"]).stdin(Stdio::piped()).spawn().expect("tar is installed");
        tar.stdin.take().expect("piped").write_all(&packed(&source)).expect("tar reads");
        assert!(tar.wait().expect("a child of ours").success());
        same(&source, &out.join("f"));
    }
}

#[test]
fn a_hole_costs_nothing_and_stays_a_hole() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, copy) = (folder.path().join("source"), folder.path().join("copy"));
    for parts in [vec![], vec![(0, vec![1])], vec![(1 << 40, vec![1])]] {
        plant(&source, &parts, (1 << 40) + 1);
        let archive = packed(&source);
        assert!(archive.len() < 200_000, "{} bytes", archive.len());
        unpack(&archive, &copy).expect("it is read");
        let (before, after) = (source.metadata().expect("ours"), copy.metadata().expect("ours"));
        assert_eq!((before.len(), before.blocks()), (after.len(), after.blocks()));
    }
}

#[test]
fn a_file_with_too_many_parts_has_its_smallest_holes_filled() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, copy) = (folder.path().join("source"), folder.path().join("copy"));
    comb(&source, 5000);
    unpack(&packed(&source), &copy).expect("it is read");
    same(&source, &copy);
}

/// An archive of one file with these values in its old GNU header.
fn hostile(parts: &[(u64, u64)], real: u64, data: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_path("f").expect("a name");
    header.set_size(data.len() as u64);
    let gnu = header.as_gnu_mut().expect("it is one");
    gnu.set_real_size(real);
    for (field, (offset, bytes)) in gnu.sparse.iter_mut().zip(parts) {
        field.set_offset(*offset);
        field.set_length(*bytes);
    }
    header.set_cksum();
    let padding = data.len().next_multiple_of(512) - data.len();
    [header.as_bytes(), data, &vec![0; padding + 1024]].concat()
}

#[test]
fn inconsistent_parts_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    for (parts, real) in [
        (&[(0, 3), (3, 2)][..], 5),
        (&[(0, 4), (3, 1)], 10),
        (&[(8, 1), (0, 4)], 10),
        (&[(6, 5)], 10),
        (&[(u64::MAX - 3, 5)], u64::MAX),
        (&[(0, 5)], u64::MAX),
        (&[], 10),
    ] {
        let data: &[u8] = if parts.len() == 2 && real == 5 { b"1234" } else { b"12345" };
        unpack(&hostile(parts, real, data), &folder.path().join("x")).expect_err("it is refused");
    }
    unpack(&hostile(&[(0, 3), (5, 2)], 10, b"12345"), &folder.path().join("x")).expect("consistent parts");
}

#[test]
fn a_map_without_end_is_refused_in_bounded_memory() {
    // Each block announces another one.
    let mut archive = hostile(&[(0, 1), (2, 1), (4, 1), (6, 1)], 1 << 40, b"");
    let mut header = tar::Header::from_byte_slice(archive[..512].try_into().expect("a block")).clone();
    header.as_gnu_mut().expect("it is one").set_is_extended(true);
    header.set_cksum();
    archive.splice(..512, header.as_bytes().iter().copied());
    archive.truncate(512);
    let mut block = tar::GnuExtSparseHeader::new();
    for part in block.sparse_mut() {
        part.set_offset(8);
        part.set_length(1);
    }
    block.set_is_extended(true);
    for _ in 0..=EXTENTS_MAX / 21 {
        archive.extend_from_slice(block.as_bytes());
    }
    let error = Members::new(archive.as_slice()).next().expect_err("it is refused");
    assert!(matches!(error, ArchiveError::TooLarge(_)), "{error}");
}

#[test]
fn a_length_over_the_size_in_the_header_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut archive = hostile(&[(0, 5)], 10, b"12345");
    archive.truncate(1024);
    for (length, right) in [(3, true), (10, true), (11, false)] {
        let rest = format!(" KILN.size={length}\n");
        let record = format!("{}{rest}", rest.len() + 2);
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::XGlobalHeader);
        header.set_size(record.len() as u64);
        header.set_cksum();
        let mut body = record.into_bytes();
        body.resize(512, 0);
        let whole = [archive.as_slice(), header.as_bytes(), &body, &[0; 1024]].concat();
        let outcome = unpack(&whole, &folder.path().join("x"));
        assert_eq!(outcome.is_ok(), right, "{length}: {outcome:?}");
        if right {
            assert_eq!(folder.path().join("x").metadata().expect("it is there").len(), length);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_file_round_trips(
        parts in prop::collection::vec((0_u64..3_000_000, 1_usize..90_000), 0..12),
        size in 0_u64..4_000_000,
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let (source, copy) = (folder.path().join("source"), folder.path().join("copy"));
        let parts: Vec<_> = parts.into_iter().map(|(offset, bytes)| (offset, vec![(offset % 251) as u8; bytes])).collect();
        plant(&source, &parts, size);
        unpack(&packed(&source), &copy).expect("it is read");
        same(&source, &copy);
        prop_assert!(copy.metadata().expect("ours").blocks() <= source.metadata().expect("ours").blocks() + 256);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..6000),
        changes in prop::collection::vec((0_usize..6000, any::<u8>()), 0..40),
        from_real in any::<bool>(),
    ) {
        if from_real {
            bytes = hostile(&[(0, 3), (5, 2)], 10, b"12345");
            for (at, byte) in changes {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
        }
        let mut members = Members::new(bytes.as_slice());
        let mut buffer = [0; 100];
        while let Ok(Some(_)) = members.next() {
            while let Ok(Some(data)) = members.read(&mut buffer) {
                prop_assert!(data.bytes > 0 && data.bytes <= buffer.len());
            }
            if members.length().is_err() {
                break;
            }
        }
    }
}
