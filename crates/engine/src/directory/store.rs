//! Makes the disks of directories, and keeps them for later runs.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use kiln_rootfs::directory::{self, DirectoryFacts};
use kiln_rootfs::erofs::{self, WriteError};
use kiln_rootfs::{Limits, Spool, SpoolLimits};
use rustix::fs::{Timespec, Timestamps, UTIME_NOW};

use super::error::DirectoryDiskError;
use crate::files::{create_partial_file, is_still, partials, plain_file, private_file, sweep, try_lock_together};
use crate::home::Home;
use crate::spec::{Disk, DiskFormat, DiskRole};

/// The size of each disk, and so the largest image. The contents of files have at most half of it: see [`SpoolLimits`].
pub const DIRECTORY_DISK_BYTES: u64 = 32 << 30;
/// Most images that are kept. The least recently used are removed.
const KEPT_MAX: usize = 32;
/// What the kept images may take of the host's disk, except for the newest one.
const KEPT_BYTES_MAX: u64 = 8 << 30;
/// Bytes of a block of `st_blocks`.
const BLOCK_BYTES: u64 = 512;
/// The directory in the cache.
const DIRECTORY: &str = "directories";
const SUFFIX: &str = ".erofs";
/// Hex digits of an image's name.
const NAME_DIGITS: usize = 32;
/// More than the time between two steps of the kernel's time. A kernel has at least a hundred in a second.
const TIME_STEP_MAX: Duration = Duration::from_millis(20);
/// Changes with each boot of the host.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The disks of directories, in the cache of a home.
#[derive(Debug, Clone)]
pub struct DirectoryStore {
    directory: Utf8PathBuf,
}

/// A read-only disk with the contents of a directory. Keep it until its VM has ended: other processes may remove an
/// image that nothing holds.
#[derive(Debug)]
pub struct DirectoryDisk {
    path: Utf8PathBuf,
    facts: DirectoryFacts,
    /// Whether later runs may use the image.
    kept: bool,
    /// Together with others.
    lock: fs::File,
}

impl DirectoryStore {
    /// The disks in that home's cache.
    pub fn new(home: &Home) -> Self {
        Self { directory: home.cache().join(DIRECTORY) }
    }

    /// The disk of a directory. If nothing in the directory has changed, an earlier image of it is used.
    ///
    /// ```no_run
    /// # fn example(home: &kiln_engine::home::Home) -> Result<(), kiln_engine::directory::DirectoryDiskError> {
    /// use kiln_engine::directory::DirectoryStore;
    ///
    /// let source = DirectoryStore::new(home).disk("./src".as_ref())?;
    /// let disk = source.disk();
    /// // … a VM with that disk mounts it as EROFS, runs and ends …
    /// # drop((source, disk));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`DirectoryDiskError`] names the file or directory that can't be read, or the limit.
    pub fn disk(&self, path: &Path) -> Result<DirectoryDisk, DirectoryDiskError> {
        let limits = Limits::default();
        let facts = directory::facts(path, &limits)?;
        let image = self.image_of(&facts)?;
        if let Some(lock) = find(&image).map_err(|error| DirectoryDiskError::io("use", &image, error))? {
            return Ok(DirectoryDisk { path: image, facts, kept: true, lock });
        }
        settle(&facts);
        let made = self.make(path, facts, &limits)?;
        if directory::facts(path, &limits)? != facts {
            tracing::debug!(path = %path.display(), "the directory changed while it was read: its image is used once");
            return Ok(made);
        }
        let disk = keep(made, image)?;
        self.trim();
        Ok(disk)
    }

