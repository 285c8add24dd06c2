//! `Sync`: gives a fork its own clock, randomness and identity. Before it, two forks of one snapshot have the same
//! clock, the same randomness and the same names, so commands that were frozen for the snapshot are thawed only after
//! it.
//!
//! # The order of a sync
//! 1. All values are checked. An invalid request changes nothing, and the fork stays frozen.
//! 2. The clock. Whatever is written next has the time of the fork.
//! 3. Randomness. The ids that follow are drawn from it, so they would be equal in all forks if they were drawn before.
//! 4. The host name, the machine id and the boot id.
//! 5. Addresses of interfaces. Before this, two forks on one network would answer for the same address.
//! 6. Networks and disks. They wait for the drivers of the guest's devices, and a mount may have to replay a journal.
//!    So they run beside the link, while the steps before run before the next request is read.
//! 7. The thaw, only if all of that has succeeded. A failed step leaves the commands frozen, and the host drops the
//!    fork: no command ever runs with the identity of another machine.
//!
//! # Why randomness takes two calls
//! A running kernel does not use new randomness at once. `RNDADDENTROPY` mixes the seed into the pool of the generator.
//! But each CPU has a key of its own, and the kernel makes new keys from the pool only now and then, at most once a
//! minute after the boot has settled. Until then two forks would return the same bytes for the same requests.
//! `RNDRESEEDCRNG` makes a new base key from the pool now, and by that each CPU replaces its own key at its next
//! request.
#![expect(unsafe_code, reason = "crediting randomness is only reachable by ioctl")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_wire::{
    Done, ErrorCode, Fault, Identity, MACS_MAX, MOUNTS_MAX, Message, Mount, NAMESERVERS_MAX, Network, Sync,
};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use tokio::task::spawn_blocking;

use crate::drivers::Drivers;
use crate::link::Stream;
use crate::log::note;
use crate::machine::{boot_id, disks, hosts, network, resolver};
use crate::process::Commands;

/// Bytes of a seed.
const SEED_BYTES: std::ops::RangeInclusive<usize> = 32..=512;
/// Longest host name of Linux.
const HOSTNAME_BYTES_MAX: usize = 64;
/// Digits of a machine id.
const MACHINE_ID_DIGITS: usize = 32;
/// Bytes of an Ethernet address.
const MAC_BYTES: usize = 6;
/// The bit of an address's first byte that marks a group.
const MULTICAST: u8 = 1;
/// A guest's clock that is ahead of the host's time by less than this is left as it is, see [`is_better`].
const AHEAD_MAX_NS: i128 = SECOND_NS as i128;
const SECOND_NS: u64 = 1_000_000_000;
/// `_IOW('R', 0x03, int [2])` and `_IO('R', 0x07)` of linux/random.h.
const RNDADDENTROPY: u64 = 0x4008_5203;
const RNDRESEEDCRNG: u64 = 0x5207;

/// The machine whose clock, randomness and names a sync changes.
#[derive(Debug)]
pub enum Machine {
    /// The guest: the agent is its PID 1.
    Guest,
    /// A directory that stands in for a guest in tests. Only names are written, to files in it.
    StandIn(PathBuf),
    /// None: the agent is a service of a machine that it doesn't own.
    Foreign,
}

/// The part of a sync that waits for devices.
#[derive(Debug)]
pub struct Setup {
    network: Option<Network>,
    mounts: Vec<Mount>,
}

/// Sets the clock, credits randomness, and sets the machine's names, boot id and Ethernet addresses. If that is all,
/// it thaws frozen commands. Otherwise [`finish`] has the rest.
///
/// # Errors
/// If the agent is not PID 1, a value is invalid, or the kernel refuses a change.
pub fn begin(commands: &Commands, machine: &Machine, sync: Sync) -> Result<Option<Setup>, Fault> {
    match machine {
        Machine::Guest => sync_guest(commands, &sync)?,
        Machine::StandIn(home) => sync_stand_in(home, &sync)?,
        Machine::Foreign => return Err(Fault::new(ErrorCode::Unsupported, "only PID 1 of a guest can be synced")),
    }
    let Sync { network, mounts, .. } = sync;
    if network.is_none() && mounts.is_empty() {
        return commands.thaw().map(|()| None);
    }
    if matches!(machine, Machine::StandIn(_)) {
        return Err(Fault::new(ErrorCode::Unsupported, "a stand-in for a guest has no networks and disks"));
    }
    Ok(Some(Setup { network, mounts }))
}

