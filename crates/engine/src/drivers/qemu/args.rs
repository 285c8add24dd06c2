//! From a [`VmSpec`] to QEMU's command line. Pure: nothing is opened, looked up or started here.
//!
//! Descriptors are passed by number; [`process`](crate::process) makes the child keep exactly those.

use std::ffi::OsString;
use std::os::fd::RawFd;

use camino::Utf8Path;
use serde_json::json;

use super::version::{KernelVersion, QemuVersion};
use crate::vm_spec::{AGENT_PORT, Disk, DiskFormat, VmSpec};

/// The seccomp filter: QEMU needs none of what this takes away.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
/// Kernels from here on use `cmpxchg16b` in their allocator …
const KERNEL_WITH_CMPXCHG16B: KernelVersion = KernelVersion { major: 6, minor: 12 };
/// … which TCG before this version emulates with garbage in EFLAGS, so that boots panic now and then.
const QEMU_WITH_SOUND_CMPXCHG16B: QemuVersion = QemuVersion { major: 8, minor: 0 };

/// All that TCG can, but for the promise that `rep movsb` is fast: a guest that believes it copies byte by byte, four to
/// seven times slower than by words.
pub const TCG_CPU: &str = "max,-erms,-fsrm";
const TCG_CPU_NO_CX16: &str = "max,-erms,-fsrm,-cx16";

/// Name of QEMU's small firmware.
pub(crate) const QBOOT: &str = "qboot.rom";

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

/// Listening sockets that QEMU inherits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sockets {
    pub(crate) monitor: RawFd,
    pub(crate) agent: RawFd,
    /// In the order of [`VmSpec::extra_ports`].
    pub(crate) extra: Vec<RawFd>,
}

/// What is known beside the spec.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) accelerator: Accelerator,
    /// QEMU's small firmware is there: it starts a kernel 50 ms sooner than the BIOS, under TCG.
    pub(crate) qboot: bool,
    /// Unknown versions get the careful arguments.
    pub(crate) qemu: Option<QemuVersion>,
    pub(crate) kernel: Option<KernelVersion>,
}

/// QEMU's arguments for a VM.
pub(crate) fn arguments(spec: &VmSpec, facts: &Facts, sockets: &Sockets) -> Vec<OsString> {
    let mut line = Line::default();
    line.flags(&["-nodefaults", "-no-user-config", "-no-reboot"]);
    // `-nographic` would do, but then the BIOS clears the screen of whoever watches the console.
    line.option("-display", "none");
    line.option("-sandbox", SANDBOX);
    line.option("-nic", "none");
    machine(&mut line, spec, facts);
    memory(&mut line, spec);
    kernel(&mut line, spec);
    devices(&mut line, spec, sockets);
    line.0
}

fn machine(line: &mut Line, spec: &VmSpec, facts: &Facts) {
    line.option("-machine", "q35");
    let (accelerator, cpu) = match facts.accelerator {
        Accelerator::Kvm => ("kvm", "host"),
        Accelerator::KvmWithoutArchCapabilities => ("kvm", "host,-arch-capabilities"),
        Accelerator::Tcg if needs_no_cmpxchg16b(facts) => ("tcg,thread=multi", TCG_CPU_NO_CX16),
        Accelerator::Tcg => ("tcg,thread=multi", TCG_CPU),
    };
    if facts.qboot {
        line.option("-bios", QBOOT);
    }
    line.option("-accel", accelerator);
    line.option("-cpu", cpu);
    line.option("-smp", &spec.cpus.to_string());
}

fn needs_no_cmpxchg16b(facts: &Facts) -> bool {
    let old_qemu = facts.qemu.is_none_or(|version| version < QEMU_WITH_SOUND_CMPXCHG16B);
    old_qemu && kernel_needs_sound_cmpxchg16b(facts.kernel)
}

/// Whether a kernel, or one of unknown version, is among those that old QEMUs translate wrongly.
pub(crate) fn kernel_needs_sound_cmpxchg16b(kernel: Option<KernelVersion>) -> bool {
    kernel.is_none_or(|version| version >= KERNEL_WITH_CMPXCHG16B)
}

