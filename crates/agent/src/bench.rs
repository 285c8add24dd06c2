//! Measures the time of a command in the guest without Kiln, to which execs are compared: `--spawn-bench` for a command
//! without output, `--terminal-bench` for a command that writes to a terminal.
#![expect(unsafe_code, reason = "the floor is a plain fork, execvp and waitpid")]

use std::ffi::{CString, OsString, c_char};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::time::Instant;

use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};

/// Times `count` × fork + exec + wait of `argv` and prints a JSON array of nanoseconds.
///
/// # Errors
/// If the command can't be run.
pub fn spawn(count: usize, argv: &[OsString]) -> io::Result<()> {
    let words = argv.iter().map(|word| CString::new(word.clone().into_vec())).collect::<Result<Vec<_>, _>>()?;
    let argv: Vec<*const c_char> = words.iter().map(|word| word.as_ptr()).chain([std::ptr::null()]).collect();
    let mut samples = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        let status = once(&argv)?;
        samples.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        if status == 127 << 8 {
            return Err(io::Error::other(format!("`{}` can't be executed", words[0].to_string_lossy())));
        }
    }
    println!("{}", serde_json::to_string(&samples).map_err(io::Error::other)?);
    Ok(())
}

/// Times `count` × `argv` on a terminal that this process reads as fast as possible, and prints a JSON array of
/// nanoseconds.
///
/// # Errors
/// If the command can't be run or no terminal can be opened.
pub fn terminal(count: usize, argv: &[OsString]) -> io::Result<()> {
    let mut samples = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        let (mut master, slave) = open_terminal()?;
        let mut child = std::process::Command::new(&argv[0])
            .args(&argv[1..])
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave)
            .spawn()?;
        let mut buffer = [0; 4096];
        loop {
            match master.read(&mut buffer) {
                Ok(1..) => {}
                // Reading a terminal fails with EIO when no process has its other side open.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => break,
                Ok(0) => break,
                Err(error) => return Err(error),
            }
        }
        child.wait()?;
        samples.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    println!("{}", serde_json::to_string(&samples).map_err(io::Error::other)?);
    Ok(())
}

fn open_terminal() -> io::Result<(File, OwnedFd)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    Ok((File::from(master), slave))
}

fn once(argv: &[*const c_char]) -> io::Result<i32> {
    // SAFETY: there is one thread. `argv` ends with null, and its strings are valid. The child only executes or exits.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::execvp(argv[0], argv.as_ptr());
            libc::_exit(127);
        }
        let mut status = 0;
        if pid < 0 || libc::waitpid(pid, &raw mut status, 0) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(status)
    }
}
