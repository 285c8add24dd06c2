//! The ends of a command's stdin, stdout and stderr: those of the child, which the agent closes when it runs, and its
//! own.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

use kiln_wire::{Channel, ExecRequest, Resize, Stdin};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::Winsize;

use super::gather::Gathered;
use super::users::User;
use crate::watched::{Watched, watch, watch_reading, watch_writing};

/// The agent's ends.
#[derive(Debug, Default)]
pub(super) struct Ends {
    pub stdin: Option<Rc<Watched>>,
    /// At most two, each with the channel for its data.
    pub outputs: Vec<(Channel, Source)>,
    pub terminal: Option<Terminal>,
}

/// A source of a command's output.
#[derive(Debug)]
pub(super) enum Source {
    Pipe(Watched),
    Terminal(Gathered),
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Pipe(pipe) => pipe.get_ref().as_fd(),
            Self::Terminal(terminal) => terminal.as_fd(),
        }
    }
}

/// The master side of a command's terminal.
#[derive(Debug, Clone)]
pub struct Terminal(Rc<Watched>);

impl Terminal {
    /// Sets the terminal's size. The kernel sends SIGWINCH to the foreground process group if the size has changed, so
    /// only the last of several sizes matters.
    pub fn resize(&self, size: Resize) {
        // This fails if no process has the terminal open any more, and then the size doesn't matter.
        let _ = set_size(self.0.get_ref(), size);
    }

    /// The foreground process group of the terminal, if there is one.
    pub fn foreground(&self) -> Option<u32> {
        let group = rustix::termios::tcgetpgrp(self.0.get_ref()).ok()?;
        u32::try_from(group.as_raw_nonzero().get()).ok()
    }
}

/// The child's ends.
#[derive(Debug)]
pub(super) struct ChildEnds {
    held: Vec<OwnedFd>,
    stdio: [RawFd; 3],
}

impl ChildEnds {
    pub(super) fn stdio(&self) -> [RawFd; 3] {
        debug_assert!(!self.held.is_empty(), "the child owns at least its stdout");
        self.stdio
    }
}

/// How stdout and stderr are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// From two pipes, for two channels.
    Apart,
    /// From one pipe, in the order in which they are written.
    Together,
}

/// Creates both ends. A terminal is owned by `user`.
pub(super) fn open(
    request: &ExecRequest,
    user: Option<&User>,
    output: Output,
    null: BorrowedFd<'_>,
) -> io::Result<(Ends, ChildEnds)> {
    match &request.tty {
        Some(tty) => open_terminal(request, user, Resize { rows: tty.rows, cols: tty.cols }),
        None => open_pipes(request, output, null),
    }
}

fn open_terminal(request: &ExecRequest, user: Option<&User>, size: Resize) -> io::Result<(Ends, ChildEnds)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    set_size(&master, size)?;
    if let Some(user) = user {
        // Programs open their terminal again by its name, so the user must own it. This fails if the agent isn't root,
        // and then it can't run commands as other users anyway.
        let _ = rustix::fs::fchown(&slave, Some(rustix::process::Uid::from_raw(user.uid)), None);
    }
    fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK)?;
    let source = Source::Terminal(Gathered::new(master.try_clone()?));
    let master = Rc::new(watch_writing(master)?);
    let fd = slave.as_raw_fd();
    let ends = Ends {
        stdin: (request.stdin == Stdin::Stream).then(|| Rc::clone(&master)),
        outputs: vec![(Channel::Out, source)],
        terminal: Some(Terminal(master)),
    };
    Ok((ends, ChildEnds { held: vec![slave], stdio: [fd; 3] }))
}

fn open_pipes(request: &ExecRequest, output: Output, null: BorrowedFd<'_>) -> io::Result<(Ends, ChildEnds)> {
    let mut ends = Ends::default();
    let mut child = ChildEnds { held: Vec::with_capacity(3), stdio: [null.as_raw_fd(); 3] };
    if request.stdin == Stdin::Stream {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        fcntl_setfl(&write, OFlags::WRONLY | OFlags::NONBLOCK)?;
        child.stdio[0] = read.as_raw_fd();
        child.held.push(read);
        ends.stdin = Some(Rc::new(watch(write)?));
    }
    let mut add = |channel| -> io::Result<RawFd> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        // The flag belongs to this end of the pipe. The child's end stays blocking.
        fcntl_setfl(&read, OFlags::NONBLOCK)?;
        ends.outputs.push((channel, Source::Pipe(watch_reading(read)?)));
        let fd = write.as_raw_fd();
        child.held.push(write);
        Ok(fd)
    };
    child.stdio[1] = add(Channel::Out)?;
    child.stdio[2] = match output {
        Output::Apart => add(Channel::Err)?,
        Output::Together => child.stdio[1],
    };
    Ok((ends, child))
}

fn set_size(terminal: &OwnedFd, size: Resize) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}
