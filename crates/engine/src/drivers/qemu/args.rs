//! From a [`VmSpec`] to QEMU's command line. Pure: nothing is opened, looked up or started here.
//!
//! Descriptors are passed by number; [`process`](crate::process) makes the child keep exactly those.

use std::ffi::OsString;
use std::os::fd::RawFd;

use camino::{Utf8Path, Utf8PathBuf};

use super::firmware::Firmware;
use super::version::{KernelVersion, QemuVersion};
use crate::spec::{AGENT_PORT, VhostUser, VhostUserDevice, VmSpec};

/// The seccomp filter: QEMU needs none of what this takes away.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
/// Kernels from here on use `cmpxchg16b` in their allocator …
const KERNEL_WITH_CMPXCHG16B: KernelVersion = KernelVersion { major: 6, minor: 12 };
/// … which TCG before this version emulates with garbage in EFLAGS, so that boots panic now and then.
const QEMU_WITH_SOUND_CMPXCHG16B: QemuVersion = QemuVersion { major: 8, minor: 0 };
/// Memory files have `rom=off` from here on.
const QEMU_WITH_ROM_OFF: QemuVersion = QemuVersion { major: 8, minor: 2 };

/// A connection that is gone is tried again after milliseconds from here on, after whole seconds before.
const QEMU_WITH_RECONNECT_MS: QemuVersion = QemuVersion { major: 9, minor: 2 };

/// A vhost-user network card with MSI-X is sound under TCG from here on at the latest; 7.2 reads through a null pointer when
/// its driver starts, for the interrupt routes of a KVM that is not there.
const QEMU_WITH_MSIX_FOR_CARDS: QemuVersion = QemuVersion { major: 10, minor: 0 };

/// All that TCG can, but for the promise that `rep movsb` is fast: a guest that believes it copies byte by byte, four to
/// seven times slower than by words.
pub const TCG_CPU: &str = "max,-erms,-fsrm";
const TCG_CPU_NO_CX16: &str = "max,-erms,-fsrm,-cx16";

/// The machine, without what no guest of ours needs: a SATA and an SMBus controller, keyboard and mouse, a second clock, and
/// VMware's port. Each is code of the VMM that a guest could reach. A snapshot is bound to it.
pub(crate) const MACHINE: &str = "q35,sata=off,smbus=off,i8042=off,hpet=off,vmport=off";

/// Without an HPET a kernel tries whether the old timer's interrupt comes through, for as long as a few of its ticks take,
/// and panics if none came ("IO-APIC + timer doesn't work"). It is wired in this machine, but on a busy host TCG delivers
/// it late: 3 of 12 boots ended so. Under KVM a kernel does not try either.
const TIMER: &str = "no_timer_check";

/// What runs the guest's instructions, once that is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accelerator {
    /// KVM with the host's CPU as it is.
    Kvm,
    /// KVM without `IA32_ARCH_CAPABILITIES`, an MSR that some hosts claim to have and refuse to set.
    KvmWithoutArchCapabilities,
    /// Translation.
    Tcg,
}

/// Sockets that QEMU inherits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sockets {
    pub(crate) monitor: RawFd,
    pub(crate) agent: RawFd,
    /// In the order of [`VmSpec::extra_ports`].
    pub(crate) extra: Vec<RawFd>,
    /// TAP devices of those cards of [`VmSpec::nics`] that are on one.
    pub(crate) taps: Vec<Option<RawFd>>,
    /// Connections to those backends of [`VmSpec::vhost_user`] that QEMU does not connect to itself.
    pub(crate) backends: Vec<Option<RawFd>>,
}

/// What files are called that QEMU opens. It inherits most of them open, because it may not reach them by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) kernel: Utf8PathBuf,
    pub(crate) initramfs: Option<Utf8PathBuf>,
    /// The `-blockdev` of each disk of the spec.
    pub(crate) disks: Vec<serde_json::Value>,
    /// Descriptors of files of disks; the first is `/dev/fdset/0`.
    pub(crate) sets: Vec<RawFd>,
}

/// What is known beside the spec.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) accelerator: Accelerator,
    pub(crate) firmware: Firmware,
    /// Unknown versions get the careful arguments.
    pub(crate) qemu: Option<QemuVersion>,
    pub(crate) kernel: Option<KernelVersion>,
}

/// What backs the guest's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Memory {
    /// The VMM's own memory.
    Anonymous,
    /// A file that the guest writes to, for guests that can be saved, or that share it with vhost-user backends.
    Shared(Utf8PathBuf),
    /// A file that the guest reads, and never writes to: the kernel copies each page that it changes.
    Private(Utf8PathBuf),
    /// The same, handed over open for reading when QEMU opens it for writing, see `confine::broker`.
    Brokered(Utf8PathBuf),
}

