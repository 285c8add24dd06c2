//! The volumes of a run: held before the VM starts, mounted by its agent, and released after the guest has unmounted
//! them. A directory of the host becomes a read-only disk, and needs no more than that the disk exists.
//!
//! ```text
//!   -v ──▶ hold: created, locked, repaired, marked ──▶ disks and mounts of the VM ──▶ … command …
//!       ──▶ shut down: programs end, disks are unmounted, power off ──▶ mark removed
//!             │ not in time, a second signal, or the guest is gone
//!             └──▶ killed ──▶ the mark stays: the next use repairs the volume
//! ```

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use kiln_engine::directory::{DirectoryDisk, DirectoryDiskError, DirectoryStore};
use kiln_engine::home::Home;
use kiln_engine::volume::{Access, Content, Ended, VolumeError, VolumeHold, VolumeName, VolumeStore};
use kiln_engine::{DiskRole, ErrorKind, ExitReason, ForkPart, Guest, VmSpec, VolumeFile};
use kiln_wire::Mount;
use owo_colors::OwoColorize as _;

use super::growth::{self, Door};
use crate::args::volumes::{Source, StorageArgs, Target, VolumeArg};
use crate::failure::{Failure, HOST, USAGE};
use crate::interrupt::Interrupts;
use crate::output::{Progress, plain, say};
use crate::volume::{device, say_repair, volume_failure};

/// The size of a volume that `kiln run` creates. The file takes only what is written to it.
const DEFAULT_BYTES: u64 = 10 << 30;
/// For a guest to end its programs, which takes 3 seconds at most, and to write what it has not written yet.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(30);
/// The filesystem of volumes.
const EXT4: &str = "ext4";
/// The filesystem of the disks of directories.
const EROFS: &str = "erofs";

/// The volumes that one VM uses.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    holds: Vec<VolumeHold>,
    /// Those of volumes that the VM writes to.
    doors: Vec<Door>,
    /// Kept until the VM has ended.
    directories: Vec<DirectoryDisk>,
    /// What a fork is given: the files of its volumes, and what its agent mounts.
    pub(super) part: ForkPart,
}

/// Refuses volumes that contradict each other or the other flags, before anything is made.
pub(super) fn check(storage: &StorageArgs, saves: bool, from: bool) -> Result<(), Failure> {
    if from && storage.disk.is_some() {
        let words = "--from cannot be used with --disk: a fork has the disks of its snapshot and no others";
        return Err(Failure::words(USAGE, words).hint("give --disk to kiln snapshot create, whose forks have it then"));
    }
    if storage.volumes.is_empty() {
        return Ok(());
    }
    if saves {
        let words = "a snapshot does not hold the volumes of its VM, and its forks could not use them: the guest's \
                     memory would still have the contents of that moment";
        return Err(Failure::words(USAGE, words).hint("leave out -v here, and give -v to kiln run"));
    }
    if from {
        let words = "--from cannot be used with --volume: a fork has the disks of its snapshot and no others";
        return Err(Failure::words(USAGE, words).hint("copy files with --in and --out, or run an image instead"));
    }
    for (position, one) in storage.volumes.iter().enumerate().skip(1) {
        let earlier = &storage.volumes[..position];
        if earlier.iter().any(|other| other.source == one.source && matches!(one.source, Source::Volume(_))) {
            return Err(Failure::words(USAGE, format!("the volume `{}` is given twice", name_of(one))));
        }
        if let Target::Mount(path) = &one.target
            && earlier.iter().any(|other| other.target == one.target)
        {
            return Err(Failure::words(USAGE, format!("two volumes are to be mounted on `{path}`")));
        }
    }
    Ok(())
}

/// The kernel modules that the agent loads for the volumes, of those that the image has.
pub(super) fn modules(storage: &StorageArgs, image_has: &[String]) -> Vec<String> {
    let mounted = storage.volumes.iter().filter(|one| matches!(one.target, Target::Mount(_)));
    let wanted: Vec<_> = mounted.map(|one| filesystem(&one.source)).collect();
    let has = |name: &&str| wanted.contains(name) && image_has.iter().any(|has| has == name);
    [EXT4, EROFS].into_iter().filter(has).map(str::to_owned).collect()
}

