//! The configuration space.

use super::prelude::*;

const CONFIG: Need = Need::Protocol(ProtocolFeatures::CONFIG);
const ACK: Need = Need::Protocol(ProtocolFeatures::REPLY_ACK);
const GET: &str = "VHOST_USER_GET_CONFIG";
const SET: &str = "VHOST_USER_SET_CONFIG";
/// No kind of device has a configuration that is longer.
const BEYOND_ALL_KINDS: usize = 200;
const BLK: Need = Need::Kind(DeviceKind::Blk);

cases! {
    "config.whole" Must [CONFIG] whole,
        GET => "\"vhost-user back-end's payload size MUST match the front-end's request\"";
    "config.offset-echoed" Must [CONFIG] offset_echoed,
        GET => "the reply describes the same offset and size as the request";
    "config.part" Should [CONFIG] part,
        GET => "a part of the configuration space has the same bytes as the whole";
    "config.stable" Should [CONFIG] stable,
        GET => "\"The front-end may cache the contents\"";
    "config.beyond" Must [CONFIG] beyond,
        GET =>
            "a read beyond the configuration gets \"zero length of payload to indicate an error\", or zeros of the \
             requested size";
    "config.nothing-beyond-the-end" Must [CONFIG] nothing_beyond_the_end,
        GET =>
            "a read beyond the configuration's end gets an error or zeros, never the backend's memory behind it";
    "config.endless" Should [CONFIG] endless,
        GET => "a range whose offset plus size does not fit 32 bits is outside the configuration space";
    "config.read-only-field" Must [CONFIG, ACK, BLK] read_only_field,
        SET =>
            "back-ends \"MUST NOT accept SET_CONFIG for read-only configuration space fields unless the live migration \
             bit is set\"";
    "config.read-only-field-kept" Must [CONFIG, BLK] read_only_field_kept,
        SET => "a guest must not change the size of its disk";
    "config.write-cache" Should
        [CONFIG, ACK, BLK, Need::Feature(feature::blk::CONFIG_WCE, "VIRTIO_BLK_F_CONFIG_WCE")]
        write_cache,
        "VIRTIO 1.2, 5.2.5 Device Initialization" =>
            "with CONFIG_WCE the driver sets `writeback`, and the device applies it";
    "config.flags-unknown" Should [CONFIG, ACK] flags_unknown,
        SET => "\"The vhost-user back-end must check the flags field\", which is 0 or 1";
    "config.capacity" Must [CONFIG, BLK] capacity,
        "VIRTIO 1.2, 5.2.4 Device configuration layout" => "a guest cannot use a disk of 0 sectors";
    "config.queues-match" Should
        [CONFIG, BLK, Need::Feature(feature::blk::MQ, "VIRTIO_BLK_F_MQ"), Need::Protocol(ProtocolFeatures::MQ)]
        queues_match,
        "VIRTIO 1.2, 5.2.4 Device configuration layout" =>
            "the guest sets up `num_queues` queues, the VMM as many as GET_QUEUE_NUM returns";
}

fn ask(offset: u32, bytes: usize) -> GetConfig {
    GetConfig(Config { offset, flags: 0, bytes: vec![0; bytes] })
}

/// A size of configuration that the backend answers.
fn known_bytes(context: &Context<'_>) -> Outcome<usize> {
    match context.facts.config.len() {
        0 => Stop::skip("GET_CONFIG returned no bytes for any size that devices have"),
        bytes => Ok(bytes),
    }
}

fn whole(context: &mut Context<'_>) -> Outcome {
    let Ok(bytes) = known_bytes(context) else {
        return Stop::fail("CONFIG is offered, but GET_CONFIG returned no bytes for any size that devices have");
    };
    let reply = context.open_device()?.call(&ask(0, bytes))?;
    if reply.bytes.len() == bytes {
        Ok(())
    } else {
        Stop::fail(format!("{bytes} bytes were requested, {} returned", reply.bytes.len()))
    }
}

/// A size that has parts.
fn divisible_bytes(context: &Context<'_>) -> Outcome<usize> {
    match known_bytes(context)? {
        0..8 => Stop::skip("the configuration is too short"),
        bytes => Ok(bytes),
    }
}

fn offset_echoed(context: &mut Context<'_>) -> Outcome {
    let bytes = divisible_bytes(context)?;
    let mut link = context.open_device()?;
    let reply = link.call(&ask(4, bytes - 4))?;
    if reply.bytes.is_empty() {
        return Stop::skip("GET_CONFIG returned no bytes for a part of the configuration space");
    }
    if (reply.offset, reply.bytes.len()) == (4, bytes - 4) {
        return Ok(());
    }
    Stop::fail(format!(
        "{} bytes at offset 4 were requested, {} bytes at offset {} returned",
        bytes - 4,
        reply.bytes.len(),
        reply.offset
    ))
}

fn part(context: &mut Context<'_>) -> Outcome {
    let bytes = divisible_bytes(context)?;
    let mut link = context.open_device()?;
    let whole = link.call(&ask(0, bytes))?.bytes;
    for (offset, size) in [(0, 4), (4, 4), (bytes - 4, 4), (2, bytes - 2)] {
        let found = link.call(&ask(u32::try_from(offset).unwrap_or(0), size))?.bytes;
        let Some(expected) = whole.get(offset..offset + size) else {
            return Stop::fail(format!("{bytes} bytes were requested, {} returned", whole.len()));
        };
        if expected != found {
            return Stop::fail(format!(
                "{size} bytes at offset {offset} are {found:02x?}, but the whole configuration has {expected:02x?} \
                 there"
            ));
        }
    }
    Ok(())
}