/// Connects the networks, mounts the disks, and thaws frozen commands.
pub async fn finish(commands: Rc<Commands>, drivers: Rc<Drivers>, stream: Stream, setup: Setup) {
    let done = async {
        drivers.ready().await;
        if let Some(network) = &setup.network {
            connect(network)?;
        }
        let mounts = setup.mounts;
        let mounted = spawn_blocking(move || mounts.iter().try_for_each(disks::mount_disk));
        let mounted = mounted.await.map_err(io::Error::other).and_then(|mounted| mounted);
        mounted.map_err(|error| Fault::new(ErrorCode::Io, error.to_string()))?;
        commands.thaw()
    };
    let outcome = tokio::select! {
        biased;
        end = stream.inbox.ended() => Err(end.into_fault()),
        outcome = done => outcome,
    };
    end(&stream, outcome);
}

/// Ends the stream of a sync.
pub fn end(stream: &Stream, outcome: Result<(), Fault>) {
    match outcome {
        Ok(()) => stream.outlet.end(&Message::Done(Done::default())),
        Err(fault) => stream.outlet.fail(fault),
    }
}

fn sync_guest(commands: &Commands, sync: &Sync) -> Result<(), Fault> {
    // All values are checked before the first change, so an invalid request changes nothing.
    let seed = seed(&sync.seed)?;
    let time = time(sync.host_time_ns)?;
    check_setup(sync)?;
    let addresses = match &sync.identity {
        Some(identity) => check(identity).and_then(|()| addresses(&identity.macs))?,
        None => vec![],
    };
    if commands.are_frozen() || is_better(time, clock_gettime(ClockId::Realtime)) {
        clock_settime(ClockId::Realtime, time).map_err(|error| failed("the clock", &error.into()))?;
    }
    add_entropy(&seed).map_err(|error| failed("randomness", &error))?;
    if let Some(identity) = &sync.identity {
        name_machine(identity)?;
        boot_id::renew().map_err(|error| failed("the boot id", &error))?;
    }
    for (interface, mac) in &addresses {
        let failed = |error| failed(&format!("the address of `{interface}`"), &error);
        network::set_address(interface, *mac).map_err(failed)?;
    }
    Ok(())
}

fn check_setup(sync: &Sync) -> Result<(), Fault> {
    if let Some(problem) = sync.mounts.iter().find_map(disks::problem) {
        return Err(invalid(problem));
    }
    if sync.mounts.len() > MOUNTS_MAX {
        return Err(invalid(format!("{} mounts, more than {MOUNTS_MAX}", sync.mounts.len())));
    }
    let Some(Network { interfaces, nameservers }) = &sync.network else { return Ok(()) };
    for (what, count, max) in
        [("interfaces", interfaces.len(), MACS_MAX), ("name servers", nameservers.len(), NAMESERVERS_MAX)]
    {
        if count > max {
            return Err(invalid(format!("{count} {what}, more than {max}")));
        }
    }
    match interfaces.iter().find(|interface| interface.prefix > 32) {
        Some(interface) => Err(invalid(format!("an IPv4 address has no prefix of {} bits", interface.prefix))),
        None => Ok(()),
    }
}

