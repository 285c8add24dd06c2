//! Where the bytes of files come from: any file that can be read at an offset.

use std::fs::File;
use std::io;

/// Bytes that can be read at any offset: a spool, an image, or bytes in memory.
pub trait Source {
    /// Fills the buffer with the bytes at an offset.
    ///
    /// # Errors
    /// If the source ends before the buffer is full ([`io::ErrorKind::UnexpectedEof`]), or can't be read.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl Source for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buffer, offset)
    }
}

impl Source for [u8] {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let end = start.and_then(|start| start.checked_add(buffer.len()));
        let bytes = start.zip(end).and_then(|(start, end)| self.get(start..end));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_behind_the_end_is_an_error() {
        let bytes: &[u8] = b"0123456789";
        let mut buffer = [0; 4];
        bytes.read_exact_at(&mut buffer, 6).expect("the last bytes");
        assert_eq!(&buffer, b"6789");
        for offset in [7, 10, 11, u64::MAX - 1, u64::MAX] {
            let error = bytes.read_exact_at(&mut buffer, offset).expect_err("behind the end");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}
