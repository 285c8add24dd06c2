//! Watching a file, a directory or a tree for changes, by inotify.
//!
//! A file is watched through its directory, so that a replacement by rename is reported. In a tree, new directories are
//! watched from then on. Entries that a new directory already has are reported as `Created`, possibly twice: an entry
//! that is created between adding the watch and listing the directory is found by both. The order matters. If the
//! directory were listed first, an entry created in between would be found by neither.

use std::collections::HashMap;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use kiln_wire::{ErrorCode, Fault, FileKind, Text, WatchEvent, WatchEventKind};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::fault::fault_from_errno;
use super::place::{Root, descriptor_path};
use super::stat::kind_of;
use super::walk::{Purpose, Walk};

const OPERATION: &str = "watch";
/// Directories of one recursive watch.
pub const WATCHED_DIRECTORIES_MAX: usize = 4096;
/// Bytes of events that are read from the kernel at once.
const EVENT_BUFFER_BYTES: usize = 16 * 1024;
/// Entries of a new directory that are reported one by one. If there are more, an `Overflow` is reported.
const APPEARED_MAX: usize = 4096;

/// Changes at a path, as events. Its descriptor is readable when there are events.
#[derive(Debug)]
pub struct Watcher {
    root: Root,
    inotify: OwnedFd,
    path: Text,
    target: Target,
    /// The path of each watched directory, in the caller's form.
    directories: HashMap<i32, Vec<u8>>,
    top: i32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    /// One name in the directory that is watched.
    File(Vec<u8>),
    Directory,
    Tree,
}

/// An event of the kernel, copied from the buffer.
struct Event {
    watch: i32,
    flags: ReadFlags,
    name: Option<Vec<u8>>,
}

impl Watcher {
    /// Begins to watch. Symlinks are followed.
    ///
    /// # Errors
    /// `not_found`; `limit_exceeded` if a tree has more than [`WATCHED_DIRECTORIES_MAX`] directories, or if the kernel
    /// allows no more watches.
    pub fn new(root: Root, path: &Text, recursive: bool) -> Result<Self, Fault> {
        let fail = |errno: Errno| fault_from_errno(path, OPERATION, errno);
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(fail)?;
        let handle = root.open(path, OFlags::PATH, OPERATION)?;
        let stat = rustix::fs::fstat(&handle).map_err(fail)?;
        let place = root.final_place(path, OPERATION)?;
        let mut watcher =
            Self { root, inotify, path: path.clone(), target: Target::Directory, directories: HashMap::new(), top: -1 };
        if kind_of(&stat) != FileKind::Directory {
            watcher.target = Target::File(place.name.as_bytes().to_vec());
            watcher.top = watcher.add(&place.parent, path.as_bytes().to_vec())?;
            return Ok(watcher);
        }
        if recursive {
            watcher.target = Target::Tree;
        }
        watcher.top = watcher.add(&handle, path.as_bytes().to_vec())?;
        if recursive {
            watcher.add_below(&handle, path, &mut |_| {})?;
        }
        Ok(watcher)
    }

    /// Appends the changes since the last call to `events`, without waiting. Returns their number.
    ///
    /// # Errors
    /// `limit_exceeded` if the tree has more than [`WATCHED_DIRECTORIES_MAX`] directories now.
    pub fn read(&mut self, events: &mut Vec<WatchEvent>) -> Result<usize, Fault> {
        let before = events.len();
        for event in self.take()? {
            self.report(&event, events)?;
        }
        Ok(events.len() - before)
    }

