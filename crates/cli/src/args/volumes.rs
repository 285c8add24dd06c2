//! `kiln volume`, and the flags of `kiln run` for volumes.

use std::path::PathBuf;

use camino::Utf8PathBuf;
use clap::{Args as ClapArgs, Subcommand};
use kiln_engine::volume::{Access, VOLUME_BYTES_MAX, VOLUME_BYTES_MIN, VolumeName};

use super::parse_size_bytes;

/// What the target of `-v` is called if a volume is attached as a disk.
const DISK: &str = "disk";
const FORMS: &str = "write NAME:/DIR, NAME:/DIR:ro, NAME:disk or ./SRC:/DIR:ro";

/// Create, list, inspect, grow, clone, export, import and remove volumes.
///
/// A volume is a disk with a name that outlives the VMs that use it: `kiln run -v NAME:/DIR`. One VM can write to it,
/// or any number can read it (`:ro`). It has an ext4 filesystem; with --raw it is an empty disk for the guest to use.
/// It takes only the space on the host that its guests have written to. Volumes are stored in $KILN_HOME/volumes.
///
/// If a VM ends without unmounting its volume (kiln was killed, the guest crashed), the next use repairs it first with
/// e2fsck and prints that.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln volume create data --size 2G\n  \
    kiln run -v data:/var/lib/x -- sh -c 'echo kept > /var/lib/x/f'\n  \
    kiln run -v data:/var/lib/x:ro -- cat /var/lib/x/f\n  \
    kiln volume clone data before\n  \
    kiln volume grow data 4G\n  \
    kiln volume export data data.img\n  \
    kiln volume rm data before")]
pub struct VolumeArgs {
    #[command(subcommand)]
    pub command: VolumeCommand,
}

