//! Who owns the session, what each side can do, and what of it is used.

use super::error::FrontendError;
use super::options::{Negotiated, Wish};
use super::session::Frontend;
use crate::protocol::{
    Config, Empty, ProtocolFeatures,
    frontend::{
        GetConfig, GetFeatures, GetMaxMemSlots, GetProtocolFeatures, GetQueueNum, SetFeatures, SetOwner,
        SetProtocolFeatures,
    },
};
use crate::virtio::feature;

impl Frontend {
    /// Everything that comes before memory and rings: owner, features, protocol features, the number of queues and of
    /// memory slots, the backend's own channel, the configuration, and the features that are acknowledged.
    ///
    /// # Errors
    /// If the backend has ended, sends a wrong reply, refuses, or lacks what the wish requires.
    pub fn handshake(&mut self, wish: &Wish) -> Result<Negotiated, FrontendError> {
        self.wish = wish.clone();
        let mut negotiated = Negotiated::default();
        self.set_owner()?;
        negotiated.offered_features = self.get_features()?;
        self.require(wish, negotiated.offered_features)?;
        negotiated.features = (wish.features | wish.required_features) & negotiated.offered_features;
        if negotiated.features & feature::PROTOCOL_FEATURES != 0 {
            negotiated.offered_protocol_features = self.get_protocol_features()?;
            self.require_protocol(wish, negotiated.offered_protocol_features)?;
            negotiated.protocol_features = wish.choose(negotiated.offered_protocol_features);
            self.set_protocol_features(negotiated.protocol_features)?;
        } else {
            self.require_protocol(wish, ProtocolFeatures::empty())?;
        }
        self.batched(|this| this.ask_for_limits(wish, &mut negotiated))?;
        self.negotiated = negotiated.clone();
        Ok(negotiated)
    }

    /// Requests that do not depend on each other: all are sent before the first reply is read.
    fn ask_for_limits(&mut self, wish: &Wish, negotiated: &mut Negotiated) -> Result<(), FrontendError> {
        let protocol = negotiated.protocol_features;
        let config_bytes = wish.config_bytes.filter(|_| protocol.contains(ProtocolFeatures::CONFIG));
        if protocol.contains(ProtocolFeatures::MQ) {
            self.post(None, &GetQueueNum(Empty), &[])?;
        }
        if protocol.contains(ProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            self.post(None, &GetMaxMemSlots(Empty), &[])?;
        }
        if let Some(bytes) = config_bytes {
            self.post(None, &self.config_request(0, bytes)?, &[])?;
        }
        // The channel is sent before its other end is waited on, and features come last: no ring message is before
        // them.
        if protocol.contains(ProtocolFeatures::BACKEND_REQ) {
            self.open_backend_channel()?;
        }
        self.set_features(negotiated.features)?;
        if protocol.contains(ProtocolFeatures::MQ) {
            negotiated.queues = Some(self.collect_plain::<GetQueueNum>(None)?);
        }
        if protocol.contains(ProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            negotiated.memory_slots = Some(self.collect_plain::<GetMaxMemSlots>(None)?);
        }
        if let Some(bytes) = config_bytes {
            let reply = self.collect_plain::<GetConfig>(None)?;
            negotiated.config = Some(self.check_config(0, bytes, reply)?);
        }
        Ok(())
    }

    fn require(&self, wish: &Wish, offered: u64) -> Result<(), FrontendError> {
        let missing = wish.required_features & !offered;
        if missing == 0 {
            return Ok(());
        }
        let (socket, request) = (self.name().to_owned(), "SET_FEATURES");
        Err(FrontendError::NotOffered { socket, request, bits: names(missing) })
    }

    fn require_protocol(&self, wish: &Wish, offered: ProtocolFeatures) -> Result<(), FrontendError> {
        let missing = wish.required_protocol_features.difference(offered);
        if missing == ProtocolFeatures::empty() {
            return Ok(());
        }
        let (socket, request) = (self.name().to_owned(), "SET_PROTOCOL_FEATURES");
        Err(FrontendError::NotOffered { socket, request, bits: missing.to_string() })
    }

    /// `SET_OWNER`: this connection owns the session. The first message of all.
    ///
    /// # Errors
    /// If it was sent before, or can't be sent.
    pub(crate) fn set_owner(&mut self) -> Result<(), FrontendError> {
        self.after(!self.said.owner, "SET_OWNER", "RESET_OWNER, if it was sent before")?;
        self.tell(None, &SetOwner(Empty), &[])?;
        self.said.owner = true;
        Ok(())
    }

    /// `GET_FEATURES`: the virtio features that the backend offers.
    ///
    /// # Errors
    /// If the backend does not answer, or not with that.
    pub fn get_features(&mut self) -> Result<u64, FrontendError> {
        let offered = self.ask_plain(None, &GetFeatures(Empty), &[])?;
        self.said.offered = Some(offered);
        Ok(offered)
    }

