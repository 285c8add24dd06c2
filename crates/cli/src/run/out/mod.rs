//! The host's end of `--out`: an archive from a guest, which is never trusted with a path, a size, a count or a mode.
//!
//! ```text
//!   pieces ──▶ Arriving (Budget) ──▶ Members ─┬▶ .kiln-out-…/whole ── whole, and the agent said so ──▶ place
//!                                             └▶ a device, a FIFO, stdout: written into as it comes
//! ```
//!
//! What is there keeps its kind: a file stays a file with its mode, a folder is merged into, a device or FIFO is written
//! into. Before anything is moved to its place, all of it is here, and nothing of it is in the way of another kind.

mod arriving;
mod budget;
mod merge;
mod place;
mod staging;
mod stream;
mod target;
mod unpack;

#[cfg(test)]
mod tests;

use std::io;

use tokio::sync::mpsc;

pub use arriving::Piece;
pub use budget::Budget;
pub use target::Target;

/// Takes an archive, whose first entry becomes the target and whose others are below it. Gives what was left out of it,
/// by name.
pub fn take(pieces: mpsc::Receiver<Piece>, target: &Target, budget: &mut Budget) -> io::Result<LeftOut> {
    let mut spent = budget.clone();
    let outcome = match target {
        Target::Stream(stream) => {
            let outcome = stream::write(pieces, stream, &mut spent).map(|()| LeftOut::default());
            // What went into a stream is there, whatever came of the rest.
            *budget = spent;
            return outcome;
        }
        target => unpack::unpack(pieces, target, &mut spent),
    };
    if outcome.is_ok() {
        *budget = spent;
    }
    outcome
}

/// Names of what was left out that are kept; the count goes on.
const LEFT_OUT_NAMES_MAX: usize = 256;

/// What of an archive was left out: symlinks that lead out of it.
#[derive(Debug, Default)]
pub struct LeftOut {
    /// Each in words.
    pub words: Vec<String>,
    /// How many more there were.
    pub more: u64,
}

impl LeftOut {
    fn add(&mut self, words: String) {
        if self.words.len() < LEFT_OUT_NAMES_MAX {
            self.words.push(words);
        } else {
            self.more += 1;
        }
    }
}
