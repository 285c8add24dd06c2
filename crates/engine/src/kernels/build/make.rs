//! The build itself: the kernel's own `make`, its progress, and what comes of it.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use kiln_programs::PATH_ONLY;

use super::fragments::{self, ConfigName};
use super::source::BuildSource;
use crate::files::{Partial, plain_file, private_file};
use crate::image::command::{self, CommandError};
use crate::image::{BuildStep, SourceError};
use crate::kernel::config::{CONFIG_BYTES_MAX, KernelConfig};
use crate::kernels::add::{AddKernel, AddStep, Added, KernelInput};
use crate::kernels::error::KernelError;
use crate::kernels::name::KernelName;
use crate::kernels::store::KernelStore;

/// Increased whenever the same source and configuration give another kernel.
const RECIPE: u32 = 1;
/// A whole kernel with the address sanitizer on one CPU.
const DEADLINE: Duration = Duration::from_secs(8 * 60 * 60);
const QUERY_DEADLINE: Duration = Duration::from_secs(60);
const QUERY_BYTES_MAX: u64 = 64 << 10;
/// Lines of a failed build that its error has.
const LINES_KEPT: usize = 12;
/// Longest line of a build that is looked at.
const LINE_BYTES_MAX: u64 = 16 << 10;
/// The kernel, below the directory of the build.
const KERNEL: &str = "arch/x86/boot/bzImage";
/// What is the same in each build, so that the same kernel comes of the same source.
const REPRODUCIBLE: [(&str, &str); 3] = [
    ("KBUILD_BUILD_TIMESTAMP", "1970-01-01 00:00:00 UTC"),
    ("KBUILD_BUILD_USER", "kiln"),
    ("KBUILD_BUILD_HOST", "kiln"),
];

/// A kernel to build.
pub struct BuildKernel<'a> {
    /// What it is built from.
    pub source: BuildSource,
    /// What it has.
    pub config: ConfigName,
    /// Compilers that run at once.
    pub jobs: u32,
    /// Its name. If absent, that of the configuration.
    pub name: Option<KernelName>,
    /// Called with each step as it begins, and with each file that is compiled.
    pub progress: &'a mut dyn FnMut(MakeStep),
}

/// A step of a build. Its text is for users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MakeStep {
    /// Looks for the package of the source, or downloads it.
    Package(BuildStep),
    /// This kernel was built before.
    Unchanged,
    /// Unpacks the source.
    Unpacking {
        /// Its name.
        source: String,
    },
    /// Completes the configuration and compares it with what was requested.
    Configuring {
        /// Its name.
        config: ConfigName,
    },
    /// Compiles.
    Compiling {
        /// Files so far.
        files: usize,
        /// The last one.
        file: String,
    },
    /// Adds the kernel to the store.
    Adding(AddStep),
}

impl fmt::Display for MakeStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Package(step) => step.fmt(f),
            Self::Unchanged => f.write_str("nothing has changed"),
            Self::Unpacking { source } => write!(f, "unpacking {source}"),
            Self::Configuring { config } => write!(f, "configuring {config}"),
            Self::Compiling { files, file } => write!(f, "{files} files compiled, {file}"),
            Self::Adding(step) => step.fmt(f),
        }
    }
}

