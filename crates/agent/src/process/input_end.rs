//! The end of a command's input on its terminal.
//!
//! A pipe that has ended reads as ended for as long as anyone reads it. A terminal has no such state: its line discipline
//! turns one character (`VEOF`, Ctrl-D) into the end of one read. Typed once it is easily lost:
//!
//! - A shell that edits its line turns the line discipline off. If the character came before that, the shell reads a byte
//!   of zero, which means nothing to it, and waits for ever.
//! - Behind a line that has no end the character ends that line, not the input.
//! - Of two programs that read one after the other, the first takes it.
//! - A program that asks for a password throws away what was typed before.
//!
//! So it is typed again whenever the terminal has nothing left to read, for as long as the command runs: the input has
//! ended for each program that asks, as it has with a pipe. At most one is there unread. The kernel does not tell the
//! master side when the other one has read, so this is the one place of the agent that has to look from time to time.
//!
//! ```text
//!   input ended ──▶ type it ──▶ pause ──▶ look ── unread ──▶ pause, twice as long
//!                      ▲                   │
//!                      └────── taken ──────┘
//! ```

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::termios::{LocalModes, SpecialCodeIndex, tcgetattr};
use tokio::time::Instant;

use crate::watched::Watched;

/// From the character to the first look at what became of it.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// The longest time between two looks.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Ctrl-D, if the terminal names no other character.
const EOF_CHARACTER: u8 = 4;

/// Input that has ended, on a terminal.
#[derive(Debug)]
pub(super) struct InputEnd {
    master: Rc<Watched>,
    pause: Duration,
    look_at: Instant,
}

/// Who reads the character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    /// The line discipline, which makes an end of it.
    Lines,
    /// The program itself, as a key.
    Keys,
}

impl InputEnd {
    /// Types the end on the terminal of this master side.
    pub(super) fn of(master: Rc<Watched>) -> Self {
        type_end(master.get_ref());
        Self { master, pause: PAUSE_MIN, look_at: Instant::now() + PAUSE_MIN }
    }

    /// When to [`look`](Self::look) again.
    pub(super) fn look_at(&self) -> Instant {
        self.look_at
    }

    /// Types the end again if there is nothing left to read.
    pub(super) fn look(&mut self) {
        let read_by = if is_unread(self.master.get_ref()) { None } else { Some(type_end(self.master.get_ref())) };
        // The next program may ask at once. One that takes the character as a key and goes on does not get it often.
        let next = if read_by == Some(Reader::Lines) { PAUSE_MIN } else { self.pause * 2 };
        self.pause = next.min(PAUSE_MAX);
        self.look_at = Instant::now() + self.pause;
    }
}

fn type_end(master: &OwnedFd) -> Reader {
    // A master side answers for the terminal.
    let (character, reader) = match tcgetattr(master) {
        Ok(modes) => {
            let lines = modes.local_modes.contains(LocalModes::ICANON);
            (modes.special_codes[SpecialCodeIndex::VEOF], if lines { Reader::Lines } else { Reader::Keys })
        }
        Err(_) => (0, Reader::Keys),
    };
    // Zero is "none"; what edits lines itself knows Ctrl-D all the same.
    let character = if character == 0 { EOF_CHARACTER } else { character };
    // A terminal that is full has something to read, and a look finds it empty later.
    let _ = rustix::io::write(master, &[character]);
    reader
}

/// Whether a read of the terminal would return at once. The number of its bytes would not tell: the end counts as none.
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
    async fn an_end_that_was_read_is_typed_again_and_one_that_was_not_is_not() {
        let (master, mut slave) = terminal();
        rustix::io::write(&*master, b"no newline").expect("it takes keys");
        let mut end = InputEnd::of(master);
        let mut buffer = [0; 64];
        assert_eq!(slave.read(&mut buffer).expect("the rest of a line"), 10);
        for _ in 0..3 {
            end.look();
            assert_eq!(end.pause, PAUSE_MIN, "the next reader may be there already");
            end.look();
            assert!(end.pause > PAUSE_MIN, "nobody has read it yet");
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
            end.look();
            assert_eq!(slave.read(&mut buffer).expect("a key"), 1);
            assert_eq!(buffer[0], 0x05);
        }
        assert_eq!(end.pause, PAUSE_MAX, "it does not want it, and gets it once a second");
    }
}
