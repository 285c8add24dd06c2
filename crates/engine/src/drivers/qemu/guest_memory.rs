//! Moves memory between a snapshot and a paused QEMU process. All functions block.

use std::fs::File;

use camino::Utf8Path;

use crate::driver::RestoreError;
use crate::snapshot::memory::{self, ChainMemory, Mapping, MemoryError, Sharing};
use crate::snapshot::{Snapshot, SnapshotError};
use crate::vm::SaveError;

/// Writes the pages of a fork's memory that differ from its base's to a new page file.
pub(super) fn save_pages(pid: u32, mapped: &File, base: &Snapshot, to: &Utf8Path) -> Result<(), SaveError> {
    let chain = chain(base).map_err(|error| blame::<SaveError>(base, error))?;
    let saved = find(pid, mapped, base)
        .and_then(|mapping| Ok((mapping, memory::own_pages(pid, mapping)?)))
        .and_then(|(mapping, own)| memory::save(pid, mapping, &own, &chain, to))
        .map_err(|error| blame::<SaveError>(base, error))?;
    tracing::debug!(pid, own = saved.own, changed = saved.changed, zero = saved.zero, "saved the pages of a fork");
    Ok(())
}

/// Writes the pages of a snapshot's diffs into the memory of a QEMU that maps its root.
pub(super) fn apply_diffs(pid: u32, mapped: &File, snapshot: &Snapshot) -> Result<(), RestoreError> {
    let chain = chain(snapshot).map_err(|error| blame::<RestoreError>(snapshot, error))?;
    find(pid, mapped, snapshot)
        .and_then(|mapping| memory::apply(pid, mapping, &chain))
        .map_err(|error| blame(snapshot, error))
}

fn chain(snapshot: &Snapshot) -> Result<ChainMemory, MemoryError> {
    ChainMemory::open(&snapshot.memory_root(), &snapshot.page_files(), guest_bytes(snapshot))
}

fn find(pid: u32, mapped: &File, snapshot: &Snapshot) -> Result<Mapping, MemoryError> {
    Mapping::find(pid, mapped, &snapshot.memory_root(), guest_bytes(snapshot), Sharing::Private)
}

fn guest_bytes(snapshot: &Snapshot) -> u64 {
    snapshot.manifest().spec.memory_mib << 20
}

/// If a file is not what was saved, reports the snapshot that it belongs to.
fn blame<E: From<SnapshotError> + From<MemoryError>>(snapshot: &Snapshot, error: MemoryError) -> E {
    match error {
        MemoryError::Broken { path, problem } => {
            let file = path.file_name().unwrap_or(path.as_str()).to_owned();
            SnapshotError::Broken { id: snapshot.id().clone(), file, problem }.into()
        }
        MemoryError::File { what, path, source } => SnapshotError::io(what, path, source).into(),
        other => other.into(),
    }
}
