//! The guest from its first moment to its last: what is set up in which order, and what ends it.

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
use super::{mounts, port, root, shutdown};
use crate::agent::{Agent, Setup};
use crate::drivers::{Drivers, Loaded};
use crate::link::Links;
use crate::log::{self, note};
use crate::machine::{LEASES, hosts, network};
use crate::process::cgroup::Cgroups;
use crate::process::signals::Signals;
use crate::runtime::runtime;
use crate::transport::Transport;

/// The very first output: what boots are timed by.
const FIRST_LINE: &[u8] = b"kiln-agent: init\n";
/// Name of a guest that was given none.
const HOSTNAME: &str = "kiln";
/// Open files that a command may raise its limit to.
const FILES_MAX: u64 = 524_288;
/// Without these there is no link.
const LINK_MODULES: [&str; 2] = ["virtio_pci", "virtio_console"];

/// A source of randomness beside the CPU's own: no command waits for it …
const UNHURRIED_MODULES: [&str; 1] = ["virtio_rng"];
/// … and it does not take the CPU from the first one.
const UNHURRIED: Duration = Duration::from_millis(300);

/// Runs the guest until it is powered off.
///
/// # Errors
/// The guest can't be served; the console has the reason.
pub fn run() -> io::Result<()> {
    // A console that is missing is opened once there is a /dev.
    let _ = rustix::io::write(rustix::stdio::stdout(), FIRST_LINE);
    mounts::mount_all();
    if let Ok(kmsg) = rustix::fs::open("/dev/kmsg", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        log::also_to_kernel(kmsg.into());
    }
    let result = runtime().and_then(|runtime| runtime.block_on(guest()));
    if let Err(error) = &result {
        note(format!("can't serve this guest: {error}"));
    }
    // Returning would be a panic of the kernel.
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
    if let Some(root) = &options.root {
        modules.for_devices().iter().chain(&options.modules).for_each(|name| modules.load(name));
        drivers_wait = false;
        root::switch(root, &modules).await?;
        // A disk need not know the name; the initramfs does.
        if let Err(error) = hosts::rename(HOSTNAME, HOSTNAME) {
            note(format!("the name `{HOSTNAME}` does not resolve: {error}"));
        }
    }
    // Before the first command, and before the agent's own children, which would inherit it.
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    let cgroups = Cgroups::take_over(Path::new("/sys/fs/cgroup"))
        .inspect_err(|error| note(format!("no control groups: {error}")))
        .ok();
    let agent = Agent::new(Setup { pid_1: true, cgroups, leases: Some(LEASES.into()), ..Setup::default() })?;
    let commands = Rc::clone(&agent.commands);
    spawn_local(async move { commands.prepare_groups().await });
    if drivers_wait {
        let (links, drivers) = (Rc::clone(&agent.links), Rc::clone(&agent.drivers));
        spawn_local(load_drivers(links, drivers, modules, options));
    } else {
        agent.drivers.are(Loaded::All);
    }
    tokio::select! {
        result = serve(&agent) => result?,
        result = agent.commands.watch_signals(&signals) => result?,
        () = agent.links.shutdown_asked() => {}
    }
    shutdown::stop_everything(&agent).await;
    Ok(())
}

async fn serve(agent: &Agent) -> io::Result<()> {
    let port = port::find().await?;
    let links = spawn_local(agent.serve(Transport::port(&port)?));
    match links.await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Loads what the link does not need once a host talks to the agent.
async fn load_drivers(links: Rc<Links>, drivers: Rc<Drivers>, modules: Modules, options: BootOptions) {
    links.first().await;
    let (later, now) = split(modules.for_devices(), &options);
    let modules = Arc::new(modules);
    load(&modules, now).await;
    drivers.are(Loaded::Enough);
    if !later.is_empty() {
        tokio::select! {
            () = tokio::time::sleep(UNHURRIED) => {}
            () = drivers.hurried() => {}
        }
        load(&modules, later).await;
    }
    drivers.are(Loaded::All);
}

/// What can wait, and what commands wait for.
fn split(devices: Vec<String>, options: &BootOptions) -> (Vec<String>, Vec<String>) {
    devices
        .into_iter()
        .chain(options.modules.iter().cloned())
        .partition(|name| UNHURRIED_MODULES.contains(&name.as_str()) && !options.modules.contains(name))
}

async fn load(modules: &Arc<Modules>, names: Vec<String>) {
    if !names.is_empty() {
        let modules = Arc::clone(modules);
        // A load that fails was noted; commands run all the same.
        let _ = spawn_blocking(move || names.iter().for_each(|name| modules.load(name))).await;
    }
}

fn raise_limits() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let soft = getrlimit(Resource::Nofile).current;
    // The kernel's own default stays where it is lower than this.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: soft, maximum: Some(FILES_MAX) });
    rustix::process::umask(Mode::from_raw_mode(0o022));
}
