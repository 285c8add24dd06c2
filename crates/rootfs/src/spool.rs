//! The contents of files on their way from layers to the image: one file on disk without a name.
//!
//! ```text
//!   body() ──▶ BodyWriter ──▶ data(offset, bytes) … ──▶ finish(size) ──▶ Body, with extents in the spool
//! ```
//!
//! A body is stored in blocks of 4 KiB, and a block that has only zeros is not stored: it becomes a hole. So bodies with
//! the same bytes get the same extents and the same digest, however an archive has written their holes, and a file full
//! of zeros costs nothing. A body that is already there is not kept twice: after its digest is known, its bytes are
//! overwritten by the next body.
//!
//! The file has no name from the start, so nothing is left of it after a crash. Its size is bounded, and so is what it
//! takes of the disk: a part of the disk stays free for others.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::body::BodyHasher;
use crate::source::Source;
use crate::tree::{Body, Extent};

/// Holes and data begin and end at multiples of this, except at the end of a file.
pub const SPOOL_BLOCK_BYTES: usize = 4096;
/// Bytes that are collected before they are written.
const PENDING_BYTES_MAX: usize = 1 << 20;
/// Bytes that are written between two looks at the free space of the disk.
const SPACE_CHECK_BYTES: u64 = 64 << 20;

/// How much a spool may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoolLimits {
    /// Bytes of all bodies together, each counted once.
    pub bytes_max: u64,
    /// Bytes of the disk that stay free.
    pub reserve_bytes: u64,
}

impl Default for SpoolLimits {
    /// 16 GiB, and 512 MiB of the disk stay free.
    fn default() -> Self {
        Self { bytes_max: 16 << 30, reserve_bytes: 512 << 20 }
    }
}

/// Why a body can't be stored.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The file can't be created.
    #[error("failed to create a temporary file in `{folder}`")]
    Create {
        /// The folder for it.
        folder: PathBuf,
        /// What the system reports.
        #[source]
        source: io::Error,
    },
    /// The file can't be written.
    #[error("failed to write a temporary file in `{folder}`")]
    Write {
        /// Its folder.
        folder: PathBuf,
        /// What the system reports.
        #[source]
        source: io::Error,
    },
    /// The bodies are over their limit.
    #[error("the files have more than {bytes_max} bytes of data in all")]
    TooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// The disk is full, or would be.
    #[error("no space in `{folder}`: it has {free_bytes} bytes free, of which {reserve_bytes} stay free")]
    NoSpace {
        /// The folder of the file.
        folder: PathBuf,
        /// What the disk has.
        free_bytes: u64,
        /// What stays free.
        reserve_bytes: u64,
    },
}

impl SpoolError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoSpace { folder, .. } => Some(format!("free some space on the disk of `{}`", folder.display())),
            Self::Create { .. } | Self::Write { .. } | Self::TooLarge { .. } => None,
        }
    }
}

/// The contents of files, one after the other, without their holes.
#[derive(Debug)]
pub struct Spool {
    file: File,
    folder: PathBuf,
    limits: SpoolLimits,
    /// End of the last finished body.
    end: u64,
    /// Bytes that belong behind what is written.
    pending: Vec<u8>,
    /// Offset of the pending bytes.
    written: u64,
    /// Bytes that may be written before the free space is looked at again.
    unchecked_bytes: u64,
    /// Start of each body that has data, by its digest.
    stored: HashMap<[u8; 32], u64>,
    /// The block that the current body has begun.
    block: Vec<u8>,
}

impl Spool {
    /// Creates an unnamed file in a folder, which should be on the disk that has the most room.
    ///
    /// # Errors
    /// If the file can't be created, or the disk has less free space than is to stay free.
    pub fn new(folder: &Path, limits: SpoolLimits) -> Result<Self, SpoolError> {
        let file = tempfile::tempfile_in(folder);
        let file = file.map_err(|source| SpoolError::Create { folder: folder.to_owned(), source })?;
        let mut spool = Self {
            file,
            folder: folder.to_owned(),
            limits,
            end: 0,
            pending: Vec::with_capacity(PENDING_BYTES_MAX),
            written: 0,
            unchecked_bytes: 0,
            stored: HashMap::new(),
            block: Vec::with_capacity(SPOOL_BLOCK_BYTES),
        };
        spool.expect_space(0)?;
        Ok(spool)
    }

