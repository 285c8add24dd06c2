//! A guest whose PID 1 is the image's own init, with the agent beside it.
//!
//! ```text
//!   PID 1: agent ─ mounts, drivers, root ─┬─ starts itself again ─▶ agent: own control group, link
//!                                         └─ once that is ready: execve ─▶ PID 1: the image's init
//! ```
//!
//! # What makes both get along
//! - *Control groups.* systemd moves all processes of the root group into one of its own when it starts, so the agent is
//!   in its group before. systemd leaves groups alone that it did not make, and can't take controllers away that those
//!   use.
//! - *Freezing.* All groups but the agent's are frozen, PID 1 too: it would otherwise run its timers in a fork that has
//!   no identity yet. A frozen init reaps no children and starts no services; after the thaw it continues.
//! - *The end.* A request of the host to shut down is passed on to init, which ends its services in its own order. When
//!   systemd powers off, it kills all processes except those whose name in `argv` begins with `@`, as the agent's does.
//!   So the link works until the machine is off.
//! - *Children.* Orphans go to PID 1. The agent has only the commands that it started, and reaps those.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use kiln_wire::GoodbyeReason;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::FdFlags;
use rustix::time::Timespec;
use tokio::task::spawn_local;

use super::{guest, shutdown};
use crate::agent::{Agent, Setup};
use crate::drivers::Loaded;
use crate::files;
use crate::log::{self, note};
use crate::machine::{LEASES, boot_id};
use crate::process::signals::Signals;
use crate::runtime::runtime;

/// Where an image has its init, in this order.
const INITS: [&str; 4] = ["/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/bin/systemd"];
/// The agent's name in `argv`. See the module.
const NAME: &str = "@kiln-agent";
/// The option with which the agent starts itself again.
pub const OPTION: &str = "--beside-init";
/// How long it may take until it is ready.
const READY_DEADLINE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };
/// What init gets: the kernel's own variables are not a user's.
const ENVIRONMENT: [(&str, &str); 2] =
    [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("TERM", "linux")];
/// The file of the machine's id. If it is empty, systemd takes the boot for the first one of the machine, and asks
/// questions on the console.
const MACHINE_ID: &str = "/etc/machine-id";
/// Bytes of a machine's id.
const MACHINE_ID_BYTES: usize = 16;
/// This directory exists while systemd is PID 1.
const SYSTEMD: &str = "/run/systemd/system";
/// The number of the first signal for programs' own use. systemd powers off on the fourth after it.
const REAL_TIME: i32 = 34;
const SYSTEMD_POWER_OFF: i32 = 4;

/// Starts the agent again beside this process, and becomes the image's init. Returns only if that fails.
///
/// # Errors
/// If the image has no init, or the agent does not start.
pub(super) fn hand_over() -> io::Error {
    let Err(error) = try_hand_over();
    error
}

fn try_hand_over() -> io::Result<std::convert::Infallible> {
    let is_program =
        |path: &&&str| fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    let Some(init) = INITS.iter().find(is_program) else {
        return Err(io::Error::other(format!("the image has no init: none of {}", INITS.join(", "))));
    };
    set_machine_id().map_err(|error| io::Error::other(format!("can't write `{MACHINE_ID}`: {error}")))?;
    let (mut ready, sends) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map(|(ready, sends)| (fs::File::from(ready), sends))?;
    let upper = files::upper()?;
    for inherited in [&sends, &upper] {
        rustix::io::fcntl_setfd(inherited, FdFlags::empty())?;
    }
    let mut agent = Command::new("/proc/self/exe");
    agent.arg0(NAME).arg(OPTION).args([sends.as_raw_fd(), upper.as_raw_fd()].map(|fd| fd.to_string()));
    // Not waited for: it is a child of PID 1, which will be init.
    drop(agent.spawn()?);
    drop((sends, upper));
    let mut waiting = [PollFd::new(&ready, PollFlags::IN)];
    poll(&mut waiting, Some(&READY_DEADLINE))?;
    let is_ready = waiting[0].revents().contains(PollFlags::IN) && ready.read(&mut [0])? == 1;
    if !is_ready {
        return Err(io::Error::other("the agent did not start beside init"));
    }
    // Opened files are closed, and blocked signals are unblocked, by the standard library.
    Err(Command::new(init).env_clear().envs(ENVIRONMENT).exec())
}

