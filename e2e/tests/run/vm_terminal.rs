//! `-t` through a real pseudoterminal.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use kiln_e2e::{Kiln, Running, kiln_binary, until_booted};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// A `kiln run -t` whose stdin and stdout are a terminal of ours.
struct Terminal {
    master: File,
    kiln: Running,
    seen: String,
}

impl Terminal {
    fn run(rows: u16, cols: u16, argv: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudoterminal");
        grantpt(&master).expect("granted");
        unlockpt(&master).expect("unlocked");
        resize(&master, rows, cols);
        let name = ptsname(&master, Vec::new()).expect("it has a name").into_string().expect("a plain name");
        let side = || Stdio::from(File::options().read(true).write(true).open(&name).expect("its other side"));
        let child = Command::new(kiln_binary())
            .args(["run", "-t", "--"])
            .args(argv)
            .env("TERM", "vt100")
            .stdin(side())
            .stdout(side())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kiln starts");
        rustix::io::ioctl_fionbio(&master, true).expect("non-blocking");
        Self { master: File::from(master), kiln: Running(child), seen: String::new() }
    }

    /// Waits for `words` and forgets everything up to them.
    fn expect(&mut self, words: &str) {
        let (master, seen) = (&mut self.master, &mut self.seen);
        // The very first run boots.
        let end = until_booted(words, || {
            let mut buffer = [0; 4096];
            // No bytes now, or the end of output. The deadline decides.
            let count = master.read(&mut buffer).unwrap_or(0);
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
            seen.find(words).map(|at| at + words.len())
        });
        self.seen.drain(..end);
    }

    fn send(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("the terminal takes keys");
    }
}

fn resize(master: &OwnedFd, rows: u16, cols: u16) {
    tcsetwinsize(master, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }).expect("a size");
}

#[test]
fn a_shell_has_the_users_terminal_and_follows_its_size() {
    let mut terminal = Terminal::run(33, 101, &["sh"]);
    terminal.send("stty size; echo $TERM; tty\n");
    terminal.expect("33 101");
    terminal.expect("vt100");
    terminal.expect("/dev/pts/");
    tcsetwinsize(&terminal.master, Winsize { ws_row: 44, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 }).expect("a size");
    terminal.kiln.signal(Signal::WINCH);
    terminal.send("until stty size | grep -q '44 99'; do sleep 0.1; done; echo grown\n");
    terminal.expect("grown\r\n");
    terminal.send("exit 6\n");
    assert_eq!(terminal.kiln.wait(), 6);
}

#[test]
fn ctrl_c_is_a_key_of_the_guest() {
    let mut terminal = Terminal::run(24, 80, &["sh", "-c", "echo ready; exec sleep 100"]);
    terminal.expect("ready");
    terminal.send("\x03");
    assert_eq!(terminal.kiln.wait(), 130);
}

#[test]
fn a_shell_on_a_terminal_ends_with_its_input() {
    let outcome = Kiln::new(["run", "-t", "--", "sh"]).run_with(b"");
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    // The shell does not read while its command runs, and edits its lines itself before and after.
    let outcome = Kiln::new(["run", "-t", "--", "sh"]).run_with(b"sleep 0.3; echo $((6 * 7))\n");
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert!(outcome.text().contains("\n42"), "{}", outcome.text());
}
