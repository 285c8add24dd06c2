//! Signals to kiln itself: the first Ctrl-C goes to the guest's command, the second ends the VM.

use std::task::Poll;
use std::time::Duration;

use kiln_engine::link::StreamSender;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A command that ignores Ctrl-C is killed after this long.
const GRACE: Duration = Duration::from_secs(2);
const SIGINT: i32 = 2;

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

    /// Passes the first Ctrl-C on to the command, kills it where it does not end by that, and returns at the second,
    /// or at a signal that ends kiln at once. `interrupted` is set at the first.
    pub async fn pass_on(&mut self, input: &StreamSender, interrupted: &mut bool) -> u8 {
        let first = self.any().await;
        if first != 130 {
            return first;
        }
        *interrupted = true;
        // Where the command has ended meanwhile there is nothing to tell it.
        let _ = input.signal(SIGINT);
        tokio::select! {
            code = self.any() => return code,
            () = tokio::time::sleep(GRACE) => {}
        }
        let _ = input.cancel();
        self.any().await
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