/// Where a guest begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// With the first instruction of its kernel.
    Boot,
    /// Where the device state says that will be loaded; it stands still until told to go on.
    Restore,
}

impl Start {
    /// The fail point after its VMM was started.
    pub(crate) fn spawned(&self) -> &'static str {
        match self {
            Self::Boot => "launch.spawned",
            Self::Restore => "restore.spawned",
        }
    }
}

/// QEMU's arguments for a VM.
pub(crate) fn arguments(
    spec: &VmSpec,
    facts: &Facts,
    sockets: &Sockets,
    memory: &Memory,
    names: &Names,
    start: Start,
) -> Vec<OsString> {
    let mut line = Line::default();
    line.flags(&["-nodefaults", "-no-user-config", "-no-reboot"]);
    // `-nographic` would do, but then the BIOS clears the screen of whoever watches the console.
    line.option("-display", "none");
    line.option("-sandbox", SANDBOX);
    line.option("-nic", "none");
    machine(&mut line, spec, facts, memory);
    match start {
        // Booting without the kernel is no loss for a restored guest: it is in its memory.
        Start::Restore => restore(&mut line),
        Start::Boot => kernel(&mut line, spec, names),
    }
    devices(&mut line, spec, sockets);
    for (set, fd) in names.sets.iter().enumerate() {
        line.option("-add-fd", &format!("fd={fd},set={set}"));
    }
    for (index, node) in names.disks.iter().enumerate() {
        line.option("-blockdev", &node.to_string());
        line.option("-device", &format!("virtio-blk-pci,drive={}", disk_node(index)));
    }
    for (index, device) in spec.vhost_user.iter().enumerate() {
        vhost_user(&mut line, index, device, facts, sockets.backends.get(index).copied().flatten());
    }
    line.0
}

fn machine(line: &mut Line, spec: &VmSpec, facts: &Facts, memory: &Memory) {
    // The description of the device state is for people; QEMU complains where it is missing, unless told.
    let backend = match memory {
        Memory::Anonymous => "",
        Memory::Shared(_) | Memory::Private(_) | Memory::Brokered(_) => ",memory-backend=memory",
    };
    line.option("-machine", &format!("{MACHINE},suppress-vmdesc=on{backend}"));
    for directory in &facts.firmware.directories {
        line.option("-L", directory.as_str());
    }
    if let Some(bios) = &facts.firmware.bios {
        line.option("-bios", bios.as_str());
    }
    line.option("-accel", if facts.accelerator == Accelerator::Tcg { "tcg,thread=multi" } else { "kvm" });
    line.option("-cpu", cpu(facts));
    line.option("-smp", &spec.cpus.to_string());
    line.option("-m", &format!("{}M", spec.memory_mib));
    let (path, how) = match memory {
        Memory::Anonymous => return,
        Memory::Shared(path) => (path, "share=on"),
        // From this version on QEMU can be kept from opening for writing what it never writes to.
        Memory::Private(path) if facts.qemu.is_some_and(|version| version >= QEMU_WITH_ROM_OFF) => {
            (path, "share=off,readonly=on,rom=off")
        }
        Memory::Private(path) | Memory::Brokered(path) => (path, "share=off"),
    };
    let (size, path) = (spec.memory_mib, comma_safe(path));
    line.option("-object", &format!("memory-backend-file,id=memory,size={size}M,mem-path={path},{how}"));
}

/// The CPU model that an accelerator gives its guests.
pub(crate) fn cpu(facts: &Facts) -> &'static str {
    match facts.accelerator {
        Accelerator::Kvm => "host",
        Accelerator::KvmWithoutArchCapabilities => "host,-arch-capabilities",
        Accelerator::Tcg if needs_no_cmpxchg16b(facts) => TCG_CPU_NO_CX16,
        Accelerator::Tcg => TCG_CPU,
    }
}

fn restore(line: &mut Line) {
    line.option("-incoming", "defer");
    line.flags(&["-S"]);
    // The state of the devices alone, as `xen-save-devices-state` writes it, says nothing of the machine's configuration.
    line.option("-global", "migration.send-configuration=off");
    // Tells when the state is loaded. A command would cost a millisecond: QEMU reads them byte by byte.
    line.option("-global", "migration.x-events=on");
}

fn needs_no_cmpxchg16b(facts: &Facts) -> bool {
    let old_qemu = facts.qemu.is_none_or(|version| version < QEMU_WITH_SOUND_CMPXCHG16B);
    old_qemu && kernel_needs_sound_cmpxchg16b(facts.kernel)
}

