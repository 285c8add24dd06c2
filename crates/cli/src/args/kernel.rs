//! Arguments of `kiln kernel`, and the flags that choose a VM's kernel.

use camino::{Utf8Path, Utf8PathBuf};
use clap::{Args as ClapArgs, Subcommand};
use kiln_engine::kernels::{BuildSource, ConfigName, KernelInput, KernelName};

/// How a kernel of Debian's is named.
const DEBIAN: &str = "debian:";

/// The kernel of a VM.
#[derive(Debug, Clone, Default, ClapArgs)]
pub struct KernelChoice {
    /// Boot this kernel: a name, a release or a digest, see `kiln kernel ls` [default: that of mini]
    #[arg(long, value_name = "KERNEL", env = "KILN_KERNEL")]
    pub kernel: Option<String>,
    /// Attach all modules of the kernel, so that modprobe in the guest finds each of them
    ///
    /// Without this flag, the guest has the modules that Kiln needs: disks, networks, filesystems. With it, a read-only
    /// disk with all of them is mounted on /lib/modules/RELEASE. It is shared by all VMs of the kernel. Needs --kernel.
    #[arg(long, hide_short_help = true)]
    pub all_modules: bool,
}

/// Add, build, list, inspect and remove kernels.
///
/// Every VM boots the kernel of the image `mini`, unless `kiln run --kernel` names another one. Kernels are stored once,
/// in $KILN_HOME/kernels, by digest, with their modules and what they were built with. A kernel that lacks what Kiln
/// needs is refused before anything boots, and each missing option is named.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln kernel add debian:6.12\n  \
    kiln kernel add ./arch/x86/boot/bzImage --config .config --modules ./out --name mine\n  \
    kiln kernel build --config kasan\n  \
    kiln run --kernel 6.12 -- uname -r\n  \
    kiln kernel ls")]
pub struct KernelArgs {
    #[command(subcommand)]
    pub command: KernelCommand,
}

#[derive(Debug, Subcommand)]
pub enum KernelCommand {
    Add(KernelAddArgs),
    Build(KernelBuildArgs),
    /// List kernels
    #[command(visible_alias = "list")]
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print all that is known of a kernel, as JSON
    ///
    /// `missing` lists options that it lacks, each with what they are needed for.
    Inspect {
        /// Name, release or digest
        kernel: String,
    },
    /// Remove kernels, and the images and ready-made snapshots that were made with them
    ///
    /// Refuses if a snapshot needs it: the snapshot could not be restored any more. Refuses if a VM that was forked
    /// from a ready-made snapshot still runs. A kernel with several names loses only the one that is given.
    Rm {
        /// Names, releases or digests
        #[arg(required = true, value_name = "KERNEL")]
        kernels: Vec<String>,
        /// Remove it even if snapshots or VMs need it
        #[arg(long)]
        force: bool,
    },
}

/// Add a kernel.
///
/// SOURCE is debian:VERSION, such as debian:6.12, or a file. Debian's cloud kernels come through this host's apt, whose
/// lists have a digest of each; a version that only the backports have is found there. Nothing is installed, and no root
/// is needed. A file is a bzImage, an ELF file with a PVH entry point (CONFIG_PVH), or a Debian package of a kernel.
///
/// The options that Kiln needs are checked against the kernel's configuration: that of its package, the one within it
/// (CONFIG_IKCONFIG), or --config. An option that is a module counts if the module is there. A kernel without what each
/// VM needs is refused. One without what only some VMs need is added with a warning, and `kiln run` refuses those VMs.
///
/// Prints the kernel's digest.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln kernel add debian:6.1\n  \
    kiln kernel add ./linux-image-6.12.95_amd64.deb\n  \
    kiln kernel add ./bzImage --config ./.config\n  \
    kiln kernel add ./vmlinux --modules ./out/lib/modules/6.12.0 --name debug")]
