//! Finds where a process has mapped a memory file, in `/proc/<pid>/maps`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;

use camino::Utf8Path;

use super::error::MemoryError;
use super::page_file::PAGE_BYTES;
use crate::snapshot::MEMORY_FILE;

/// By default a process has at most 65530 mappings, and most lines are short.
const MAPS_BYTES_MAX: u64 = 16 << 20;
/// A path of 4096 bytes, some of them escaped, and the fields before it.
const LINE_BYTES_MAX: u64 = 16 << 10;

/// Memory of another process that maps a file from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// Its address in that process.
    pub(crate) start: u64,
    /// Its size, a multiple of the page size.
    pub(crate) bytes: u64,
}

/// Where writes to a mapping go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// To the process only: a restored VM.
    Private,
    /// To the file: a VM that was booted.
    Shared,
}

impl Mapping {
    /// Finds the one mapping of the first `bytes` of `file`, whose path is `path`, in the process.
    pub(crate) fn find(
        pid: u32,
        file: &File,
        path: &Utf8Path,
        bytes: u64,
        sharing: Sharing,
    ) -> Result<Self, MemoryError> {
        let wanted = Wanted::new(file, bytes, sharing).map_err(MemoryError::file("inspect", path))?;
        let maps =
            File::open(format!("/proc/{pid}/maps")).map_err(MemoryError::process("inspect the mappings of", pid))?;
        let areas = wanted.areas(BufReader::new(maps)).map_err(MemoryError::process("read the mappings of", pid))?;
        wanted.choose(&areas).map_err(|problem| MemoryError::NotMapped { pid, path: path.to_owned(), problem })
    }

    /// The memory file below `directory` that the process has mapped privately.
    pub(crate) fn private_file(pid: u32, directory: &Utf8Path) -> Result<File, MemoryError> {
        let failed = |source| MemoryError::Process { what: "read the mappings of", pid, source };
        let directory = directory.canonicalize_utf8().map_err(MemoryError::file("find", directory))?;
        let maps = File::open(format!("/proc/{pid}/maps")).map_err(failed)?;
        let mut found = None;
        each_line(BufReader::new(maps), |line| {
            let Some(([_, access, offset, ..], path)) = split_fields::<5>(line) else { return };
            let path = str::from_utf8(path).ok().map(Utf8Path::new);
            let is_memory = |path: &&Utf8Path| path.starts_with(&directory) && path.file_name() == Some(MEMORY_FILE);
            if access.ends_with('p') && offset.bytes().all(|digit| digit == b'0') {
                found = path.filter(is_memory).map(Utf8Path::to_owned).or(found.take());
            }
        })
        .map_err(failed)?;
        let none = || io::Error::new(io::ErrorKind::NotFound, "it maps no snapshot's memory");
        let path = found.ok_or_else(none).map_err(failed)?;
        File::open(&path).map_err(MemoryError::file("open", &path))
    }

    /// The number of its pages.
    pub(crate) fn pages(&self) -> u64 {
        self.bytes / PAGE_BYTES as u64
    }

    /// The address of a page in the process.
    pub(super) fn address(&self, page: u64) -> u64 {
        debug_assert!(page <= self.pages(), "a page of the mapping, or its end");
        self.start + page * PAGE_BYTES as u64
    }
}

/// The mapping that is searched for.
struct Wanted {
    device: (u32, u32),
    inode: u64,
    path: Vec<u8>,
    bytes: u64,
    sharing: Sharing,
}

/// A mapping of the file, or several neighbours that continue each other.
#[derive(Debug, PartialEq, Eq)]
struct Area {
    addresses: Range<u64>,
    offset: u64,
}

impl Wanted {
    fn new(file: &File, bytes: u64, sharing: Sharing) -> io::Result<Self> {
        let meta = file.metadata()?;
        let device = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
        let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        Ok(Self { device, inode: meta.ino(), path: path.as_os_str().as_bytes().to_vec(), bytes, sharing })
    }

    fn areas(&self, maps: impl BufRead) -> io::Result<Vec<Area>> {
        let mut areas = Vec::<Area>::new();
        each_line(maps, |line| match (self.area(line), areas.last_mut()) {
            (Some(area), Some(last)) if last.is_continued_by(&area) => last.addresses.end = area.addresses.end,
            (Some(area), _) => areas.push(area),
            (None, _) => {}
        })?;
        Ok(areas)
    }

    /// Parses a line that belongs to this file: `start-end rwxp offset major:minor inode      path`.
    fn area(&self, line: &[u8]) -> Option<Area> {
        let (fields, path) = split_fields::<5>(line)?;
        let [addresses, access, offset, device, inode] = fields;
        let (start, end) = addresses.split_once('-')?;
        let (major, minor) = device.split_once(':')?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let device = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
        let sharing = if access.ends_with('p') { Sharing::Private } else { Sharing::Shared };
        // On overlays and on filesystems with subvolumes, this device number is not the one that `stat` returns. There
        // the path identifies the file.
        let same_file = inode.parse() == Ok(self.inode) && (device == self.device || path == self.path);
        (same_file && sharing == self.sharing).then_some(())?;
        Some(Area { addresses: hex(start)?..hex(end)?, offset: hex(offset)? })
    }

