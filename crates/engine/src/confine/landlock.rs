//! Landlock rules for a VMM: which files it opens, and how.
//!
//! Rules are bound to existing files, not to their names. So a VMM can't create, remove or rename anything, not even in
//! its own directory: all files that it writes to are made before it starts. A rule on the directory would be simpler,
//! but it would cover the journal and the spec too. A VMM that its guest has taken over could then rewrite the files
//! from which Kiln decides about the VM after a crash.
#![expect(unsafe_code, reason = "the crate does not return the kernel's version")]

use std::io;
use std::os::fd::OwnedFd;

use camino::{Utf8Path, Utf8PathBuf};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, Scope,
};

/// This flag of the call makes no rules; the call only returns the version.
const CREATE_RULESET_VERSION: libc::c_uint = 1;
/// The version whose rights are known here. An older kernel enforces those that it has.
const KNOWN: ABI = ABI::V7;
/// Where distributions put programs and libraries, NixOS and Guix included.
const SYSTEM: [&str; 9] = [
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/bin",
    "/etc/ld.so.cache",
    "/nix/store",
    "/gnu/store",
    "/run/current-system/sw",
];
/// What QEMU and its libraries read of the host.
const FACTS: [&str; 4] =
    ["/dev/urandom", "/sys/devices/system/cpu", "/sys/devices/system/node", "/sys/kernel/mm/transparent_hugepage"];

/// The files of a VMM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Files {
    /// The VMM itself.
    pub(crate) program: Utf8PathBuf,
    pub(crate) read: Vec<Utf8PathBuf>,
    pub(crate) write: Vec<Utf8PathBuf>,
    pub(crate) kvm: bool,
}

/// The version of Landlock that this kernel has; or why it has none.
pub(crate) fn abi() -> Result<i64, String> {
    // SAFETY: with this flag the call takes no structure and creates nothing.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, CREATE_RULESET_VERSION) };
    if abi > 0 {
        return Ok(abi);
    }
    Err(match io::Error::last_os_error().raw_os_error() {
        Some(libc::EOPNOTSUPP) => {
            "Landlock is not among the kernel's security modules (`lsm=` of its command line)".into()
        }
        _ => "the kernel has no Landlock (Linux 5.13)".into(),
    })
}

/// What that version restricts, as text for the user.
pub(crate) fn detail(abi: i64) -> String {
    let holds = [(1, "files"), (4, "TCP"), (5, "devices"), (6, "signals, abstract sockets")];
    let holds = holds.into_iter().filter(|(since, _)| *since <= abi).map(|(_, what)| what);
    format!("ABI {abi}: {}", holds.collect::<Vec<_>>().join(", "))
}

/// Makes the rules. `None` on a kernel without Landlock.
pub(crate) fn ruleset(files: &Files) -> io::Result<Option<OwnedFd>> {
    let all = AccessFs::from_all(KNOWN);
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    let mut rules = Vec::new();
    let mut allow = |path: &Utf8Path, access: BitFlags<AccessFs>| match PathFd::new(path) {
        Ok(fd) => rules.push(PathBeneath::new(fd, access)),
        // A missing file is not opened. If it is needed, QEMU's own error is better.
        Err(error) => tracing::debug!(%path, %error, "no rule for what can't be opened"),
    };
    for path in SYSTEM.into_iter().map(Utf8Path::new).chain(prefix(&files.program)) {
        allow(path, read | AccessFs::Execute);
    }
    FACTS.into_iter().for_each(|path| allow(path.into(), read));
    // QEMU opens it for writing to find out which locks the kernel has. Without those locks two VMs could write to one
    // disk.
    allow("/dev/null".into(), write);
    files.read.iter().for_each(|path| allow(path, read));
    files.write.iter().for_each(|path| allow(path, write));
    if files.kvm {
        allow("/dev/kvm".into(), write);
    }
    let ruleset = Ruleset::default()
        .handle_access(all)
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(KNOWN)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(KNOWN)))
        .and_then(Ruleset::create)
        .and_then(|ruleset| ruleset.add_rules(rules.into_iter().map(Ok::<_, landlock::RulesetError>)));
    ruleset.map(Into::into).map_err(io::Error::other)
}

/// The directories of a program that the distribution did not install: the program itself, and `lib` and `share` beside
/// its `bin`.
fn prefix(program: &Utf8Path) -> impl Iterator<Item = &Utf8Path> {
    let bin = program.parent().filter(|parent| parent.file_name() == Some("bin"));
    [Some(program), bin.and_then(Utf8Path::parent).filter(|prefix| prefix.parent().is_some())].into_iter().flatten()
}
