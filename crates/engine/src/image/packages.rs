//! Finds the parts of an image that Kiln does not build, the kernel and busybox, without root and without downloading
//! anything twice. It looks in the cache, then for a download through apt, then for an installed one. A package is used
//! only if it matches apt's lists or the user named it. Nothing in a package is run.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use kiln_programs::PATH_ONLY;

use super::apt::Apt;
use super::build::BuildStep;
use super::busybox;
use super::cache::PackageCache;
use super::command::{self, CommandError};
use super::modules::ModuleFiles;
use super::space::NoSpace;
use super::version::version_key;

const KERNEL_PACKAGE_PREFIX: &str = "linux-image-";
const KERNEL_PACKAGE_SUFFIX: &str = "-cloud-amd64";
/// How the path of a kernel's configuration begins.
const CONFIG_PREFIX: &str = "boot/config-";
const SOURCE_PACKAGE_PREFIX: &str = "linux-source-";
const BUSYBOX_PACKAGE: &str = "busybox-static";
const BUSYBOX_PATHS: [&str; 3] = ["/bin/busybox", "/usr/bin/busybox", "/usr/lib/busybox/busybox"];

const UNPACK_DEADLINE: Duration = Duration::from_secs(5 * 60);
/// The most that is kept of one package. Debian's cloud kernel has 105 MiB of kernel and modules.
const PACKAGE_BYTES_MAX: u64 = 1 << 30;

/// The source of an image's kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelSource {
    /// The newest cloud kernel package in the cache; if there is none, one that apt can download, and then an installed
    /// one.
    Auto,
    /// The newest kernel that apt has. It is downloaded unless the cache has it.
    Latest,
    /// The newest cloud kernel of a version, such as `6.1`, that apt has: in the lists of this host, or in the
    /// backports for its Debian. If apt fails, the newest in the cache.
    Debian {
        /// The version.
        version: String,
    },
    /// A Debian kernel package.
    Deb(Utf8PathBuf),
    /// A kernel and its `/lib/modules/<release>`.
    Files {
        /// The kernel: a bzImage, or an ELF file with a PVH entry point.
        vmlinuz: Utf8PathBuf,
        /// Its modules; the directory's name is the kernel's release.
        modules_dir: Utf8PathBuf,
    },
    /// A kernel of the store of kernels.
    Stored(StoredKernel),
}

/// A kernel of the store of kernels, as an image is made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKernel {
    /// Its digest in the store: 64 hex digits.
    pub digest: String,
    /// Its release.
    pub release: String,
    /// The kernel.
    pub vmlinuz: Utf8PathBuf,
    /// All its modules: an EROFS file with the contents of `/lib/modules/<release>`.
    pub modules: Option<Utf8PathBuf>,
}

/// Why a part of an image was not found.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// None of the places has a kernel.
    #[error(
        "no Debian cloud kernel: none in `{cache}`{refused}, none installed in `/boot`, and apt can't download one: {apt}"
    )]
    NoKernel {
        /// The cache.
        cache: Utf8PathBuf,
        /// Packages in it that could not be used, as text for users.
        refused: String,
        /// Why apt failed.
        apt: String,
    },
    /// None of the places has a static busybox.
    #[error("no static busybox: none in `{cache}`{refused}, none installed, and apt can't download one: {apt}")]
    NoBusybox {
        /// The cache.
        cache: Utf8PathBuf,
        /// Packages in it that could not be used, as text for users.
        refused: String,
        /// Why apt failed.
        apt: String,
    },
    /// Neither apt nor the cache has a kernel of this version.
    #[error("no Debian cloud kernel {version}: none in `{cache}`{refused}, and apt can't download one: {apt}")]
    NoVersion {
        /// The version.
        version: String,
        /// The cache.
        cache: Utf8PathBuf,
        /// Packages in it that could not be used, as text for users.
        refused: String,
        /// Why apt failed.
        apt: String,
    },
    /// A package or directory can't be used.
    #[error("`{path}` {problem}")]
    Unusable {
        /// The file or directory.
        path: Utf8PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// There is no room for a download.
    #[error(transparent)]
    NoSpace(#[from] NoSpace),
    /// A package tool failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A file can't be read or written.
    #[error("failed to read or write below `{path}`")]
    Io {
        /// Where.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl SourceError {
    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoKernel { .. } => Some("as root: apt-get update && apt-get install linux-image-cloud-amd64"),
            Self::NoBusybox { .. } => Some("as root: apt-get update && apt-get install busybox-static"),
            Self::NoVersion { .. } => {
                Some("a kernel package of Debian can also be named by its file: ./linux-image-….deb")
            }
            Self::Command(CommandError::Missing { program }) if program == "dpkg-deb" => {
                Some("as root: apt-get install dpkg")
            }
            _ => None,
        }
    }
}

