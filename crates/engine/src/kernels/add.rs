//! Adds a kernel: from Debian, from a package, or from files of the user.

use std::fmt;
use std::io::Read as _;
use std::time::{SystemTime, UNIX_EPOCH};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::error::KernelError;
use super::module_tree;
use super::name::KernelName;
use super::needs::{self, Missing, Purpose};
use super::store::{Kernel, KernelStore, Record};
use crate::failpoint;
use crate::files::{Partial, partials, plain_file, private_file, sweep};
use crate::image::modules::ModuleFiles;
use crate::image::packages::{self, KernelFiles};
use crate::image::space;
use crate::image::{BuildStep, FileEntry, KernelSource, SourceError};
use crate::kernel::config::{CONFIG_BYTES_MAX, KernelConfig};
use crate::kernel::{KERNEL_BYTES_MAX, is_release, release_in, unpack};

/// The file of a configuration.
const CONFIG_FILE: &str = "config";
/// How a Debian package begins.
const DEB_MAGIC: &[u8] = b"!<arch>\ndebian-binary";
/// Room for the record and the filesystem's own needs.
const SPARE_BYTES: u64 = 1 << 20;

/// Where a kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelInput {
    /// Debian's newest cloud kernel of a version, such as `6.12`.
    Debian {
        /// The version.
        version: String,
    },
    /// A file: a bzImage, an ELF file with a PVH entry point, or a Debian package of a kernel.
    File(Utf8PathBuf),
}

/// A kernel to add.
pub struct AddKernel<'a> {
    /// Where it comes from.
    pub input: KernelInput,
    /// Its modules, if they are not in its package: `lib/modules/<release>`, or a directory with that below it.
    pub modules: Option<Utf8PathBuf>,
    /// Its configuration, if neither its package nor itself has it.
    pub config: Option<Utf8PathBuf>,
    /// Its name. If absent, `debian:<version>` or its release.
    pub name: Option<KernelName>,
    /// What users see as its source, if not the input.
    pub source: Option<String>,
    /// What it was built from, if Kiln built it.
    pub build_key: Option<String>,
    /// Called with each step as it begins.
    pub progress: &'a mut dyn FnMut(AddStep),
}

/// A kernel that was added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// The kernel.
    pub kernel: Kernel,
    /// The name that it was given.
    pub name: KernelName,
    /// Whether it was not there before.
    pub is_new: bool,
}

/// A step of adding a kernel. Its text is for users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddStep {
    /// Looks for the package, or downloads it.
    Package(BuildStep),
    /// Reads the kernel and its modules.
    Reading {
        /// The package or file.
        path: Utf8PathBuf,
    },
    /// Unpacks its modules and writes them.
    Modules {
        /// Its release.
        release: String,
    },
    /// Writes it to the disk.
    Writing {
        /// Its size.
        bytes: u64,
    },
}

impl fmt::Display for AddStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Package(step) => step.fmt(f),
            Self::Reading { path } => write!(f, "reading {path}"),
            Self::Modules { release } => write!(f, "unpacking the modules of Linux {release}"),
            Self::Writing { bytes } => write!(f, "writing {} MiB", bytes.div_ceil(1 << 20)),
        }
    }
}

impl KernelStore {
    /// Adds a kernel and gives it a name. Refuses one that lacks what every VM needs. What it lacks for other purposes
    /// is in its record: a VM that needs it is refused later.
    ///
    /// # Errors
    /// [`KernelError`]. Nothing of the kernel is left then, except its download.
    pub fn add(&self, request: AddKernel<'_>) -> Result<Added, KernelError> {
        let AddKernel { input, modules, config, name, source, build_key, progress } = request;
        self.sweep()?;
        let read = self.read(&input, modules.as_deref(), progress)?;
        let name = match (name, &input) {
            (Some(name), _) => name,
            (None, KernelInput::Debian { version }) => format!("debian:{version}").parse()?,
            (None, KernelInput::File(_)) => read.files.release.parse()?,
        };
        let source = source.unwrap_or(read.source);
        let (kernel, is_new) = self.write(read.files, (&source, build_key), config.as_deref(), progress)?;
        self.set_name(&name, &kernel.digest)?;
        Ok(Added { kernel, name, is_new })
    }

