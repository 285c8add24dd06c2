//! From a [`VmSpec`] to QEMU's command line. Pure: opens, reads and starts nothing.
//!
//! Descriptors are passed by number; [`process`](crate::process) makes the child keep exactly these.

use std::ffi::OsString;
use std::os::fd::RawFd;

use camino::{Utf8Path, Utf8PathBuf};

use super::firmware::Firmware;
use super::version::{KernelVersion, QemuVersion};
use crate::spec::{AGENT_PORT, VhostUser, VhostUserDevice, VmSpec};

/// The seccomp filter. QEMU needs no call that it takes away.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
/// Since this version, kernels use `cmpxchg16b` in their allocator …
const KERNEL_WITH_CMPXCHG16B: KernelVersion = KernelVersion { major: 6, minor: 12 };
/// … and TCG before this version leaves garbage in EFLAGS after it, so boots panic now and then.
const QEMU_WITH_SOUND_CMPXCHG16B: QemuVersion = QemuVersion { major: 8, minor: 0 };
/// Since this version, memory files have `rom=off`.
const QEMU_WITH_ROM_OFF: QemuVersion = QemuVersion { major: 8, minor: 2 };

/// Since this version, a lost connection is retried after milliseconds; before, after whole seconds.
const QEMU_WITH_RECONNECT_MS: QemuVersion = QemuVersion { major: 9, minor: 2 };

/// Since this version at the latest, a vhost-user network card with MSI-X works under TCG. QEMU 7.2 dereferences a null
/// pointer when the card's driver starts, because it looks up interrupt routes of KVM.
const QEMU_WITH_MSIX_FOR_CARDS: QemuVersion = QemuVersion { major: 10, minor: 0 };

/// All features of TCG, except the flags that promise a fast `rep movsb`. A guest that sees them copies memory with
/// that instruction. TCG translates it into a loop over single bytes, so copies take four to seven times longer than
/// with words.
pub const TCG_CPU: &str = "max,-erms,-fsrm";
const TCG_CPU_NO_CX16: &str = "max,-erms,-fsrm,-cx16";

/// The machine, without devices that no guest needs: a SATA and an SMBus controller, keyboard and mouse, a second
/// clock, and VMware's port. Each is code of the VMM that a guest could attack. A snapshot fits only this machine.
pub(crate) const MACHINE: &str = "q35,sata=off,smbus=off,i8042=off,hpet=off,vmport=off";

/// Without an HPET, a kernel tests whether interrupts of the old timer arrive. It waits for a few ticks and panics if
/// none has come ("IO-APIC + timer doesn't work"). The timer is wired in this machine, but on a busy host TCG delivers
/// its interrupts late: 3 of 12 boots panicked. Under KVM, kernels skip this test too.
const TIMER: &str = "no_timer_check";

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accelerator {
    /// KVM with the host's unchanged CPU.
    Kvm,
    /// KVM without `IA32_ARCH_CAPABILITIES`, an MSR that some hosts report and refuse to set.
    KvmWithoutArchCapabilities,
    /// Translation.
    Tcg,
}

/// The other side of a network card, open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Netdev {
    /// A TAP device.
    Tap(RawFd),
    /// A connected Unix stream socket.
    Stream(RawFd),
}

/// Sockets that QEMU inherits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sockets {
    pub(crate) monitor: RawFd,
    pub(crate) agent: RawFd,
    /// In the order of [`VmSpec::extra_ports`].
    pub(crate) extra: Vec<RawFd>,
    /// For each card of [`VmSpec::nics`], what it is connected to, if anything.
    pub(crate) netdevs: Vec<Option<Netdev>>,
    /// For each backend of [`VmSpec::vhost_user`], its connection if QEMU does not connect itself.
    pub(crate) backends: Vec<Option<RawFd>>,
}

/// QEMU's names for the files that it opens. It inherits most of them open, because it can't reach them by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) kernel: Utf8PathBuf,
    pub(crate) initramfs: Option<Utf8PathBuf>,
    /// The `-blockdev` of each disk of the spec.
    pub(crate) disks: Vec<serde_json::Value>,
    /// Descriptors of the disks' files. The first is `/dev/fdset/0`.
    pub(crate) sets: Vec<RawFd>,
}

/// Facts beside the spec.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) accelerator: Accelerator,
    pub(crate) firmware: Firmware,
    /// A QEMU of unknown version gets the careful arguments.
    pub(crate) qemu: Option<QemuVersion>,
    pub(crate) kernel: Option<KernelVersion>,
}

/// The storage of the guest's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Memory {
    /// The VMM's own memory.
    Anonymous,
    /// A file that the guest writes to: for guests that can be saved, or that share memory with vhost-user backends.
    Shared(Utf8PathBuf),
    /// A file that the guest reads and never writes to. The kernel copies each page that the guest changes.
    Private(Utf8PathBuf),
    /// The same file, but the broker hands it over open for reading when QEMU opens it for writing, see
    /// `confine::broker`.
    Brokered(Utf8PathBuf),
}

/// How a guest starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// With the first instruction of its kernel.
    Boot,
    /// In the device state that will be loaded. It stays paused until `cont`.
    Restore,
}

