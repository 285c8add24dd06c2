//! The parts of a VM as plain data, independent of the VMM.
//!
//! A [`VmSpec`] comes from a user's flags, an API body or a plan, so it is hostile until [`VmSpec::validate`] has
//! checked it. That refuses everything that no driver could start, with an error that names the bound. Drivers turn a
//! valid spec into arguments of a VMM.

use std::os::unix::fs::FileTypeExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err::os::unix::fs::OpenOptionsExt as _;
use serde::{Deserialize, Serialize};

use super::acceleration::AccelerationRequest;
use super::bounds::{
    CMDLINE_BYTES_MAX, CPUS_MAX, DISKS_MAX, EXTRA_PORTS_MAX, MEMORY_MIB_MIN, NAME_BYTES_MAX, NICS_MAX, SHARES_MAX,
};
use super::error::{ROOT_DEVICE, SpecError};
use super::nic::Nic;
use super::vhost_user::{self, VhostUser, VhostUserDevice};

/// Name of the port on which the agent serves the guest link.
pub const AGENT_PORT: &str = "kiln.agent.0";

/// Words of the kernel command line for a root whose own init becomes PID 1. A line for each service takes long on a
/// serial console, and systemd has them in its journal. The console is read by Kiln, so no user can log in on it; without
/// udev in the image, systemd would also wait a minute and a half for its device.
const INIT_WORDS: [&str; 3] = ["kiln.init=image", "systemd.show_status=0", "systemd.getty_auto=0"];

/// How a disk's bytes are laid out in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    /// The file is the disk.
    Raw,
    /// QEMU's copy-on-write format. An image that names a data file or a backing file is refused. QEMU would open the
    /// data file, whatever file of the host that is. It would not open the backing file, so the guest would miss its
    /// data.
    Qcow2,
}

/// Who writes to a disk, and whether snapshots hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskRole {
    /// Read only. Any number of VMs can share the file. A snapshot names the file but does not hold it, so a restore
    /// requires that the file has not changed.
    Shared,
    /// Writable. A snapshot holds the contents of that moment, and each fork writes to a layer of its own.
    Scratch,
    /// Writable, and starts as a copy of the file, which is never written to. The copy is a [`Scratch`](Self::Scratch)
    /// disk in the directory of the VM, and is removed with it. The file is a disk that Kiln has made, see
    /// [`VolumeStore::scratch_disk`](crate::volume::VolumeStore::scratch_disk), which is the upper layer of a root, and
    /// [`VolumeStore::blank_disk`](crate::volume::VolumeStore::blank_disk), which is not: so the spec and the size say
    /// what is on it.
    Fresh,
    /// Writable, and the file outlives the VM. A snapshot does not hold it, so each fork must be given a volume of its
    /// own: see [`ForkPart::volumes`](crate::ForkPart::volumes).
    Volume,
    /// Read only, and given to each fork like a volume, but any number of VMs can share the file. A snapshot does not
    /// hold it, and does not depend on its contents.
    VolumeReadOnly,
}

impl DiskRole {
    /// Whether the guest can't write to it.
    pub const fn is_read_only(self) -> bool {
        matches!(self, Self::Shared | Self::VolumeReadOnly)
    }

    /// Whether each fork is given a file of its own choice for it: see [`ForkPart::volumes`](crate::ForkPart::volumes).
    pub const fn is_volume(self) -> bool {
        matches!(self, Self::Volume | Self::VolumeReadOnly)
    }
}

/// A block device of the guest, in order `/dev/vda`, `/dev/vdb` …
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The file on the host.
    pub path: Utf8PathBuf,
    /// Its layout.
    pub format: DiskFormat,
    /// Who writes to it, and whether snapshots hold it.
    pub role: DiskRole,
}