/// Assigns networks to interfaces, both in their order.
fn connect(network: &Network) -> Result<(), Fault> {
    let names = network::interfaces();
    if network.interfaces.len() > names.len() {
        return Err(invalid(format!("networks for {} of {} interfaces", network.interfaces.len(), names.len())));
    }
    for (name, interface) in names.iter().zip(&network.interfaces) {
        network::connect(name, interface).map_err(|error| failed(&format!("the network of `{name}`"), &error))?;
    }
    if network.nameservers.is_empty() {
        return Ok(());
    }
    resolver::set_nameservers(&network.nameservers).map_err(|error| failed("`/etc/resolv.conf`", &error))
}

/// A directory that stands in for a guest has names. It has no clock, randomness or interfaces.
fn sync_stand_in(home: &Path, sync: &Sync) -> Result<(), Fault> {
    seed(&sync.seed)?;
    time(sync.host_time_ns)?;
    if let Some(identity) = &sync.identity {
        check(identity).and_then(|()| addresses(&identity.macs))?;
        let etc = home.join("etc");
        let name = |file: &str, value: &str| {
            let written =
                std::fs::create_dir_all(&etc).and_then(|()| std::fs::write(etc.join(file), format!("{value}\n")));
            written.map_err(|error| failed(&format!("`etc/{file}`"), &error))
        };
        name("hostname", &identity.hostname)?;
        name("machine-id", &identity.machine_id)?;
    }
    Ok(())
}

fn failed(what: &str, error: &io::Error) -> Fault {
    Fault::new(ErrorCode::Io, format!("can't set {what}: {error}"))
}

fn invalid(message: String) -> Fault {
    Fault::new(ErrorCode::InvalidRequest, message)
}

fn seed(text: &str) -> Result<Vec<u8>, Fault> {
    let seed = STANDARD.decode(text).map_err(|error| invalid(format!("`seed` is not base64: {error}")))?;
    if SEED_BYTES.contains(&seed.len()) {
        Ok(seed)
    } else {
        Err(invalid(format!("`seed` has {} bytes, not {SEED_BYTES:?}", seed.len())))
    }
}

/// Whether the host's time is better than the guest's clock, which commands already read.
///
/// The host reads its clock when it sends the request, so the time in the request is late by the request's delay, and
/// never early. A host whose first request got no reply in time sends a second one, and its delay may be longer. A
/// clock that is a little ahead of the request was set by an earlier request with a shorter delay, so it is the better
/// one. Setting it back would also make time go backward for the commands.
fn is_better(host_time: Timespec, clock: Timespec) -> bool {
    let nanoseconds = |time: Timespec| i128::from(time.tv_sec) * i128::from(SECOND_NS) + i128::from(time.tv_nsec);
    let ahead = nanoseconds(clock) - nanoseconds(host_time);
    !(0..AHEAD_MAX_NS).contains(&ahead)
}

fn time(nanoseconds: u64) -> Result<Timespec, Fault> {
    let seconds = i64::try_from(nanoseconds / SECOND_NS).map_err(|_| invalid("`host_time_ns` is too large".into()))?;
    let rest = i64::try_from(nanoseconds % SECOND_NS).map_err(|_| invalid("`host_time_ns` is too large".into()))?;
    Ok(Timespec { tv_sec: seconds, tv_nsec: rest })
}

fn check(identity: &Identity) -> Result<(), Fault> {
    let Identity { hostname, machine_id, .. } = identity;
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    if !(1..=HOSTNAME_BYTES_MAX).contains(&hostname.len()) || !hostname.bytes().all(good) {
        return Err(invalid(format!("`{hostname}` is not a host name: 1 to {HOSTNAME_BYTES_MAX} of `[A-Za-z0-9-.]`")));
    }
    if machine_id.len() != MACHINE_ID_DIGITS
        || !machine_id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    {
        return Err(invalid(format!("`{machine_id}` is not a machine id: {MACHINE_ID_DIGITS} digits of `[0-9a-f]`")));
    }
    Ok(())
}

