//! Where runs are kept: a directory for each, with its plan, its events and the files of its attempts.
//!
//! ```text
//!   $KILN_HOME/lab/RUN/ ── plan.toml, request.json: what was to be run, so that it can be resumed
//!                       ── events.jsonl            what happened
//!                       ── attempts/N-SUITE/       console, stdout, stderr, findings
//!                       ── report.*                reports that were asked for
//! ```

use camino::{Utf8Path, Utf8PathBuf};
use kiln_engine::AccelerationRequest;
use kiln_engine::home::Home;
use kiln_lab::events::{RunId, RunRecord, read_events};
use owo_colors::OwoColorize as _;
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, HOST};
use crate::output::{plain, say};

/// The plan of a run, as it was when the run began.
const PLAN_FILE: &str = "plan.toml";
/// The other part of what was to be run.
const REQUEST_FILE: &str = "request.json";
/// The name of the newest run.
const LAST: &str = "last";
/// Broken lines of a file of events that are named.
const BAD_LINES_SHOWN: usize = 10;

/// How a plan was to be run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    /// Paths in the plan are relative to it.
    pub(super) directory: Utf8PathBuf,
    pub(super) jobs: usize,
    pub(super) level: u8,
    pub(super) filter: Vec<String>,
    pub(super) shard: Option<(u32, u32)>,
    pub(super) attempts: Option<u32>,
    pub(super) fail_fast: bool,
    pub(super) keep_all: bool,
    pub(super) accel: AccelerationRequest,
}

/// The directory of a run.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) id: RunId,
    pub(super) directory: Utf8PathBuf,
}

impl Place {
    /// Makes the directory of a new run.
    pub(super) fn create(home: &Home, id: RunId, plan: &str, request: &Request) -> Result<Self, Failure> {
        let directory = home.lab().join(id.as_str());
        let request = serde_json::to_vec_pretty(request)?;
        let made = make_private(&home.lab())
            .and_then(|()| std::fs::create_dir(&directory))
            .and_then(|()| std::fs::write(directory.join(PLAN_FILE), plan))
            .and_then(|()| std::fs::write(directory.join(REQUEST_FILE), request));
        made.map_err(|error| {
            let error = anyhow::Error::new(error).context(format!("failed to make the directory `{directory}`"));
            Failure::new(HOST, error).hint_if_not_writable()
        })?;
        Ok(Self { id, directory })
    }

    /// The run that a user names: by its id, by the start of one, or as `last`.
    pub(super) fn find(home: &Home, name: &str) -> Result<Self, Failure> {
        let mut all = Self::all(home)?;
        let found = if name == LAST {
            all.pop()
        } else {
            let matching: Vec<_> = all.into_iter().filter(|one| one.id.as_str().starts_with(name)).collect();
            if matching.len() > 1 && !name.is_empty() {
                let failure = Failure::words(1, format!("`{name}` is the start of {} runs", matching.len()));
                return Err(failure.hint("kiln lab runs lists the ids"));
            }
            matching.into_iter().next().filter(|_| !name.is_empty())
        };
        found.ok_or_else(|| Failure::words(1, format!("there is no run `{name}`")).hint("kiln lab runs lists all runs"))
    }