/// Why a kernel was not built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A path is not a source.
    #[error("`{path}` is neither a directory with the source of Linux nor an archive of one")]
    NotASource {
        /// The path.
        path: Utf8PathBuf,
    },
    /// The package was not found.
    #[error(transparent)]
    Package(#[from] SourceError),
    /// A program is missing, or failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Options did not survive.
    #[error("`{source_name}` does not accept the configuration `{config}`: it loses {}", options.join(", "))]
    Lost {
        /// The source.
        source_name: String,
        /// The configuration.
        config: ConfigName,
        /// The options, each with what it is instead.
        options: Vec<String>,
    },
    /// make failed.
    #[error("`make {target}` failed: {}", lines.join("; "))]
    Make {
        /// What was to be made.
        target: String,
        /// The end of its output.
        lines: Vec<String>,
    },
    /// The kernel is not accepted.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A file can't be read or written.
    #[error("failed to read or write `{path}`")]
    Io {
        /// The file or directory.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl BuildError {
    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        let tools = "as root: apt-get install make gcc flex bison bc libelf-dev xz-utils";
        match self {
            Self::NotASource { .. } => {
                Some("--source 6.1 takes Debian's; the archive of a source has one directory".into())
            }
            Self::Package(error) => error.hint().map(str::to_owned),
            Self::Command(CommandError::Missing { .. }) | Self::Make { .. } => Some(tools.into()),
            Self::Lost { .. } => Some("a source of another version may have these options under other names".into()),
            Self::Kernel(error) => error.hint(),
            Self::Command(_) | Self::Io { .. } => None,
        }
    }

    /// Whether it is because [`cancel_programs`](crate::image::cancel_programs) was called.
    pub fn is_interrupt(&self) -> bool {
        match self {
            Self::Command(error) | Self::Package(SourceError::Command(error)) => {
                matches!(error, CommandError::Cancelled)
            }
            Self::Kernel(error) => error.is_interrupt(),
            _ => false,
        }
    }

    pub(super) fn io(path: &Utf8Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Io { path, source }
    }
}

impl KernelStore {
    /// Builds a kernel and adds it, unless it was built from the same source with the same configuration and compiler.
    ///
    /// # Errors
    /// [`BuildError`]. Nothing of the build is left then, except a downloaded source.
    pub fn build(&self, request: BuildKernel<'_>) -> Result<Added, BuildError> {
        let BuildKernel { source, config, jobs, name, progress } = request;
        self.sweep()?;
        let name = match name {
            Some(name) => name,
            None => config.name().parse().map_err(KernelError::from)?,
        };
        let found = source.find(&self.home, &mut |step| progress(MakeStep::Package(step)))?;
        let requested = config.text();
        let text = format!("kernel {RECIPE}\n{}\n{}\n{requested}", found.digest, compiler()?);
        let key = blake3::hash(text.as_bytes()).to_hex().to_string();
        if let Some(kernel) = self.built_as(&key)? {
            progress(MakeStep::Unchanged);
            self.set_name(&name, &kernel.digest)?;
            return Ok(Added { kernel, name, is_new: false });
        }
        let cache = self.home.cache();
        let work = Partial::create(&cache, "build").map_err(BuildError::io(&cache))?;
        progress(MakeStep::Unpacking { source: found.name.clone() });
        let tree = found.unpack(work.path())?;
        progress(MakeStep::Configuring { config });
        let (out, fragment) = (work.path().join("out"), work.path().join("requested.config"));
        private_file::create_dir(&out).map_err(BuildError::io(&out))?;
        private_file::write_new(&fragment, requested.as_bytes()).map_err(BuildError::io(&fragment))?;
        let mut make = Make { tree: &tree, out: &out, progress };
        make.run("allnoconfig", &[format!("KCONFIG_ALLCONFIG={fragment}")])?;
        make.run("olddefconfig", &[])?;
        let path = out.join(".config");
        let got = plain_file::read(&path, CONFIG_BYTES_MAX as u64).map_err(BuildError::io(&path))?;
        let got = KernelConfig::parse(&got).ok_or_else(|| KernelError::BadConfig { path: path.clone() })?;
        let options = fragments::lost(&requested, &got);
        if !options.is_empty() {
            return Err(BuildError::Lost { source_name: found.name, config, options });
        }
        make.run("bzImage", &[format!("-j{}", jobs.max(1))])?;
        let Make { progress, .. } = make;
        let added = self.add(AddKernel {
            input: KernelInput::File(out.join(KERNEL)),
            modules: None,
            config: Some(path),
            name: Some(name),
            source: Some(format!("{}, {config}", found.name)),
            build_key: Some(key),
            progress: &mut |step| progress(MakeStep::Adding(step)),
        })?;
        Ok(added)
    }
}

/// The compiler, as it describes itself.
fn compiler() -> Result<String, CommandError> {
    command::output(kiln_programs::command("gcc", PATH_ONLY).arg("--version"), QUERY_DEADLINE, QUERY_BYTES_MAX)
}

/// `make` in a source, with another directory for what is made.
struct Make<'a, 'b> {
    tree: &'a Utf8Path,
    out: &'a Utf8Path,
    progress: &'b mut dyn FnMut(MakeStep),
}

