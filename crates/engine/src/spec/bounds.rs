//! How much a VM may have.

/// Memory below this does not hold a Debian kernel and its initramfs: 64 MiB does not boot, 80 MiB does.
pub const MEMORY_MIB_MIN: u64 = 80;
/// Guests may have more CPUs than their host, up to here.
pub const CPUS_MAX: u32 = 64;
/// Disks of one VM.
pub const DISKS_MAX: usize = 16;
/// Ports of one VM beside the agent's.
pub const EXTRA_PORTS_MAX: usize = 16;
/// Network cards of one VM.
pub const NICS_MAX: usize = 8;
/// `COMMAND_LINE_SIZE` of x86 Linux, less its end mark and what a driver adds.
pub const CMDLINE_BYTES_MAX: usize = 2047 - 32;
/// Queues of one device: more than one per CPU have no use.
pub const QUEUES_MAX: u16 = CPUS_MAX as u16;
/// Shared directories of one VM: what its disks, cards and Kiln's own devices leave of the 32 slots of a PCI bus.
pub const SHARES_MAX: usize = 3;
/// Length of a module, port or filesystem name.
pub(super) const NAME_BYTES_MAX: usize = 64;