    /// Where the image of a directory in that state is kept.
    fn image_of(&self, facts: &DirectoryFacts) -> Result<Utf8PathBuf, DirectoryDiskError> {
        let boot = fs::read_to_string(BOOT_ID).map_err(|error| DirectoryDiskError::io("read", BOOT_ID, error))?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&facts.digest);
        hasher.update(format!("{} {DIRECTORY_DISK_BYTES} {boot}", env!("CARGO_PKG_VERSION")).as_bytes());
        let digest = hasher.finalize().to_hex();
        Ok(self.directory.join(format!("{}{SUFFIX}", &digest[..NAME_DIGITS])))
    }

    /// Writes an image under a name of its own.
    fn make(&self, path: &Path, facts: DirectoryFacts, limits: &Limits) -> Result<DirectoryDisk, DirectoryDiskError> {
        self.sweep();
        let failed = |doing, error| DirectoryDiskError::io(doing, &self.directory, error);
        private_file::create_dir_all(&self.directory).map_err(|error| failed("make", error))?;
        let mut spool = Spool::new(self.directory.as_std_path(), SpoolLimits::default())?;
        let (tree, _) = directory::read(path, &mut spool, limits)?;
        spool.flush()?;
        // Only now, so that it is not in the directory that is read.
        let (name, file) = create_partial_file(&self.directory).map_err(|error| failed("make a file in", error))?;
        // From here on, an error removes it.
        let made = DirectoryDisk { path: name, facts, kept: false, lock: file };
        let failed = |error| DirectoryDiskError::io("write", &made.path, error);
        let options = erofs::Options { bytes_max: DIRECTORY_DISK_BYTES };
        erofs::write(&tree, &spool, &made.lock, &options).map_err(|error| match error {
            WriteError::Output(source) => failed(source),
            source => DirectoryDiskError::Image { path: path.display().to_string(), source },
        })?;
        made.lock.set_len(DIRECTORY_DISK_BYTES).map_err(failed)?;
        Ok(made)
    }

    /// Removes what crashes have left.
    fn sweep(&self) {
        for path in partials(&self.directory).unwrap_or_default() {
            if let Err(error) = sweep(&path) {
                tracing::debug!(%path, %error, "failed to remove an unfinished image of a directory");
            }
        }
    }

    /// Removes images that were not used for the longest time and that nothing holds.
    fn trim(&self) {
        let mut images = self.images();
        images.sort_by_key(|(_, used, _)| std::cmp::Reverse(*used));
        let mut bytes = 0u64;
        for (index, (path, _, taken)) in images.into_iter().enumerate() {
            bytes = bytes.saturating_add(taken);
            if (index >= KEPT_MAX || index > 0 && bytes > KEPT_BYTES_MAX)
                && let Err(error) = sweep(&path)
            {
                tracing::debug!(%path, %error, "failed to remove the image of a directory");
            }
        }
    }

    /// The kept images: when each was used last, and what it takes.
    fn images(&self) -> Vec<(Utf8PathBuf, SystemTime, u64)> {
        let entries = self.directory.read_dir_utf8().into_iter().flatten().flatten();
        let found = entries.filter(|entry| entry.file_name().ends_with(SUFFIX)).filter_map(|entry| {
            let meta = entry.metadata().ok().filter(std::fs::Metadata::is_file)?;
            Some((entry.path().to_owned(), meta.modified().ok()?, meta.blocks() * BLOCK_BYTES))
        });
        found.collect()
    }
}

impl DirectoryDisk {
    /// The disk, for the spec of a VM.
    pub fn disk(&self) -> Disk {
        Disk { path: self.path.clone(), format: DiskFormat::Raw, role: DiskRole::VolumeReadOnly }
    }

    /// What the directory had.
    pub fn facts(&self) -> &DirectoryFacts {
        &self.facts
    }
}

