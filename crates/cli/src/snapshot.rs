//! `kiln snapshot`: create, list, check, compact and remove snapshots.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use camino::Utf8PathBuf;
use comfy_table::{Table, presets};
use kiln_engine::home::Home;
use kiln_engine::snapshot::{Listed, MemoryKind, SnapshotError, SnapshotId, SnapshotStore};
use kiln_engine::{Outcome, Recovered, VmId, recover};
use serde::Serialize;

use crate::args::{SnapshotArgs, SnapshotCommand};
use crate::engine_failure::snapshot_failure;
use crate::failure::Failure;
use crate::hints;
use crate::image::home;
use crate::output::{Progress, age, mebibytes, plain, print, print_json, say};

use crate::snapshot_names::{resolve, resolve_all};

/// Runs `kiln snapshot …`.
pub fn run(args: SnapshotArgs) -> Result<u8, Failure> {
    if let SnapshotCommand::Create(create) = args.command {
        return crate::run::create(create.run, create.name);
    }
    let home = home()?;
    let store = SnapshotStore::new(&home);
    match args.command {
        SnapshotCommand::Ls { json } => list(&store, json),
        SnapshotCommand::Verify { ids, all } => verify(&store, &ids, all),
        SnapshotCommand::Compact { id } => compact(&store, &id),
        SnapshotCommand::Rm { ids, ready: false } => remove(&home, &store, &ids),
        SnapshotCommand::Rm { ready: true, .. } => remove_ready(&home, &store),
        SnapshotCommand::Create(_) => unreachable!("it ran above: it finds its home on its own"),
    }
}

/// A snapshot as `--json` prints it.
#[derive(Debug, Serialize)]
struct Row {
    id: SnapshotId,
    label: Option<String>,
    kind: Option<MemoryKind>,
    parent: Option<SnapshotId>,
    children: Vec<SnapshotId>,
    created_unix_ms: Option<u64>,
    memory_mib: Option<u64>,
    cpus: Option<u32>,
    modules: Vec<String>,
    /// Disks of the VM, root and volumes included.
    disks: usize,
    /// Network cards of the VM.
    nics: usize,
    kernel: Option<Utf8PathBuf>,
    /// Digest of the image whose root the VM has.
    image: Option<String>,
    acceleration: Option<String>,
    bytes_on_disk: u64,
    sealed: bool,
    ready_made: bool,
    in_use: bool,
    /// Why it can't be restored; `None` if it can.
    problem: Option<String>,
}

impl From<&Listed> for Row {
    fn from(one: &Listed) -> Self {
        let manifest = one.manifest.as_ref();
        let spec = manifest.map(|manifest| &manifest.spec);
        Self {
            id: one.id.clone(),
            label: manifest.map(|manifest| manifest.label.clone()),
            kind: manifest.map(|manifest| manifest.memory),
            parent: one.parent().cloned(),
            children: one.children.clone(),
            created_unix_ms: manifest.map(|manifest| manifest.created_unix_ms),
            memory_mib: spec.map(|spec| spec.memory_mib),
            cpus: spec.map(|spec| spec.cpus),
            modules: spec.map(|spec| spec.modules.clone()).unwrap_or_default(),
            disks: spec.map_or(0, |spec| spec.disks.len()),
            nics: spec.map_or(0, |spec| spec.nics.len()),
            kernel: spec.map(|spec| spec.kernel.clone()),
            image: spec.and_then(|spec| spec.root.as_ref()?.image.clone()),
            acceleration: manifest.map(|manifest| manifest.machine.acceleration.clone()),
            bytes_on_disk: one.bytes_on_disk,
            sealed: one.is_sealed(),
            ready_made: one.ready_for.is_some(),
            in_use: one.in_use,
            problem: one.problem.clone(),
        }
    }
}

fn list(store: &SnapshotStore, json: bool) -> Result<u8, Failure> {
    let rows: Vec<Row> = store.list().map_err(snapshot_failure)?.iter().map(Row::from).collect();
    if json {
        print_json(&rows)?;
        return Ok(0);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    print(table(&rows, now))?;
    Ok(0)
}

/// The rows as a table; `now` is the time since 1970.
fn table(rows: &[Row], now: Duration) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["ID", "NAME", "KIND", "CREATED", "MEMORY", "ON DISK", "STATE"]);
    for row in rows {
        let created = row.created_unix_ms.map(Duration::from_millis);
        table.add_row([
            row.id.to_string(),
            row.label.as_deref().map(plain).unwrap_or_default(),
            kind(row),
            created.map(|created| age(now.saturating_sub(created))).unwrap_or_default(),
            row.memory_mib.map(|mib| format!("{mib} MiB")).unwrap_or_default(),
            mebibytes(row.bytes_on_disk),
            state(row),
        ]);
    }
    table
}

fn kind(row: &Row) -> String {
    match (row.kind, &row.parent) {
        (Some(MemoryKind::Full), None) => "full".into(),
        (Some(MemoryKind::Full), Some(parent)) => format!("full, disks of {parent}"),
        (Some(MemoryKind::Diff), Some(parent)) => format!("diff on {parent}"),
        (Some(MemoryKind::Diff), None) => "diff".into(),
        (None, _) => String::new(),
    }
}

fn state(row: &Row) -> String {
    if let Some(problem) = &row.problem {
        return format!("broken: {}", plain(problem));
    }
    let mut states = vec![if row.sealed { "sealed" } else { "not sealed yet" }];
    states.extend(row.ready_made.then_some("ready-made"));
    states.extend(row.in_use.then_some("in use"));
    states.join(", ")
}

