//! Copies of memory files that stay sparse.

use std::fs::File;
use std::io;
use std::iter;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::page_file::{PAGE_BYTES, is_zero};

/// Bytes that are copied at once if the kernel does not copy.
const COPY_BYTES: usize = 256 * PAGE_BYTES;
/// The kernel copies at most this much with one call. Some filesystems do not check for signals while they copy.
const KERNEL_COPY_BYTES: u64 = 256 << 20;

/// Copies a file to an empty one, on the same filesystem or another. If the filesystem can share blocks, it does.
/// Otherwise holes stay holes.
pub(crate) fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    // A block device has no size in its metadata.
    let bytes = rustix::fs::seek(from, SeekFrom::End(0))?;
    to.set_len(bytes)?;
    for extent in data_extents(from, bytes) {
        copy_extent(from, to, extent?)?;
    }
    Ok(())
}

/// Frees blocks of a file that were allocated but never written, for example by `fallocate`. They become holes. No
/// process may write to the file meanwhile. A filesystem without holes keeps the blocks.
pub(crate) fn punch_zeros(file: &File) -> io::Result<()> {
    let bytes = file.metadata()?.len();
    let mut place = 0;
    for extent in data_extents(file, bytes) {
        let extent = extent?;
        if !punch(file, place..extent.start)? {
            return Ok(());
        }
        place = extent.end;
    }
    punch(file, place..bytes).map(drop)
}

/// Makes a part of a file zeros: a hole if the filesystem has holes.
pub(super) fn write_hole(file: &File, range: Range<u64>) -> io::Result<()> {
    if punch(file, range.clone())? {
        return Ok(());
    }
    let zeros = vec![0; COPY_BYTES];
    for start in range.clone().step_by(COPY_BYTES) {
        let bytes = (range.end - start).min(COPY_BYTES as u64);
        file.write_all_at(&zeros[..bytes as usize], start)?;
    }
    Ok(())
}