impl Drop for DirectoryDisk {
    fn drop(&mut self) {
        if !self.kept {
            // If this fails, the next sweep removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Locks a kept image together with its other users. `None` if there is none.
fn find(path: &Utf8Path) -> io::Result<Option<fs::File>> {
    let file = match plain_file::open(path).map(|file| fs::File::from_parts(file, path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    // A process that is removing it has it alone.
    if !try_lock_together(&file)? || !is_still(&file, path) {
        return Ok(None);
    }
    if file.metadata()?.len() != DIRECTORY_DISK_BYTES {
        drop(file);
        sweep(path)?;
        return Ok(None);
    }
    // So that it is not among the least recently used.
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    rustix::fs::futimens(&file, &Timestamps { last_access: now, last_modification: now })?;
    Ok(Some(file))
}

/// Gives an image the name under which later runs find it.
fn keep(mut made: DirectoryDisk, path: Utf8PathBuf) -> Result<DirectoryDisk, DirectoryDiskError> {
    match fs::hard_link(&made.path, &path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // Another process was faster.
            let found = find(&path).map_err(|error| DirectoryDiskError::io("use", &path, error))?;
            return Ok(match found {
                Some(lock) => DirectoryDisk { path, facts: made.facts, kept: true, lock },
                None => made,
            });
        }
        // A filesystem without links.
        Err(error) => {
            tracing::debug!(%path, %error, "the image of a directory is used once");
            return Ok(made);
        }
    }
    let unfinished = std::mem::replace(&mut made.path, path);
    made.kept = true;
    fs::remove_file(&unfinished).map_err(|error| DirectoryDiskError::io("remove", &unfinished, error))?;
    Ok(made)
}

/// Waits until another change would have another time, see the module's page. Takes some milliseconds at most.
fn settle(facts: &DirectoryFacts) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().cast_signed();
    // A change time in the future means that the clock was set back. A short wait would not help.
    let age = u64::try_from(now - facts.changed_ns).map_or(TIME_STEP_MAX, Duration::from_nanos);
    std::thread::sleep(TIME_STEP_MAX.saturating_sub(age));
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::files::PARTIAL_SUFFIX;

    struct Place {
        _guard: tempfile::TempDir,
        source: std::path::PathBuf,
        store: DirectoryStore,
    }

    fn place() -> Place {
        let guard = tempfile::tempdir().expect("a directory");
        let home = Utf8Path::from_path(guard.path()).expect("UTF-8").join("home");
        let source = guard.path().join("source");
        fs::create_dir(&source).expect("made");
        fs::write(source.join("file"), "one").expect("written");
        Place { store: DirectoryStore::new(&Home::at(home)), source, _guard: guard }
    }

    impl Place {
        fn disk(&self) -> DirectoryDisk {
            self.store.disk(&self.source).expect("is made")
        }

        fn files(&self) -> Vec<String> {
            let entries = self.store.directory.read_dir_utf8().expect("is there").flatten();
            let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_owned()).collect();
            names.sort();
            names
        }
    }

    /// The contents of `file` in an image.
    fn contents(disk: &DirectoryDisk) -> String {
        let image = File::open(disk.path.as_std_path()).expect("opens");
        let tree = erofs::read(&image, DIRECTORY_DISK_BYTES, &erofs::ReadLimits::default()).expect("is an image");
        let kiln_rootfs::Kind::Directory(children) = &tree.node(kiln_rootfs::Tree::ROOT).kind else { panic!("a root") };
        let kiln_rootfs::Kind::File(body) = &tree.node(children[b"file".as_slice()]).kind else { panic!("a file") };
        let mut bytes = vec![0; usize::try_from(body.size).expect("is small")];
        let offset = body.extents[0].spool_offset;
        std::os::unix::fs::FileExt::read_exact_at(&image, &mut bytes, offset).expect("reads");
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn an_image_is_used_again_until_something_changes() {
        let place = place();
        let first = place.disk();
        let (path, inode) = (first.path.clone(), fs::metadata(&first.path).expect("is there").ino());
        assert_eq!(
            (contents(&first).as_str(), first.facts.entries, first.disk().role),
            ("one", 1, DiskRole::VolumeReadOnly)
        );
        let meta = fs::metadata(&path).expect("is there");
        assert!(meta.len() == DIRECTORY_DISK_BYTES && meta.blocks() < 100, "{} blocks", meta.blocks());
        drop(first);
        let again = place.disk();
        assert_eq!((&again.path, fs::metadata(&again.path).expect("is there").ino()), (&path, inode));
        // The same size, and the time of before.
        let file = place.source.join("file");
        let modified = fs::metadata(&file).and_then(|meta| meta.modified()).expect("has times");
        fs::write(&file, "two").expect("written");
        File::options().write(true).open(&file).and_then(|file| file.set_modified(modified)).expect("set");
        let changed = place.disk();
        assert!(contents(&changed) == "two" && changed.path != path);
        assert_eq!(contents(&again), "one");
        assert_eq!(place.files().len(), 2);
    }

    #[test]
    fn an_image_that_was_cut_is_made_again_and_an_unfinished_one_is_removed() {
        let place = place();
        let path = place.disk().path.clone();
        File::options().write(true).open(&path).and_then(|file| file.set_len(5)).expect("cut");
        let left = place.store.directory.join(format!("x{PARTIAL_SUFFIX}"));
        fs::write(&left, "").expect("written");
        let again = place.disk();
        assert!(contents(&again) == "one" && again.path == path && !left.exists());
        drop(again);
        assert_eq!(place.files().len(), 1);
    }

    #[test]
    fn an_image_that_is_used_once_is_removed() {
        let place = place();
        let facts = directory::facts(&place.source, &Limits::default()).expect("is read");
        let once = place.store.make(&place.source, facts, &Limits::default()).expect("is made");
        assert_eq!((contents(&once).as_str(), place.files().len()), ("one", 1));
        // Another process, which sweeps, leaves it.
        place.store.sweep();
        assert!(once.path.exists());
        drop(once);
        assert_eq!(place.files(), [""; 0]);
    }

    #[test]
    fn the_least_recently_used_images_are_removed_unless_they_are_held() {
        let place = place();
        let held = place.disk();
        let mut last = String::new();
        for number in 0..KEPT_MAX + 2 {
            fs::write(place.source.join("file"), number.to_string()).expect("written");
            let disk = place.disk();
            last = contents(&disk);
        }
        assert_eq!(last, (KEPT_MAX + 1).to_string());
        // The oldest is held, the second was removed.
        assert!(held.path.exists());
        assert_eq!(place.files().len(), KEPT_MAX + 1);
    }

    #[test]
    fn what_can_not_be_read_is_named_and_nothing_is_left() {
        let place = place();
        for (path, kind) in [("nowhere", "NotFound"), ("file", "Invalid")] {
            let error = place.store.disk(&place.source.join(path)).expect_err("is refused");
            assert!(format!("{:?}", error.kind()) == kind && error.to_string().contains(path), "{error}");
        }
        assert!(!place.store.directory.exists());
    }
}
