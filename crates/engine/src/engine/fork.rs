//! The request for forks, the checks of it, and a fork.

use std::collections::BTreeSet;
use std::io;
use std::iter;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use kiln_wire::{ExecRequest, Identity, Mount, Network};

use crate::blocking::assert_may_block;
use crate::deadlines::BOOT_DEADLINE;
use crate::driver::RestoreError;
use crate::hex_id::random_hex;
use crate::link::GuestLink;
use crate::snapshot::{Manifest, overlay};
use crate::spec::{Attachment, Disk, DiskFormat, DiskRole, MacAddress, OwnerLoss, VmSpec};
use crate::vm::Vm;
use crate::vm_dir::VmId;

/// Longest host name of Linux.
const HOSTNAME_BYTES_MAX: usize = 64;
/// The network namespace of this process.
const OWN_NAMESPACE: &str = "/proc/self/ns/net";

/// How to restore a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForkSpec {
    /// The number of VMs. All of them start, or none.
    pub count: usize,
    /// Whether they are new machines.
    pub identity: ForkIdentity,
    /// The own parts of each fork. Forks without an entry get the defaults of [`ForkPart`].
    pub parts: Vec<ForkPart>,
    /// What happens to them when their owner is lost.
    pub owner_loss: OwnerLoss,
    /// The deadline of each fork, from the start of its VMM until it has its own clock, randomness and names.
    pub deadline: Duration,
    /// What each fork that a [`ForkPool`](crate::ForkPool) holds has run, one after the other, within the deadline. If
    /// empty, `/bin/true`. Their ends are not checked: a fork is as good without them, only its first command is slower.
    /// Ignored for forks that no pool holds.
    pub warm_up: Vec<ExecRequest>,
}

/// The parts that belong to one fork only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForkPart {
    /// Its host name. If absent, `kiln-` and its id. Ignored if the fork keeps the saved identity.
    pub hostname: Option<String>,
    /// One entry for each network card, in the order of the spec. If the list is empty, all cards are unplugged and
    /// have random addresses.
    pub nics: Vec<NicPart>,
    /// One entry for each [volume](crate::DiskRole::is_volume) of the snapshot. The guest's memory may hold cached
    /// blocks of a volume that was mounted when the VM was saved. Such a volume needs the same contents as then,
    /// otherwise the guest writes its old view over the new contents and destroys the file system.
    pub volumes: Vec<VolumeFile>,
    /// What its network cards are connected to, inside the guest. If absent, they have no addresses, or the saved ones.
    pub network: Option<Network>,
    /// Disks that are mounted before any of its commands runs.
    pub mounts: Vec<Mount>,
}

/// The parts of a network card that belong to one fork only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NicPart {
    /// Its address. If absent, a random one. Ignored if the fork keeps the saved identity.
    pub mac: Option<MacAddress>,
    /// What it is connected to. A card that was saved on a TAP device needs a TAP device again.
    pub attachment: Attachment,
}

/// The file of a fork's volume. Only one VM may write to it. If no VM writes to it, any number can read it.
///
/// ```no_run
/// # async fn example(
/// #     engine: &dyn kiln_engine::Engine,
/// #     snapshot: &kiln_engine::snapshot::Snapshot,
/// # ) -> Result<(), Box<dyn std::error::Error>> {
/// use kiln_engine::{ForkPart, ForkSpec, VolumeFile};
///
/// // The second disk of the saved VM was a volume. The files outlive the forks.
/// let part = |path: &str| ForkPart {
///     volumes: vec![VolumeFile { index: 1, path: path.into() }],
///     ..ForkPart::default()
/// };
/// let parts = vec![part("/srv/one.qcow2"), part("/srv/two.qcow2")];
/// let forks = engine.restore(snapshot, ForkSpec { count: 2, parts, ..ForkSpec::default() }).await?;
/// for fork in forks {
///     fork.vm.kill().await;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeFile {
    /// The index of the disk in [`VmSpec::disks`].
    pub index: usize,
    /// The file on the host. It has the spec's format, and its disk has the size of the saved one.
    pub path: Utf8PathBuf,
}

/// The identity of a restored VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForkIdentity {
    /// A new machine: new machine id, host name and addresses.
    Fresh,
    /// The saved machine: for a VM that was stopped and continues. It also gets a new clock and new randomness.
    Keep,
}

