//! Guest images: a kernel, an initramfs with the agent and its modules, and the kernel command line for them. All
//! functions block and need no root.
//!
//! ```text
//!   packages ──► kernel, modules ──► recipe ──► cpio ─┐
//!   (cache, apt, /boot)     └──────► kernel (vmlinux)─┴─► build ──publish──► images/<digest>/ ◄── names/<name>
//!                                                                                   │
//!                                                              store: find, list, remove, verify
//! ```
//! The digest of an image covers the kernel, the initramfs and the command line, and nothing else. The same parts give
//! the same image on every machine.

mod apt;
mod build;
mod busybox;
mod cache;
pub(crate) mod command;
mod commit;
mod cpio;
mod debian;
mod error;
mod import;
mod memory;
mod module_index;
pub(crate) mod module_tables;
pub(crate) mod modules;
mod name;
mod newer;
pub(crate) mod packages;
mod recipe;
mod root;
pub(crate) mod space;
mod store;
#[cfg(test)]
mod tests;
mod version;
mod vm_spec;
mod warm;

pub use crate::kernel::KernelFormat;
pub use build::{BuildOptions, BuildStep};
pub use command::{CommandError, cancel_programs};
pub use commit::CommitError;
pub use debian::{DebianError, DebianOptions, write_debian_tar};
pub use error::ImageError;
pub use import::{ImportError, ImportStep, RootBuilder};
pub use memory::{TooLittleMemory, UNMEASURED_MIB};
pub use name::{BadName, ImageName};
pub use newer::KernelNews;
pub use packages::{KernelSource, SourceError, StoredKernel};
pub use recipe::MINI;
pub use root::{Origin, RootImage};
pub use space::NoSpace;
pub(crate) use store::FileEntry;
pub use store::{AnyImage, Image, ImageStore};
pub use vm_spec::NoModule;
pub use warm::{WARM_BYTES_MAX, WARM_LINES_MAX};
