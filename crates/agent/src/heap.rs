//! Settings of the allocator, made once at the start.
#![expect(unsafe_code, reason = "mallopt is only reachable through libc")]

/// Free memory that the allocator may keep. Frames of 64 KiB are allocated and freed all the time. By default their
/// pages are returned to the kernel and faulted in again each time, which took a fifth of the time of copying a file
/// into a guest.
const KEEP_BYTES: i32 = 2 << 20;

/// Lets the allocator keep some free memory.
pub fn keep_free_memory() {
    // SAFETY: the calls only set numbers of the allocator, and there is only one thread. If they fail, the agent is
    // slower.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEEP_BYTES);
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEEP_BYTES);
    }
}
