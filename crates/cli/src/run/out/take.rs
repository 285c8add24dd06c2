//! Unpacks an archive to its target, and collects what was left out.

use std::io;

use tokio::sync::mpsc;

use super::arriving::Piece;
use super::budget::Budget;
use super::target::Target;
use super::{stream, unpack};

/// Unpacks an archive. Its first entry becomes the target, the others must be below it. Returns what was left out.
pub fn take(pieces: mpsc::Receiver<Piece>, target: &Target, budget: &mut Budget) -> io::Result<LeftOut> {
    let mut spent = budget.clone();
    let outcome = match target {
        Target::Stream(stream) => {
            let outcome = stream::write(pieces, stream, &mut spent).map(|()| LeftOut::default());
            // Bytes that were written to a stream count even if the rest failed.
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

/// Most names of left out files that are kept. Further files are only counted.
const LEFT_OUT_NAMES_MAX: usize = 256;

/// What was left out of an archive: symlinks that point outside it.
#[derive(Debug, Default)]
pub struct LeftOut {
    /// One line for each.
    pub words: Vec<String>,
    /// Number of further files.
    pub more: u64,
}

impl LeftOut {
    pub(super) fn add(&mut self, words: String) {
        if self.words.len() < LEFT_OUT_NAMES_MAX {
            self.words.push(words);
        } else {
            self.more += 1;
        }
    }
}
