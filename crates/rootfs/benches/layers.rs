//! How fast layers become a tree: bytes of large files, and entries of small ones.
//!
//!     cargo bench -p kiln-rootfs --bench layers
//!
//! The spool is in the folder for temporary files, so the rate for large files includes writes to its disk.

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use kiln_rootfs::{Layers, Limits, Spool, SpoolLimits};
use tar::{EntryType, Header};

const LARGE_FILE_BYTES: usize = 16 << 20;
const LARGE_FILES: usize = 16;
const SMALL_ENTRIES: usize = 100_000;

fn main() {
    divan::main();
}

fn member(tar: &mut Vec<u8>, kind: EntryType, name: &str, data: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_path(name).expect("a short name");
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(data);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

/// Bytes that differ from one seed to the next.
fn noise(seed: usize, bytes: &mut [u8]) {
    let mut state = seed as u64 * 2 + 1;
    for chunk in bytes.chunks_mut(8) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
}

fn apply(tar: &[u8]) -> usize {
    let spool = Spool::new(&std::env::temp_dir(), SpoolLimits::default()).expect("room for a spool");
    let mut layers = Layers::new(spool, Limits::default());
    layers.apply(tar).expect("a layer");
    layers.finish().0.len()
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn large_files(bencher: Bencher<'_, '_>) {
    let (mut tar, mut data) = (Vec::new(), vec![0; LARGE_FILE_BYTES]);
    for at in 0..LARGE_FILES {
        noise(at, &mut data);
        member(&mut tar, EntryType::Regular, &format!("d/{at}"), &data);
    }
    tar.resize(tar.len() + 1024, 0);
    bencher.counter(BytesCount::new(tar.len())).bench(|| apply(&tar));
}

/// As in a package tree: directories of 20 entries, most of them files of some kilobytes, with links between them.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn small_entries(bencher: Bencher<'_, '_>) {
    let (mut tar, mut data) = (Vec::new(), [0; 2000]);
    for at in 0..SMALL_ENTRIES {
        let path = format!("usr/share/doc/package-{}/file-{at}", at / 20);
        match at % 20 {
            0 => member(&mut tar, EntryType::Directory, &format!("usr/share/doc/package-{}", at / 20), b""),
            1 => member(&mut tar, EntryType::Fifo, &path, b""),
            _ => {
                noise(at, &mut data);
                member(&mut tar, EntryType::Regular, &path, &data[..at % 2000]);
            }
        }
    }
    tar.resize(tar.len() + 1024, 0);
    bencher.counter(ItemsCount::new(SMALL_ENTRIES)).counter(BytesCount::new(tar.len())).bench(|| apply(&tar));
}
