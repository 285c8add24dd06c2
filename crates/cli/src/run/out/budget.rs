//! How much all `--out` together may write on this host.

use std::io;

/// What a file, folder or symlink counts in addition to its bytes: its inode and name take blocks of metadata, of which
/// a file system has a limited number.
pub const ENTRY_BYTES: u64 = 16 << 10;
/// Most files, folders and symlinks of one run, whatever `--out-limit` is.
pub const ENTRIES_MAX: u64 = 1 << 20;

/// What may still be written.
#[derive(Debug, Clone)]
pub struct Budget {
    bytes_left: u64,
    entries_left: u64,
    limit_bytes: u64,
}

impl Budget {
    /// A budget of so many bytes. Each entry takes [`ENTRY_BYTES`].
    pub fn new(limit_bytes: u64) -> Self {
        Self { bytes_left: limit_bytes, entries_left: ENTRIES_MAX, limit_bytes }
    }

    /// Takes bytes.
    pub fn bytes(&mut self, bytes: u64) -> io::Result<()> {
        let left = self.bytes_left.checked_sub(bytes);
        self.bytes_left = left.ok_or_else(|| {
            io::Error::other(format!(
                "copied more than the limit of {} bytes, counting {ENTRY_BYTES} for each file (see --out-limit)",
                self.limit_bytes
            ))
        })?;
        Ok(())
    }

    /// Takes a file, folder or symlink.
    pub fn entry(&mut self) -> io::Result<()> {
        let left = self.entries_left.checked_sub(1);
        self.entries_left =
            left.ok_or_else(|| io::Error::other(format!("copied more than the limit of {ENTRIES_MAX} files")))?;
        self.bytes(ENTRY_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_cost_bytes_and_are_counted() {
        let mut budget = Budget::new(2 * ENTRY_BYTES + 10);
        budget.entry().expect("there is room");
        budget.bytes(10).expect("there is room");
        budget.entry().expect("there is room");
        assert!(budget.bytes(1).expect_err("it is empty").to_string().contains("--out-limit"));
        let mut budget = Budget::new(u64::MAX);
        for _ in 0..ENTRIES_MAX {
            budget.entry().expect("there is room");
        }
        assert!(budget.entry().expect_err("it is empty").to_string().contains("files"));
    }
}