    /// Removes what killed processes have left.
    pub(super) fn sweep(&self) -> Result<(), KernelError> {
        for directory in [self.home.kernels(), self.home.cache()] {
            let swept = partials(&directory).and_then(|paths| paths.iter().try_for_each(|path| sweep(path).map(drop)));
            swept.map_err(KernelError::io(&directory))?;
        }
        Ok(())
    }

    fn read(
        &self,
        input: &KernelInput,
        modules: Option<&Utf8Path>,
        progress: &mut dyn FnMut(AddStep),
    ) -> Result<FilesRead, KernelError> {
        let package = match input {
            KernelInput::Debian { version } => Some(KernelSource::Debian { version: version.clone() }),
            KernelInput::File(path) if is_package(path)? => Some(KernelSource::Deb(path.clone())),
            KernelInput::File(_) => None,
        };
        let mut read = match (package, input) {
            (Some(package), _) => {
                let mut step = |step| progress(AddStep::Package(step));
                let found = packages::find_kernel(&package, &self.home.cache(), &mut step)?;
                let path = found.path().to_owned();
                progress(AddStep::Reading { path: path.clone() });
                let files = found.read()?;
                let source = match input {
                    KernelInput::Debian { .. } => path.file_name().unwrap_or_default().to_owned(),
                    KernelInput::File(path) => path.to_string(),
                };
                FilesRead { files, source }
            }
            (None, KernelInput::File(path)) => {
                progress(AddStep::Reading { path: path.clone() });
                FilesRead { files: read_file(path, modules)?, source: path.to_string() }
            }
            (None, KernelInput::Debian { .. }) => unreachable!("Debian's kernels are packages"),
        };
        if let Some(directory) = modules {
            let (_, directory) = modules_directory(directory, Some(&read.files.release))?;
            read.files.modules = ModuleFiles::Directory(directory);
        }
        if !is_release(&read.files.release) {
            let problem = "names a release that can't be the name of a directory";
            return Err(SourceError::Unusable { path: read.source.into(), problem }.into());
        }
        Ok(read)
    }

    fn write(
        &self,
        files: KernelFiles,
        (source, build_key): (&str, Option<String>),
        config: Option<&Utf8Path>,
        progress: &mut dyn FnMut(AddStep),
    ) -> Result<(Kernel, bool), KernelError> {
        let KernelFiles { release, vmlinuz, modules, config: own_config } = files;
        let config = match config {
            Some(path) => Some(read_config(path)?),
            None => own_config.or_else(|| KernelConfig::embedded(&vmlinuz)),
        };
        let parsed = config.as_deref().and_then(KernelConfig::parse);
        let kernels = self.home.kernels();
        let partial = Partial::create(&kernels, "kernel").map_err(KernelError::io(&kernels))?;
        progress(AddStep::Modules { release: release.clone() });
        let tree = module_tree::write(&modules, &release, partial.path())?;
        drop(modules);
        let mut missing = check(&release, parsed.as_ref(), &tree.known)?;
        // A kernel without modules has no disk with them, whatever it could load.
        missing.retain(|one| one.purpose != Purpose::Modules || tree.file.is_some());
        failpoint::hit("kernel.modules").map_err(|error| KernelError::io(partial.path())(error.into()))?;
        let kernel = unpack(vmlinuz).ok_or_else(|| KernelError::NotAKernel { path: source.into() })?;
        let bytes = kernel.bytes.len() as u64 + config.as_ref().map_or(0, |text| text.len() as u64);
        space::check(&kernels, bytes + SPARE_BYTES)?;
        progress(AddStep::Writing { bytes });
        let store = |name: &str, bytes: &[u8]| {
            let path = partial.path().join(name);
            private_file::write_new(&path, bytes).map_err(|error| {
                match space::explain(&path, bytes.len() as u64, error) {
                    Ok(no_space) => no_space.into(),
                    Err(other) => KernelError::io(&path)(other),
                }
            })?;
            Ok::<_, KernelError>(FileEntry::of(name, bytes))
        };
        let kernel_entry = store(kernel.format.file_name(), &kernel.bytes)?;
        let config_entry = config.as_deref().map(|text| store(CONFIG_FILE, text)).transpose()?;
        let record = Record {
            format: Record::FORMAT,
            digest: Record::digest_of(&release, &kernel_entry, tree.file.as_ref(), config_entry.as_ref()),
            release,
            source: source.to_owned(),
            kernel_format: kernel.format,
            kernel: kernel_entry,
            modules: tree.file,
            module_count: tree.known.loadable.len(),
            config: config_entry,
            missing,
            build_key,
            added_unix_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
        };
        self.publish(partial, &record)
    }
}

