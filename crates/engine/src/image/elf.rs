//! Reads what an image builder needs from 64-bit little-endian ELF files: a module's own description (`.modinfo`), and
//! whether a kernel can be entered at its PVH entry point. Files come from packages, and are still taken as hostile.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Xen's note that names the 32-bit entry point of a kernel, see `XEN_ELFNOTE_PHYS32_ENTRY`.
const NOTE_PHYS32_ENTRY: u32 = 18;
/// The kernel's note with its release, see `LINUX_ELFNOTE_BUILD_SALT`.
const NOTE_BUILD_SALT: u32 = 0x100;
const FILE_HEADER_BYTES: usize = 64;
/// A kernel's notes have some 500 bytes.
const NOTES_BYTES_MAX: u64 = 1 << 20;
const PROGRAM_HEADER_BYTES: u64 = 56;
const PROGRAM_TYPE_LOAD: u32 = 1;
const PROGRAM_TYPE_INTERPRETER: u32 = 3;
const PROGRAM_TYPE_NOTE: u32 = 4;
const SECTION_HEADER_BYTES: u64 = 64;
const MACHINE_X86_64: u16 = 62;

/// An ELF file whose tables were found to lie within it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Elf<'a> {
    bytes: &'a [u8],
    programs: &'a [u8],
    sections: &'a [u8],
    section_names_index: usize,
}

impl<'a> Elf<'a> {
    /// `None` for what is not an ELF file for x86-64.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        // Class 2 (64 bits), data 1 (little endian), version 1.
        if bytes.get(..7)? != b"\x7fELF\x02\x01\x01" || u16_at(bytes, 18)? != MACHINE_X86_64 {
            return None;
        }
        let table = |offset: u64, count: u16, entry_bytes: u64| range(bytes, offset, u64::from(count) * entry_bytes);
        let sized = |count: u16, entry: u16, expected: u64| count == 0 || u64::from(entry) == expected;
        let (program_count, section_count) = (u16_at(bytes, 56)?, u16_at(bytes, 60)?);
        if !sized(program_count, u16_at(bytes, 54)?, PROGRAM_HEADER_BYTES)
            || !sized(section_count, u16_at(bytes, 58)?, SECTION_HEADER_BYTES)
        {
            return None;
        }
        Some(Self {
            bytes,
            programs: table(u64_at(bytes, 32)?, program_count, PROGRAM_HEADER_BYTES)?,
            sections: table(u64_at(bytes, 40)?, section_count, SECTION_HEADER_BYTES)?,
            section_names_index: u16_at(bytes, 62)?.into(),
        })
    }

    /// The contents of a section.
    pub(crate) fn section(&self, name: &str) -> Option<&'a [u8]> {
        let headers = self.sections.chunks_exact(SECTION_HEADER_BYTES as usize);
        let names = self.section_contents(headers.clone().nth(self.section_names_index)?)?;
        let mut found = headers.filter(|header| {
            let start = u32_at(header, 0).and_then(|offset| names.get(offset as usize..));
            start.and_then(|rest| rest.split(|&byte| byte == 0).next()) == Some(name.as_bytes())
        });
        self.section_contents(found.next()?)
    }

    fn section_contents(&self, header: &[u8]) -> Option<&'a [u8]> {
        range(self.bytes, u64_at(header, 24)?, u64_at(header, 32)?)
    }

    /// The program is started by a dynamic linker.
    pub(crate) fn has_interpreter(&self) -> bool {
        self.programs_of(PROGRAM_TYPE_INTERPRETER).next().is_some()
    }

    /// The VMM can enter this kernel without its decompressor.
    pub(crate) fn has_pvh_entry(&self) -> bool {
        self.notes().any(|(owner, kind, _)| owner == b"Xen" && kind == NOTE_PHYS32_ENTRY)
    }

    fn programs_of(&self, kind: u32) -> impl Iterator<Item = &'a [u8]> {
        let headers = self.programs.chunks_exact(PROGRAM_HEADER_BYTES as usize);
        headers.filter(move |header| u32_at(header, 0) == Some(kind))
    }

    fn notes(&self) -> impl Iterator<Item = (&'a [u8], u32, &'a [u8])> {
        let bytes = self.bytes;
        let areas = self.programs_of(PROGRAM_TYPE_NOTE);
        areas.filter_map(move |header| range(bytes, u64_at(header, 8)?, u64_at(header, 32)?)).flat_map(notes_in)
    }

    /// Where the last byte that a loader or a reader of symbols looks at ends. Kernels carry relocations behind that.
    pub(crate) fn end(&self) -> usize {
        let segments = self.programs_of(PROGRAM_TYPE_LOAD).filter_map(|header| end_of(header, 8, 32));
        let sections = self.sections.chunks_exact(SECTION_HEADER_BYTES as usize).filter_map(|header| {
            // Type 8 takes no room in the file.
            if u32_at(header, 4) == Some(8) { None } else { end_of(header, 24, 32) }
        });
        let table = |table: &[u8]| table.as_ptr_range().end as usize - self.bytes.as_ptr() as usize;
        let tables = [table(self.programs), table(self.sections)];
        segments.chain(sections).chain(tables).max().unwrap_or(0).min(self.bytes.len())
    }
}