/// The one place that knows what backs guest memory.
fn memory(line: &mut Line, spec: &VmSpec) {
    line.option("-m", &format!("{}M", spec.memory_mib));
}

fn kernel(line: &mut Line, spec: &VmSpec) {
    line.option("-kernel", spec.kernel.as_str());
    if let Some(initramfs) = &spec.initramfs {
        line.option("-initrd", initramfs.as_str());
    }
    line.option("-append", &spec.kernel_cmdline());
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
    for (index, disk) in spec.disks.iter().enumerate() {
        block_device(line, index, disk);
    }
}

fn block_device(line: &mut Line, index: usize, disk: &Disk) {
    let file = json!({"driver": "file", "filename": absolute(&disk.path), "read-only": disk.read_only});
    let node = format!("disk{index}");
    let mut format = json!({"node-name": node, "read-only": disk.read_only, "file": file});
    match disk.format {
        DiskFormat::Raw => format["driver"] = "raw".into(),
        DiskFormat::Qcow2 => {
            format["driver"] = "qcow2".into();
            // An image from a stranger could name any file of the host as its backing file.
            format["backing"] = serde_json::Value::Null;
        }
    }
    line.option("-blockdev", &format.to_string());
    line.option("-device", &format!("virtio-blk-pci,drive={node}"));
}

fn absolute(path: &Utf8Path) -> String {
    // QEMU reads `name:rest` as a protocol; a path that starts with `/` or `.` never looks like one.
    if path.is_absolute() { path.to_string() } else { format!("./{path}") }
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

    fn spec() -> VmSpec {
        VmSpec { cpus: 2, memory_mib: 512, cmdline: "quiet".into(), ..VmSpec::new("/i/vmlinuz", "/i/initramfs") }
    }

    fn facts(accelerator: Accelerator) -> Facts {
        let kernel = Some(KernelVersion { major: 6, minor: 1 });
        Facts { accelerator, qboot: false, qemu: Some(QemuVersion { major: 7, minor: 2 }), kernel }
    }

    fn line(spec: &VmSpec, facts: &Facts) -> String {
        let sockets = Sockets { monitor: 10, agent: 12, extra: vec![13, 14] };
        let words: Vec<_> = arguments(spec, facts, &sockets).into_iter().map(OsString::into_string).collect();
        words.into_iter().collect::<Result<Vec<_>, _>>().expect("UTF-8").join(" ")
    }

    #[test]
    fn the_line_for_an_ordinary_vm_is_this() {
        assert_eq!(
            line(&spec(), &facts(Accelerator::Tcg)),
            "-nodefaults -no-user-config -no-reboot -display none \
             -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny -nic none \
             -machine q35 -accel tcg,thread=multi -cpu max,-erms,-fsrm -smp 2 -m 512M \
             -kernel /i/vmlinuz -initrd /i/initramfs -append quiet console=ttyS0 panic=-1 \
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
            let facts = Facts { accelerator: Accelerator::Tcg, qboot: false, qemu, kernel };
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
    fn a_disk_path_can_hold_anything_and_no_backing_file_is_followed() {
        let disk = Disk { path: "a,b:\"c\".qcow2".into(), format: DiskFormat::Qcow2, read_only: true };
        let spec = VmSpec { disks: vec![disk], ..spec() };
        let line = line(&spec, &facts(Accelerator::Tcg));
        let (_, rest) = line.split_once("-blockdev ").expect("a block device");
        let (json, device) = rest.split_once(" -device ").expect("its frontend");
        let json: serde_json::Value = serde_json::from_str(json).expect("JSON");
        assert_eq!(json["file"]["filename"], "./a,b:\"c\".qcow2");
        assert_eq!(json["backing"], serde_json::Value::Null);
        assert_eq!(json["read-only"], true);
        assert_eq!(device, "virtio-blk-pci,drive=disk0");
    }
}
