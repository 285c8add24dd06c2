//! Kernels by digest: `kernels/<digest>/` with its `kernel.json`, and the names that point to them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::error::KernelError;
use super::name::KernelName;
use super::needs::{Missing, Purpose};
use crate::failpoint;
use crate::files::{FileFacts, Partial, plain_file, private_file};
use crate::home::Home;
use crate::image::modules::{BUILTIN, ModuleFiles, module_name};
use crate::image::{FileEntry, StoredKernel};
use crate::kernel::{KernelFormat, is_release};

/// Version of `kernel.json` and of what the digest covers.
const FORMAT: u32 = 1;
const RECORD: &str = "kernel.json";
/// A record has a few hundred bytes and some missing options.
const RECORD_BYTES_MAX: u64 = 1 << 20;
const DIGEST_HEX_BYTES: usize = 64;
/// So many digits of a digest name a kernel, if no other digest begins with them.
const DIGEST_PREFIX_BYTES_MIN: usize = 8;
/// Enough digits to distinguish the kernels of one host.
const DIGEST_CHARS_SHOWN: usize = 12;
const NAMES: &str = "names";

/// A kernel of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Digest of its files and its release: 64 hex digits.
    pub digest: String,
    /// Its directory.
    pub dir: Utf8PathBuf,
    /// Its release, as `uname -r` prints it.
    pub release: String,
    /// Where it comes from, as users name it.
    pub source: String,
    /// How to load it.
    pub format: KernelFormat,
    /// The kernel.
    pub file: Utf8PathBuf,
    /// All its modules: an EROFS file with the contents of `/lib/modules/<release>`.
    pub modules: Option<Utf8PathBuf>,
    /// The number of its modules.
    pub module_count: usize,
    /// What it was built with.
    pub config: Option<Utf8PathBuf>,
    /// What it lacks, none of which is needed to boot.
    pub missing: Vec<Missing>,
    /// When it was added.
    pub added_unix_seconds: u64,
    /// Bytes of its files.
    pub size_bytes: u64,
}

impl Kernel {
    /// Refuses a kernel that lacks something for a purpose.
    ///
    /// # Errors
    /// [`KernelError::Lacks`] names each option.
    pub fn check(&self, purpose: Purpose) -> Result<(), KernelError> {
        let missing: Vec<_> = self.missing.iter().filter(|one| one.purpose == purpose).cloned().collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(KernelError::Lacks { release: self.release.clone(), purpose, missing })
    }

    /// Refuses modules that the kernel does not have, neither to be loaded nor built in.
    ///
    /// # Errors
    /// [`KernelError::NoModule`] names the first one.
    pub fn check_modules(&self, wanted: &[String]) -> Result<(), KernelError> {
        let Some(path) = self.modules.as_ref().filter(|_| !wanted.is_empty()) else { return Ok(()) };
        let files = ModuleFiles::erofs(path).map_err(KernelError::io(path))?;
        let paths = files.paths().map_err(|error| KernelError::modules(&self.release, &error))?;
        let builtin = files.read(BUILTIN.into()).unwrap_or_default();
        let builtin = String::from_utf8_lossy(&builtin);
        let names: BTreeSet<_> = paths
            .iter()
            .map(Utf8PathBuf::as_path)
            .chain(builtin.lines().map(Utf8Path::new))
            .filter_map(module_name)
            .collect();
        // The kernel treats both characters as the same.
        match wanted.iter().find(|name| !names.contains(&name.replace('-', "_"))) {
            None => Ok(()),
            Some(module) => Err(KernelError::NoModule { release: self.release.clone(), module: module.clone() }),
        }
    }

    /// The kernel as an image is built with it.
    pub fn stored(&self) -> StoredKernel {
        StoredKernel {
            digest: self.digest.clone(),
            release: self.release.clone(),
            vmlinuz: self.file.clone(),
            modules: self.modules.clone(),
        }
    }
}

/// `kernel.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) format: u32,
    pub(super) digest: String,
    pub(super) release: String,
    pub(super) source: String,
    pub(super) kernel_format: KernelFormat,
    pub(super) kernel: FileEntry,
    pub(super) modules: Option<FileEntry>,
    pub(super) module_count: usize,
    pub(super) config: Option<FileEntry>,
    pub(super) missing: Vec<Missing>,
    /// A digest of the source, the configuration and the compiler, if Kiln built it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) build_key: Option<String>,
    pub(super) added_unix_seconds: u64,
}

