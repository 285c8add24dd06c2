//! Reading by bytes and by lines.

use std::io::{Seek, SeekFrom, Write};
use std::time::{Duration, Instant};

use kiln_wire::{ErrorCode, FileKind, ReadRange};
use proptest::prelude::*;

use super::{Yard, fifo, link, refused, socket};
use crate::files::read::Cut;
use crate::files::{Reader, Root};

fn bytes(offset: i64, limit: Option<i64>) -> ReadRange {
    ReadRange::Bytes { offset, limit }
}

fn lines(offset_line: i64, limit_lines: Option<i64>, max_bytes: Option<i64>) -> ReadRange {
    ReadRange::Lines { offset_line, limit_lines, max_bytes }
}

/// The bytes that a reader returns with a buffer of this size, and whether they were truncated.
fn drain(mut reader: Reader, buffer_bytes: usize) -> (Vec<u8>, bool) {
    let mut buffer = vec![0; buffer_bytes];
    let mut all = Vec::new();
    loop {
        match reader.fill(&mut buffer).expect("the file is readable") {
            0 => return (all, reader.truncated()),
            count => all.extend_from_slice(&buffer[..count]),
        }
    }
}

fn read(yard: &Yard, name: &str, range: ReadRange) -> (Vec<u8>, bool) {
    drain(Reader::open(&yard.root, &name.into(), range).expect("the file opens"), 7)
}

#[test]
fn a_byte_range_is_a_part_of_the_file_and_empty_past_the_end() {
    let yard = Yard::new();
    yard.plant("f", "0123456789");
    assert_eq!(read(&yard, "f", bytes(0, None)).0, b"0123456789");
    assert_eq!(read(&yard, "f", bytes(3, Some(4))).0, b"3456");
    assert_eq!(read(&yard, "f", bytes(8, Some(100))).0, b"89");
    assert_eq!(read(&yard, "f", bytes(0, Some(0))).0, b"");
    assert_eq!(read(&yard, "f", bytes(10, None)).0, b"");
    assert_eq!(read(&yard, "f", bytes(i64::MAX, Some(i64::MAX))).0, b"");
}

