//! The end of a command's input on its terminal.
//!
//! After a pipe has ended, each read of it returns the end. A terminal has no such state: its line discipline turns one
//! character (`VEOF`, Ctrl-D) into the end of one read. If the character is written only once, it is easily lost:
//!
//! - A shell that edits its own lines turns the line discipline off. If the character was written before that, the
//!   shell reads a zero byte, which it ignores, and waits forever.
//! - After a line that has no end, the character ends that line and not the input.
//! - If two programs read one after the other, the first takes the character.
//! - A program that prompts for a password discards the input before the prompt.
//!
//! So the character is written again each time the terminal has nothing left to read, as long as the command runs. Then
//! each program that reads gets the end of input, like with a pipe. At most one character is unread at any time. The
//! kernel doesn't signal the master side when the other side has read, so this is the one place in the agent that must
//! poll.
//!
//! ```text
//!   input ended ──▶ write it ──▶ pause ──▶ check ── unread ──▶ pause, twice as long
//!                      ▲                     │
//!                      └────── was read ─────┘
//! ```

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::termios::{LocalModes, SpecialCodeIndex, tcgetattr};
use tokio::time::Instant;

use crate::watched::Watched;

/// Time from writing the character to the first check.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// The longest time between two checks.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Ctrl-D, if the terminal has no other character for it.
const EOF_CHARACTER: u8 = 4;

/// Ended input of a terminal.
#[derive(Debug)]
pub(super) struct InputEnd {
    master: Rc<Watched>,
    pause: Duration,
    check_at: Instant,
}

/// What reads the character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    /// The line discipline, which turns it into an end of input.
    Lines,
    /// The program, which gets it as a key.
    Keys,
}

impl InputEnd {
    /// Writes the end to the terminal of this master side.
    pub(super) fn of(master: Rc<Watched>) -> Self {
        write_end(master.get_ref());
        Self { master, pause: PAUSE_MIN, check_at: Instant::now() + PAUSE_MIN }
    }

    /// When to [`check`](Self::check) again.
    pub(super) fn check_at(&self) -> Instant {
        self.check_at
    }

    /// Writes the end again if there is nothing left to read.
    pub(super) fn check(&mut self) {
        let read_by = if is_unread(self.master.get_ref()) { None } else { Some(write_end(self.master.get_ref())) };
        // The next program may read at once, so the pause is short. A program that reads the character as a key and
        // continues gets it more and more seldom.
        let next = if read_by == Some(Reader::Lines) { PAUSE_MIN } else { self.pause * 2 };
        self.pause = next.min(PAUSE_MAX);
        self.check_at = Instant::now() + self.pause;
    }
}

fn write_end(master: &OwnedFd) -> Reader {
    // On the master side, the modes are those of the terminal.
    let (character, reader) = match tcgetattr(master) {
        Ok(modes) => {
            let lines = modes.local_modes.contains(LocalModes::ICANON);
            (modes.special_codes[SpecialCodeIndex::VEOF], if lines { Reader::Lines } else { Reader::Keys })
        }
        Err(_) => (0, Reader::Keys),
    };
    // Zero means that the terminal has no such character. A program that edits lines itself handles Ctrl-D
    // nevertheless.
    let character = if character == 0 { EOF_CHARACTER } else { character };
    // This fails if the terminal's buffer is full. Then there is something to read, and a later check finds it empty.
    let _ = rustix::io::write(master, &[character]);
    reader
}

/// Whether a read of the terminal would return at once. FIONREAD can't be used, because the end counts as 0 bytes.
fn is_unread(master: &OwnedFd) -> bool {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let Ok(terminal) = ioctl_tiocgptpeer(master, flags) else { return true };
    let mut fds = [PollFd::new(&terminal, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_err() || fds[0].revents().contains(PollFlags::IN)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use rustix::fs::{OFlags, fcntl_setfl};
    use rustix::pty::{openpt, unlockpt};
    use rustix::termios::{OptionalActions, tcsetattr};

    use super::*;
    use crate::watched::watch_writing;

    fn terminal() -> (Rc<Watched>, std::fs::File) {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        unlockpt(&master).expect("unlocked");
        let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("its other side");
        fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK).expect("non-blocking");
        (Rc::new(watch_writing(master).expect("watched")), slave.into())
    }

    #[tokio::test]
    async fn the_end_is_written_again_only_after_it_was_read() {
        let (master, mut slave) = terminal();
        rustix::io::write(&*master, b"no newline").expect("it accepts keys");
        let mut end = InputEnd::of(master);
        let mut buffer = [0; 64];
        assert_eq!(slave.read(&mut buffer).expect("the rest of a line"), 10);
        for _ in 0..3 {
            end.check();
            assert_eq!(end.pause, PAUSE_MIN, "the next reader may be there already");
            end.check();
            assert!(end.pause > PAUSE_MIN, "it was not read yet");
            assert_eq!(slave.read(&mut buffer).expect("the end"), 0);
        }
    }

    #[tokio::test]
    async fn a_program_that_reads_keys_gets_the_end_as_one() {
        let (master, mut slave) = terminal();
        let mut end = InputEnd::of(master);
        let mut buffer = [0; 64];
        assert_eq!(slave.read(&mut buffer).expect("the end"), 0);
        let mut modes = tcgetattr(&slave).expect("modes");
        modes.special_codes[SpecialCodeIndex::VEOF] = 0x05;
        modes.local_modes.remove(LocalModes::ICANON);
        tcsetattr(&slave, OptionalActions::Now, &modes).expect("no lines");
        for _ in 0..12 {
            end.check();
            assert_eq!(slave.read(&mut buffer).expect("a key"), 1);
            assert_eq!(buffer[0], 0x05);
        }
        assert_eq!(end.pause, PAUSE_MAX, "the program gets it once a second");
    }
}
