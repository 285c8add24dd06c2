//! The user's terminal while a command in the guest uses it.
//!
//! # When the mode changes
//! In raw mode Ctrl-C is a byte like any other, which the guest's terminal interprets. It raises no signal here. So raw
//! mode begins only after the command has started: until then Ctrl-C must still end kiln, for example while the VM
//! boots.
//!
//! It ends directly after the command, before anything else is printed. A terminal in raw mode does not turn a newline
//! into carriage return and newline, so each line of a message would start where the line before ended. It must also
//! end before the process does: `main` calls `exit`, which runs no destructors, and a shell whose terminal stays in raw
//! mode shows no typed keys. The mode is restored by a destructor, so an error or an interrupt that ends the command
//! restores it too.
//!
//! Entering takes effect at once and keeps typed keys, because they are meant for the guest. Leaving waits until the
//! output is written (`Drain`): the last bytes of the guest have its own carriage returns and must be shown in the mode
//! that they were written for. Keys that were typed since then are for the user's shell, so they are kept as well.

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