impl Volumes {
    /// Locks the volumes, in the order of the flags, and makes them disks of a VM, after those of its image. A volume
    /// that does not exist is created. A directory of this host is read.
    pub(super) fn attach(
        home: &Home,
        storage: &StorageArgs,
        spec: &mut VmSpec,
        progress: &Progress,
    ) -> Result<Self, Failure> {
        let mut this = Self::default();
        if let Some(bytes) = storage.disk {
            scratch(home, bytes, spec)?;
        }
        for one in &storage.volumes {
            let disk = match &one.source {
                Source::Volume(name) => {
                    let hold = hold(home, name, one)?;
                    if matches!(one.target, Target::Mount(_)) && hold.content() == Content::Raw {
                        return Err(volume_failure(VolumeError::NotMountable(name.clone())));
                    }
                    this.holds.push(hold);
                    this.holds[this.holds.len() - 1].disk()
                }
                Source::Directory(path) => {
                    progress.say(format!("reading {}", path.display()));
                    let made = DirectoryStore::new(home).disk(path).map_err(directory_failure)?;
                    say_left_out(path, &made);
                    this.directories.push(made);
                    this.directories[this.directories.len() - 1].disk()
                }
            };
            let mount = match &one.target {
                Target::Disk => None,
                Target::Mount(target) => Some(Mount {
                    device: device(spec.disks.len()),
                    target: target.as_str().into(),
                    fstype: filesystem(&one.source).into(),
                    read_only: one.access == Access::Read,
                }),
            };
            this.part.mounts.extend(mount.clone());
            if disk.role == DiskRole::Volume {
                this.open_door(spec.disks.len(), mount);
            }
            spec.disks.push(disk);
        }
        this.part.volumes = VolumeFile::of(spec);
        Ok(this)
    }

    /// Lets other processes grow the newest volume.
    fn open_door(&mut self, disk: usize, mount: Option<Mount>) {
        let index = self.holds.len() - 1;
        match Door::open(&self.holds[index], index, disk, mount) {
            Ok(door) => self.doors.push(door),
            // The filesystem of the home may have no sockets. The volume is usable without one.
            Err(error) => tracing::warn!(%error, "the volume can't grow while this VM runs"),
        }
    }

    /// Grows volumes when other processes ask for it. Never returns.
    pub(super) async fn serve(&self, guest: &Guest) -> Infallible {
        growth::serve(&self.doors, &self.holds, guest).await
    }

    /// Ends the VM, so that nothing of what it wrote is lost.
    pub(super) async fn end(self, guest: &Guest, interrupts: &mut Interrupts) -> Result<(), Failure> {
        drop(self.doors);
        let writes = self.holds.iter().any(|hold| !hold.disk().role.is_read_only());
        let ended = if writes { shut_down(guest, interrupts).await } else { Ended::Cut };
        guest.vm.kill().await;
        for hold in self.holds {
            let name = hold.name().clone();
            if !hold.release(ended).map_err(volume_failure)? {
                say(format_args!(
                    "{} the guest did not unmount the volume `{name}`: it is checked before its next use",
                    "kiln:".yellow().bold()
                ));
            }
        }
        Ok(())
    }
}

/// Gives the root of a VM a disk for its changes.
fn scratch(home: &Home, bytes: u64, spec: &mut VmSpec) -> Result<(), Failure> {
    let Some(root) = &mut spec.root else {
        let words = "--disk needs an image with a root filesystem: the root of `mini` is in the memory of its guest";
        let hint = "use --image with an image of docker or OCI, or put files on a volume: -v NAME:/DIR";
        return Err(Failure::words(USAGE, words).hint(hint));
    };
    root.upper = Some(device(spec.disks.len()));
    spec.disks.push(VolumeStore::new(home).scratch_disk(bytes).map_err(volume_failure)?);
    Ok(())
}

/// Locks a volume. If it is to be written to and does not exist, it is created.
fn hold(home: &Home, name: &VolumeName, one: &VolumeArg) -> Result<VolumeHold, Failure> {
    let store = VolumeStore::new(home);
    let held = match store.hold(name, one.access) {
        Err(VolumeError::Unknown(_)) if one.access == Access::Write => {
            let content = if one.target == Target::Disk { Content::Raw } else { Content::Ext4 };
            match store.create(name, DEFAULT_BYTES, content) {
                Ok(()) => say(format_args!("created the volume `{name}`: {content}, up to 10 GiB")),
                // Another run was faster.
                Err(VolumeError::Exists(_)) => {}
                Err(error) => return Err(volume_failure(error)),
            }
            store.hold(name, one.access)
        }
        held => held,
    };
    let held = held.map_err(volume_failure)?;
    if let Some(repair) = held.repair() {
        say_repair(name, repair);
    }
    Ok(held)
}

/// A failure of a directory of this host.
fn directory_failure(error: DirectoryDiskError) -> Failure {
    let code = match error.kind() {
        ErrorKind::NotFound | ErrorKind::Invalid | ErrorKind::Denied | ErrorKind::Busy => USAGE,
        _ => HOST,
    };
    let hint = error.hint();
    Failure::new(code, error).maybe_hint(hint)
}