impl Record {
    pub(super) const FORMAT: u32 = FORMAT;

    /// The digest that names a kernel.
    pub(super) fn digest_of(
        release: &str,
        kernel: &FileEntry,
        modules: Option<&FileEntry>,
        config: Option<&FileEntry>,
    ) -> String {
        let mut canonical = format!("kiln-kernel {FORMAT}\nrelease {release}\n");
        for (what, entry) in [("kernel", Some(kernel)), ("modules", modules), ("config", config)] {
            if let Some(FileEntry { bytes, blake3, .. }) = entry {
                canonical.push_str(&format!("{what} {bytes} {blake3}\n"));
            }
        }
        blake3::hash(canonical.as_bytes()).to_hex().to_string()
    }

    pub(super) fn files(&self) -> impl Iterator<Item = &FileEntry> {
        std::iter::once(&self.kernel).chain(&self.modules).chain(&self.config)
    }

    pub(super) fn write(&self, dir: &Utf8Path) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        private_file::write_new(&dir.join(RECORD), &text)
    }

    fn read(dir: &Utf8Path) -> Result<Self, KernelError> {
        let damaged = |problem: String| KernelError::damaged(dir, problem);
        let text = plain_file::read(&dir.join(RECORD), RECORD_BYTES_MAX);
        let text = text.map_err(|error| damaged(format!("`{RECORD}`: {error}")))?;
        /// The part of a record that every format has.
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } =
            serde_json::from_slice(&text).map_err(|error| damaged(format!("`{RECORD}`: {error}")))?;
        if format != FORMAT {
            return Err(damaged(format!("its format is {format}, but this Kiln reads {FORMAT}")));
        }
        let record: Self = serde_json::from_slice(&text).map_err(|error| damaged(format!("`{RECORD}`: {error}")))?;
        let digest = Self::digest_of(&record.release, &record.kernel, record.modules.as_ref(), record.config.as_ref());
        if record.digest != digest || dir.file_name() != Some(digest.as_str()) {
            return Err(damaged(format!("the digest of its parts is `{digest}`")));
        }
        if !is_release(&record.release) {
            return Err(damaged("its release can't be the name of a directory".into()));
        }
        for FileEntry { file, bytes, .. } in record.files() {
            if !is_file_name(file) {
                return Err(damaged(format!("`{}` is not a file name", file.escape_debug())));
            }
            let found = fs::symlink_metadata(dir.join(file)).map_err(|error| damaged(error.to_string()))?;
            if !found.is_file() || found.len() != *bytes {
                return Err(damaged(format!("`{file}` is not a file of {bytes} bytes")));
            }
        }
        Ok(record)
    }

    fn into_kernel(self, dir: &Utf8Path) -> Kernel {
        Kernel {
            size_bytes: self.files().fold(0, |sum, entry| sum.saturating_add(entry.bytes)),
            dir: dir.into(),
            file: dir.join(&self.kernel.file),
            modules: self.modules.map(|entry| dir.join(entry.file)),
            config: self.config.map(|entry| dir.join(entry.file)),
            digest: self.digest,
            release: self.release,
            source: self.source,
            format: self.kernel_format,
            module_count: self.module_count,
            missing: self.missing,
            added_unix_seconds: self.added_unix_seconds,
        }
    }
}

fn is_file_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.len() <= 64 && name.chars().all(allowed)
}

/// The kernels in a [`Home`].
#[derive(Debug, Clone)]
pub struct KernelStore {
    pub(super) home: Home,
}

impl KernelStore {
    /// The kernels of a home. Does no I/O.
    pub fn new(home: &Home) -> Self {
        Self { home: home.clone() }
    }

    /// Finds a kernel by its name, the last part of it (`6.12` for `debian:6.12`), the start of its release (`6.12` for
    /// `6.12.95`), its digest, or unique first digits of the digest. Its files are as they were added: they are read
    /// once, and again after they have changed.
    ///
    /// # Errors
    /// [`KernelError::Unknown`] with the existing names, [`KernelError::Ambiguous`],
    /// [`KernelError::Damaged`] with the file that changed.
    pub fn find(&self, asked: &str) -> Result<Kernel, KernelError> {
        let dir = self.dir(&self.resolve(asked)?);
        let record = Record::read(&dir)?;
        let facts = FileFacts::new(self.home.path());
        for FileEntry { file, blake3, .. } in record.files() {
            let path = dir.join(file);
            if facts.digest(&path).map_err(KernelError::io(&path))? != *blake3 {
                return Err(KernelError::damaged(&dir, format!("`{file}` is not what was added")));
            }
        }
        Ok(record.into_kernel(&dir))
    }

