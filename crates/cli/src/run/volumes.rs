//! The volumes of a run: held before the VM starts, mounted by its agent, and released after the guest has unmounted
//! them.
//!
//! ```text
//!   -v ──▶ hold: created, locked, repaired, marked ──▶ disks and mounts of the VM ──▶ … command …
//!       ──▶ shut down: programs end, disks are unmounted, power off ──▶ mark removed
//!             │ not in time, a second signal, or the guest is gone
//!             └──▶ killed ──▶ the mark stays: the next use repairs the volume
//! ```

use std::time::Duration;

use kiln_engine::home::Home;
use kiln_engine::volume::{Access, Content, Ended, VolumeError, VolumeHold, VolumeStore};
use kiln_engine::{ExitReason, ForkPart, Guest, VmSpec, VolumeFile};
use kiln_wire::Mount;
use owo_colors::OwoColorize as _;

use crate::args::volumes::{Source, StorageArgs, Target, VolumeArg};
use crate::failure::{Failure, USAGE};
use crate::interrupt::Interrupts;
use crate::output::say;
use crate::volume::{say_repair, volume_failure};

/// The size of a volume that `kiln run` creates. The file takes only what is written to it.
const DEFAULT_BYTES: u64 = 10 << 30;
/// For a guest to end its programs, which takes 3 seconds at most, and to write what it has not written yet.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(30);
/// The filesystem of volumes.
const EXT4: &str = "ext4";

/// The volumes that one VM uses.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    holds: Vec<VolumeHold>,
    /// What a fork is given: the files of its volumes, and what its agent mounts.
    pub(super) part: ForkPart,
}

/// Refuses volumes that contradict each other or the other flags, before anything is made.
pub(super) fn check(storage: &StorageArgs, saves: bool, from: bool) -> Result<(), Failure> {
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
    let mounts = storage.volumes.iter().any(|one| matches!(one.target, Target::Mount(_)));
    [EXT4].into_iter().filter(|name| mounts && image_has.iter().any(|has| has == name)).map(str::to_owned).collect()
}

impl Volumes {
    /// Locks the volumes, in the order of the flags, and makes them disks of a VM, after those of its image. A volume
    /// that does not exist is created.
    pub(super) fn attach(home: &Home, storage: &StorageArgs, spec: &mut VmSpec) -> Result<Self, Failure> {
        let store = VolumeStore::new(home);
        let mut this = Self::default();
        for one in &storage.volumes {
            let Source::Volume(name) = &one.source else {
                let words = format!("`{}`: directories of this host can't be mounted yet", name_of(one));
                return Err(Failure::words(USAGE, words).hint("copy it with --in HOST:GUEST"));
            };
            let hold = match store.hold(name, one.access) {
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
            let hold = hold.map_err(volume_failure)?;
            if let Some(repair) = hold.repair() {
                say_repair(name, repair);
            }
            if let Target::Mount(target) = &one.target {
                if hold.content() == Content::Raw {
                    return Err(volume_failure(VolumeError::NotMountable(name.clone())));
                }
                this.part.mounts.push(Mount {
                    device: device(spec.disks.len()),
                    target: target.as_str().into(),
                    fstype: EXT4.into(),
                    read_only: one.access == Access::Read,
                });
            }
            spec.disks.push(hold.disk());
            this.holds.push(hold);
        }
        this.part.volumes = VolumeFile::of(spec);
        Ok(this)
    }

    /// Ends the VM, so that nothing of what it wrote is lost.
    pub(super) async fn end(self, guest: &Guest, interrupts: &mut Interrupts) -> Result<(), Failure> {
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

/// The guest's name of a disk: `/dev/vda` for the first.
fn device(index: usize) -> String {
    let letter = u8::try_from(index).map_or('z', |index| char::from(b'a'.saturating_add(index).min(b'z')));
    format!("/dev/vd{letter}")
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
    fn disks_have_the_letters_of_their_order() {
        assert_eq!([0, 1, 15].map(device), ["/dev/vda", "/dev/vdb", "/dev/vdp"]);
    }

    #[test]
    fn a_module_is_loaded_only_if_a_filesystem_is_mounted_and_the_image_has_it_as_a_module() {
        let has = ["ext4".to_owned(), "tun".to_owned()];
        assert_eq!(modules(&storage(&["a:/a"]), &has), ["ext4"]);
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
