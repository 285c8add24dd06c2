//! PID 1.

/// Runs the guest.
///
/// # Errors
/// The guest can't be served.
pub fn run() -> std::io::Result<()> {
    Err(std::io::Error::other("not yet"))
}
