//! The files that QEMU loads into a machine: its BIOS and the ROMs of its devices.
//!
//! ```text
//!   binary ──`-L help`──▶ its data directories (remembered) ──▶ BIOS, ROMs ──▶ `-L`, `-bios`
//!                                                                     └─────▶ MachineIdentity: one digest of all
//! ```
//! QEMU looks for each of these by name in its working directory before it looks in its own directories. So it works in
//! its VM's directory, which has no such file, and the BIOS has an absolute path. A guest runs what is in them before its
//! kernel, and their memory is no part of a snapshot: a restored VM gets them anew from these files. So a snapshot is
//! bound to what they hold.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};

use super::version;
use crate::files::{FileFacts, Witness};

/// QEMU's small firmware: it starts a kernel 50 ms sooner than the BIOS, under TCG.
const QBOOT: &str = "qboot.rom";
/// What q35 has unless told.
const BIOS: &str = "bios-256k.bin";
/// What the devices of our machines load, and what starts a kernel.
const ROMS: [&str; 4] = ["kvmvapic.bin", "linuxboot.bin", "linuxboot_dma.bin", "pvh.bin"];
/// More than any QEMU has.
const DIRECTORIES_MAX: usize = 16;

/// What a machine is started with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Firmware {
    /// The BIOS, or what takes its place. `None`: QEMU did not say where it lies, and finds it by itself.
    pub(crate) bios: Option<Utf8PathBuf>,
    /// Where QEMU looks for what has no absolute path.
    pub(crate) directories: Vec<Utf8PathBuf>,
    /// Which files these are, and one digest of what they hold.
    pub(crate) identity: String,
}

/// Whether a machine starts its kernel with the small firmware, if there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefer {
    Small,
    Bios,
}

impl Firmware {
    /// Finds a QEMU's files. Asking it for its directories costs a process, so the answer is remembered.
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

/// Absolute directories that are there, one in each line.
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
    fn the_identity_is_of_what_all_files_hold_that_a_machine_loads() {
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
    fn only_absolute_directories_that_are_there_are_taken() {
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
