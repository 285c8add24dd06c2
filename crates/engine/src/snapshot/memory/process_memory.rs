//! Reads and writes pages of another process, many with one system call.
#![expect(unsafe_code, reason = "process_vm_readv and process_vm_writev have no safe interface")]

use std::io;
use std::ops::Range;

use libc::{c_ulong, iovec, pid_t, ssize_t};

use super::mapping::Mapping;
use super::page_file::PAGE_BYTES;
use super::page_runs::{BATCH_PAGES, page_count};

/// Reads a batch of pages one after another into `buffer`.
pub(super) fn read_pages(pid: u32, mapping: Mapping, runs: &[Range<u64>], buffer: &mut [u8]) -> io::Result<()> {
    let (mut place, mut left) = (buffer.as_mut_ptr(), buffer.len());
    transfer(mapping, runs, buffer.len(), |remote, done| {
        (place, left) = (place.wrapping_add(done), left - done);
        let local = iovec { iov_base: place.cast(), iov_len: left };
        // SAFETY: `local` is the rest of `buffer`, which is borrowed for writing during the call: `transfer` passes how
        // much is done, and never more than there is. The kernel checks the addresses of the other process. If that is
        // this process, its mapping of a guest's memory is not a Rust object.
        unsafe {
            libc::process_vm_readv(pid.cast_signed() as pid_t, &local, 1, remote.as_ptr(), remote.len() as c_ulong, 0)
        }
    })
}

/// Writes a batch's pages, one after another, from `buffer`.
pub(super) fn write_pages(pid: u32, mapping: Mapping, runs: &[Range<u64>], buffer: &[u8]) -> io::Result<()> {
    let mut rest = buffer;
    transfer(mapping, runs, buffer.len(), |remote, done| {
        rest = &rest[done..];
        let local = iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() };
        // SAFETY: `local` is the rest of `buffer`, which the kernel only reads. It checks the addresses of the other
        // process. If that is this process, its mapping of a guest's memory is not a Rust object.
        unsafe {
            libc::process_vm_writev(pid.cast_signed() as pid_t, &local, 1, remote.as_ptr(), remote.len() as c_ulong, 0)
        }
    })
}

/// Repeats the call until all bytes are moved. `call` gets the remaining vectors of the other process, and the number
/// of bytes that are done.
fn transfer(
    mapping: Mapping,
    runs: &[Range<u64>],
    bytes: usize,
    mut call: impl FnMut(&[iovec], usize) -> ssize_t,
) -> io::Result<()> {
    assert_eq!(page_count(runs) * PAGE_BYTES as u64, bytes as u64, "the buffer is as large as the pages");
    assert!(runs.len() <= BATCH_PAGES, "a batch fits a system call");
    assert!(runs.last().is_none_or(|run| run.end <= mapping.pages()), "the pages are the mapping's");
    let mut remote = runs.iter().map(|run| vector(mapping, run)).collect::<Vec<_>>();
    let (mut left, mut done) = (bytes, 0);
    while left > 0 {
        let skip = advance(&mut remote, done);
        done = match call(&remote[skip..], done) {
            ..0 => return Err(io::Error::last_os_error()),
            // If the first address is not mapped, some kernels return 0 instead of an error.
            0 => return Err(io::Error::from_raw_os_error(libc::EFAULT)),
            moved => moved.cast_unsigned(),
        };
        remote.drain(..skip);
        left = left.checked_sub(done).ok_or_else(|| io::Error::other("the kernel moved more than it was asked to"))?;
    }
    Ok(())
}

fn vector(mapping: Mapping, run: &Range<u64>) -> iovec {
    let bytes = mapping.address(run.end) - mapping.address(run.start);
    iovec { iov_base: mapping.address(run.start) as *mut _, iov_len: bytes as usize }
}

/// Removes `done` bytes from the front. Returns how many vectors are done as a whole; the next one is cut.
fn advance(vectors: &mut [iovec], mut done: usize) -> usize {
    for (index, vector) in vectors.iter_mut().enumerate() {
        if done < vector.iov_len {
            vector.iov_base = vector.iov_base.wrapping_byte_add(done);
            vector.iov_len -= done;
            return index;
        }
        done -= vector.iov_len;
    }
    vectors.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPPING: Mapping = Mapping { start: 0x10000, bytes: 0x10000 };

    /// Moves at most `step` bytes with each call. Returns the address and length that each call began with.
    fn moved_in_steps(step: usize) -> io::Result<Vec<(usize, usize)>> {
        let mut calls = Vec::new();
        transfer(MAPPING, &[1..2, 4..6], 3 * PAGE_BYTES, |remote, _| {
            calls.push((remote[0].iov_base as usize, remote.iter().map(|vector| vector.iov_len).sum()));
            remote[0].iov_len.min(step).cast_signed()
        })?;
        Ok(calls)
    }

    #[test]
    fn the_rest_of_a_partial_copy_is_moved_by_the_next_call() {
        let wanted = [(0x11000, 0x3000), (0x11c00, 0x2400), (0x14000, 0x2000), (0x14c00, 0x1400), (0x15800, 0x800)];
        assert_eq!(moved_in_steps(0xc00).expect("moves"), wanted);
        assert_eq!(moved_in_steps(0x9000).expect("moves"), [(0x11000, 0x3000), (0x14000, 0x2000)]);
    }

    #[test]
    fn a_call_that_moves_nothing_is_an_error() {
        assert_eq!(moved_in_steps(0).expect_err("is stuck").raw_os_error(), Some(libc::EFAULT));
    }
}
