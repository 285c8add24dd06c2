//! The one runtime of the process.
#![expect(unsafe_code, reason = "mallopt is only reachable through libc")]

use std::io;

use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

use crate::process::signals;

/// Threads for blocking file work, and for children until their programs run.
const BLOCKING_THREADS_MAX: usize = 8;

/// The one runtime of the process. Call it once, before anything else starts a thread.
///
/// # Errors
/// The kernel has no descriptors left.
pub fn runtime() -> io::Result<LocalRuntime> {
    signals::block();
    tune_allocator();
    Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build_local(LocalOptions::default())
}

/// Memory that is freed is soon used again: giving it back and faulting it in once more costs more than keeping it.
fn tune_allocator() {
    const KEEP_BYTES: i32 = 1 << 20;
    // SAFETY: plain numbers, before there is a second thread.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEEP_BYTES);
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEEP_BYTES);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
