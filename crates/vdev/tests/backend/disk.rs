//! The disk: every request, in any layout, and what is no request.

use kiln_vdev::devices::blk::{Backing, Blk, BlkOptions};
use kiln_vdev::queue::Buffer;
use proptest::prelude::*;

use super::frontend::{Frontend, Ring, Served};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

struct Disk {
    file: tempfile::NamedTempFile,
    served: Served,
}

const SECTORS: u64 = 64;

fn disk(change: impl FnOnce(&mut BlkOptions)) -> Disk {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), pattern(SECTORS as usize * 512)).expect("is written");
    let mut options = BlkOptions::new(Backing::File(file.path().to_owned()));
    change(&mut options);
    let served = Served::new(Blk::open(&options).expect("a disk"));
    Disk { file, served }
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at / 512 * 7 + at) as u8).collect()
}

fn ready(disk: &Disk) -> (Frontend, Ring) {
    let mut frontend = disk.served.frontend();
    frontend.negotiate();
    frontend.share_memory();
    let ring = frontend.ring(0, 64);
    (frontend, ring)
}

#[test]
fn what_is_written_is_read_back_and_is_in_the_file() {
    let disk = disk(|_| {});
    let (_frontend, mut ring) = ready(&disk);
    ring.put(4096, &[0x5a; 1024]);
    assert_eq!(ring.request(OUT, 3, 1024, 0), (OK, 1));
    ring.put(4096, &[0; 1024]);
    assert_eq!(ring.request(IN, 3, 0, 1024), (OK, 1025));
    assert_eq!(ring.take(4096, 1024), [0x5a; 1024]);
    assert_eq!(std::fs::read(disk.file.path()).expect("is read")[3 * 512..5 * 512], [0x5a; 1024]);
    assert_eq!(ring.request(FLUSH, 0, 0, 0), (OK, 1));
}

#[test]
fn the_serial_number_is_told_as_far_as_there_is_room() {
    let disk = disk(|options| options.serial = "12345678901234567890".to_owned());
    let (_frontend, mut ring) = ready(&disk);
    ring.put(4096, &[0xee; 64]);
    assert_eq!(ring.request(GET_ID, 0, 0, 32), (OK, 33));
    assert_eq!(ring.take(4096, 33), [b"12345678901234567890".as_slice(), &[0; 12], &[0xee]].concat());
    assert_eq!(ring.request(GET_ID, 0, 0, 4), (OK, 5));
    assert_eq!(ring.request(GET_ID, 0, 0, 0), (OK, 1));
}

#[test]
fn what_is_not_on_the_disk_is_an_error_and_leaves_no_trace() {
    let disk = disk(|_| {});
    let (_frontend, mut ring) = ready(&disk);
    let places = [(SECTORS, 512), (SECTORS - 1, 1024), (u64::MAX, 512), (u64::MAX / 512 + 1, 512), (0, 100), (0, 513)];
    for (sector, bytes) in places {
        ring.put(4096, &[0x77; 2048]);
        assert_eq!(ring.request(IN, sector, 0, bytes), (IO_ERROR, bytes + 1), "read {sector} {bytes}");
        assert_eq!(ring.take(4096, bytes as usize), vec![0; bytes as usize], "says nothing of the disk");
        assert_eq!(ring.request(OUT, sector, bytes, 0), (IO_ERROR, 1), "write {sector} {bytes}");
    }
    assert_eq!(std::fs::read(disk.file.path()).expect("is read"), pattern(SECTORS as usize * 512));
    for kind in [2, 3, 5, 7, 16, 99, u32::MAX] {
        assert_eq!(ring.request(kind, 0, 0, 0), (UNSUPPORTED, 1), "{kind}");
    }
}

#[test]
fn ranges_are_discarded_and_zeroed_as_far_as_all_of_them_are_right() {
    let disk = disk(|_| {});
    let (_frontend, mut ring) = ready(&disk);
    let range = |sector: u64, sectors: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    let mut ask = |kind, ranges: &[Vec<u8>]| {
        let bytes = ranges.concat();
        ring.put(4096, &bytes);
        ring.request(kind, 0, bytes.len() as u32, 0).0
    };
    let read = || std::fs::read(disk.file.path()).expect("is read");
    assert_eq!(ask(WRITE_ZEROES, &[range(2, 2, 0), range(6, 1, 1)]), OK);
    let mut expected = pattern(SECTORS as usize * 512);
    expected[2 * 512..4 * 512].fill(0);
    expected[6 * 512..7 * 512].fill(0);
    assert_eq!(read(), expected);
    assert_eq!(ask(DISCARD, &[range(8, 8, 0)]), OK);
    assert_eq!(read()[16 * 512..], expected[16 * 512..]);
    let before = read();
    assert_eq!(ask(DISCARD, &[range(20, 1, 0), range(SECTORS, 1, 0)]), IO_ERROR);
    assert_eq!(ask(DISCARD, &[range(20, 1, 1)]), UNSUPPORTED);
    assert_eq!(ask(WRITE_ZEROES, &[range(20, 1, 2)]), UNSUPPORTED);
    assert_eq!(ask(WRITE_ZEROES, &[range(20, u32::MAX, 0)]), IO_ERROR);
    assert_eq!(ask(WRITE_ZEROES, &[]), IO_ERROR);
    assert_eq!(ask(WRITE_ZEROES, &[vec![0; 17]]), IO_ERROR);
    assert_eq!(ask(WRITE_ZEROES, &vec![range(20, 1, 0); 33]), IO_ERROR);
    assert_eq!(read(), before);
}