/// Returns whether the filesystem has holes.
fn punch(file: &File, range: Range<u64>) -> io::Result<bool> {
    if range.is_empty() {
        return Ok(true);
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, flags, range.start, range.end - range.start) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The parts of a file that are not holes, ascending. All of it if the filesystem does not report holes.
pub(crate) fn data_extents(file: &File, bytes: u64) -> impl Iterator<Item = io::Result<Range<u64>>> {
    let mut place = 0;
    iter::from_fn(move || {
        let extent = next_extent(file, place, bytes).transpose()?;
        // An error ends the iteration.
        place = extent.as_ref().map_or(bytes, |extent| extent.end);
        Some(extent)
    })
}

fn next_extent(file: &File, place: u64, bytes: u64) -> io::Result<Option<Range<u64>>> {
    if place >= bytes {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(place)) {
        Ok(start) if start < bytes => start,
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(place..bytes)),
        Err(error) => return Err(error.into()),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.clamp(start + 1, bytes);
    Ok(Some(start..end))
}

fn copy_extent(from: &File, to: &File, extent: Range<u64>) -> io::Result<()> {
    let (mut read_at, mut write_at) = (extent.start, extent.start);
    while read_at < extent.end {
        let bytes = (extent.end - read_at).min(KERNEL_COPY_BYTES) as usize;
        match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), bytes) {
            // The kernel also returns 0 for files that it can't copy.
            Ok(0) => return copy_by_hand(from, to, read_at..extent.end),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {
                return copy_by_hand(from, to, read_at..extent.end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Skips pages of zeros, because the target has holes there.
fn copy_by_hand(from: &File, to: &File, extent: Range<u64>) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    for start in extent.clone().step_by(COPY_BYTES) {
        let chunk = &mut buffer[..(extent.end - start).min(COPY_BYTES as u64) as usize];
        from.read_exact_at(chunk, start)?;
        for (place, stretch) in stretches(chunk) {
            if let Stretch::Data(data) = stretch {
                to.write_all_at(data, start + place as u64)?;
            }
        }
    }
    Ok(())
}

/// Neighbouring pages of one kind, as many as there are. The last page may be shorter.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stretch<'a> {
    /// A number of zero bytes.
    Zeros(usize),
    /// Bytes of which no page is all zeros.
    Data(&'a [u8]),
}

/// Splits memory wherever zeros begin or end. Each part comes with its offset.
pub(super) fn stretches(memory: &[u8]) -> impl Iterator<Item = (usize, Stretch<'_>)> {
    let mut place = 0;
    iter::from_fn(move || {
        let mut pages = memory[place..].chunks(PAGE_BYTES);
        let first = pages.next()?;
        let zero = is_zero(first);
        let more = pages.take_while(|page| is_zero(page) == zero).map(<[u8]>::len).sum::<usize>();
        let start = place;
        place += first.len() + more;
        let stretch = if zero { Stretch::Zeros(place - start) } else { Stretch::Data(&memory[start..place]) };
        Some((start, stretch))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::snapshot::memory::testing::{here, pattern, zeros};

    const MIB: u64 = 1 << 20;

    /// 64 MiB with a page at 1 MiB, two at 30 MiB and some bytes at the end.
    fn sparse(file: &File) {
        file.write_all_at(&pattern(1), MIB).expect("written");
        file.write_all_at(&[pattern(2), pattern(3)].concat(), 30 * MIB).expect("written");
        file.write_all_at(b"the end", 64 * MIB - 7).expect("written");
    }

    fn content(file: &File) -> Vec<u8> {
        let mut content = vec![0; file.metadata().expect("is there").len() as usize];
        file.read_exact_at(&mut content, 0).expect("reads");
        content
    }

    fn disk_bytes(file: &File) -> u64 {
        file.metadata().expect("is there").blocks() * 512
    }

    #[test]
    fn a_copy_is_as_sparse_as_its_source() {
        let home = here();
        let (from, to) = (home.file("from"), home.file("to"));
        sparse(&from);
        copy_sparse(&from, &to).expect("copied");
        assert!(content(&from) == content(&to));
        assert!(disk_bytes(&to) < MIB);
    }

    #[test]
    fn a_copy_by_hand_leaves_zeros_out() {
        let home = here();
        let (from, to) = (home.file("from"), home.file("to"));
        sparse(&from);
        to.set_len(64 * MIB).expect("sparse");
        copy_by_hand(&from, &to, 0..64 * MIB).expect("copied");
        assert!(content(&from) == content(&to));
        assert!(disk_bytes(&to) < MIB);
    }

    #[test]
    fn blocks_that_were_never_written_are_freed() {
        let home = here();
        let file = home.file("file");
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 64 * MIB).expect("allocated");
        sparse(&file);
        assert!(disk_bytes(&file) >= 64 * MIB);
        punch_zeros(&file).expect("punched");
        assert!(disk_bytes(&file) < MIB);
        let same = home.file("same");
        sparse(&same);
        assert!(content(&file) == content(&same));
    }

    #[test]
    fn part_of_a_file_becomes_zeros() {
        let home = here();
        let file = home.file("file");
        file.write_all_at(&[pattern(1), pattern(2), pattern(3)].concat(), 0).expect("written");
        write_hole(&file, 4096..8192).expect("punched");
        assert!(content(&file) == [pattern(1), zeros(), pattern(3)].concat());
    }

    #[test]
    fn stretches_end_where_zeros_do() {
        let memory = [&zeros()[..], &zeros(), &pattern(1), &pattern(2), &zeros(), &pattern(3)[..9]].concat();
        let wanted = [
            (0, Stretch::Zeros(8192)),
            (8192, Stretch::Data(&memory[8192..16384])),
            (16384, Stretch::Zeros(4096)),
            (20480, Stretch::Data(&memory[20480..])),
        ];
        assert!(stretches(&memory).eq(wanted));
        assert_eq!(stretches(&[]).next(), None);
    }
}
