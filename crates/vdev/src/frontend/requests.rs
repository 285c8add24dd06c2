//! Requests about the device as a whole that are sent at any time of a session.

use std::os::fd::AsFd as _;

use super::error::FrontendError;
use super::session::Frontend;
use crate::protocol::{
    Empty, ProtocolFeatures,
    frontend::{SetBackendReqFd, SetStatus},
};

impl Frontend {
    /// `SET_STATUS`: sends the virtio status byte.
    ///
    /// # Errors
    /// If `STATUS` was not negotiated, or the backend refuses.
    pub(super) fn set_status(&mut self, status: u8) -> Result<(), FrontendError> {
        self.need("SET_STATUS", ProtocolFeatures::STATUS, "STATUS")?;
        self.tell(None, &SetStatus(status.into()), &[])
    }

    /// Sends the backend the other end of a channel for its own requests (`SET_BACKEND_REQ_FD`). Afterwards these are
    /// served by [`serve_backend_requests`](Self::serve_backend_requests), and while replies are awaited.
    ///
    /// # Errors
    /// If `BACKEND_REQ` was not negotiated, or the backend refuses.
    pub fn open_backend_channel(&mut self) -> Result<(), FrontendError> {
        self.need("SET_BACKEND_REQ_FD", ProtocolFeatures::BACKEND_REQ, "BACKEND_REQ")?;
        let name = format!("{} (its own channel)", self.name());
        let theirs = self.backend.open(name, self.options.timeout);
        let theirs = theirs.map_err(|source| self.system("making a channel for the backend", source))?;
        self.tell(None, &SetBackendReqFd(Empty), &[theirs.as_fd()])
    }
}
