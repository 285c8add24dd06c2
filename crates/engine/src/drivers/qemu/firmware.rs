//! The firmware that QEMU loads into a machine: its BIOS and the ROMs of its devices.
//!
//! ```text
//!   binary ──`-L help`──▶ its data directories (remembered) ──▶ BIOS, ROMs ──▶ `-L`, `-bios`
//!                                                                     └─────▶ MachineIdentity: one digest of all
//! ```
//! QEMU searches each of these files in its working directory first, and then in its own directories. So it works in
//! its VM's directory, which contains no such file, and the BIOS has an absolute path. The guest runs this code before
//! its kernel, and a snapshot does not contain its memory: a restored VM loads it again from these files. So a snapshot
//! fits only the same contents.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};

use super::version;
use crate::files::{FileFacts, Witness};

/// QEMU's small firmware. Under TCG it starts a kernel 50 ms sooner than the BIOS, because it runs far fewer
/// instructions. It has no drivers for boot disks or network cards, which a VM with `-kernel` does not need.
const QBOOT: &str = "qboot.rom";
/// The default of q35.
const BIOS: &str = "bios-256k.bin";
/// The ROMs that the devices of this machine load, and that start a kernel.
const ROMS: [&str; 4] = ["kvmvapic.bin", "linuxboot.bin", "linuxboot_dma.bin", "pvh.bin"];
/// More than any QEMU has.
const DIRECTORIES_MAX: usize = 16;

/// The firmware of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Firmware {
    /// The BIOS or its replacement. `None` if its path is unknown; then QEMU finds it on its own.
    pub(crate) bios: Option<Utf8PathBuf>,
    /// Directories in which QEMU searches files without an absolute path.
    pub(crate) directories: Vec<Utf8PathBuf>,
    /// The names of these files, and one digest of their contents.
    pub(crate) identity: String,
}

/// Whether a machine starts its kernel with the small firmware, if there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefer {
    Small,
    Bios,
}

impl Firmware {
    /// Finds the files of a QEMU. It takes a start of QEMU to find its directories, so they are remembered.
    pub(super) async fn find(home: &Utf8Path, binary: &Utf8Path, prefer: Prefer) -> Self {
        let memory = FileFacts::new(home);
        let directories = directories(&memory, binary).await;
        Self::in_directories(&memory, directories, prefer).unwrap_or_else(|error| {
            tracing::warn!(%binary, %error, "failed to read QEMU's firmware");
            Self::default()
        })
    }

    fn in_directories(memory: &FileFacts, directories: Vec<Utf8PathBuf>, prefer: Prefer) -> io::Result<Self> {
        let find = |name: &str| directories.iter().map(|one| one.join(name)).find(|path| path.is_file());
        let bios = match prefer {
            Prefer::Small => find(QBOOT).or_else(|| find(BIOS)),
            Prefer::Bios => find(BIOS),
        };
        let Some(bios) = bios else { return Ok(Self { directories, ..Self::default() }) };
        let mut hasher = blake3::Hasher::new();
        for path in std::iter::once(bios.clone()).chain(ROMS.into_iter().filter_map(find)) {
            let name = path.file_name().expect("it was joined");
            hasher.update(format!("{name} {}\n", memory.digest(&path)?).as_bytes());
        }
        let name = bios.file_name().expect("it was joined");
        let identity = format!("{name} and its ROMs, {}", hasher.finalize().to_hex());
        Ok(Self { bios: Some(bios), directories, identity })
    }
}

async fn directories(memory: &FileFacts, binary: &Utf8Path) -> Vec<Utf8PathBuf> {
    const NAME: &str = "qemu-data-directories";
    if let Ok(Some(known)) = memory.recall(binary, NAME)
        && let Ok(directories) = serde_json::from_str(&known)
    {
        return directories;
    }
    let witness = Witness::of(binary);
    let words = version::ask(binary, &["-L", "help"]).await.unwrap_or_else(|error| {
        tracing::warn!(%binary, %error, "failed to learn where QEMU has its firmware");
        String::new()
    });
    let directories = parse(&words);
    if let (Ok(witness), false) = (witness, directories.is_empty()) {
        memory.remember(binary, NAME, witness, &serde_json::to_string(&directories).expect("paths are JSON"));
    }
    directories
}

/// Parses absolute directories that exist, one per line.
fn parse(words: &str) -> Vec<Utf8PathBuf> {
    let paths = words.lines().map(Utf8Path::new).filter(|path| path.is_absolute());
    let there = paths.filter_map(|path| path.canonicalize_utf8().ok()).filter(|path| path.is_dir());
    there.take(DIRECTORIES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use fs_err as fs;

    use super::*;

    fn place() -> (tempfile::TempDir, Utf8PathBuf, FileFacts) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = Utf8PathBuf::try_from(directory.path().canonicalize().expect("is there")).expect("UTF-8");
        let memory = FileFacts::new(&path);
        (directory, path, memory)
    }

    #[test]
    fn the_identity_covers_the_contents_of_all_loaded_files() {
        let (_directory, path, memory) = place();
        let found = |prefer| Firmware::in_directories(&memory, vec![path.clone()], prefer).expect("reads");
        assert_eq!(found(Prefer::Small).bios, None);
        for name in [QBOOT, BIOS, "kvmvapic.bin", "vgabios.bin"] {
            fs::write(path.join(name), name).expect("written");
        }
        let small = found(Prefer::Small);
        assert_eq!(small.bios, Some(path.join(QBOOT)));
        assert!(small.identity.starts_with("qboot.rom and its ROMs, "), "{small:?}");
        assert_eq!(found(Prefer::Bios).bios, Some(path.join(BIOS)));
        assert_ne!(found(Prefer::Bios).identity, small.identity);

        fs::write(path.join("vgabios.bin"), "no machine of ours loads it").expect("written");
        assert_eq!(found(Prefer::Small), small);
        fs::write(path.join("kvmvapic.bin"), "planted").expect("written");
        assert_ne!(found(Prefer::Small).identity, small.identity);
    }

    #[test]
    fn only_existing_absolute_directories_are_used() {
        let (_directory, path, _) = place();
        fs::write(path.join("file"), "").expect("written");
        let words = format!("{path}/../{}\nrelative\n.\n{path}/file\n{path}/none\n", path.file_name().expect("named"));
        assert_eq!(parse(&words), [path]);
        assert!(parse("").is_empty());
    }

    #[tokio::test]
    async fn this_hosts_qemu_has_its_bios() {
        let (_directory, path, _) = place();
        let binary = crate::host::find_program(super::super::QEMU_PROGRAM.into()).expect("tests need QEMU");
        let firmware = Firmware::find(&path, &binary, Prefer::Bios).await;
        assert!(firmware.bios.is_some_and(|bios| bios.is_absolute() && bios.is_file()), "{:?}", firmware.directories);
    }
}
