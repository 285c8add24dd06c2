//! Builds the image `mini`. Everything is assembled in memory, so an image is written as a whole or not at all.

use std::fmt;
use std::os::fd::AsFd as _;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use rustix::fs::FlockOperation;

use super::error::ImageError;
use super::packages::{self, KernelSource};
use super::recipe::{self, MINI};
use super::store::{FileEntry, Image, ImageStore, Manifest};
use super::{modules, space};
use crate::files::{Partial, private_file};
use crate::kernel::{self, elf::Elf};

/// A build takes seconds, plus the time of its downloads.
const LOCK_DEADLINE: Duration = Duration::from_secs(20 * 60);
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// For the manifest and the filesystem's own needs.
const SPARE_BYTES: u64 = 1 << 20;
/// An agent has some 2 MiB.
const AGENT_BYTES_MAX: u64 = 64 << 20;
const INITRAMFS: &str = "initramfs";
/// Digits of a kernel's digest in the name of its image.
const KERNEL_DIGITS: usize = 12;

/// What an image is built from.
pub struct BuildOptions<'a> {
    /// The agent: a static program for x86-64.
    pub agent: Utf8PathBuf,
    /// Where the kernel comes from.
    pub kernel: KernelSource,
    /// Called with each step as it begins.
    pub progress: &'a mut dyn FnMut(BuildStep),
}

/// A step of a build. Its text is for users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildStep {
    /// Waits for another build of the same image.
    Waiting {
        /// The file that the other build has locked.
        lock: Utf8PathBuf,
    },
    /// Downloads a package. This happens once.
    Downloading {
        /// Its file.
        file: String,
    },
    /// A package in the cache is not used.
    Refused {
        /// Its file.
        file: String,
        /// Why.
        problem: &'static str,
    },
    /// This image was built before, but was changed since, so it is built again.
    Repairing {
        /// What is wrong.
        problem: String,
    },
    /// This image exists already.
    Unchanged,
    /// Reads the kernel and its modules.
    Unpacking {
        /// The package or kernel.
        path: Utf8PathBuf,
    },
    /// Assembles the image.
    Packing {
        /// The kernel's release.
        kernel_version: String,
        /// The number of its modules.
        modules: usize,
    },
    /// Boots the image, to find out whether this little memory is enough.
    Booting {
        /// The guest's memory.
        memory_mib: u64,
    },
    /// Writes the image.
    Writing {
        /// Its size.
        bytes: u64,
    },
}

impl fmt::Display for BuildStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting { lock } => write!(f, "waiting for another build, which has locked `{lock}`"),
            Self::Downloading { file } => write!(f, "downloading {file}"),
            Self::Refused { file, problem } => write!(f, "{file} {problem}"),
            Self::Repairing { problem } => write!(f, "{problem}"),
            Self::Unchanged => f.write_str("nothing has changed"),
            Self::Unpacking { path } => write!(f, "unpacking {path}"),
            Self::Packing { kernel_version, modules } => {
                write!(f, "packing Linux {kernel_version} with {modules} modules")
            }
            Self::Booting { memory_mib } => write!(f, "booting it with {memory_mib} MiB"),
            Self::Writing { bytes } => write!(f, "writing {} MiB", bytes.div_ceil(1 << 20)),
        }
    }
}

impl ImageStore {
    /// Builds the image `mini`, unless it was built from the same parts already. Builds of the same image wait for each
    /// other. A failed build leaves only its downloads.
    ///
    /// # Errors
    /// [`ImageError`]; [`ImageError::hint`] often has a remedy.
    pub fn build_mini(&self, options: BuildOptions<'_>) -> Result<Image, ImageError> {
        let BuildOptions { agent, kernel: source, progress } = options;
        let agent = read_agent(&agent)?;
        let name = mini_name(&source);
        let _lock = self.lock(MINI, LOCK_DEADLINE, progress)?;

        let cache = self.home.cache();
        let package = packages::find_kernel(&source, &cache, progress)?;
        let busybox = packages::find_busybox(&cache, progress)?;
        let agent_digest = blake3::hash(&agent).to_hex().to_string();
        let inputs = inputs(&package.digest()?, &agent_digest, &busybox.bytes);
        if let Some(image) = self.made_from(&inputs, progress)? {
            progress(BuildStep::Unchanged);
            self.set_name(&name, &image.digest)?;
            return Ok(image);
        }

        progress(BuildStep::Unpacking { path: package.path().into() });
        let files = package.read()?;
        let release = files.release;
        // A kernel of the store was checked when it was added: what is not a module of it is built in.
        let (required, all) =
            (&recipe::MODULES_REQUIRED[..], [recipe::MODULES_REQUIRED.as_slice(), &recipe::MODULES_OPTIONAL].concat());
        let required = if package.stored().is_some() { &[] } else { required };
        let chosen =
            modules::choose(&files.modules, required, &all).map_err(|error| ImageError::modules(&release, &error))?;
        drop(files.modules);
        progress(BuildStep::Packing { kernel_version: release.clone(), modules: chosen.names.len() });
        let kernel = kernel::unpack(files.vmlinuz).ok_or_else(|| ImageError::NoKernel { release: release.clone() })?;
        let initramfs = recipe::initramfs(agent, busybox, &release, &chosen).to_cpio()?;

        let kernel_entry = FileEntry::of(kernel.format.file_name(), &kernel.bytes);
        let initramfs_entry = FileEntry::of(INITRAMFS, &initramfs);
        let manifest = Manifest {
            format: Manifest::FORMAT,
            name,
            digest: Manifest::digest_of(&kernel_entry, &initramfs_entry, recipe::CMDLINE),
            kernel: kernel_entry,
            kernel_format: kernel.format,
            kernel_version: release,
            initramfs: initramfs_entry,
            cmdline: recipe::CMDLINE.into(),
            agent_digest,
            kernel_package: package.is_from(&cache).then(|| package.path().file_name().map(str::to_owned)).flatten(),
            kernel_digest: package.stored().map(str::to_owned),
            memory_mib_min: None,
            warm: Vec::new(),
            inputs,
            modules: chosen.names,
            created_unix_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
        };
        self.write(&manifest, &kernel.bytes, &initramfs, progress)?;
        self.replace_name(&manifest.name.parse()?, &manifest.digest)?;
        self.load(&manifest.digest)
    }

