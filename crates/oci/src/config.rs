//! What an image runs: its program, with what environment, and as whom.
//!
//! Nothing of it is a path that the host opens: directories and users are resolved in the guest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::platform::Platform;
use crate::signal::Signal;
use crate::user::User;

/// The `PATH` of an image that sets none: docker's.
pub const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What an image runs and how. Lists that the image does not have are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// Variables as `NAME=value`, each name once.
    pub env: Vec<String>,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// The rest of the arguments, or the whole command.
    pub cmd: Vec<String>,
    /// An absolute path in the guest; `None` means `/`.
    pub working_dir: Option<String>,
    /// As whom; `None` means root.
    pub user: Option<User>,
    /// What stops the program; `None` means `SIGTERM`.
    pub stop_signal: Option<Signal>,
    /// Texts for people and programs.
    pub labels: BTreeMap<String, String>,
    /// Ports that the program may listen on, such as `80/tcp`.
    pub exposed_ports: BTreeSet<String>,
    /// Paths in the guest that are meant for data.
    pub volumes: BTreeSet<String>,
    /// How docker checks that the program works.
    pub healthcheck: Option<Healthcheck>,
    /// The shell of docker's builder, if not `/bin/sh -c`.
    pub shell: Vec<String>,
    /// The architecture as Go names it: `amd64`.
    pub architecture: String,
    /// The operating system: `linux`.
    pub os: String,
    /// The level of the architecture, such as `v2`.
    pub variant: Option<String>,
    /// When it was made, in RFC 3339.
    pub created: Option<String>,
    /// How it was made, the oldest step first.
    pub history: Vec<History>,
}

/// A step of how an image was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// When, in RFC 3339.
    pub created: Option<String>,
    /// The command.
    pub created_by: Option<String>,
    /// A note.
    pub comment: Option<String>,
    /// Whether the step made no layer.
    pub empty_layer: bool,
}

/// How docker checks that a program works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Healthcheck {
    /// The check.
    pub test: HealthTest,
    /// Time between two checks.
    pub interval: Option<Duration>,
    /// When a check has failed.
    pub timeout: Option<Duration>,
    /// Time after the start in which failures do not count.
    pub start_period: Option<Duration>,
    /// Failures in a row that mean that the program does not work.
    pub retries: Option<u32>,
}

/// The check itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthTest {
    /// No check, although an image below has one.
    Disabled,
    /// A program and its arguments.
    Command(Vec<String>),
    /// A line for the shell.
    Shell(String),
}

impl ImageConfig {
    /// The configuration of a bare file system: nothing to run.
    pub fn bare() -> Self {
        Self { architecture: "amd64".to_owned(), os: "linux".to_owned(), ..Self::default() }
    }

    /// For what machines the image is.
    pub fn platform(&self) -> Platform {
        Platform { os: self.os.clone(), architecture: self.architecture.clone(), variant: self.variant.clone() }
    }
}