    /// `SET_FEATURES`: the virtio features that are used, of those that [`get_features`](Self::get_features) returned.
    ///
    /// # Errors
    /// If some were not offered, or the backend refuses.
    pub(crate) fn set_features(&mut self, features: u64) -> Result<(), FrontendError> {
        let Some(offered) = self.said.offered else {
            return self.after(false, "SET_FEATURES", "GET_FEATURES");
        };
        // Logging is switched on and off by this message during a migration.
        let foreign = features & !offered;
        if foreign != 0 {
            let (socket, request) = (self.name().to_owned(), "SET_FEATURES");
            return Err(FrontendError::NotOffered { socket, request, bits: names(foreign) });
        }
        self.tell(None, &SetFeatures(features), &[])?;
        self.said.features = Some(features);
        Ok(())
    }

    /// `GET_PROTOCOL_FEATURES`: the protocol features that the backend offers.
    ///
    /// # Errors
    /// If [`get_features`](Self::get_features) was not called before, or bit 30 is not offered; or if the backend does not reply.
    pub(crate) fn get_protocol_features(&mut self) -> Result<ProtocolFeatures, FrontendError> {
        let there = self.said.offered.is_some_and(|offered| offered & feature::PROTOCOL_FEATURES != 0);
        self.after(there, "GET_PROTOCOL_FEATURES", "GET_FEATURES offered bit 30")?;
        let offered = ProtocolFeatures::from_bits(self.ask_plain(None, &GetProtocolFeatures(Empty), &[])?);
        self.said.protocol_offered = Some(offered);
        Ok(offered)
    }

    /// `SET_PROTOCOL_FEATURES`: those that are used. It is itself not answered, as `REPLY_ACK` begins after it.
    ///
    /// # Errors
    /// If some were not offered, or it can't be sent.
    pub(crate) fn set_protocol_features(&mut self, features: ProtocolFeatures) -> Result<(), FrontendError> {
        let Some(offered) = self.said.protocol_offered else {
            return self.after(false, "SET_PROTOCOL_FEATURES", "GET_PROTOCOL_FEATURES");
        };
        let foreign = features.difference(offered);
        if foreign != ProtocolFeatures::empty() {
            let (socket, request) = (self.name().to_owned(), "SET_PROTOCOL_FEATURES");
            return Err(FrontendError::NotOffered { socket, request, bits: foreign.to_string() });
        }
        self.settle()?;
        self.post(None, &SetProtocolFeatures(features.bits()), &[])?;
        self.said.protocol = features;
        Ok(())
    }

    /// `GET_QUEUE_NUM`: the number of queues of the backend.
    ///
    /// # Errors
    /// If `MQ` was not negotiated, or the backend does not answer.
    pub(crate) fn get_queue_num(&mut self) -> Result<u64, FrontendError> {
        self.need("GET_QUEUE_NUM", ProtocolFeatures::MQ, "MQ")?;
        self.ask_plain(None, &GetQueueNum(Empty), &[])
    }

    /// `GET_CONFIG`: so many bytes of the device's configuration. Fewer are returned if there are no more.
    ///
    /// # Errors
    /// If `CONFIG` was not negotiated, more is requested than [`Config::BYTES_MAX`], or the backend has no
    /// configuration.
    pub fn get_config(&mut self, offset: u32, bytes: u32) -> Result<Vec<u8>, FrontendError> {
        self.need("GET_CONFIG", ProtocolFeatures::CONFIG, "CONFIG")?;
        let request = self.config_request(offset, bytes)?;
        let reply = self.ask_plain(None, &request, &[])?;
        self.check_config(offset, bytes, reply)
    }

    fn config_request(&self, offset: u32, bytes: u32) -> Result<GetConfig, FrontendError> {
        let end = u64::from(offset) + u64::from(bytes);
        self.bound("GET_CONFIG", "bytes", end, Config::BYTES_MAX as u64)?;
        Ok(GetConfig(Config { offset, flags: 0, bytes: vec![0; bytes as usize] }))
    }

    fn check_config(&self, offset: u32, bytes: u32, reply: Config) -> Result<Vec<u8>, FrontendError> {
        if reply.offset != offset || reply.bytes.len() > bytes as usize {
            let found = reply.bytes.len();
            let what = format!("{found} bytes at {} for {bytes} bytes at {offset}", reply.offset);
            return Err(self.answer_error("GET_CONFIG", what));
        }
        Ok(reply.bytes)
    }
}

/// Virtio features by name; those of a device's own by their bit.
pub(super) fn names(bits: u64) -> String {
    feature::names(None, bits).iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