/// Reports what of a directory its disk does not have.
fn say_left_out(path: &Path, disk: &DirectoryDisk) {
    let (sockets, of_the_kernel) = (disk.facts().sockets, disk.facts().of_the_kernel);
    let mut left_out = Vec::new();
    if sockets > 0 {
        left_out.push(format!("{sockets} socket{} left out", if sockets == 1 { "" } else { "s" }));
    }
    if of_the_kernel > 0 {
        left_out.push(format!("the contents of {of_the_kernel} mounts of the kernel (such as /proc) left out"));
    }
    if !left_out.is_empty() {
        say(format_args!("{}: {}", plain(&path.display().to_string()), left_out.join(", ")));
    }
}

/// Requests that the guest shuts down, and waits until it has. A signal to kiln ends the wait.
async fn shut_down(guest: &Guest, interrupts: &mut Interrupts) -> Ended {
    // A guest without an agent can't be asked, and would use up the deadline.
    if guest.link.is_lost() {
        return Ended::Cut;
    }
    let off = async {
        guest.link.clone().shutdown().await;
        guest.vm.wait().await
    };
    tokio::select! {
        exit = off => if exit.reason == ExitReason::GuestPoweredOff { Ended::Cleanly } else { Ended::Cut },
        _ = interrupts.any() => Ended::Cut,
        () = tokio::time::sleep(SHUTDOWN_DEADLINE) => Ended::Cut,
    }
}

fn filesystem(source: &Source) -> &'static str {
    match source {
        Source::Volume(_) => EXT4,
        Source::Directory(_) => EROFS,
    }
}

fn name_of(one: &VolumeArg) -> String {
    match &one.source {
        Source::Volume(name) => name.to_string(),
        Source::Directory(path) => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::volumes::parse_volume;

    fn storage(volumes: &[&str]) -> StorageArgs {
        let volumes = volumes.iter().map(|text| parse_volume(text).expect("is read")).collect();
        StorageArgs { volumes, ..StorageArgs::default() }
    }

    #[test]
    fn a_scratch_disk_needs_a_root_and_an_image() {
        let given = StorageArgs { disk: Some(64 << 20), ..StorageArgs::default() };
        let from = check(&given, false, true).expect_err("is refused");
        assert!(check(&given, true, false).is_ok());
        let home = tempfile::tempdir().expect("a directory");
        let home = Home::at(camino::Utf8Path::from_path(home.path()).expect("UTF-8"));
        let mini = scratch(&home, 64 << 20, &mut VmSpec::new("/k", "/i")).expect_err("has no root");
        let lines = [from, mini].map(|failure| {
            assert_eq!(failure.code, USAGE);
            format!("{}\n  hint: {}", failure.message(), failure.hint_text().unwrap_or("-"))
        });
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn disks_have_the_letters_of_their_order() {
        assert_eq!([0, 1, 15].map(device), ["/dev/vda", "/dev/vdb", "/dev/vdp"]);
    }

    #[test]
    fn a_module_is_loaded_only_if_a_filesystem_is_mounted_and_the_image_has_it_as_a_module() {
        let has = ["ext4", "erofs", "tun"].map(str::to_owned);
        assert_eq!(modules(&storage(&["a:/a"]), &has), ["ext4"]);
        assert_eq!(modules(&storage(&["./a:/a:ro", "./b:/b:ro"]), &has), ["erofs"]);
        assert_eq!(modules(&storage(&["./a:/a:ro", "b:/b"]), &has), ["ext4", "erofs"]);
        assert_eq!(modules(&storage(&["a:disk"]), &has), [""; 0]);
        assert_eq!(modules(&storage(&["a:/a"]), &has[1..]), [""; 0]);
    }

    #[test]
    fn what_can_not_be_together_reads_like_this() {
        let refused = |volumes: &[&str], saves, from| {
            let failure = check(&storage(volumes), saves, from).expect_err("is refused");
            assert_eq!(failure.code, USAGE);
            format!("{}\n  hint: {}", failure.message(), failure.hint_text().unwrap_or("-"))
        };
        let lines = [
            refused(&["a:/a"], true, false),
            refused(&["a:/a"], false, true),
            refused(&["a:/a", "a:/b:ro"], false, false),
            refused(&["a:/a", "b:/a"], false, false),
        ];
        insta::assert_snapshot!(lines.join("\n"));
        assert!(check(&storage(&["a:/a", "b:/b", "c:disk", "d:disk"]), false, false).is_ok());
        assert!(check(&storage(&[]), true, true).is_ok());
    }
}