    /// All kernels, by release and age, the newest first. Damaged kernels are left out.
    ///
    /// # Errors
    /// The store can't be read.
    pub fn list(&self) -> Result<Vec<Kernel>, KernelError> {
        let load = |digest: &String| self.load(digest).ok();
        let mut kernels: Vec<_> = self.digests()?.iter().filter_map(load).collect();
        let age = |kernel: &Kernel| std::cmp::Reverse(kernel.added_unix_seconds);
        kernels.sort_by(|left, right| left.release.cmp(&right.release).then(age(left).cmp(&age(right))));
        Ok(kernels)
    }

    /// All names, each with its digest.
    ///
    /// # Errors
    /// The store can't be read.
    pub fn names(&self) -> Result<BTreeMap<KernelName, String>, KernelError> {
        let files = entries(&self.names_dir())?;
        let names = files.iter().filter_map(|file| KernelName::of_file(file));
        Ok(names.filter_map(|name| Some((name.clone(), self.named(&name)?))).collect())
    }

    /// The names of a kernel.
    ///
    /// # Errors
    /// The store can't be read.
    pub fn names_of(&self, digest: &str) -> Result<Vec<KernelName>, KernelError> {
        Ok(self.names()?.into_iter().filter(|(_, named)| named == digest).map(|(name, _)| name).collect())
    }

    /// The digest of the kernel that would be found. The kernel may be damaged.
    ///
    /// # Errors
    /// [`KernelError::Unknown`], [`KernelError::Ambiguous`]
    pub fn resolve(&self, asked: &str) -> Result<String, KernelError> {
        let names = self.names()?;
        if let Ok(name) = asked.parse::<KernelName>()
            && let Some(digest) = names.get(&name).filter(|digest| self.dir(digest).is_dir())
        {
            return Ok(digest.clone());
        }
        let digests = self.digests()?;
        let mut found: BTreeSet<&String> = names
            .iter()
            .filter(|(name, digest)| name.ends_with_part(asked) && digests.contains(digest))
            .map(|(_, digest)| digest)
            .collect();
        if found.is_empty() {
            let begins = |digest: &&String| {
                let is_prefix = asked.len() >= DIGEST_PREFIX_BYTES_MIN && digest.starts_with(asked);
                is_prefix || self.load(digest).is_ok_and(|kernel| is_release_of(&kernel.release, asked))
            };
            found = digests.iter().filter(begins).collect();
        }
        let mut found = found.into_iter();
        match (found.next(), found.len()) {
            (Some(digest), 0) => Ok(digest.clone()),
            (Some(first), _) => {
                let all = std::iter::once(first).chain(found).map(|digest| self.words_of(digest, &names)).collect();
                Err(KernelError::Ambiguous { asked: asked.into(), found: all })
            }
            (None, _) => {
                let known = names.keys().map(ToString::to_string).collect();
                Err(KernelError::Unknown { asked: asked.into(), known })
            }
        }
    }

    /// A kernel's name, or its release and digest if it has none.
    fn words_of(&self, digest: &str, names: &BTreeMap<KernelName, String>) -> String {
        let short = &digest[..DIGEST_CHARS_SHOWN];
        match names.iter().find(|(_, named)| *named == digest) {
            Some((name, _)) => format!("{name} ({short})"),
            None => short.to_owned(),
        }
    }

    /// Removes a name, and the kernel unless it has another name. For a digest, removes the kernel and all its names.
    /// Images that were built with it are not affected.
    ///
    /// # Errors
    /// [`KernelError::Unknown`], or a file can't be removed.
    pub fn remove(&self, asked: &str) -> Result<(), KernelError> {
        let digest = self.resolve(asked)?;
        let exact = asked.parse::<KernelName>().ok();
        let names = self.names_of(&digest)?;
        let one = names.iter().any(|name| exact.as_ref() == Some(name)) && names.len() > 1;
        for name in names.iter().filter(|name| !one || exact.as_ref() == Some(name)) {
            let path = self.names_dir().join(name.file_name());
            fs::remove_file(&path).map_err(KernelError::io(&path))?;
        }
        if one { Ok(()) } else { self.discard(&digest) }
    }

