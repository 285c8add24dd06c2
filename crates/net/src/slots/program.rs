//! Runs `nft` in the namespace of the calling thread.
//!
//! Its input and its outputs are files in memory, not pipes: a program that stops to read or to write then can't block
//! us, and one wait with a deadline is enough.
//!
//! A transaction is awaited by its commit, which the kernel announces. The program itself ends 8 to 20 ms later if rules
//! were replaced: a close of any netfilter socket waits until no CPU can use the old rules. So a thread closes ours too.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kiln_programs::{PATH_ONLY, command};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::NftError;
use super::nftables::Commits;

const NFT: &str = "nft";
/// A transaction of 65,536 networks takes 2 s on a slow host.
const NFT_DEADLINE: Duration = Duration::from_secs(60);
const OUTPUT_BYTES_MAX: u64 = 64 << 20;
/// The start of an error is enough to know it.
const ERROR_BYTES_MAX: u64 = 2048;

/// Carries out a transaction, given as JSON. All of it happens, or nothing.
pub(super) fn apply(json: &str) -> Result<(), NftError> {
    let commits = Commits::watch()?;
    let mut nft = Nft::start(&["-j", "-f", "-"], json)?;
    match nft.wait(Some(&commits))? {
        End::Exit => nft.output().map(drop),
        End::Commit => {
            // If no thread starts, this drops both here.
            let rest = thread::Builder::new().name("nft".into());
            let _ = rest.spawn(move || drop((commits, nft)));
            Ok(())
        }
    }
}

/// Lists something as JSON.
pub(super) fn list(what: &[&str]) -> Result<serde_json::Value, NftError> {
    let mut nft = Nft::start(&[&["-j", "list"], what].concat(), "")?;
    nft.wait(None)?;
    serde_json::from_str(&nft.output()?).map_err(|source| NftError::Io(source.into()))
}

/// A running `nft`. A drop waits for its end, at most until the deadline, and then kills it.
struct Nft {
    child: Child,
    pidfd: OwnedFd,
    stdout: File,
    stderr: File,
    deadline: Instant,
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The kernel has carried out the transaction.
    Commit,
    /// The program has ended.
    Exit,
}

impl Nft {
    fn start(arguments: &[&str], input: &str) -> Result<Self, NftError> {
        let (stdin, stdout, stderr) = (memory()?, memory()?, memory()?);
        (&stdin).write_all(input.as_bytes())?;
        (&stdin).rewind()?;
        let mut nft = command(NFT, PATH_ONLY);
        nft.args(arguments).stdin(Stdio::from(stdin)).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
        let mut child = match nft.spawn() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(NftError::Missing),
            other => other?,
        };
        let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("the id of a child");
        match pidfd_open(id, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { child, pidfd, stdout, stderr, deadline: Instant::now() + NFT_DEADLINE }),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(io::Error::from(error).into())
            }
        }
    }

    /// Waits for the end of the program, or for its commit.
    fn wait(&mut self, commits: Option<&Commits>) -> Result<End, NftError> {
        let mut commits = commits;
        loop {
            let mut waited = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
            waited.extend(commits.map(|commits| PollFd::new(commits, PollFlags::IN)));
            let left = self.deadline.saturating_duration_since(Instant::now());
            match poll(&mut waited, Some(&left.try_into().expect("is short"))) {
                Err(rustix::io::Errno::INTR) => continue,
                Ok(0) => return Err(NftError::Late(NFT_DEADLINE)),
                other => other.map_err(io::Error::from)?,
            };
            if !waited[0].revents().is_empty() {
                return Ok(End::Exit);
            }
            match commits.map(|commits| commits.tell_of(self.child.id())) {
                Some(Ok(true)) => return Ok(End::Commit),
                // More was announced than the socket holds, so the commit may be lost.
                Some(Err(_)) => commits = None,
                _ => {}
            }
        }
    }

    /// What it printed. It has ended.
    fn output(mut self) -> Result<String, NftError> {
        if self.child.wait()?.success() {
            Ok(read(&self.stdout, OUTPUT_BYTES_MAX)?)
        } else {
            Err(NftError::Refused(read(&self.stderr, ERROR_BYTES_MAX)?.trim().to_owned()))
        }
    }
}

impl Drop for Nft {
    fn drop(&mut self) {
        if self.wait(None).is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

fn memory() -> io::Result<File> {
    Ok(File::from(memfd_create("nft", MemfdFlags::CLOEXEC)?))
}

fn read(file: &File, bytes_max: u64) -> io::Result<String> {
    let mut file = file;
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