/// A read-only root filesystem. The agent mounts it and puts a writable overlay on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootSpec {
    /// Device in the guest, such as `/dev/vda`.
    pub device: String,
    /// The type of its filesystem, such as `erofs`.
    pub fstype: String,
    /// An ext4 disk for the upper layer of the overlay, such as `/dev/vdb`. If absent, that is in the guest's memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upper: Option<String>,
    /// Digest of the image whose root it is: 64 hex digits. It covers the contents of the disk and the configuration,
    /// so snapshots of the VM have those of the image, too. Absent in specs of older versions of Kiln.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The root's own init becomes PID 1, and the agent runs beside it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub init: bool,
}

/// A read-only disk with the contents of `/lib/modules/<release>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleDisk {
    /// Device in the guest, such as `/dev/vdb`.
    pub device: String,
    /// The type of its filesystem, such as `erofs`.
    pub fstype: String,
}

/// What happens to a VM when its owner ends without stopping it. The owner is the process that started or adopted it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnerLoss {
    /// The VM is killed.
    #[default]
    Kill,
    /// The VM keeps running until another process adopts it.
    KeepRunning,
}

/// Everything that a driver needs to start a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// The Linux kernel: a bzImage, or another format that the VMM boots.
    pub kernel: Utf8PathBuf,
    /// Initial filesystem, with the agent as `/init`.
    pub initramfs: Option<Utf8PathBuf>,
    /// The image's kernel command line. The engine adds `kiln.*`, and `console=` and `panic=` if they are absent.
    pub cmdline: String,
    /// The end of the kernel command line. The last value of a parameter counts, so these override all others.
    pub cmdline_extra: Vec<String>,
    /// CPUs of the guest.
    pub cpus: u32,
    /// Memory of the guest.
    pub memory_mib: u64,
    /// KVM or TCG.
    pub acceleration: AccelerationRequest,
    /// Block devices.
    pub disks: Vec<Disk>,
    /// Kernel modules that the agent loads once its link is up.
    pub modules: Vec<String>,
    /// The root filesystem. If absent, the initramfs is the root.
    pub root: Option<RootSpec>,
    /// A disk with all modules of the kernel. The agent mounts it on `/lib/modules/<release>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module_disk: Option<ModuleDisk>,
    /// More virtio-serial ports. Each has a socket on the host, see [`Vm::port_stream`](crate::Vm::port_stream).
    pub extra_ports: Vec<String>,
    /// Network cards.
    #[serde(default)]
    pub nics: Vec<Nic>,
    /// Devices that other processes serve. A VM with such a device can't be saved.
    #[serde(default)]
    pub vhost_user: Vec<VhostUser>,
    /// Makes the guest's memory a file. [`Vm::snapshot`](crate::Vm::snapshot) requires that, and keeps the file without
    /// a copy.
    #[serde(default)]
    pub forkable: bool,
    /// What happens to the VM when its owner is lost.
    #[serde(default)]
    pub owner_loss: OwnerLoss,
}

/// The size of the host. A spec is checked against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostLimits {
    /// CPUs of the host.
    pub cpus: u32,
    /// Memory of the host.
    pub memory_mib: u64,
}

impl VmSpec {
    /// A VM with one CPU and 256 MiB, whose root is its initramfs.
    pub fn new(kernel: impl Into<Utf8PathBuf>, initramfs: impl Into<Utf8PathBuf>) -> Self {
        Self {
            kernel: kernel.into(),
            initramfs: Some(initramfs.into()),
            cmdline: String::new(),
            cmdline_extra: Vec::new(),
            cpus: 1,
            memory_mib: 256,
            acceleration: AccelerationRequest::Auto,
            disks: Vec::new(),
            modules: Vec::new(),
            root: None,
            module_disk: None,
            extra_ports: Vec::new(),
            nics: Vec::new(),
            vhost_user: Vec::new(),
            forkable: false,
            owner_loss: OwnerLoss::Kill,
        }
    }

    /// The spec as the VM of a directory has it: each [fresh](DiskRole::Fresh) disk is a file there.
    pub(crate) fn in_directory(&self, directory: &Utf8Path) -> Self {
        let mut spec = self.clone();
        let fresh = spec.disks.iter_mut().enumerate().filter(|(_, disk)| disk.role == DiskRole::Fresh);
        for (index, disk) in fresh {
            (disk.path, disk.role) = (directory.join(format!("disk-{index}")), DiskRole::Scratch);
        }
        spec
    }