pub struct KernelAddArgs {
    /// debian:VERSION, or a file
    #[arg(value_name = "SOURCE")]
    pub source: String,
    /// The kernel's modules: lib/modules/RELEASE, or a directory with that below it
    #[arg(long, value_name = "DIR")]
    pub modules: Option<Utf8PathBuf>,
    /// The configuration that it was built with
    #[arg(long, value_name = "FILE")]
    pub config: Option<Utf8PathBuf>,
    /// Its name [default: debian:VERSION, or its release]
    #[arg(long, value_name = "NAME")]
    pub name: Option<KernelName>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Build a kernel from source.
///
/// SOURCE is a version of which Debian has the source (6.1, the package linux-source-6.1), a directory, or an archive of
/// one. Everything is built in, so the kernel needs no modules.
///
/// lean has what VMs of Kiln need. kasan finds memory that is used after it was freed or outside of its bounds, lockdep
/// finds orders of locks that can block forever, kcov records for fuzzers what code ran. They make a VM slower, and
/// larger: give it -m 1G.
///
/// Each requested option is compared with what the kernel's own make came to; the build does not start if one is lost.
/// The same source with the same configuration and compiler is built once. A build takes from ten minutes to an hour.
///
/// Prints the kernel's digest.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln kernel build --config lean\n  \
    kiln kernel build --config kasan --source ./linux --jobs 8\n  \
    kiln run --kernel kasan -m 1G -- dmesg")]
pub struct KernelBuildArgs {
    /// What the kernel has: lean, kasan, lockdep or kcov
    #[arg(long, value_name = "CONFIG")]
    pub config: ConfigName,
    /// A version of Debian's source, a directory, or an archive
    #[arg(long, value_name = "SOURCE", default_value = "6.1")]
    pub source: String,
    /// Compilers that run at once [default: the number of CPUs]
    #[arg(long, value_name = "N")]
    pub jobs: Option<u32>,
    /// Its name [default: that of the configuration]
    #[arg(long, value_name = "NAME")]
    pub name: Option<KernelName>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl KernelBuildArgs {
    /// What it is built from. A file whose name is a version is written with `./`.
    pub fn input(&self) -> BuildSource {
        let version = self.source.strip_prefix("linux-source-").unwrap_or(&self.source);
        if is_version(version) {
            BuildSource::Debian { version: version.to_owned() }
        } else {
            BuildSource::Path(self.source.clone().into())
        }
    }
}

/// Numbers with points between them.
fn is_version(text: &str) -> bool {
    text.split('.').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
}

impl KernelAddArgs {
    /// Where the kernel comes from. A file whose name looks like Debian's is written with `./`.
    pub fn input(&self) -> Result<KernelInput, String> {
        let Some(version) = self.source.strip_prefix(DEBIAN) else {
            let path = Utf8Path::new(&self.source);
            return Ok(KernelInput::File(path.to_owned()));
        };
        if !is_version(version) {
            let shown = self.source.escape_debug();
            return Err(format!("`{shown}`: write debian: and a version of numbers, such as debian:6.12"));
        }
        Ok(KernelInput::Debian { version: version.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(source: &str) -> Result<KernelInput, String> {
        let (modules, config, name) = (None, None, None);
        KernelAddArgs { source: source.into(), modules, config, name, json: false }.input()
    }

    #[test]
    fn a_source_is_a_version_of_debian_or_a_file() {
        assert_eq!(input("debian:6.12"), Ok(KernelInput::Debian { version: "6.12".into() }));
        for file in ["./bzImage", "/boot/vmlinuz", "./debian:6.1"] {
            assert_eq!(input(file), Ok(KernelInput::File(file.into())));
        }
        let refused = ["debian:", "debian:6.", "debian:6.1-rt", "debian:$(x)", "debian:-o"];
        let lines = refused.map(|source| input(source).expect_err(source));
        insta::assert_snapshot!(lines.join("\n"));
    }
}