/// A kernel's files, and their source for users.
struct FilesRead {
    files: KernelFiles,
    source: String,
}

/// What a kernel lacks, if it can boot at all.
fn check(
    release: &str,
    config: Option<&KernelConfig>,
    modules: &needs::KnownModules,
) -> Result<Vec<Missing>, KernelError> {
    let missing =
        needs::check(config, modules).map_err(|needs::Unknown| KernelError::NoConfig { release: release.into() })?;
    let (boot, other): (Vec<_>, Vec<_>) = missing.into_iter().partition(|one| one.purpose == Purpose::Boot);
    if !boot.is_empty() {
        return Err(KernelError::Lacks { release: release.into(), purpose: Purpose::Boot, missing: boot });
    }
    Ok(other)
}

fn is_package(path: &Utf8Path) -> Result<bool, KernelError> {
    let mut start = Vec::new();
    let file = plain_file::open(path).map_err(KernelError::io(path))?;
    file.take(DEB_MAGIC.len() as u64).read_to_end(&mut start).map_err(KernelError::io(path))?;
    Ok(start == DEB_MAGIC)
}

/// Reads a kernel of the user. Its release is in it, or is the name of the directory of its modules.
fn read_file(path: &Utf8Path, modules: Option<&Utf8Path>) -> Result<KernelFiles, KernelError> {
    let vmlinuz = plain_file::read(path, KERNEL_BYTES_MAX as u64).map_err(KernelError::io(path))?;
    // Before anything else is refused: a file that is not a kernel has no release either.
    if !crate::kernel::is_kernel(&vmlinuz) {
        return Err(KernelError::NotAKernel { path: path.into() });
    }
    let release = match (release_in(&vmlinuz), modules) {
        (Some(release), _) => release,
        (None, Some(directory)) => modules_directory(directory, None)?.0,
        (None, None) => return Err(KernelError::NoRelease { path: path.into() }),
    };
    Ok(KernelFiles { release, vmlinuz, modules: ModuleFiles::none(), config: None })
}

fn read_config(path: &Utf8Path) -> Result<Vec<u8>, KernelError> {
    let text = plain_file::read(path, CONFIG_BYTES_MAX as u64).map_err(KernelError::io(path))?;
    match KernelConfig::parse(&text) {
        Some(_) => Ok(text),
        None => Err(KernelError::BadConfig { path: path.into() }),
    }
}

/// The directory of a kernel's modules and its release. `directory` is it, or has `lib/modules/<release>` below it, as
/// `make modules_install INSTALL_MOD_PATH=…` leaves it.
fn modules_directory(directory: &Utf8Path, release: Option<&str>) -> Result<(String, Utf8PathBuf), KernelError> {
    let none = || KernelError::NoModules { path: directory.into() };
    let is_one = |path: &Utf8Path| path.join("kernel").is_dir() || path.join("modules.builtin").is_file();
    if is_one(directory) {
        let absolute = directory.canonicalize_utf8().map_err(KernelError::io(directory))?;
        let name = release.or_else(|| absolute.file_name()).filter(|name| is_release(name)).ok_or_else(none)?;
        return Ok((name.to_owned(), directory.to_owned()));
    }
    let mut found = Vec::new();
    for below in ["lib/modules", "usr/lib/modules"] {
        let Ok(entries) = fs::read_dir(directory.join(below)) else { continue };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        found.extend(names.map(|name| (name.clone(), directory.join(below).join(name))));
    }
    found.retain(|(name, path)| is_release(name) && is_one(path) && release.is_none_or(|release| release == name));
    found.pop().filter(|_| found.is_empty()).ok_or_else(none)
}
