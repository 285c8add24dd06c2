//! Streams over `AF_VSOCK`, which busybox can't open.
#![expect(unsafe_code, reason = "the standard library has no addresses of AF_VSOCK")]

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use crate::pattern::stream_bytes;

/// The most bytes that are sent back at once.
const ECHO_BYTES: usize = 64 << 10;
const BACKLOG: i32 = 8;

/// Sends all data back, one connection after another.
///
/// # Errors
/// If a system call fails.
pub fn serve(port: u32, connections: u64, listening: &dyn Fn()) -> io::Result<u64> {
    let listener = socket()?;
    let address = address(libc::VMADDR_CID_ANY, port);
    // SAFETY: the pointer and the length are those of `address`, which outlives the call.
    checked(unsafe { libc::bind(listener.as_raw_fd(), (&raw const address).cast(), LENGTH) })?;
    // SAFETY: the descriptor is open, and the call takes no pointer.
    checked(unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) })?;
    listening();
    let mut echoed = 0;
    for _ in 0..connections {
        // SAFETY: with null pointers the address of the other side is not requested.
        let fd = checked(unsafe {
            libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC)
        })?;
        // SAFETY: `accept4` gave a new descriptor, which nothing else owns.
        let mut stream = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let mut room = vec![0; ECHO_BYTES];
        loop {
            match stream.read(&mut room)? {
                0 => break,
                count => stream.write_all(&room[..count])?,
            }
            echoed += 1;
        }
    }
    Ok(echoed)
}

/// Sends `bytes` bytes to the host's `port` with one write, `rounds` times, and compares what comes back.
///
/// # Errors
/// If a system call fails, or if the data of a round came back changed.
pub fn call(port: u32, bytes: usize, rounds: u64) -> io::Result<()> {
    let stream = socket()?;
    let address = address(libc::VMADDR_CID_HOST, port);
    // SAFETY: the pointer and the length are those of `address`, which outlives the call.
    checked(unsafe { libc::connect(stream.as_raw_fd(), (&raw const address).cast(), LENGTH) })?;
    let mut stream = File::from(stream);
    let mut back = vec![0; bytes];
    for round in 0..rounds {
        let sent = stream_bytes(bytes, round);
        stream.write_all(&sent)?;
        stream.read_exact(&mut back)?;
        if back != sent {
            return Err(io::Error::other(format!("round {round} came back changed")));
        }
    }
    Ok(())
}

const LENGTH: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointer.
    let fd = checked(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: `socket` gave a new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: all its fields are numbers, of which zero is one.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

fn checked(returned: i32) -> io::Result<i32> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}
