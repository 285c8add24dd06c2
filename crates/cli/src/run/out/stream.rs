//! Writes a copied file to a device, a FIFO or kiln's own stdout while it arrives.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use kiln_archive::{EntryType, Members};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::arriving::{Arriving, Piece};
use super::budget::Budget;
use super::target::{Stream, descriptor_path};
use super::unpack::{BUFFER_BYTES, invalid};

/// How long a FIFO may be without a reader.
const READER_DEADLINE: Duration = Duration::from_secs(30);
const READER_POLL: Duration = Duration::from_millis(20);
const ZEROS: [u8; 4096] = [0; 4096];

/// Writes the one file of an archive. Holes are written as zeros, and count as bytes.
pub fn write(pieces: mpsc::Receiver<Piece>, stream: &Stream, budget: &mut Budget) -> io::Result<()> {
    let mut members = Members::new(Arriving::new(pieces, budget));
    let member = members.next().map_err(invalid)?;
    let member = member.ok_or_else(|| io::Error::other("the archive from the guest is empty"))?;
    if member.kind != EntryType::Regular {
        let what = if member.kind == EntryType::Directory { "a folder" } else { "a special file" };
        return Err(io::Error::other(format!("only a file can be written to {stream}, not {what}")));
    }
    let mut output = start(stream)?;
    let (mut buffer, mut position) = (vec![0; BUFFER_BYTES], 0);
    while let Some(data) = members.read(&mut buffer).map_err(invalid)? {
        zeros(&mut output, members.input().budget, data.offset - position)?;
        output.write_all(&buffer[..data.bytes])?;
        position = data.offset + data.bytes as u64;
    }
    let length = members.length().map_err(invalid)?;
    zeros(&mut output, members.input().budget, length.saturating_sub(position))?;
    if members.next().map_err(invalid)?.is_some() {
        return Err(io::Error::other(format!(
            "only one file can be written to {stream}, but more than one was copied"
        )));
    }
    Ok(())
}

fn zeros(output: &mut File, budget: &mut Budget, mut count: u64) -> io::Result<()> {
    while count > 0 {
        let some = ZEROS.len().min(usize::try_from(count).unwrap_or(usize::MAX));
        budget.bytes(some as u64)?;
        output.write_all(&ZEROS[..some])?;
        count -= some as u64;
    }
    Ok(())
}

fn start(stream: &Stream) -> io::Result<File> {
    let descriptor = match stream {
        Stream::Stdout => rustix::io::dup(io::stdout())?,
        Stream::Stderr => rustix::io::dup(io::stderr())?,
        Stream::Node(_, handle) => open_node(stream, handle)?,
    };
    Ok(File::from(descriptor))
}

/// Opens a device or FIFO without blocking in the kernel, where the wait could not be cancelled.
fn open_node(stream: &Stream, handle: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let start = Instant::now();
    let descriptor = loop {
        match open(descriptor_path(handle), flags, Mode::empty()) {
            Err(Errno::NXIO) if start.elapsed() < READER_DEADLINE => sleep(READER_POLL),
            Err(Errno::NXIO) => {
                return Err(io::Error::other(format!(
                    "no process opened {stream} for reading within {READER_DEADLINE:?}"
                )));
            }
            opened => break opened?,
        }
    };
    // From here on, writes wait for a slow reader.
    fcntl_setfl(&descriptor, fcntl_getfl(&descriptor)? - OFlags::NONBLOCK)?;
    Ok(descriptor)
}
