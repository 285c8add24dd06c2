//! Moving the backend's own state to another host: through a pipe, bounded in bytes and time.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::pipe::{PipeFlags, pipe_with};

use super::error::FrontendError;
use super::session::Frontend;
use crate::protocol::{
    DeviceStateTransfer, Empty, ProtocolFeatures,
    frontend::{CheckDeviceState, SetDeviceStateFd},
};
use crate::socket::Flow;

/// The most bytes of a backend's state that are taken.
pub(super) const DEVICE_STATE_BYTES_MAX: usize = 64 << 20;

const SAVE: u32 = 0;
#[cfg(test)]
const LOAD: u32 = 1;
const STOPPED: u32 = 0;
/// In the reply: the low byte is an error, or 0.
const ERROR_MASK: u64 = 0xff;
/// In the reply: no descriptor comes with it, ours is used.
const NO_DESCRIPTOR: u64 = 1 << 8;

impl Frontend {
    /// Takes the backend's state, of which all rings must have stopped. `timeout` bounds the whole transfer.
    ///
    /// # Errors
    /// If `DEVICE_STATE` was not negotiated, the backend fails, takes too long, or sends more than
    /// 64 MiB.
    pub fn save_device_state(&mut self, timeout: Duration) -> Result<Vec<u8>, FrontendError> {
        let deadline = Instant::now() + timeout;
        let (read, write) = self.pipe()?;
        let read = self.set_device_state_fd(SAVE, write)?.unwrap_or(read);
        let failed = |what: String| self.state_error("saved", what);
        let read = Flow::new(read).map_err(|error| failed(error.to_string()))?;
        let mut state = Vec::new();
        let mut piece = vec![0; 1 << 16];
        loop {
            match read.read(&mut piece) {
                Ok(0) => break,
                Ok(count) if state.len() + count > DEVICE_STATE_BYTES_MAX => {
                    return Err(failed(format!("more than {DEVICE_STATE_BYTES_MAX} bytes")));
                }
                Ok(count) => state.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    read.wait(PollFlags::IN, deadline).map_err(|error| failed(error.to_string()))?;
                }
                Err(error) => return Err(failed(error.to_string())),
            }
            if Instant::now() >= deadline {
                return Err(failed(format!("it did not end within {timeout:?}")));
            }
        }
        drop(read);
        self.check_device_state()?;
        Ok(state)
    }

    /// Sends the backend the state of another one. `timeout` bounds the whole transfer.
    ///
    /// # Errors
    /// If `DEVICE_STATE` was not negotiated, or the backend does not take it in time.
    #[cfg(test)]
    pub(super) fn load_device_state(&mut self, state: &[u8], timeout: Duration) -> Result<(), FrontendError> {
        let deadline = Instant::now() + timeout;
        let (read, write) = self.pipe()?;
        let write = self.set_device_state_fd(LOAD, read)?.unwrap_or(write);
        let failed = |what: String| self.state_error("loaded", what);
        let write = Flow::new(write).map_err(|error| failed(error.to_string()))?;
        let mut left = state;
        while !left.is_empty() {
            match write.write(left) {
                Ok(count) => left = &left[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    write.wait(PollFlags::OUT, deadline).map_err(|error| failed(error.to_string()))?;
                }
                Err(error) => return Err(failed(error.to_string())),
            }
            if Instant::now() >= deadline {
                return Err(failed(format!("it was not read within {timeout:?}")));
            }
        }
        drop(write);
        self.check_device_state()
    }

    /// `SET_DEVICE_STATE_FD`: offers a pipe's end; the backend may answer with one of its own instead.
    fn set_device_state_fd(&mut self, direction: u32, end: OwnedFd) -> Result<Option<OwnedFd>, FrontendError> {
        const NAME: &str = "SET_DEVICE_STATE_FD";
        self.need(NAME, ProtocolFeatures::DEVICE_STATE, "DEVICE_STATE")?;
        let message = SetDeviceStateFd(DeviceStateTransfer { direction, phase: STOPPED });
        let (reply, mut fds) = self.ask(None, &message, &[end.as_fd()])?;
        // The pipe ends when the backend closes this end, so we must not have it too.
        drop(end);
        if reply & ERROR_MASK != 0 {
            return Err(self.answer_error(NAME, format!("with the error {}", reply & ERROR_MASK)));
        }
        let announced = usize::from(reply & NO_DESCRIPTOR == 0);
        if fds.len() != announced {
            return Err(self.answer_error(NAME, format!("with {} descriptors instead of {announced}", fds.len())));
        }
        Ok(fds.pop())
    }

    /// `CHECK_DEVICE_STATE`: whether the transfer that has just ended went well.
    ///
    /// # Errors
    /// If it did not, or `DEVICE_STATE` was not negotiated.
    pub(super) fn check_device_state(&mut self) -> Result<(), FrontendError> {
        const NAME: &str = "CHECK_DEVICE_STATE";
        self.need(NAME, ProtocolFeatures::DEVICE_STATE, "DEVICE_STATE")?;
        match self.ask_plain(None, &CheckDeviceState(Empty), &[])? {
            0 => Ok(()),
            code => Err(self.answer_error(NAME, format!("with the error {code}"))),
        }
    }

    fn pipe(&self) -> Result<(OwnedFd, OwnedFd), FrontendError> {
        pipe_with(PipeFlags::CLOEXEC).map_err(|source| self.system("making a pipe", source.into()))
    }

    fn state_error(&self, moved: &'static str, what: String) -> FrontendError {
        FrontendError::DeviceState { socket: self.name().to_owned(), moved, what }
    }
}
