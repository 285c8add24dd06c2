//! The messages that are about one ring, in the order in which they make sense:
//!
//! ```text
//!   SET_FEATURES ─▶ NUM ─▶ memory ─▶ ADDR ─▶ BASE ─▶ CALL, ERR ─▶ KICK ─▶ ENABLE       GET_VRING_BASE stops it
//! ```

use std::os::fd::BorrowedFd;

use super::error::FrontendError;
use super::session::Frontend;
use crate::protocol::{
    Message, ProtocolFeatures, VringAddress, VringFile, VringState,
    frontend::{
        GetVringBase, SetVringAddr, SetVringBase, SetVringCall, SetVringEnable, SetVringErr, SetVringKick, SetVringNum,
        VringKick,
    },
};

/// Rings that messages with a descriptor can name.
pub(super) const RINGS_MAX: u32 = 256;

/// What was sent of a ring on this connection.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RingSteps {
    size: bool,
    address: bool,
}

impl Frontend {
    /// `SET_VRING_NUM`: how many entries the ring has.
    ///
    /// # Errors
    /// If it comes before `SET_FEATURES`, or the backend refuses.
    pub fn set_vring_num(&mut self, ring: u32, size: u32) -> Result<(), FrontendError> {
        self.need_features("SET_VRING_NUM")?;
        self.check_ring("SET_VRING_NUM", ring)?;
        self.tell(Some(ring), &SetVringNum(VringState { index: ring, num: size }), &[])?;
        self.steps(ring).size = true;
        Ok(())
    }

    /// `SET_VRING_ADDR`: the addresses of the ring.
    ///
    /// # Errors
    /// If it comes before `SET_VRING_NUM` or before there is memory, or the backend refuses.
    pub fn set_vring_addr(&mut self, address: &VringAddress) -> Result<(), FrontendError> {
        let ring = address.index;
        self.check_ring("SET_VRING_ADDR", ring)?;
        self.after(self.said.memory, "SET_VRING_ADDR", "SET_MEM_TABLE or ADD_MEM_REG")?;
        let sized = self.steps(ring).size;
        self.after(sized, "SET_VRING_ADDR", "SET_VRING_NUM")?;
        self.tell(Some(ring), &SetVringAddr(*address), &[])?;
        self.steps(ring).address = true;
        Ok(())
    }

    /// `SET_VRING_BASE`: the position in the ring to begin at. In a packed ring both positions with their wrap
    /// counters, as `GET_VRING_BASE` returns them.
    ///
    /// # Errors
    /// If it comes before `SET_FEATURES`, or the backend refuses.
    pub fn set_vring_base(&mut self, ring: u32, base: u32) -> Result<(), FrontendError> {
        self.need_features("SET_VRING_BASE")?;
        self.check_ring("SET_VRING_BASE", ring)?;
        self.tell(Some(ring), &SetVringBase(VringState { index: ring, num: base }), &[])
    }

    /// `GET_VRING_BASE`: stops the ring and returns its position.
    ///
    /// # Errors
    /// If the backend does not answer, or for another ring.
    pub fn get_vring_base(&mut self, ring: u32) -> Result<u32, FrontendError> {
        self.check_ring("GET_VRING_BASE", ring)?;
        let reply = self.ask_plain(Some(ring), &GetVringBase(VringState { index: ring, num: 0 }), &[])?;
        self.stopped::<GetVringBase>(ring, reply)
    }

    fn stopped<M: Message>(&mut self, ring: u32, reply: VringState) -> Result<u32, FrontendError> {
        if reply.index != ring {
            return Err(self.answer_error(M::REQUEST.name(), format!("for ring {} instead of {ring}", reply.index)));
        }
        Ok(reply.num)
    }

    /// `SET_VRING_KICK`: the event that starts the ring and notifies of new requests; without one the backend polls.
    ///
    /// # Errors
    /// If it comes before `SET_VRING_ADDR`, or the backend refuses.
    pub fn set_vring_kick(&mut self, ring: u32, event: Option<BorrowedFd<'_>>) -> Result<(), FrontendError> {
        let file = self.check_file("SET_VRING_KICK", ring, event.is_some())?;
        let placed = self.steps(ring).address;
        self.after(placed, "SET_VRING_KICK", "SET_VRING_ADDR")?;
        self.tell(Some(ring), &SetVringKick(file), event.as_slice())
    }

    /// `SET_VRING_CALL`: the event that notifies of requests that are done; without one the frontend polls.
    ///
    /// # Errors
    /// If the backend refuses.
    pub fn set_vring_call(&mut self, ring: u32, event: Option<BorrowedFd<'_>>) -> Result<(), FrontendError> {
        let file = self.check_file("SET_VRING_CALL", ring, event.is_some())?;
        self.tell(Some(ring), &SetVringCall(file), event.as_slice())
    }

    /// `SET_VRING_ERR`: the event for a ring that the backend can't work with.
    ///
    /// # Errors
    /// If the backend refuses.
    pub(super) fn set_vring_err(&mut self, ring: u32, event: Option<BorrowedFd<'_>>) -> Result<(), FrontendError> {
        let file = self.check_file("SET_VRING_ERR", ring, event.is_some())?;
        self.tell(Some(ring), &SetVringErr(file), event.as_slice())
    }

    /// `SET_VRING_ENABLE`: whether requests of the ring are done. Without protocol features there is no such message and
    /// rings are enabled from the start.
    ///
    /// # Errors
    /// If virtio feature bit 30 was not acknowledged, or the backend refuses.
    pub fn set_vring_enable(&mut self, ring: u32, enabled: bool) -> Result<(), FrontendError> {
        self.need_features("SET_VRING_ENABLE")?;
        self.check_ring("SET_VRING_ENABLE", ring)?;
        if !self.rings_are_enabled_by_message() {
            let (socket, request) = (self.name().to_owned(), "SET_VRING_ENABLE");
            return Err(FrontendError::NotNegotiated { socket, request, feature: "VHOST_USER_F_PROTOCOL_FEATURES" });
        }
        self.tell(Some(ring), &SetVringEnable(VringState { index: ring, num: enabled.into() }), &[])
    }

    /// `VRING_KICK`: notifies of new requests by message.
    ///
    /// # Errors
    /// If `INBAND_NOTIFICATIONS` was not negotiated, or the backend refuses.
    pub(super) fn vring_kick(&mut self, ring: u32) -> Result<(), FrontendError> {
        self.need("VRING_KICK", ProtocolFeatures::INBAND_NOTIFICATIONS, "INBAND_NOTIFICATIONS")?;
        self.check_ring("VRING_KICK", ring)?;
        self.tell(Some(ring), &VringKick(VringState { index: ring, num: 0 }), &[])
    }

    fn check_ring(&self, request: &'static str, ring: u32) -> Result<(), FrontendError> {
        self.bound(request, "as the last ring", ring.into(), (RINGS_MAX - 1).into())
    }

    fn check_file(&self, request: &'static str, ring: u32, there: bool) -> Result<VringFile, FrontendError> {
        self.need_features(request)?;
        self.check_ring(request, ring)?;
        let index = u8::try_from(ring).expect("was just checked");
        Ok(if there { VringFile::with_descriptor(index) } else { VringFile::polled(index) })
    }

    fn steps(&mut self, ring: u32) -> &mut RingSteps {
        let place = ring as usize;
        if self.said.rings.len() <= place {
            self.said.rings.resize(place + 1, RingSteps::default());
        }
        &mut self.said.rings[place]
    }
}
