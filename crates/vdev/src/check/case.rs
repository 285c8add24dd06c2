//! A case: one rule, what a backend must have for it to apply, and the function that finds out.

use super::context::Context;
use super::facts::Facts;
use super::outcome::Outcome;
use super::request::Request;
use super::target::Target;
use super::verdict::Level;
use crate::protocol::ProtocolFeatures;
use crate::virtio::DeviceKind;

/// One rule.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Group and name: `features.never-offered-bit`.
    pub id: &'static str,
    /// How binding it is.
    pub level: Level,
    /// The heading that it stands under; in QEMU's `docs/interop/vhost-user.rst` if it names no other document.
    pub section: &'static str,
    /// Why it matters, in a line.
    pub reason: &'static str,
    /// What the backend must have for it to apply.
    pub needs: &'static [Need],
    /// Finds out.
    pub run: fn(&mut Context<'_>) -> Outcome,
}

/// What a backend must have for a case to apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// It offers these protocol features.
    Protocol(ProtocolFeatures),
    /// It offers this virtio feature.
    Feature(u64, &'static str),
    /// It is such a device.
    Kind(DeviceKind),
    /// It is a device that the suite can have requests done by.
    DataPath,
    /// It is a device of a kind that the suite has one harmless request for.
    Request,
    /// It takes writes.
    Writes,
    /// It serves so many queues.
    Queues(u64),
    /// It serves one client after the other.
    ManyClients,
    /// It was started by us.
    Spawned,
    /// Its process can be looked at.
    Process,
    /// It is allowed to be harmed.
    Harm,
}

/// What the user allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Allowed {
    /// The disk's contents may be changed; they are put back.
    pub writes: bool,
    /// The backend may be harmed.
    pub harm: bool,
}

impl Case {
    /// The part of the id before the dot.
    #[cfg(test)]
    pub(super) fn group(&self) -> &'static str {
        self.id.split_once('.').map_or(self.id, |(group, _)| group)
    }

    /// Why it does not apply, if it does not.
    pub(super) fn lacks(
        &self,
        facts: &Facts,
        device: Option<DeviceKind>,
        target: &Target,
        allowed: Allowed,
    ) -> Option<String> {
        self.needs.iter().find_map(|need| need.lack(facts, device, target, allowed))
    }
}

impl Need {
    /// Why the backend does not have it, if it does not.
    pub(super) fn lack(
        self,
        facts: &Facts,
        device: Option<DeviceKind>,
        target: &Target,
        allowed: Allowed,
    ) -> Option<String> {
        match self {
            Self::Protocol(features) if !facts.protocol_features.contains(features) => {
                Some(format!("{} is not offered", features.difference(facts.protocol_features)))
            }
            Self::Feature(bit, name) if facts.features & bit == 0 => Some(format!("{name} is not offered")),
            Self::Kind(kind) if device != Some(kind) => Some(format!("this is not a {} device", kind.name())),
            Self::DataPath if device != Some(DeviceKind::Blk) => {
                Some("only blk devices have a data path that the suite can test".to_owned())
            }
            Self::DataPath if facts.capacity_sectors() < super::disk::SECTORS_NEEDED => {
                Some("the disk is too small".to_owned())
            }
            Self::Request => lacks_request(facts, device, allowed),
            Self::Writes if facts.features & crate::virtio::feature::blk::RO != 0 => {
                Some("the disk is read-only".to_owned())
            }
            Self::Writes if !allowed.writes => Some("writes are not allowed".to_owned()),
            Self::Queues(queues) if facts.queues < queues => Some(format!("the backend has {} queues", facts.queues)),
            Self::ManyClients if facts.ends_with_client => Some("the backend serves only one client".to_owned()),
            Self::Spawned if !target.is_spawned() => Some("the backend was not started with `--spawn`".to_owned()),
            Self::Process if !target.is_spawned() && target.pid().is_none() => {
                Some("the backend's process cannot be inspected".to_owned())
            }
            Self::Harm if !allowed.harm => Some("hostile cases are left out".to_owned()),
            _ => None,
        }
    }
}

/// Why there is no request to have done.
fn lacks_request(facts: &Facts, device: Option<DeviceKind>, allowed: Allowed) -> Option<String> {
    let Some(device) = device else {
        return Some("the kind of device is not known; give it with `--device`".to_owned());
    };
    let Some(request) = Request::of(device, facts) else {
        return Some(format!("the suite has no request that every {device} device serves"));
    };
    let queues = Request::queues(device, facts);
    match () {
        () if u64::from(request.queue) >= queues => Some(format!("the backend has {queues} queues")),
        () if request.goes_out && !allowed.writes => {
            Some("writes are not allowed, and this request leaves the host".to_owned())
        }
        () => None,
    }
}
