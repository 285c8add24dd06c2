//! Which rule a frontend has broken whose message was refused, or whose ring is inconsistent.

use super::outcomes::Outcomes;
use super::rules::Rule;
use crate::backend::Refusal;
use crate::memory::MemoryError;
use crate::protocol::FrontendRequest as R;
use crate::queue::QueueError;

/// A message was refused.
pub(super) fn judge(outcomes: &mut Outcomes, request: u32, refusal: &Refusal) {
    let Some(request) = R::from_number(request) else { return };
    if let Some(rule) = rule_of(request, refusal) {
        outcomes.broken(rule, format!("{request} was refused: {refusal}"));
    }
}

/// A ring is inconsistent.
pub(super) fn judge_ring(outcomes: &mut Outcomes, error: &QueueError) {
    if let Some(rule) = rule_of_ring(error) {
        outcomes.broken(rule, error.to_string());
    }
}

const fn rule_of(request: R, refusal: &Refusal) -> Option<Rule> {
    Some(match (request, refusal) {
        (_, Refusal::NotNegotiated(_) | Refusal::FeatureNotNegotiated(_) | Refusal::OfNoUse) => Rule::Negotiated,
        (R::SetFeatures | R::SetProtocolFeatures, Refusal::Running { .. }) => Rule::FeaturesStay,
        (_, Refusal::Running { .. }) => Rule::RingStays,
        (_, Refusal::NoRing { .. }) => Rule::RingIndex,
        (R::SetVringNum, Refusal::Value { .. }) => Rule::RingSize,
        (R::SetConfig, Refusal::Device(_) | Refusal::Value { .. }) => Rule::ConfigWrite,
        (R::GetInflightFd | R::SetInflightFd, _) => Rule::InflightShape,
        (R::SetBackendReqFd, Refusal::DescriptorKind(_)) => Rule::BackendChannel,
        (R::SetVringKick | R::SetVringCall | R::SetVringErr, Refusal::DescriptorKind(_)) => Rule::RingEvent,
        (R::SetLogBase, Refusal::Memory(_)) => Rule::LogInside,
        (R::SetMemTable | R::AddMemReg | R::RemMemReg, Refusal::Descriptors { .. }) => Rule::Descriptors,
        (_, Refusal::Memory(error)) => match error {
            MemoryError::Overlap { .. } => Rule::MemoryApart,
            MemoryError::TooManyRegions { .. } => Rule::MemorySlots,
            MemoryError::UnknownRegion { .. } => Rule::MemoryKnown,
            _ => Rule::MemoryFits,
        },
        (_, Refusal::Queue(error)) => return rule_of_ring(error),
        _ => return None,
    })
}

const fn rule_of_ring(error: &QueueError) -> Option<Rule> {
    Some(match error {
        QueueError::Size { .. } => Rule::RingSize,
        QueueError::RingOutside { .. } => Rule::RingInside,
        QueueError::Unaligned { .. } => Rule::RingAligned,
        QueueError::Base { .. } => Rule::RingBase,
        QueueError::Cut { .. } => Rule::MemoryStays,
        QueueError::AvailableJump { .. } => Rule::DataIndex,
        QueueError::Descriptor { .. }
        | QueueError::Endless { .. }
        | QueueError::AvailableTwice { .. }
        | QueueError::TooLong { .. } => Rule::DataDescriptors,
        QueueError::ReadableBehindWritable { .. } => Rule::DataOrder,
        QueueError::BufferOutside { .. } => Rule::DataBuffers,
        QueueError::IndirectNotNegotiated { .. }
        | QueueError::IndirectWithNext { .. }
        | QueueError::IndirectNested { .. }
        | QueueError::IndirectSize { .. } => Rule::DataIndirect,
        QueueError::InflightRegion { .. } | QueueError::Inflight { .. } => Rule::InflightShape,
        _ => return None,
    })
}
