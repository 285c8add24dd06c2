//! What is asked of a restore, and what comes of it.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use camino::Utf8PathBuf;
use kiln_wire::Identity;

use crate::blocking::assert_may_block;
use crate::deadlines::BOOT_DEADLINE;
use crate::error::RestoreError;
use crate::link::GuestLink;
use crate::mac_address::MacAddress;
use crate::snapshot::{Manifest, overlay};
use crate::vm::Vm;
use crate::vm_dir::VmId;
use crate::vm_spec::{Disk, DiskFormat, DiskRole, OwnerLoss, VmSpec};

/// Forks of one request; more than this is a mistake, whatever the host can hold.
pub const FORKS_MAX: usize = 1000;
/// Longest host name of Linux.
const HOSTNAME_BYTES_MAX: usize = 64;

/// How to restore a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForkSpec {
    /// How many VMs; all of them start, or none.
    pub count: usize,
    /// Who they are.
    pub identity: ForkIdentity,
    /// What is each one's own; those without a part are alike.
    pub parts: Vec<ForkPart>,
    /// What becomes of them when their owner is lost.
    pub owner_loss: OwnerLoss,
    /// For each of them, from the start of its VMM to its own clock, randomness and names.
    pub deadline: Duration,
}

/// What one fork has that others have not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForkPart {
    /// Its host name; one made of its id if absent. A fork that keeps its identity keeps its name too.
    pub hostname: Option<String>,
    /// The addresses of its network cards, in the order of the spec; random ones if there are none.
    pub macs: Vec<MacAddress>,
    /// One for each [volume](crate::DiskRole::Volume) of the snapshot. What a file system in the guest's memory believes
    /// of a volume was true when the VM was saved, so a mounted one needs the very bytes of that moment.
    pub volumes: Vec<VolumeFile>,
}

/// A file that is a fork's volume. One VM alone writes to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeFile {
    /// Place of the disk in [`VmSpec::disks`].
    pub index: usize,
    /// The file on the host, of the format that the spec says. Its disk has the size of the one that was saved.
    pub path: Utf8PathBuf,
}

/// Who a restored VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForkIdentity {
    /// A machine of its own: new machine id, host name and addresses.
    Fresh,
    /// The machine that was saved: for a VM that stood still and goes on. Its clock and randomness are new all the same.
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
        }
    }
}

/// A restored VM that is its own machine: clock, randomness and names were set before any of its commands went on.
#[derive(Debug)]
pub struct Fork {
    /// The VM.
    pub vm: Vm,
    /// The link to its agent.
    pub link: GuestLink,
}

/// Checks what forks that are made together should have of their own. Looks at files.
pub(crate) fn check_parts(parts: &[ForkPart], manifest: &Manifest, spec: &VmSpec) -> Result<(), RestoreError> {
    let mut files = BTreeSet::new();
    for part in parts {
        part.apply(manifest, spec)?;
        for VolumeFile { path, .. } in &part.volumes {
            // By whichever name: two writers would destroy what it holds.
            let file = fs_err::metadata(path).map(|meta| (meta.dev(), meta.ino()));
            if !file.is_ok_and(|file| files.insert(file)) {
                return Err(RestoreError::Part { problem: format!("`{path}` would be the volume of two disks") });
            }
        }
    }
    Ok(())
}

/// Names for a new machine.
pub(crate) fn fresh_identity(vm: &VmId, spec: &VmSpec, part: &ForkPart) -> Identity {
    let macs = match part.macs.is_empty() {
        true => spec.nics.iter().map(|_| MacAddress::random().to_string()).collect(),
        false => part.macs.iter().map(MacAddress::to_string).collect(),
    };
    let hostname = part.hostname.clone().unwrap_or_else(|| format!("kiln-{vm}"));
    Identity { hostname, machine_id: machine_id(), macs }
}

