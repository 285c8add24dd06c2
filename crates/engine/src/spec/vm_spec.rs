//! What a VM is made of, before any VMM is chosen.
//!
//! A [`VmSpec`] comes from a user's flags, an API body or a plan, so [`VmSpec::validate`] takes it as hostile: it refuses
//! what no driver could start, in words that name the bound. Drivers turn a valid spec into a VMM's own arguments.

use std::os::unix::fs::FileTypeExt as _;

use camino::Utf8PathBuf;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use serde::{Deserialize, Serialize};

use super::acceleration::AccelerationRequest;
use super::bounds::{
    CMDLINE_BYTES_MAX, CPUS_MAX, DISKS_MAX, EXTRA_PORTS_MAX, MEMORY_MIB_MIN, NAME_BYTES_MAX, NICS_MAX, SHARES_MAX,
};
use super::error::SpecError;
use super::nic::Nic;
use super::vhost_user::{self, VhostUser, VhostUserDevice};

/// Name of the port on which the agent serves the guest link.
pub const AGENT_PORT: &str = "kiln.agent.0";
/// How a disk's bytes are laid out in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    /// The file is the disk.
    Raw,
    /// QEMU's copy-on-write format. An image that names another file, as its backing file or as the place of its data, is
    /// refused: the guest would read that file of the host, or find its own data gone.
    Qcow2,
}

/// What a disk is to its guest, and to the snapshots of its VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskRole {
    /// The guest reads it. Any number of VMs share it, a snapshot names it, and a restore needs it unchanged.
    Shared,
    /// The guest writes to it. A snapshot holds what it was at that moment, and each fork writes to a layer of its own.
    Scratch,
    /// The guest writes to it, and what it writes outlives the VM. A snapshot names it and holds none of it, so each fork
    /// must be given one, which it alone has: see [`ForkPart::volumes`](crate::ForkPart::volumes).
    Volume,
}

/// A block device of the guest, in order `/dev/vda`, `/dev/vdb` …
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The file on the host.
    pub path: Utf8PathBuf,
    /// Its layout.
    pub format: DiskFormat,
    /// What it is to the guest and to snapshots.
    pub role: DiskRole,
}

/// A root filesystem that the agent mounts below an overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootSpec {
    /// Device in the guest, such as `/dev/vda`.
    pub device: String,
    /// Filesystem on it, such as `erofs`.
    pub fstype: String,
}

/// What becomes of a VM whose owner, the process that started it, ends without a word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnerLoss {
    /// It ends too.
    #[default]
    Kill,
    /// It runs on, until it is adopted or its home is recovered.
    KeepRunning,
}

/// Everything a driver needs to start a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// Linux kernel (bzImage, or what the VMM takes).
    pub kernel: Utf8PathBuf,
    /// Initial filesystem, with the agent as `/init`.
    pub initramfs: Option<Utf8PathBuf>,
    /// The image's kernel command line. The engine adds `console=`, `panic=` (unless they are there) and `kiln.*`.
    pub cmdline: String,
    /// Put last on the kernel command line, so it wins.
    pub cmdline_extra: Vec<String>,
    /// CPUs of the guest.
    pub cpus: u32,
    /// Memory of the guest.
    pub memory_mib: u64,
    /// What runs its instructions.
    pub acceleration: AccelerationRequest,
    /// Block devices.
    pub disks: Vec<Disk>,
    /// Kernel modules that the agent loads once its link is up.
    pub modules: Vec<String>,
    /// Root below an overlay; without it the guest lives in its initramfs.
    pub root: Option<RootSpec>,
    /// More guest ports, each with its own host socket ([`Vm::port_stream`](crate::Vm::port_stream)).
    pub extra_ports: Vec<String>,
    /// Network cards.
    #[serde(default)]
    pub nics: Vec<Nic>,
    /// Devices served by other processes. A VM with one can't be saved.
    #[serde(default)]
    pub vhost_user: Vec<VhostUser>,
    /// Its memory is a file, so that [`Vm::snapshot`](crate::Vm::snapshot) copies none of it.
    #[serde(default)]
    pub forkable: bool,
    /// What becomes of it when its owner is lost.
    #[serde(default)]
    pub owner_loss: OwnerLoss,
}

/// What the host can give, against which a spec is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostLimits {
    /// CPUs of the host.
    pub cpus: u32,
    /// Memory of the host.
    pub memory_mib: u64,
}