    /// All runs of a home, the oldest first.
    pub(super) fn all(home: &Home) -> Result<Vec<Self>, Failure> {
        let entries = match home.lab().read_dir_utf8() {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(Failure::new(
                    HOST,
                    anyhow::Error::new(error).context(format!("failed to read `{}`", home.lab())),
                ));
            }
        };
        let runs = entries
            .flatten()
            .filter_map(|entry| Some(Self { id: entry.file_name().parse().ok()?, directory: entry.path().to_owned() }));
        let mut runs: Vec<_> = runs.collect();
        runs.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(runs)
    }

    /// What was to be run: the plan's text and the request.
    pub(super) fn request(&self) -> Result<(String, Request), Failure> {
        let read = |name| std::fs::read_to_string(self.directory.join(name));
        let parsed = read(PLAN_FILE).and_then(|plan| Ok((plan, serde_json::from_str(&read(REQUEST_FILE)?)?)));
        parsed.map_err(|error| {
            Failure::new(1, anyhow::Error::new(error).context(format!("the run {} can't be resumed", self.id)))
                .hint("run its plan again: kiln lab run PLAN")
        })
    }

    /// What has happened so far. Lines that are broken are named on stderr, and the rest counts. A run that was killed
    /// before its first event has none.
    pub(super) fn record(&self) -> Result<RunRecord, Failure> {
        if !self.directory.join(kiln_lab::events::EVENTS_FILE).exists() {
            return Ok(RunRecord::default());
        }
        let (events, bad) = read_events(&self.directory).map_err(|error| Failure::new(HOST, error))?;
        for line in bad.iter().take(BAD_LINES_SHOWN) {
            let file = self.directory.join(kiln_lab::events::EVENTS_FILE);
            say(format_args!(
                "{} {file}:{}: is not an event, and is left out: {}",
                "kiln:".yellow().bold(),
                line.line,
                plain(&line.problem)
            ));
        }
        if bad.len() > BAD_LINES_SHOWN {
            say(format_args!("{} and {} more lines", "kiln:".yellow().bold(), bad.len() - BAD_LINES_SHOWN));
        }
        Ok(RunRecord::of(&events))
    }
}

/// Runs hold what guests printed, which other users need not read.
fn make_private(directory: &Utf8Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            directory: "/plans".into(),
            jobs: 2,
            level: 1,
            filter: vec!["a*".into()],
            shard: Some((1, 2)),
            attempts: None,
            fail_fast: true,
            keep_all: false,
            accel: AccelerationRequest::Tcg,
        }
    }

    #[test]
    fn a_run_is_found_by_its_id_the_start_of_it_and_as_the_last_one() {
        let guard = tempfile::tempdir().expect("a directory");
        let home = Home::at(Utf8Path::from_path(guard.path()).expect("UTF-8"));
        assert!(Place::find(&home, LAST).is_err_and(|failure| failure.message() == "there is no run `last`"));
        let ids = [RunId::new(0, 1), RunId::new(86_400, 2), RunId::new(86_400, 3)];
        for id in &ids {
            Place::create(&home, id.clone(), "a plan", &request()).expect("is made");
        }
        std::fs::create_dir(home.lab().join("other")).expect("is made");
        let found = |name: &str| Place::find(&home, name).map(|place| place.id).map_err(|failure| failure.message());
        assert_eq!(found(LAST), Ok(ids[2].clone()));
        assert_eq!(found("19700101"), Ok(ids[0].clone()));
        assert_eq!(found(ids[1].as_str()), Ok(ids[1].clone()));
        assert_eq!(found("19700102"), Err("`19700102` is the start of 2 runs".into()));
        for absent in ["", "x", "../other", "2026"] {
            assert_eq!(found(absent), Err(format!("there is no run `{absent}`")));
        }
    }

    #[test]
    fn a_request_is_read_as_it_was_written_and_broken_events_are_left_out() {
        let guard = tempfile::tempdir().expect("a directory");
        let home = Home::at(Utf8Path::from_path(guard.path()).expect("UTF-8"));
        let place = Place::create(&home, RunId::new(0, 1), "a plan", &request()).expect("is made");
        assert_eq!(place.request().expect("is there"), ("a plan".to_owned(), request()));
        assert_eq!(place.record().expect("is empty"), RunRecord::default());
        std::fs::write(place.directory.join(kiln_lab::events::EVENTS_FILE), "{\"event\":\"x").expect("is written");
        assert_eq!(place.record().expect("is empty"), RunRecord::default());
        std::fs::remove_file(place.directory.join(REQUEST_FILE)).expect("is removed");
        assert!(place.request().is_err());
    }
}
