//! What is offered, and what becomes of what is taken.

use super::prelude::*;
use crate::virtio::{Unmet, unmet_by_offer, without_control_queue};

const ACK: Need = Need::Protocol(ProtocolFeatures::REPLY_ACK);
const MQ: Need = Need::Protocol(ProtocolFeatures::MQ);
const PROTOCOL: Need = Need::Feature(feature::PROTOCOL_FEATURES, "VHOST_USER_F_PROTOCOL_FEATURES");

cases! {
    "features.version-1" Must [] version_1,
        "VIRTIO 1.2, 6.2 Device Requirements: Reserved Feature Bits" =>
            "\"A device MUST offer VIRTIO_F_VERSION_1\"; without it a modern driver refuses the device";
    "features.protocol-features" Should [] protocol_features,
        "Communication" => "every extension, including acknowledgements, needs VHOST_USER_F_PROTOCOL_FEATURES";
    "features.reply-ack" Should [PROTOCOL] reply_ack,
        "VHOST_USER_PROTOCOL_F_REPLY_ACK" =>
            "without REPLY_ACK a frontend cannot know whether a command succeeded";
    "features.mq" Should [PROTOCOL] mq,
        "Multiple queue support" =>
            "\"Back-ends should always implement the VHOST_USER_PROTOCOL_F_MQ protocol feature\"";
    "features.queue-num" Must [MQ] queue_num,
        "VHOST_USER_GET_QUEUE_NUM" => "a frontend sets up at most as many queues as GET_QUEUE_NUM returns";
    "features.queues-of-device" Should [MQ] queues_of_device,
        "Multiple queue support" => "a device cannot work with fewer queues than VIRTIO requires of its kind";
    "features.defined-protocol-features" Should [PROTOCOL] defined_protocol_features,
        "Protocol features" => "an undefined bit may get a meaning that the backend does not implement";
    "features.protocol-features-stable" Should [PROTOCOL] protocol_features_stable,
        "VHOST_USER_GET_PROTOCOL_FEATURES" => "the offered features do not depend on those that were negotiated";
    "features.same-for-next-client" Should [Need::ManyClients] same_for_next_client,
        "VHOST_USER_GET_FEATURES" => "a frontend that reconnects needs the features that its guest has negotiated";
    "features.none-taken-by-last-client" Must [ACK, Need::ManyClients] none_taken_by_last_client,
        "VHOST_USER_PROTOCOL_F_REPLY_ACK" =>
            "negotiation ends with its session: a reply that the next client did not request is taken for another";
    "features.offered-accepted" Should [ACK] offered_accepted,
        "VIRTIO 1.2, 2.2.2 Device Requirements: Feature Bits" =>
            "\"The device SHOULD accept any valid subset of features the driver accepts\"";
    "features.fewest-accepted" Should [ACK] fewest_accepted,
        "VIRTIO 1.2, 2.2.2 Device Requirements: Feature Bits" =>
            "\"The device SHOULD accept any valid subset of features the driver accepts\"; VERSION_1 alone is a valid \
             subset";
    "features.never-offered-bit" Should [ACK] never_offered_bit,
        "VHOST_USER_SET_FEATURES" =>
            "a guest that uses a feature the device does not have loses data; \"incompatible features\" are an error";
    "features.never-offered-protocol-bit" May [ACK] never_offered_protocol_bit,
        "VHOST_USER_SET_PROTOCOL_FEATURES" =>
            "a frontend that sets a feature that was not offered has a defect, and an error reveals it";
    "features.set-again" Should [ACK] set_again,
        "Migration" => "logging is started and stopped by SET_FEATURES in the middle of a session";
    "features.protocol-subset" Should [ACK] protocol_subset,
        "VHOST_USER_SET_PROTOCOL_FEATURES" => "a frontend negotiates only the offered features that it implements";
    "features.no-protocol-features-taken" Should [PROTOCOL] no_protocol_features_taken,
        "Protocol features" => "extensions are optional for both sides; a frontend may negotiate none";
    "features.without-protocol-features" Must [] without_protocol_features,
        "Communication" =>
            "\"Old vhost-user front-end and back-end implementations continue to work\": bit 30 need not be negotiated";
    "features.inband-alone" Should [Need::Protocol(ProtocolFeatures::INBAND_NOTIFICATIONS)] inband_alone,
        "In-band notifications" =>
            "the backend \"should close the connection\" if it is negotiated without BACKEND_REQ and REPLY_ACK";
    "features.depend-on-offered" Should [PROTOCOL] depend_on_offered,
        "Protocol features" => "a protocol feature that requires another does not work without it";
    "features.requirements" Must [] requirements,
        "VIRTIO 1.2, 2.2.2 Device Requirements: Feature Bits" =>
            "\"The device MUST NOT offer a feature which requires another feature which was not offered\"; a driver \
             may reject the device, or negotiate a feature that does not work";
    "features.control-queue" May [Need::Kind(DeviceKind::Net)] control_queue,
        "VIRTIO 1.2, 5.1.3.1 Feature bit requirements" =>
            "features of the control queue require CTRL_VQ; a VMM that serves this queue may offer the bit itself";
    "features.zero-length-request" Must [Need::Kind(DeviceKind::I2c)] zero_length_request,
        "VIRTIO 1.2, 5.21.6.2 Device Requirements: Device Operation" =>
            "\"A device MUST offer the VIRTIO_I2C_F_ZERO_LENGTH_REQUEST feature\"; without it drivers reject the \
             device";
    "features.config" Should [PROTOCOL, Need::Kind(DeviceKind::Blk)] config,
        "VHOST_USER_GET_CONFIG" => "GET_CONFIG is the only way for a frontend to read the size of a disk";
    "features.enable-before-set" May [ACK] enable_before_set,
        "VHOST_USER_SET_VRING_ENABLE" =>
            "QEMU's vhost-user-net enables rings before SET_FEATURES; a backend that refuses this does not work with \
             it";
}

