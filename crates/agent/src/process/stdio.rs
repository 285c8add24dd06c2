//! The ends of a command's stdin, stdout and stderr: the child's, which are closed once it runs, and the agent's.

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
    /// At most two, each with the channel that its data goes to.
    pub outputs: Vec<(Channel, Source)>,
    pub terminal: Option<Terminal>,
}

/// Where a command's output is read.
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
    /// Tells the terminal its size; the kernel tells the command.
    pub fn resize(&self, size: Resize) {
        // A terminal whose last user is gone has no size to set.
        let _ = set_size(self.0.get_ref(), size);
    }

    /// The process group that reads from the terminal now, where there is one.
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
        debug_assert!(!self.held.is_empty(), "stdout at least is the child's own");
        self.stdio
    }
}

/// How stdout and stderr leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// On two channels.
    Apart,
    /// On one, in the order they were written.
    Together,
}

/// Makes both ends; a terminal belongs to `user`.
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
        // Programs open their terminal again by name. As another user than root this fails, as it should.
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
        // The flag belongs to the open end, so the child's one stays blocking.
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
