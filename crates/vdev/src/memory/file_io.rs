//! Files read into guest memory, and written from it, without a copy in between.
//!
//! The kernel copies to and from the mapped pages itself. If a peer has truncated its file, it returns `EFAULT`, or
//! has copied less, and no signal ends the process.
#![expect(unsafe_code, reason = "vectored input and output straight to shared memory, which no slice may stand for")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::guest_memory::{GuestMemory, Span};

/// Pieces that are given to the kernel at once.
const PIECES_AT_ONCE: usize = 64;

type Transfer = unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t;

/// Fills spans from an offset of a file, and returns how many bytes it had: fewer if the file ends.
///
/// # Errors
/// If the file can't be read, the memory was cut short, or a span is not in it.
pub(crate) fn read_at(
    file: impl AsFd,
    offset: u64,
    memory: &GuestMemory,
    spans: impl Iterator<Item = Span>,
) -> io::Result<u64> {
    transfer(libc::preadv, file.as_fd(), offset, memory, spans)
}

/// Writes spans to an offset of a file, and returns how many bytes it took: fewer if it takes no more.
///
/// # Errors
/// If the file can't be written, the memory was cut short, or a span is not in it.
pub(crate) fn write_at(
    file: impl AsFd,
    offset: u64,
    memory: &GuestMemory,
    spans: impl Iterator<Item = Span>,
) -> io::Result<u64> {
    transfer(libc::pwritev, file.as_fd(), offset, memory, spans)
}

fn transfer(
    call: Transfer,
    file: BorrowedFd<'_>,
    offset: u64,
    memory: &GuestMemory,
    mut spans: impl Iterator<Item = Span>,
) -> io::Result<u64> {
    let mut done = 0;
    loop {
        let mut pieces = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; PIECES_AT_ONCE];
        let mut count = 0;
        for (piece, span) in pieces.iter_mut().zip(spans.by_ref()) {
            let slice = memory.slice(span).map_err(io::Error::other)?;
            *piece = libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() };
            count += 1;
        }
        if count == 0 {
            return Ok(done);
        }
        let mut left = &mut pieces[..count];
        while !left.is_empty() {
            let at = offset.checked_add(done).and_then(|at| libc::off_t::try_from(at).ok());
            let Some(at) = at else { return Err(io::ErrorKind::InvalidInput.into()) };
            // SAFETY: each piece is in a mapping that `memory` keeps alive, as `slice` has checked, and no reference
            // to those bytes exists: guest memory is only ever reached through volatile accesses. The count is the
            // slice's, which is at most `PIECES_AT_ONCE`.
            let moved = unsafe { call(file.as_raw_fd(), left.as_ptr(), left.len() as libc::c_int, at) };
            match usize::try_from(moved) {
                Ok(0) => return Ok(done),
                Ok(moved) => {
                    done += moved as u64;
                    left = advance(left, moved);
                }
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
    }
}

/// The pieces that are left after so many bytes.
fn advance(pieces: &mut [libc::iovec], moved: usize) -> &mut [libc::iovec] {
    let mut skip = moved;
    let first = pieces.iter().position(|piece| {
        let is_left = skip < piece.iov_len;
        if !is_left {
            skip -= piece.iov_len;
        }
        is_left
    });
    let first = first.unwrap_or(pieces.len());
    let left = &mut pieces[first..];
    if let Some(piece) = left.first_mut() {
        piece.iov_base = piece.iov_base.wrapping_byte_add(skip);
        piece.iov_len -= skip;
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Region, SharedFile};
    use crate::protocol::MemoryRegion;
    use std::io::Write as _;
    use std::sync::Arc;

    fn memory(file: SharedFile, size: u64) -> GuestMemory {
        let region = MemoryRegion { guest_address: 0, size, user_address: 0, mmap_offset: 0 };
        GuestMemory::new(vec![Arc::new(Region::map(region, file).expect("maps"))]).expect("memory")
    }

    #[test]
    fn bytes_go_from_memory_to_a_file_and_back_in_any_pieces() {
        let memory = memory(SharedFile::new(1 << 20).expect("a file"), 1 << 20);
        let file = tempfile::tempfile().expect("a file");
        // More pieces than go at once, of odd sizes, the last of them empty.
        let spans: Vec<_> =
            (0..200).map(|i| memory.at_guest(i * 4096, (i * 7 % 513) as usize).expect("is there")).collect();
        let total: usize = spans.iter().map(|span| span.bytes()).sum();
        for (i, span) in spans.iter().enumerate() {
            memory.slice(*span).expect("is there").copy_from(&vec![i as u8; span.bytes()]);
        }
        assert_eq!(write_at(&file, 3, &memory, spans.iter().copied()).expect("is written"), total as u64);
        assert_eq!(file.metadata().expect("is there").len(), 3 + total as u64);
        let target = memory.at_guest(900_000, total).expect("is there");
        assert_eq!(read_at(&file, 3, &memory, [target].into_iter()).expect("is read"), total as u64);
        let mut bytes = vec![0; total];
        memory.slice(target).expect("is there").copy_to(&mut bytes);
        let expected: Vec<u8> = spans.iter().enumerate().flat_map(|(i, span)| vec![i as u8; span.bytes()]).collect();
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_file_that_ends_is_said_to() {
        let memory = memory(SharedFile::new(8192).expect("a file"), 8192);
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&[7; 100]).expect("is written");
        let span = memory.at_guest(0, 4096).expect("is there");
        assert_eq!(read_at(&file, 0, &memory, [span].into_iter()).expect("is read"), 100);
        assert_eq!(read_at(&file, 4096, &memory, [span].into_iter()).expect("is read"), 0);
        assert!(read_at(&file, u64::MAX, &memory, [span].into_iter()).is_err());
    }

    #[test]
    fn memory_that_was_truncated_is_an_error_and_ends_no_process() {
        let backing = tempfile::tempfile().expect("a file");
        backing.set_len(16384).expect("grows");
        let memory = memory(SharedFile::from_peer(backing.try_clone().expect("clones").into()), 16384);
        let file = tempfile::tempfile().expect("a file");
        file.set_len(16384).expect("grows");
        backing.set_len(0).expect("shrinks");
        let span = memory.at_guest(4096, 4096).expect("is there");
        assert!(read_at(&file, 0, &memory, [span].into_iter()).is_err());
        assert!(write_at(&file, 0, &memory, [span].into_iter()).is_err());
    }
}
