//! What an image builder needs of 64-bit little-endian ELF files: a module's own description (`.modinfo`), and whether
//! a kernel can be entered at its PVH entry point. Files come from packages, and are still taken as hostile: the crate
//! `object` checks each offset and length before it reads there.

use std::fs::File;

use object::LittleEndian;
use object::elf::{EM_X86_64, FileHeader64, PT_INTERP, PT_LOAD, PT_NOTE, ProgramHeader64, SHT_NOBITS, SectionHeader64};
use object::read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _, SectionTable};
use object::read::{ReadCache, ReadRef};

/// Xen's note that names the 32-bit entry point of a kernel, see `XEN_ELFNOTE_PHYS32_ENTRY`.
const NOTE_PHYS32_ENTRY: u32 = 18;
/// The kernel's note with its release, see `LINUX_ELFNOTE_BUILD_SALT`.
const NOTE_BUILD_SALT: u32 = 0x100;
/// A kernel's notes have some 500 bytes.
const NOTES_BYTES_MAX: u64 = 1 << 20;

type Header = FileHeader64<LittleEndian>;
const ENDIAN: LittleEndian = LittleEndian;

/// An ELF file for x86-64 whose tables lie within it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Elf<'a, R: ReadRef<'a> = &'a [u8]> {
    file: R,
    header: &'a Header,
    segments: &'a [ProgramHeader64<LittleEndian>],
}

impl<'a, R: ReadRef<'a>> Elf<'a, R> {
    fn of(file: R) -> Option<Self> {
        let header = Header::parse(file).ok()?;
        if !header.is_little_endian() || header.e_machine(ENDIAN) != EM_X86_64 {
            return None;
        }
        Some(Self { file, header, segments: header.program_headers(ENDIAN, file).ok()? })
    }

    fn sections(&self) -> Option<SectionTable<'a, Header, R>> {
        self.header.sections(ENDIAN, self.file).ok()
    }

    /// The contents of a section.
    pub(crate) fn section(&self, name: &str) -> Option<&'a [u8]> {
        let (_, section) = self.sections()?.section_by_name(ENDIAN, name.as_bytes())?;
        section.data(ENDIAN, self.file).ok()
    }

    /// The program is started by a dynamic linker.
    pub(crate) fn has_interpreter(&self) -> bool {
        self.segments.iter().any(|segment| segment.p_type(ENDIAN) == PT_INTERP)
    }

    /// The VMM can enter this kernel without its decompressor.
    pub(crate) fn has_pvh_entry(&self) -> bool {
        self.note(b"Xen", NOTE_PHYS32_ENTRY).is_some()
    }

    /// The value of the first note of this owner and kind.
    fn note(&self, owner: &[u8], kind: u32) -> Option<&'a [u8]> {
        let areas = self
            .segments
            .iter()
            .filter(|segment| segment.p_type(ENDIAN) == PT_NOTE && segment.p_filesz(ENDIAN) <= NOTES_BYTES_MAX);
        areas.filter_map(|segment| segment.notes(ENDIAN, self.file).ok().flatten()).find_map(|mut notes| {
            while let Ok(Some(note)) = notes.next() {
                if note.name() == owner && note.n_type(ENDIAN) == kind {
                    return Some(note.desc());
                }
            }
            None
        })
    }
}

impl<'a> Elf<'a> {
    /// Returns `None` if it is not an ELF file for x86-64.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        Self::of(bytes)
    }

    /// Where the last byte that a loader or a reader of symbols looks at ends. Kernels carry relocations behind that.
    pub(crate) fn end(&self) -> usize {
        let header = self.header;
        let table = |at: u64, count: usize, entry_bytes: usize| (at, (count * entry_bytes) as u64);
        let sections = self.sections().unwrap_or_default();
        let tables = [
            table(header.e_phoff(ENDIAN), self.segments.len(), size_of::<ProgramHeader64<LittleEndian>>()),
            table(header.e_shoff(ENDIAN), sections.len(), size_of::<SectionHeader64<LittleEndian>>()),
        ];
        let loaded = self.segments.iter().filter(|segment| segment.p_type(ENDIAN) == PT_LOAD);
        let segments = loaded.map(|segment| segment.file_range(ENDIAN));
        let in_file = sections.iter().filter(|section| section.sh_type(ENDIAN) != SHT_NOBITS);
        let sections = in_file.map(|section| (section.sh_offset(ENDIAN), section.sh_size(ENDIAN)));
        let ends = segments.chain(sections).chain(tables).filter_map(|(start, length)| start.checked_add(length));
        let end = ends.max().and_then(|end| usize::try_from(end).ok()).unwrap_or(0);
        end.min(self.file.len())
    }
}

/// The release that Debian's kernels carry as their build salt, such as `6.1.0-44-cloud-amd64`. Of the file, only
/// headers and notes are read: kernels are large, and this is asked before each boot. A file that can't be read has
/// none.
pub(crate) fn kernel_release(file: &File) -> Option<String> {
    let cache = ReadCache::new(file);
    let text = Elf::of(&cache)?.note(b"Linux", NOTE_BUILD_SALT)?;
    let text = std::str::from_utf8(text).ok()?.trim_end_matches('\0');
    Some(text.to_owned()).filter(|text| !text.is_empty())
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
        std::io::Write::write_all(&mut file, bytes).expect("is written");
        kernel_release(&file)
    }

    #[test]
    fn a_section_is_found_by_its_name() {
        let file = made::elf(".modinfo", b"depends=virtio\0", &[]);
        let elf = Elf::parse(&file).expect("is one");
        assert_eq!(elf.section(".modinfo"), Some(&b"depends=virtio\0"[..]));
        assert_eq!(elf.section(".mod"), None);
    }

    #[test]
    fn a_kernel_with_a_pvh_note_is_recognised_with_its_release() {
        let file = made::elf(".text", b"", &[("Xen", 6, b"linux\0"), PVH, RELEASE]);
        let elf = Elf::parse(&file).expect("is one");
        assert!(elf.has_pvh_entry());
        assert_eq!(release_of(&file).as_deref(), Some("6.1.0-1-cloud-amd64"));

        let file = made::elf(".text", b"", &[("GNU", 18, b"1234")]);
        let elf = Elf::parse(&file).expect("is one");
        assert!(!elf.has_pvh_entry() && release_of(&file).is_none());
    }

    #[test]
    fn bytes_after_the_last_section_do_not_belong_to_the_file() {
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
