//! A ring with the events that belong to it, and how it is started, stopped and started again.

use std::os::fd::AsFd as _;

use super::error::FrontendError;
use super::options::Negotiated;
use super::session::Frontend;
use crate::protocol::{ProtocolFeatures, VringAddress};
use crate::queue::{Arena, DriverRing, QueueError, RingKind, RingLayout};
use crate::socket::Event;
use crate::virtio::feature;

/// A ring of ours.
#[derive(Debug)]
pub(crate) struct Ring {
    /// The ring.
    pub driver: DriverRing,
    /// Notifies the backend of new requests.
    pub kick: Event,
    /// Notifies us of requests that are done.
    pub call: Event,
    /// Notifies us that the backend can't work with the ring.
    pub err: Event,
}

impl Negotiated {
    /// The layout that rings of this size have by what was negotiated.
    pub(crate) const fn ring_layout(&self, size: u16) -> RingLayout {
        let kind = if self.has(feature::RING_PACKED) { RingKind::Packed } else { RingKind::Split };
        let (event_idx, indirect) = (self.has(feature::RING_EVENT_IDX), self.has(feature::RING_INDIRECT_DESC));
        RingLayout { kind, size, event_idx, indirect }
    }
}

impl Ring {
    /// Lays out a ring with new events.
    ///
    /// # Errors
    /// If memory has no room for it, or the process has no descriptors left.
    pub(crate) fn create(index: u32, layout: RingLayout, arena: &mut Arena) -> Result<Self, QueueError> {
        let driver = DriverRing::create(index, layout, arena)?;
        let event = || Event::new().map_err(|_| QueueError::NoEvents { ring: index });
        Ok(Self { driver, kick: event()?, call: event()?, err: event()? })
    }

    /// Which ring it is.
    pub(super) const fn index(&self) -> u32 {
        self.driver.index()
    }
}

impl Frontend {
    /// Lays out a ring in memory that is shared already, and starts it.
    ///
    /// # Errors
    /// If memory has no room for it, or the backend refuses one of the messages.
    pub(crate) fn set_up_ring(
        &mut self,
        index: u32,
        layout: RingLayout,
        arena: &mut Arena,
    ) -> Result<Ring, FrontendError> {
        let ring = Ring::create(index, layout, arena).map_err(|what| self.queue_error(what))?;
        self.start_ring(&ring)?;
        Ok(ring)
    }

    /// Starts a ring at its current position, on a connection that does not have it yet: size, addresses, base,
    /// events, enabled. The backend is kicked once, as it may have missed what was published before.
    ///
    /// # Errors
    /// If the backend refuses one of the messages.
    pub(super) fn start_ring(&mut self, ring: &Ring) -> Result<(), FrontendError> {
        let in_band = self.has_protocol(ProtocolFeatures::INBAND_NOTIFICATIONS);
        let event = |event| (!in_band).then_some(event);
        let Ring { driver, kick, call, err } = ring;
        let (index, size) = (driver.index(), driver.layout().size);
        self.batched(|this| {
            this.set_vring_num(index, size.into())?;
            this.set_vring_addr(&this.ring_address(driver))?;
            this.set_vring_base(index, driver.base())?;
            this.set_vring_call(index, event(call.as_fd()))?;
            this.set_vring_err(index, event(err.as_fd()))?;
            this.set_vring_kick(index, event(kick.as_fd()))?;
            if this.rings_are_enabled_by_message() {
                this.set_vring_enable(index, true)?;
            }
            Ok(())
        })?;
        self.kick_ring(ring)
    }

    /// Notifies the backend of new requests: by the ring's event, or by message if that was negotiated.
    ///
    /// # Errors
    /// If it cannot be notified.
    pub(crate) fn kick_ring(&mut self, ring: &Ring) -> Result<(), FrontendError> {
        if self.has_protocol(ProtocolFeatures::INBAND_NOTIFICATIONS) {
            return self.vring_kick(ring.index());
        }
        ring.kick.signal().map_err(|source| self.system("kicking a ring", source))
    }

    /// Stops a ring and returns the backend's position in it.
    ///
    /// # Errors
    /// If the backend does not answer.
    pub(super) fn stop_ring(&mut self, ring: &Ring) -> Result<u32, FrontendError> {
        self.get_vring_base(ring.index())
    }

    /// The place of a ring, in the addresses that were negotiated.
    fn ring_address(&self, driver: &DriverRing) -> VringAddress {
        let address = driver.address();
        if !self.has_protocol(ProtocolFeatures::GPA_ADDRESSES) {
            return address;
        }
        let areas = driver.areas();
        VringAddress {
            descriptor: areas.descriptors.guest_address(),
            available: areas.driver.guest_address(),
            used: areas.device.guest_address(),
            ..address
        }
    }

    pub(super) fn queue_error(&self, what: QueueError) -> FrontendError {
        FrontendError::Queue { socket: self.name().to_owned(), what }
    }
}
