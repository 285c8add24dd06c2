//! The versions that decide about arguments: QEMU's, from its own output, and a kernel's, from its file.

use std::io::{self, Read as _};
use std::process::Stdio;
use std::time::Duration;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};

use crate::kernel;
use crate::process;

/// QEMU answers in some 30 ms. A program that hangs is not QEMU.
const VERSION_DEADLINE: Duration = Duration::from_secs(10);
/// Offset of the magic (`HdrS`) in a bzImage, see the kernel's Documentation/arch/x86/boot.rst.
const BZIMAGE_MAGIC_OFFSET: usize = 0x202;
/// Offset of a pointer to the version text; the pointer is relative to 0x200.
const BZIMAGE_VERSION_OFFSET: usize = 0x20e;
/// The setup code, which holds the version text, is at most this long.
const BZIMAGE_SETUP_BYTES: usize = 32 << 10;

/// QEMU's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct QemuVersion {
    /// The 7 of 7.2.
    pub major: u32,
    /// The 2 of 7.2.
    pub minor: u32,
}

impl std::fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Version of a Linux kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KernelVersion {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// Asks a QEMU for its version.
pub(crate) async fn qemu_version(binary: &Utf8Path) -> io::Result<Option<QemuVersion>> {
    ask(binary, &["--version"]).await.map(|words| parse_qemu(&words))
}

/// Starts a QEMU that only prints an answer. It inherits no more of the caller than a VMM does.
pub(super) async fn ask(binary: &Utf8Path, question: &[&str]) -> io::Result<String> {
    let mut command = tokio::process::Command::from(kiln_programs::command(binary, kiln_programs::PATH_ONLY));
    command.args(question).envs(process::own_environment()).current_dir("/");
    command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(VERSION_DEADLINE, command.output()).await {
        Ok(output) => output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn parse_qemu(text: &str) -> Option<QemuVersion> {
    let (_, rest) = text.split_once("QEMU emulator version ")?;
    let (major, minor) = numbers(rest)?;
    Some(QemuVersion { major, minor })
}

/// The release in a kernel's file, such as `6.1.0-44-cloud-amd64`. `None` if it has none.
pub(crate) fn kernel_release(kernel: &Utf8Path) -> io::Result<Option<String>> {
    let file = fs_err::File::open(kernel)?;
    let mut head = Vec::new();
    file.take(BZIMAGE_SETUP_BYTES as u64).read_to_end(&mut head)?;
    if let Some(release) = parse_kernel(&head) {
        return Ok(Some(release));
    }
    kernel::release(kernel)
}

/// The version in a release.
pub(crate) fn parse_release(release: &str) -> Option<KernelVersion> {
    let (major, minor) = numbers(release)?;
    Some(KernelVersion { major, minor })
}

fn parse_kernel(head: &[u8]) -> Option<String> {
    if head.get(BZIMAGE_MAGIC_OFFSET..BZIMAGE_MAGIC_OFFSET + 4)? != b"HdrS" {
        return None;
    }
    let pointer = head.get(BZIMAGE_VERSION_OFFSET..BZIMAGE_VERSION_OFFSET + 2)?;
    let start = usize::from(u16::from_le_bytes([pointer[0], pointer[1]])) + 0x200;
    let text = head.get(start..)?;
    let text = &text[..text.iter().position(|&byte| byte == 0)?];
    let release = std::str::from_utf8(text).ok()?.split(' ').next()?;
    parse_release(release).map(|_| release.to_owned())
}

/// The first two numbers of `7.2.22 (Debian …)`.
fn numbers(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_versions_are_read_from_their_first_line() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c) 2003-2022";
        assert_eq!(parse_qemu(debian), Some(QemuVersion { major: 7, minor: 2 }));
        assert_eq!(parse_qemu("QEMU emulator version 10.0.2"), Some(QemuVersion { major: 10, minor: 0 }));
        for other in ["", "QEMU emulator version ", "QEMU emulator version x.y", "bash 5.2"] {
            assert_eq!(parse_qemu(other), None, "{other:?}");
        }
    }

    fn image(pointer: u16, text: &[u8]) -> Vec<u8> {
        let mut head = vec![0; 0x300];
        head[BZIMAGE_MAGIC_OFFSET..][..4].copy_from_slice(b"HdrS");
        head[BZIMAGE_VERSION_OFFSET..][..2].copy_from_slice(&pointer.to_le_bytes());
        head.extend_from_slice(text);
        head
    }

    #[test]
    fn the_version_of_a_kernel_is_read_from_its_header() {
        let head = image(0x100, b"6.12.9-cloud-amd64 (debian) #1\0rest");
        assert_eq!(parse_kernel(&head).as_deref(), Some("6.12.9-cloud-amd64"));
        assert_eq!(parse_release("6.12.9-cloud-amd64"), Some(KernelVersion { major: 6, minor: 12 }));
    }

    #[test]
    fn a_header_that_lies_has_no_version() {
        for head in [vec![], vec![0; 0x300], image(u16::MAX, b"6.1\0"), image(0x100, b"6.1"), image(0x100, b"x\0")] {
            assert_eq!(parse_kernel(&head), None);
        }
    }
}
