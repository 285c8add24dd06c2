//! How long a session takes to begin, and a message to be answered.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::histogram::Histogram;
use super::options::{BenchError, BenchOptions};
use super::report::{HandshakeReport, Latency};
use crate::frontend::blk::{BlkDriver, BlkOptions};
use crate::frontend::{Frontend, FrontendError};

/// Begins sessions one after the other. A backend that does not come back after the first is a fact to be noted.
pub(super) fn handshakes(
    options: &BenchOptions,
    stop: &AtomicBool,
    notes: &mut Vec<String>,
) -> Result<HandshakeReport, BenchError> {
    let mut histogram = Histogram::default();
    for number in 0..options.handshakes.max(1) {
        if number > 0 && stop.load(Ordering::Relaxed) {
            break;
        }
        match handshake(options) {
            Ok(took) => histogram.record(took),
            Err(error) if number > 0 => {
                notes.push(format!("session {} failed to start: {error}", number + 1));
                break;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(HandshakeReport { until: "rings started".to_owned(), latency: Latency::from(&histogram) })
}

fn handshake(options: &BenchOptions) -> Result<std::time::Duration, FrontendError> {
    let deadline = Instant::now() + options.session.timeout;
    loop {
        let started = Instant::now();
        let rings = BlkOptions { depth: 1, request_bytes: 4096, ..options.rings.clone() };
        let begun = BlkDriver::connect(&options.socket, &options.session, &rings).map(|mut driver| {
            let took = Instant::now();
            // Whether it stops is not what is measured; one that does not is found by the next session.
            let _ = driver.stop();
            took
        });
        match begun {
            Ok(begun) => return Ok(begun.duration_since(started)),
            // A backend that serves one at a time may still be busy with the end of the last one.
            Err(error) if is_not_there(&error) && Instant::now() < deadline => {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            Err(error) => return Err(error),
        }
    }
}

fn is_not_there(error: &FrontendError) -> bool {
    use crate::socket::SocketError;
    error.is_closed() || matches!(error.socket_error(), Some(SocketError::Connect { .. }))
}

/// Requests the features again and again.
pub(super) fn round_trips(frontend: &mut Frontend, count: u32, stop: &AtomicBool) -> Result<Latency, FrontendError> {
    let mut histogram = Histogram::default();
    for _ in 0..count {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let started = Instant::now();
        frontend.get_features()?;
        histogram.record(started.elapsed());
    }
    Ok(Latency::from(&histogram))
}
