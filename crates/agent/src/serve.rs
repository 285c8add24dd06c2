//! Test mode: serves one link on an inherited socket, or links one after the other on a Unix socket. Needs no root.
#![expect(unsafe_code, reason = "an inherited descriptor is only a number, and prctl is only reachable through libc")]

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use kiln_wire::GoodbyeReason;
use rustix::io::{FdFlags, fcntl_setfd};
use tokio::task::spawn_local;

use crate::agent::{Agent, Setup};
use crate::arguments::Listen;
use crate::log::note;
use crate::process::signals::Signals;
use crate::runtime::runtime;
use crate::transport::Transport;

/// Serves one link on an inherited, connected socket.
///
/// # Errors
/// If the descriptor is not a connected socket, or the link fails.
pub fn socket(fd: RawFd) -> io::Result<()> {
    if fd < 0 {
        return Err(io::Error::other(format!("`--socket-fd` {fd} is not a descriptor")));
    }
    // SAFETY: the process that started the agent passed this descriptor to it. If it isn't open, its first use fails.
    let socket = unsafe {
        fcntl_setfd(BorrowedFd::borrow_raw(fd), FdFlags::CLOEXEC)?;
        UnixStream::from(OwnedFd::from_raw_fd(fd))
    };
    prepare();
    runtime()?.block_on(async {
        let agent = Agent::new(Setup { leases: leases(), ..Setup::default() })?;
        let signals = Signals::new()?;
        tokio::select! {
            result = agent.serve(Transport::socket(socket)?) => result,
            result = agent.commands.watch_signals(&signals) => result,
        }
    })
}

/// Serves a Unix socket. A newer link replaces the older one.
///
/// # Errors
/// If the socket can't be created or the token can't be read.
pub fn listen(listen: &Listen) -> io::Result<()> {
    let path = &listen.path;
    let token = listen.token_file.as_deref().map(read_token).transpose()?;
    let stand_in = listen.stand_in.clone();
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) && UnixStream::connect(path).is_err() {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    prepare();
    let result = runtime()?.block_on(async {
        let agent = Agent::new(Setup { token, leases: leases(), stand_in, ..Setup::default() })?;
        let signals = Signals::new()?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        tokio::select! {
            result = accept(&agent, &listener) => result,
            result = agent.commands.watch_signals(&signals) => result,
        }
    });
    // If this fails, the next agent replaces the socket.
    let _ = fs::remove_file(path);
    result
}

async fn accept(agent: &Agent, listener: &tokio::net::UnixListener) -> io::Result<()> {
    let mut serving: Option<tokio::task::JoinHandle<()>> = None;
    loop {
        let (socket, _) = listener.accept().await?;
        if let Some(old) = serving.take() {
            agent.links.end(GoodbyeReason::Replaced);
            let _ = old.await;
            agent.links.allow();
        }
        let transport = Transport::socket(socket.into_std()?)?;
        let link = agent.serve(transport);
        serving = Some(spawn_local(async move {
            if let Err(error) = link.await {
                note(format!("the link failed: {error}"));
            }
        }));
    }
}

/// The directory of leases, if a test has one. The machine's leases don't belong to this agent.
fn leases() -> Option<PathBuf> {
    std::env::var_os("KILN_LEASES").map(PathBuf::from)
}

/// Reads the token: the first line of its file.
fn read_token(path: &Path) -> io::Result<String> {
    const TOKEN_BYTES_MAX: u64 = 4096;
    let mut text = String::new();
    File::open(path)?.take(TOKEN_BYTES_MAX).read_to_string(&mut text)?;
    match text.lines().next().map(str::trim) {
        Some(token) if !token.is_empty() => Ok(token.to_owned()),
        _ => Err(io::Error::other(format!("`{}` has no token in its first line", path.display()))),
    }
}

/// Gives the process two properties of PID 1: it inherits orphans, and commands inherit none of its descriptors.
fn prepare() {
    // SAFETY: plain numbers.
    unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
}
