//! Reading plain files, by bytes or by lines. Devices and FIFOs are refused before they are opened.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use kiln_wire::{Fault, FileStat, ReadRange, Text};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::fault::{fault_from_errno, invalid};
use super::memory::in_memory;
use super::place::{Root, reopen};
use super::stat::{expect_plain, file_stat};

const OPERATION: &str = "read";

/// A part of a plain file. Call [`fill`](Self::fill) until it returns 0.
#[derive(Debug)]
pub struct Reader {
    path: Text,
    file: File,
    stat: FileStat,
    position: u64,
    cut: Cut,
    ended: bool,
}

impl Reader {
    /// Whether each [`fill`](Self::fill) takes little time: reading bytes of a file in memory. Finding lines may take
    /// long.
    pub fn is_quick(&self) -> bool {
        matches!(self.cut, Cut::Bytes { .. }) && in_memory(&self.file)
    }

    /// Opens a file. Symlinks are followed.
    ///
    /// # Errors
    /// `invalid_request` if the range is negative; `is_a_directory`, `not_a_file`; the error of opening.
    pub fn open(root: &Root, path: &Text, range: ReadRange) -> Result<Self, Fault> {
        let (cut, offset) = Cut::new(range)?;
        let (mut file, stat) = open_plain(root, path)?;
        // The kernel refuses offsets that are beyond the largest file of this file system. There are no bytes at them.
        let ended = match offset {
            0 => false,
            offset => match file.seek(SeekFrom::Start(offset)) {
                Ok(_) => false,
                Err(error) if is_past_every_end(&error) => true,
                Err(error) => return Err(fault_from_errno(path, OPERATION, error)),
            },
        };
        Ok(Self { path: path.clone(), file, stat, position: offset, cut, ended })
    }

    /// The status of the file when it was opened.
    pub fn stat(&self) -> &FileStat {
        &self.stat
    }

    /// Reads the next bytes of the range to the start of the buffer. Returns their number, 0 at the end.
    ///
    /// # Errors
    /// If reading fails.
    pub fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, Fault> {
        while !self.ended && !self.cut.is_done() {
            let room = usize::try_from(i64::MAX.unsigned_abs() - self.position).unwrap_or(usize::MAX);
            let length = buffer.len().min(room).min(self.cut.bytes_max());
            if length == 0 {
                break;
            }
            let count = match self.file.read(&mut buffer[..length]) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(fault_from_errno(&self.path, OPERATION, error)),
            };
            self.position += count as u64;
            if count == 0 {
                self.ended = true;
            }
            let part = self.cut.next(&buffer[..count]);
            if !part.is_empty() {
                let length = part.len();
                buffer.copy_within(part, 0);
                return Ok(length);
            }
        }
        Ok(0)
    }

    /// Whether `max_bytes` has cut the lines. Known at the end.
    pub fn truncated(&self) -> bool {
        matches!(self.cut, Cut::Lines { truncated: true, .. })
    }
}

/// Opens a plain file for reading. Other kinds are refused before they are opened, so opening has no side effects on
/// them.
pub(super) fn open_plain(root: &Root, path: &Text) -> Result<(File, FileStat), Fault> {
    let fail = |errno: Errno| fault_from_errno(path, OPERATION, errno);
    let handle = root.open(path, OFlags::PATH, OPERATION)?;
    let stat = rustix::fs::fstat(&handle).map_err(fail)?;
    expect_plain(&stat, path)?;
    let file = reopen(&handle, OFlags::RDONLY).map_err(fail)?;
    Ok((file.into(), file_stat(&stat, None)))
}

fn is_past_every_end(error: &io::Error) -> bool {
    [Errno::INVAL, Errno::OVERFLOW].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Selects the bytes of a range, chunk by chunk and without I/O.
#[derive(Debug)]
pub(super) enum Cut {
    /// This many bytes more, or all if `None`.
    Bytes { left: Option<u64> },
    /// Lines, after the ones that are skipped.
    Lines { skip: u64, lines_left: Option<u64>, bytes_left: Option<u64>, truncated: bool },
}

impl Cut {
    /// The cut, and the byte offset at which reading starts.
    pub(super) fn new(range: ReadRange) -> Result<(Self, u64), Fault> {
        let count = |name: &str, value: i64| {
            u64::try_from(value).map_err(|_| invalid(format!("`{name}` is {value}, which is negative")))
        };
        let maybe = |name: &str, value: Option<i64>| value.map(|value| count(name, value)).transpose();
        match range {
            ReadRange::Bytes { offset, limit } => {
                Ok((Self::Bytes { left: maybe("limit", limit)? }, count("offset", offset)?))
            }
            ReadRange::Lines { offset_line, limit_lines, max_bytes } => Ok((
                Self::Lines {
                    skip: count("offset_line", offset_line)?,
                    lines_left: maybe("limit_lines", limit_lines)?,
                    bytes_left: maybe("max_bytes", max_bytes)?,
                    truncated: false,
                },
                0,
            )),
        }
    }

    fn is_done(&self) -> bool {
        matches!(
            self,
            Self::Bytes { left: Some(0) }
                | Self::Lines { lines_left: Some(0), .. }
                | Self::Lines { truncated: true, .. }
        )
    }

    /// The most bytes that may still be needed.
    fn bytes_max(&self) -> usize {
        match self {
            Self::Bytes { left: Some(left) } => usize::try_from(*left).unwrap_or(usize::MAX),
            _ => usize::MAX,
        }
    }

    /// The part of the next chunk that is in the range.
    pub(super) fn next(&mut self, chunk: &[u8]) -> Range<usize> {
        match self {
            Self::Bytes { left } => {
                let end = take(left, chunk.len());
                0..end
            }
            Self::Lines { skip, lines_left, bytes_left, truncated } => {
                let start = pass_lines(chunk, skip);
                // If lines are left to skip, the chunk ends inside of a skipped line.
                if *skip > 0 || *truncated {
                    return start..start;
                }
                let wanted = match lines_left {
                    Some(lines) => pass_lines(&chunk[start..], lines),
                    None => chunk.len() - start,
                };
                let taken = take(bytes_left, wanted);
                *truncated = taken < wanted;
                start..start + taken
            }
        }
    }
}

/// Takes up to `wanted` from the budget. Returns the amount.
fn take(budget: &mut Option<u64>, wanted: usize) -> usize {
    match budget {
        None => wanted,
        Some(left) => {
            let taken = wanted.min(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= taken as u64;
            taken
        }
    }
}

/// The index at which this number of lines ends in a chunk. `lines` becomes the number that is left.
fn pass_lines(chunk: &[u8], lines: &mut u64) -> usize {
    // Counting line ends is several times faster than finding them, and only the last chunk needs finding.
    let ends = chunk.iter().filter(|byte| **byte == b'\n').count() as u64;
    if ends < *lines {
        *lines -= ends;
        return chunk.len();
    }
    let mut position = 0;
    while *lines > 0 {
        let Some(end) = chunk[position..].iter().position(|byte| *byte == b'\n') else { break };
        position += end + 1;
        *lines -= 1;
    }
    position
}