/// A kernel that was found, before it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KernelPackage {
    Deb(Utf8PathBuf),
    Files { vmlinuz: Utf8PathBuf, modules_dir: Utf8PathBuf },
    Stored(StoredKernel),
}

/// A kernel that was read.
#[derive(Debug)]
pub(crate) struct KernelFiles {
    pub(crate) release: String,
    pub(crate) vmlinuz: Vec<u8>,
    pub(crate) modules: ModuleFiles,
    /// Its configuration, if its package has it.
    pub(crate) config: Option<Vec<u8>>,
}

/// Finds the kernel. `progress` is called with downloads and with packages that can't be used.
pub(crate) fn find_kernel(
    source: &KernelSource,
    cache: &Utf8Path,
    progress: &mut dyn FnMut(BuildStep),
) -> Result<KernelPackage, SourceError> {
    let mut cache = PackageCache::new(cache, progress);
    match source {
        KernelSource::Deb(path) => return Ok(KernelPackage::Deb(path.clone())),
        KernelSource::Files { vmlinuz, modules_dir } => {
            return Ok(KernelPackage::Files { vmlinuz: vmlinuz.clone(), modules_dir: modules_dir.clone() });
        }
        KernelSource::Stored(kernel) => return Ok(KernelPackage::Stored(kernel.clone())),
        KernelSource::Debian { version } => return find_version(version, &mut cache).map(KernelPackage::Deb),
        KernelSource::Auto => {
            if let Some(path) = cache.newest(is_kernel_package)? {
                return Ok(KernelPackage::Deb(path));
            }
        }
        KernelSource::Latest => {}
    }
    let apt = Apt::of_host();
    let apt = match apt.newest_kernel().and_then(|package| cache.fetch(&apt, &package)) {
        Ok(path) => return Ok(KernelPackage::Deb(path)),
        Err(SourceError::NoSpace(error)) => return Err(error.into()),
        Err(error) => error.to_string(),
    };
    let cached = match source {
        // The cache and the download were tried above.
        KernelSource::Auto => None,
        _ => cache.newest(is_kernel_package)?,
    };
    match (cached, installed_kernel()) {
        (Some(path), _) => Ok(KernelPackage::Deb(path)),
        (None, Some(found)) => Ok(found),
        (None, None) => Err(SourceError::NoKernel { cache: cache.directory().into(), refused: cache.refused(), apt }),
    }
}

/// The package with the source of a version of Linux.
pub(crate) fn find_source(
    version: &str,
    cache: &Utf8Path,
    progress: &mut dyn FnMut(BuildStep),
) -> Result<Utf8PathBuf, SourceError> {
    let mut cache = PackageCache::new(cache, progress);
    let package = format!("{SOURCE_PACKAGE_PREFIX}{version}");
    let host = Apt::of_host();
    let fetched = match host.newest_of(&package, |name| name == package) {
        Ok(Some(_)) => cache.fetch(&host, &package),
        Err(error) => Err(error),
        Ok(None) => Apt::of_backports(cache.directory()).and_then(|backports| cache.fetch(&backports, &package)),
    };
    match fetched {
        Ok(path) => Ok(path),
        Err(error @ (SourceError::NoSpace(_) | SourceError::Command(CommandError::Cancelled))) => Err(error),
        Err(error) => cache.newest(|name| name == package)?.ok_or(error),
    }
}