/// Whether a kernel, or one of unknown version, is among those that old QEMUs translate wrongly.
pub(crate) fn kernel_needs_sound_cmpxchg16b(kernel: Option<KernelVersion>) -> bool {
    kernel.is_none_or(|version| version >= KERNEL_WITH_CMPXCHG16B)
}

fn kernel(line: &mut Line, spec: &VmSpec, names: &Names) {
    line.option("-kernel", names.kernel.as_str());
    if let Some(initramfs) = &names.initramfs {
        line.option("-initrd", initramfs.as_str());
    }
    line.option("-append", &format!("{} {TIMER}", spec.kernel_cmdline()));
}

fn devices(line: &mut Line, spec: &VmSpec, sockets: &Sockets) {
    line.option("-chardev", &listener("monitor", sockets.monitor));
    line.option("-mon", "chardev=monitor,mode=control");
    // The emulated line writes byte by byte. A pipe packs them into pages, where a socket keeps each as a message of
    // its own: the reader wakes a hundred times less, which a booting guest gains.
    line.option("-chardev", "stdio,id=console,signal=off");
    line.option("-serial", "chardev:console");
    line.option("-device", "virtio-rng-pci");
    line.option("-device", "virtio-serial-pci");
    let extra = spec.extra_ports.iter().map(String::as_str).zip(sockets.extra.iter().copied());
    for (index, (name, fd)) in std::iter::once((AGENT_PORT, sockets.agent)).chain(extra).enumerate() {
        line.option("-chardev", &listener(&format!("port{index}"), fd));
        // Port 0 belongs to the console that virtio reserves it for.
        let number = index + 1;
        line.option("-device", &format!("virtserialport,chardev=port{index},name={name},nr={number}"));
    }
    for (index, nic) in spec.nics.iter().enumerate() {
        // A card that leads nowhere has no `netdev`: with one that is a hub of its own, qboot never starts the kernel.
        let netdev = match sockets.taps.get(index).copied().flatten() {
            Some(fd) => {
                // With it QEMU would open /dev/vhost-net, which a VMM may not.
                line.option("-netdev", &format!("tap,id=nic{index},fd={fd},vhost=off"));
                format!("netdev=nic{index},")
            }
            None => String::new(),
        };
        // Its boot firmware would be run for nothing.
        line.option("-device", &format!("virtio-net-pci,{netdev}mac={},romfile=", nic.mac));
    }
}

fn vhost_user(line: &mut Line, index: usize, device: &VhostUser, facts: &Facts, connection: Option<RawFd>) {
    let (id, queues) = (backend_id(index), device.queues);
    let again = match facts.qemu {
        Some(version) if version >= QEMU_WITH_RECONNECT_MS => "reconnect-ms=100",
        _ => "reconnect=1",
    };
    let way = match connection {
        Some(fd) => format!("fd={fd}"),
        None if device.reconnects() => format!("path={},{again}", comma_safe(&device.socket)),
        None => format!("path={}", comma_safe(&device.socket)),
    };
    line.option("-chardev", &format!("socket,id={id},{way}"));
    let device = match &device.device {
        VhostUserDevice::Blk => format!("vhost-user-blk-pci,chardev={id},num-queues={queues}"),
        VhostUserDevice::Net { mac } => {
            line.option("-netdev", &format!("vhost-user,id=net-{id},chardev={id},queues={queues}"));
            let several = if queues > 1 { ",mq=on" } else { "" };
            let vectors = if msix_for_cards(facts) { 2 * queues + 2 } else { 0 };
            format!("virtio-net-pci,netdev=net-{id},mac={mac},romfile={several},vectors={vectors}")
        }
        VhostUserDevice::Vsock => format!("vhost-user-vsock-pci,chardev={id}"),
        VhostUserDevice::Fs { tag } => {
            format!("vhost-user-fs-pci,chardev={id},tag={tag},num-request-queues={queues}")
        }
    };
    line.option("-device", &device);
}

fn msix_for_cards(facts: &Facts) -> bool {
    facts.accelerator != Accelerator::Tcg || facts.qemu.is_some_and(|version| version >= QEMU_WITH_MSIX_FOR_CARDS)
}

/// Names the connection to a backend; QEMU's own words about it have that name.
pub(crate) fn backend_id(index: usize) -> String {
    format!("vhost{index}")
}

/// Names the block node of a disk of the spec.
pub(crate) fn disk_node(index: usize) -> String {
    format!("disk{index}")
}

