//! The user's terminal while a guest has it.

use std::io::stdin;

use kiln_wire::Tty;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// Size for a command with a terminal when the user has none.
const ROWS: u16 = 24;
const COLS: u16 = 80;

/// A terminal in raw mode; it is put back when this is dropped.
pub struct RawMode(Option<Termios>);

impl RawMode {
    /// Passes every key on as it is; nothing happens where stdin is no terminal.
    pub fn enter() -> std::io::Result<Self> {
        let stdin = stdin();
        if !isatty(&stdin) {
            return Ok(Self(None));
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        // What was typed while the VM booted is for the guest.
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Self(Some(before)))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // The terminal is gone where this fails.
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
