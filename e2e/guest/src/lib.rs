//! The program that tests run inside guests, and the code that it shares with the tests.
//!
//! The program is linked statically, so that a guest needs nothing for it:
//!
//! ```text
//!   kiln-e2e-guest disk DEVICE BLOCKS PASSES DEPTH numbered blocks, written once in each pass, read back all the while
//!   kiln-e2e-guest vsock-serve PORT CONNECTIONS    sends all data back
//!   kiln-e2e-guest vsock-call PORT BYTES ROUNDS    sends data to the host and compares the reply
//!   kiln-e2e-guest whoami                          prints user, group and directory
//!   kiln-e2e-guest write FILE                      writes a file
//! ```

pub mod disk;
pub mod pattern;
pub mod vsock;
