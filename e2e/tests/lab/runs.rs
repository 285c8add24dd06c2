//! Plans and the runs of a home.

use std::fs;
use std::path::PathBuf;

use kiln_e2e::{Kiln, TestHome};
use serde_json::Value;

/// A home with a plan in a directory of its own.
pub struct Lab {
    pub home: TestHome,
    pub directory: tempfile::TempDir,
}

impl Lab {
    pub fn new(plan: &str) -> Self {
        let this = Self { home: TestHome::with_ready_made(), directory: tempfile::tempdir().expect("a directory") };
        fs::write(this.directory.path().join("plan.toml"), plan).expect("is written");
        this
    }

    /// `kiln lab …` in the directory of the plan.
    pub fn kiln(&self, args: &[&str]) -> Kiln {
        let args = ["lab"].iter().chain(args).copied();
        self.home.kiln(args).in_directory(self.directory.path())
    }

    /// The directories of runs, the oldest first.
    pub fn runs(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.home.path().join("lab")).expect("there are runs").flatten();
        let mut runs: Vec<_> = entries.map(|entry| entry.path()).collect();
        runs.sort();
        runs
    }

    /// The events of the only run so far.
    pub fn events(&self) -> Vec<Value> {
        let runs = self.runs();
        assert_eq!(runs.len(), 1, "{runs:?}");
        let text = fs::read_to_string(runs[0].join("events.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("an event")).collect()
    }

    /// Suites whose attempts have ended, in order.
    pub fn ended(&self) -> Vec<String> {
        let events = self.events();
        let ended = events.iter().filter(|event| event["event"] == "attempt_ended");
        ended.map(|event| event["suite"].as_str().expect("a name").to_owned()).collect()
    }

    /// Whether a suite runs now.
    pub fn has_begun(&self, suite: &str) -> Option<()> {
        let lab = self.home.path().join("lab");
        let run = fs::read_dir(lab).ok()?.flatten().next()?.path();
        let text = fs::read_to_string(run.join("events.jsonl")).ok()?;
        let begun = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        begun.into_iter().any(|event| event["event"] == "attempt_started" && event["suite"] == suite).then_some(())
    }

    /// Fails if a VM is left, or a directory of one.
    pub fn assert_no_vm(&self) {
        assert_eq!(self.home.vmm(), None);
        assert_eq!(self.home.vms(), Vec::<String>::new());
    }
}
