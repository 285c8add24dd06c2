//! Reads a journal. Its bytes are hostile: their number is bounded, and parsing stops at the first line that is not
//! valid.

use std::io;

use camino::Utf8Path;

use super::{JOURNAL_BYTES_MAX, JOURNAL_FILE, JournalError, Record, State, Then, io_error};
use crate::files::plain_file;
use crate::snapshot::SnapshotId;

/// A longer file was not written by [`Journal`](super::Journal), which rewrites it long before.
const READ_BYTES_MAX: u64 = 2 * JOURNAL_BYTES_MAX;
/// Longest line. Reasons are cut so that they fit.
pub(super) const LINE_BYTES_MAX: usize = 4 << 10;
/// Snapshots of the VM that a rewritten journal still names.
const SNAPSHOTS_KEPT: usize = 16;

/// The content of a journal when it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct History {
    /// Oldest first.
    pub(crate) records: Vec<Record>,
    /// Why the line after the records is not valid. `None` for a torn last line, which counts as not written.
    pub(crate) problem: Option<String>,
    /// The length of the records' lines in bytes.
    pub(super) bytes: u64,
}

impl History {
    /// Reads a VM's journal. Empty if the file does not exist.
    pub(crate) fn read(directory: &Utf8Path) -> Result<Self, JournalError> {
        match plain_file::read(&directory.join(JOURNAL_FILE), READ_BYTES_MAX + 1) {
            Ok(bytes) => Ok(parse(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(io_error("read", directory)(error)),
        }
    }

    /// The VM's own snapshots, newest first: those to which it was saved, not the one from which it was forked.
    pub(crate) fn own_snapshots(&self) -> Vec<SnapshotId> {
        let mut own = Vec::new();
        for record in self.records.iter().rev() {
            // With `Then::End`, the caller wanted a snapshot and not a VM that continues from it.
            if matches!(record.state, State::Saving { then: Then::End, .. }) {
                continue;
            }
            if let State::Saving { snapshot, .. } | State::Stopped { snapshot } = &record.state
                && !own.contains(snapshot)
            {
                own.push(snapshot.clone());
            }
        }
        own
    }

    /// The snapshots at which it stopped, oldest first. They belong to this VM only.
    pub(crate) fn stopped_snapshots(&self) -> Vec<SnapshotId> {
        let stopped = self.records.iter().filter_map(|record| match &record.state {
            State::Stopped { snapshot } => Some(snapshot.clone()),
            _ => None,
        });
        let mut all: Vec<SnapshotId> = stopped.collect();
        all.dedup();
        all
    }

    /// The snapshot whose memory it maps, if it is a fork.
    pub(crate) fn restored_from(&self) -> Option<SnapshotId> {
        self.records.iter().rev().find_map(|record| match &record.state {
            State::Restoring { snapshot } => Some(snapshot.clone()),
            _ => None,
        })
    }

    /// Why it was lost, if that is its last state, or the state before its last `Stopped`.
    pub(crate) fn lost(&self) -> Option<&str> {
        let mut last = self.records.iter().rev().map(|record| &record.state);
        match (last.next()?, last.next()) {
            (State::Lost { reason }, _) | (State::Stopped { .. }, Some(State::Lost { reason })) => Some(reason),
            _ => None,
        }
    }

    /// Whether a user stopped it or began to. Such a user expects to find the VM again.
    pub(crate) fn was_stopped(&self) -> bool {
        let stops = |state: &State| matches!(state, State::Stopped { .. } | State::Saving { then: Then::Stop, .. });
        self.records.iter().any(|record| stops(&record.state))
    }

    /// Whether its user had paused it, also if a save has begun since then.
    pub(crate) fn was_paused(&self) -> bool {
        let before_save = self.records.iter().rev().find(|record| !matches!(record.state, State::Saving { .. }));
        before_save.is_some_and(|record| record.state == State::Paused)
    }

    /// Whether a caller ever got the VM.
    pub(crate) fn has_run(&self) -> bool {
        self.records.iter().any(|record| !matches!(record.state, State::Launching | State::Restoring { .. }))
    }
}

pub(super) fn parse(bytes: &[u8]) -> History {
    let mut history = History::default();
    if bytes.len() as u64 > READ_BYTES_MAX {
        history.problem = Some(format!("it is longer than {READ_BYTES_MAX} bytes"));
        return history;
    }
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        // A line without its end was torn by a crash, and counts as not written.
        let Some(text) = line.strip_suffix(b"\n") else { break };
        match parse_line(text, history.records.last()) {
            Ok(record) => {
                history.records.push(record);
                history.bytes += line.len() as u64;
            }
            Err(problem) => {
                history.problem = Some(format!("line {}: {problem}", history.records.len() + 1));
                break;
            }
        }
    }
    history
}

fn parse_line(line: &[u8], last: Option<&Record>) -> Result<Record, String> {
    if line.len() > LINE_BYTES_MAX {
        return Err(format!("longer than {LINE_BYTES_MAX} bytes"));
    }
    let record: Record = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let last = last.map_or(0, |record| record.generation);
    // After the largest number there would be no next one.
    if record.generation <= last || record.generation == u64::MAX {
        return Err(format!("generation {} after {last}", record.generation));
    }
    Ok(record)
}

/// The records of a long journal that recovery still needs: the VM's last snapshots, the last restore, and the last two
/// states.
pub(super) fn kept(records: &[Record]) -> Vec<Record> {
    let first_of_end = records.len().saturating_sub(2);
    let (mut named, mut restored) = (Vec::new(), false);
    let mut kept = Vec::new();
    for (index, record) in records.iter().enumerate().rev() {
        let names = match &record.state {
            State::Saving { snapshot, .. } | State::Stopped { snapshot } if !named.contains(snapshot) => {
                named.push(snapshot.clone());
                named.len() <= SNAPSHOTS_KEPT
            }
            // The last one names the snapshot whose memory the VM maps.
            State::Restoring { .. } => !std::mem::replace(&mut restored, true),
            _ => false,
        };
        if names || index >= first_of_end {
            kept.push(record.clone());
        }
    }
    kept.reverse();
    kept
}
