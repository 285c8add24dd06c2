//! Bounds of a VM's parts.

/// The least memory of a guest. Debian's kernel and its initramfs do not boot with 64 MiB, and boot with 80 MiB.
pub const MEMORY_MIB_MIN: u64 = 80;
/// A guest may have more CPUs than its host, up to this number.
pub const CPUS_MAX: u32 = 64;
/// Most disks of one VM.
pub const DISKS_MAX: usize = 16;
/// Most ports of one VM beside the agent's.
pub const EXTRA_PORTS_MAX: usize = 16;
/// Most network cards of one VM.
pub const NICS_MAX: usize = 8;
/// `COMMAND_LINE_SIZE` of x86 Linux, less its zero byte and the words that a driver adds.
pub const CMDLINE_BYTES_MAX: usize = 2047 - 32;
/// Most queues of one device. More than one queue for each CPU would be useless.
pub const QUEUES_MAX: u16 = CPUS_MAX as u16;
/// Most shared directories of one VM: a PCI bus has 32 slots, and the disks, cards and Kiln's own devices take the
/// rest.
pub const SHARES_MAX: usize = 3;
/// Longest name of a module, port or filesystem.
pub(super) const NAME_BYTES_MAX: usize = 64;