/// The newest package of a kernel's version.
fn find_version(version: &str, cache: &mut PackageCache<'_>) -> Result<Utf8PathBuf, SourceError> {
    let start = format!("{KERNEL_PACKAGE_PREFIX}{version}");
    let wanted = |package: &str| is_kernel_of(package, version);
    let host = Apt::of_host();
    let fetched = match host.newest_of(&start, wanted) {
        Ok(Some(package)) => cache.fetch(&host, &package),
        Err(error) => Err(error),
        Ok(None) => {
            Apt::of_backports(cache.directory()).and_then(|backports| match backports.newest_of(&start, wanted)? {
                Some(package) => cache.fetch(&backports, &package),
                None => Err(SourceError::Unusable {
                    path: start.clone().into(),
                    problem: "is the start of no package's name, neither in apt's lists nor in the backports",
                }),
            })
        }
    };
    match fetched {
        Ok(path) => Ok(path),
        Err(error @ (SourceError::NoSpace(_) | SourceError::Command(CommandError::Cancelled))) => Err(error),
        Err(error) => cache.newest(wanted)?.ok_or_else(|| SourceError::NoVersion {
            version: version.into(),
            cache: cache.directory().into(),
            refused: cache.refused(),
            apt: error.to_string(),
        }),
    }
}

/// Whether a package is the cloud kernel of a version: `6.1` is the version of `6.1.0-48`, and not that of `6.12.95`.
fn is_kernel_of(package: &str, version: &str) -> bool {
    let rest = package.strip_prefix(KERNEL_PACKAGE_PREFIX).and_then(|rest| rest.strip_prefix(version));
    is_kernel_package(package) && rest.is_some_and(|rest| rest.starts_with(['.', '-', '+']))
}

pub(super) fn is_kernel_package(package: &str) -> bool {
    let middle = package.strip_prefix(KERNEL_PACKAGE_PREFIX).and_then(|rest| rest.strip_suffix(KERNEL_PACKAGE_SUFFIX));
    middle.is_some_and(|version| version.starts_with(|c: char| c.is_ascii_digit()))
}

fn installed_kernel() -> Option<KernelPackage> {
    let entries = Utf8Path::new("/boot").read_dir_utf8().ok()?;
    let names = entries.filter_map(Result::ok).map(|entry| entry.file_name().to_owned());
    let releases = names.filter_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned));
    let usable = releases.filter(|release| release.ends_with(KERNEL_PACKAGE_SUFFIX)).filter_map(|release| {
        let vmlinuz = Utf8PathBuf::from(format!("/boot/vmlinuz-{release}"));
        let modules_dir = Utf8PathBuf::from(format!("/lib/modules/{release}"));
        // On some distributions only root can read kernels in /boot.
        let readable = fs::File::open(&vmlinuz).is_ok() && modules_dir.is_dir();
        readable.then_some((version_key(&release), KernelPackage::Files { vmlinuz, modules_dir }))
    });
    usable.max_by(|(left, _), (right, _)| left.cmp(right)).map(|(_, found)| found)
}

impl KernelPackage {
    /// Whether it is a package of the cache, where apt has chosen the file names.
    pub(crate) fn is_from(&self, cache: &Utf8Path) -> bool {
        matches!(self, Self::Deb(path) if path.parent() == Some(cache))
    }

    /// The path, for users.
    pub(crate) fn path(&self) -> &Utf8Path {
        match self {
            Self::Deb(path) => path,
            Self::Files { vmlinuz, .. } => vmlinuz,
            Self::Stored(kernel) => &kernel.vmlinuz,
        }
    }

