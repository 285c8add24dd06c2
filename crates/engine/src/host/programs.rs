//! Programs of this host: their paths, and whether they are static.

use std::io::Read as _;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

/// Identification, class and byte order of a little-endian 64-bit ELF file (elf(5)).
const ELF64_LITTLE_ENDIAN: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
/// The program header that names a dynamic loader.
const PT_INTERP: u32 = 3;
/// The part of a file in which the program headers are looked for.
const ELF_HEAD_BYTES: u64 = 4096;

/// The absolute path of a program. A name with a `/` is a path, any other name is searched on `PATH`.
pub fn find_program(name: &Utf8Path) -> Option<Utf8PathBuf> {
    // The program may be started in another working directory.
    let absolute = |path: &Utf8Path| Utf8PathBuf::try_from(std::path::absolute(path).ok()?).ok();
    if name.as_str().contains('/') {
        return is_executable(name).then(|| absolute(name)).flatten();
    }
    // Not every user's PATH has the directories of administration tools.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let directories = path.split(':').filter(|directory| !directory.is_empty());
    directories
        .map(|directory| Utf8Path::new(directory).join(name))
        .find(|path| is_executable(path))
        .and_then(|path| absolute(&path))
}

fn is_executable(path: &Utf8Path) -> bool {
    path.is_file() && rustix::fs::access(path.as_std_path(), rustix::fs::Access::EXEC_OK).is_ok()
}

/// Whether a program is static: it needs no dynamic loader, so it runs in a guest without libraries.
pub fn is_static(program: &Utf8Path) -> bool {
    let mut head = Vec::new();
    let read = fs::File::open(program).and_then(|file| file.take(ELF_HEAD_BYTES).read_to_end(&mut head));
    read.is_ok() && needs_loader(&head) == Some(false)
}

/// Whether a program needs a dynamic loader. `None` if the file is not a program.
fn needs_loader(head: &[u8]) -> Option<bool> {
    let u16_at = |offset: usize| Some(u16::from_le_bytes(head.get(offset..offset + 2)?.try_into().ok()?));
    if !head.starts_with(&ELF64_LITTLE_ENDIAN) {
        return None;
    }
    let table = usize::try_from(u64::from_le_bytes(head.get(32..40)?.try_into().ok()?)).ok()?;
    let (size, count) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    let mut needs = false;
    for index in 0..count {
        let start = table.checked_add(index * size)?;
        let kind = head.get(start..start.checked_add(4)?)?;
        needs |= kind == PT_INTERP.to_le_bytes();
    }
    Some(needs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_by_name_and_by_path() {
        let shell = find_program(Utf8Path::new("sh")).expect("there is a shell");
        assert_eq!(find_program(&shell), Some(shell));
        for none in ["no-such-program-anywhere", "/nowhere/sh", "/etc/passwd", "/tmp"] {
            assert_eq!(find_program(Utf8Path::new(none)), None, "{none}");
        }
    }

    #[test]
    fn a_program_with_a_loader_is_not_static() {
        let mut program = vec![0; 120];
        program[..6].copy_from_slice(&ELF64_LITTLE_ENDIAN);
        program[32] = 64;
        program[54] = 56;
        program[56] = 1;
        program[64] = 1;
        assert_eq!(needs_loader(&program), Some(false));
        program[64] = 3;
        assert_eq!(needs_loader(&program), Some(true));
        assert!(!is_static(&find_program(Utf8Path::new("sh")).expect("there is a shell")));
    }

    #[test]
    fn a_file_that_is_not_a_program_is_not_static() {
        let mut lies = vec![0; 120];
        lies[..6].copy_from_slice(&ELF64_LITTLE_ENDIAN);
        lies[32..40].copy_from_slice(&[0xff; 8]);
        lies[56] = 1;
        assert_eq!(needs_loader(&lies), None);
        assert_eq!(needs_loader(b"#!/bin/sh"), None);
        assert!(!is_static(Utf8Path::new("/etc/passwd")));
    }
}
