//! Kick descriptors whose other end is closed while the ring runs. A backend may be given a pipe ("Support for platforms other
//! than Linux"), and anything at all by a frontend that it does not trust: a descriptor that is always readable always wakes the backend.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::prelude::*;
use super::resources::{Work, idles};
use crate::check::guest::Guest;
use crate::check::process::wait_until;
use crate::check::ring::SplitRing;

const HARM: Need = Need::Harm;
const KICK: &str = "VHOST_USER_SET_VRING_KICK";
/// How long a backend is given to see what has become of a descriptor.
const REACTS_WITHIN: Duration = Duration::from_millis(60);

cases! {
    "hostile.kick-pipe-hangs-up" Must [HARM] |context| hangs_up(context, pipe()?),
        KICK =>
            "a frontend may close its end of a kick descriptor; the backend must neither exit nor stop serving others";
    "hostile.kick-socket-hangs-up" Must [HARM] |context| hangs_up(context, socket()?),
        KICK => "a kick descriptor may be any file; if its other end is closed, the backend must not exit";
    "resources.idle-after-kick-hangs-up" Must [Need::Process, HARM] idles_after_hang_up,
        KICK =>
            "a kick descriptor whose other end is closed stays readable forever; a loop that reads it uses a whole CPU";
}

/// What a backend is given as a kick descriptor, and the other end of it.
struct Kick {
    given: OwnedFd,
    kept: OwnedFd,
}

fn pipe() -> Outcome<Kick> {
    let (given, kept) = std::io::pipe()?;
    Ok(Kick { given: given.into(), kept: kept.into() })
}

fn socket() -> Outcome<Kick> {
    let (given, kept) = UnixStream::pair()?;
    Ok(Kick { given: given.into(), kept: kept.into() })
}

/// A session with a ring that is kicked by this, until the other end is closed. `None` if the backend refuses such a
/// descriptor, as it may.
fn after_hang_up(context: &mut Context<'_>, kick: Kick) -> Outcome<Option<Link>> {
    let mut link = context.open_device()?;
    let mut guest = Guest::new()?;
    guest.share(&mut link)?;
    let ring = SplitRing::new(&mut guest, 0, 64)?;
    ring.place(&mut link)?;
    link.require(&SetVringCall(VringFile::with_descriptor(0)), &[ring.call.as_fd()])?;
    let Kick { given, kept } = kick;
    let answer = link.ask(&SetVringKick(VringFile::with_descriptor(0)), &[given.as_fd()])?;
    drop(given);
    if answer.is_refused() || answer.closed {
        return Ok(None);
    }
    if link.offered & feature::PROTOCOL_FEATURES != 0 {
        ring.enable(&mut link, true)?;
    }
    // 8 bytes are a kick, by an eventfd and by a pipe alike.
    rustix::io::write(&kept, &1_u64.to_ne_bytes()).map_err(std::io::Error::from)?;
    link.done("ring 0: a kick through a pipe that is closed");
    link.features()?;
    link.done("the other end of the kick descriptor is closed");
    drop(kept);
    // Whether the backend falls is seen by its connection.
    wait_until(REACTS_WITHIN, || link.channel().is_readable(Duration::ZERO).unwrap_or(true));
    Ok(Some(link))
}

fn idles_after_hang_up(context: &mut Context<'_>) -> Outcome {
    let baseline = Work::baseline(context)?;
    match after_hang_up(context, pipe()?)? {
        Some(_link) if !context.target.has_ended() => idles(context, baseline, "the kick descriptor has hung up"),
        // That it ended is for the other rules to find.
        _ => Ok(()),
    }
}

fn hangs_up(context: &mut Context<'_>, kick: Kick) -> Outcome {
    match after_hang_up(context, kick)? {
        Some(link) => context.survives_messages(link),
        None => context.serves_again(),
    }
}
