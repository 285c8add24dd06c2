//! Whether the guest is needed now: running commands, open streams, and leases of programs in the guest.
//!
//! A session whose shell waits for its next line is not a reason to keep a guest running. Any other running command is.
//! A program that waits for something the agent can't see takes a *lease*: a file in a directory that every user may
//! write to. Its content is the number of seconds, counted from its last change, for which the guest is needed.

use std::cmp::Reverse;
use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use kiln_wire::{Activity, Done, LEASE_SECONDS_MAX, LEASES_MAX, Lease, Message, Reply};
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::time::{ClockId, clock_gettime};

use super::metrics::{cpu_busy_ms, uptime_ms};
use crate::link::Stream;
use crate::process::{Commands, Running};

/// Files that are read as leases. More are ignored.
const FILES_MAX: usize = 512;
/// Longer names are cut in the list.
const NAME_BYTES_MAX: usize = 64;
/// Longest content of a lease: a number of seconds, an end of line, and some spaces.
const SECONDS_BYTES_MAX: usize = 16;
/// Shells that wait for the next line of their user, by the kernel's names for them.
const SHELLS: [&str; 10] = ["sh", "ash", "bash", "dash", "zsh", "fish", "ksh", "mksh", "csh", "tcsh"];

/// Serves the stream to its end.
pub async fn serve(activity: Activity, stream: Stream) {
    let reply = Message::Reply(Box::new(Reply::Activity(Box::new(activity))));
    if stream.outlet.send(&reply).await.is_ok() {
        stream.outlet.end(&Message::Done(Done::default()));
    }
}

/// Open streams that are a reason to keep the guest running.
#[derive(Debug, Clone, Copy)]
pub struct Open {
    /// Watches of files.
    pub watches: u32,
    /// Forwarded connections.
    pub forwards: u32,
}

/// The current reasons to keep the guest running.
pub fn of(commands: &Commands, open: Open, leases_in: Option<&Path>) -> Activity {
    let mut activity = Activity {
        uptime_ms: uptime_ms(),
        cpu_busy_ms: cpu_busy_ms(),
        watches: open.watches,
        forwards: open.forwards,
        leases: leases_in.map(leases).unwrap_or_default(),
        ..Activity::default()
    };
    for (pid, job) in commands.running().iter() {
        match &job.session {
            None => activity.execs += 1,
            Some(name) if !is_idle_shell(*pid, job) => activity.sessions.push(name.clone()),
            Some(_) => {}
        }
    }
    activity
}

/// Whether a session is a shell that sleeps, in the foreground and without a child. False if this can't be found out.
fn is_idle_shell(pid: u32, job: &Running) -> bool {
    let foreground = job.terminal.as_ref().is_none_or(|terminal| terminal.foreground() == Some(pid));
    foreground
        && stat_of(pid).is_some_and(|stat| stat.state == 'S' && SHELLS.contains(&stat.name.as_str()))
        // Threads count as pids too, and a shell has one.
        && job.group.upgrade().map_or_else(|| is_alone(pid), |group| group.pids() == 1)
}

/// Whether no other process belongs to this one. For agents without control groups.
fn is_alone(pid: u32) -> bool {
    let others = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut others = others.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|other| *other != pid);
    !others.any(|other| stat_of(other).is_some_and(|stat| stat.parent == pid || stat.session == pid))
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    state: char,
    parent: u32,
    session: u32,
}

fn stat_of(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Parses `/proc/PID/stat`. The name is in parentheses and may contain parentheses too.
fn parse_stat(text: &str) -> Option<Stat> {
    let (head, tail) = text.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let mut fields = tail.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    Some(Stat { name: name.to_owned(), state, parent, session })
}

/// The valid leases in a directory, by name. Files that are not a lease are ignored.
fn leases(directory: &Path) -> Vec<Lease> {
    let mut found = Vec::new();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(directory) = openat(CWD, directory, flags, Mode::empty()) else { return found };
    let Ok(entries) = Dir::read_from(&directory) else { return found };
    let now = clock_gettime(ClockId::Realtime);
    let now_ns = nanoseconds(now.tv_sec, now.tv_nsec);
    for entry in entries.take(FILES_MAX).flatten() {
        // A program writes its lease under a name that begins with a dot, and renames it.
        if entry.file_name().to_bytes().first() == Some(&b'.') {
            continue;
        }
        if let Ok(Some(expires_in_ms)) = lease(&directory, entry.file_name(), now_ns) {
            found.push(Lease { name: listed_name(entry.file_name().to_bytes()), expires_in_ms });
        }
    }
    // If there are too many, the ones that last longest are kept.
    found.sort_unstable_by_key(|lease| Reverse(lease.expires_in_ms));
    found.truncate(LEASES_MAX);
    found.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    found
}

/// The rest of a lease's time in milliseconds. Every user may create files here, so the file is hostile: links are not
/// followed, and neither a FIFO nor a mounted file system can block the agent.
fn lease(directory: impl AsFd, name: &CStr, now_ns: i128) -> io::Result<Option<u64>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(directory, name, flags, Mode::empty(), resolve)?;
    let stat = fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let mut text = [0; SECONDS_BYTES_MAX + 1];
    let count = rustix::io::read(&file, &mut text[..])?;
    let changed_ns = nanoseconds(stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0));
    Ok(remaining_ms(&text[..count], changed_ns, now_ns))
}