    /// One buffer of events.
    fn take(&self) -> Result<Vec<Event>, Fault> {
        let mut buffer = [MaybeUninit::uninit(); EVENT_BUFFER_BYTES];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        let mut taken = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => taken.push(Event {
                    watch: event.wd(),
                    flags: event.events(),
                    name: event.file_name().map(|name| name.to_bytes().to_vec()),
                }),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(taken),
                Err(errno) => return Err(fault_from_errno(&self.path, OPERATION, errno)),
            }
            if reader.is_buffer_empty() {
                return Ok(taken);
            }
        }
    }

    fn report(&mut self, event: &Event, events: &mut Vec<WatchEvent>) -> Result<(), Fault> {
        if event.flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            events.push(WatchEvent { change: WatchEventKind::Overflow, path: self.path.clone() });
            return self.watch_again();
        }
        let Some(directory) = self.directories.get(&event.watch) else { return Ok(()) };
        let path = match (&self.target, &event.name) {
            (Target::File(name), Some(changed)) if name == changed => directory.clone(),
            (Target::File(_), Some(_)) => return Ok(()),
            (_, Some(name)) => join(directory, name),
            (_, None) => directory.clone(),
        };
        if event.flags.contains(ReadFlags::IGNORED) {
            self.directories.remove(&event.watch);
            return Ok(());
        }
        // An event of a subdirectory about itself is reported by the directory above too, so it is ignored here.
        let of_itself = event.name.is_none();
        if of_itself && (event.watch != self.top || matches!(self.target, Target::File(_))) {
            return Ok(());
        }
        let Some(change) = change_of(event.flags) else { return Ok(()) };
        let is_directory = event.flags.contains(ReadFlags::ISDIR) && !of_itself;
        events.push(WatchEvent { change, path: path.clone().into() });
        if is_directory && self.target == Target::Tree {
            match change {
                WatchEventKind::Created => self.appeared(&path, events)?,
                WatchEventKind::Removed => self.forget(&path),
                WatchEventKind::Modified | WatchEventKind::Attributes | WatchEventKind::Overflow => {}
            }
        }
        Ok(())
    }

    /// Watches a new directory of the tree, and reports the entries that it already has.
    fn appeared(&mut self, path: &[u8], events: &mut Vec<WatchEvent>) -> Result<(), Fault> {
        let path = Text::from(path);
        let Some(handle) = self.open_again(&path)? else { return Ok(()) };
        // If the directory was renamed, this gives its watch the new path.
        self.add(&handle, path.as_bytes().to_vec())?;
        let mut found_count = 0;
        let result = self.add_below(&handle, &path, &mut |found| {
            found_count += 1;
            if found_count <= APPEARED_MAX {
                events.push(WatchEvent { change: WatchEventKind::Created, path: found });
            }
        });
        if found_count > APPEARED_MAX {
            events.push(WatchEvent { change: WatchEventKind::Overflow, path: self.path.clone() });
        }
        result
    }

    /// Watches all directories of the tree after an overflow, since events of new directories may be lost.
    fn watch_again(&mut self) -> Result<(), Fault> {
        if self.target != Target::Tree {
            return Ok(());
        }
        let path = self.path.clone();
        let Some(handle) = self.open_again(&path)? else { return Ok(()) };
        self.add_below(&handle, &path, &mut |_| {})
    }

    /// Opens a directory. `None` if it is gone or not a directory any more.
    fn open_again(&self, path: &Text) -> Result<Option<OwnedFd>, Fault> {
        let mut flags = OFlags::PATH | OFlags::DIRECTORY;
        if path != &self.path {
            flags |= OFlags::NOFOLLOW;
        }
        match self.root.open(path, flags, OPERATION) {
            Ok(handle) => Ok(Some(handle)),
            Err(Fault { code: ErrorCode::NotFound | ErrorCode::NotADirectory, .. }) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Watches all directories below a watched one, and calls `found` for each entry there.
    fn add_below(&mut self, handle: &OwnedFd, path: &Text, found: &mut dyn FnMut(Text)) -> Result<(), Fault> {
        let mut walk = match Walk::start(handle.as_fd(), c".", path, Purpose::Reading) {
            Ok(walk) => walk,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(fault_from_errno(path, OPERATION, errno)),
        };
        loop {
            let Some((name, kind)) = walk.next()? else {
                match walk.leave()? {
                    Some(_) => continue,
                    None => return Ok(()),
                }
            };
            found(walk.shown(Some(&name)));
            if matches!(kind, FileType::Directory | FileType::Unknown) {
                self.enter(&mut walk, &name)?;
            }
        }
    }

    fn enter(&mut self, walk: &mut Walk, name: &CStr) -> Result<(), Fault> {
        match walk.enter(name) {
            Ok(()) => {
                let handle = rustix::io::fcntl_dupfd_cloexec(walk.directory(), 0)
                    .map_err(|errno| walk.fault(None, OPERATION, errno))?;
                self.add(&handle, walk.shown(None).into_bytes()).map(|_| ())
            }
            // It is gone, or not a directory.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(errno) => Err(walk.fault(Some(name), OPERATION, errno)),
        }
    }

    fn add(&mut self, directory: &OwnedFd, path: Vec<u8>) -> Result<i32, Fault> {
        let flags = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let limit = |message: String| Fault::new(ErrorCode::LimitExceeded, message);
        let watch = match inotify::add_watch(&self.inotify, descriptor_path(directory), flags) {
            Ok(watch) => watch,
            Err(Errno::NOSPC) => {
                return Err(limit(format!("failed to watch `{}`: the kernel allows no more watches", self.path)));
            }
            Err(errno) => return Err(fault_from_errno(Text::from(path), OPERATION, errno)),
        };
        self.directories.insert(watch, path);
        if self.directories.len() > WATCHED_DIRECTORIES_MAX {
            let message = format!("`{}` has more than {WATCHED_DIRECTORIES_MAX} directories to watch", self.path);
            return Err(limit(message));
        }
        Ok(watch)
    }

    /// Stops watching a directory that left the tree, and those below it.
    fn forget(&mut self, path: &[u8]) {
        let below = |other: &[u8]| other.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest[0] == b'/');
        let gone: Vec<i32> =
            self.directories.iter().filter(|(_, other)| below(other)).map(|(watch, _)| *watch).collect();
        for watch in gone {
            self.directories.remove(&watch);
            // This fails if the directory was deleted, because its watch is removed with it.
            let _ = inotify::remove_watch(&self.inotify, watch);
        }
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

impl AsRawFd for Watcher {
    fn as_raw_fd(&self) -> RawFd {
        self.inotify.as_raw_fd()
    }
}

fn change_of(flags: ReadFlags) -> Option<WatchEventKind> {
    let removed =
        ReadFlags::DELETE | ReadFlags::MOVED_FROM | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT;
    if flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
        Some(WatchEventKind::Created)
    } else if flags.intersects(removed) {
        Some(WatchEventKind::Removed)
    } else if flags.intersects(ReadFlags::MODIFY) {
        Some(WatchEventKind::Modified)
    } else if flags.intersects(ReadFlags::ATTRIB) {
        Some(WatchEventKind::Attributes)
    } else {
        None
    }
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if directory.ends_with(b"/") { b"" } else { b"/" };
    [directory, slash, name].concat()
}
