//! What a descriptor is, as far as the kernel shows it to its holder.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

/// What a descriptor is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Descriptor {
    /// An eventfd: kick, call, err.
    Eventfd,
    /// A file in memory without a name: guest memory, logs, inflight regions.
    Memfd {
        /// Its size.
        bytes: u64,
    },
    /// Any other file.
    File {
        /// Its size.
        bytes: u64,
    },
    /// A socket.
    Socket,
    /// A pipe.
    Pipe,
    /// A device.
    Device,
    /// A userfaultfd.
    Userfaultfd,
    /// Anything else.
    #[serde(other)]
    Other,
}

impl Descriptor {
    /// Looks at a descriptor.
    pub(super) fn of(fd: impl AsFd) -> Self {
        let fd = fd.as_fd();
        let Ok(stat) = rustix::fs::fstat(fd) else { return Self::Other };
        let bytes = u64::try_from(stat.st_size).unwrap_or(0);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile if target(fd).starts_with("/memfd:") => Self::Memfd { bytes },
            FileType::RegularFile => Self::File { bytes },
            FileType::Socket => Self::Socket,
            FileType::Fifo => Self::Pipe,
            FileType::CharacterDevice | FileType::BlockDevice => Self::Device,
            _ => match target(fd).as_str() {
                "anon_inode:[eventfd]" => Self::Eventfd,
                "anon_inode:[userfaultfd]" => Self::Userfaultfd,
                _ => Self::Other,
            },
        }
    }

    /// A word or two for people.
    pub fn words(&self) -> String {
        match self {
            Self::Eventfd => "eventfd".into(),
            Self::Memfd { bytes } => format!("memfd of {bytes} bytes"),
            Self::File { bytes } => format!("file of {bytes} bytes"),
            Self::Socket => "socket".into(),
            Self::Pipe => "pipe".into(),
            Self::Device => "device".into(),
            Self::Userfaultfd => "userfaultfd".into(),
            Self::Other => "something else".into(),
        }
    }
}

/// The target of the descriptor in `/proc`; nothing without `/proc`.
fn target(fd: BorrowedFd<'_>) -> String {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.map(|target| target.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::memory::SharedFile;
    use crate::socket::Event;

    #[test]
    fn descriptors_are_told_apart() {
        assert_eq!(Descriptor::of(Event::new().expect("an eventfd")), Descriptor::Eventfd);
        assert_eq!(Descriptor::of(SharedFile::new(8192).expect("memory")), Descriptor::Memfd { bytes: 8192 });
        assert_eq!(Descriptor::of(UnixStream::pair().expect("a pair").0), Descriptor::Socket);
        assert_eq!(Descriptor::of(std::io::pipe().expect("a pipe").0), Descriptor::Pipe);
        assert_eq!(Descriptor::of(std::fs::File::open("/dev/null").expect("is there")), Descriptor::Device);
        assert_eq!(Descriptor::of(std::fs::File::open("/").expect("is there")), Descriptor::Other);
        let file = tempfile::tempfile().expect("a file");
        file.set_len(5).expect("can grow");
        assert_eq!(Descriptor::of(file), Descriptor::File { bytes: 5 });
    }
}