impl Start {
    /// The fail point after the start of its VMM.
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
    // `-nographic` would do the same, but then the BIOS clears the screen of the terminal that shows the console.
    line.option("-display", "none");
    line.option("-sandbox", SANDBOX);
    line.option("-nic", "none");
    machine(&mut line, spec, facts, memory);
    match start {
        // A restored guest needs no kernel file: its kernel is in its memory.
        Start::Restore => restore(&mut line),
        Start::Boot => kernel(&mut line, spec, names),
    }
    devices(&mut line, spec, sockets);
    for (set, fd) in names.sets.iter().enumerate() {
        line.option("-add-fd", &format!("fd={fd},set={set}"));
    }
    for (index, node) in names.disks.iter().enumerate() {
        line.option("-blockdev", &node.to_string());
        // By default QEMU pauses a guest for which its host's disk is full, and nothing resumes it.
        line.option("-device", &format!("virtio-blk-pci,drive={},werror=report", disk_node(index)));
    }
    for (index, device) in spec.vhost_user.iter().enumerate() {
        vhost_user(&mut line, index, device, facts, sockets.backends.get(index).copied().flatten());
    }
    line.0
}

fn machine(line: &mut Line, spec: &VmSpec, facts: &Facts, memory: &Memory) {
    // The description of the device state is for debugging. Without an explicit setting QEMU warns that it is missing.
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
        // Without `readonly=on` QEMU opens the file for writing, although it maps it privately and never writes to it.
        // `readonly=on` alone would make the guest's memory read-only, so it needs `rom=off`.
        Memory::Private(path) if facts.qemu.is_some_and(|version| version >= QEMU_WITH_ROM_OFF) => {
            (path, "share=off,readonly=on,rom=off")
        }
        Memory::Private(path) | Memory::Brokered(path) => (path, "share=off"),
    };
    let (size, path) = (spec.memory_mib, comma_safe(path));
    line.option("-object", &format!("memory-backend-file,id=memory,size={size}M,mem-path={path},{how}"));
}

/// The CPU model of a guest with this accelerator.
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
    // `xen-save-devices-state` writes only the devices, without the section for the machine's configuration. By default
    // QEMU expects that section and refuses the state.
    line.option("-global", "migration.send-configuration=off");
    // An event reports that the state is loaded. Polling with a command would cost a millisecond each time, because
    // QEMU reads commands byte by byte.
    line.option("-global", "migration.x-events=on");
}

fn needs_no_cmpxchg16b(facts: &Facts) -> bool {
    let old_qemu = facts.qemu.is_none_or(|version| version < QEMU_WITH_SOUND_CMPXCHG16B);
    old_qemu && kernel_needs_sound_cmpxchg16b(facts.kernel)
}

/// Whether a kernel is one of those that an old QEMU translates wrongly. A kernel of unknown version counts as one.
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
    // The emulated serial port writes byte by byte. A pipe collects the bytes in pages, but a socket keeps each as a
    // message of its own. With a pipe the reader wakes a hundred times less often, and a guest boots faster.
    line.option("-chardev", "stdio,id=console,signal=off");
    line.option("-serial", "chardev:console");
    line.option("-device", "virtio-rng-pci");
    line.option("-device", "virtio-serial-pci");
    let extra = spec.extra_ports.iter().map(String::as_str).zip(sockets.extra.iter().copied());
    for (index, (name, fd)) in std::iter::once((AGENT_PORT, sockets.agent)).chain(extra).enumerate() {
        line.option("-chardev", &listener(&format!("port{index}"), fd));
        // virtio reserves port 0 for the console.
        let number = index + 1;
        line.option("-device", &format!("virtserialport,chardev=port{index},name={name},nr={number}"));
    }
    for (index, nic) in spec.nics.iter().enumerate() {
        // An unplugged card has no `netdev`. With a hub of its own as `netdev`, qboot never starts the kernel.
        let netdev = match sockets.netdevs.get(index).copied().flatten() {
            // With vhost, QEMU would open /dev/vhost-net, which a VMM must not.
            Some(Netdev::Tap(fd)) => format!("tap,id=nic{index},fd={fd},vhost=off"),
            Some(Netdev::Stream(fd)) => format!("stream,id=nic{index},server=off,addr.type=fd,addr.str={fd}"),
            None => String::new(),
        };
        let mut peer = String::new();
        if !netdev.is_empty() {
            line.option("-netdev", &netdev);
            peer = format!("netdev=nic{index},");
        }
        // The card's boot firmware is not needed.
        line.option("-device", &format!("virtio-net-pci,{peer}mac={},romfile=", nic.mac));
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

/// The id of the connection to a backend. QEMU's errors about the backend contain it.
pub(crate) fn backend_id(index: usize) -> String {
    format!("vhost{index}")
}

/// The name of the block node of a disk.
pub(crate) fn disk_node(index: usize) -> String {
    format!("disk{index}")
}

/// A path as a value in a list that commas separate.
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
            netdevs: vec![None, Some(Netdev::Tap(17)), Some(Netdev::Stream(18))],
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
        let sockets = Sockets { monitor: 10, agent: 12, extra: vec![], netdevs: vec![], backends: vec![] };
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
        let nics = ["52:54:00:12:34:56", "52:54:00:12:34:57", "52:54:00:12:34:58"].map(nic);
        let spec = VmSpec { nics: nics.into(), ..spec() };
        let line = line(&spec, &facts(Accelerator::Tcg));
        assert!(
            line.contains(
                "-device virtio-net-pci,mac=52:54:00:12:34:56,romfile= -netdev tap,id=nic1,fd=17,vhost=off \
                 -device virtio-net-pci,netdev=nic1,mac=52:54:00:12:34:57,romfile= \
                 -netdev stream,id=nic2,server=off,addr.type=fd,addr.str=18 \
                 -device virtio-net-pci,netdev=nic2,mac=52:54:00:12:34:58,romfile="
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
