//! The parts of a file that have data. Between them are holes.

use std::ops::Range;
use std::os::fd::AsFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::error::{ArchiveError, malformed};

/// The most parts of one file that the reader accepts. They are in memory while the file is read.
pub const EXTENTS_MAX: usize = 1 << 16;
/// The most parts of one file that the writer keeps. If there are more, the smallest holes are written as zeros.
pub(crate) const EXTENTS_WRITTEN_MAX: usize = 4096;

/// A part of a file that has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

impl Extent {
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.bytes
    }
}

/// The parts of a file that have data, in order, up to a size. At most 4096: if there are more, small holes count as
/// data.
pub fn data_parts(file: impl AsFd, size: u64) -> impl Iterator<Item = Range<u64>> {
    of_file(file, size).into_iter().map(|extent| extent.offset..extent.end())
}

/// The parts of a file that have data, in order, up to a size.
///
/// If the file system does not support holes, the whole file is one part.
pub(crate) fn of_file(file: impl AsFd, size: u64) -> Vec<Extent> {
    let mut extents = Coalesced::default();
    let mut position = 0;
    while position < size {
        let start = match rustix::fs::seek(&file, SeekFrom::Data(position)) {
            Ok(start) => start.clamp(position, size),
            // No data from here on.
            Err(Errno::NXIO) => break,
            // Not supported: all of it counts as data.
            Err(_) => position,
        };
        let end = rustix::fs::seek(&file, SeekFrom::Hole(start)).unwrap_or(size);
        // If the file changes meanwhile, the two answers may contradict each other. `end` is always after `start`, so
        // the loop ends in any case.
        let end = if end <= start { size } else { end.min(size) };
        if start < end {
            extents.push(Extent { offset: start, bytes: end - start });
        }
        position = end;
    }
    extents.list
}

/// At most [`EXTENTS_WRITTEN_MAX`] extents: if there are more, those with the smallest holes between them are joined.
#[derive(Debug, Default)]
struct Coalesced {
    list: Vec<Extent>,
    /// Holes that are shorter than this are no longer kept.
    hole_bytes_min: u64,
}

impl Coalesced {
    fn push(&mut self, extent: Extent) {
        if let Some(last) = self.list.last_mut()
            && extent.offset - last.end() < self.hole_bytes_min.max(1)
        {
            last.bytes = extent.end() - last.offset;
            return;
        }
        self.list.push(extent);
        while self.list.len() > EXTENTS_WRITTEN_MAX {
            // The loop ends: the length doubles until no hole is long enough, and then one extent is left.
            self.hole_bytes_min = (self.hole_bytes_min * 2).max(4096);
            let min = self.hole_bytes_min;
            self.list.dedup_by(|next, kept| {
                let near = next.offset - kept.end() < min;
                if near {
                    kept.bytes = next.end() - kept.offset;
                }
                near
            });
        }
    }
}

/// Checks the parts of a file in an archive: they are in order, inside its size, and have as many bytes as the member.
pub(crate) fn check(extents: &[Extent], size: u64, data_bytes: u64) -> Result<(), ArchiveError> {
    let bad = || malformed("the archive has a sparse file with inconsistent parts");
    let (mut end, mut sum) = (0_u64, 0_u64);
    for extent in extents {
        if extent.offset < end {
            return Err(bad());
        }
        end = extent.offset.checked_add(extent.bytes).ok_or_else(bad)?;
        // No overflow: the parts do not overlap, so their sum is at most the end of the last one.
        sum += extent.bytes;
    }
    if end > size || sum != data_bytes {
        return Err(bad());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coalesced(extents: impl IntoIterator<Item = (u64, u64)>) -> Vec<Extent> {
        let mut list = Coalesced::default();
        for (offset, bytes) in extents {
            list.push(Extent { offset, bytes });
        }
        list.list
    }

    #[test]
    fn adjacent_parts_are_joined_and_holes_are_kept() {
        let two = coalesced([(0, 10), (10, 10), (30, 5)]);
        assert_eq!(two, [Extent { offset: 0, bytes: 20 }, Extent { offset: 30, bytes: 5 }]);
    }

    #[test]
    fn a_million_parts_become_a_short_list_that_covers_them() {
        let count = 1_000_000;
        let list = coalesced((0..count).map(|part| (part * 8192, 4096)));
        assert!(list.len() <= EXTENTS_WRITTEN_MAX, "{}", list.len());
        assert_eq!((list[0].offset, list[list.len() - 1].end()), (0, (count - 1) * 8192 + 4096));
        assert!(list.windows(2).all(|pair| pair[0].end() < pair[1].offset));
    }

    #[test]
    fn the_largest_holes_are_kept() {
        let far = 1 << 40;
        let list = coalesced((0..100_000).map(|part| (part * 8192, 4096)).chain([(far, 1)]));
        assert!(list.len() <= EXTENTS_WRITTEN_MAX);
        assert_eq!(list.last(), Some(&Extent { offset: far, bytes: 1 }));
    }

    #[test]
    fn inconsistent_parts_are_refused() {
        let extent = |offset, bytes| Extent { offset, bytes };
        check(&[extent(0, 10), extent(20, 5)], 25, 15).expect("consistent parts");
        check(&[], 1 << 40, 0).expect("only a hole");
        for (extents, size, data) in [
            (vec![extent(0, 10), extent(5, 10)], 100, 20),
            (vec![extent(20, 5), extent(0, 5)], 100, 10),
            (vec![extent(0, 10)], 9, 10),
            (vec![extent(0, 10)], 10, 9),
            (vec![extent(u64::MAX, 2)], u64::MAX, 2),
            (vec![extent(0, u64::MAX), extent(u64::MAX, u64::MAX)], u64::MAX, 1),
        ] {
            check(&extents, size, data).expect_err("inconsistent parts");
        }
    }
}
