//! Asks the process that runs a VM about its network.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use kiln_engine::home::Home;

use super::control::directory;
use super::message::{LINE_BYTES_MAX, Reply, Request, Status};
use crate::failure::{Failure, HOST, USAGE};

/// A change of a policy takes some milliseconds, on a busy host longer.
const DEADLINE: Duration = Duration::from_secs(30);

/// All networks of running VMs.
pub fn list(home: &Home) -> Result<Vec<Status>, Failure> {
    let directory = directory(home);
    let entries = match directory.read_dir_utf8() {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path().to_owned();
        match ask_at(&path, &Request::Status) {
            Ok(Reply::Status(status)) => found.push(*status),
            // Its process was killed, and left the socket.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                let _ = fs_err::remove_file(&path);
            }
            // It has ended just now, or does not answer.
            other => tracing::info!(%path, ?other, "no answer about a network"),
        }
    }
    found.sort_by(|one, other| one.vm.cmp(&other.vm));
    Ok(found)
}

/// Asks the one VM of this name or id.
pub fn ask(home: &Home, vm: &str, request: &Request) -> Result<Reply, Failure> {
    let all = list(home)?;
    let by_id = |status: &&Status| !vm.is_empty() && status.vm.starts_with(vm);
    let named: Vec<_> = all.iter().filter(|status| status.name.as_deref() == Some(vm)).collect();
    let matching = if named.is_empty() { all.iter().filter(by_id).collect() } else { named };
    let [one] = matching[..] else {
        let what = if matching.is_empty() { "no running VM with a network" } else { "more than one running VM" };
        return Err(Failure::words(USAGE, format!("{what} has the name or id `{vm}`")).hint("kiln net ls"));
    };
    match ask_at(&directory(home).join(&one.vm), request) {
        Ok(Reply::Refused { error, hint }) => Err(Failure::words(USAGE, error).maybe_hint(hint)),
        Ok(reply) => Ok(reply),
        Err(error) => {
            let error = anyhow::Error::new(error).context(format!("failed to ask the owner of `{vm}`"));
            Err(Failure::new(HOST, error))
        }
    }
}

fn ask_at(path: &Utf8PathBuf, request: &Request) -> io::Result<Reply> {
    let mut stream = connect(path)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut reply = Vec::new();
    BufReader::new(stream.take(LINE_BYTES_MAX)).read_until(b'\n', &mut reply)?;
    Ok(serde_json::from_slice(&reply)?)
}

/// A socket's address has at most 107 bytes, and a home may have a longer path, so the directory is named by its
/// descriptor.
fn connect(path: &Utf8Path) -> io::Result<UnixStream> {
    use std::os::fd::AsRawFd as _;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let directory = fs_err::File::open(parent)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{name}", directory.file().as_raw_fd()))
}