/// Assigns addresses to interfaces, both in their order.
fn addresses(macs: &[String]) -> Result<Vec<(String, [u8; MAC_BYTES])>, Fault> {
    if macs.len() > MACS_MAX {
        return Err(invalid(format!("{} MAC addresses, more than {MACS_MAX}", macs.len())));
    }
    let macs = macs.iter().map(|text| mac(text)).collect::<Result<Vec<_>, _>>()?;
    // Most requests have no addresses, and then the interfaces need not be listed.
    let interfaces = if macs.is_empty() { vec![] } else { network::interfaces() };
    if macs.len() > interfaces.len() {
        return Err(invalid(format!("{} MAC addresses for {} interfaces", macs.len(), interfaces.len())));
    }
    Ok(interfaces.into_iter().zip(macs).collect())
}

fn mac(text: &str) -> Result<[u8; MAC_BYTES], Fault> {
    let byte = |pair: &str| {
        let lower = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (pair.len() == 2 && pair.bytes().all(lower)).then(|| u8::from_str_radix(pair, 16).ok()).flatten()
    };
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    match bytes.and_then(|bytes| <[u8; MAC_BYTES]>::try_from(bytes).ok()) {
        Some(mac) if mac[0] & MULTICAST == 0 && mac != [0; MAC_BYTES] => Ok(mac),
        _ => Err(invalid(format!("`{text}` is not a unicast MAC address in lower case"))),
    }
}

/// Adds bytes to the kernel's random generator, credits them as random, and makes every CPU use them at once.
fn add_entropy(seed: &[u8]) -> io::Result<()> {
    let random = random_device()?;
    let bits = i32::try_from(seed.len() * 8).expect("a seed has at most 512 bytes");
    let bytes = i32::try_from(seed.len()).expect("a seed has at most 512 bytes");
    // struct rand_pool_info: two ints, then the bytes.
    let mut pool = Vec::with_capacity(8 + seed.len());
    pool.extend_from_slice(&bits.to_ne_bytes());
    pool.extend_from_slice(&bytes.to_ne_bytes());
    pool.extend_from_slice(seed);
    // SAFETY: the first call reads a rand_pool_info, whose size field is the number of bytes after it. The second has
    // no argument.
    unsafe {
        if libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, pool.as_ptr()) < 0
            || libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG, 0) < 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The kernel's random generator. It stays open, so a fork doesn't have to look it up again.
fn random_device() -> io::Result<&'static File> {
    static DEVICE: OnceLock<File> = OnceLock::new();
    if let Some(device) = DEVICE.get() {
        return Ok(device);
    }
    let device = File::options().write(true).open("/dev/random")?;
    Ok(DEVICE.get_or_init(|| device))
}

fn name_machine(identity: &Identity) -> Result<(), Fault> {
    let Identity { hostname, machine_id, .. } = identity;
    let before = rustix::system::uname().nodename().to_string_lossy().into_owned();
    rustix::system::sethostname(hostname.as_bytes()).map_err(|error| failed("the host name", &error.into()))?;
    for (path, value) in [("/etc/hostname", hostname), ("/etc/machine-id", machine_id)] {
        overwrite(path, &format!("{value}\n")).map_err(|error| failed(&format!("`{path}`"), &error))?;
    }
    // A failure here is not an error of the sync: the fork has its identity, and only the name lookup is affected.
    if let Err(error) = hosts::rename(&before, hostname) {
        note(format!("can't add `{hostname}` to `/etc/hosts`: {error}"));
    }
    Ok(())
}

