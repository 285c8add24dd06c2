//! Guest images: a kernel, an initramfs with the agent and the modules it needs, and the kernel command line that goes
//! with them. Everything here blocks and needs no root.
//!
//! ```text
//!   packages ──► kernel, modules ──► recipe ──► cpio ─┐
//!   (cache, apt, /boot)     └──────► kernel (vmlinux)─┴─► build ──publish──► images/<digest>/ ◄── names/<name>
//!                                                                                   │
//!                                                              store: find, list, remove, verify
//! ```
//! An image's digest covers kernel, initramfs and command line, and nothing else: the same parts give the same image on
//! every machine.

mod apt;
mod build;
mod busybox;
mod cache;
mod command;
mod cpio;
mod memory;
mod modules;
mod newer;
mod packages;
mod recipe;
mod space;
mod store;
#[cfg(test)]
mod tests;
mod version;
mod vm_spec;

pub use crate::kernel::KernelFormat;
pub use build::{BuildOptions, BuildStep};
pub use command::CommandError;
pub use memory::{TooLittleMemory, UNMEASURED_MIB};
pub use newer::KernelNews;
pub use packages::{KernelSource, SourceError};
pub use recipe::MINI;
pub use space::NoSpace;
pub use store::{Image, ImageError, ImageStore};
pub use vm_spec::NoModule;
