//! The text of every fault of a file request, in one snapshot: users of `kiln run --in` and `--out` read them.

use kiln_wire::{FileRequest, FilesRequest, Owner, ReadRange, Text};
use rustix::io::Errno;

use super::{GO, Yard, fifo, link};
use crate::files::{Job, fault_from_errno, start};

/// The text with which a request in the yard is refused, at its start or at its commit.
fn refusal(yard: &Yard, request: FileRequest) -> String {
    let request = FilesRequest { jail: Some(yard.directory.path().into()), request };
    let outcome = start(&request, &GO).and_then(|job| match job {
        Job::Write(write) => write.commit().map(drop),
        Job::Append(append) => append.commit().map(drop),
        Job::Answered(_) | Job::Read(_) | Job::Unpack(_) | Job::Pack(_) | Job::PackChanges(_) => Ok(()),
    });
    let fault = outcome.err().unwrap_or_else(|| panic!("{request:?} is refused"));
    format!("{fault}\n")
}

/// Each request of the list refuses a path for a reason of its own. The `match` fails to compile when a request is new:
/// add it there, and a line for it to the list.
#[test]
fn faults_of_file_requests_read_like_this() {
    let yard = Yard::new();
    yard.plant("file", "x");
    yard.plant("directory/file", "x");
    link("/", yard.path("outside"));
    fifo(&yard.path("fifo"));

    let text = |path: &str| Text::from(path);
    let read = |path: &str, range| FileRequest::Read { path: text(path), range };
    let write = |path: &str| FileRequest::Write {
        path: text(path),
        mode: kiln_wire::WriteMode::Replace,
        permissions: None,
        owner: None,
    };
    let list = |path: &str, limit| FileRequest::List { path: text(path), after: None, limit };
    let remove = |path: &str| FileRequest::Remove { path: text(path), recursive: false };
    let mkdir = |path: &str, permissions| FileRequest::Mkdir { path: text(path), parents: false, permissions };
    let rename = |from: &str, to: &str| FileRequest::Rename { from: text(from), to: text(to) };
    let chown = |uid| FileRequest::Chown { path: text("file"), owner: Owner { uid, gid: 0 } };
    let requests = [
        read("missing", ReadRange::default()),
        read("outside/etc", ReadRange::default()),
        read("directory", ReadRange::default()),
        read("fifo", ReadRange::default()),
        read("file", ReadRange::Bytes { offset: -1, limit: None }),
        write(""),
        write("a\0b"),
        write("new/"),
        write("directory"),
        write(&"n".repeat(256)),
        write(&"n/".repeat(2048)),
        FileRequest::Append { path: text("directory") },
        FileRequest::Stat { path: text("missing"), follow: false },
        list("file", None),
        list("directory", Some(0)),
        mkdir("file", None),
        mkdir("new", Some(0o10000)),
        remove("directory"),
        remove("."),
        rename("missing", "new"),
        rename("directory", "directory/below"),
        FileRequest::Copy { from: text("directory"), to: text("new") },
        FileRequest::Symlink { target: text(""), path: text("new") },
        FileRequest::Chmod { path: text("missing"), permissions: 0o600 },
        chown(u32::MAX),
        FileRequest::TarIn { path: text("file") },
        FileRequest::TarOut { path: text("fifo") },
        FileRequest::Changes {},
    ];
    let mut kinds: Vec<&str> = requests.iter().map(kind).collect();
    kinds.dedup();
    assert_eq!(kinds, KINDS, "each kind of request has a line, in the order of KINDS");
    insta::assert_snapshot!(requests.map(|request| refusal(&yard, request)).concat());
}

const KINDS: [&str; 15] = [
    "read", "write", "append", "stat", "list", "mkdir", "remove", "rename", "copy", "symlink", "chmod", "chown",
    "tar_in", "tar_out", "changes",
];

fn kind(request: &FileRequest) -> &'static str {
    let index = match request {
        FileRequest::Read { .. } => 0,
        FileRequest::Write { .. } => 1,
        FileRequest::Append { .. } => 2,
        FileRequest::Stat { .. } => 3,
        FileRequest::List { .. } => 4,
        FileRequest::Mkdir { .. } => 5,
        FileRequest::Remove { .. } => 6,
        FileRequest::Rename { .. } => 7,
        FileRequest::Copy { .. } => 8,
        FileRequest::Symlink { .. } => 9,
        FileRequest::Chmod { .. } => 10,
        FileRequest::Chown { .. } => 11,
        FileRequest::TarIn { .. } => 12,
        FileRequest::TarOut { .. } => 13,
        FileRequest::Changes {} => 14,
    };
    KINDS[index]
}

#[test]
fn errors_of_the_kernel_read_like_this() {
    let errors = [
        Errno::NOENT,
        Errno::EXIST,
        Errno::ACCESS,
        Errno::PERM,
        Errno::ISDIR,
        Errno::NOTDIR,
        Errno::NOTEMPTY,
        Errno::NOSPC,
        Errno::DQUOT,
        Errno::ROFS,
        Errno::NAMETOOLONG,
        Errno::LOOP,
        Errno::XDEV,
        Errno::BUSY,
        Errno::TXTBSY,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NXIO,
        Errno::OPNOTSUPP,
        Errno::IO,
    ];
    insta::assert_snapshot!(errors.map(|errno| format!("{}\n", fault_from_errno("a", "read", errno))).concat());
}
