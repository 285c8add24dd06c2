//! A TAP device of the host: frames in and out of a descriptor.
#![expect(unsafe_code, reason = "the one ioctl that names a TAP device has no safe wrapper")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;

use super::card::FRAME_BYTES_MAX;

/// A TAP device.
#[derive(Debug)]
pub(super) struct Tap {
    file: File,
}

impl Tap {
    /// Opens the TAP device of this name; if it does not exist, it is created, and removed when this is dropped.
    ///
    /// # Errors
    /// If the name is not valid, or the user may not.
    pub(super) fn open(name: &str) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        // SAFETY: all zeros are a value of this plain struct.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let room = request.ifr_name.len() - 1;
        if name.is_empty() || name.len() > room || !name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/') {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("`{name}` is not a valid name of a network device"),
            ));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI;
        request.ifr_ifru.ifru_flags = flags.try_into().expect("both are small");
        // SAFETY: the descriptor is open and the request is a whole `ifreq` with a name that ends.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(Self { file }) }
    }

    /// The same device under another descriptor.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()? })
    }

    /// Sends a frame to the host.
    ///
    /// # Errors
    /// If the device takes it not.
    pub(super) fn write(&self, frame: &[u8]) -> io::Result<()> {
        (&self.file).write(frame).map(drop)
    }

    /// The next frame of the host's. Returns whether there was one.
    ///
    /// # Errors
    /// If the device does not exist any more.
    pub(super) fn read(&self, frame: &mut Vec<u8>) -> io::Result<bool> {
        frame.resize(FRAME_BYTES_MAX, 0);
        let read = loop {
            match (&self.file).read(frame) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        match read {
            Ok(bytes) => {
                frame.truncate(bytes);
                Ok(bytes > 0)
            }
            Err(error) => {
                frame.clear();
                if error.kind() == io::ErrorKind::WouldBlock { Ok(false) } else { Err(error) }
            }
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