#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Create an empty volume
    ///
    /// The file is sparse: it grows with what its guests write, up to the size.
    Create {
        /// Name of the new volume: letters, digits, `_`, `.` and `-`
        name: VolumeName,
        /// Its size: 64M, 2G, 1T
        #[arg(long, value_name = "SIZE", default_value = "10G", value_parser = parse_size_bytes)]
        size: u64,
        /// Make a disk without a filesystem
        #[arg(long)]
        raw: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List volumes
    ///
    /// States: clean; writing (a VM may be writing to it); dirty (its last VM did not unmount it, and the next use
    /// repairs it); errors (the guest's kernel found errors in the filesystem).
    #[command(visible_alias = "list")]
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a volume: sizes, filesystem, state, and the processes that use it
    Inspect {
        /// Name of the volume
        name: VolumeName,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove volumes and everything on them
    ///
    /// Refuses if a VM uses one of them.
    Rm {
        /// Names of the volumes
        #[arg(required = true)]
        names: Vec<VolumeName>,
    },
    /// Grow a volume and its filesystem
    ///
    /// Also while a VM writes to it: its guest has the new space at once. Refuses if VMs only read it. Volumes never
    /// shrink.
    Grow {
        /// Name of the volume
        name: VolumeName,
        /// The new size: 4G
        #[arg(value_parser = parse_size_bytes)]
        size: u64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Copy a volume under another name
    ///
    /// On filesystems that share blocks (xfs, btrfs) the copy takes no time and no space. Elsewhere only what was written
    /// is copied, not the holes.
    Clone {
        /// The volume to copy
        from: VolumeName,
        /// Name of the copy
        to: VolumeName,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Write a volume's disk to a file or, with `-`, to stdout
    ///
    /// The file is a raw disk image with holes. It must not exist yet.
    Export {
        /// Name of the volume
        name: VolumeName,
        /// The file, or - for stdout
        file: Utf8PathBuf,
    },
    /// Make a volume from a raw disk image
    ///
    /// The image is copied and checked with e2fsck. This host never mounts it. If it has errors that can be repaired,
    /// the first use repairs them.
    Import {
        /// The image: an ext4 filesystem without a partition table, or any disk with --raw
        file: Utf8PathBuf,
        /// Name of the new volume
        #[arg(long)]
        name: VolumeName,
        /// Do not look for a filesystem
        #[arg(long)]
        raw: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Flags of `kiln run` for disks.
#[derive(Debug, Default, ClapArgs)]
pub struct StorageArgs {
    /// Give the guest a volume (NAME:/DIR[:ro]) or a directory of this host (./SRC:/DIR:ro)
    ///
    /// NAME is a volume (see `kiln volume`). It is created if it does not exist. One VM can write to it; with :ro any
    /// number of VMs can read it. It is mounted before the command runs, and unmounted before kiln ends. NAME:disk
    /// attaches it as the next disk (/dev/vda, /dev/vdb …) and mounts nothing.
    ///
    /// A directory of this host, written with a `/` or a leading `.`, is read before the VM starts, and is read-only in
    /// the guest: :ro is required. Owners, modes and times are those of this host. What changes on the host later is not
    /// seen. As long as nothing has changed, later runs use the same image of it. Copy with --in and --out what the
    /// guest is to change.
    #[arg(short = 'v', long = "volume", value_name = "SOURCE:DIR", value_parser = parse_volume)]
    pub volumes: Vec<VolumeArg>,
    /// Write changes of the root to a disk of this size, not to memory: 512M, 2G
    ///
    /// For an image with a root filesystem. Without it, what the guest writes to its root is in its memory (--memory),
    /// and at most half of that. The disk is empty in each run and is removed with the VM. It takes only the space on the
    /// host that its guest has written to. A snapshot holds it.
    #[arg(long, value_name = "SIZE", value_parser = parse_disk_bytes)]
    pub disk: Option<u64>,
    /// Log more on stderr; give it twice to log everything
    ///
    /// `-v` means this only before `run`: kiln -v run.
    // The global flag has the same id, so clap does not add that one, with its short form, to this command.
    #[arg(id = "verbose", long, action = clap::ArgAction::Count, hide_short_help = true)]
    pub verbose: u8,
}

/// The size of a scratch disk.
fn parse_disk_bytes(text: &str) -> Result<u64, String> {
    let bytes = parse_size_bytes(text)?;
    if (VOLUME_BYTES_MIN..=VOLUME_BYTES_MAX).contains(&bytes) {
        return Ok(bytes);
    }
    Err(format!("a disk has {} MiB to {} TiB", VOLUME_BYTES_MIN >> 20, VOLUME_BYTES_MAX >> 40))
}

/// One `-v`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeArg {
    pub source: Source,
    pub target: Target,
    pub access: Access,
}

/// What is given to a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Volume(VolumeName),
    /// A directory of this host.
    Directory(PathBuf),
}

/// How a guest gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Mounted on this directory.
    Mount(String),
    /// As a disk.
    Disk,
}

/// Parses `SOURCE:TARGET[:OPTIONS]`.
pub fn parse_volume(text: &str) -> Result<VolumeArg, String> {
    let mut parts = text.split(':');
    let (source, target, options, rest) = (parts.next().unwrap_or(""), parts.next(), parts.next(), parts.next());
    let Some(target) = target else {
        return Err(format!("`{text}` does not name a directory of the guest: {FORMS} (kiln -v run logs more)"));
    };
    if rest.is_some() || source.is_empty() || target.is_empty() {
        return Err(FORMS.into());
    }
    let target = match target {
        DISK => Target::Disk,
        "/" => return Err("the guest's root can't be replaced: choose a directory below it".into()),
        path if path.starts_with('/') => Target::Mount(path.to_owned()),
        other => return Err(format!("`{other}` is not an absolute path of the guest: {FORMS}")),
    };
    let mut access = Access::Write;
    for option in options.iter().flat_map(|options| options.split(',')) {
        access = match option {
            "ro" => Access::Read,
            "rw" => Access::Write,
            other => return Err(format!("there is no option `{other}`: ro and rw are known")),
        };
    }
    let is_path = source.contains('/') || source.starts_with('.') || source.starts_with('~');
    let source = if is_path {
        let directory = PathBuf::from(source);
        if access == Access::Write {
            let place = if let Target::Mount(path) = &target { path } else { "/DIR" };
            return Err(format!(
                "a guest can't write to a directory of this host: share it read-only with -v {source}:{place}:ro, copy \
                 it with --in {source}:{place} and get results with --out {place}:{source}, or share it through \
                 virtiofsd: --vhost-user fs:SOCKET,tag=NAME"
            ));
        }
        if target == Target::Disk {
            return Err(format!("a directory has no disk: write {source}:/DIR:ro"));
        }
        Source::Directory(directory)
    } else {
        Source::Volume(source.parse::<VolumeName>().map_err(|error| error.to_string())?)
    };
    Ok(VolumeArg { source, target, access })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_volume_and_a_path_is_a_directory() {
        let volume = |target: Target, access| VolumeArg {
            source: Source::Volume("data".parse().expect("a name")),
            target,
            access,
        };
        let mount = |path: &str| Target::Mount(path.into());
        assert_eq!(parse_volume("data:/var/lib/x"), Ok(volume(mount("/var/lib/x"), Access::Write)));
        assert_eq!(parse_volume("data:/x:rw"), Ok(volume(mount("/x"), Access::Write)));
        assert_eq!(parse_volume("data:/x:ro"), Ok(volume(mount("/x"), Access::Read)));
        assert_eq!(parse_volume("data:disk"), Ok(volume(Target::Disk, Access::Write)));
        assert_eq!(parse_volume("data:disk:ro"), Ok(volume(Target::Disk, Access::Read)));
        for path in ["./dir", "/dir", "../dir", ".", "a/b"] {
            let parsed = parse_volume(&format!("{path}:/x:ro")).expect("is read");
            assert_eq!(parsed.source, Source::Directory(path.into()));
        }
    }

    #[test]
    fn a_scratch_disk_has_bounds() {
        assert_eq!(parse_disk_bytes("2G"), Ok(2 << 30));
        let lines = ["", "0", "1M", "9T", "99999999999T", "x"].map(|text| parse_disk_bytes(text).expect_err(text));
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn refused_volumes_read_like_this() {
        let values = [
            "uname",
            "data:",
            ":/x",
            "data:x",
            "data:/",
            "data:/x:z",
            "data:/x:ro:rw",
            "-x:/x",
            "./dir:/dst",
            "./dir:disk:ro",
        ];
        let lines = values.map(|value| format!("{value}\n  {}", parse_volume(value).expect_err(value)));
        insta::assert_snapshot!(lines.join("\n"));
    }
}
