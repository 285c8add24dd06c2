//! The kernel's log and the agent's log, as text.

use std::future::poll_fn;
use std::time::Duration;

use kiln_wire::{Channel, Done, ErrorCode, Fault, LogSource, LogsRequest, Message};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::time::sleep;

use crate::link::{Gone, Outlet, Stream, cancelled};
use crate::log::lines_since;
use crate::relay::{self, ShortRead};
use crate::watched::watch_reading;

/// Longest record of the kernel's log (CONSOLE_EXT_LOG_MAX).
const RECORD_BYTES_MAX: usize = 8192;
/// Time between two reads of the agent's log, which doesn't signal when it grows.
const FOLLOW_AGENT: Duration = Duration::from_millis(100);

/// Serves the stream to its end.
pub async fn serve(stream: Stream, request: LogsRequest) {
    let result = tokio::select! {
        biased;
        end = stream.inbox.ended() => Err(end.into_fault()),
        result = copy(&stream.outlet, request) => result,
    };
    match result {
        Ok(bytes) => stream.outlet.end(&Message::Done(Done { bytes, ..Done::default() })),
        Err(fault) => stream.outlet.fail(fault),
    }
}

async fn copy(outlet: &Outlet, request: LogsRequest) -> Result<u64, Fault> {
    match request.source {
        LogSource::Kernel => kernel(outlet, request.follow).await,
        LogSource::Agent => agent(outlet, request.follow).await.map_err(|Gone| cancelled()),
    }
}

async fn agent(outlet: &Outlet, follow: bool) -> Result<u64, Gone> {
    let (mut bytes, mut from) = (0, 0);
    loop {
        let (text, next) = lines_since(from);
        from = next;
        bytes += text.len() as u64;
        outlet.data_from(Channel::Out, text.as_bytes()).await?;
        if !follow {
            return Ok(bytes);
        }
        sleep(FOLLOW_AGENT).await;
    }
}

async fn kernel(outlet: &Outlet, follow: bool) -> Result<u64, Fault> {
    let failed = |error: &std::io::Error, code| Fault::new(code, format!("can't read the kernel's log: {error}"));
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let kmsg = rustix::fs::open("/dev/kmsg", flags, Mode::empty()).map_err(|error| {
        let code = if error == Errno::NOENT { ErrorCode::NotFound } else { ErrorCode::PermissionDenied };
        failed(&error.into(), code)
    })?;
    let mut record = Vec::with_capacity(RECORD_BYTES_MAX);
    let mut text = Vec::new();
    let mut bytes = 0;
    let following = if follow {
        let watched = kmsg.try_clone().and_then(watch_reading);
        Some(watched.map_err(|error| failed(&error, ErrorCode::Io))?)
    } else {
        None
    };
    loop {
        record.clear();
        let read = match &following {
            Some(kmsg) => {
                poll_fn(|context| relay::poll_read(kmsg, context, &mut record, RECORD_BYTES_MAX, ShortRead::Unknown))
                    .await
            }
            None => rustix::io::read(&kmsg, rustix::buffer::spare_capacity(&mut record)),
        };
        match read {
            // EPIPE: older records were overwritten before they were read. The next read returns the oldest that is
            // left.
            Err(Errno::PIPE | Errno::INTR) => continue,
            Err(Errno::AGAIN) | Ok(0) => return Ok(bytes),
            Err(error) => return Err(failed(&error.into(), ErrorCode::Io)),
            Ok(_) => {}
        }
        text.clear();
        line(&String::from_utf8_lossy(&record), &mut text);
        bytes += text.len() as u64;
        outlet.data_from(Channel::Out, &text).await.map_err(|Gone| cancelled())?;
    }
}

/// Turns `6,339,5140900,-;text` into `[    5.140900] text`. The lines after the first are tags for programs, and are
/// left out.
fn line(record: &str, text: &mut Vec<u8>) {
    let first = record.lines().next().unwrap_or_default();
    let (prefix, message) = first.split_once(';').unwrap_or(("", first));
    let micros: u64 = prefix.split(',').nth(2).and_then(|micros| micros.parse().ok()).unwrap_or(0);
    let stamped = format!("[{:5}.{:06}] {message}\n", micros / 1_000_000, micros % 1_000_000);
    text.extend_from_slice(stamped.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_becomes_a_line_of_the_console() {
        let of = |record: &str| {
            let mut text = Vec::new();
            line(record, &mut text);
            String::from_utf8(text).expect("text")
        };
        assert_eq!(of("6,339,5140900,-;NET: up; really\n SUBSYSTEM=net\n"), "[    5.140900] NET: up; really\n");
        assert_eq!(of("nonsense"), "[    0.000000] nonsense\n");
        assert_eq!(of(""), "[    0.000000] \n");
    }
}
