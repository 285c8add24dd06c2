//! Runs every shell block of `docs/guide` and the README with the real binary, unless a comment has a reason not to.
//!
//! A block is run by `sh -e` in a folder for its page. A line's comment has its expected exit code, which the reader
//! sees too: `# exit code 3`. Without one it is 0. An HTML comment before a block has instructions for the test:
//!
//! ```text
//!   <!-- not run: REASON -->               the block is not shell, or needs something that a test host lacks
//!   <!-- skip kiln verify: REASON -->      lines that begin so are left out
//!   <!-- first: SHELL -->                  what must be there before, such as the file that the block reads
//! ```
//!
//! A block that begins with `$ ` shows what comes out as well: only the lines with the mark are run.

mod blocks;
mod vm_guide;
