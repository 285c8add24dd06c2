//! The measures for one VMM: turns the policy into steps of its start, and records the state of each measure.
//!
//! Each measure is prepared in the parent as far as possible, so that the child only makes system calls. What the host
//! refuses in the parent is known before the fork. What it refuses in the child comes back as a [`Failure`] with the
//! step. Then [`Border::give_up`] removes the measure of that step, and the child is forked again. The loop ends,
//! because each turn removes a measure, and a step whose measure can't be removed is an error. A measure that depends
//! on another one is removed with it: without namespaces there are no mounts to make read-only, and without a user of
//! its own the processes of a VMM are not counted apart, so their limit goes too.

use std::fs::File;
use std::os::fd::OwnedFd;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::Resource;

use super::account::{Account, barred};
use super::broker::{self, Broker, MEMORY_NAME};
use super::cgroup::{Bounds, Cgroup};
use super::exec::{Failure, Step, Steps};
use super::landlock::{self, Files};
use super::measure::{Confinement, Measure, MeasureState};
use super::policy::Policy;

/// Descriptors of a VMM: with KVM, two for each queue of each device, and some more.
const DESCRIPTORS_MAX: u64 = 4096;
/// Threads of a VMM beside those of its CPUs: a few of its own, and at most 64 that read and write disks.
const THREADS_MAX: u64 = 128;
/// Memory of a VMM beside its guest's. TCG keeps up to 1 GiB of translated code.
const VMM_BYTES_MAX: u64 = 2 << 30;
/// Since this kernel, a limit of processes counts those of a user namespace. Before, it counted all processes of the
/// user.
const LINUX_WITH_COUNTED_NAMESPACES: (u32, u32) = (5, 14);

/// What one VMM needs. It gets nothing else.
#[derive(Debug, Default)]
pub(crate) struct Needs {
    /// The name of its control group.
    pub(crate) name: String,
    pub(crate) directory: Utf8PathBuf,
    /// Files that it opens by name to read.
    pub(crate) read: Vec<Utf8PathBuf>,
    /// Files that it opens by name to write, and its own files.
    pub(crate) write: Vec<Utf8PathBuf>,
    /// Sockets of other programs that it connects to by name.
    pub(crate) connect: Vec<Utf8PathBuf>,
    /// The memory of the snapshot that it is a fork of.
    pub(crate) snapshot: Option<(Utf8PathBuf, File)>,
    /// The size of its largest file.
    pub(crate) file_bytes: u64,
    /// The size of its guest's memory.
    pub(crate) memory_bytes: u64,
    pub(crate) cpus: u32,
    pub(crate) kvm: bool,
}

/// What confines one VMM. The default confines nothing, for programs that are not VMMs.
#[derive(Debug, Default)]
pub(crate) struct Border {
    pub(crate) steps: Steps,
    pub(crate) confinement: Confinement,
    pub(crate) broker: Option<Broker>,
    pub(crate) cgroup: Option<Cgroup>,
    /// `cgroup.procs` of each of its groups.
    pub(crate) entrances: Vec<OwnedFd>,
    processes_max: u64,
}

impl Border {
    /// Prepares what the policy requires and the host allows.
    pub(crate) fn new(policy: &Policy, program: &Utf8Path, mut needs: Needs) -> Self {
        let mut this = Self { processes_max: THREADS_MAX + u64::from(needs.cpus), ..Self::default() };
        // The order matters. A user of its own needs the broker, because it can't open the memory by name. And Landlock
        // has to allow the name under which the broker hands the memory over.
        let order = [
            Measure::ForkMemory,
            Measure::Cgroup,
            Measure::User,
            Measure::Namespaces,
            Measure::Landlock,
            Measure::Limits,
        ];
        for measure in order {
            let state = match policy.wants(measure) {
                true => this.add(measure, program, &mut needs).unwrap_or_else(MeasureState::refused),
                false => MeasureState::Off,
            };
            this.confinement.set(measure, state);
            if measure == Measure::ForkMemory
                && let Some((path, _)) = needs.snapshot.take_if(|_| this.broker.is_none())
            {
                needs.write.push(path);
            }
        }
        this.limit_processes();
        this
    }