fn version_1(context: &mut Context<'_>) -> Outcome {
    let offered = context.connect()?.features()?;
    if offered & feature::VERSION_1 != 0 {
        Ok(())
    } else {
        Stop::fail(format!("the features are {offered:#x}, without bit 32"))
    }
}

fn protocol_features(context: &mut Context<'_>) -> Outcome {
    let offered = context.connect()?.features()?;
    if offered & feature::PROTOCOL_FEATURES != 0 {
        Ok(())
    } else {
        Stop::fail(format!("the features are {offered:#x}, without bit 30"))
    }
}

fn offered_protocol_features(context: &mut Context<'_>) -> Outcome<ProtocolFeatures> {
    let mut link = context.connect()?;
    link.features()?;
    Ok(ProtocolFeatures::from_bits(link.call(&GetProtocolFeatures(Empty))?))
}

fn must_offer(context: &mut Context<'_>, wanted: ProtocolFeatures) -> Outcome {
    let offered = offered_protocol_features(context)?;
    if offered.contains(wanted) {
        Ok(())
    } else {
        Stop::fail(format!("{wanted} is not offered; the protocol features are {offered}"))
    }
}

fn reply_ack(context: &mut Context<'_>) -> Outcome {
    must_offer(context, ProtocolFeatures::REPLY_ACK)
}

fn mq(context: &mut Context<'_>) -> Outcome {
    must_offer(context, ProtocolFeatures::MQ)
}

fn config(context: &mut Context<'_>) -> Outcome {
    must_offer(context, ProtocolFeatures::CONFIG)
}

fn queue_num(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open()?;
    match link.call(&GetQueueNum(Empty))? {
        0 => Stop::fail("GET_QUEUE_NUM returned 0"),
        // In the messages with its descriptors, the index of a ring has 8 bits.
        queues @ 1..=256 => {
            link.note(format!("the backend has {queues} queues"));
            Ok(())
        }
        queues => Stop::fail(format!("GET_QUEUE_NUM returned {queues}, but SET_VRING_KICK has 8 bits for the index")),
    }
}

fn queues_of_device(context: &mut Context<'_>) -> Outcome {
    let Some(device) = context.device else {
        return Stop::skip("the kind of device is not known; give it with `--device`");
    };
    let least = match device {
        // The event queue is the VMM's own there.
        DeviceKind::Vsock => 2,
        _ => device.queues_default() as u64,
    };
    let queues = context.open()?.call(&GetQueueNum(Empty))?;
    if queues >= least {
        Ok(())
    } else {
        Stop::fail(format!("GET_QUEUE_NUM returned {queues}, but a {} device has at least {least}", device.name()))
    }
}

fn defined_protocol_features(context: &mut Context<'_>) -> Outcome {
    let offered = offered_protocol_features(context)?;
    match offered.undefined() {
        0 => Ok(()),
        bits => Stop::fail(format!("the protocol features have the undefined bits {bits:#x}")),
    }
}

fn protocol_features_stable(context: &mut Context<'_>) -> Outcome {
    let mut link = context.connect()?;
    link.features()?;
    let first = link.call(&GetProtocolFeatures(Empty))?;
    link.send(&SetProtocolFeatures(first & USUAL.bits()), &[])?;
    let second = link.call(&GetProtocolFeatures(Empty))?;
    if first == second {
        Ok(())
    } else {
        Stop::fail(format!("GET_PROTOCOL_FEATURES returned {first:#x}, then {second:#x}"))
    }
}

fn same_for_next_client(context: &mut Context<'_>) -> Outcome {
    let first = context.open_device()?.offered;
    let second = context.open_again(USUAL)?.offered;
    if first == second {
        Ok(())
    } else {
        Stop::fail(format!("the first client was offered {first:#x}, the next {second:#x}"))
    }
}

