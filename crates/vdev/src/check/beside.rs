//! Whether two backends of one command can run beside each other without one seeing what is done to the other.
//!
//! Ports, locks and TAP devices show at once: the second does not start. A disk that both have open does not show, and would
//! have one case read what another writes; so the first writes, and the second must not read it.

use std::path::PathBuf;

use super::case::{Allowed, Need};
use super::context::Context;
use super::disk::{Disk, SECTOR, pattern};
use super::facts::Facts;
use super::outcome::{Outcome, Stop};
use super::target::Target;
use crate::virtio::DeviceKind;

/// Starts a second backend beside the one that runs.
///
/// # Errors
/// Why both can't be used, in words.
pub(super) fn independent(
    first: &mut Target,
    writes: bool,
    socket: Option<PathBuf>,
    facts: &Facts,
    device: DeviceKind,
) -> Result<(), String> {
    let mut second = first.another(socket);
    let outcome = together(first, &mut second, writes, facts, device);
    let words = second.process().map_or_else(Vec::new, |process| process.last_words());
    let last_words = words.into_iter().rfind(|line| !line.trim().is_empty());
    second.stop();
    match outcome {
        Ok(true) => Ok(()),
        Ok(false) => {
            Err("a second one would use the same disk; `{dir}` in the command gives each backend its own".to_owned())
        }
        Err(stop) => {
            let (Stop::Fail(because) | Stop::Skip(because) | Stop::Closed(because) | Stop::Hang(because)) = stop;
            let last_words = last_words.map_or_else(String::new, |words| format!(" ({words})"));
            Err(format!("a second one does not work beside the first: {because}{last_words}"))
        }
    }
}

fn together(first: &mut Target, second: &mut Target, writes: bool, facts: &Facts, device: DeviceKind) -> Outcome<bool> {
    let failed = |error: std::io::Error| Stop::Fail(format!("failed to start it: {error}"));
    if first.process().is_none() || first.has_ended() || facts.ends_with_client {
        first.start().map_err(failed)?;
    }
    // The first is served before the second is started, so that it is the second which fails if only one can be.
    let has_disk = has_disk(first, writes, facts, device);
    let mut context = Context::new(first, facts, Some(device));
    if !has_disk {
        let _open = context.open()?;
        second.start().map_err(failed)?;
        return second.connect_served().map(|_| true);
    }
    let mut disk = Disk::open(&mut context)?;
    second.start().map_err(failed)?;
    let mut other = Disk::open(&mut Context::new(second, facts, Some(device)))?;
    let kept = disk.read(disk.scratch, SECTOR as usize)?;
    // Another pattern than any case writes, so that what a case left is not taken for it.
    let written = pattern(u64::from(std::process::id()) << 32 | 0xbe51de, SECTOR as usize);
    disk.write(disk.scratch, &written)?;
    let found = other.read(disk.scratch, SECTOR as usize);
    disk.write(disk.scratch, &kept)?;
    Ok(found? != written)
}

/// Whether cases write to a disk.
fn has_disk(target: &Target, writes: bool, facts: &Facts, device: DeviceKind) -> bool {
    let allowed = Allowed { writes, harm: true };
    [Need::DataPath, Need::Writes].iter().all(|need| need.lack(facts, Some(device), target, allowed).is_none())
}