impl Make<'_, '_> {
    fn run(&mut self, target: &str, arguments: &[String]) -> Result<(), BuildError> {
        // Errors come among the other lines, and the last lines are what a failed build is explained by.
        let mut make = kiln_programs::command("sh", PATH_ONLY);
        make.args(["-c", "exec nice -n 10 make \"$@\" 2>&1", "sh", "-C", self.tree.as_str()]);
        make.arg(format!("O={}", self.out)).args(arguments).arg(target).envs(REPRODUCIBLE);
        let (mut last, mut files) = (VecDeque::new(), 0);
        let progress = &mut *self.progress;
        let ran = command::stream(&mut make, DEADLINE, |output| {
            each_line(output, |line| {
                if let Some(file) = compiled(line) {
                    files += 1;
                    progress(MakeStep::Compiling { files, file: file.to_owned() });
                }
                if last.len() == LINES_KEPT {
                    last.pop_front();
                }
                last.push_back(line.to_owned());
            })
        });
        match ran {
            Err(CommandError::Failed { .. }) => Err(BuildError::Make {
                target: target.to_owned(),
                lines: last.into_iter().filter(|line: &String| !line.is_empty()).collect(),
            }),
            other => Ok(other?),
        }
    }
}

/// The file in a line such as `  CC      kernel/fork.o`.
fn compiled(line: &str) -> Option<&str> {
    let mut words = line.split_ascii_whitespace();
    let (tool, file) = (words.next()?, words.next()?);
    (matches!(tool, "CC" | "AS" | "AR" | "LD") && line.starts_with(' ')).then_some(file)
}

fn each_line(output: &mut dyn Read, mut take: impl FnMut(&str)) -> io::Result<()> {
    let mut reader = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        take(String::from_utf8_lossy(&line).trim_end());
    }
}

#[cfg(test)]
mod tests {
    use fs_err as fs;

    use super::*;
    use crate::every_variant::{chains, every_variant};
    use crate::home::Home;
    use crate::kernel::elf::made;
    use crate::kernel::made::{bzimage_of, gzip};

    const PVH: (&str, u32, &[u8]) = ("Xen", 18, &[0, 0, 0, 1]);
    /// A Makefile that answers as the kernel's does: the options that it knows survive, and a kernel comes of them.
    const MAKEFILE: &str = "\
allnoconfig:\n\tgrep -v LOST $(KCONFIG_ALLCONFIG) >$(O)/.config\n\
olddefconfig:\n\tif test -e lose; then sed -i s/CONFIG_EROFS_FS=y/CONFIG_EROFS_FS=m/ $(O)/.config; fi\n\
bzImage:\n\t@echo '  CC      kernel/fork.o'\n\t@echo '  LD      vmlinux'\n\ttest ! -e broken\n\
\tmkdir -p $(O)/arch/x86/boot\n\tcp kernel.bin $(O)/arch/x86/boot/bzImage\n\techo x >>$(CURDIR)/../built\n";

    struct Place {
        _directory: tempfile::TempDir,
        root: Utf8PathBuf,
        store: KernelStore,
    }

    impl Place {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let root = Utf8PathBuf::from_path_buf(directory.path().into()).expect("UTF-8");
            fs::create_dir(root.join("linux")).expect("made");
            fs::write(root.join("linux/Makefile"), MAKEFILE).expect("written");
            let vmlinux = made::elf(".text", b"code", &[PVH]);
            fs::write(root.join("linux/kernel.bin"), bzimage_of("6.1.0-built", &gzip(&vmlinux))).expect("written");
            let store = KernelStore::new(&Home::at(root.join("home")));
            Self { _directory: directory, root, store }
        }

        fn build(&self, config: ConfigName, source: &str) -> (Result<Added, BuildError>, Vec<MakeStep>) {
            let mut steps = Vec::new();
            let built = self.store.build(BuildKernel {
                source: BuildSource::Path(self.root.join(source)),
                config,
                jobs: 2,
                name: None,
                progress: &mut |step| steps.push(step),
            });
            (built, steps)
        }

        fn builds(&self) -> usize {
            fs::read_to_string(self.root.join("built")).unwrap_or_default().lines().count()
        }