fn nanoseconds(seconds: i64, rest: i64) -> i128 {
    const SECOND_NS: i128 = 1_000_000_000;
    i128::from(seconds) * SECOND_NS + i128::from(rest)
}

/// The rest of a lease's time. If the clock was set back, the last change is in the future; such a lease is valid only
/// if its rest is not longer than the longest lease.
fn remaining_ms(text: &[u8], changed_ns: i128, now_ns: i128) -> Option<u64> {
    const MILLISECOND_NS: i128 = 1_000_000;
    if text.len() > SECONDS_BYTES_MAX {
        return None;
    }
    let seconds: u64 = std::str::from_utf8(text).ok()?.trim().parse().ok()?;
    if seconds > LEASE_SECONDS_MAX {
        return None;
    }
    let left_ns = changed_ns + i128::from(seconds) * 1000 * MILLISECOND_NS - now_ns;
    let left_ms = u64::try_from(left_ns / MILLISECOND_NS).ok()?;
    (1..=LEASE_SECONDS_MAX * 1000).contains(&left_ms).then_some(left_ms)
}

fn listed_name(name: &[u8]) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    name.iter().take(NAME_BYTES_MAX).map(|byte| if plain(byte) { char::from(*byte) } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;
    use std::time::{Duration, SystemTime};

    use super::*;

    const SECOND_NS: i128 = 1_000_000_000;

    #[test]
    fn a_lease_is_valid_for_its_seconds_after_its_last_change() {
        let left =
            |text: &str, changed: i128, now: i128| remaining_ms(text.as_bytes(), changed * SECOND_NS, now * SECOND_NS);
        assert_eq!(left("600", 1000, 1000), Some(600_000));
        assert_eq!(left(" 600\n", 1000, 1599), Some(1000));
        assert_eq!(left("600", 1000, 1600), None, "over");
        assert_eq!(left("86400", 1000, 1000), Some(86_400_000));
        assert_eq!(left("600", 1000 + 3600, 1000), Some(4_200_000), "the clock was set back an hour");
        assert_eq!(left("600", 1000 + 90_000, 1000), None, "the clock was set back more than a lease may last");
    }

    #[test]
    fn a_file_without_a_number_of_seconds_is_not_a_lease() {
        for wrong in
            ["", "\n", "0", "-1", "1.5", "ten", "86401", "18446744073709551616", "600 600", "60000000000000000"]
        {
            assert_eq!(remaining_ms(wrong.as_bytes(), 0, 0), None, "{wrong:?}");
        }
        assert_eq!(remaining_ms(b"\xff", 0, 0), None);
    }

    #[test]
    fn only_valid_leases_are_listed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        for (name, text) in [("build", "600"), ("b c", "60\n"), (".new", "600"), ("bad", "x"), ("old", "10")] {
            fs::write(path(name), text).expect("a file");
        }
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        fs::File::options().write(true).open(path("old")).and_then(|old| old.set_modified(hour_ago)).expect("a time");
        fs::create_dir(path("directory")).expect("a folder");
        std::os::unix::fs::symlink(path("build"), path("link")).expect("a link");
        rustix::fs::mknodat(CWD, path("fifo"), FileType::Fifo, Mode::RUSR, 0).expect("a FIFO");
        let found = leases(folder.path());
        let names: Vec<&str> = found.iter().map(|lease| lease.name.as_str()).collect();
        assert_eq!(names, ["b_c", "build"]);
        assert!((590_000..=600_000).contains(&found[1].expires_in_ms), "{found:?}");
        assert_eq!(leases(&path("missing")), []);
    }

    #[test]
    fn of_too_many_leases_the_longest_are_listed() {
        let folder = tempfile::tempdir().expect("a folder");
        for number in 0..LEASES_MAX + 10 {
            fs::write(folder.path().join(format!("lease-{number}")), (1000 + number).to_string()).expect("a file");
        }
        let found = leases(folder.path());
        assert_eq!(found.len(), LEASES_MAX);
        assert!(found.iter().all(|lease| lease.expires_in_ms > 1_005_000), "{found:?}");
    }

    #[test]
    fn long_names_are_cut_and_special_characters_replaced() {
        assert_eq!(listed_name(std::ffi::OsStr::new("a b/ü").as_bytes()), "a_b___");
        assert_eq!(listed_name(&[b'x'; 255]).len(), NAME_BYTES_MAX);
    }

    #[test]
    fn a_process_name_may_contain_parentheses() {
        let stat = parse_stat("42 (a) R (b) S 7 8 9 0 -1 4194304\n").expect("a whole line");
        assert_eq!(stat, Stat { name: "a) R (b".into(), state: 'S', parent: 7, session: 9 });
        assert_eq!(parse_stat("42 (sh"), None);
        assert_eq!(parse_stat("42 (sh) S 1\n"), None);
    }
}