    /// The first device that no VMM can save, as text for users.
    pub(crate) fn unmigratable(&self) -> Option<String> {
        self.vhost_user.first().map(VhostUser::to_string)
    }

    /// Checks the spec against the host on which it is to run.
    ///
    /// # Errors
    /// The first part that no driver could start.
    pub fn validate(&self, host: HostLimits) -> Result<(), SpecError> {
        self.validate_size(host)?;
        self.validate_names()?;
        self.validate_files()?;
        let cmdline = self.kernel_cmdline();
        if cmdline.len() > CMDLINE_BYTES_MAX {
            let problem = format!("has {} bytes, but the kernel reads at most {CMDLINE_BYTES_MAX}", cmdline.len());
            return Err(SpecError::Cmdline { problem });
        }
        match cmdline.bytes().find(u8::is_ascii_control) {
            Some(byte) => Err(SpecError::Cmdline { problem: format!("has the control byte {byte:#04x}") }),
            None => Ok(()),
        }
    }

    /// This VM with all modules of its kernel as one more disk: an EROFS file.
    #[must_use]
    pub fn with_module_disk(mut self, file: &Utf8Path) -> Self {
        let device = disk_device(self.disks.len());
        self.disks.push(Disk { path: file.to_owned(), format: DiskFormat::Raw, role: DiskRole::Shared });
        self.module_disk = Some(ModuleDisk { device, fstype: "erofs".into() });
        self
    }

    /// The kernel command line. In order: the image's words, the engine's, those for the agent, the user's.
    pub fn kernel_cmdline(&self) -> String {
        let mut words: Vec<String> = self.cmdline.split_ascii_whitespace().map(str::to_owned).collect();
        for (key, value) in [("console=", "ttyS0"), ("panic=", "-1")] {
            if !words.iter().any(|word| word.starts_with(key)) {
                words.push(format!("{key}{value}"));
            }
        }
        if !self.modules.is_empty() {
            words.push(format!("kiln.modules={}", self.modules.join(",")));
        }
        if let Some(root) = &self.root {
            let upper = root.upper.iter().map(|device| format!(":{device}")).collect::<String>();
            words.push(format!("kiln.root={}:{}{upper}", root.device, root.fstype));
            if root.init {
                words.extend(INIT_WORDS.map(str::to_owned));
            }
        }
        if let Some(ModuleDisk { device, fstype }) = &self.module_disk {
            words.push(format!("kiln.module_disk={device}:{fstype}"));
        }
        words.extend(self.cmdline_extra.iter().cloned());
        words.join(" ")
    }

    pub(crate) fn validate_size(&self, host: HostLimits) -> Result<(), SpecError> {
        let cpus_max = host.cpus.max(CPUS_MAX);
        if !(1..=cpus_max).contains(&self.cpus) {
            return Err(SpecError::Cpus { cpus: self.cpus, max: cpus_max, host: host.cpus });
        }
        if !(MEMORY_MIB_MIN..=host.memory_mib).contains(&self.memory_mib) {
            return Err(SpecError::Memory { memory_mib: self.memory_mib, host_mib: host.memory_mib });
        }
        let served =
            |is: fn(&VhostUserDevice) -> bool| self.vhost_user.iter().filter(|other| is(&other.device)).count();
        let counts = [
            ("disks", self.disks.len() + served(|kind| matches!(kind, VhostUserDevice::Blk)), DISKS_MAX),
            ("ports", self.extra_ports.len(), EXTRA_PORTS_MAX),
            ("network cards", self.nics.len() + served(|kind| matches!(kind, VhostUserDevice::Net { .. })), NICS_MAX),
            // The vsock driver of Linux serves one device, so a second one would have no driver.
            ("vsock devices", served(|kind| matches!(kind, VhostUserDevice::Vsock)), 1),
            ("shared directories", served(|kind| matches!(kind, VhostUserDevice::Fs { .. })), SHARES_MAX),
        ];
        match counts.into_iter().find(|(_, count, max)| count > max) {
            Some((what, count, max)) => Err(SpecError::TooMany { what, count, max }),
            None => Ok(()),
        }
    }

