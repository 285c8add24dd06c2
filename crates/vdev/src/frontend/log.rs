//! Which pages of guest memory the backend writes while a guest moves.

use std::os::fd::{AsFd as _, BorrowedFd};

use super::error::FrontendError;
use super::session::Frontend;
use crate::memory::DirtyLog;
use crate::protocol::{Log, Message as _, Payload as _, ProtocolFeatures, frontend::SetLogBase};
use crate::virtio::feature;

impl Frontend {
    /// Starts logging: a new log for guest memory up to `guest_end`, sent to the backend, and `VHOST_F_LOG_ALL`
    /// acknowledged. Rings log their own writes only if [`set_vring_addr`](Self::set_vring_addr) sets that.
    ///
    /// # Errors
    /// If `LOG_SHMFD` or `VHOST_F_LOG_ALL` is missing, or the backend refuses.
    pub fn start_log(&mut self, guest_end: u64) -> Result<DirtyLog, FrontendError> {
        self.need_features("SET_LOG_BASE")?;
        let (log, description, file) = DirtyLog::create(guest_end)
            .map_err(|source| FrontendError::Memory { socket: self.name().to_owned(), source })?;
        self.set_log_base(&description, file.as_fd())?;
        self.set_features(self.said.features.unwrap_or(0) | feature::LOG_ALL)?;
        Ok(log)
    }

    /// `SET_LOG_BASE`: the log in which the backend marks the pages that it writes. Its reply is a number or nothing
    /// at all: backends read the specification either way.
    ///
    /// # Errors
    /// If `LOG_SHMFD` was not negotiated, or the backend answers an error.
    pub(super) fn set_log_base(&mut self, log: &Log, file: BorrowedFd<'_>) -> Result<(), FrontendError> {
        const NAME: &str = "SET_LOG_BASE";
        self.need(NAME, ProtocolFeatures::LOG_SHMFD, "LOG_SHMFD")?;
        self.post(None, &SetLogBase(*log), &[file])?;
        self.settle()?;
        self.wait_for_answer(SetLogBase::REQUEST, None)?;
        let reply = self.channel.receive()?;
        if reply.header.request != SetLogBase::REQUEST.number() || !reply.header.flags.is_reply() {
            return Err(self.answer_error(NAME, format!("with message {}", reply.header.request)));
        }
        match (reply.payload.as_slice(), u64::decode(&reply.payload)) {
            ([], _) | (_, Ok(0)) => Ok(()),
            (_, Ok(code)) => Err(self.answer_error(NAME, format!("with the error {code}"))),
            (_, Err(error)) => Err(self.answer_error(NAME, error.to_string())),
        }
    }
}
