//! Signals to kiln itself: the first Ctrl-C goes to the guest's command, the second ends the VM.

use std::time::Duration;

use kiln_engine::link::StreamSender;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A command that ignores Ctrl-C is killed after this long.
const GRACE: Duration = Duration::from_secs(2);
const SIGINT: i32 = 2;

/// The signals that end kiln.
pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Interrupts {
    /// Takes them over from the kernel's default.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for any of them and says its exit code.
    pub async fn any(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
            _ = self.hangup.recv() => 129,
        }
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