impl ForkPart {
    /// The spec of the fork that has this part, of a snapshot with that manifest. Looks at files.
    ///
    /// # Errors
    /// [`RestoreError::Part`], or [`RestoreError::NoVolume`].
    pub(crate) fn apply(&self, manifest: &Manifest, spec: &VmSpec) -> Result<VmSpec, RestoreError> {
        assert_may_block();
        let refuse = |problem: String| Err(RestoreError::Part { problem });
        if let Some(name) = &self.hostname {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
            if !(1..=HOSTNAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(allowed) {
                return refuse(format!("`{name}` is no host name: 1 to {HOSTNAME_BYTES_MAX} of `[a-zA-Z0-9.-]`"));
            }
        }
        if !self.macs.is_empty() && self.macs.len() != spec.nics.len() {
            return refuse(format!("{} addresses for {} network cards", self.macs.len(), spec.nics.len()));
        }
        let mut spec = spec.clone();
        for (position, volume) in self.volumes.iter().enumerate() {
            let index = volume.index;
            if self.volumes[..position].iter().any(|other| other.index == index) {
                return refuse(format!("two volumes for disk {index}"));
            }
            match spec.disks.get_mut(index) {
                Some(disk) if disk.role == DiskRole::Volume => disk.path.clone_from(&volume.path),
                _ => return refuse(format!("a volume for disk {index}, which is none")),
            }
        }
        let disks = spec.disks.iter().enumerate().filter(|(_, disk)| disk.role == DiskRole::Volume);
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
        Ok(spec)
    }
}

/// The size of the disk that is in a volume's file, which comes from outside and is hostile: a guest has written to it, and
/// perhaps others.
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

fn machine_id() -> String {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .expect("getrandom has no way to fail for sixteen bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use camino::Utf8Path;

    use super::*;
    use crate::snapshot::{ExternalDisk, Snapshot};
    use crate::vm_spec::Nic;

    /// A snapshot's manifest and spec, as if they were of a VM with one shared disk and one volume.
    fn saved(snapshot: &Snapshot, volume: &Utf8PathBuf) -> (Manifest, VmSpec) {
        let disk = |role| Disk { path: volume.clone(), format: DiskFormat::Raw, role };
        let disks = vec![disk(DiskRole::Shared), disk(DiskRole::Volume)];
        let nics = vec![Nic { mac: MacAddress::random() }];
        let spec = VmSpec { disks, nics, ..snapshot.manifest().spec.clone() };
        let volumes = vec![ExternalDisk::of(&spec.disks[1]).expect("is there")];
        (Manifest { volumes, spec: spec.clone(), ..snapshot.manifest().clone() }, spec)
    }

    #[test]
    fn a_fork_has_the_volume_that_it_is_given_and_none_without_one() {
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

        let link = place.home.path().join("link");
        fs_err::hard_link(&second, &link).expect("a second name");
        check_parts(&[part(1, &first), part(1, &second)], &manifest, &spec).expect("are two");
        let error = check_parts(&[part(1, &second), part(1, &link)], &manifest, &spec).expect_err("are one");
        assert!(matches!(error, RestoreError::Part { .. }), "{error:?}");
    }

    #[test]
    fn a_qcow2_volume_has_the_disk_of_the_one_that_was_saved_and_names_no_other_file() {
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
            (raw, "is no qcow2 image"),
            (file("shadow", &["-u", "-b", "/etc/shadow", "-F", "raw"]), "lies on a backing file"),
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
    fn names_and_addresses_that_a_guest_would_refuse_are_refused_before_it_starts() {
        let place = crate::snapshot::testing::place();
        let snapshot = place.full("one");
        let spec = VmSpec { nics: vec![Nic { mac: MacAddress::random() }], ..VmSpec::new("/k", "/i") };
        let apply = |part: ForkPart| part.apply(snapshot.manifest(), &spec);
        let named = |name: &str| ForkPart { hostname: Some(name.into()), ..ForkPart::default() };
        for wrong in ["", "a b", "a/b", "a\n", &"x".repeat(65)] {
            assert!(matches!(apply(named(wrong)), Err(RestoreError::Part { .. })), "{wrong:?}");
        }
        apply(named("web-1.example")).expect("is a name");
        let cards = |count| ForkPart { macs: vec![MacAddress::random(); count], ..ForkPart::default() };
        assert!(apply(cards(2)).is_err());
        let part = cards(1);
        let identity = fresh_identity(&VmId::random(), &apply(part.clone()).expect("fits"), &part);
        assert_eq!(identity.macs, [part.macs[0].to_string()]);
    }
}