/// A path as a value among others that commas part.
fn comma_safe(path: &Utf8Path) -> String {
    path.as_str().replace(',', ",,")
}

fn listener(id: &str, fd: RawFd) -> String {
    format!("socket,id={id},fd={fd},server=on,wait=off")
}

#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn flags(&mut self, flags: &[&str]) {
        self.0.extend(flags.iter().map(OsString::from));
    }

    fn option(&mut self, name: &str, value: &str) {
        self.0.extend([name.into(), value.into()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Nic;

    fn spec() -> VmSpec {
        VmSpec { cpus: 2, memory_mib: 512, cmdline: "quiet".into(), ..VmSpec::new("/i/vmlinuz", "/i/initramfs") }
    }

    fn firmware() -> Firmware {
        Firmware { bios: Some("/d/bios".into()), directories: vec!["/d".into()], identity: "bios".into() }
    }

    fn facts(accelerator: Accelerator) -> Facts {
        let kernel = Some(KernelVersion { major: 6, minor: 1 });
        Facts { accelerator, firmware: firmware(), qemu: Some(QemuVersion { major: 7, minor: 2 }), kernel }
    }

    fn line(spec: &VmSpec, facts: &Facts) -> String {
        let sockets = Sockets {
            monitor: 10,
            agent: 12,
            extra: vec![13, 14],
            taps: vec![None, Some(17)],
            backends: vec![None, None, Some(15), Some(16)],
        };
        let names = Names {
            kernel: "/proc/self/fd/20".into(),
            initramfs: Some("/proc/self/fd/21".into()),
            disks: spec.disks.iter().map(|disk| serde_json::json!({"filename": disk.path})).collect(),
            sets: vec![22; spec.disks.len()],
        };
        let words = arguments(spec, facts, &sockets, &Memory::Anonymous, &names, Start::Boot);
        let words: Vec<_> = words.into_iter().map(OsString::into_string).collect();
        words.into_iter().collect::<Result<Vec<_>, _>>().expect("UTF-8").join(" ")
    }

    #[test]
    fn the_line_for_an_ordinary_vm_is_this() {
        assert_eq!(
            line(&spec(), &facts(Accelerator::Tcg)),
            "-nodefaults -no-user-config -no-reboot -display none \
             -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny -nic none \
             -machine q35,sata=off,smbus=off,i8042=off,hpet=off,vmport=off,suppress-vmdesc=on \
             -L /d -bios /d/bios -accel tcg,thread=multi -cpu max,-erms,-fsrm -smp 2 -m 512M \
             -kernel /proc/self/fd/20 -initrd /proc/self/fd/21 -append quiet console=ttyS0 panic=-1 no_timer_check \
             -chardev socket,id=monitor,fd=10,server=on,wait=off -mon chardev=monitor,mode=control \
             -chardev stdio,id=console,signal=off -serial chardev:console \
             -device virtio-rng-pci -device virtio-serial-pci \
             -chardev socket,id=port0,fd=12,server=on,wait=off \
             -device virtserialport,chardev=port0,name=kiln.agent.0,nr=1"
        );
    }

    #[test]
    fn each_accelerator_has_its_cpu() {
        assert!(line(&spec(), &facts(Accelerator::Kvm)).contains("-accel kvm -cpu host -smp"));
        let without = line(&spec(), &facts(Accelerator::KvmWithoutArchCapabilities));
        assert!(without.contains("-accel kvm -cpu host,-arch-capabilities "), "{without}");
    }

    #[test]
    fn an_old_qemu_translates_new_kernels_without_cmpxchg16b() {
        let version = |major, minor| Some(KernelVersion { major, minor });
        let qemu = |major| Some(QemuVersion { major, minor: 0 });
        let cases = [
            (qemu(7), version(6, 1), false),
            (qemu(7), version(6, 12), true),
            (qemu(7), version(7, 0), true),
            (qemu(10), version(6, 12), false),
            (qemu(7), None, true),
            (None, version(6, 12), true),
            (None, version(6, 1), false),
        ];
        for (qemu, kernel, guarded) in cases {
            let facts = Facts { accelerator: Accelerator::Tcg, firmware: firmware(), qemu, kernel };
            assert_eq!(line(&spec(), &facts).contains("-cpu max,-erms,-fsrm,-cx16"), guarded, "{facts:?}");
        }
    }

    #[test]
    fn every_extra_port_has_its_socket() {
        let spec = VmSpec { extra_ports: vec!["bench".into(), "raw".into()], ..spec() };
        let line = line(&spec, &facts(Accelerator::Tcg));
        assert!(line.contains("id=port2,fd=14,server=on,wait=off -device virtserialport,chardev=port2,name=raw,nr=3"));
    }

    #[test]
    fn a_restored_vm_maps_the_memory_and_boots_nothing() {
        let sockets = Sockets { monitor: 10, agent: 12, extra: vec![], taps: vec![], backends: vec![] };
        let line = |qemu: u32, minor| {
            let facts = Facts { qemu: Some(QemuVersion { major: qemu, minor }), ..facts(Accelerator::Tcg) };
            let memory = Memory::Private("/s/a,b/memory".into());
            let words = arguments(&spec(), &facts, &sockets, &memory, &Names::default(), Start::Restore);
            words.into_iter().map(|word| word.into_string().expect("UTF-8")).collect::<Vec<_>>().join(" ")
        };
        let old = line(7, 2);
        assert!(old.contains(",suppress-vmdesc=on,memory-backend=memory "), "{old}");
        assert!(old.contains("id=memory,size=512M,mem-path=/s/a,,b/memory,share=off "), "{old}");
        assert!(
            old.contains("-incoming defer -S -global migration.send-configuration=off -global migration.x-events=on "),
            "{old}"
        );
        assert!(!old.contains("-kernel") && !old.contains("-append"), "{old}");
        assert!(line(8, 2).contains("share=off,readonly=on,rom=off "));
    }

    #[test]
    fn disks_are_inherited_open() {
        let disk = crate::spec::Disk {
            path: "/d".into(),
            format: crate::spec::DiskFormat::Raw,
            role: crate::spec::DiskRole::Shared,
        };
        let line = line(&VmSpec { disks: vec![disk], ..spec() }, &facts(Accelerator::Tcg));
        assert!(line.contains("-add-fd fd=22,set=0 -blockdev {\"filename\":\"/d\"} -device virtio-blk-pci"), "{line}");
    }

    #[test]
    fn network_cards_have_their_place() {
        let nic = |mac: &str| Nic::unplugged(mac.parse().expect("an address"));
        let spec = VmSpec { nics: vec![nic("52:54:00:12:34:56"), nic("52:54:00:12:34:57")], ..spec() };
        let line = line(&spec, &facts(Accelerator::Tcg));
        assert!(
            line.contains(
                "-device virtio-net-pci,mac=52:54:00:12:34:56,romfile= -netdev tap,id=nic1,fd=17,vhost=off \
                 -device virtio-net-pci,netdev=nic1,mac=52:54:00:12:34:57,romfile="
            ),
            "{line}"
        );
    }

    #[test]
    fn devices_of_other_processes_have_their_connections() {
        let mac = "52:54:00:12:34:56".parse().expect("an address");
        let net = VhostUser { queues: 2, ..VhostUser::new(VhostUserDevice::Net { mac }, "/n") };
        let share = VhostUserDevice::Fs { tag: "share".into() };
        let vhost_user = vec![
            VhostUser::new(VhostUserDevice::Blk, "/s,x"),
            net,
            VhostUser::new(VhostUserDevice::Vsock, "/v"),
            VhostUser::new(share, "/f"),
        ];
        let spec = VmSpec { vhost_user, ..spec() };
        let old = line(&spec, &facts(Accelerator::Tcg));
        let expected = "\
            -chardev socket,id=vhost0,path=/s,,x,reconnect=1 \
            -device vhost-user-blk-pci,chardev=vhost0,num-queues=1 \
            -chardev socket,id=vhost1,path=/n,reconnect=1 \
            -netdev vhost-user,id=net-vhost1,chardev=vhost1,queues=2 \
            -device virtio-net-pci,netdev=net-vhost1,mac=52:54:00:12:34:56,romfile=,mq=on,vectors=0 \
            -chardev socket,id=vhost2,fd=15 -device vhost-user-vsock-pci,chardev=vhost2 \
            -chardev socket,id=vhost3,fd=16 \
            -device vhost-user-fs-pci,chardev=vhost3,tag=share,num-request-queues=1";
        assert!(old.ends_with(expected), "{old}");
        assert!(line(&spec, &facts(Accelerator::Kvm)).contains("romfile=,mq=on,vectors=6 "));
        let new = Facts { qemu: Some(QemuVersion { major: 10, minor: 0 }), ..facts(Accelerator::Tcg) };
        let new = line(&spec, &new);
        assert!(new.contains("path=/s,,x,reconnect-ms=100 ") && new.contains("path=/n,reconnect-ms=100 "), "{new}");
        assert!(new.contains("romfile=,mq=on,vectors=6 "), "{new}");
    }
}