    /// The name of `mini` with a kernel of the store, by the kernel's digest. If the kernel is the one that `mini` has,
    /// both names are of the same image.
    pub fn name_with_kernel(digest: &str) -> String {
        format!("{MINI}:{}", digest.chars().take(KERNEL_DIGITS).collect::<String>())
    }

    /// The image `mini` with a kernel of the store, by the kernel's digest, if it was built.
    ///
    /// # Errors
    /// The store can't be read.
    pub fn with_kernel(&self, digest: &str) -> Result<Option<Image>, ImageError> {
        match self.find_boot(&Self::name_with_kernel(digest)) {
            Ok(image) => Ok(Some(image)),
            // A damaged one is built again.
            Err(ImageError::Unknown { .. } | ImageError::Damaged { .. } | ImageError::NoBoot { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write(
        &self,
        manifest: &Manifest,
        kernel: &[u8],
        initramfs: &[u8],
        progress: &mut dyn FnMut(BuildStep),
    ) -> Result<(), ImageError> {
        let images = self.home.images();
        let final_dir = self.dir(&manifest.digest);
        let bytes = (kernel.len() + initramfs.len()) as u64;
        // Other inputs may have led to the same image.
        if self.load(&manifest.digest).and_then(|image| image.verify()).is_ok() {
            return Ok(());
        }
        self.discard(&manifest.digest)?;
        space::check(&images, bytes + SPARE_BYTES)?;
        progress(BuildStep::Writing { bytes });
        let write = || {
            let partial = Partial::create(&images, MINI)?;
            private_file::write_new(&partial.path().join(&manifest.kernel.file), kernel)?;
            private_file::write_new(&partial.path().join(&manifest.initramfs.file), initramfs)?;
            manifest.write(partial.path())?;
            partial.publish(&final_dir)
        };
        write().map_err(|error| match space::explain(&final_dir, bytes + SPARE_BYTES, error) {
            Ok(no_space) => no_space.into(),
            Err(other) => ImageError::io(&final_dir)(other),
        })
    }

    /// Locks out other builds of the same image until the file is closed.
    fn lock(
        &self,
        name: &str,
        deadline: Duration,
        progress: &mut dyn FnMut(BuildStep),
    ) -> Result<fs::File, ImageError> {
        let directory = self.home.images().join("locks");
        private_file::create_dir_all(&directory).map_err(ImageError::io(&directory))?;
        let path = directory.join(name);
        let file = private_file::lock_file(&path).map_err(ImageError::io(&path))?;
        let start = Instant::now();
        let mut told = false;
        loop {
            match rustix::fs::flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK) if start.elapsed() < deadline => {
                    if !told {
                        progress(BuildStep::Waiting { lock: path.clone() });
                        told = true;
                    }
                    // The kernel can't wait for a lock with a deadline.
                    thread::sleep(LOCK_POLL_INTERVAL);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(ImageError::Busy { name: name.into(), lock: path, waited: deadline });
                }
                Err(error) => return Err(ImageError::io(&path)(error.into())),
            }
        }
    }
}

/// The name of `mini` with this kernel. With a kernel of the store, it is beside the ordinary one.
fn mini_name(source: &KernelSource) -> String {
    match source {
        KernelSource::Stored(kernel) => ImageStore::name_with_kernel(&kernel.digest),
        _ => MINI.into(),
    }
}

fn read_agent(path: &Utf8Path) -> Result<Vec<u8>, ImageError> {
    let unusable = |problem| ImageError::Agent { path: path.into(), problem };
    let metadata = fs::metadata(path).map_err(ImageError::io(path))?;
    if !metadata.is_file() || metadata.len() > AGENT_BYTES_MAX {
        return Err(unusable("is not a file of a program's size"));
    }
    let bytes = fs::read(path).map_err(ImageError::io(path))?;
    match Elf::parse(&bytes) {
        None => Err(unusable("is not a program for x86-64 Linux")),
        Some(elf) if elf.has_interpreter() => Err(unusable("is not static: a guest has no libraries for it")),
        Some(_) => Ok(bytes),
    }
}

/// A digest of everything that decides the content of the image.
fn inputs(kernel: &blake3::Hash, agent_digest: &str, busybox: &[u8]) -> String {
    let busybox = blake3::hash(busybox);
    let text = format!(
        "{MINI} {}\nkernel {kernel}\nagent {agent_digest}\nbusybox {busybox}\ncmdline {}\nmodules {:?} {:?}\n",
        recipe::VERSION,
        recipe::CMDLINE,
        recipe::MODULES_REQUIRED,
        recipe::MODULES_OPTIONAL,
    );
    blake3::hash(text.as_bytes()).to_hex().to_string()
}
