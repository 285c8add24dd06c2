//! The allocator's habits, set once at the start.
#![expect(unsafe_code, reason = "mallopt is only reachable through libc")]

/// What a heap may keep when it is free. Frames of 64 KiB come and go all the time; by default their pages would go back
/// to the kernel and be faulted in again each time, which took a fifth of the time of a file's way into a guest.
const KEEP_BYTES: i32 = 2 << 20;

/// Lets the allocator keep a little of what it has.
pub fn keep_warm() {
    // SAFETY: it only sets numbers of the allocator, and there is one thread yet. Where it refuses, all goes on slower.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEEP_BYTES);
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEEP_BYTES);
    }
}