    fn choose(&self, areas: &[Area]) -> Result<Mapping, String> {
        let bytes = |area: &Area| area.addresses.end.saturating_sub(area.addresses.start);
        let mut whole = areas.iter().filter(|area| area.offset == 0 && bytes(area) == self.bytes);
        match (whole.next(), whole.next()) {
            (Some(area), None) => Ok(Mapping { start: area.addresses.start, bytes: self.bytes }),
            (Some(_), Some(_)) => Err("it is mapped more than once".into()),
            (None, _) => {
                let sharing = if self.sharing == Sharing::Private { "private" } else { "shared" };
                let found = areas.iter().map(|area| format!("{} from {}", bytes(area), area.offset)).take(3);
                let found = match found.collect::<Vec<_>>().join(", ") {
                    none if none.is_empty() => "nothing".to_owned(),
                    some => some,
                };
                Err(format!("of {} bytes it has a {sharing} mapping of {found}", self.bytes))
            }
        }
    }
}

impl Area {
    fn is_continued_by(&self, next: &Self) -> bool {
        let bytes = self.addresses.end.saturating_sub(self.addresses.start);
        self.addresses.end == next.addresses.start && self.offset.checked_add(bytes) == Some(next.offset)
    }
}

/// Calls `look` with each line, without its end.
fn each_line(mut maps: impl BufRead, mut look: impl FnMut(&[u8])) -> io::Result<()> {
    let (mut line, mut total) = (Vec::new(), 0);
    loop {
        line.clear();
        let got = maps.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? as u64;
        total += got;
        if got == LINE_BYTES_MAX || total > MAPS_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "there is more of them than can be"));
        }
        if got == 0 {
            return Ok(());
        }
        look(line.strip_suffix(b"\n").unwrap_or(&line));
    }
}

/// The first `N` fields, and what follows them and the spaces after them.
fn split_fields<const N: usize>(line: &[u8]) -> Option<([&str; N], &[u8])> {
    let (mut fields, mut rest) = ([""; N], line);
    for field in &mut fields {
        let end = rest.iter().position(|&byte| byte == b' ').unwrap_or(rest.len());
        *field = str::from_utf8(&rest[..end]).ok()?;
        rest = rest[end..].trim_ascii_start();
    }
    Some((fields, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::memory::testing::{Memory, here, pattern};

    fn wanted() -> Wanted {
        Wanted { device: (0xfe, 1), inode: 77, path: b"/a b/memory".to_vec(), bytes: 0x3000, sharing: Sharing::Private }
    }

    fn chosen(maps: &str) -> Result<Mapping, String> {
        let wanted = wanted();
        wanted.choose(&wanted.areas(maps.as_bytes()).expect("reads"))
    }

    #[test]
    fn neighbours_that_continue_each_other_are_one_mapping() {
        let maps = "5000-6000 r-xp 00000000 fe:01 12    /bin/vmm\n\
             7000-8000 rw-p 00000000 fe:01 77    /a b/memory\n\
             8000-9000 ---p 00001000 fe:01 77    /a b/memory\n\
             9000-a000 rw-p 00002000 fe:01 77    /a b/memory\n\
             a000-b000 rw-p 00000000 00:00 0 \n";
        assert_eq!(chosen(maps), Ok(Mapping { start: 0x7000, bytes: 0x3000 }));
    }

    #[test]
    fn another_device_number_is_the_same_file_by_its_path() {
        let maps = "7000-a000 rw-p 00000000 00:31 77    /a b/memory\n";
        assert_eq!(chosen(maps), Ok(Mapping { start: 0x7000, bytes: 0x3000 }));
        chosen("7000-a000 rw-p 00000000 00:31 77    /a/memory\n").expect_err("is another file");
    }

    #[test]
    fn gaps_shared_mappings_doubles_and_parts_are_refused() {
        let gap = "7000-8000 rw-p 00000000 fe:01 77 /m\n9000-b000 rw-p 00001000 fe:01 77 /m\n";
        assert!(chosen(gap).expect_err("has a gap").ends_with("mapping of 4096 from 0, 8192 from 4096"));
        let skip = "7000-8000 rw-p 00000000 fe:01 77 /m\n8000-a000 rw-p 00002000 fe:01 77 /m\n";
        chosen(skip).expect_err("misses a page");
        let shared = "7000-a000 rw-s 00000000 fe:01 77 /m\n";
        assert!(chosen(shared).expect_err("is shared").ends_with("a private mapping of nothing"));
        let twice = "7000-a000 rw-p 00000000 fe:01 77 /m\nb000-e000 rw-p 00000000 fe:01 77 /m\n";
        chosen(twice).expect_err("is ambiguous");
        let odd = "a000-7000 rw-p 00000000 fe:01 77 /m\nx rw-p\n\n-\n7000-8000 rw-p fe:01\n";
        chosen(odd).expect_err("makes no sense");
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let endless = BufReader::new(io::repeat(b'a'));
        wanted().areas(endless).expect_err("is too long");
    }

    #[test]
    fn a_mapping_of_this_process_is_found() {
        let home = here();
        let memory = Memory::map(&home.root(&[pattern(1), pattern(2), pattern(3)]));
        let found = memory.find(Sharing::Private).expect("found");
        assert_eq!((found, found.pages()), (memory.mapping(), 3));
        memory.find(Sharing::Shared).expect_err("is private");
    }
}