    /// Bytes of all bodies, without holes.
    pub fn bytes(&self) -> u64 {
        self.end
    }

    /// The file, for copies inside the kernel. It has all bodies after [`Spool::flush`].
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes what is still in memory.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn flush(&mut self) -> Result<(), SpoolError> {
        let pending = std::mem::take(&mut self.pending);
        let outcome = self.write(&pending);
        self.pending = pending;
        self.pending.clear();
        outcome
    }

    /// Starts a body. One that was started before and not finished is dropped.
    pub fn body(&mut self) -> BodyWriter<'_> {
        self.truncate(self.end);
        self.block.clear();
        BodyWriter { spool: self, position: 0, extents: Vec::new(), hasher: BodyHasher::default() }
    }

    /// Forgets what is behind an offset. Nothing is done to the file, which the next bodies overwrite.
    fn truncate(&mut self, end: u64) {
        match end.checked_sub(self.written) {
            Some(kept) => self.pending.truncate(usize::try_from(kept).unwrap_or(usize::MAX)),
            None => {
                self.pending.clear();
                self.written = end;
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        let end = self.written + (self.pending.len() + bytes.len()) as u64;
        if end > self.limits.bytes_max {
            return Err(SpoolError::TooLarge { bytes_max: self.limits.bytes_max });
        }
        if self.pending.len() + bytes.len() > PENDING_BYTES_MAX {
            self.flush()?;
        }
        if bytes.len() > PENDING_BYTES_MAX {
            return self.write(bytes);
        }
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes behind what is written.
    fn write(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        let count = bytes.len() as u64;
        if count > self.unchecked_bytes {
            self.expect_space(count)?;
        }
        self.unchecked_bytes = self.unchecked_bytes.saturating_sub(count);
        self.file.write_all_at(bytes, self.written).map_err(|source| match source.raw_os_error() {
            Some(code) if code == Errno::NOSPC.raw_os_error() || code == Errno::DQUOT.raw_os_error() => {
                self.no_space(0)
            }
            _ => SpoolError::Write { folder: self.folder.clone(), source },
        })?;
        self.written += count;
        Ok(())
    }

    /// Refuses to write so many bytes if too little would stay free. Other programs write too, so the free space is looked
    /// at again and again.
    fn expect_space(&mut self, bytes: u64) -> Result<(), SpoolError> {
        let disk = rustix::fs::fstatvfs(&self.file)
            .map_err(|errno| SpoolError::Write { folder: self.folder.clone(), source: errno.into() })?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let Some(left) = free.checked_sub(self.limits.reserve_bytes).and_then(|left| left.checked_sub(bytes)) else {
            return Err(self.no_space(free));
        };
        self.unchecked_bytes = bytes + left.min(SPACE_CHECK_BYTES);
        Ok(())
    }

    fn no_space(&self, free_bytes: u64) -> SpoolError {
        let reserve_bytes = self.limits.reserve_bytes;
        SpoolError::NoSpace { folder: self.folder.clone(), free_bytes, reserve_bytes }
    }
}

/// Offsets are those of extents. What is not written yet is read from memory.
impl Source for Spool {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let in_file = usize::try_from(self.written.saturating_sub(offset)).unwrap_or(usize::MAX).min(buffer.len());
        let (in_file, pending) = buffer.split_at_mut(in_file);
        if !in_file.is_empty() {
            Source::read_exact_at(&self.file, in_file, offset)?;
        }
        let start = usize::try_from(offset.saturating_sub(self.written)).unwrap_or(usize::MAX);
        let bytes = start.checked_add(pending.len()).and_then(|end| self.pending.get(start..end));
        pending.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A body that is being stored.
#[derive(Debug)]
pub struct BodyWriter<'a> {
    spool: &'a mut Spool,
    /// Bytes of the body so far, holes included. Those after the last whole block are in the spool's `block`.
    position: u64,
    extents: Vec<Extent>,
    hasher: BodyHasher,
}

impl BodyWriter<'_> {
    /// Adds bytes at an offset, which is at or behind the end of the last ones. A gap between them is a hole.
    ///
    /// # Errors
    /// If the spool is full or can't be written.
    ///
    /// # Panics
    /// If the offset is before the end of the last bytes.
    pub fn data(&mut self, offset: u64, mut bytes: &[u8]) -> Result<(), SpoolError> {
        self.zeros(offset)?;
        if !self.spool.block.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(SPOOL_BLOCK_BYTES - self.spool.block.len()));
            self.spool.block.extend_from_slice(head);
            self.position += head.len() as u64;
            self.end_full_block()?;
            bytes = rest;
        }
        let (blocks, rest) = bytes.split_at(bytes.len() / SPOOL_BLOCK_BYTES * SPOOL_BLOCK_BYTES);
        self.blocks(blocks)?;
        self.spool.block.extend_from_slice(rest);
        self.position += rest.len() as u64;
        Ok(())
    }

    /// Ends the body, which has this size; what is behind its last bytes is a hole.
    ///
    /// # Errors
    /// If the spool is full or can't be written.
    ///
    /// # Panics
    /// If the size is before the end of the last bytes.
    pub fn finish(mut self, size: u64) -> Result<Body, SpoolError> {
        self.zeros(size)?;
        let last = std::mem::take(&mut self.spool.block);
        if !is_zero(&last) {
            self.store(size - last.len() as u64, &last)?;
        }
        self.spool.block = last;
        let Self { spool, mut extents, hasher, .. } = self;
        let digest = hasher.finish(size);
        if let Some(first) = extents.first() {
            let start = first.spool_offset;
            if let Some(stored) = spool.stored.get(&digest) {
                for extent in &mut extents {
                    extent.spool_offset = extent.spool_offset - start + stored;
                }
                spool.truncate(spool.end);
            } else {
                spool.stored.insert(digest, start);
                spool.end = spool.written + spool.pending.len() as u64;
            }
        }
        extents.shrink_to_fit();
        Ok(Body { size, extents, digest })
    }

    /// Adds a hole up to an offset. Whole blocks of it cost nothing.
    fn zeros(&mut self, to: u64) -> Result<(), SpoolError> {
        let mut count = to.checked_sub(self.position).expect("the parts of a body are in order");
        if !self.spool.block.is_empty() {
            let some = count.min((SPOOL_BLOCK_BYTES - self.spool.block.len()) as u64);
            self.add_zeros(some);
            self.end_full_block()?;
            count -= some;
        }
        let rest = count % SPOOL_BLOCK_BYTES as u64;
        self.position += count - rest;
        self.add_zeros(rest);
        Ok(())
    }

    /// Adds less than a block.
    fn add_zeros(&mut self, count: u64) {
        let length = self.spool.block.len() + usize::try_from(count).expect("less than a block");
        self.spool.block.resize(length, 0);
        self.position += count;
    }

    fn end_full_block(&mut self) -> Result<(), SpoolError> {
        if self.spool.block.len() < SPOOL_BLOCK_BYTES {
            return Ok(());
        }
        let block = std::mem::take(&mut self.spool.block);
        if !is_zero(&block) {
            self.store(self.position - SPOOL_BLOCK_BYTES as u64, &block)?;
        }
        self.spool.block = block;
        self.spool.block.clear();
        Ok(())
    }

    /// Adds whole blocks: those without data are left out, the others are stored in runs as long as possible.
    fn blocks(&mut self, mut blocks: &[u8]) -> Result<(), SpoolError> {
        let run = |blocks: &[u8], zero: bool| {
            blocks.chunks_exact(SPOOL_BLOCK_BYTES).take_while(|block| is_zero(block) == zero).count()
                * SPOOL_BLOCK_BYTES
        };
        while !blocks.is_empty() {
            let hole = run(blocks, true);
            self.position += hole as u64;
            blocks = &blocks[hole..];
            let (data, rest) = blocks.split_at(run(blocks, false));
            if !data.is_empty() {
                self.store(self.position, data)?;
            }
            self.position += data.len() as u64;
            blocks = rest;
        }
        Ok(())
    }

    fn store(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SpoolError> {
        let spool_offset = self.spool.written + self.spool.pending.len() as u64;
        self.spool.append(bytes)?;
        self.hasher.data(offset, bytes);
        let count = bytes.len() as u64;
        match self.extents.last_mut() {
            Some(last) if last.offset + last.bytes == offset => last.bytes += count,
            _ => self.extents.push(Extent { offset, bytes: count, spool_offset }),
        }
        Ok(())
    }
}

