//! Grows the volumes of a run while its VM has them, when another process asks for it.
//!
//! ```text
//!   kiln volume grow ──socket in the volume's directory──▶ file larger ─▶ VMM: the disk is larger ─▶ agent: the
//!                    ◀───────────────────── Grown ◀────────────────────────────────── filesystem is larger
//! ```
//! Each step leaves what is valid: a disk may be larger than its filesystem. The next use, or another `grow`, does the
//! rest.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;

use camino::Utf8PathBuf;
use kiln_engine::Guest;
use kiln_engine::deadlines::RENEW_DEADLINE;
use kiln_engine::link::Renewal;
use kiln_engine::volume::VolumeHold;
use kiln_wire::Mount;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};

use crate::failure::{Failure, VM};
use crate::volume::door::{self, Reply, Request};
use crate::volume::volume_failure;

/// After a client could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A volume that can grow while its VM runs, and the socket at which it is requested.
#[derive(Debug)]
pub(super) struct Door {
    listener: UnixListener,
    path: Utf8PathBuf,
    /// Which of the volumes of the run.
    hold: usize,
    /// Which disk of the VM.
    disk: usize,
    /// How its agent has mounted it.
    mount: Option<Mount>,
    /// The size that the guest has seen. The file is larger after a change that has failed in the guest.
    seen: Cell<u64>,
}

impl Door {
    /// Opens the socket of a volume.
    pub(super) fn open(hold: &VolumeHold, index: usize, disk: usize, mount: Option<Mount>) -> io::Result<Self> {
        let path = hold.socket();
        let listener = UnixListener::from_std(door::bind(&path)?)?;
        let seen = Cell::new(fs_err::metadata(hold.disk().path)?.len());
        Ok(Self { listener, path, hold: index, disk, mount, seen })
    }

    /// Serves a client.
    async fn client(&self, mut stream: UnixStream, holds: &[VolumeHold], guest: &Guest) -> io::Result<()> {
        let (read, mut write) = stream.split();
        let mut line = Vec::new();
        BufReader::new(read.take(door::LINE_BYTES_MAX)).read_until(b'\n', &mut line).await?;
        let reply = match serde_json::from_slice(&line) {
            Err(error) => Reply::Refused { error: error.to_string(), hint: None },
            Ok(Request::Grow { bytes }) => match self.grow(&holds[self.hold], bytes, guest).await {
                Ok((bytes_before, bytes)) => Reply::Grown { bytes_before, bytes },
                Err(failure) => {
                    let hint = failure.hint_text().map(str::to_owned);
                    Reply::Refused { error: failure.message(), hint }
                }
            },
        };
        let mut line = serde_json::to_vec(&reply)?;
        line.push(b'\n');
        write.write_all(&line).await
    }

    async fn grow(&self, hold: &VolumeHold, bytes: u64, guest: &Guest) -> Result<(u64, u64), Failure> {
        let (_, now) = hold.extend(bytes).await.map_err(volume_failure)?;
        let before = self.seen.get();
        if before == now {
            return Ok((before, now));
        }
        let failed = |error: anyhow::Error| {
            let error =
                error.context(format!("the file of `{}` has {now} bytes, its disk in the guest does not", hold.name()));
            Failure::new(VM, error)
                .hint("the next VM that uses the volume has the new size: end this one, and grow it again")
        };
        guest.vm.grow_disk(self.disk, now).await.map_err(|error| failed(error.into()))?;
        if let Some(mount) = &self.mount {
            let renewal = Renewal { mounts: vec![mount.clone()], ..Renewal::default() };
            guest.link.renew(renewal, RENEW_DEADLINE).await.map_err(|error| failed(error.into()))?;
        }
        self.seen.set(now);
        Ok((before, now))
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // The next user removes it otherwise.
        let _ = fs_err::remove_file(&self.path);
    }
}

/// Answers at all doors, one client at a time. Never returns.
pub(super) async fn serve(doors: &[Door], holds: &[VolumeHold], guest: &Guest) -> Infallible {
    loop {
        let accepted = poll_fn(|context| {
            for door in doors {
                if let Poll::Ready(accepted) = door.listener.poll_accept(context) {
                    return Poll::Ready(accepted.map(|(stream, _)| (door, stream)));
                }
            }
            Poll::Pending
        });
        match accepted.await {
            Ok((door, stream)) => match timeout(door::DEADLINE, door.client(stream, holds, guest)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::info!(%error, "a client of a volume has gone"),
                Err(_) => tracing::info!("a client of a volume is too slow"),
            },
            Err(error) => {
                tracing::info!(%error, "a client of a volume was not accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
