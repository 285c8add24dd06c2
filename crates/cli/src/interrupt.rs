//! Signals to kiln itself: the first one goes to the guest's command, the second ends the VM.

use std::task::Poll;
use std::time::Duration;

use kiln_engine::deadlines::SIGNAL_DEADLINE;
use kiln_engine::link::{GuestLink, StreamSender};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep};

/// A shell's exit code of a command that a signal ended, less the signal.
const SIGNAL_CODES: u8 = 128;
/// Between two questions whether a guest whose command is to end is still there.
const PING_INTERVAL: Duration = Duration::from_millis(200);

/// The signals that end kiln, and the exit codes that they end it with.
const ENDING: [(SignalKind, u8); 3] =
    [(SignalKind::interrupt(), 130), (SignalKind::terminate(), 143), (SignalKind::hangup(), 129)];

/// The signals that end kiln, but for those that whoever started it had turned off: `nohup kiln run` stays.
pub struct Interrupts(Vec<(Signal, u8)>);

impl Interrupts {
    /// Takes them over from the kernel's default.
    pub fn new() -> std::io::Result<Self> {
        let ignored = ignored(&fs_err::read_to_string("/proc/self/status").unwrap_or_default());
        let heard = ENDING.into_iter().filter(|(kind, _)| ignored >> (kind.as_raw_value() - 1) & 1 == 0);
        heard.map(|(kind, code)| Ok((signal(kind)?, code))).collect::<std::io::Result<_>>().map(Self)
    }

    /// Waits for any of them and says its exit code.
    pub async fn any(&mut self) -> u8 {
        std::future::poll_fn(|context| {
            let mut came =
                self.0.iter_mut().filter_map(|(signal, code)| signal.poll_recv(context).is_ready().then_some(*code));
            // All of them are asked, so that each can wake this task.
            let first = came.next();
            came.for_each(drop);
            first.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Passes the first signal on to the command, gives it the grace to end, and then has it killed. Returns the exit code
    /// with which the VM is to be ended at once: at the second signal, if there is no grace, or if the guest's agent does
    /// not confirm the signal, or the kill, in time. `first` is set to the exit code of the first signal.
    pub async fn pass_on(
        &mut self,
        link: &GuestLink,
        input: &StreamSender,
        grace: Duration,
        first: &mut Option<u8>,
    ) -> u8 {
        let code = self.any().await;
        *first = Some(code);
        if grace.is_zero() {
            return code;
        }
        let ending = async {
            // If the command has ended meanwhile, its end is on the way.
            let _ = input.signal(i32::from(code - SIGNAL_CODES));
            let since = Instant::now();
            // The agent takes frames in order, so an answer shows that the signal has arrived. Asked again, it shows that
            // the guest is still there to end its command.
            while link.ping_within(SIGNAL_DEADLINE).await.is_ok() {
                let left = grace.saturating_sub(since.elapsed());
                if left.is_zero() {
                    let _ = input.cancel();
                    // The command's stream ends with it, and with the stream this.
                    return sleep(SIGNAL_DEADLINE).await;
                }
                sleep(left.min(PING_INTERVAL)).await;
            }
        };
        tokio::select! {
            second = self.any() => second,
            () = ending => code,
        }
    }
}

/// The signals that a process does not hear, one bit each (proc(5), `SigIgn`).
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_were_turned_off_are_known_by_their_bits() {
        assert_eq!(ignored("SigBlk:\t0000000000000001\nSigIgn:\t0000000000001001\n"), 0x1001);
        assert_eq!(ignored("Name:\tkiln\n"), 0);
    }
}