impl Default for ForkSpec {
    fn default() -> Self {
        Self {
            count: 1,
            identity: ForkIdentity::Fresh,
            parts: Vec::new(),
            owner_loss: OwnerLoss::Kill,
            deadline: BOOT_DEADLINE,
            warm_up: Vec::new(),
        }
    }
}

/// A restored VM with its own clock, randomness and names. They were set before any of its commands continued.
#[derive(Debug)]
pub struct Fork {
    /// The VM.
    pub vm: Vm,
    /// The link to its agent.
    pub link: GuestLink,
}

/// Checks the parts of forks that are made together. Reads files.
///
/// Two forks must not share a volume: two kernels that write to one file system without coordination destroy it. Nor
/// can they share a TAP device. Any number of forks can share a volume that they only read. Files and namespaces are
/// compared by device and inode, because one file can have several paths.
pub(crate) fn check_parts(parts: &[ForkPart], manifest: &Manifest, spec: &VmSpec) -> Result<(), RestoreError> {
    let refuse = |problem: String| Err(RestoreError::Part { problem });
    let (mut files, mut taps) = (BTreeSet::new(), BTreeSet::new());
    for part in parts {
        part.apply(manifest, spec)?;
        for tap in part.nics.iter().filter_map(|nic| nic.attachment.tap()) {
            // A namespace that does not exist is refused when the device is opened, with an error that names it.
            let namespace = fs_err::metadata(tap.namespace.as_deref().unwrap_or(Utf8Path::new(OWN_NAMESPACE)));
            if namespace.is_ok_and(|found| !taps.insert((found.dev(), found.ino(), &tap.device))) {
                return refuse(format!("two cards have {tap}"));
            }
        }
        let writable =
            |volume: &&VolumeFile| spec.disks.get(volume.index).is_some_and(|disk| disk.role == DiskRole::Volume);
        for VolumeFile { path, .. } in part.volumes.iter().filter(writable) {
            let file = fs_err::metadata(path).map(|meta| (meta.dev(), meta.ino()));
            if !file.is_ok_and(|file| files.insert(file)) {
                return refuse(format!("`{path}` is the volume of two disks"));
            }
        }
    }
    Ok(())
}

/// Makes the names and addresses of a new machine.
pub(crate) fn fresh_identity(vm: &VmId, spec: &VmSpec, part: &ForkPart) -> Identity {
    let given = part.nics.iter().map(|nic| nic.mac).chain(iter::repeat(None));
    let macs = spec.nics.iter().zip(given).map(|(_, mac)| mac.unwrap_or_else(MacAddress::random).to_string());
    let names = fresh_names(vm);
    Identity { hostname: part.hostname.clone().unwrap_or(names.hostname), macs: macs.collect(), ..names }
}

/// Makes the names of a new machine, without addresses.
pub(crate) fn fresh_names(vm: &VmId) -> Identity {
    Identity { hostname: format!("kiln-{vm}"), machine_id: random_hex::<16>(), macs: Vec::new() }
}

impl VolumeFile {
    /// The volumes of a spec, for a fork that gets the files that the spec names.
    pub fn of(spec: &VmSpec) -> Vec<Self> {
        let volumes = spec.disks.iter().enumerate().filter(|(_, disk)| disk.role.is_volume());
        volumes.map(|(index, disk)| Self { index, path: disk.path.clone() }).collect()
    }
}

