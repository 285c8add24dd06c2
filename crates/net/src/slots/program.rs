//! Runs `nft` in the namespace of the calling thread.
//!
//! Its input and its outputs are files in memory, not pipes: a program that stops to read or to write then can't block
//! us, and one wait with a deadline is enough.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::process::Stdio;
use std::time::Duration;

use kiln_programs::{PATH_ONLY, command};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::NftError;

const NFT: &str = "nft";
/// A transaction of 65,536 networks takes 2 s on a slow host.
const NFT_DEADLINE: Duration = Duration::from_secs(60);
const OUTPUT_BYTES_MAX: u64 = 64 << 20;
/// The start of an error is enough to know it.
const ERROR_BYTES_MAX: u64 = 2048;

/// Carries out a transaction, given as JSON. All of it happens, or nothing.
pub(super) fn apply(json: &str) -> Result<(), NftError> {
    run(&["-j", "-f", "-"], json).map(drop)
}

/// Lists something as JSON.
pub(super) fn list(what: &[&str]) -> Result<serde_json::Value, NftError> {
    let text = run(&[&["-j", "list"], what].concat(), "")?;
    serde_json::from_str(&text).map_err(|source| NftError::Io(source.into()))
}

fn run(arguments: &[&str], input: &str) -> Result<String, NftError> {
    let (stdin, stdout, stderr) = (memory()?, memory()?, memory()?);
    (&stdin).write_all(input.as_bytes())?;
    (&stdin).rewind()?;
    let mut nft = command(NFT, PATH_ONLY);
    nft.args(arguments).stdin(Stdio::from(stdin)).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let mut child = match nft.spawn() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(NftError::Missing),
        other => other?,
    };
    if !ends_in_time(child.id())? {
        child.kill()?;
        child.wait()?;
        return Err(NftError::Late(NFT_DEADLINE));
    }
    if child.wait()?.success() {
        Ok(read(stdout, OUTPUT_BYTES_MAX)?)
    } else {
        Err(NftError::Refused(read(stderr, ERROR_BYTES_MAX)?.trim().to_owned()))
    }
}

fn ends_in_time(id: u32) -> io::Result<bool> {
    let id = i32::try_from(id).ok().and_then(Pid::from_raw).expect("the id of a child");
    let child = pidfd_open(id, PidfdFlags::empty())?;
    let deadline = NFT_DEADLINE.try_into().expect("is short");
    loop {
        match poll(&mut [PollFd::new(&child, PollFlags::IN)], Some(&deadline)) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other? > 0),
        }
    }
}

fn memory() -> io::Result<File> {
    Ok(File::from(memfd_create("nft", MemfdFlags::CLOEXEC)?))
}

fn read(file: File, bytes_max: u64) -> io::Result<String> {
    let mut file = file;
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