    /// Removes a kernel's directory. No other process sees it half removed.
    pub(super) fn discard(&self, digest: &str) -> Result<(), KernelError> {
        let dir = self.dir(digest);
        if !dir.exists() {
            return Ok(());
        }
        // After the move into a partial directory, readers do not find it any more. If this process is killed, a sweep
        // removes it.
        let partial = Partial::create(&self.home.kernels(), "removed").map_err(KernelError::io(&dir))?;
        match fs::rename(&dir, partial.path().join(digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(KernelError::io(&dir)(error)),
            _ => Ok(()),
        }
    }

    /// Gives a kernel a name. If another kernel has that name, it loses it.
    ///
    /// # Errors
    /// The name can't be written.
    pub(super) fn set_name(&self, name: &KernelName, digest: &str) -> Result<(), KernelError> {
        if self.named(name).as_deref() == Some(digest) {
            return Ok(());
        }
        let directory = self.names_dir();
        let path = directory.join(name.file_name());
        let write = || -> io::Result<()> {
            private_file::create_dir_all(&directory)?;
            private_file::replace(&path, &self.home.kernels(), format!("{digest}\n").as_bytes())?;
            fs::File::open(&directory)?.sync_all()
        };
        write().map_err(KernelError::io(&path))
    }

    /// Publishes what was written into a partial directory. If the same kernel is there and whole, it stays.
    pub(super) fn publish(&self, partial: Partial, record: &Record) -> Result<(Kernel, bool), KernelError> {
        let dir = self.dir(&record.digest);
        if self.find(&record.digest).is_ok() {
            return Ok((self.load(&record.digest)?, false));
        }
        self.discard(&record.digest)?;
        let written = record.write(partial.path()).and_then(|()| {
            failpoint::hit("kernel.recorded")?;
            partial.publish(&dir)
        });
        match written {
            // Another process was faster, with the same files.
            Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty) => {}
            other => other.map_err(KernelError::io(&dir))?,
        }
        failpoint::hit("kernel.published").map_err(|error| KernelError::io(&dir)(error.into()))?;
        Ok((self.load(&record.digest)?, true))
    }

    pub(super) fn load(&self, digest: &str) -> Result<Kernel, KernelError> {
        let dir = self.dir(digest);
        Ok(Record::read(&dir)?.into_kernel(&dir))
    }

    /// The kernel that was built from this, if it is whole.
    pub(super) fn built_as(&self, key: &str) -> Result<Option<Kernel>, KernelError> {
        let is_it = |digest: &&String| {
            Record::read(&self.dir(digest)).is_ok_and(|found| found.build_key.as_deref() == Some(key))
        };
        Ok(self.digests()?.iter().filter(is_it).find_map(|digest| self.find(digest).ok()))
    }

    fn dir(&self, digest: &str) -> Utf8PathBuf {
        self.home.kernels().join(digest)
    }

    fn names_dir(&self) -> Utf8PathBuf {
        self.home.kernels().join(NAMES)
    }

    fn named(&self, name: &KernelName) -> Option<String> {
        let text = plain_file::read(&self.names_dir().join(name.file_name()), DIGEST_HEX_BYTES as u64 + 1).ok()?;
        let digest = std::str::from_utf8(&text).ok()?.trim_end();
        is_digest(digest).then(|| digest.to_owned())
    }

    fn digests(&self) -> Result<Vec<String>, KernelError> {
        Ok(entries(&self.home.kernels())?.into_iter().filter(|name| is_digest(name)).collect())
    }
}

/// Whether a text stands for a release: the whole, or the start up to a separator, so that `6.1` is not `6.12`.
fn is_release_of(release: &str, asked: &str) -> bool {
    let rest = release.strip_prefix(asked).filter(|_| !asked.is_empty());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-', '+', '~']))
}

fn is_digest(text: &str) -> bool {
    text.len() == DIGEST_HEX_BYTES && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The sorted names in a directory; empty if it does not exist.
fn entries(directory: &Utf8Path) -> Result<Vec<String>, KernelError> {
    let read = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in directory.read_dir_utf8()? {
            names.push(entry?.file_name().to_owned());
        }
        names.sort();
        Ok(names)
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.map_err(KernelError::io(directory)),
    }
}
