//! `--spawn-bench`: the guest's own price of a command, as the floor that execs are compared with.
#![expect(unsafe_code, reason = "the floor is a plain fork, execvp and waitpid")]

use std::ffi::{CString, OsString, c_char};
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::time::Instant;

/// Times `count` × fork + exec + wait of `argv` and prints a JSON array of nanoseconds.
///
/// # Errors
/// The command can't be run.
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

fn once(argv: &[*const c_char]) -> io::Result<i32> {
    // SAFETY: there is one thread; `argv` ends with null and its strings live; the child only executes or exits.
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
