//! `kiln volume`: create, list, inspect, grow, clone, export, import and remove volumes.

pub mod door;

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use comfy_table::{Table, presets};
use kiln_engine::ErrorKind;
use kiln_engine::volume::{
    Content, Grown, Inspection, Listed, Repair, Target, VolumeError, VolumeName, VolumeState, VolumeStore,
};
use owo_colors::OwoColorize as _;
use serde::Serialize;

use self::door::{Reply, Request};
use crate::args::volumes::{VolumeArgs, VolumeCommand};
use crate::failure::{Failure, HOST, USAGE};
use crate::image::home;
use crate::output::{Progress, mebibytes, plain, print, print_json, say};

/// Runs `kiln volume …`.
pub fn run(args: VolumeArgs) -> Result<u8, Failure> {
    let store = VolumeStore::new(&home()?);
    match args.command {
        VolumeCommand::Create { name, size, raw, json } => create(&store, &name, size, content(raw), json),
        VolumeCommand::Ls { json } => list(&store, json),
        VolumeCommand::Inspect { name, json } => inspect(&store, &name, json),
        VolumeCommand::Rm { names } => remove(&store, &names),
        VolumeCommand::Grow { name, size, json } => grow(&store, &name, size, json),
        VolumeCommand::Clone { from, to, json } => {
            let progress = Progress::start(format!("copying {from}"));
            let cloned = store.clone_volume(&from, &to);
            drop(progress);
            cloned.map_err(volume_failure)?;
            made(&store, &to, json)
        }
        VolumeCommand::Export { name, file } => export(&store, &name, &file),
        VolumeCommand::Import { file, name, raw, json } => import(&store, &file, &name, content(raw), json),
    }
}

/// A failure of a volume.
pub fn volume_failure(error: VolumeError) -> Failure {
    let code = match error.kind() {
        ErrorKind::Invalid if matches!(error, VolumeError::Size { .. }) => USAGE,
        ErrorKind::HostLacks | ErrorKind::NoSpace => HOST,
        _ => 1,
    };
    let hint = error.hint();
    Failure::new(code, error).hint_if_not_writable().maybe_hint(hint)
}

/// The guest's name of a disk: `/dev/vda` for the first.
pub fn device(index: usize) -> String {
    let letter = u8::try_from(index).map_or('z', |index| char::from(b'a'.saturating_add(index).min(b'z')));
    format!("/dev/vd{letter}")
}

/// Reports what was done with a volume after a crash.
pub fn say_repair(name: &VolumeName, repair: &Repair) {
    let what = match repair {
        Repair::Replayed => "e2fsck replayed its journal and found it right".to_owned(),
        Repair::Corrected(found) => format!("e2fsck repaired it: {}", plain(found)),
        Repair::Unchecked => "it is a raw disk, so its contents are those of that moment".to_owned(),
    };
    say(format_args!("{} the volume `{name}` was not unmounted by its last VM: {what}", "kiln:".yellow().bold()));
}

/// An entry of the list as `--json` prints it.
#[derive(Debug, Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    inspection: Option<&'a Inspection>,
    /// The name of a volume that can't be used. Those of others are in `inspection`.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a VolumeName>,
    /// Why it can't be used; `None` if it can.
    problem: Option<String>,
}

impl<'a> From<&'a Listed> for Row<'a> {
    fn from(one: &'a Listed) -> Self {
        match &one.inspection {
            Ok(inspection) => Self { inspection: Some(inspection), name: None, problem: None },
            Err(error) => Self { inspection: None, name: Some(&one.name), problem: Some(error.to_string()) },
        }
    }
}

const fn content(raw: bool) -> Content {
    if raw { Content::Raw } else { Content::Ext4 }
}

fn create(store: &VolumeStore, name: &VolumeName, bytes: u64, content: Content, json: bool) -> Result<u8, Failure> {
    store.create(name, bytes, content).map_err(volume_failure)?;
    made(store, name, json)
}

