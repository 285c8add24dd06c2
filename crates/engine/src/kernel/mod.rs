//! Kernels of guests, as files: unpacked to what boots fastest, and what release they are. ELF files and what
//! compresses kernels and modules are read here.

pub(crate) mod config;
pub(crate) mod elf;
pub(crate) mod lz4;
mod unpack;

pub use self::unpack::KernelFormat;
#[cfg(test)]
pub(crate) use self::unpack::made;
pub(crate) use self::unpack::{
    KERNEL_BYTES_MAX, gunzip, is_kernel, is_release, release, release_in, unpack, unxz, unzstd,
};
