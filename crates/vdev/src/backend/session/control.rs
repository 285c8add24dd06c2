//! The device beside its rings: configuration, its own channel, its state, and what only a network card has.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::event::PollFlags;
use rustix::net::{AddressFamily, SocketType, sockopt};

use super::messages::{Answer, DONE, REFUSED, Session};
use crate::backend::device::{ConfigWrite, STATE_BYTES_MAX};
use crate::backend::notify::BackendChannel;
use crate::backend::refusal::Refusal;
use crate::protocol::{Config, DeviceStateTransfer, ProtocolFeatures as P};
use crate::socket::Flow;

/// In the answer to `SET_DEVICE_STATE_FD`: no descriptor comes with it.
const NO_DESCRIPTOR: u64 = 1 << 8;
const SAVE: u32 = 0;
const LOAD: u32 = 1;
const STOPPED: u32 = 0;
const MTU_MAX: u64 = 0xffff;

impl Session<'_> {
    /// The part of the configuration that was requested; or nothing, which means an error. Bytes beyond what the
    /// device has, and within the 256 bytes that there may be, are zeros.
    pub(super) fn get_config(&mut self, wanted: &Config) -> Answer {
        let mut config = self.device.config();
        if let Some(faults) = &self.options.faults {
            faults.config(&mut config);
        }
        config.resize(config.len().max(Config::BYTES_MAX), 0);
        let part = usize::try_from(wanted.offset).ok().and_then(|offset| {
            let end = offset.checked_add(wanted.bytes.len())?;
            config.get(offset..end).filter(|part| !part.is_empty())
        });
        match part {
            None => Answer::Reply(Vec::new(), None),
            Some(part) => Answer::of(&Config { offset: wanted.offset, flags: wanted.flags, bytes: part.to_vec() }),
        }
    }

    pub(super) fn set_config(&mut self, config: &Config) -> Result<Answer, Refusal> {
        if config.flags & !Config::MIGRATION != 0 {
            return Err(Refusal::Value { field: "flags", value: config.flags.into() });
        }
        if config.bytes.is_empty() {
            return Err(Refusal::Value { field: "size", value: 0 });
        }
        let write = ConfigWrite {
            offset: usize::try_from(config.offset).unwrap_or(usize::MAX),
            bytes: &config.bytes,
            migration: config.flags & Config::MIGRATION != 0,
            features: self.features(),
        };
        self.device.set_config(&write)?;
        Ok(Answer::Done)
    }

    pub(super) fn tell_config_changed(&mut self) {
        if let (true, Some(channel)) = (self.has(P::CONFIG), &self.backend_channel)
            && channel.config_changed().is_err()
        {
            // A device that does not take it has no use for the channel.
            self.backend_channel = None;
        }
    }

    pub(super) fn set_mtu(&mut self, mtu: u64) -> Result<Answer, Refusal> {
        if mtu > MTU_MAX {
            return Err(Refusal::Value { field: "mtu", value: mtu });
        }
        self.device.set_mtu(mtu)?;
        Ok(Answer::Done)
    }

    pub(super) fn send_rarp(&mut self, address: u64) -> Result<Answer, Refusal> {
        let [a, b, c, d, e, f, 0, 0] = address.to_ne_bytes() else {
            return Err(Refusal::Value { field: "mac", value: address });
        };
        self.device.announce([a, b, c, d, e, f])?;
        Ok(Answer::Done)
    }

    pub(super) fn set_backend_req_fd(&mut self, fd: Option<OwnedFd>) -> Result<Answer, Refusal> {
        let Some(fd) = fd else { return Err(Refusal::Descriptors { found: 0, expected: 1 }) };
        let is_stream = sockopt::socket_type(&fd).is_ok_and(|kind| kind == SocketType::STREAM)
            && sockopt::socket_domain(&fd).is_ok_and(|domain| domain == AddressFamily::UNIX);
        if !is_stream {
            return Err(Refusal::DescriptorKind("Unix stream socket"));
        }
        let name = format!("{} (backend channel)", self.channel.name());
        let (timeout, acknowledged) = (self.options.message_timeout, self.has(P::REPLY_ACK));
        let channel = BackendChannel::new(UnixStream::from(fd), name, timeout, acknowledged);
        self.backend_channel = Some(Arc::new(channel));
        self.update_tellers()?;
        Ok(Answer::Done)
    }

    /// Takes or gives the device's own state through a descriptor of the frontend's.
    pub(super) fn set_device_state_fd(&mut self, transfer: DeviceStateTransfer, fd: Option<OwnedFd>) -> Answer {
        let is_suspended = self.running().next().is_none();
        let begun = match (transfer.direction, fd) {
            _ if !is_suspended || transfer.phase != STOPPED => false,
            (SAVE, Some(fd)) => {
                self.state_is_good = save(fd, &self.device.save_state()).is_ok();
                true
            }
            (LOAD, Some(fd)) => match Flow::new(fd) {
                Ok(flow) => {
                    self.incoming_state = Some(flow);
                    true
                }
                Err(_) => false,
            },
            _ => false,
        };
        Answer::of(&(if begun { DONE } else { REFUSED } | NO_DESCRIPTOR))
    }

    /// Whether the state has arrived, on this side or the other.
    pub(super) fn check_device_state(&mut self) -> Answer {
        let good = match self.incoming_state.take() {
            None => std::mem::replace(&mut self.state_is_good, true),
            Some(flow) => {
                load(&flow, self.options.message_timeout).is_ok_and(|state| self.device.load_state(&state).is_ok())
            }
        };
        Answer::of(&if good { DONE } else { REFUSED })
    }
}

/// Writes a state, which is smaller than what any pipe holds, and never blocks.
fn save(fd: OwnedFd, state: &[u8]) -> io::Result<()> {
    if state.is_empty() {
        return Ok(());
    }
    if Flow::new(fd)?.write(state)? == state.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Reads a state to its end, for no longer than this and no more than a state may have.
fn load(from: &Flow, timeout: std::time::Duration) -> io::Result<Vec<u8>> {
    let deadline = std::time::Instant::now() + timeout;
    let mut state = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(state),
            Ok(read) => state.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => from.wait(PollFlags::IN, deadline)?,
            Err(error) => return Err(error),
        }
        if state.len() > STATE_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
    }
}
