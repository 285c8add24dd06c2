//! Kernels of guests, as files: unpacked to what boots fastest, and what release they are. ELF files and what
//! compresses kernels and modules are read here.

pub(crate) mod elf;
pub(crate) mod lz4;
mod unpack;

pub use self::unpack::KernelFormat;
pub(crate) use self::unpack::{release, unpack, unxz, unzstd};
