//! Builds kernels from source, with a configuration of Kiln's.
//!
//! ```text
//!   linux-source-6.1 (package), a tarball, a directory ──▶ source
//!   fragment ──make allnoconfig, olddefconfig──▶ .config ──each requested option is there?──▶ make bzImage ──▶ add
//!                                                               └ no: refused, each lost option named
//! ```
//! The same source and configuration with the same compiler are built once: the record of a kernel has a key of these.
//! The build runs in a partial directory of the cache, which is removed at the end, however that comes. The Makefiles of
//! the source run on this host: a source is trusted like any other program that its user builds.

mod fragments;
mod make;
mod source;

pub use fragments::ConfigName;
pub use make::{BuildError, BuildKernel, MakeStep};
pub use source::BuildSource;