#[test]
fn negative_ranges_are_refused_by_name() {
    let yard = Yard::new();
    yard.plant("f", "x");
    let cases = [
        (bytes(-1, None), "`offset` is -1"),
        (bytes(0, Some(-2)), "`limit` is -2"),
        (lines(i64::MIN, None, None), "`offset_line` is -9223372036854775808"),
        (lines(0, Some(-1), None), "`limit_lines` is -1"),
        (lines(0, None, Some(-1)), "`max_bytes` is -1"),
    ];
    for (range, words) in cases {
        let message = refused(Reader::open(&yard.root, &"f".into(), range), ErrorCode::InvalidRequest);
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn lines_keep_their_ends() {
    let yard = Yard::new();
    yard.plant("f", "a\r\nb\n\nlast");
    assert_eq!(read(&yard, "f", lines(0, Some(2), None)).0, b"a\r\nb\n");
    assert_eq!(read(&yard, "f", lines(2, Some(1), None)).0, b"\n");
    assert_eq!(read(&yard, "f", lines(3, None, None)).0, b"last");
    assert_eq!(read(&yard, "f", lines(4, None, None)).0, b"");
}

#[test]
fn a_cut_by_max_bytes_is_reported_and_an_exact_fit_is_not_a_cut() {
    let yard = Yard::new();
    yard.plant("f", "ab\ncd\n");
    assert_eq!(read(&yard, "f", lines(0, None, Some(4))), (b"ab\nc".to_vec(), true));
    assert_eq!(read(&yard, "f", lines(0, Some(1), Some(3))), (b"ab\n".to_vec(), false));
    assert_eq!(read(&yard, "f", lines(0, None, Some(6))), (b"ab\ncd\n".to_vec(), false));
    assert_eq!(read(&yard, "f", lines(0, None, Some(0))), (b"".to_vec(), true));
    assert_eq!(read(&yard, "f", lines(9, None, Some(0))), (b"".to_vec(), false));
    assert_eq!(read(&yard, "f", bytes(0, Some(1))), (b"a".to_vec(), false));
}

proptest! {
    #[test]
    fn lines_equal_those_of_a_simple_model(
        content in prop::collection::vec(prop::sample::select(b"ab\r\n\n\n\xff".to_vec()), 0..200),
        skip in 0_i64..20,
        count in prop::option::of(0_i64..20),
        max in prop::option::of(0_i64..60),
        chunk in 1_usize..17,
    ) {
        let (mut cut, _) = Cut::new(lines(skip, count, max)).expect("nothing is negative");
        let mut taken = Vec::new();
        for chunk in content.chunks(chunk) {
            let part = cut.next(chunk);
            taken.extend_from_slice(&chunk[part]);
        }
        let truncated = matches!(cut, Cut::Lines { truncated: true, .. });

        let wanted: Vec<u8> = content
            .split_inclusive(|byte| *byte == b'\n')
            .skip(skip as usize)
            .take(count.map_or(usize::MAX, |count| count as usize))
            .flatten()
            .copied()
            .collect();
        let fits = max.map_or(wanted.len(), |max| wanted.len().min(max as usize));
        prop_assert_eq!(&taken, &wanted[..fits]);
        prop_assert_eq!(truncated, fits < wanted.len());
    }

    #[test]
    fn the_bytes_do_not_depend_on_the_buffer(
        content in prop::collection::vec(prop::sample::select(b"xy\n".to_vec()), 0..300),
        skip in 0_i64..9,
        count in prop::option::of(0_i64..9),
        max in prop::option::of(0_i64..90),
        buffer in 1_usize..40,
    ) {
        let yard = Yard::new();
        yard.plant("f", &content);
        let open = || Reader::open(&yard.root, &"f".into(), lines(skip, count, max)).expect("the file opens");
        prop_assert_eq!(drain(open(), buffer), drain(open(), 4096));
    }
}

#[test]
fn one_line_far_over_the_buffer_is_skipped_and_cut_through_a_small_buffer() {
    const HOLE_BYTES: u64 = 64 << 20;
    let yard = Yard::new();
    let mut file = std::fs::File::create(yard.path("big")).expect("the yard is writable");
    file.seek(SeekFrom::Start(HOLE_BYTES)).expect("a hole");
    file.write_all(b"\nsecond\n").expect("the yard is writable");
    let open = |range| Reader::open(&yard.root, &"big".into(), range).expect("the file opens");
    assert_eq!(drain(open(lines(0, Some(1), Some(5))), 1 << 16), (vec![0; 5], true));
    assert_eq!(drain(open(bytes(HOLE_BYTES as i64, None)), 1 << 16).0, b"\nsecond\n");
    assert_eq!(drain(open(lines(1, None, None)), 1 << 16), (b"second\n".to_vec(), false));
}

#[test]
fn files_of_the_kernel_are_read_completely_although_their_size_is_zero() {
    let root = Root::new(None).expect("there is a /");
    let reader = Reader::open(&root, &"/proc/self/status".into(), bytes(0, None)).expect("it opens");
    assert_eq!(reader.stat().size, 0);
    let text = String::from_utf8(drain(reader, 100).0).expect("it is text");
    assert!(text.starts_with("Name:") && text.contains("\nPid:"), "{text}");
    let reader = Reader::open(&root, &"proc/self/status".into(), lines(1, Some(1), None)).expect("it opens");
    assert!(drain(reader, 100).0.starts_with(b"Umask:"));
}

#[test]
fn a_fifo_is_refused_without_being_opened() {
    let yard = Yard::new();
    fifo(&yard.path("pipe"));
    let begun = Instant::now();
    let message = refused(Reader::open(&yard.root, &"pipe".into(), bytes(0, None)), ErrorCode::NotAFile);
    assert!(message.contains("`pipe` is a FIFO"), "{message}");
    assert!(begun.elapsed() < Duration::from_secs(5), "opening waited for a writer");
}

#[test]
fn directories_devices_and_sockets_are_refused_by_name() {
    let yard = Yard::new();
    let _listener = socket(&yard.path("s"));
    refused(Reader::open(&yard.root, &".".into(), bytes(0, None)), ErrorCode::IsADirectory);
    refused(Reader::open(&yard.root, &"s".into(), bytes(0, None)), ErrorCode::NotAFile);
    let whole = Root::new(None).expect("there is a /");
    let message = refused(Reader::open(&whole, &"/dev/null".into(), bytes(0, None)), ErrorCode::NotAFile);
    assert!(message.contains("character device"), "{message}");
    refused(Reader::open(&yard.root, &"none".into(), bytes(0, None)), ErrorCode::NotFound);
}

#[test]
fn a_symlink_to_a_file_is_followed_for_bytes_and_stat() {
    let yard = Yard::new();
    yard.plant("d/f", "x");
    link("d/f", yard.path("l"));
    let reader = Reader::open(&yard.root, &"l".into(), bytes(0, None)).expect("it opens");
    assert_eq!((reader.stat().kind, reader.stat().size), (FileKind::File, 1));
    assert_eq!(drain(reader, 9).0, b"x");
}
