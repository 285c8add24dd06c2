//! `kiln commit`: an image of what a VM has changed in its files.
//!
//! ```text
//!   snapshot ─▶ fork ─▶ agent: changes of its root (tar) ─▶ file in the cache; the fork is killed
//!                                                            └─▶ layer on the files of its image ─▶ image
//! ```

use std::io::{Seek as _, Write as _};

use bytes::Bytes;
use kiln_engine::deadlines::Pace;
use kiln_engine::image::{CommitError, ImageName, ImageStore, ImportStep, Origin};
use kiln_engine::link::{Event, StreamError};
use kiln_engine::snapshot::{Snapshot, SnapshotStore};
use kiln_engine::{ForkSpec, Guest, QemuEngine};
use kiln_oci::{ChangeError, History, ImageConfig};
use kiln_rootfs::Limits;
use kiln_wire::{Capability, ErrorCode, Fault, FileRequest};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::boot::THREADS_DEADLINE;
use super::find::{engine, home, of_snapshot};
use super::root::{import_failure, tell};
use crate::args::CommitArgs;
use crate::console;
use crate::engine_failure::{restore_failure, snapshot_failure};
use crate::failure::{Failure, HOST, USAGE, VM};
use crate::interrupt::{Interrupts, exit_on_signal};
use crate::output::{Progress, mebibytes, plain, say};
use crate::snapshot_names::resolve;

/// Most pieces of the archive between the link and the thread that writes it.
const PIECES: usize = 8;
/// Names of files that are not in the image, for users.
const LEFT_OUT_SHOWN: usize = 16;

/// Runs `kiln commit`.
pub fn commit(args: &CommitArgs) -> Result<u8, Failure> {
    if let Err(error) = args.image_name.parse::<ImageName>() {
        return Err(Failure::new(USAGE, error));
    }
    let home = home()?;
    let store = SnapshotStore::new(&home);
    let id = resolve(&store.list().map_err(snapshot_failure)?, &args.snapshot)?;
    let snapshot = store.open(&id).map_err(snapshot_failure)?;
    let Some(base) = of_snapshot(&home, &snapshot)? else {
        let words = format!("the snapshot `{}` is of a VM without an image's root", plain(&args.snapshot));
        return Err(Failure::words(USAGE, words)
            .hint("make a snapshot of one: kiln snapshot create NAME --image IMAGE -- COMMAND"));
    };
    let config = config(&base.config, args)?;
    let progress = Progress::start(format!("forking {}", args.snapshot));
    let engine = engine(&home)?;
    fs_err::create_dir_all(home.cache())?;
    let file = tempfile::tempfile_in(home.cache())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let fetched = runtime.block_on(fetch(&engine, &snapshot, file, args, &progress));
    runtime.shutdown_timeout(THREADS_DEADLINE);
    let mut changes = match fetched? {
        Fetched::Changes(changes) => changes,
        Fetched::Interrupted(code) => return Ok(code),
    };
    exit_on_signal();
    changes.rewind()?;
    let origin = Origin { source: format!("snapshot {id} of {}", base.name), ..Origin::default() };
    let mut step = |step: ImportStep| match step {
        ImportStep::Layer { number: 1, .. } => progress.say(format!("reading {}", base.name)),
        ImportStep::Layer { .. } => progress.say("reading the changes"),
        step => progress.say(format!("committing {}: {step}", args.image_name)),
    };
    let made = ImageStore::new(&home).commit(&args.image_name, &base, &mut changes, &config, origin, &mut step);
    drop(progress);
    tell(&made.map_err(commit_failure)?, args.json)
}

/// The configuration of the new image.
fn config(base: &ImageConfig, args: &CommitArgs) -> Result<ImageConfig, Failure> {
    let mut config = base.changed(&args.changes).map_err(|error: ChangeError| {
        let error = anyhow::Error::new(error).context("--change");
        Failure::new(USAGE, error).hint("as in a Dockerfile: --change 'CMD [\"python3\", \"/app.py\"]'")
    })?;
    let changes = args.changes.iter().map(|change| format!("; {change}")).collect::<String>();
    // Without a time, so that the same changes give the same digest.
    config.history.push(History {
        created_by: Some(format!("kiln commit{changes}")),
        comment: args.message.clone(),
        ..History::default()
    });
    Ok(config)
}

