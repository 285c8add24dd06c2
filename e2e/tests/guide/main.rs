//! The guide's commands do what the guide says: every shell block of `docs/guide` and the README is run by the real
//! binary, or says why not.
//!
//! A block is run by `sh -e` in a folder of its page. What a line is expected to end with stands in its comment, as the
//! reader sees it: `# exit code 3`; without one it is 0. A comment of HTML before a block tells the test more:
//!
//! ```text
//!   <!-- not run: REASON -->               the block is no shell, or needs what is not here; the reason is for people
//!   <!-- skip kiln verify: REASON -->      lines that begin so are left out
//!   <!-- first: SHELL -->                  what must be there before, such as the file that the block reads
//! ```
//!
//! A block that begins with `$ ` shows what comes out as well: only the lines with the mark are run.

mod blocks;
mod vm_guide;