/// Whether all bytes are 0. In parts, so that the compiler can compare many at once.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(128).all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCK: u64 = SPOOL_BLOCK_BYTES as u64;

    fn spool() -> Spool {
        limited(SpoolLimits { bytes_max: 1 << 30, reserve_bytes: 0 })
    }

    fn limited(limits: SpoolLimits) -> Spool {
        Spool::new(&std::env::temp_dir(), limits).expect("a folder")
    }

    fn body(spool: &mut Spool, parts: &[(u64, &[u8])], size: u64) -> Result<Body, SpoolError> {
        let mut writer = spool.body();
        for (offset, bytes) in parts {
            writer.data(*offset, bytes)?;
        }
        writer.finish(size)
    }

    fn content(spool: &Spool, body: &Body) -> Vec<u8> {
        let mut content = vec![0; usize::try_from(body.size).expect("small")];
        for extent in &body.extents {
            let (start, end) = (extent.offset as usize, (extent.offset + extent.bytes) as usize);
            spool.read_exact_at(&mut content[start..end], extent.spool_offset).expect("it is there");
        }
        content
    }

    #[test]
    fn equal_bodies_are_stored_once() {
        let mut spool = spool();
        let first = body(&mut spool, &[(0, &[7; 10_000])], 10_000).expect("room");
        let other = body(&mut spool, &[(0, b"other")], 5).expect("room");
        let again = body(&mut spool, &[(0, &[7; 10_000])], 10_000).expect("room");
        assert_eq!((first.extents == again.extents, first.digest == again.digest), (true, true));
        assert_eq!(spool.bytes(), 10_005);
        let last = body(&mut spool, &[(0, b"last")], 4).expect("room");
        assert_eq!(content(&spool, &last), b"last");
        assert_eq!((content(&spool, &other), content(&spool, &first)), (b"other".to_vec(), vec![7; 10_000]));
    }

    #[test]
    fn equal_bodies_that_are_already_on_disk_are_stored_once() {
        let mut spool = spool();
        let large: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
        let first = body(&mut spool, &[(0, &large)], 3_000_000).expect("room");
        let again = body(&mut spool, &[(0, &large)], 3_000_000).expect("room");
        let last = body(&mut spool, &[(0, &large[1..])], 2_999_999).expect("room");
        spool.flush().expect("room");
        assert_eq!((first == again, spool.bytes()), (true, 5_999_999));
        assert_eq!(spool.file().metadata().expect("a file").len(), 5_999_999);
        assert!(content(&spool, &last) == large[1..] && content(&spool, &first) == large);
    }

    #[test]
    fn zeros_cost_nothing_and_the_way_they_were_written_does_not_count() {
        let mut spool = spool();
        let written = body(&mut spool, &[(0, &vec![0; 1 << 20]), (1 << 20, b"x")], 1 << 40).expect("room");
        let hole = body(&mut spool, &[(1 << 20, b"x")], 1 << 40).expect("room");
        assert_eq!((written == hole, spool.bytes()), (true, BLOCK));
        let empty = body(&mut spool, &[], 1 << 40).expect("room");
        assert_eq!((empty.extents.len(), spool.bytes()), (0, BLOCK));
        assert_ne!(empty.digest, body(&mut spool, &[], 0).expect("room").digest, "the size counts");
    }

    #[test]
    fn the_place_of_data_counts_in_the_digest() {
        let mut spool = spool();
        let digests = [(0, 9000), (BLOCK, 9000), (0, 9001)]
            .map(|(offset, size)| body(&mut spool, &[(offset, &[1; SPOOL_BLOCK_BYTES])], size).expect("room").digest);
        assert!(digests[0] != digests[1] && digests[0] != digests[2]);
    }

    #[test]
    fn more_bytes_than_the_limit_are_refused_as_they_come() {
        let mut spool = limited(SpoolLimits { bytes_max: 10_000, reserve_bytes: 0 });
        body(&mut spool, &[(0, &[1; 6000])], 6000).expect("room");
        let error = body(&mut spool, &[(0, &[2; 6000])], 6000).expect_err("no room");
        assert!(matches!(error, SpoolError::TooLarge { bytes_max: 10_000 }), "{error}");
        body(&mut spool, &[(0, &[1; 6000])], 6000).expect_err("there is no room to compare them");
        body(&mut spool, &[(0, &[3; 4000])], 4000).expect("what was refused takes no room");
    }

    #[test]
    fn the_reserve_of_the_disk_is_not_touched() {
        let limits = SpoolLimits { bytes_max: u64::MAX, reserve_bytes: 1 << 60 };
        let error = Spool::new(&std::env::temp_dir(), limits).expect_err("no disk has that much");
        assert!(matches!(error, SpoolError::NoSpace { .. }), "{error}");
        let mut spool = spool();
        spool.limits.reserve_bytes = 1 << 60;
        spool.unchecked_bytes = 0;
        body(&mut spool, &[(0, &vec![1; 2 * PENDING_BYTES_MAX])], 2 << 20).expect_err("the disk filled up meanwhile");
    }

    #[test]
    fn errors_read_like_this() {
        let folder = PathBuf::from("/spool");
        let io = || io::Error::from(io::ErrorKind::PermissionDenied);
        let errors = [
            SpoolError::Create { folder: folder.clone(), source: io() },
            SpoolError::Write { folder: folder.clone(), source: io() },
            SpoolError::TooLarge { bytes_max: 17_179_869_184 },
            SpoolError::NoSpace { folder, free_bytes: 1024, reserve_bytes: 536_870_912 },
        ];
        let lines = errors.map(|error| match error.hint() {
            Some(hint) => format!("{error}\nhint: {hint}"),
            None => error.to_string(),
        });
        insta::assert_snapshot!(lines.join("\n"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn a_body_has_what_was_written_in_whole_blocks(
            parts in prop::collection::vec((0_u64..20_000, 0_usize..20_000, any::<bool>()), 0..6),
            tail in 0_u64..10_000,
        ) {
            let mut spool = spool();
            let (mut model, mut writer) = (Vec::new(), spool.body());
            for (gap, count, zero) in parts {
                let bytes: Vec<u8> = (0..count).map(|at| if zero { 0 } else { (at / 5000) as u8 }).collect();
                let offset = model.len() as u64 + gap;
                writer.data(offset, &bytes).expect("room");
                model.resize(offset as usize, 0);
                model.extend_from_slice(&bytes);
            }
            model.resize(model.len() + tail as usize, 0);
            let body = writer.finish(model.len() as u64).expect("room");
            prop_assert!(content(&spool, &body) == model);
            let mut end = 0;
            for extent in &body.extents {
                prop_assert!(extent.bytes > 0 && extent.offset % BLOCK == 0 && extent.offset >= end);
                prop_assert!(end == 0 || extent.offset > end, "parts without a hole between them are one part");
                end = extent.offset + extent.bytes;
                prop_assert!(end == body.size || end % BLOCK == 0);
            }
            for (at, block) in model.chunks(SPOOL_BLOCK_BYTES).enumerate() {
                let at = at as u64 * BLOCK;
                let stored = body.extents.iter().any(|extent| (extent.offset..extent.offset + extent.bytes).contains(&at));
                prop_assert_eq!(stored, block.iter().any(|byte| *byte != 0));
            }
        }
    }
}
