//! The host's side of a transfer: a plain TAP device, and a server that counts.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener};
use std::process::Stdio;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kiln_programs::{PATH_ONLY, command};

/// The device, its address, the guest's on it, and the length of their prefix. The range is for measurements (RFC 2544).
const DEVICE: &str = "kbench0";
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 213, 1);
pub(super) const GUEST: Ipv4Addr = Ipv4Addr::new(198, 18, 213, 2);
pub(super) const PREFIX: u8 = 30;
/// The longest pause of a transfer.
const PATIENCE: Duration = Duration::from_secs(30);
const BUFFER_BYTES: usize = 256 << 10;

/// A TAP device as a user makes one for QEMU. Dropping it removes it.
pub(super) struct PlainTap(());

impl PlainTap {
    pub(super) fn make() -> anyhow::Result<Self> {
        ip(&["tuntap", "add", "dev", DEVICE, "mode", "tap", "vnet_hdr"])?;
        let made = Self(());
        ip(&["address", "add", &format!("{HOST}/{PREFIX}"), "dev", DEVICE])?;
        ip(&["link", "set", DEVICE, "up"])?;
        Ok(made)
    }

    pub(super) fn device(&self) -> &'static str {
        DEVICE
    }
}

impl Drop for PlainTap {
    fn drop(&mut self) {
        if let Err(error) = ip(&["tuntap", "del", "dev", DEVICE, "mode", "tap"]) {
            crate::output::say(format_args!("failed to remove `{DEVICE}`: {error}"));
        }
    }
}

fn ip(words: &[&str]) -> anyhow::Result<()> {
    let mut ip = command("ip", PATH_ONLY);
    let output = ip.args(words).stdin(Stdio::null()).output().context("failed to start `ip`")?;
    let words = words.join(" ");
    ensure!(output.status.success(), "`ip {words}`: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// The way of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// From the guest.
    Up,
    /// To the guest.
    Down,
}

/// Serves one connection on a thread, and returns its seconds, from the first byte until all have arrived.
pub(super) fn serve(way: Way, bytes: u64) -> anyhow::Result<(u16, JoinHandle<anyhow::Result<f64>>)> {
    let listener = TcpListener::bind((HOST, 0))?;
    let port = listener.local_addr()?.port();
    let thread = thread::Builder::new().name("transfer".into()).spawn(move || one(&listener, way, bytes))?;
    Ok((port, thread))
}

fn one(listener: &TcpListener, way: Way, bytes: u64) -> anyhow::Result<f64> {
    // If the guest never connects, the command in the guest fails, and the caller connects itself to end this wait.
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let start = match way {
        Way::Up => {
            let first = stream.read(&mut buffer)? as u64;
            let (start, mut left) = (Instant::now(), bytes.checked_sub(first).context("too many bytes")?);
            while left > 0 {
                let count = stream.read(&mut buffer)? as u64;
                ensure!(count > 0, "the guest sent {left} bytes too few");
                left = left.checked_sub(count).context("too many bytes")?;
            }
            return Ok(start.elapsed().as_secs_f64());
        }
        Way::Down => {
            let (start, mut left) = (Instant::now(), bytes);
            while left > 0 {
                let count = left.min(BUFFER_BYTES as u64);
                stream.write_all(&buffer[..count as usize])?;
                left -= count;
            }
            stream.shutdown(Shutdown::Write)?;
            start
        }
    };
    // The guest closes its side once it has read all.
    ensure!(stream.read(&mut buffer)? == 0, "the guest sent something");
    Ok(start.elapsed().as_secs_f64())
}
