//! Where runs are kept: a directory for each, with its plan, its events and the files of its attempts.

use camino::{Utf8Path, Utf8PathBuf};
use kiln_engine::home::Home;
use kiln_lab::events::RunId;

use crate::failure::{Failure, HOST};

/// The plan of a run, as it was when the run began.
const PLAN_FILE: &str = "plan.toml";

/// The directory of a run.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) id: RunId,
    pub(super) directory: Utf8PathBuf,
}

impl Place {
    /// Makes the directory of a new run.
    pub(super) fn create(home: &Home, id: RunId, plan: &str) -> Result<Self, Failure> {
        let directory = home.lab().join(id.as_str());
        let made = make_private(&home.lab())
            .and_then(|()| std::fs::create_dir(&directory))
            .and_then(|()| std::fs::write(directory.join(PLAN_FILE), plan));
        made.map_err(|error| {
            let error = anyhow::Error::new(error).context(format!("failed to make the directory `{directory}`"));
            Failure::new(HOST, error).hint_if_not_writable()
        })?;
        Ok(Self { id, directory })
    }
}

/// Runs hold what guests printed, which other users need not read.
fn make_private(directory: &Utf8Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}
