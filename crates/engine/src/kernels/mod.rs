//! Kernels that VMs can boot instead of the one of `mini`. All functions block and need no root.
//!
//! ```text
//!   kernels/<digest>/  kernel.json                what it is: release, source, what it lacks
//!                      vmlinux or vmlinuz         the form that boots fastest
//!                      modules.erofs              all its modules, unpacked, with tables: /lib/modules/<release>
//!                      config                     what it was built with
//!   kernels/names/<name>                          the digest of a kernel
//!
//!   debian:6.12, a .deb, a bzImage or vmlinux ──▶ add: unpack, check needs, write ──sync, rename──▶ kernels/<digest>/
//!                                                        └ lacks what a VM needs: refused, each option named
//!   kernels/<digest> ──StoredKernel──▶ image: `mini` with this kernel ──▶ VMs
//! ```
//! The digest covers the files and the release, so the same kernel is the same everywhere. A kernel appears by a rename
//! once all its files are on disk. A crash leaves nothing, or a partial directory that a sweep removes.

mod add;
mod build;
mod error;
mod module_tree;
mod name;
mod needs;
mod store;
#[cfg(test)]
mod tests;

pub use add::{AddKernel, AddStep, Added, KernelInput};
pub use build::{BuildError, BuildKernel, BuildSource, ConfigName, MakeStep};
pub use error::KernelError;
pub use name::{BadKernelName, KernelName};
pub use needs::{Missing, Purpose};
pub use store::{Kernel, KernelStore};