    /// Its digest in the store of kernels, if it is from there.
    pub(crate) fn stored(&self) -> Option<&str> {
        match self {
            Self::Stored(kernel) => Some(&kernel.digest),
            Self::Deb(_) | Self::Files { .. } => None,
        }
    }

    /// A digest of the contents: if it is the same, so are kernel and modules.
    pub(crate) fn digest(&self) -> Result<blake3::Hash, SourceError> {
        let mut hasher = blake3::Hasher::new();
        match self {
            Self::Deb(path) => hash_file(&mut hasher, path)?,
            Self::Stored(kernel) => _ = hasher.update(kernel.digest.as_bytes()),
            Self::Files { vmlinuz, modules_dir } => {
                hash_file(&mut hasher, vmlinuz)?;
                let io_error = |source| SourceError::Io { path: modules_dir.clone(), source };
                let paths = ModuleFiles::Directory(modules_dir.clone()).paths();
                for path in paths.map_err(|error| io_error(io::Error::other(error)))? {
                    let metadata = fs::metadata(modules_dir.join(&path)).map_err(io_error)?;
                    let time = std::os::unix::fs::MetadataExt::mtime(&metadata);
                    hasher.update(format!("{path}\0{}\0{time}\0", metadata.len()).as_bytes());
                }
            }
        }
        Ok(hasher.finalize())
    }

    /// Reads the kernel and its modules.
    pub(crate) fn read(&self) -> Result<KernelFiles, SourceError> {
        match self {
            Self::Deb(path) => read_deb(path),
            Self::Files { vmlinuz, modules_dir } => {
                let release = modules_dir.file_name().filter(|_| modules_dir.is_dir()).map(str::to_owned);
                Ok(KernelFiles {
                    release: release.ok_or(SourceError::Unusable {
                        path: modules_dir.clone(),
                        problem: "is not the directory of a kernel's modules",
                    })?,
                    vmlinuz: fs::read(vmlinuz).map_err(|source| SourceError::Io { path: vmlinuz.clone(), source })?,
                    modules: ModuleFiles::Directory(modules_dir.clone()),
                    config: None,
                })
            }
            Self::Stored(kernel) => {
                let modules = match &kernel.modules {
                    Some(path) => {
                        ModuleFiles::erofs(path).map_err(|source| SourceError::Io { path: path.clone(), source })?
                    }
                    None => ModuleFiles::none(),
                };
                let read = fs::read(&kernel.vmlinuz);
                let vmlinuz = read.map_err(|source| SourceError::Io { path: kernel.vmlinuz.clone(), source })?;
                Ok(KernelFiles { release: kernel.release.clone(), vmlinuz, modules, config: None })
            }
        }
    }
}

fn hash_file(hasher: &mut blake3::Hasher, path: &Utf8Path) -> Result<(), SourceError> {
    let mut file = fs::File::open(path).map_err(|source| SourceError::Io { path: path.into(), source })?;
    io::copy(&mut file, hasher).map_err(|source| SourceError::Io { path: path.into(), source })?;
    Ok(())
}

/// Kernel and modules are kept in memory, so the disk needs room only for the image.
fn read_deb(deb: &Utf8Path) -> Result<KernelFiles, SourceError> {
    let unusable = |problem| SourceError::Unusable { path: deb.into(), problem };
    let wanted = |path: &Utf8Path| {
        path.starts_with("lib/modules")
            || path.starts_with("usr/lib/modules")
            || path.as_str().starts_with("boot/vmlinuz-")
            || path.as_str().starts_with(CONFIG_PREFIX)
    };
    let mut release = None;
    let mut vmlinuz = None;
    let mut config = None;
    let mut modules = BTreeMap::new();
    for (path, bytes) in read_package(deb, wanted)? {
        if let Some(name) = path.as_str().strip_prefix("boot/vmlinuz-") {
            release = Some(name.to_owned());
            vmlinuz = Some(bytes);
        } else if path.as_str().starts_with(CONFIG_PREFIX) {
            config = Some(bytes);
        } else {
            // lib/modules/<release>/<path>
            let path = path.strip_prefix("usr").unwrap_or(&path);
            modules.insert(path.components().skip(3).collect(), bytes);
        }
    }
    Ok(KernelFiles {
        release: release.ok_or_else(|| unusable("is not a kernel package: it has no `/boot/vmlinuz-*`"))?,
        vmlinuz: vmlinuz.ok_or_else(|| unusable("is not a kernel package: it has no `/boot/vmlinuz-*`"))?,
        modules: ModuleFiles::Memory(modules),
        config,
    })
}