/// The release that Debian's kernels carry as their build salt, such as `6.1.0-44-cloud-amd64`. Of the file, only headers
/// and notes are read: kernels are large, and this is asked before each boot.
pub(crate) fn kernel_release(file: &File) -> io::Result<Option<String>> {
    let mut header = [0; FILE_HEADER_BYTES];
    if !filled(file.read_exact_at(&mut header, 0))? || &header[..4] != b"\x7fELF" {
        return Ok(None);
    }
    let field = |offset| u16_at(&header, offset).unwrap_or(0);
    let (Some(offset), entry_bytes, count) = (u64_at(&header, 32), field(54), field(56)) else { return Ok(None) };
    if u64::from(entry_bytes) != PROGRAM_HEADER_BYTES {
        return Ok(None);
    }
    let mut programs = vec![0; usize::from(entry_bytes) * usize::from(count)];
    if !filled(file.read_exact_at(&mut programs, offset))? {
        return Ok(None);
    }
    for program in programs.chunks_exact(PROGRAM_HEADER_BYTES as usize) {
        let (Some(PROGRAM_TYPE_NOTE), Some(offset), Some(length @ ..=NOTES_BYTES_MAX)) =
            (u32_at(program, 0), u64_at(program, 8), u64_at(program, 32))
        else {
            continue;
        };
        let mut notes = vec![0; usize::try_from(length).unwrap_or(0)];
        if filled(file.read_exact_at(&mut notes, offset))?
            && let Some((.., text)) =
                notes_in(&notes).find(|(owner, kind, _)| *owner == b"Linux" && *kind == NOTE_BUILD_SALT)
            && let Ok(text) = std::str::from_utf8(text)
        {
            return Ok(Some(text.trim_end_matches('\0').to_owned()).filter(|text| !text.is_empty()));
        }
    }
    Ok(None)
}

/// False for a file that ends too early.
fn filled(read: io::Result<()>) -> io::Result<bool> {
    match read {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        // An offset that no file can have.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(false),
        Err(error) => Err(error),
    }
}

fn notes_in(mut rest: &[u8]) -> impl Iterator<Item = (&[u8], u32, &[u8])> {
    std::iter::from_fn(move || {
        let (name_bytes, value_bytes) = (u32_at(rest, 0)? as usize, u32_at(rest, 4)? as usize);
        let value_start = name_bytes.checked_next_multiple_of(4)?.checked_add(12)?;
        let value_end = value_start.checked_add(value_bytes)?;
        let owner = rest.get(12..12 + name_bytes)?;
        let note = (owner.strip_suffix(b"\0").unwrap_or(owner), u32_at(rest, 8)?, rest.get(value_start..value_end)?);
        rest = rest.get(value_end.checked_next_multiple_of(4)?..).unwrap_or(&[]);
        Some(note)
    })
}

fn end_of(header: &[u8], offset_at: usize, length_at: usize) -> Option<usize> {
    let end = u64_at(header, offset_at)?.checked_add(u64_at(header, length_at)?)?;
    usize::try_from(end).ok()
}