fn none_taken_by_last_client(context: &mut Context<'_>) -> Outcome {
    drop(context.open_device()?);
    let mut link = context.connect_again()?;
    let answer = link.ask_raw(3, Flags::request(), &[], &[])?;
    if answer == (Answer { code: None, closed: false }) {
        Ok(())
    } else {
        Stop::fail(format!("the backend {answer} at the next client's SET_OWNER"))
    }
}

fn offered_accepted(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open()?;
    // What needs more than a bit to be taken is left out: translated addresses, and the log.
    let features = link.offered & !(feature::ACCESS_PLATFORM | feature::LOG_ALL);
    link.require(&SetFeatures(features), &[])
}

fn fewest_accepted(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open()?;
    let features = link.offered & (feature::VERSION_1 | feature::PROTOCOL_FEATURES);
    link.require(&SetFeatures(features), &[])
}

fn never_offered_bit(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open()?;
    // A bit that devices of no kind have, from the reserved ones.
    let Some(bit) = (41..50).rev().find(|bit| link.offered >> bit & 1 == 0) else {
        return Stop::skip("all reserved bits are offered");
    };
    let features = usual_features(link.offered) | 1 << bit;
    link.require_refusal(&SetFeatures(features), &[], &format!("SET_FEATURES with bit {bit}, which was not offered"))
}

fn never_offered_protocol_bit(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open()?;
    let taken = link.protocol.bits() | 1 << 62;
    link.require_refusal(&SetProtocolFeatures(taken), &[], "SET_PROTOCOL_FEATURES with bit 62, which was not offered")
}

fn set_again(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    let features = usual_features(link.offered);
    link.require(&SetFeatures(features), &[])
}

fn protocol_subset(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_with(ProtocolFeatures::REPLY_ACK)?;
    let features = usual_features(link.offered);
    link.require(&SetFeatures(features), &[])
}

fn no_protocol_features_taken(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_with(ProtocolFeatures::empty())?;
    let features = usual_features(link.offered);
    link.require(&SetFeatures(features), &[])
}

fn without_protocol_features(context: &mut Context<'_>) -> Outcome {
    let mut link = context.connect()?;
    link.send(&SetOwner(Empty), &[])?;
    link.offered = link.features()?;
    let features = usual_features(link.offered) & !feature::PROTOCOL_FEATURES;
    link.require(&SetFeatures(features), &[])
}

fn inband_alone(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_with(ProtocolFeatures::empty())?;
    let answer = link.ask(&SetProtocolFeatures(ProtocolFeatures::INBAND_NOTIFICATIONS.bits()), &[])?;
    if answer.closed { Ok(()) } else { Stop::fail(format!("INBAND_NOTIFICATIONS alone: the backend {answer}")) }
}

fn depend_on_offered(context: &mut Context<'_>) -> Outcome {
    let offered = offered_protocol_features(context)?;
    let needed = [
        (ProtocolFeatures::GET_VRING_BASE_INFLIGHT, ProtocolFeatures::INFLIGHT_SHMFD),
        (ProtocolFeatures::GET_VRING_BASE_SKIP_DRAIN, ProtocolFeatures::GET_VRING_BASE_INFLIGHT),
        (ProtocolFeatures::INBAND_NOTIFICATIONS, ProtocolFeatures::BACKEND_REQ | ProtocolFeatures::REPLY_ACK),
        (ProtocolFeatures::BACKEND_SEND_FD, ProtocolFeatures::BACKEND_REQ),
        (ProtocolFeatures::HOST_NOTIFIER, ProtocolFeatures::BACKEND_REQ),
    ];
    match needed.into_iter().find(|(one, other)| offered.contains(*one) && !offered.contains(*other)) {
        None => Ok(()),
        Some((one, other)) => Stop::fail(format!("{one} is offered without {other}, which it requires")),
    }
}

fn requirements(context: &mut Context<'_>) -> Outcome {
    let Some(device) = context.device else {
        return Stop::skip("the kind of device is not known; give it with `--device`");
    };
    let offered = context.connect()?.features()?;
    all_met(&unmet_by_offer(device, offered))
}

fn control_queue(context: &mut Context<'_>) -> Outcome {
    let offered = context.connect()?.features()?;
    all_met(&without_control_queue(DeviceKind::Net, offered))
}

fn all_met(unmet: &[Unmet]) -> Outcome {
    let Some(first) = unmet.first() else { return Ok(()) };
    let words: Vec<_> = unmet.iter().map(ToString::to_string).collect();
    Stop::fail(format!("the backend offers {} ({})", words.join(", "), first.section))
}

fn zero_length_request(context: &mut Context<'_>) -> Outcome {
    let offered = context.connect()?.features()?;
    if offered & feature::i2c::ZERO_LENGTH_REQUEST != 0 {
        Ok(())
    } else {
        Stop::fail(format!("the features are {offered:#x}, without bit 0"))
    }
}

fn enable_before_set(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open()?;
    link.require(&SetVringEnable(VringState { index: 0, num: 1 }), &[])
}
