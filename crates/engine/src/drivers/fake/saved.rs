//! Saving the files of a fake guest, and starting an agent on them.

use std::io::{self, Seek as _, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::engine::{GUEST_DIRECTORY, Program};
use super::process::Agent;
use crate::blocking;
use crate::driver::{LaunchError, RestoreError, Restorer, Waiting};
use crate::failpoint;
use crate::files::private_file;
use crate::snapshot::{DEVICE_FILE, Draft, MEMORY_FILE, MachineIdentity, MemoryKind, Snapshot, SnapshotError};
use crate::spec::VmSpec;
use crate::vm::{BoxFuture, Files, SaveError, Saver, Vm, Written};
use crate::vm_dir::VmDir;

/// Saves one fake guest.
#[derive(Debug)]
pub(super) struct FakeSaver {
    program: Arc<Program>,
    guest: Utf8PathBuf,
    forkable: bool,
    bytes_max: u64,
}

impl FakeSaver {
    pub(super) fn new(program: Arc<Program>, directory: &Utf8Path, spec: &VmSpec) -> Self {
        let (guest, bytes_max) = (directory.join(GUEST_DIRECTORY), spec.memory_mib << 20);
        Self { program, guest, forkable: spec.forkable, bytes_max }
    }

    fn save(&self, draft: Draft) -> Result<Written, SaveError> {
        let device = draft.path(DEVICE_FILE);
        private_file::write_new(&device, b"none").map_err(|source| SnapshotError::io("write", &device, source))?;
        failpoint::hit("save.device")?;
        let memory = draft.path(MEMORY_FILE);
        pack(&self.guest, &memory, self.bytes_max).map_err(|source| SnapshotError::io("write", &memory, source))?;
        failpoint::hit("save.memory")?;
        failpoint::hit("save.disks")?;
        let machine = self.program.machine().map_err(|error| match error {
            LaunchError::Image { path, source } => SnapshotError::io("read", path, source),
            other => SnapshotError::io("read", &self.program.agent, io::Error::other(other)),
        })?;
        Ok(Written { draft, parent: None, memory: MemoryKind::Full, disks: Vec::new(), machine })
    }
}

impl Saver for FakeSaver {
    fn check(&self) -> BoxFuture<'_, Result<(), SaveError>> {
        Box::pin(async { if self.forkable { Ok(()) } else { Err(SaveError::NotForkable) } })
    }

    fn write(self: Arc<Self>, draft: Draft, _: Files) -> BoxFuture<'static, Result<Written, SaveError>> {
        Box::pin(blocking(move || self.save(draft)))
    }
}

/// Restores one fake guest.
#[derive(Debug)]
pub(super) struct FakeRestorer {
    program: Arc<Program>,
    machine: MachineIdentity,
    snapshot: Snapshot,
}

impl FakeRestorer {
    pub(super) fn new(program: Arc<Program>, snapshot: &Snapshot) -> Result<Self, RestoreError> {
        let machine = program.machine()?;
        Ok(Self { program, machine, snapshot: snapshot.clone() })
    }

    async fn started(&self, dir: VmDir, spec: VmSpec) -> Result<WaitingAgent, RestoreError> {
        let (snapshot, guest) = (self.snapshot.clone(), dir.path().join(GUEST_DIRECTORY));
        let unpacked = blocking(move || {
            let memory = snapshot.memory_root();
            let unpacked = unpack(&memory, &guest);
            unpacked.map_err(|source| SnapshotError::io("unpack", memory, source))
        });
        unpacked.await?;
        // The fork holds the snapshot's locks while it runs, like a VMM that maps the snapshot's memory.
        let locks = self.snapshot.lock_fds().into_iter().map(|lock| lock.try_clone_to_owned());
        let failed = |source| LaunchError::Directory { path: dir.path().into(), source };
        let locks = locks.collect::<io::Result<_>>().map_err(failed)?;
        let agent = Agent::start(Arc::clone(&self.program), dir, locks).await?;
        Ok(WaitingAgent { agent, spec })
    }
}

impl Restorer for FakeRestorer {
    fn machine(&self) -> &MachineIdentity {
        &self.machine
    }

    fn start(&self, dir: VmDir, spec: VmSpec) -> BoxFuture<'_, Result<Box<dyn Waiting>, RestoreError>> {
        Box::pin(async { Ok(Box::new(self.started(dir, spec).await?) as Box<dyn Waiting>) })
    }
}

/// An agent that has no link yet.
#[derive(Debug)]
struct WaitingAgent {
    agent: Agent,
    spec: VmSpec,
}

impl Waiting for WaitingAgent {
    fn pid(&self) -> u32 {
        self.agent.pid()
    }

    fn load(self: Box<Self>) -> BoxFuture<'static, Result<Vm, RestoreError>> {
        Box::pin(async move {
            let Self { agent, spec } = *self;
            failpoint::hit("restore.loaded")?;
            let path = agent.dir().path().to_owned();
            let vm = agent.own(&spec).map_err(|source| LaunchError::Directory { path, source })?;
            Ok(vm)
        })
    }
}

/// Packs a directory into a new archive.
fn pack(directory: &Utf8Path, to: &Utf8Path, bytes_max: u64) -> io::Result<()> {
    let bounded = Bounded { file: private_file::create_new(to)?, left: bytes_max };
    let mut archive = tar::Builder::new(bounded);
    archive.follow_symlinks(false);
    pack_entries(&mut archive, directory, Utf8Path::new(""))?;
    archive.into_inner()?.file.flush()
}

fn pack_entries(archive: &mut tar::Builder<Bounded>, directory: &Utf8Path, name: &Utf8Path) -> io::Result<()> {
    for entry in directory.join(name).read_dir_utf8()? {
        let entry = entry?;
        let (inner, kind) = (name.join(entry.file_name()), entry.file_type()?);
        if kind.is_dir() || kind.is_file() || kind.is_symlink() {
            archive.append_path_with_name(entry.path(), &inner)?;
        }
        if kind.is_dir() {
            pack_entries(archive, directory, &inner)?;
        }
    }
    Ok(())
}

/// Unpacks an archive into a directory. A save of this host made it, but its entries are kept below the directory
/// nevertheless.
fn unpack(from: &Utf8Path, directory: &Utf8Path) -> io::Result<()> {
    private_file::create_dir(directory)?;
    let mut file = fs::File::open(from)?;
    file.seek(SeekFrom::Start(0))?;
    let mut archive = tar::Archive::new(file);
    archive.set_preserve_permissions(true);
    archive.unpack(Path::new(directory))
}

/// A file that accepts a limited number of bytes.
struct Bounded {
    file: fs::File,
    left: u64,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(left) = self.left.checked_sub(bytes.len() as u64) else {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the guest's files are larger than its memory"));
        };
        let count = self.file.write(bytes)?;
        self.left = left + (bytes.len() - count) as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