fn range(bytes: &[u8], offset: u64, length: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(length).ok()?)?)
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// Makes small ELF files for tests of what reads them.
#[cfg(test)]
pub(crate) mod made {
    /// A file with one section beside the one of names, and notes in a segment of their own.
    pub(crate) fn elf(section: &str, contents: &[u8], notes: &[(&str, u32, &[u8])]) -> Vec<u8> {
        let mut note_bytes = Vec::new();
        for (owner, kind, value) in notes {
            for field in [owner.len() as u32 + 1, value.len() as u32, *kind] {
                note_bytes.extend(field.to_le_bytes());
            }
            note_bytes.extend(owner.as_bytes());
            note_bytes.push(0);
            note_bytes.resize(note_bytes.len().next_multiple_of(4), 0);
            note_bytes.extend(*value);
            note_bytes.resize(note_bytes.len().next_multiple_of(4), 0);
        }
        let names = format!("\0.names\0{section}\0");
        let notes_at = 64 + 56;
        let contents_at = notes_at + note_bytes.len();
        let names_at = contents_at + contents.len();
        let sections_at = names_at + names.len();

        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(64, 0);
        file[18] = 62;
        file[32..40].copy_from_slice(&64_u64.to_le_bytes());
        file[40..48].copy_from_slice(&(sections_at as u64).to_le_bytes());
        for (at, value) in [(54, 56_u16), (56, 1), (58, 64), (60, 3), (62, 1)] {
            file[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        let mut program = vec![0; 56];
        program[0] = 4;
        program[8..16].copy_from_slice(&(notes_at as u64).to_le_bytes());
        program[32..40].copy_from_slice(&(note_bytes.len() as u64).to_le_bytes());
        file.extend(program);
        file.extend(note_bytes);
        file.extend(contents);
        file.extend(names.as_bytes());
        for (name, at, length) in [(0_u32, 0, 0), (1, names_at, names.len()), (8, contents_at, contents.len())] {
            let mut header = vec![0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[24..32].copy_from_slice(&(at as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(length as u64).to_le_bytes());
            file.extend(header);
        }
        file
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RELEASE: (&str, u32, &[u8]) = ("Linux", 0x100, b"6.1.0-1-cloud-amd64\0");
    const PVH: (&str, u32, &[u8]) = ("Xen", 18, &[0, 0, 0, 1]);

    fn release_of(bytes: &[u8]) -> Option<String> {
        let mut file = tempfile::tempfile().expect("a temporary file");
        io::Write::write_all(&mut file, bytes).expect("is written");
        kernel_release(&file).expect("reads")
    }

    #[test]
    fn a_section_is_found_by_its_name() {
        let file = made::elf(".modinfo", b"depends=virtio\0", &[]);
        let elf = Elf::parse(&file).expect("is one");
        assert_eq!(elf.section(".modinfo"), Some(&b"depends=virtio\0"[..]));
        assert_eq!(elf.section(".mod"), None);
    }

    #[test]
    fn a_kernel_with_a_pvh_note_says_so_and_its_release() {
        let file = made::elf(".text", b"", &[("Xen", 6, b"linux\0"), PVH, RELEASE]);
        let elf = Elf::parse(&file).expect("is one");
        assert!(elf.has_pvh_entry());
        assert_eq!(release_of(&file).as_deref(), Some("6.1.0-1-cloud-amd64"));

        let file = made::elf(".text", b"", &[("GNU", 18, b"1234")]);
        let elf = Elf::parse(&file).expect("is one");
        assert!(!elf.has_pvh_entry() && release_of(&file).is_none());
    }

    #[test]
    fn what_follows_the_last_section_is_not_part_of_the_file() {
        let mut file = made::elf(".text", b"code", &[PVH]);
        let end = file.len();
        file.extend([7; 100]);
        assert_eq!(Elf::parse(&file).expect("is one").end(), end);
    }

    proptest! {
        #[test]
        fn a_damaged_file_is_an_answer_and_not_a_panic(
            at in 0..400_usize, value: u8, length in 0..500_usize,
        ) {
            let mut file = made::elf(".modinfo", b"depends=\0", &[PVH, RELEASE]);
            let last = file.len() - 1;
            file[at.min(last)] = value;
            file.truncate(length);
            release_of(&file);
            if let Some(elf) = Elf::parse(&file) {
                let _ = (elf.section(".modinfo"), elf.has_pvh_entry(), elf.has_interpreter());
                prop_assert!(elf.end() <= file.len());
            }
        }
    }
}
