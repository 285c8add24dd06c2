//! Every text of an archive that can't be read, each from an archive that causes it.

use std::io::{self, ErrorKind};
use std::iter::successors;

use kiln_archive::{ArchiveError, EXTENSION_BYTES_MAX, EXTENTS_MAX, EntryType, Members, WriteError};
use tar::{GnuHeader, Header};

const BLOCK: usize = 512;

/// A member: its header, then its data filled up to a whole block.
fn member(kind: EntryType, change: impl FnOnce(&mut Header), data: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..1].copy_from_slice(b"f");
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    change(&mut header);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn plain(_: &mut Header) {}

/// A pax header with these records.
fn pax(records: &[u8]) -> Vec<u8> {
    member(EntryType::XHeader, plain, records)
}

/// One record of a pax header: its length, which counts itself, then `key=value`.
fn record(text: &str) -> Vec<u8> {
    let length = (1..).find(|length: &usize| *length == text.len() + 2 + length.to_string().len());
    format!("{} {text}\n", length.expect("every text has a length")).into_bytes()
}

/// Reads an archive to its end.
fn error(archive: &[u8]) -> ArchiveError {
    let mut members = Members::new(archive);
    let mut buffer = [0; 4096];
    let mut read = || -> Result<(), ArchiveError> {
        while members.next()?.is_some() {
            while members.read(&mut buffer)?.is_some() {}
            members.length()?;
        }
        Ok(())
    };
    read().expect_err("the archive can't be read")
}

/// A line for each archive: what is wrong with it, and the text of the error.
fn lines<const COUNT: usize>(archives: [(&str, Vec<u8>); COUNT]) -> String {
    archives.map(|(fault, archive)| format!("{fault}: {}", error(&archive))).join("\n")
}

#[test]
fn errors_of_archives_read_like_this() {
    let file = || member(EntryType::Regular, plain, b"data");
    let long_name = |size: u64| member(EntryType::GNULongName, |header| header.set_size(size), b"");
    let sizeless = |header: &mut Header| header.as_old_mut().size = *b"no number!!!";
    let damaged = [
        ("no archive", vec![b'x'; BLOCK]),
        ("an end in a header", file()[..100].to_vec()),
        ("an end in a member", file()[..BLOCK + 2].to_vec()),
        ("a header without a size", member(EntryType::Regular, sizeless, b"")),
        ("a name without a member", [member(EntryType::GNULongName, plain, b"name\0"), vec![0; BLOCK]].concat()),
        ("a name over the bound", long_name(EXTENSION_BYTES_MAX + 1)),
        ("a member over the bound", [pax(&record("size=18446744073709551615")), file()].concat()),
        ("a record without a length", pax(b"path=x\n")),
        ("a record whose number is a word", pax(&record("size=many"))),
        ("a file over its size", [file(), member(EntryType::XGlobalHeader, plain, &record("KILN.size=5"))].concat()),
    ];
    insta::assert_snapshot!(lines(damaged));
}

#[test]
fn errors_of_sparse_files_read_like_this() {
    let in_data = |map: &[u8]| {
        let records = [record("GNU.sparse.major=1"), record("GNU.sparse.realsize=9")].concat();
        [pax(&records), member(EntryType::Regular, plain, map)].concat()
    };
    let in_header = |change: fn(&mut GnuHeader)| {
        let change = |header: &mut Header| change(header.as_gnu_mut().expect("a GNU header"));
        member(EntryType::GNUSparse, change, b"")
    };
    let in_records = |size: &str| {
        let records = [record("GNU.sparse.map=0,4"), record(&format!("GNU.sparse.size={size}"))].concat();
        [pax(&records), member(EntryType::Regular, plain, b"data")].concat()
    };
    // A map in the data fills whole blocks.
    let filled = |map: &str| format!("{map:\n<BLOCK$}").into_bytes();
    let sparse = [
        ("no size", in_header(|gnu| gnu.realsize = *b"no number!!!")),
        ("a size over the bound", in_records("18446744073709551615")),
        ("parts beyond the size", in_records("3")),
        ("a map of words", in_data(&filled("one"))),
        ("a map without an end", in_data(b"3\n0\n1\n")),
        ("a line without an end", in_data(&[b'1'; 4 * BLOCK])),
        ("a map over the bound", in_data(&filled(&format!("{}\n", EXTENTS_MAX + 1)))),
    ];
    insta::assert_snapshot!(lines(sparse));
}

/// Each kind of error names the next one, so a new kind does not compile before its text is here.
#[test]
fn errors_of_input_and_output_read_like_this() {
    let io = || io::Error::from(ErrorKind::ConnectionReset);
    let reads = successors(Some(ArchiveError::Input(io())), |last| match last {
        ArchiveError::Input(_) => Some(error(&[b'x'; BLOCK])),
        ArchiveError::Malformed(_) => Some(ArchiveError::TooLarge("a text from the tests above".into())),
        ArchiveError::TooLarge(_) => None,
    });
    let writes = successors(Some(WriteError::File(io())), |last| match last {
        WriteError::File(_) => Some(WriteError::Output(io())),
        WriteError::Output(_) => None,
    });
    let texts: Vec<String> =
        reads.map(|error| error.to_string()).chain(writes.map(|error| error.to_string())).collect();
    insta::assert_snapshot!(texts.join("\n"));
}
