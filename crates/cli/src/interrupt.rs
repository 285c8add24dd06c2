//! Signals to kiln: the first is passed on to the guest's command, the second kills the VM.
//!
//! # Why no guest delays the end
//! The first signal is a request to the guest, and a guest may hang or be hostile. So every wait for it is bounded by
//! the host's clock. A ping after the signal must be answered within [`SIGNAL_DEADLINE`]. The agent handles frames in
//! order, so its reply shows that the signal has arrived. Pings are repeated during the grace: a guest that hangs after
//! the first reply is found within one deadline and not only after the grace. At the end of the grace the command's
//! stream is cancelled, and the agent has one more deadline to kill the command. So kiln exits at most the grace and
//! two deadlines after the first signal, whatever the guest does. The second signal ends every wait at once: `any` is
//! polled beside them.
//!
//! A signal that arrives twice within a moment counts once, because the kernel keeps one pending signal of each kind.
//! That is why a second Ctrl-C needs a moment in between.

use std::task::Poll;
use std::time::Duration;

use kiln_engine::deadlines::SIGNAL_DEADLINE;
use kiln_engine::link::{GuestLink, StreamSender};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep};

/// A shell's exit code for a command that was ended by signal n is this plus n.
const SIGNAL_CODES: u8 = 128;
/// Time between two pings to a guest whose command must end.
const PING_INTERVAL: Duration = Duration::from_millis(200);

/// The signals that end kiln, and kiln's exit codes for them.
const ENDING: [(SignalKind, u8); 3] =
    [(SignalKind::interrupt(), 130), (SignalKind::terminate(), 143), (SignalKind::hangup(), 129)];

/// The signals that end kiln, except those that its parent had ignored: `nohup kiln run` survives SIGHUP.
pub struct Interrupts(Vec<(Signal, u8)>);

impl Interrupts {
    /// Handles the signals instead of the kernel's default.
    pub fn new() -> std::io::Result<Self> {
        let ignored = ignored(&fs_err::read_to_string("/proc/self/status").unwrap_or_default());
        let handled = ENDING.into_iter().filter(|(kind, _)| ignored >> (kind.as_raw_value() - 1) & 1 == 0);
        handled.map(|(kind, code)| Ok((signal(kind)?, code))).collect::<std::io::Result<_>>().map(Self)
    }

    /// Waits for one of the signals and returns its exit code.
    pub async fn any(&mut self) -> u8 {
        std::future::poll_fn(|context| {
            let mut came =
                self.0.iter_mut().filter_map(|(signal, code)| signal.poll_recv(context).is_ready().then_some(*code));
            // Each signal is polled, so that each can wake this task.
            let first = came.next();
            came.for_each(drop);
            first.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Passes the first signal on to the command, as `stop` if that is given, waits for `grace`, and then has the agent
    /// kill the command. Sets `first` to the exit code of the first signal.
    ///
    /// Returns an exit code when the caller must kill the VM at once: after the second signal, if `grace` is zero, or
    /// if the guest's agent does not confirm the signal or the kill in time.
    pub async fn pass_on(
        &mut self,
        link: &GuestLink,
        input: &StreamSender,
        stop: Option<i32>,
        grace: Duration,
        first: &mut Option<u8>,
    ) -> u8 {
        let code = self.any().await;
        *first = Some(code);
        if grace.is_zero() {
            return code;
        }
        let ending = async {
            // Fails if the command has ended. Then its exit status is on the way.
            let _ = input.signal(stop.unwrap_or_else(|| i32::from(code - SIGNAL_CODES)));
            let since = Instant::now();
            // The agent handles frames in order, so the first reply shows that the signal has arrived. Later replies
            // show that the guest still runs and can end its command.
            while link.ping_within(SIGNAL_DEADLINE).await.is_ok() {
                let left = grace.saturating_sub(since.elapsed());
                if left.is_zero() {
                    let _ = input.cancel();
                    // The kill ends the command's stream, and the caller then drops this future.
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

/// From now on a signal ends the process again, for work after that of [`Interrupts`], whose handlers stay. Temporary files
/// without a name go with the process; the next command removes the others.
pub fn exit_on_signal() {
    let watch = || -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let code = runtime.block_on(async { Ok::<_, std::io::Error>(Interrupts::new()?.any().await) })?;
        std::process::exit(i32::from(code))
    };
    if let Err(error) = std::thread::Builder::new().name("interrupt".into()).spawn(watch) {
        tracing::warn!(%error, "Ctrl-C does not end this command");
    }
}

/// The signals that a process ignores, one bit each (proc(5), `SigIgn`).
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_their_bits() {
        assert_eq!(ignored("SigBlk:\t0000000000000001\nSigIgn:\t0000000000001001\n"), 0x1001);
        assert_eq!(ignored("Name:\tkiln\n"), 0);
    }
}