/// Prints a new volume: its name, or all of it as JSON.
fn made(store: &VolumeStore, name: &VolumeName, json: bool) -> Result<u8, Failure> {
    if json {
        print_json(&store.inspect(name).map_err(volume_failure)?)?;
    } else {
        print(name)?;
    }
    Ok(0)
}

fn list(store: &VolumeStore, json: bool) -> Result<u8, Failure> {
    let listed = store.list().map_err(volume_failure)?;
    if json {
        print_json(&listed.iter().map(Row::from).collect::<Vec<_>>())?;
    } else {
        print(table(&listed))?;
    }
    Ok(0)
}

fn table(listed: &[Listed]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["NAME", "CONTENT", "SIZE", "ON DISK", "STATE"]);
    for one in listed {
        let row = match &one.inspection {
            Ok(found) => [
                found.name.to_string(),
                found.content.to_string(),
                mebibytes(found.bytes),
                mebibytes(found.bytes_on_disk),
                state(found),
            ],
            Err(error) => {
                [one.name.to_string(), String::new(), String::new(), String::new(), plain(&error.to_string())]
            }
        };
        table.add_row(row);
    }
    table
}

fn state(found: &Inspection) -> String {
    let state = match found.state {
        VolumeState::Clean => "clean",
        VolumeState::Writing => "writing",
        VolumeState::Dirty => "dirty",
        VolumeState::Errors => "errors",
    };
    match found.users.len() {
        0 => state.to_owned(),
        1 => format!("{state}, 1 user"),
        count => format!("{state}, {count} users"),
    }
}

fn inspect(store: &VolumeStore, name: &VolumeName, json: bool) -> Result<u8, Failure> {
    let found = store.inspect(name).map_err(volume_failure)?;
    if json {
        print_json(&found)?;
    } else {
        print(described(&found))?;
    }
    Ok(0)
}

fn described(found: &Inspection) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let mut row = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    row("name", found.name.to_string());
    row("content", found.content.to_string());
    row("size", mebibytes(found.bytes));
    row("on disk", mebibytes(found.bytes_on_disk));
    row("state", state(found));
    if !found.users.is_empty() {
        row("processes", found.users.iter().map(u32::to_string).collect::<Vec<_>>().join(", "));
    }
    if let Some(filesystem) = &found.filesystem {
        row("filesystem", format!("{}, {} free", mebibytes(filesystem.bytes), mebibytes(filesystem.free_bytes)));
        row("uuid", filesystem.uuid.clone());
    }
    row("file", plain(found.path.as_str()));
    table
}

fn remove(store: &VolumeStore, names: &[VolumeName]) -> Result<u8, Failure> {
    // If one name is wrong, no volume is removed.
    for name in names {
        match store.inspect(name) {
            Ok(_) | Err(VolumeError::Broken { .. }) => {}
            Err(error) => return Err(volume_failure(error)),
        }
    }
    names.iter().try_for_each(|name| store.remove(name)).map_err(volume_failure)?;
    Ok(0)
}

fn grow(store: &VolumeStore, name: &VolumeName, bytes: u64, json: bool) -> Result<u8, Failure> {
    let progress = Progress::start(format!("growing {name}"));
    let grown = match store.grow(name, bytes) {
        Err(error @ VolumeError::InUse { .. }) => grow_in_use(store, name, bytes, error),
        grown => grown.map_err(volume_failure),
    };
    drop(progress);
    let grown = grown?;
    if let Some(repair) = &grown.repair {
        say_repair(name, repair);
    }
    if json {
        print_json(&store.inspect(name).map_err(volume_failure)?)?;
    } else {
        print(format_args!("{name}  {} before, {} now", mebibytes(grown.bytes_before), mebibytes(grown.bytes)))?;
    }
    Ok(0)
}

