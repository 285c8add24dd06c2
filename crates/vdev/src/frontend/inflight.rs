//! The shared memory in which the backend records requests under way, so that they survive it.

use std::os::fd::AsFd as _;

use super::error::FrontendError;
use super::session::Frontend;
use crate::memory::SharedFile;
use crate::protocol::{
    Inflight, ProtocolFeatures,
    frontend::{GetInflightFd, SetInflightFd},
};

/// The largest inflight region that is taken from a backend: 256 queues of 32768 entries need 128 MiB.
pub(super) const INFLIGHT_BYTES_MAX: u64 = 256 << 20;

/// An inflight region: its description and its file.
#[derive(Debug)]
pub struct InflightFile {
    /// What the backend reported of it.
    pub description: Inflight,
    /// Its file.
    pub file: SharedFile,
}

impl Frontend {
    /// `GET_INFLIGHT_FD`: a new region for so many queues. The session keeps it for the next connection; it must be given
    /// back with [`set_inflight`](Self::set_inflight) before rings are started.
    ///
    /// # Errors
    /// If `INFLIGHT_SHMFD` was not negotiated, or what comes is no such region.
    pub(super) fn get_inflight(&mut self, queues: u16, queue_size: u16) -> Result<&InflightFile, FrontendError> {
        const NAME: &str = "GET_INFLIGHT_FD";
        self.need(NAME, ProtocolFeatures::INFLIGHT_SHMFD, "INFLIGHT_SHMFD")?;
        let wanted = Inflight { mmap_size: 0, mmap_offset: 0, num_queues: queues, queue_size };
        let (description, mut fds) = self.ask(None, &GetInflightFd(wanted), &[])?;
        let (Some(fd), true) = (fds.pop(), fds.is_empty()) else {
            return Err(self.answer_error(NAME, "it does not have exactly one descriptor".to_owned()));
        };
        let file_bytes = rustix::fs::fstat(&fd).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
        let end = description.mmap_offset.checked_add(description.mmap_size);
        if description.mmap_size == 0 || end.is_none_or(|end| end > file_bytes) {
            let what = format!("{} bytes of a file of {file_bytes}", description.mmap_size);
            return Err(self.answer_error(NAME, what));
        }
        if description.mmap_size > INFLIGHT_BYTES_MAX {
            return Err(self.answer_error(NAME, format!("{} bytes are too many", description.mmap_size)));
        }
        if description.num_queues != queues || description.queue_size != queue_size {
            let (told, size) = (description.num_queues, description.queue_size);
            let what = format!("{told} queues of {size} entries instead of {queues} of {queue_size}");
            return Err(self.answer_error(NAME, what));
        }
        Ok(self.inflight.insert(InflightFile { description, file: SharedFile::from_peer(fd) }))
    }

    /// `SET_INFLIGHT_FD`: hands the region that the session keeps to the backend, with all that it records.
    ///
    /// # Errors
    /// If there is no region, or the backend refuses it.
    pub(super) fn set_inflight(&mut self) -> Result<(), FrontendError> {
        self.need("SET_INFLIGHT_FD", ProtocolFeatures::INFLIGHT_SHMFD, "INFLIGHT_SHMFD")?;
        let Some(inflight) = self.inflight.take() else {
            return self.after(false, "SET_INFLIGHT_FD", "GET_INFLIGHT_FD");
        };
        let told = self.tell(None, &SetInflightFd(inflight.description), &[inflight.file.as_fd()]);
        self.inflight = Some(inflight);
        told
    }

    /// The region that the session keeps.
    pub const fn inflight(&self) -> Option<&InflightFile> {
        self.inflight.as_ref()
    }
}