#[test]
fn a_disk_that_can_not_be_written_is_not() {
    let disk = disk(|options| options.read_only = true);
    let (frontend, mut ring) = ready(&disk);
    assert_eq!(frontend.features >> 5 & 1, 1, "it says so");
    assert_eq!(ring.request(OUT, 0, 512, 0), (IO_ERROR, 1));
    assert_eq!(ring.request(WRITE_ZEROES, 0, 16, 0), (UNSUPPORTED, 1));
    assert_eq!(ring.request(IN, 0, 0, 512), (OK, 513));
    assert_eq!(ring.take(4096, 512), pattern(512));
}

#[test]
fn a_request_without_header_or_status_does_not_stop_the_ring() {
    let disk = disk(|_| {});
    let (_frontend, mut ring) = ready(&disk);
    let (header, data, status) = (ring.buffer(0, 16), ring.buffer(4096, 512), ring.buffer(64, 1));
    ring.submit(&[header], &[], 1);
    assert_eq!(ring.wait().written, 0);
    ring.submit(&[ring.buffer(0, 15)], &[data, status], 2);
    assert_eq!(ring.wait().written, 513);
    assert_eq!(ring.take(64, 1), [IO_ERROR]);
    ring.submit(&[], &[status], 3);
    assert_eq!(ring.wait().written, 1);
    assert_eq!(ring.request(IN, 0, 0, 512), (OK, 513));
}

#[test]
fn a_file_that_became_shorter_reads_as_zeros() {
    let disk = disk(|_| {});
    let (_frontend, mut ring) = ready(&disk);
    disk.file.as_file().set_len(700).expect("shrinks");
    assert_eq!(ring.request(IN, 1, 0, 1024), (OK, 1025));
    assert_eq!(ring.take(4096, 1024), [&pattern(700)[512..], &[0; 836]].concat());
}

#[test]
fn a_disk_is_opened_by_one_writer_and_as_it_can_be() {
    let disk = disk(|_| {});
    let again = |change: fn(&mut BlkOptions)| {
        let mut options = BlkOptions::new(Backing::File(disk.file.path().to_owned()));
        change(&mut options);
        Blk::open(&options).map(|disk| disk.sectors()).map_err(|error| error.to_string())
    };
    assert!(again(|_| {}).expect_err("is in use").contains("in use"));
    assert!(again(|options| options.backing = Backing::File("/nowhere".into())).is_err());
    assert!(again(|options| options.block_bytes = 1000).expect_err("is not a size").contains("`1000`"));
    assert!(again(|options| options.queues = 0).is_err());
    assert!(again(|options| options.serial = "x".repeat(21)).is_err());
    drop(disk.served);
    assert_eq!(again(|options| options.block_bytes = 4096), Ok(SECTORS));
}

#[test]
fn the_nothing_reads_as_zeros_and_forgets() {
    let nothing = Blk::open(&BlkOptions::new(Backing::Null { bytes: 1 << 20 })).expect("a disk");
    let served = Served::new(nothing);
    let mut frontend = served.frontend();
    frontend.negotiate();
    frontend.share_memory();
    let mut ring = frontend.ring(3, 16);
    ring.put(4096, &[7; 512]);
    assert_eq!(ring.request(OUT, 0, 512, 0), (OK, 1));
    assert_eq!(ring.request(IN, 0, 0, 512), (OK, 513));
    assert_eq!(ring.take(4096, 512), [0; 512]);
}

/// A request's buffers: what is read in pieces of these sizes, then what is written.
fn pieces(start: u64, sizes: &[u32], ring: &Ring) -> Vec<Buffer> {
    let mut at = start;
    let mut buffers = Vec::new();
    for size in sizes {
        buffers.push(ring.buffer(at, *size));
        at += u64::from(*size);
    }
    buffers
}

/// Cuts so many bytes into pieces at these places.
fn cut(bytes: u32, places: &[u32]) -> Vec<u32> {
    let mut places: Vec<u32> = places.iter().map(|place| place % (bytes + 1)).collect();
    places.extend([0, bytes]);
    places.sort_unstable();
    places.windows(2).map(|pair| pair[1] - pair[0]).filter(|size| *size > 0).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn a_request_may_be_cut_into_buffers_anyhow(
        sector in 0..SECTORS - 8,
        sectors in 0..8_u32,
        outgoing in prop::collection::vec(any::<u32>(), 0..20),
        incoming in prop::collection::vec(any::<u32>(), 0..20),
    ) {
        let disk = disk(|_| {});
        let (_frontend, mut ring) = ready(&disk);
        let bytes = sectors * 512;
        let header = |kind: u32| [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();

        ring.put(0, &header(IN));
        let buffers = pieces(8192, &cut(bytes + 1, &incoming), &ring);
        ring.submit(&pieces(0, &cut(16, &outgoing), &ring), &buffers, 1);
        prop_assert_eq!(ring.wait().written, bytes + 1);
        let start = sector as usize * 512;
        let expected = [&pattern(SECTORS as usize * 512)[start..start + bytes as usize], &[OK]].concat();
        prop_assert_eq!(ring.take(8192, bytes as usize + 1), expected);

        ring.put(0, &[header(OUT), vec![0xc3; bytes as usize]].concat());
        ring.put(64 << 10, &[0xee]);
        let status = [ring.buffer(64 << 10, 1)];
        ring.submit(&pieces(0, &cut(16 + bytes, &outgoing), &ring), &status, 2);
        prop_assert_eq!(ring.wait().written, 1);
        prop_assert_eq!(ring.take(64 << 10, 1), [OK]);
        let file = std::fs::read(disk.file.path()).expect("is read");
        prop_assert_eq!(&file[start..start + bytes as usize], vec![0xc3; bytes as usize]);
    }
}