/// The changes of a snapshot's VM, or an exit code after an interrupt.
enum Fetched {
    Changes(std::fs::File),
    Interrupted(u8),
}

async fn fetch(
    engine: &QemuEngine,
    snapshot: &Snapshot,
    file: std::fs::File,
    args: &CommitArgs,
    progress: &Progress,
) -> Result<Fetched, Failure> {
    let mut interrupts = Interrupts::new()?;
    let forks = ForkSpec { deadline: args.boot_timeout, ..ForkSpec::default() };
    let guest = tokio::select! {
        forked = Guest::fork(engine, snapshot, forks, console::watch(false)) => forked.map_err(restore_failure)?,
        code = interrupts.any() => return Ok(Fetched::Interrupted(code)),
    };
    if !guest.link.hello().capabilities.contains(&Capability::Changes) {
        let words = "the agent in the snapshot can't pack changes";
        return Err(Failure::words(VM, words).hint("it is of an older Kiln: make the snapshot again"));
    }
    progress.say("copying the changes");
    let fetched = tokio::select! {
        fetched = changes(&guest, file) => fetched.map(Fetched::Changes),
        gone = guest.gone() => Err(crate::guest::cut_off(&guest, &gone)),
        code = interrupts.any() => Ok(Fetched::Interrupted(code)),
    };
    guest.vm.kill().await;
    fetched
}

/// Copies the changes into a file. The guest is hostile: the file is bounded, and is only read as a layer.
async fn changes(guest: &Guest, mut file: std::fs::File) -> Result<std::fs::File, Failure> {
    let failed = |error: anyhow::Error| Failure::new(VM, error.context("failed to copy the changes of the guest"));
    let (_sender, mut receiver) = guest.link.files(FileRequest::Changes {}).map_err(|error| failed(error.into()))?;
    let (pieces, mut arriving) = mpsc::channel::<Bytes>(PIECES);
    let writing = spawn_blocking(move || {
        let mut left = Limits::default().bytes_max;
        while let Some(piece) = arriving.blocking_recv() {
            left = left.checked_sub(piece.len() as u64).ok_or_else(|| {
                let most = mebibytes(Limits::default().bytes_max);
                std::io::Error::other(format!("they are more than {most}"))
            })?;
            file.write_all(&piece)?;
        }
        Ok::<_, std::io::Error>(file)
    });
    let copying = async {
        let mut pace = Pace::default();
        loop {
            match pace.wait(receiver.next()).await?? {
                Event::Data(_, bytes) => {
                    pace.moved(bytes.len());
                    // Fails only if the thread has stopped. Its result has the reason.
                    if pieces.send(bytes).await.is_err() {
                        return Ok(None);
                    }
                }
                Event::Reply(_) | Event::Eof => {}
                Event::Done(done) => return Ok::<_, anyhow::Error>(Some(done)),
                other => return Err(StreamError::unexpected(&other).into()),
            }
        }
    };
    let copied = copying.await;
    drop(pieces);
    let written = writing.await.expect("writing does not panic");
    let done = copied.map_err(failed)?;
    let file = written.map_err(|error| Failure::new(HOST, anyhow::Error::new(error).context("the guest's changes")))?;
    let done = done.unwrap_or_default();
    missing(&done.left_out, done.left_out_more)?;
    Ok(file)
}

/// Files that are not in the archive: those without content are told, others are a failure.
fn missing(left_out: &[Fault], more: u64) -> Result<(), Failure> {
    let (special, unreadable): (Vec<_>, Vec<_>) = left_out.iter().partition(|fault| fault.code == ErrorCode::NotAFile);
    if let Some(first) = unreadable.first() {
        let words = format!("{} files of the guest could not be read: {}", unreadable.len(), first.message);
        return Err(Failure::words(VM, words));
    }
    for fault in special.iter().take(LEFT_OUT_SHOWN) {
        say(format_args!("note: {}", plain(&fault.message)));
    }
    if special.len() > LEFT_OUT_SHOWN || more > 0 {
        let count = special.len().saturating_sub(LEFT_OUT_SHOWN) as u64 + more;
        say(format_args!("note: {count} more files are not in the image"));
    }
    Ok(())
}

fn commit_failure(error: CommitError) -> Failure {
    match error {
        CommitError::Import(error) => import_failure(error),
        error => Failure::new(HOST, error),
    }
}
