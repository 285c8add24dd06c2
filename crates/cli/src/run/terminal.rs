//! The user's terminal while a command in the guest uses it.

use std::io::stdin;

use kiln_wire::Tty;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// Size of the command's terminal if stdin is not a terminal.
const ROWS: u16 = 24;
const COLS: u16 = 80;

/// A terminal in raw mode. Dropping this restores its mode.
pub struct RawMode(Option<Termios>);

impl RawMode {
    /// Enters raw mode, in which every key is passed on. Does nothing if stdin is not a terminal.
    pub fn enter() -> std::io::Result<Self> {
        let stdin = stdin();
        if !isatty(&stdin) {
            return Ok(Self(None));
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        // Now, without a flush: keys that were typed while the VM booted are for the guest.
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Self(Some(before)))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // Fails only if the terminal no longer exists.
            let _ = tcsetattr(stdin(), OptionalActions::Drain, before);
        }
    }
}

/// The terminal's kind and size now.
pub fn describe() -> Tty {
    let (rows, cols) = size();
    Tty { rows, cols, term: std::env::var("TERM").unwrap_or_default() }
}

/// Rows and columns now.
pub fn size() -> (u16, u16) {
    tcgetwinsize(stdin()).map_or((ROWS, COLS), |size| (size.ws_row, size.ws_col))
}
