//! The folder of a test with its sockets and files, and backends that send less than they must.

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use kiln_e2e::{Backend, Kiln, Outcome, Running, until};

/// The size of a test's disk.
pub const DISK_BYTES: u64 = 64 << 20;

/// A folder that is removed with its test.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("a path of letters").to_owned()
    }

    /// QEMU's storage daemon at `b`, with a disk of zeros.
    pub fn storage_daemon(&self) -> Backend {
        let disk = self.path("disk");
        File::create(&disk).and_then(|file| file.set_len(DISK_BYTES)).expect("a disk");
        Backend::storage_daemon(&disk, &self.path("b"))
    }

    /// A peer that listens at `mute` and never sends anything.
    pub fn mute(&self) -> UnixListener {
        UnixListener::bind(self.path("mute")).expect("can listen")
    }

    /// `kiln vhost tap` from `a` to `b`, recording to `f`.
    pub fn tap(&self, flags: &[&str]) -> Running {
        let (a, b, f) = (self.text("a"), self.text("b"), self.text("f"));
        let tap = Kiln::new(
            ["vhost", "tap", "--listen", &a, "--connect", &b, "--record", &f].into_iter().chain(flags.iter().copied()),
        )
        .start();
        until("the tap's socket", || self.path("a").exists().then_some(()));
        tap
    }
}

/// Runs `kiln vhost …` to its end.
pub fn vhost(args: &[&str]) -> Outcome {
    Kiln::new(["vhost"].iter().chain(args)).run()
}

/// The one JSON object that a command printed.
pub fn json(outcome: &Outcome) -> serde_json::Value {
    serde_json::from_slice(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {}", outcome.text()))
}