    pub(crate) fn validate_names(&self) -> Result<(), SpecError> {
        for module in &self.modules {
            check_name("module", module, "._-")?;
        }
        for (index, port) in self.extra_ports.iter().enumerate() {
            check_name("port", port, "._-")?;
            if port == AGENT_PORT || self.extra_ports[..index].contains(port) {
                return Err(SpecError::SamePort { name: port.clone() });
            }
        }
        if let Some(root) = &self.root {
            for device in std::iter::once(&root.device).chain(&root.upper) {
                check_name(ROOT_DEVICE, device, "._-/")?;
            }
            check_name("root filesystem", &root.fstype, "._-")?;
            if let Some(digest) = &root.image {
                check_name("image", digest, "")?;
            }
        }
        if let Some(ModuleDisk { device, fstype }) = &self.module_disk {
            check_name("module disk", device, "._-/")?;
            check_name("filesystem of the module disk", fstype, "._-")?;
        }
        self.validate_nics()?;
        self.vhost_user.iter().try_for_each(VhostUser::check)?;
        vhost_user::check_distinct(&self.vhost_user)
    }

    pub(crate) fn validate_nics(&self) -> Result<(), SpecError> {
        let taps = self.nics.iter().enumerate().filter_map(|(index, nic)| Some((index, nic.attachment.tap()?)));
        let streams = self.nics.iter().enumerate().filter_map(|(index, nic)| Some((index, nic.attachment.stream()?)));
        if let Some((index, socket)) = streams.into_iter().find(|(_, socket)| !socket.is_absolute()) {
            let problem = format!("the path of its socket must be absolute, not `{socket}`");
            return Err(SpecError::Nic { index, problem });
        }
        let mut seen = Vec::new();
        for (index, tap) in taps {
            if let Some(problem) = tap.problem() {
                return Err(SpecError::Nic { index, problem });
            }
            if seen.contains(&tap) {
                return Err(SpecError::Nic { index, problem: format!("another card has {tap}") });
            }
            seen.push(tap);
        }
        Ok(())
    }

    fn validate_files(&self) -> Result<(), SpecError> {
        let kernel = std::iter::once(("kernel", &self.kernel));
        let initramfs = self.initramfs.iter().map(|path| ("initramfs", path));
        let disks = self.disks.iter().map(|disk| ("disk", &disk.path));
        for (what, path) in kernel.chain(initramfs).chain(disks) {
            // Without `O_NONBLOCK`, the open of a FIFO waits for a writer. A FIFO is refused, because QEMU's own open
            // of it would wait too.
            let opened = fs_err::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
            let kind = opened.and_then(|file| file.metadata()).map(|meta| meta.file_type());
            let usable = kind.is_ok_and(|kind| !kind.is_dir() && !kind.is_fifo());
            if !usable {
                return Err(SpecError::NoFile { what, path: path.clone() });
            }
        }
        self.vhost_user.iter().try_for_each(VhostUser::probe)
    }
}

/// The device of a disk by its index: `/dev/vda` and so on. A VM has at most [`DISKS_MAX`], fewer than letters.
fn disk_device(index: usize) -> String {
    let letter = (b'a'..=b'z').nth(index).map_or('?', char::from);
    format!("/dev/vd{letter}")
}