/// The wanted files of a package, by their paths without the leading `./`.
fn read_package(
    deb: &Utf8Path,
    wanted: impl Fn(&Utf8Path) -> bool,
) -> Result<BTreeMap<Utf8PathBuf, Vec<u8>>, SourceError> {
    if let Err(source) = fs::File::open(deb) {
        return Err(SourceError::Io { path: deb.into(), source });
    }
    let mut files = BTreeMap::new();
    let absolute = deb.canonicalize_utf8().map_err(|source| SourceError::Io { path: deb.into(), source })?;
    let mut unpack = kiln_programs::command("dpkg-deb", PATH_ONLY);
    command::stream(unpack.arg("--fsys-tarfile").arg(absolute), UNPACK_DEADLINE, |stdout| {
        let mut left = PACKAGE_BYTES_MAX;
        for entry in tar::Archive::new(stdout).entries()? {
            let entry = entry?;
            let name = entry.path_bytes().into_owned();
            let Ok(name) = std::str::from_utf8(&name) else { continue };
            let path = Utf8Path::new(name.strip_prefix("./").unwrap_or(name));
            if !entry.header().entry_type().is_file() || !wanted(path) {
                continue;
            }
            let size = entry.size();
            left = left.checked_sub(size).ok_or_else(|| io::Error::other("the package is too large"))?;
            let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
            entry.take(size).read_to_end(&mut bytes)?;
            files.insert(path.to_owned(), bytes);
        }
        Ok(())
    })?;
    Ok(files)
}

/// Copies the first wanted file of a package, whatever its size is.
pub(crate) fn copy_member(
    deb: &Utf8Path,
    wanted: impl Fn(&Utf8Path) -> bool,
    out: &mut dyn io::Write,
) -> Result<(), SourceError> {
    let mut found = false;
    let mut unpack = kiln_programs::command("dpkg-deb", PATH_ONLY);
    command::stream(unpack.arg("--fsys-tarfile").arg(deb), UNPACK_DEADLINE, |stdout| {
        for entry in tar::Archive::new(stdout).entries()? {
            let mut entry = entry?;
            let name = entry.path_bytes().into_owned();
            let Ok(name) = std::str::from_utf8(&name) else { continue };
            let path = Utf8Path::new(name.strip_prefix("./").unwrap_or(name));
            if !found && entry.header().entry_type().is_file() && wanted(path) {
                found = true;
                io::copy(&mut entry, out)?;
            }
        }
        Ok(())
    })?;
    if found { Ok(()) } else { Err(SourceError::Unusable { path: deb.into(), problem: "has no such file" }) }
}

/// A static busybox.
#[derive(Debug)]
pub(crate) struct Busybox {
    pub(crate) bytes: Vec<u8>,
    /// The paths of its programs, such as `usr/bin/awk`.
    pub(crate) applets: Vec<Utf8PathBuf>,
}

/// Finds busybox: the installed one; if there is none, one from the cache, and then one that apt can download.
pub(crate) fn find_busybox(cache: &Utf8Path, progress: &mut dyn FnMut(BuildStep)) -> Result<Busybox, SourceError> {
    for path in BUSYBOX_PATHS {
        if let Ok(bytes) = fs::read(path)
            && busybox::is_static(&bytes)
        {
            return with_applets(bytes, path.into());
        }
    }
    busybox_from_package(&mut PackageCache::new(cache, progress))
}

