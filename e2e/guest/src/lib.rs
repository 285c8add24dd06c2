//! What tests run inside guests, and what both sides of such a test know.
//!
//! The program is linked statically, so that a guest needs nothing for it:
//!
//! ```text
//!   kiln-e2e-guest disk DEVICE BLOCKS PASSES DEPTH numbered blocks, written once in each pass, read back all the while
//!   kiln-e2e-guest vsock-serve PORT CONNECTIONS    sends back what comes
//!   kiln-e2e-guest vsock-call PORT BYTES ROUNDS    sends to the host and compares what comes back
//! ```

pub mod disk;
pub mod pattern;
pub mod vsock;