fn check_name(what: &'static str, name: &str, also: &str) -> Result<(), SpecError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || also.contains(c);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(allowed) || name.starts_with(['-', '.']) {
        return Err(SpecError::Name { what, name: name.into() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Attachment, MacAddress, Tap};

    const HOST: HostLimits = HostLimits { cpus: 2, memory_mib: 4096 };

    fn spec() -> VmSpec {
        // A file that always exists. Validation does not read it.
        VmSpec::new("/proc/self/exe", "/proc/self/exe")
    }

    #[test]
    fn only_a_fresh_disk_is_a_file_of_the_vm() {
        let disk = |role| Disk { path: "/given".into(), format: DiskFormat::Raw, role };
        let given =
            VmSpec { disks: vec![disk(DiskRole::Shared), disk(DiskRole::Fresh), disk(DiskRole::Scratch)], ..spec() };
        let own = given.in_directory("/vms/x".into());
        assert_eq!(own.disks[1], Disk { path: "/vms/x/disk-1".into(), ..disk(DiskRole::Scratch) });
        assert_eq!((&own.disks[0], &own.disks[2]), (&given.disks[0], &given.disks[2]));
        assert_eq!(own.in_directory("/vms/y".into()), own);
    }

    #[test]
    fn an_ordinary_spec_is_valid() {
        assert_eq!(spec().validate(HOST), Ok(()));
    }

    #[test]
    fn too_little_and_too_much_memory_are_refused_with_both_bounds() {
        for memory_mib in [0, MEMORY_MIB_MIN - 1, 4097, 1 << 20, u64::MAX] {
            let error = VmSpec { memory_mib, ..spec() }.validate(HOST).expect_err("out of bounds");
            let words = error.to_string();
            assert!(words.contains("80 MiB") && words.contains("4096 MiB"), "{words}");
            assert!(words.contains(&memory_mib.to_string()), "{words}");
        }
        for memory_mib in [MEMORY_MIB_MIN, 4096] {
            assert_eq!(VmSpec { memory_mib, ..spec() }.validate(HOST), Ok(()));
        }
    }

    #[test]
    fn a_bad_device_name_and_a_device_of_two_cards_are_refused() {
        let card = |device: &str| Nic {
            mac: MacAddress::random(),
            attachment: Attachment::Tap(Tap { device: device.into(), namespace: None }),
        };
        let validate = |nics| VmSpec { nics, ..spec() }.validate(HOST);
        assert_eq!(validate(vec![card("tap0"), Nic::unplugged(MacAddress::random()), card("tap1")]), Ok(()));
        for wrong in [vec![card("tap0"), card("tap%d")], vec![card("tap0"), card("tap0")]] {
            let error = validate(wrong).expect_err("can't be");
            assert!(matches!(error, SpecError::Nic { index: 1, .. }), "{error}");
        }
    }

    #[test]
    fn a_fifo_instead_of_a_file_is_refused_without_waiting() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = Utf8PathBuf::try_from(directory.path().join("fifo")).expect("UTF-8");
        rustix::fs::mknodat(rustix::fs::CWD, path.as_std_path(), rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .expect("a FIFO");
        let disk = Disk { path: path.clone(), format: DiskFormat::Raw, role: DiskRole::Shared };
        let pipes = [VmSpec { disks: vec![disk], ..spec() }, VmSpec { kernel: path, ..spec() }];
        for (spec, what) in pipes.into_iter().zip(["disk", "kernel"]) {
            let error = spec.validate(HOST).expect_err("is not a file");
            assert!(matches!(&error, SpecError::NoFile { what: of, .. } if *of == what), "{error}");
        }
    }

    #[test]
    fn no_cpus_and_too_many_are_refused() {
        for cpus in [0, CPUS_MAX + 1, u32::MAX] {
            let error = VmSpec { cpus, ..spec() }.validate(HOST).expect_err("out of bounds");
            assert_eq!(error, SpecError::Cpus { cpus, max: 64, host: 2 });
        }
    }

    #[test]
    fn a_missing_kernel_is_named() {
        let spec = VmSpec { kernel: "/nowhere/vmlinuz".into(), ..spec() };
        let words = spec.validate(HOST).expect_err("not there").to_string();
        assert!(words.contains("kernel") && words.contains("/nowhere/vmlinuz"), "{words}");
    }

    #[test]
    fn names_that_would_break_a_command_line_are_refused() {
        for name in ["", "a b", "a,b", "a=b", "../x", "a\n", "-x", &"x".repeat(65)] {
            let module = VmSpec { modules: vec![name.into()], ..spec() };
            assert!(matches!(module.validate(HOST), Err(SpecError::Name { .. })), "{name:?}");
            let port = VmSpec { extra_ports: vec![name.into()], ..spec() };
            assert!(matches!(port.validate(HOST), Err(SpecError::Name { .. })), "{name:?}");
        }
    }

    #[test]
    fn a_port_that_is_listed_twice_is_refused() {
        for ports in [vec!["a", "a"], vec![AGENT_PORT]] {
            let ports = ports.into_iter().map(str::to_owned).collect();
            let spec = VmSpec { extra_ports: ports, ..spec() };
            assert!(matches!(spec.validate(HOST), Err(SpecError::SamePort { .. })));
        }
    }

    #[test]
    fn devices_of_other_processes_count_toward_the_bound_of_their_kind() {
        let mac = "52:54:00:12:34:56".parse().expect("an address");
        let share = |index: usize| VhostUserDevice::Fs { tag: format!("share{index}") };
        type Kind<'a> = &'a dyn Fn(usize) -> VhostUserDevice;
        let many = |count: usize, kind: Kind<'_>| {
            let device = |index| VhostUser::new(kind(index), format!("/s{index}"));
            VmSpec { vhost_user: (0..count).map(device).collect(), nics: vec![Nic::unplugged(mac)], ..spec() }
        };
        let cases: [(&str, usize, Kind<'_>); 4] = [
            ("disks", DISKS_MAX + 1, &|_| VhostUserDevice::Blk),
            ("network cards", NICS_MAX, &|_| VhostUserDevice::Net { mac }),
            ("vsock devices", 2, &|_| VhostUserDevice::Vsock),
            ("shared directories", SHARES_MAX + 1, &share),
        ];
        for (named, count, kind) in cases {
            let error = many(count, kind).validate_size(HOST).expect_err("is too many");
            assert!(matches!(&error, SpecError::TooMany { what, .. } if *what == named), "{error}");
            assert_eq!(many(count - 1, kind).validate_size(HOST), Ok(()));
        }
    }

    #[test]
    fn a_device_without_a_backend_is_refused_with_its_socket() {
        let device = VhostUser::new(VhostUserDevice::Blk, "/nowhere/x.sock");
        let error = VmSpec { vhost_user: vec![device], ..spec() }.validate(HOST).expect_err("is not there");
        assert_eq!(
            error.to_string(),
            "the vhost-user-blk device `/nowhere/x.sock` has no socket: the path does not exist"
        );
    }

    #[test]
    fn the_command_line_ends_with_the_users_words() {
        let spec = VmSpec {
            cmdline: "quiet console=hvc0".into(),
            cmdline_extra: vec!["panic=0".into()],
            modules: vec!["erofs".into(), "overlay".into()],
            root: Some(RootSpec {
                device: "/dev/vda".into(),
                fstype: "erofs".into(),
                upper: None,
                image: None,
                init: false,
            }),
            disks: vec![Disk { path: "/root.erofs".into(), format: DiskFormat::Raw, role: DiskRole::Shared }],
            ..spec()
        };
        assert_eq!(
            spec.kernel_cmdline(),
            "quiet console=hvc0 panic=-1 kiln.modules=erofs,overlay kiln.root=/dev/vda:erofs panic=0"
        );
        let root = spec.root.clone().map(|root| RootSpec { init: true, ..root });
        let with_init = VmSpec { root, cmdline_extra: vec![], ..VmSpec::new("/k", "/i") };
        assert!(with_init.kernel_cmdline().contains(" kiln.root=/dev/vda:erofs kiln.init=image "));
        let spec = spec.with_module_disk("/modules.erofs".into());
        assert!(spec.kernel_cmdline().ends_with(" kiln.root=/dev/vda:erofs kiln.module_disk=/dev/vdb:erofs panic=0"));
        assert!(spec.disks[1].role.is_read_only() && spec.disks[1].path == "/modules.erofs");
    }

    #[test]
    fn a_long_or_broken_command_line_is_refused() {
        let long = VmSpec { cmdline: "x".repeat(CMDLINE_BYTES_MAX), ..spec() };
        assert!(matches!(long.validate(HOST), Err(SpecError::Cmdline { .. })));
        let newline = VmSpec { cmdline_extra: vec!["a\nb".into()], ..spec() };
        assert!(matches!(newline.validate(HOST), Err(SpecError::Cmdline { .. })));
    }

    #[test]
    fn each_refusal_names_the_part_and_the_bound() {
        let mac: MacAddress = "52:54:00:12:34:56".parse().expect("an address");
        let tap = |device: &str, namespace: Option<&str>| Nic {
            mac,
            attachment: Attachment::Tap(Tap { device: device.into(), namespace: namespace.map(Into::into) }),
        };
        let share = |tag: &str| VhostUserDevice::Fs { tag: tag.into() };
        let served = |device, socket: &str| VhostUser::new(device, socket);
        let queues = |device, queues| VhostUser { queues, ..served(device, "/s") };
        let nics = |nics| VmSpec { nics, ..spec() };
        let devices = |vhost_user| VmSpec { vhost_user, ..spec() };
        let root = |device: &str, fstype: &str| VmSpec {
            root: Some(RootSpec {
                device: device.into(),
                fstype: fstype.into(),
                upper: None,
                image: None,
                init: false,
            }),
            ..spec()
        };
        let disk = Disk { path: "/nowhere/disk".into(), format: DiskFormat::Raw, role: DiskRole::Scratch };
        let specs = [
            VmSpec { cpus: 0, ..spec() },
            VmSpec { memory_mib: 1, ..spec() },
            VmSpec { kernel: "/nowhere/kernel".into(), ..spec() },
            VmSpec { initramfs: Some("/nowhere/initramfs".into()), ..spec() },
            VmSpec { disks: vec![disk.clone()], ..spec() },
            VmSpec { disks: vec![disk; DISKS_MAX + 1], ..spec() },
            VmSpec { modules: vec!["a b".into()], ..spec() },
            VmSpec { extra_ports: vec!["a/b".into()], ..spec() },
            VmSpec { extra_ports: vec!["a".into(), "a".into()], ..spec() },
            VmSpec { extra_ports: vec![AGENT_PORT.into()], ..spec() },
            root("/dev/vd a", "erofs"),
            root("/dev/vda", "erofs,ro"),
            VmSpec { cmdline: "x".repeat(CMDLINE_BYTES_MAX), ..spec() },
            VmSpec { cmdline_extra: vec!["a\nb".into()], ..spec() },
            nics(vec![tap("a/b", None)]),
            nics(vec![tap("tap0", Some("netns/one"))]),
            nics(vec![tap("tap0", None), tap("tap0", None)]),
            nics(vec![tap("tap0", Some("/run/netns/one")), tap("tap0", Some("/run/netns/one"))]),
            devices(vec![served(VhostUserDevice::Blk, "s")]),
            devices(vec![served(VhostUserDevice::Blk, "/a\nb")]),
            devices(vec![queues(VhostUserDevice::Blk, 0)]),
            devices(vec![queues(VhostUserDevice::Vsock, 2)]),
            devices(vec![served(share("a b"), "/s")]),
            devices(vec![served(share("a"), "/a"), served(share("a"), "/b")]),
            devices(vec![served(VhostUserDevice::Blk, "/s"), served(VhostUserDevice::Net { mac }, "/s")]),
            devices(vec![served(VhostUserDevice::Blk, "/nowhere/socket")]),
            devices(vec![served(VhostUserDevice::Blk, "/proc/self/exe")]),
        ];
        let refusals = specs.map(|spec| spec.validate(HOST).expect_err("is refused").to_string());
        insta::assert_snapshot!(refusals.join("\n"));
    }
}
