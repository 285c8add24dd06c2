//! One run: handshakes, round trips, loads.

use std::sync::atomic::{AtomicBool, Ordering};

use super::handshake::{handshakes, round_trips};
use super::load::{Load, run_load};
use super::options::{BenchError, BenchOptions};
use super::report::{DiskReport, LoadReport, Report};
use crate::frontend::blk::{BlkDriver, BlkOptions};
use crate::frontend::{Frontend, Wish};
use crate::protocol::ProtocolFeatures;
use crate::queue::RingKind;
use crate::virtio::{Candidate, DeviceKind, plausible};

/// Bytes of a block at most.
const BLOCK_BYTES_MAX: u32 = 16 << 20;

/// Measures a backend. `seen` gets each load as it ends. When `stop` is set, what was measured until then is reported.
///
/// # Errors
/// If the backend fails, breaks the protocol, or does not support this.
pub fn run(options: &BenchOptions, stop: &AtomicBool, mut seen: impl FnMut(&LoadReport)) -> Result<Report, BenchError> {
    let bytes = options.block_bytes;
    if bytes == 0 || !bytes.is_multiple_of(512) || bytes > BLOCK_BYTES_MAX {
        return Err(BenchError::BlockSize { bytes });
    }
    require_disk(options)?;
    let mut notes = Vec::new();
    let handshake = handshakes(options, stop, &mut notes)?;
    let mut report = Report {
        socket: options.socket.display().to_string(),
        seed: options.seed,
        handshake,
        round_trip: Default::default(),
        disk: None,
        loads: Vec::new(),
        stopped: false,
        notes,
    };
    run_disk(options, stop, &mut report, &mut seen)?;
    report.stopped = stop.load(Ordering::Relaxed);
    Ok(report)
}

/// The configuration that every disk has: up to its block size and topology.
const DISK_CONFIG_BYTES: u32 = 60;

/// Refuses what is no disk. Its requests would be taken for something else, and the figures would mean nothing.
fn require_disk(options: &BenchOptions) -> Result<(), BenchError> {
    let socket = || options.socket.display().to_string();
    if let Some(kind) = options.device {
        return if kind == DeviceKind::Blk {
            Ok(())
        } else {
            Err(BenchError::Device { socket: socket(), kind, evidence: None })
        };
    }
    let mut frontend = Frontend::connect(&options.socket, &options.session)?;
    let negotiated = frontend.handshake(&Wish::default())?;
    let has = |feature| negotiated.protocol_features.contains(feature);
    let queues = if has(ProtocolFeatures::MQ) { frontend.get_queue_num().ok() } else { None };
    // Many refuse to answer more than they have; then it is a smaller device.
    let config = if has(ProtocolFeatures::CONFIG) { frontend.get_config(0, DISK_CONFIG_BYTES).ok() } else { None };
    let found = plausible(negotiated.offered_features, queues, &config.unwrap_or_default());
    match found.into_iter().find(|candidate| candidate.is_sure) {
        Some(Candidate { kind: DeviceKind::Blk, .. }) => Ok(()),
        Some(Candidate { kind, reason, .. }) => {
            Err(BenchError::Device { socket: socket(), kind, evidence: Some(reason) })
        }
        None => Err(BenchError::UnknownDevice { socket: socket() }),
    }
}

fn run_disk(
    options: &BenchOptions,
    stop: &AtomicBool,
    report: &mut Report,
    seen: &mut dyn FnMut(&LoadReport),
) -> Result<(), BenchError> {
    let deepest = options.depths.iter().copied().max().unwrap_or(1).max(1);
    let rings = BlkOptions { depth: deepest, request_bytes: options.block_bytes, ..options.rings.clone() };
    let rings = BlkOptions { queue_size: rings.queue_size.max(size_for(deepest)), ..rings };
    let mut driver = BlkDriver::connect(&options.socket, &options.session, &rings)?;
    report.round_trip = round_trips(driver.frontend_mut(), options.round_trips, stop)?;
    let layout = driver.frontend().negotiated().ring_layout(rings.queue_size);
    report.disk = Some(DiskReport {
        capacity_bytes: driver.config().capacity.saturating_mul(512),
        queues: u32::try_from(driver.queues_mut().len()).unwrap_or(u32::MAX),
        queue_size: layout.size,
        ring: match layout.kind {
            RingKind::Split => "split".to_owned(),
            RingKind::Packed => "packed".to_owned(),
        },
        indirect: layout.indirect,
        event_idx: layout.event_idx,
    });
    for depth in &options.depths {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let load = Load {
            pattern: options.pattern,
            block_bytes: options.block_bytes,
            depth: *depth,
            time: options.time,
            warm_up: options.warm_up,
            seed: options.seed,
        };
        let done = run_load(&mut driver, &load, stop)?;
        if done.short > 0 {
            report
                .notes
                .push(format!("{} of {} requests completed with too small a used length", done.short, done.requests));
        }
        seen(&done);
        report.loads.push(done);
    }
    if let Err(error) = driver.stop() {
        report.notes.push(format!("failed to stop the rings: {error}"));
    }
    Ok(())
}

/// The smallest ring in which so many requests of three descriptors are under way.
fn size_for(depth: u16) -> u16 {
    depth.saturating_mul(3).min(1 << 15).checked_next_power_of_two().unwrap_or(1 << 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_has_room_for_the_depth() {
        assert_eq!([1, 32, 128, u16::MAX].map(size_for), [4, 128, 512, 1 << 15]);
    }
}
