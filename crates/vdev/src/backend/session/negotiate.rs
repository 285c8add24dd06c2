//! What the two sides agree on: features, protocol features, status; and what of it a message needs.

use super::messages::{Answer, Session};
use crate::backend::device::Device;
use crate::backend::fault::Offer;
use crate::backend::refusal::Refusal;
use crate::protocol::{FrontendRequest, ProtocolFeatures as P};
use crate::virtio::feature;

/// Virtio features of every device that is served here.
const FEATURES: u64 = feature::VERSION_1
    | feature::RING_INDIRECT_DESC
    | feature::RING_EVENT_IDX
    | feature::RING_PACKED
    | feature::PROTOCOL_FEATURES
    | feature::LOG_ALL;

/// Protocol features of every device that is served here.
const PROTOCOL_FEATURES: &[P] = &[
    P::MQ,
    P::LOG_SHMFD,
    P::REPLY_ACK,
    P::BACKEND_REQ,
    P::CONFIG,
    P::INFLIGHT_SHMFD,
    P::RESET_DEVICE,
    P::INBAND_NOTIFICATIONS,
    P::CONFIGURE_MEM_SLOTS,
    P::STATUS,
    P::GPA_ADDRESSES,
];

/// What a device offers.
pub(super) fn offer(device: &dyn Device) -> Offer {
    let own = PROTOCOL_FEATURES.iter().fold(P::empty(), |all, feature| all | *feature);
    Offer {
        features: FEATURES | device.features(),
        protocol_features: own | device.protocol_features(),
        queues: device.queues().into(),
    }
}

/// The protocol feature without which a request may not be sent.
const fn needed(request: FrontendRequest) -> Option<P> {
    use FrontendRequest as R;
    Some(match request {
        R::GetQueueNum => P::MQ,
        R::SetLogBase => P::LOG_SHMFD,
        R::SendRarp => P::RARP,
        R::NetSetMtu => P::NET_MTU,
        R::SetBackendReqFd => P::BACKEND_REQ,
        R::SetVringEndian => P::CROSS_ENDIAN,
        R::CreateCryptoSession | R::CloseCryptoSession => P::CRYPTO_SESSION,
        R::PostcopyAdvise | R::PostcopyListen | R::PostcopyEnd => P::PAGEFAULT,
        R::GetConfig | R::SetConfig => P::CONFIG,
        R::GetInflightFd | R::SetInflightFd => P::INFLIGHT_SHMFD,
        R::ResetDevice => P::RESET_DEVICE,
        R::VringKick => P::INBAND_NOTIFICATIONS,
        R::GetMaxMemSlots | R::AddMemReg | R::RemMemReg => P::CONFIGURE_MEM_SLOTS,
        R::SetStatus | R::GetStatus => P::STATUS,
        R::GetSharedObject => P::SHARED_OBJECT,
        R::SetDeviceStateFd | R::CheckDeviceState => P::DEVICE_STATE,
        R::GetShmemConfig => P::SHMEM,
        R::GetVringBaseSkipDrain => P::GET_VRING_BASE_SKIP_DRAIN,
        _ => return None,
    })
}

const STATUS_RESET: u64 = 0;

impl Session<'_> {
    /// Refuses a request whose feature was not negotiated.
    pub(super) fn check_negotiated(&self, request: FrontendRequest) -> Result<(), Refusal> {
        if let Some(feature) = needed(request)
            && !self.has(feature)
        {
            return Err(Refusal::NotNegotiated(feature));
        }
        let protocol_features = "PROTOCOL_FEATURES";
        match request {
            FrontendRequest::GetProtocolFeatures | FrontendRequest::SetProtocolFeatures
                if self.offer.features & feature::PROTOCOL_FEATURES == 0 =>
            {
                Err(Refusal::FeatureNotNegotiated(protocol_features))
            }
            // QEMU's vhost-user-net enables its rings before it sets features, so only a frontend that has decided
            // against it is refused.
            FrontendRequest::SetVringEnable
                if self.features.is_some_and(|features| features & feature::PROTOCOL_FEATURES == 0) =>
            {
                Err(Refusal::FeatureNotNegotiated(protocol_features))
            }
            FrontendRequest::IotlbMsg => Err(Refusal::FeatureNotNegotiated("ACCESS_PLATFORM")),
            FrontendRequest::GpuSetSocket => Err(Refusal::OfNoUse),
            _ => Ok(()),
        }
    }

    pub(super) const fn has(&self, feature: P) -> bool {
        self.protocol_features.contains(feature)
    }

    /// The features that count, before and after `SET_FEATURES`.
    pub(super) fn features(&self) -> u64 {
        self.features.unwrap_or(0)
    }

    pub(super) fn set_features(&mut self, features: u64) -> Result<Answer, Refusal> {
        let never = features & !self.offer.features;
        if never != 0 {
            return Err(Refusal::NotOffered(never));
        }
        let changed = self.features() ^ features;
        if let Some(ring) = self.running().next() {
            // A migration begins and ends while rings run; nothing else may change under them.
            if changed & !feature::LOG_ALL != 0 {
                return Err(Refusal::Running { ring });
            }
        } else if changed & !feature::LOG_ALL != 0 {
            self.workers.clear();
        }
        self.features = Some(features);
        self.update_logs()?;
        Ok(Answer::Done)
    }

    pub(super) fn set_protocol_features(&mut self, bits: u64) -> Result<Answer, Refusal> {
        let features = P::from_bits(bits);
        let never = features.difference(self.offer.protocol_features);
        if never != P::empty() {
            return Err(Refusal::NotOffered(never.bits()));
        }
        let needs = P::BACKEND_REQ | P::REPLY_ACK;
        if features.contains(P::INBAND_NOTIFICATIONS) && !features.contains(needs) {
            let needs = needs.difference(features);
            return Err(Refusal::Needs { feature: P::INBAND_NOTIFICATIONS, needs });
        }
        if let (true, Some(ring)) = (features != self.protocol_features, self.running().next()) {
            return Err(Refusal::Running { ring });
        }
        self.protocol_features = features;
        Ok(Answer::Done)
    }

    pub(super) fn set_status(&mut self, status: u64) -> Result<Answer, Refusal> {
        let Ok(byte) = u8::try_from(status) else { return Err(Refusal::Value { field: "status", value: status }) };
        if status == STATUS_RESET {
            self.reset_device()?;
        }
        self.status = byte;
        Ok(Answer::Done)
    }

    /// Stops all rings, and forgets all that a driver has set up. Memory, descriptors and what was negotiated between
    /// the two processes stay.
    pub(super) fn reset_device(&mut self) -> Result<Answer, Refusal> {
        for ring in 0..self.device.queues() {
            self.stop(ring)?;
            self.rings[usize::from(ring)].reset();
        }
        self.workers.clear();
        self.features = None;
        self.status = 0;
        self.device.reset();
        Ok(Answer::Done)
    }
}
