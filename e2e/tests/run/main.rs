//! `kiln run` as a user meets it: the real binary, a real kernel, every exit code that the guide names.
//!
//! Tests in modules named `vm_…` boot a VM each.

mod refused;
mod vhost;
mod vm_border;
mod vm_commit;
mod vm_crash;
mod vm_directories;
mod vm_end;
mod vm_exit;
mod vm_files;
mod vm_files_kinds;
mod vm_habits;
mod vm_image;
mod vm_image_warm;
mod vm_kernel;
mod vm_lab;
mod vm_limits;
mod vm_nat;
mod vm_net;
mod vm_owner;
mod vm_streams;
mod vm_terminal;
mod vm_userland;
mod vm_users;
mod vm_vhost_mock;
mod vm_vhost_user;
mod vm_volumes;
mod vm_words;
