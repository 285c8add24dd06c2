//! The runtime of the process.
#![expect(unsafe_code, reason = "mallopt is only reachable through libc")]

use std::io;

use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

use crate::process::signals;

/// Threads for blocking file work, and for children until their programs run.
const BLOCKING_THREADS_MAX: usize = 8;

/// Creates the runtime of the process. Call this once and before another thread is started.
///
/// # Errors
/// If no descriptor is available.
pub fn runtime() -> io::Result<LocalRuntime> {
    signals::block();
    tune_allocator();
    Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build_local(LocalOptions::default())
}

/// Keeps freed memory in the process, because it is soon used again. Returning it to the kernel and faulting it in
/// again costs more.
fn tune_allocator() {
    const KEEP_BYTES: i32 = 1 << 20;
    // SAFETY: plain numbers, and there is no second thread yet.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEEP_BYTES);
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEEP_BYTES);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