impl ForkPart {
    /// The spec of a fork with this part. Reads files.
    ///
    /// # Errors
    /// [`RestoreError::Part`], [`RestoreError::NoVolume`], or [`RestoreError::NoTap`].
    pub(crate) fn apply(&self, manifest: &Manifest, spec: &VmSpec) -> Result<VmSpec, RestoreError> {
        assert_may_block();
        let refuse = |problem: String| Err(RestoreError::Part { problem });
        if let Some(name) = &self.hostname {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
            if !(1..=HOSTNAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(allowed) {
                return refuse(format!(
                    "`{name}` is not a valid host name: it must be 1 to {HOSTNAME_BYTES_MAX} of `[a-zA-Z0-9.-]`"
                ));
            }
        }
        let mut spec = spec.clone();
        self.attach(manifest, &mut spec)?;
        self.give_volumes(manifest, &mut spec)?;
        Ok(spec)
    }

    fn attach(&self, manifest: &Manifest, spec: &mut VmSpec) -> Result<(), RestoreError> {
        let refuse = |problem: String| Err(RestoreError::Part { problem });
        if !self.nics.is_empty() && self.nics.len() != spec.nics.len() {
            return refuse(format!("it has {} network cards, not {}", spec.nics.len(), self.nics.len()));
        }
        for (index, nic) in spec.nics.iter_mut().enumerate() {
            let attachment = self.nics.get(index).map(|part| part.attachment.clone()).unwrap_or_default();
            if !attachment.loads_state_of(&nic.attachment) {
                return Err(RestoreError::NoTap { id: manifest.id.clone(), index });
            }
            nic.attachment = attachment;
        }
        spec.validate_nics().or_else(|error| refuse(error.to_string()))
    }

    fn give_volumes(&self, manifest: &Manifest, spec: &mut VmSpec) -> Result<(), RestoreError> {
        let refuse = |problem: String| Err(RestoreError::Part { problem });
        for (position, volume) in self.volumes.iter().enumerate() {
            let index = volume.index;
            if self.volumes[..position].iter().any(|other| other.index == index) {
                return refuse(format!("disk {index} has two volumes"));
            }
            match spec.disks.get_mut(index) {
                Some(disk) if disk.role.is_volume() => disk.path.clone_from(&volume.path),
                _ => return refuse(format!("disk {index} is not a volume")),
            }
        }
        let disks = spec.disks.iter().enumerate().filter(|(_, disk)| disk.role.is_volume());
        for ((index, disk), saved) in disks.zip(&manifest.volumes) {
            if !self.volumes.iter().any(|volume| volume.index == index) {
                let (id, path) = (manifest.id.clone(), saved.path.clone());
                return Err(RestoreError::NoVolume { id, index, path });
            }
            let saved_bytes = match disk.format {
                DiskFormat::Raw => Some(saved.bytes),
                DiskFormat::Qcow2 => saved.disk_bytes,
            };
            match (volume_bytes(disk), saved_bytes) {
                (Ok(bytes), Some(saved)) if bytes != saved => {
                    return refuse(format!(
                        "the volume `{}` has {bytes} bytes, the one that was saved {saved}",
                        disk.path
                    ));
                }
                (Ok(_), _) => {}
                (Err(error), _) => return refuse(format!("the volume `{}` can't be used: {error}", disk.path)),
            }
        }
        Ok(())
    }
}

/// The size of the disk in a volume's file. The file is hostile: a guest has written to it, and other programs may
/// have.
fn volume_bytes(disk: &Disk) -> io::Result<u64> {
    let meta = fs_err::metadata(&disk.path)?;
    if !meta.is_file() {
        return Err(io::Error::other("it is not an ordinary file"));
    }
    match disk.format {
        DiskFormat::Raw => Ok(meta.len()),
        DiskFormat::Qcow2 => {
            overlay::refuse_other_files(&disk.path, disk.format)?;
            overlay::virtual_size(&disk.path, disk.format)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::snapshot::{ExternalDisk, Snapshot};
    use crate::spec::{Nic, Tap};

    /// The manifest and spec of a snapshot, changed to those of a VM with one shared disk and one volume.
    fn saved(snapshot: &Snapshot, volume: &Utf8PathBuf) -> (Manifest, VmSpec) {
        let disk = |role| Disk { path: volume.clone(), format: DiskFormat::Raw, role };
        let disks = vec![disk(DiskRole::Shared), disk(DiskRole::Volume)];
        let nics = vec![Nic::unplugged(MacAddress::random())];
        let spec = VmSpec { disks, nics, ..snapshot.manifest().spec.clone() };
        let volumes = vec![ExternalDisk::of(&spec.disks[1]).expect("is there")];
        (Manifest { volumes, spec: spec.clone(), ..snapshot.manifest().clone() }, spec)
    }

    #[test]
    fn a_fork_gets_its_own_volume_and_fails_without_one() {
        let place = crate::snapshot::testing::place();
        let snapshot = place.full("one");
        let file = |name: &str, bytes| {
            let path = place.home.path().join(name);
            fs_err::write(&path, vec![0; bytes]).expect("written");
            path
        };
        let (first, second, short) = (file("first", 4096), file("second", 4096), file("short", 512));
        let (manifest, spec) = saved(&snapshot, &first);
        let part = |index, path: &Utf8PathBuf| ForkPart {
            volumes: vec![VolumeFile { index, path: path.clone() }],
            ..ForkPart::default()
        };

        let own = part(1, &second).apply(&manifest, &spec).expect("fits");
        assert_eq!((&own.disks[0].path, &own.disks[1].path), (&first, &second));
        let error = ForkPart::default().apply(&manifest, &spec).expect_err("has none");
        assert!(matches!(&error, RestoreError::NoVolume { index: 1, path, .. } if *path == first), "{error:?}");
        let missing = place.home.path().join("missing");
        for wrong in [part(0, &second), part(2, &second), part(1, &short), part(1, &missing)] {
            let error = wrong.apply(&manifest, &spec).expect_err("does not fit");
            assert!(matches!(error, RestoreError::Part { .. }), "{error:?}");
        }
        let twice =
            ForkPart { volumes: [part(1, &first).volumes, part(1, &second).volumes].concat(), ..part(1, &first) };
        assert!(matches!(twice.apply(&manifest, &spec), Err(RestoreError::Part { .. })));

        let reader = VmSpec {
            disks: spec.disks.iter().map(|disk| Disk { role: DiskRole::VolumeReadOnly, ..disk.clone() }).collect(),
            ..spec.clone()
        };
        let both = Manifest { volumes: [&manifest.volumes[..], &manifest.volumes].concat(), ..manifest.clone() };
        let lent = |path: &Utf8PathBuf| ForkPart {
            volumes: [part(0, path).volumes, part(1, path).volumes].concat(),
            ..part(0, path)
        };
        check_parts(&[lent(&second), lent(&second)], &both, &reader).expect("any number can read one file");

        let link = place.home.path().join("link");
        fs_err::hard_link(&second, &link).expect("a second name");
        check_parts(&[part(1, &first), part(1, &second)], &manifest, &spec).expect("are two");
        let error = check_parts(&[part(1, &second), part(1, &link)], &manifest, &spec).expect_err("are one");
        assert!(matches!(error, RestoreError::Part { .. }), "{error:?}");
    }

    #[test]
    fn a_qcow2_volume_needs_the_saved_size_and_must_name_no_other_file() {
        let place = crate::snapshot::testing::place();
        let snapshot = place.full("one");
        let file = |name: &str, arguments: &[&str]| {
            let path = place.home.path().join(name);
            let mut made = Command::new("qemu-img");
            made.args(["create", "-q", "-f", "qcow2"]).args(arguments).args([path.as_str(), "1M"]);
            assert!(made.status().expect("qemu-img is installed").success());
            path
        };
        let saved = file("saved", &[]);
        let disks = vec![Disk { path: saved.clone(), format: DiskFormat::Qcow2, role: DiskRole::Volume }];
        let volumes = vec![ExternalDisk::of(&disks[0]).expect("is there")];
        assert_eq!(volumes[0].disk_bytes, Some(1 << 20));
        let spec = VmSpec { disks, ..snapshot.manifest().spec.clone() };
        let manifest = Manifest { volumes, spec: spec.clone(), ..snapshot.manifest().clone() };
        let apply = |path: &Utf8Path| {
            let volumes = vec![VolumeFile { index: 0, path: path.to_owned() }];
            ForkPart { volumes, ..ForkPart::default() }.apply(&manifest, &spec)
        };

        // Another file size, the same disk.
        apply(&file("other", &["-o", "cluster_size=512"])).expect("fits");
        let large = place.home.path().join("large");
        overlay::create(&large, 2 << 20).expect("an image");
        let raw = place.home.path().join("raw");
        fs_err::write(&raw, vec![0; 1 << 20]).expect("written");
        let data = place.home.path().join("data");
        let cases = [
            (large, "has 2097152 bytes, the one that was saved 1048576"),
            (raw, "is not a qcow2 image"),
            (file("shadow", &["-u", "-b", "/etc/shadow", "-F", "raw"]), "has a backing file"),
            (file("elsewhere", &["-o", &format!("data_file={data}")]), "keeps its data in another file"),
        ];
        for (path, problem) in cases {
            let error = apply(&path).expect_err("does not fit");
            assert!(matches!(&error, RestoreError::Part { problem: found } if found.contains(problem)), "{error:?}");
        }
        // A snapshot of a Kiln that did not write the size down.
        let volumes = vec![ExternalDisk { disk_bytes: None, ..manifest.volumes[0].clone() }];
        let old = Manifest { volumes, ..manifest.clone() };
        let part = ForkPart { volumes: vec![VolumeFile { index: 0, path: saved }], ..ForkPart::default() };
        part.apply(&old, &spec).expect("is not compared");
    }

    #[test]
    fn each_card_of_a_fork_gets_the_attachment_of_its_part() {
        let place = crate::snapshot::testing::place();
        let snapshot = place.full("one");
        let tap = |device: &str, namespace: Option<&str>| {
            let namespace = namespace.map(Into::into);
            Attachment::Tap(Tap { device: device.into(), namespace })
        };
        let saved = |attachments: [Attachment; 2]| {
            let nics = attachments.map(|attachment| Nic { mac: MacAddress::random(), attachment }).to_vec();
            VmSpec { nics, ..VmSpec::new("/k", "/i") }
        };
        let part = |attachments: [Attachment; 2]| {
            let nics = attachments.map(|attachment| NicPart { mac: None, attachment }).to_vec();
            ForkPart { nics, ..ForkPart::default() }
        };
        let unplugged = || Attachment::Unplugged;
        let manifest = snapshot.manifest();
        let free = saved([unplugged(), unplugged()]);
        let bound = saved([unplugged(), tap("tap0", None)]);

        let own = part([tap("one", None), unplugged()]).apply(manifest, &free).expect("fits");
        assert_eq!([&own.nics[0].attachment, &own.nics[1].attachment], [&tap("one", None), &unplugged()]);
        // The network of the one that was saved is not a fork's.
        for none in [ForkPart::default(), part([tap("one", None), unplugged()])] {
            let error = none.apply(manifest, &bound).expect_err("has no network for it");
            assert!(matches!(error, RestoreError::NoTap { index: 1, .. }), "{error:?}");
        }
        part([unplugged(), tap("one", Some("/proc/self/ns/net"))]).apply(manifest, &bound).expect("fits");
        for wrong in [part([tap("a/b", None), unplugged()]), part([tap("one", None), tap("one", None)])] {
            let error = wrong.apply(manifest, &free).expect_err("can't be");
            assert!(matches!(error, RestoreError::Part { .. }), "{error:?}");
        }

        let forks = |other: Attachment| [part([tap("one", None), unplugged()]), part([unplugged(), other])];
        check_parts(&forks(tap("two", None)), manifest, &free).expect("are two");
        for same in
            [tap("one", None), tap("one", Some("/proc/self/ns/net")), tap("one", Some("/proc/thread-self/ns/net"))]
        {
            let error = check_parts(&forks(same), manifest, &free).expect_err("are one");
            assert!(matches!(error, RestoreError::Part { .. }), "{error:?}");
        }
    }

    #[test]
    fn names_and_addresses_that_a_guest_would_refuse_are_refused_before_it_starts() {
        let place = crate::snapshot::testing::place();
        let snapshot = place.full("one");
        let spec = VmSpec { nics: vec![Nic::unplugged(MacAddress::random())], ..VmSpec::new("/k", "/i") };
        let apply = |part: ForkPart| part.apply(snapshot.manifest(), &spec);
        let named = |name: &str| ForkPart { hostname: Some(name.into()), ..ForkPart::default() };
        for wrong in ["", "a b", "a/b", "a\n", &"x".repeat(65)] {
            assert!(matches!(apply(named(wrong)), Err(RestoreError::Part { .. })), "{wrong:?}");
        }
        apply(named("web-1.example")).expect("is a name");
        let mac = MacAddress::random();
        let card = NicPart { mac: Some(mac), ..NicPart::default() };
        let cards = |count| ForkPart { nics: vec![card.clone(); count], ..ForkPart::default() };
        assert!(matches!(apply(cards(2)), Err(RestoreError::Part { .. })));
        let part = cards(1);
        let identity = fresh_identity(&VmId::random(), &apply(part.clone()).expect("fits"), &part);
        assert_eq!(identity.macs, [mac.to_string()]);
        let random = fresh_identity(&VmId::random(), &spec, &ForkPart::default());
        assert!(random.macs.len() == 1 && random.macs != identity.macs, "{random:?}");
    }
}
