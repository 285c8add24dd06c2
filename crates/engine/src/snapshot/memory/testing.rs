//! Memory files, and processes that map them. In tests the process is this one.
#![expect(unsafe_code, reason = "a mapping of guest memory has no safe interface")]

use std::fs::File;
use std::ptr::{self, NonNull};

use camino::{Utf8Path, Utf8PathBuf};

use super::error::MemoryError;
use super::mapping::{Mapping, Sharing};
use super::page_file::{PAGE_BYTES, PageFileWriter, is_zero};

/// The content of a page.
pub(super) type Page = [u8; PAGE_BYTES];

/// A page unlike all others, and not all zeros.
pub(super) fn pattern(number: u64) -> Page {
    let mut page = [1; PAGE_BYTES];
    page[..8].copy_from_slice(&number.to_le_bytes());
    page[PAGE_BYTES - 8..].copy_from_slice(&number.to_le_bytes());
    page
}

/// A page of zeros.
pub(super) fn zeros() -> Page {
    [0; PAGE_BYTES]
}

/// A directory that is removed with the test.
pub(super) struct Here(tempfile::TempDir);

/// A new directory.
pub(super) fn here() -> Here {
    Here(tempfile::tempdir().expect("a directory"))
}

impl Here {
    pub(super) fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8Path::from_path(self.0.path()).expect("UTF-8").join(name)
    }

    /// A new file for reading and writing.
    pub(super) fn file(&self, name: &str) -> File {
        File::create_new(self.path(name)).expect("created");
        File::options().read(true).write(true).open(self.path(name)).expect("opens")
    }

    /// The memory file `memory`.
    pub(super) fn root(&self, pages: &[Page]) -> Utf8PathBuf {
        std::fs::write(self.path("memory"), pages.concat()).expect("written");
        self.path("memory")
    }

    /// A page file.
    pub(super) fn pages(&self, name: &str, guest_pages: u64, pages: &[(u64, Page)]) -> Utf8PathBuf {
        let mut writer = PageFileWriter::new(self.file(name), guest_pages).expect("not too large");
        for (number, page) in pages {
            if is_zero(page) {
                writer.push_zero(*number);
            } else {
                writer.push_stored(*number);
                writer.write_stored(page).expect("written");
            }
        }
        writer.finish().expect("written");
        self.path(name)
    }
}

/// A guest's memory in its VMM: a private mapping of a memory file.
pub(super) struct Memory {
    start: NonNull<u8>,
    bytes: usize,
    path: Utf8PathBuf,
}

impl Memory {
    /// Maps all of a file.
    pub(super) fn map(path: &Utf8Path) -> Self {
        let file = File::open(path).expect("opens");
        let bytes = file.metadata().expect("is there").len() as usize;
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing that is there.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), bytes, access, flags, std::os::fd::AsRawFd::as_raw_fd(&file), 0) };
        assert_ne!(start, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self { start: NonNull::new(start.cast()).expect("no mapping is at zero"), bytes, path: path.to_owned() }
    }

    /// The mapping.
    pub(super) fn mapping(&self) -> Mapping {
        Mapping { start: self.start.as_ptr() as u64, bytes: self.bytes as u64 }
    }

    /// Finds the mapping in the same way as in another process.
    pub(super) fn find(&self, sharing: Sharing) -> Result<Mapping, MemoryError> {
        let file = File::open(&self.path).expect("opens");
        Mapping::find(std::process::id(), &file, &self.path, self.bytes as u64, sharing)
    }

    /// Reads a page.
    pub(super) fn page(&self, number: u64) -> Page {
        let place = self.place(number);
        // SAFETY: `place` checks that the page is in the mapping, which lives as long as `self`. The file is as long.
        unsafe { place.cast::<Page>().read_volatile() }
    }

    /// Writes a page.
    pub(super) fn write(&mut self, number: u64, page: &Page) {
        let place = self.place(number);
        // SAFETY: see `page`; the mapping is writable. Bytes need no alignment.
        unsafe { place.cast::<Page>().write_volatile(*page) }
    }

    /// Gives a page back, so it is the file's again.
    pub(super) fn discard(&mut self, number: u64) {
        let place = self.place(number);
        // SAFETY: see `page`; no reference to the page exists.
        let result = unsafe { libc::madvise(place.as_ptr().cast(), PAGE_BYTES, libc::MADV_DONTNEED) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }

    /// Whether it has these pages.
    pub(super) fn holds(&self, pages: &[Page]) -> bool {
        pages.len() * PAGE_BYTES == self.bytes && (0..).zip(pages).all(|(number, page)| self.page(number) == *page)
    }

    fn place(&self, number: u64) -> NonNull<u8> {
        let offset = number as usize * PAGE_BYTES;
        assert!(offset + PAGE_BYTES <= self.bytes, "a page of the mapping");
        // SAFETY: the offset was just checked to be inside of the mapping.
        unsafe { self.start.add(offset) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping belongs to this value, and no reference into it exists.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
