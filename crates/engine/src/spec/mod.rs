//! Specifications: a VM and its parts as plain data, their bounds, and the errors of a spec that can't be started.

#[expect(clippy::disallowed_methods, reason = "what blocks in it is called by `operation` or `blocking`")]
mod vhost_user;
#[expect(clippy::disallowed_methods, reason = "what blocks in it is called by `operation` or `blocking`")]
mod vm_spec;

mod acceleration;
mod bounds;
mod error;
mod mac_address;
mod nic;

pub use self::acceleration::{Acceleration, AccelerationRequest};
pub use self::bounds::{
    CMDLINE_BYTES_MAX, CPUS_MAX, DISKS_MAX, EXTRA_PORTS_MAX, MEMORY_MIB_MIN, NICS_MAX, QUEUES_MAX, SHARES_MAX,
};
pub use self::error::SpecError;
pub use self::mac_address::{MacAddress, NoMacAddress};
pub use self::nic::{Attachment, Nic, Tap};
pub(crate) use self::vhost_user::connect_at_once;
pub use self::vhost_user::{VhostUser, VhostUserDevice};
pub use self::vm_spec::{AGENT_PORT, Disk, DiskFormat, DiskRole, HostLimits, ModuleDisk, OwnerLoss, RootSpec, VmSpec};