/// Gives the machine an id, unless the image has one. A fork gets another one with its identity.
fn set_machine_id() -> io::Result<()> {
    let known = fs::read_to_string(MACHINE_ID).unwrap_or_default();
    if known.trim().len() == 2 * MACHINE_ID_BYTES {
        return Ok(());
    }
    let mut id = [0; MACHINE_ID_BYTES];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    let text: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    fs::create_dir_all(Path::new(MACHINE_ID).parent().expect("a file in a directory"))?;
    fs::write(MACHINE_ID, format!("{text}\n"))
}

/// Serves the guest beside its init. `ready` is where PID 1 waits, `upper` the upper layer of the root.
///
/// # Errors
/// If the guest can't be served. The reason is on the console.
pub fn run(ready: RawFd, upper: RawFd) -> io::Result<()> {
    let [ready, upper] = [ready, upper].map(inherited);
    let (ready, upper) = (ready?, upper?);
    if let Ok(kmsg) = rustix::fs::open("/dev/kmsg", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        log::also_to_kernel(kmsg.into());
    }
    files::set_upper(upper);
    if let Err(error) = boot_id::inherit() {
        note(format!("can't take over the boot id: {error}"));
    }
    let result = runtime().and_then(|runtime| runtime.block_on(serve(ready.into())));
    if let Err(error) = &result {
        note(format!("can't serve this guest: {error}"));
    }
    // Without an agent the host does not reach the guest.
    power_off();
    result
}

/// A descriptor of PID 1 that this process has inherited.
fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    #![expect(unsafe_code, reason = "descriptors are inherited by their numbers")]
    if number <= 2 {
        return Err(io::Error::other(format!("{number} is not a descriptor of {OPTION}")));
    }
    // SAFETY: PID 1 has left it open for this process, and nothing else here knows its number. If it is not open, the
    // next call fails.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&descriptor, FdFlags::CLOEXEC)?;
    Ok(descriptor)
}

async fn serve(mut ready: fs::File) -> io::Result<()> {
    let signals = Signals::new()?;
    guest::exempt_from_oom();
    let cgroups = guest::take_cgroups();
    let agent = Agent::new(Setup { pid_1: true, cgroups, leases: Some(LEASES.into()), ..Setup::default() })?;
    let commands = Rc::clone(&agent.commands);
    spawn_local(async move { commands.prepare_groups().await });
    // PID 1 loaded them before it switched the root.
    agent.drivers.set_loaded(Loaded::All);
    ready.write_all(&[1])?;
    drop(ready);
    let link = guest::serve(&agent);
    let ended = async {
        loop {
            agent.commands.watch_signals(&signals).await?;
            // A program that ends services does not end the guest.
            note("a signal to end the agent was ignored: end the guest with its init".into());
        }
    };
    let ended: io::Result<()> = tokio::select! {
        result = link => result,
        result = ended => result,
        () = agent.links.shutdown_requested() => Ok(()),
    };
    ended?;
    agent.links.end(GoodbyeReason::Shutdown);
    if agent.commands.are_frozen() {
        // Init is frozen, too, and must not run before the guest has its own identity.
        shutdown::stop_everything(&agent).await;
        return shutdown::power_off();
    }
    power_off();
    // Init ends the services, unmounts disks and powers the machine off. Children are reaped meanwhile.
    agent.commands.watch_signals(&signals).await?;
    std::future::pending().await
}

/// Asks init to power the machine off.
fn power_off() {
    #![expect(unsafe_code, reason = "real-time signals are only reachable through libc")]
    // Other inits take the second one for a failing power supply.
    let signal = if Path::new(SYSTEMD).is_dir() { REAL_TIME + SYSTEMD_POWER_OFF } else { libc::SIGPWR };
    // SAFETY: plain numbers.
    if unsafe { libc::kill(1, signal) } != 0 {
        note(format!("can't ask init to power off: {}", io::Error::last_os_error()));
    }
}
