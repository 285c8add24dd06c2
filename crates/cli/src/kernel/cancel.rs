//! Ctrl-C while a kernel is added or built: the programs that run for it are killed, and what was made is removed.

use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use kiln_engine::image::cancel_programs;

use crate::failure::{Failure, INTERRUPTED};
use crate::interrupt::Interrupts;

/// For the programs to end and their files to be removed; a source has 80,000.
const CLEAN_DEADLINE: Duration = Duration::from_secs(60);

/// The exit code of the signal that came.
static SIGNAL_CODE: AtomicU8 = AtomicU8::new(INTERRUPTED);

/// From now on, the first signal ends programs, so that the operation fails and cleans up. The second one ends kiln.
pub(super) fn on_interrupt() {
    let watch = || -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut interrupts = Interrupts::new()?;
            let code = interrupts.any().await;
            SIGNAL_CODE.store(code, Ordering::Relaxed);
            cancel_programs();
            let code = tokio::select! {
                code = interrupts.any() => code,
                () = tokio::time::sleep(CLEAN_DEADLINE) => code,
            };
            std::process::exit(i32::from(code))
        })
    };
    // Without the thread, a signal ends the process as it does by default, and the next command cleans up.
    let _ = thread::Builder::new().name("interrupt".into()).spawn(watch);
}

/// The failure of an operation that was interrupted.
pub(super) fn interrupted() -> Failure {
    Failure::words(SIGNAL_CODE.load(Ordering::Relaxed), "interrupted")
}