fn verify(store: &SnapshotStore, given: &[String], all: bool) -> Result<u8, Failure> {
    let listed = store.list().map_err(snapshot_failure)?;
    let ids = if all { listed.into_iter().map(|one| one.id).collect() } else { resolve_all(&listed, given)? };
    let mut broken = Vec::new();
    for id in &ids {
        let progress = Progress::start(format!("reading snapshot {id}"));
        let verified = store.verify(id);
        drop(progress);
        match verified {
            Ok(report) => {
                let (files, size) = (report.files, mebibytes(report.bytes));
                let unsealed = report.unsealed.len();
                let but = if unsealed > 0 {
                    format!("; {unsealed} of its snapshots not sealed yet, so not checked")
                } else {
                    String::new()
                };
                print(format_args!("{id}  whole   {files} files, {size}{but}"))?;
            }
            // It was removed since the list was made.
            Err(SnapshotError::Unknown(_)) if all => {}
            Err(error @ (SnapshotError::Broken { .. } | SnapshotError::MissingLink { .. })) => {
                print(format_args!("{id}  broken  {}", plain(&error.to_string())))?;
                broken.push(error);
            }
            Err(error) => return Err(snapshot_failure(error)),
        }
    }
    let count = broken.len();
    match broken.into_iter().next() {
        None => Ok(0),
        Some(only) if ids.len() == 1 => Err(snapshot_failure(only)),
        Some(first) => {
            let hint = hints::snapshot(&first);
            Err(Failure::words(1, format!("{count} of {} snapshots can't be restored", ids.len())).maybe_hint(hint))
        }
    }
}

fn compact(store: &SnapshotStore, given: &str) -> Result<u8, Failure> {
    let id = resolve(&store.list().map_err(snapshot_failure)?, given)?;
    let progress = Progress::start(format!("compacting snapshot {id}"));
    let compacted = store.compact(&id);
    drop(progress);
    let compacted = compacted.map_err(snapshot_failure)?;
    let (before, after) = (mebibytes(compacted.bytes_before), mebibytes(compacted.bytes_after));
    print(format_args!("{id}  full    {before} before, {after} now"))?;
    Ok(0)
}

fn remove(home: &Home, store: &SnapshotStore, given: &[String]) -> Result<u8, Failure> {
    // If one name is wrong, no snapshot is removed.
    let ids = resolve_all(&store.list().map_err(snapshot_failure)?, given)?;
    let stopped = stopped_vms(home)?;
    if let Some((id, vm)) = ids.iter().find_map(|id| Some((id, needed_by(&stopped, id)?))) {
        return Err(Failure::words(1, format!("snapshot `{id}` is in use: the stopped VM `{vm}` resumes from it")));
    }
    for id in ids {
        store.remove(&id).map_err(snapshot_failure)?;
    }
    Ok(0)
}

fn remove_ready(home: &Home, store: &SnapshotStore) -> Result<u8, Failure> {
    let stopped = stopped_vms(home)?;
    let ready = store.list().map_err(snapshot_failure)?.into_iter().filter(|one| one.ready_for.is_some());
    for one in ready.filter(|one| needed_by(&stopped, &one.id).is_none()) {
        match store.remove(&one.id) {
            Ok(()) | Err(SnapshotError::Unknown(_)) => {}
            Err(error @ SnapshotError::InUse { .. }) => say(format_args!("not removed: {error}")),
            Err(error) => return Err(snapshot_failure(error)),
        }
    }
    Ok(0)
}

fn stopped_vms(home: &Home) -> Result<Vec<(VmId, SnapshotId)>, Failure> {
    let stopped = |Recovered { id, outcome }| match outcome {
        Outcome::Stopped { snapshot, .. } => Some((id, snapshot)),
        _ => None,
    };
    Ok(recover(home)?.into_iter().filter_map(stopped).collect())
}

fn needed_by<'a>(stopped: &'a [(VmId, SnapshotId)], id: &SnapshotId) -> Option<&'a VmId> {
    stopped.iter().find(|(_, snapshot)| snapshot == id).map(|(vm, _)| vm)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, label: &str) -> Row {
        Row {
            id: id.parse().expect("an id"),
            label: Some(label.into()),
            kind: Some(MemoryKind::Full),
            parent: None,
            children: Vec::new(),
            created_unix_ms: Some(1_000_000),
            memory_mib: Some(256),
            cpus: Some(1),
            modules: Vec::new(),
            disks: 0,
            nics: 0,
            kernel: None,
            image: None,
            acceleration: None,
            bytes_on_disk: 57 << 20,
            sealed: true,
            ready_made: false,
            in_use: false,
            problem: None,
        }
    }

    #[test]
    fn the_list_is_a_table_or_json() {
        let first = row("0000000000000001", "mini");
        let parent = Some(first.id.clone());
        let broken = Row {
            label: None,
            kind: None,
            created_unix_ms: None,
            memory_mib: None,
            problem: Some("`manifest.json` is missing".into()),
            ..row("0000000000000004", "")
        };
        let rows = [
            Row { ready_made: true, in_use: true, ..first },
            Row {
                kind: Some(MemoryKind::Diff),
                parent: parent.clone(),
                sealed: false,
                ..row("0000000000000002", "prepared")
            },
            Row { parent, ..row("0000000000000003", "compacted") },
            broken,
        ];
        let json = serde_json::to_string_pretty(&rows[1]).expect("plain data");
        insta::assert_snapshot!(format!("{}\n\n{json}", table(&rows, Duration::from_secs(1000 + 7200))));
    }

    #[test]
    fn ages_have_one_unit() {
        for (seconds, words) in [(0, "0 s ago"), (59, "59 s ago"), (3599, "59 min ago"), (90_000, "1 d ago")] {
            assert_eq!(age(Duration::from_secs(seconds)), words);
        }
    }
}