impl VmSpec {
    /// A VM of one CPU and 256 MiB that lives in its initramfs.
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
            extra_ports: Vec::new(),
            nics: Vec::new(),
            vhost_user: Vec::new(),
            forkable: false,
            owner_loss: OwnerLoss::Kill,
        }
    }

    /// The first device that no VMM can save, for people.
    pub(crate) fn unmigratable(&self) -> Option<String> {
        self.vhost_user.first().map(VhostUser::to_string)
    }

    /// Checks the spec against the host it shall run on.
    ///
    /// # Errors
    /// The first thing that no driver could start.
    pub fn validate(&self, host: HostLimits) -> Result<(), SpecError> {
        self.validate_size(host)?;
        self.validate_names()?;
        self.validate_files()?;
        let cmdline = self.kernel_cmdline();
        if cmdline.len() > CMDLINE_BYTES_MAX {
            let problem = format!("is {} bytes long, at most {CMDLINE_BYTES_MAX} are read", cmdline.len());
            return Err(SpecError::Cmdline { problem });
        }
        match cmdline.bytes().find(u8::is_ascii_control) {
            Some(byte) => Err(SpecError::Cmdline { problem: format!("has the control byte {byte:#04x}") }),
            None => Ok(()),
        }
    }

    /// The kernel command line: the image's, what the engine needs, what the agent reads, what the user added.
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
            words.push(format!("kiln.root={}:{}", root.device, root.fstype));
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
            // Linux knows one such device: a second one has no driver.
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
            check_name("root device", &root.device, "._-/")?;
            check_name("root filesystem", &root.fstype, "._-")?;
        }
        self.validate_nics()?;
        self.vhost_user.iter().try_for_each(VhostUser::check)?;
        vhost_user::check_distinct(&self.vhost_user)
    }

    pub(crate) fn validate_nics(&self) -> Result<(), SpecError> {
        let taps = self.nics.iter().enumerate().filter_map(|(index, nic)| Some((index, nic.attachment.tap()?)));
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
            // Else opening a pipe would wait for its writer, here and where the VMM is given it.
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
        // Any file that is always there will do: validation looks at presence alone.
        VmSpec::new("/proc/self/exe", "/proc/self/exe")
    }

    #[test]
    fn an_ordinary_spec_is_valid() {
        assert_eq!(spec().validate(HOST), Ok(()));
    }

    #[test]
    fn memory_outside_of_the_host_is_refused_with_both_bounds_named() {
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
    fn a_card_on_what_is_no_tap_device_or_on_anothers_is_refused() {
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
    fn a_pipe_in_the_place_of_a_file_is_refused_without_waiting() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = Utf8PathBuf::try_from(directory.path().join("fifo")).expect("UTF-8");
        rustix::fs::mknodat(rustix::fs::CWD, path.as_std_path(), rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .expect("a pipe");
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
    fn a_port_can_be_there_once_only() {
        for ports in [vec!["a", "a"], vec![AGENT_PORT]] {
            let ports = ports.into_iter().map(str::to_owned).collect();
            let spec = VmSpec { extra_ports: ports, ..spec() };
            assert!(matches!(spec.validate(HOST), Err(SpecError::SamePort { .. })));
        }
    }

    #[test]
    fn devices_of_other_processes_count_among_their_kind() {
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
    fn a_device_whose_backend_is_not_there_is_refused_with_its_socket() {
        let device = VhostUser::new(VhostUserDevice::Blk, "/nowhere/x.sock");
        let error = VmSpec { vhost_user: vec![device], ..spec() }.validate(HOST).expect_err("is not there");
        assert_eq!(error.to_string(), "the vhost-user-blk device `/nowhere/x.sock` is not there");
    }

    #[test]
    fn the_command_line_ends_with_what_the_user_added() {
        let spec = VmSpec {
            cmdline: "quiet console=hvc0".into(),
            cmdline_extra: vec!["panic=0".into()],
            modules: vec!["erofs".into(), "overlay".into()],
            root: Some(RootSpec { device: "/dev/vda".into(), fstype: "erofs".into() }),
            ..spec()
        };
        assert_eq!(
            spec.kernel_cmdline(),
            "quiet console=hvc0 panic=-1 kiln.modules=erofs,overlay kiln.root=/dev/vda:erofs panic=0"
        );
    }

    #[test]
    fn a_command_line_that_the_kernel_would_cut_is_refused() {
        let long = VmSpec { cmdline: "x".repeat(CMDLINE_BYTES_MAX), ..spec() };
        assert!(matches!(long.validate(HOST), Err(SpecError::Cmdline { .. })));
        let newline = VmSpec { cmdline_extra: vec!["a\nb".into()], ..spec() };
        assert!(matches!(newline.validate(HOST), Err(SpecError::Cmdline { .. })));
    }
}