fn stable(context: &mut Context<'_>) -> Outcome {
    let bytes = known_bytes(context)?;
    let mut link = context.open_device()?;
    let first = link.call(&ask(0, bytes))?.bytes;
    let second = link.call(&ask(0, bytes))?.bytes;
    if first == second { Ok(()) } else { Stop::fail("the configuration changed between two GET_CONFIG") }
}

/// The reply of a backend to a request that it cannot serve: zeros of that size, nothing, or the end of the
/// connection.
fn is_error_or_zeros(context: &mut Context<'_>, question: &GetConfig) -> Outcome {
    let mut link = context.open_device()?;
    link.send(question, &[])?;
    let reply = match link.reply_to(24) {
        Ok(reply) => reply,
        Err(Stop::Closed(_)) => return Stop::fail("closed the connection instead of replying with 0 bytes"),
        Err(stop) => return Err(stop),
    };
    let contents = reply.payload.get(12..).unwrap_or_default();
    let asked = question.0.bytes.len();
    if contents.is_empty() || contents.len() == asked && contents.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    Stop::fail(format!(
        "{asked} bytes beyond the configuration were requested, and the {} returned are not zeros",
        contents.len()
    ))
}

fn beyond(context: &mut Context<'_>) -> Outcome {
    is_error_or_zeros(context, &ask(200, SPACE - BEYOND_ALL_KINDS))
}

fn endless(context: &mut Context<'_>) -> Outcome {
    match is_error_or_zeros(context, &ask(u32::MAX - 3, 8)) {
        // To close the connection is a valid reply to what no correct frontend requests.
        Err(Stop::Fail(because)) if because.starts_with("closed") => Ok(()),
        outcome => outcome,
    }
}

/// Bytes that a configuration may have at most ("Virtio device config space").
const SPACE: usize = 256;

fn nothing_beyond_the_end(context: &mut Context<'_>) -> Outcome {
    // A backend may have fewer fields than its kind of device; no backend has more.
    let end = context.device.map_or(BEYOND_ALL_KINDS, DeviceKind::config_bytes);
    let questions = [(0, SPACE), (end, SPACE - end), (end.saturating_sub(4), 8), (end, 1), (SPACE - 1, 1)];
    let mut link = context.open_device()?;
    for (offset, bytes) in questions {
        link.send(&ask(u32::try_from(offset).unwrap_or(u32::MAX), bytes), &[])?;
        let reply = match link.reply_to(24) {
            Ok(reply) => reply,
            // Nothing was returned, which is all that this rule requires.
            Err(Stop::Closed(_)) if context.facts.ends_with_client => return Ok(()),
            Err(Stop::Closed(_)) => {
                drop(link);
                link = context.open_again_device()?;
                continue;
            }
            Err(stop) => return Err(stop),
        };
        let contents = reply.payload.get(12..).unwrap_or_default();
        let known = end.saturating_sub(offset).min(contents.len());
        if let Some(place) = contents[known..].iter().position(|byte| *byte != 0) {
            let place = offset + known + place;
            let found = &contents[place - offset..];
            return Stop::fail(format!(
                "{bytes} bytes at offset {offset} were requested: those at {place}, beyond the configuration's {end} \
                 bytes, are {:02x?}",
                &found[..found.len().min(16)]
            ));
        }
    }
    Ok(())
}

/// Another size for the disk.
fn other_capacity() -> SetConfig {
    SetConfig(Config { offset: 0, flags: 0, bytes: 12345_u64.to_le_bytes().to_vec() })
}

fn read_only_field(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    link.require_refusal(&other_capacity(), &[], "SET_CONFIG of the capacity")
}

fn read_only_field_kept(context: &mut Context<'_>) -> Outcome {
    let before = context.facts.config.clone();
    let mut link = context.open_device()?;
    let answer = link.ask(&other_capacity(), &[])?;
    if answer.closed {
        if context.facts.ends_with_client {
            return Ok(());
        }
        drop(link);
        link = context.open_again(USUAL)?;
    }
    let after = link.call(&ask(0, before.len()))?.bytes;
    if after == before { Ok(()) } else { Stop::fail("SET_CONFIG changed the capacity") }
}

fn write_cache(context: &mut Context<'_>) -> Outcome {
    const WRITEBACK: usize = 32;
    let bytes = known_bytes(context)?;
    let mut link = context.open_device()?;
    let writeback = |link: &mut Link| match link.call(&ask(0, bytes))?.bytes.get(WRITEBACK) {
        Some(value) => Ok(*value),
        None => Stop::skip("the configuration is too short"),
    };
    let before = writeback(&mut link)?;
    for value in [0, 1, before] {
        link.require(&SetConfig(Config { offset: 32, flags: 0, bytes: vec![value] }), &[])?;
        let found = writeback(&mut link)?;
        if found != value {
            return Stop::fail(format!("`writeback` was set to {value}, but is {found}"));
        }
    }
    Ok(())
}

fn flags_unknown(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    let config = Config { offset: 0, flags: 0x8000_0000, bytes: vec![0; 4] };
    link.require_refusal(&SetConfig(config), &[], "SET_CONFIG with undefined flags")
}

fn capacity(context: &mut Context<'_>) -> Outcome {
    known_bytes(context)?;
    match context.facts.capacity_sectors() {
        0 => Stop::fail("the disk has no sectors"),
        _ => Ok(()),
    }
}

fn queues_match(context: &mut Context<'_>) -> Outcome {
    let Some(bytes) = context.facts.config.get(34..36) else { return Stop::skip("the configuration is too short") };
    let told = u64::from(bytes[0]) | u64::from(bytes[1]) << 8;
    if told == 0 || told > context.facts.queues {
        return Stop::fail(format!("`num_queues` is {told}, but GET_QUEUE_NUM returned {}", context.facts.queues));
    }
    Ok(())
}