        fn left(&self) -> Vec<Utf8PathBuf> {
            crate::files::partials(&self.root.join("home/cache")).expect("reads")
        }
    }

    #[test]
    fn a_kernel_is_built_once_for_a_source_and_a_configuration() {
        let place = Place::new();
        let (built, steps) = place.build(ConfigName::Lean, "linux");
        let built = built.expect("is built");
        assert!(built.is_new && built.kernel.release == "6.1.0-built" && built.kernel.missing.is_empty());
        assert_eq!(built.name.as_str(), "lean");
        let texts: Vec<_> = steps.iter().map(ToString::to_string).filter(|text| text.contains("compiled")).collect();
        assert_eq!(texts, ["1 files compiled, kernel/fork.o", "2 files compiled, vmlinux"]);

        let (again, steps) = place.build(ConfigName::Lean, "linux");
        assert_eq!((again.expect("is there").kernel, place.builds()), (built.kernel.clone(), 1));
        assert!(steps.contains(&MakeStep::Unchanged));
        place.build(ConfigName::Kasan, "linux").0.expect("another configuration");
        assert_eq!(place.builds(), 2);
        fs::write(place.root.join("linux/new.c"), "changed").expect("written");
        place.build(ConfigName::Lean, "linux").0.expect("another source");
        assert_eq!((place.builds(), place.left()), (3, vec![]));
    }

    #[test]
    fn an_archive_is_unpacked_and_nothing_of_it_stays() {
        let place = Place::new();
        let status = std::process::Command::new("tar")
            .args(["--create", "--gzip", "--file", place.root.join("linux.tar.gz").as_str()])
            .args(["--directory", place.root.as_str(), "linux"])
            .status();
        assert!(status.expect("runs").success());
        place.build(ConfigName::Lockdep, "linux.tar.gz").0.expect("is built");
        assert_eq!(place.left(), [] as [Utf8PathBuf; 0]);
    }

    #[test]
    fn an_option_that_does_not_survive_stops_the_build_by_name() {
        let place = Place::new();
        fs::write(place.root.join("linux/lose"), "").expect("written");
        let error = place.build(ConfigName::Lean, "linux").0.expect_err("an option is lost");
        let words = error.to_string();
        assert!(words.contains("`lean`: it loses CONFIG_EROFS_FS=y (it is m)"), "{words}");
        assert_eq!((place.builds(), place.left()), (0, vec![]));
    }

    #[test]
    fn a_build_that_fails_shows_its_last_lines_and_leaves_nothing() {
        let place = Place::new();
        fs::write(place.root.join("linux/broken"), "").expect("written");
        let error = place.build(ConfigName::Lean, "linux").0.expect_err("fails");
        assert!(matches!(&error, BuildError::Make { target, .. } if target == "bzImage"), "{error}");
        assert!(error.to_string().contains("test ! -e broken"), "{error}");
        assert_eq!(place.left(), [] as [Utf8PathBuf; 0]);
        for not_one in ["home", "nowhere", "linux/Makefile"] {
            place.build(ConfigName::Lean, not_one).0.expect_err("is not a source");
        }
    }

    #[test]
    fn each_error_has_its_text_and_a_hint() {
        let errors = every_variant!(BuildError {
            NotASource: [BuildError::NotASource { path: "/s".into() }],
            Package: [BuildError::Package(SourceError::Unusable {
                path: "linux-source-7.0".into(),
                problem: "is unknown"
            })],
            Command: [BuildError::Command(CommandError::Missing { program: "gcc".into() })],
            Lost: [BuildError::Lost {
                source_name: "/s".into(),
                config: ConfigName::Kcov,
                options: vec!["CONFIG_KCOV=y (it is n)".into(), "CONFIG_KASAN=y (it is n)".into()],
            }],
            Make: [BuildError::Make {
                target: "bzImage".into(),
                lines: vec!["fork.c:1: error: x".into(), "make: *** Error 2".into()],
            }],
            Kernel: [BuildError::Kernel(KernelError::NotAKernel { path: "/k".into() })],
            Io: [BuildError::Io { path: "/k".into(), source: io::ErrorKind::PermissionDenied.into() }],
        });
        insta::assert_snapshot!(chains(&errors, |error| error
            .hint()
            .map(|hint| format!("hint: {hint}"))
            .into_iter()
            .collect()));
    }
}
