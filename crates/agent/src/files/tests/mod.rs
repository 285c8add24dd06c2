//! Tests of the public functions, in temporary directories and without root.

mod archive;
mod changes;
mod escape;
mod hostile;
mod list;
mod read;
mod texts;
mod tree;
mod watch;
mod write;

use std::fmt::Debug;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use kiln_wire::{ErrorCode, Fault, Text, WriteMode};
use tempfile::TempDir;

use super::{AtomicWrite, Root};

/// Nothing is cancelled.
static GO: AtomicBool = AtomicBool::new(false);

/// A temporary directory, as a jail and as a path.
struct Yard {
    directory: TempDir,
    root: Root,
}

impl Yard {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let root = Root::new(Some(&directory.path().into())).expect("it is a jail");
        Self { directory, root }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// Creates a file in the yard without the library.
    fn plant(&self, name: &str, content: impl AsRef<[u8]>) {
        if let Some(parent) = self.path(name).parent() {
            std::fs::create_dir_all(parent).expect("the yard is writable");
        }
        std::fs::write(self.path(name), content).expect("the yard is writable");
    }

    fn content(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|error| panic!("`{name}` is readable: {error}"))
    }

    fn names(&self) -> Vec<String> {
        names(self.directory.path())
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<u64, Fault> {
        let mut write = AtomicWrite::begin(&self.root, &name.into(), WriteMode::Replace, None, None)?;
        write.write(content)?;
        write.commit()
    }
}

impl Drop for Yard {
    /// Makes all directories writable, so that the yard can be removed by any user.
    fn drop(&mut self) {
        let mut open = vec![self.directory.path().to_owned()];
        while let Some(path) = open.pop() {
            // A failure here makes the removal fail, which is ignored too.
            let _ = std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700));
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            open.extend(
                entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
            );
        }
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn fifo(path: &Path) {
    rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::from_raw_mode(0o600)).expect("a FIFO");
}

fn socket(path: &Path) -> std::os::unix::net::UnixListener {
    std::os::unix::net::UnixListener::bind(path).expect("a socket")
}

fn link(target: impl AsRef<Path>, path: impl AsRef<Path>) {
    std::os::unix::fs::symlink(target, path).expect("a symlink");
}

#[track_caller]
fn refused<T: Debug>(result: Result<T, Fault>, code: ErrorCode) -> String {
    let fault = result.expect_err("it is refused");
    assert_eq!(fault.code, code, "{fault}");
    fault.message
}

fn text(bytes: &[u8]) -> Text {
    Text::from(bytes)
}