    /// The name that the VMM has for the memory of its snapshot, if it is not the file's name.
    pub(crate) fn memory_name(&self) -> Option<&'static Utf8Path> {
        self.broker.as_ref().map(|_| Utf8Path::new(MEMORY_NAME))
    }

    /// Whether the VMM runs as another user, who can't open this user's private files.
    pub(crate) fn is_another_user(&self) -> bool {
        self.steps.user.is_some()
    }

    fn add(&mut self, measure: Measure, program: &Utf8Path, needs: &mut Needs) -> Result<MeasureState, String> {
        match measure {
            Measure::ForkMemory => {
                let Some((_, memory)) = &needs.snapshot else { return Ok(MeasureState::NotNeeded) };
                broker::available()?;
                let memory = memory.try_clone().map_err(|error| error.to_string())?;
                let (broker, filter) = broker::broker(memory).map_err(|error| error.to_string())?;
                (self.broker, self.steps.filter) = (Some(broker), Some(filter));
                Ok(MeasureState::on(""))
            }
            Measure::Cgroup => {
                root_only()?;
                let memory_bytes = needs.memory_bytes + VMM_BYTES_MAX;
                let group = Cgroup::create(&needs.name, Bounds { memory_bytes, processes: self.processes_max })?;
                self.entrances = group.entrances().map_err(|error| error.to_string())?;
                self.cgroup = Some(group);
                Ok(MeasureState::on(""))
            }
            Measure::User => self.add_user(program, needs),
            Measure::Namespaces => Ok(self.add_namespaces()),
            Measure::Landlock => {
                let abi = landlock::abi()?;
                let (read, write) = (needs.read.clone(), needs.write.clone());
                let files = Files { program: program.to_owned(), read, write, kvm: needs.kvm };
                self.steps.landlock = landlock::ruleset(&files).map_err(|error| error.to_string())?;
                Ok(MeasureState::on(landlock::detail(abi)))
            }
            Measure::Limits => {
                self.steps.limits = vec![(Resource::Nofile, DESCRIPTORS_MAX), (Resource::Fsize, needs.file_bytes)];
                Ok(MeasureState::on(""))
            }
        }
    }

    fn add_user(&mut self, program: &Utf8Path, needs: &Needs) -> Result<MeasureState, String> {
        root_only()?;
        let closed = |path: &Utf8Path, wanted| match barred(path, wanted) {
            Some(place) => Err(format!("other users can't open `{path}`, because of `{place}`")),
            None => Ok(()),
        };
        closed(program, 0o005)?;
        needs.connect.iter().try_for_each(|socket| closed(socket, 0o002))?;
        if needs.snapshot.is_some() && self.broker.is_none() {
            return Err("another user can't open the memory of the snapshot".into());
        }
        let mut account = Account::random();
        if needs.kvm {
            account.join_kvm()?;
        }
        let failed = |error: std::io::Error| error.to_string();
        account.let_pass(&needs.directory).map_err(failed)?;
        needs.write.iter().try_for_each(|path| account.give(path)).map_err(failed)?;
        let detail = format!("uid {}", account.user);
        self.steps.user = Some((account.user, account.groups));
        Ok(MeasureState::on(detail))
    }

    fn add_namespaces(&mut self) -> MeasureState {
        let mut namespaces = libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWPID;
        let mut detail = "mount, net, ipc, pid";
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        if !user.is_root() {
            namespaces |= libc::CLONE_NEWUSER;
            let map = |id: u32| format!("{id} {id} 1\n");
            self.steps.maps = Some([map(user.as_raw()), map(group.as_raw())]);
            detail = "user, mount, net, ipc, pid";
        }
        self.steps.namespaces = namespaces;
        self.steps.read_only = true;
        MeasureState::on(detail)
    }

    /// `RLIMIT_NPROC` counts all processes of a user. So it is set only for a VMM whose processes are counted apart.
    fn limit_processes(&mut self) {
        let limits = &mut self.steps.limits;
        limits.retain(|(resource, _)| *resource != Resource::Nproc);
        if limits.is_empty() {
            return;
        }
        let own_count = self.steps.user.is_some() || self.steps.maps.is_some() && counts_in_namespaces();
        if own_count {
            limits.push((Resource::Nproc, self.processes_max));
        }
        let processes = if own_count { "processes, " } else { "" };
        self.confinement.set(Measure::Limits, MeasureState::on(format!("{processes}descriptors, file size")));
    }

    /// Drops the measure that a failed step belongs to. Returns `false` if the step belongs to no measure that can be
    /// dropped.
    pub(crate) fn give_up(&mut self, failure: Failure) -> bool {
        let steps = &mut self.steps;
        let state = MeasureState::refused(failure.to_string());
        match failure.step {
            Step::Landlock if steps.landlock.take().is_some() => self.confinement.set(Measure::Landlock, state),
            Step::User if steps.user.take().is_some() => self.confinement.set(Measure::User, state),
            Step::Mounts if std::mem::take(&mut steps.read_only) => {
                let detail = format!("net, ipc, pid; mounts can be written to: {failure}");
                self.confinement.set(Measure::Namespaces, MeasureState::on(detail));
            }
            Step::Namespaces if std::mem::take(&mut steps.namespaces) != 0 => {
                steps.maps = None;
                steps.read_only = false;
                self.confinement.set(Measure::Namespaces, state);
            }
            _ => return false,
        }
        self.limit_processes();
        true
    }
}

fn root_only() -> Result<(), String> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err("it needs root".into()) }
}

fn counts_in_namespaces() -> bool {
    kernel().is_some_and(|version| version >= LINUX_WITH_COUNTED_NAMESPACES)
}

/// The first two numbers of the host's kernel version.
pub(super) fn kernel() -> Option<(u32, u32)> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}
