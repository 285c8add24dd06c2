//! The guest from start to end: the order of its setup, and the events that end it.
//!
//! # The order of the setup
//! - The mounts come first: devices are found through `/sys`, and the console and the kernel's log are in `/dev`.
//! - Signals are blocked by `runtime`, while there is one thread. A thread inherits the mask of the thread that creates
//!   it, so every thread has it, and each signal stays pending until the descriptor is read. A SIGCHLD that is not
//!   blocked is ignored by default, and its child would stay a zombie until the next one arrives.
//! - The agent takes over the control groups before it serves the link. The first command could otherwise start outside
//!   of them, and would then be missed by limits and by the freezer.
//! - All other drivers are loaded after the first Hello, unless the root or all modules are on a disk. The host then knows that the
//!   guest is up, and the time that the drivers need passes while the host prepares its first request. Commands wait
//!   for them; the link does not.

use std::fs;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tokio::task::{spawn_blocking, spawn_local};

use super::boot_options::BootOptions;
use super::modules::Modules;
use super::{beside, module_disk, mounts, port, root, shutdown};
use crate::agent::{Agent, Setup};
use crate::drivers::{Drivers, Loaded};
use crate::link::Links;
use crate::log::{self, note};
use crate::machine::{LEASES, hosts, network};
use crate::process::cgroup::Cgroups;
use crate::process::signals::Signals;
use crate::runtime::runtime;
use crate::transport::Transport;

/// The first output of the agent. The duration of a boot is measured by it.
const FIRST_LINE: &[u8] = b"kiln-agent: init\n";
/// Name of a guest before a sync names it.
const HOSTNAME: &str = "kiln";
/// Open files to which a command may raise its limit.
const FILES_MAX: u64 = 524_288;
/// Modules that the link needs.
const LINK_MODULES: [&str; 2] = ["virtio_pci", "virtio_console"];

/// A source of randomness in addition to the CPU's. No command waits for it.
const LATER_MODULES: [&str; 1] = ["virtio_rng"];
/// How long these modules wait, so that loading them doesn't slow down the first command.
const LATER: Duration = Duration::from_millis(300);

/// Runs the guest until it is powered off.
///
/// # Errors
/// If the guest can't be served. The reason is on the console.
pub fn run() -> io::Result<()> {
    // This fails if the kernel has opened no console. The boot continues without the line.
    let _ = rustix::io::write(rustix::stdio::stdout(), FIRST_LINE);
    mounts::mount_all();
    if let Ok(kmsg) = rustix::fs::open("/dev/kmsg", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        log::also_to_kernel(kmsg.into());
    }
    let result = runtime().and_then(|runtime| runtime.block_on(guest()));
    if let Err(error) = &result {
        note(format!("can't serve this guest: {error}"));
    }
    // If PID 1 returned, the kernel would panic.
    shutdown::power_off()
}

async fn guest() -> io::Result<()> {
    let signals = Signals::new()?;
    let options = BootOptions::read();
    let modules = Modules::of_running_kernel();
    for name in LINK_MODULES {
        modules.load(name);
    }
    let _ = rustix::system::sethostname(HOSTNAME.as_bytes());
    network::loopback_up();
    raise_limits();
    let mut drivers_wait = true;
    if options.root.is_some() || options.module_disk.is_some() {
        modules.for_devices().iter().for_each(|name| modules.load(name));
        drivers_wait = false;
    }
    if let Some(root) = &options.root {
        options.modules.iter().for_each(|name| modules.load(name));
        root::switch(root, &modules).await?;
        // The initramfs has the name in its hosts file, and a disk may not.
        if let Err(error) = hosts::rename(HOSTNAME, HOSTNAME) {
            note(format!("can't add `{HOSTNAME}` to `/etc/hosts`: {error}"));
        }
    }
    if let Some(disk) = &options.module_disk {
        modules.load(&disk.filesystem);
        module_disk::mount(disk)?;
        // The disk has modules that the initramfs does not have.
        let all = Modules::of_running_kernel();
        options.modules.iter().for_each(|name| all.load(name));
    }
    if options.init {
        return Err(beside::hand_over());
    }
    exempt_from_oom();
    let cgroups = take_cgroups();
    let agent = Agent::new(Setup { pid_1: true, cgroups, leases: Some(LEASES.into()), ..Setup::default() })?;
    let commands = Rc::clone(&agent.commands);
    spawn_local(async move { commands.prepare_groups().await });
    if drivers_wait {
        let (links, drivers) = (Rc::clone(&agent.links), Rc::clone(&agent.drivers));
        spawn_local(load_drivers(links, drivers, modules, options));
    } else {
        agent.drivers.set_loaded(Loaded::All);
    }
    tokio::select! {
        result = serve(&agent) => result?,
        result = agent.commands.watch_signals(&signals) => result?,
        () = agent.links.shutdown_requested() => {}
    }
    shutdown::stop_everything(&agent).await;
    Ok(())
}

/// Exempts the agent from the OOM killer. A command's child undoes this for itself.
pub(super) fn exempt_from_oom() {
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
}

/// The control groups, if the kernel has them.
pub(super) fn take_cgroups() -> Option<Cgroups> {
    Cgroups::take_over(Path::new("/sys/fs/cgroup"))
        .inspect_err(|error| note(format!("can't use control groups: {error}")))
        .ok()
}

/// Serves the host until the port ends.
pub(super) async fn serve(agent: &Agent) -> io::Result<()> {
    let port = port::find().await?;
    let links = spawn_local(agent.serve(Transport::port(&port)?));
    match links.await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Loads the modules that the link doesn't need, after a host has sent Hello.
async fn load_drivers(links: Rc<Links>, drivers: Rc<Drivers>, modules: Modules, options: BootOptions) {
    links.first_hello().await;
    let (later, now) = split(modules.for_devices(), &options);
    let modules = Arc::new(modules);
    load(&modules, now).await;
    drivers.set_loaded(Loaded::Enough);
    if !later.is_empty() {
        tokio::select! {
            () = tokio::time::sleep(LATER) => {}
            () = drivers.all_requested() => {}
        }
        load(&modules, later).await;
    }
    drivers.set_loaded(Loaded::All);
}

/// Splits modules into those that are loaded later and those that commands wait for.
fn split(devices: Vec<String>, options: &BootOptions) -> (Vec<String>, Vec<String>) {
    devices
        .into_iter()
        .chain(options.modules.iter().cloned())
        .partition(|name| LATER_MODULES.contains(&name.as_str()) && !options.modules.contains(name))
}

async fn load(modules: &Arc<Modules>, names: Vec<String>) {
    if !names.is_empty() {
        let modules = Arc::clone(modules);
        // A failed load was logged, and commands run nevertheless.
        let _ = spawn_blocking(move || names.iter().for_each(|name| modules.load(name))).await;
    }
}

fn raise_limits() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let soft = getrlimit(Resource::Nofile).current;
    // If the kernel allows fewer, this fails and its default stays.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: soft, maximum: Some(FILES_MAX) });
    rustix::process::umask(Mode::from_raw_mode(0o022));
}
