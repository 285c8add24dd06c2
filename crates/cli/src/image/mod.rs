//! `kiln image`, and how other commands find or build their image and engine.
//!
//! ```text
//!   find    the image of a run: built, pulled or found     list    what there is
//!   boot    images that boot: mini                         warm    ready-made snapshots
//!   root    images with a root filesystem                  remove  images that are not needed
//!   kernel  the kernel that a run chooses
//!   commit  images of snapshots                            export  files for docker
//! ```

mod boot;
mod command;
mod commit;
mod export;
mod find;
mod kernel;
mod list;
mod remove;
mod root;
mod warm;

pub use boot::{accel_name, with_memory};
pub use command::run;
pub use commit::commit;
pub use find::{
    Runnable, Wants, engine, find_boot, find_or_build, home, image_env, image_failure, of_snapshot, unchecked_home,
};
pub use kernel::kernel_failure;
pub use list::least_memory;