/// Overwrites a file in place. It keeps its page in the cache, which saves some milliseconds at the start of a fork.
fn overwrite(path: &str, content: &str) -> io::Result<()> {
    // With O_NONBLOCK, opening a FIFO doesn't wait for a reader.
    let options = File::options().write(true).create(true).truncate(false).custom_flags(libc::O_NONBLOCK).clone();
    let file = options.open(path)?;
    file.write_all_at(content.as_bytes(), 0)?;
    if file.metadata()?.len() > content.len() as u64 { file.set_len(content.len() as u64) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_seeds_of_the_right_length_are_accepted() {
        let of =
            |bytes: usize| seed(&STANDARD.encode(vec![7; bytes])).map(|seed| seed.len()).map_err(|fault| fault.code);
        assert_eq!(of(32), Ok(32));
        assert_eq!(of(512), Ok(512));
        for wrong in [0, 31, 513] {
            assert_eq!(of(wrong), Err(ErrorCode::InvalidRequest), "{wrong}");
        }
        assert_eq!(seed("%%%").expect_err("refused").code, ErrorCode::InvalidRequest);
    }

    #[test]
    fn an_overwritten_file_has_only_the_new_content() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("hostname");
        for content in ["a name\n", "another, longer name\n", "short\n"] {
            overwrite(path.to_str().expect("UTF-8"), content).expect("written");
            assert_eq!(std::fs::read_to_string(&path).expect("reads"), content);
        }
    }

    #[test]
    fn names_are_checked() {
        let id = "0123456789abcdef0123456789abcdef";
        let of = |hostname: &str, machine_id: &str| {
            check(&Identity { hostname: hostname.into(), machine_id: machine_id.into(), macs: vec![] }).is_ok()
        };
        assert!(of("fork-1.example", id));
        for wrong in ["", "a b", "a/b", &"x".repeat(65)] {
            assert!(!of(wrong, id), "{wrong}");
        }
        for wrong in ["", &id[1..], &id.to_uppercase(), &id.replace('f', "g")] {
            assert!(!of("a", wrong), "{wrong}");
        }
    }

    #[test]
    fn only_unicast_addresses_in_lower_case_are_accepted() {
        assert_eq!(mac("52:54:00:12:ab:ff"), Ok([0x52, 0x54, 0, 0x12, 0xab, 0xff]));
        let wrong = [
            "",
            "52:54:00:12:ab",
            "52:54:00:12:ab:ff:00",
            "52:54:00:12:AB:FF",
            "52-54-00-12-ab-ff",
            "52:54:0:12:ab:ff",
            "52:54:+0:12:ab:ff",
            "53:54:00:12:ab:ff",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ];
        for wrong in wrong {
            assert_eq!(mac(wrong).map_err(|fault| fault.code), Err(ErrorCode::InvalidRequest), "{wrong}");
        }
        assert!(addresses(&vec!["52:54:00:12:34:56".into(); MACS_MAX + 1]).is_err());
        assert_eq!(addresses(&[]), Ok(vec![]));
    }

    #[test]
    fn a_clock_that_is_a_little_ahead_is_not_set_back() {
        let time = |nanoseconds| time(nanoseconds).expect("a time of this century");
        let better = |host_time, clock| is_better(time(host_time), time(clock));
        let now = 1_500_000_000_900_000_000;
        assert!(better(now, now - 1) && better(now, now - 200_000_000) && better(now, 0));
        assert!(!better(now, now) && !better(now - 200_000_000, now) && !better(now, now + SECOND_NS - 1));
        assert!(better(now, now + SECOND_NS));
    }

    #[test]
    fn times_are_split_into_seconds_and_the_rest() {
        let split = time(1_500_000_000_123_456_789).expect("a time of this century");
        assert_eq!((split.tv_sec, split.tv_nsec), (1_500_000_000, 123_456_789));
        assert!(time(u64::MAX).is_ok(), "the year 2554 fits");
    }

    #[test]
    fn refusals_of_values_read_like_this() {
        let identity = |hostname: &str, machine_id: &str| {
            check(&Identity { hostname: hostname.into(), machine_id: machine_id.into(), macs: vec![] }).err()
        };
        let refusals = [
            seed("%").err(),
            seed(&STANDARD.encode([7; 31])).err(),
            identity("a b", "0123456789abcdef0123456789abcdef"),
            identity("a", "0123"),
            addresses(&["52-54-00-12-34-56".into()]).err(),
            addresses(&vec![String::new(); MACS_MAX + 1]).err(),
        ];
        let lines = refusals.map(|refusal| format!("{}\n", refusal.expect("refused")));
        insta::assert_snapshot!(lines.concat());
    }
}