/// Asks the process that holds a volume to grow it while its VM runs.
fn grow_in_use(store: &VolumeStore, name: &VolumeName, bytes: u64, in_use: VolumeError) -> Result<Grown, Failure> {
    match door::ask(&store.socket(name), &Request::Grow { bytes }) {
        Ok(Some(Reply::Grown { bytes_before, bytes })) => Ok(Grown { bytes_before, bytes, repair: None }),
        Ok(Some(Reply::Refused { error, hint })) => Err(Failure::words(1, plain(&error)).maybe_hint(hint)),
        // VMs that only read it, or another command of kiln.
        Ok(None) => Err(volume_failure(in_use).hint("a volume grows while one VM writes to it, or none uses it")),
        Err(error) => {
            let error = anyhow::Error::new(error).context(format!("no answer from the process that uses `{name}`"));
            Err(Failure::new(1, error).hint("kiln volume inspect shows the volume's size"))
        }
    }
}

fn export(store: &VolumeStore, name: &VolumeName, file: &Utf8Path) -> Result<u8, Failure> {
    if store.inspect(name).map_err(volume_failure)?.state == VolumeState::Dirty {
        say(format_args!(
            "{} the volume `{name}` was not unmounted by its last VM: the copy has to be repaired before it is used",
            "kiln:".yellow().bold()
        ));
    }
    let progress = Progress::start(format!("writing {file}"));
    let mut stdout = io::stdout().lock();
    let target = if file == "-" { Target::Stream(&mut stdout) } else { Target::File(file) };
    let exported = store.export(name, target);
    drop(progress);
    exported.map_err(volume_failure)?;
    Ok(0)
}

fn import(
    store: &VolumeStore,
    file: &Utf8PathBuf,
    name: &VolumeName,
    content: Content,
    json: bool,
) -> Result<u8, Failure> {
    let progress = Progress::start(format!("copying {file}"));
    let imported = store.import(file, name, content);
    drop(progress);
    let imported = imported.map_err(|error| match error {
        VolumeError::NotImportable { ref problem, .. } if problem.contains("no ext4") => {
            volume_failure(error).hint("--raw imports any disk, to attach it with -v NAME:disk")
        }
        other => volume_failure(other),
    })?;
    if let Some(found) = &imported.found {
        let found = plain(found);
        say(format_args!("{} e2fsck repairs `{name}` at its first use: {found}", "kiln:".yellow().bold()));
    }
    made(store, name, json)
}

#[cfg(test)]
mod tests {
    use kiln_engine::volume::Filesystem;

    use super::*;

    fn found() -> Inspection {
        Inspection {
            name: "data".parse().expect("a name"),
            content: Content::Ext4,
            bytes: 2 << 30,
            bytes_on_disk: 5 << 20,
            created_unix_ms: 1_000_000,
            state: VolumeState::Writing,
            users: vec![42],
            filesystem: Some(Filesystem {
                uuid: "3913cbdd-016a-4d2c-a14b-45ae7c8de580".into(),
                bytes: 2 << 30,
                free_bytes: 1 << 30,
                clean: false,
                errors: false,
                needs_recovery: true,
            }),
            path: "/home/volumes/data/data".into(),
        }
    }

    #[test]
    fn the_list_and_a_volume_are_tables_or_json() {
        let listed = [
            Listed { name: found().name, inspection: Ok(found()) },
            Listed {
                name: "disk".parse().expect("a name"),
                inspection: Ok(Inspection {
                    content: Content::Raw,
                    state: VolumeState::Dirty,
                    users: vec![],
                    filesystem: None,
                    name: "disk".parse().expect("a name"),
                    ..found()
                }),
            },
            Listed {
                name: "odd".parse().expect("a name"),
                inspection: Err(VolumeError::Broken {
                    name: "odd".parse().expect("a name"),
                    problem: "`volume.json` can't be read: entity not found".into(),
                }),
            },
        ];
        let json = listed.iter().map(|one| serde_json::to_string_pretty(&Row::from(one)).expect("plain data"));
        let json = json.collect::<Vec<_>>().join("\n");
        insta::assert_snapshot!(format!("{}\n\n{}\n\n{json}", table(&listed), described(&found())));
    }
}