fn busybox_from_package(cache: &mut PackageCache<'_>) -> Result<Busybox, SourceError> {
    let deb = match cache.newest(|name| name == BUSYBOX_PACKAGE)? {
        Some(deb) => deb,
        None => match cache.fetch(&Apt::of_host(), BUSYBOX_PACKAGE) {
            Err(SourceError::NoSpace(error)) => return Err(error.into()),
            other => other.map_err(|error| {
                let (cache, refused) = (cache.directory().into(), cache.refused());
                SourceError::NoBusybox { cache, refused, apt: error.to_string() }
            })?,
        },
    };
    let files = read_package(&deb, |path| path.file_name() == Some("busybox") && path.as_str().contains("bin/"))?;
    match files.into_values().find(|bytes| busybox::is_static(bytes)) {
        Some(bytes) => with_applets(bytes, deb),
        None => Err(SourceError::Unusable { path: deb, problem: "has no static busybox" }),
    }
}

fn with_applets(bytes: Vec<u8>, path: Utf8PathBuf) -> Result<Busybox, SourceError> {
    match busybox::applets(&bytes) {
        Some(applets) => Ok(Busybox { bytes, applets }),
        None => Err(SourceError::Unusable { path, problem: "has no table of programs, so it is not a busybox" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_package_is_the_one_with_the_highest_numbers() {
        let old = "linux-image-6.1.0-9-cloud-amd64_6.1.27-1_amd64.deb";
        let new = "linux-image-6.1.0-44-cloud-amd64_6.1.164-1_amd64.deb";
        let newer = "linux-image-6.12.3-cloud-amd64_6.12.3-1_amd64.deb";
        assert!(version_key(old) < version_key(new) && version_key(new) < version_key(newer));
    }

    #[test]
    fn a_version_is_not_the_start_of_another() {
        let (old, new) = ("linux-image-6.1.0-48-cloud-amd64", "linux-image-6.12.95+deb12-cloud-amd64");
        assert!(is_kernel_of(old, "6.1") && is_kernel_of(old, "6.1.0") && is_kernel_of(new, "6.12"));
        assert!(is_kernel_of(new, "6.12.95"));
        for (package, version) in [(new, "6.1"), (new, "6.12.9"), (old, "6"), ("linux-image-6.1.0-48-amd64", "6.1")] {
            assert_eq!(is_kernel_of(package, version), version == "6", "{package} {version}");
        }
    }

    #[test]
    fn other_packages_are_no_kernels() {
        assert!(is_kernel_package("linux-image-6.1.0-9-cloud-amd64"));
        for other in ["linux-image-cloud-amd64", "linux-image-6.1.0-9-amd64", "busybox-static", ""] {
            assert!(!is_kernel_package(other), "{other}");
        }
    }

    #[test]
    fn a_file_that_is_not_a_package_is_refused_with_its_name() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let deb = Utf8PathBuf::from_path_buf(dir.path().join("x.deb")).expect("UTF-8");
        assert!(KernelPackage::Deb(deb.clone()).read().expect_err("is not there").to_string().contains(deb.as_str()));
        fs::write(&deb, "rubbish").expect("is written");
        let words = KernelPackage::Deb(deb.clone()).read().expect_err("is rubbish").to_string();
        assert!(words.contains("dpkg-deb") && words.contains("x.deb"), "{words}");
    }

    #[test]
    fn a_missing_kernel_is_an_error_with_the_package_to_install() {
        let error = SourceError::NoKernel {
            cache: "/c".into(),
            refused: " (`x.deb` is damaged)".into(),
            apt: "`apt-get` was not found".into(),
        };
        assert!(error.hint().is_some_and(|hint| hint.contains("apt-get install linux-image-cloud-amd64")));
        let words = error.to_string();
        assert!(
            words.contains("`apt-get` was not found") && words.contains("none in `/c` (`x.deb` is damaged)"),
            "{words}"
        );
    }
}
