//! Descriptors that sessions leave behind: those of every message that brings one, and of sessions that end anywhere. A backend
//! that keeps one of each session is full after a thousand reconnects.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;

use super::prelude::*;
use super::resources::{no_more_descriptors_while_served, resources_while_served};
use crate::check::guest::Guest;
use crate::check::ring::SplitRing;
use crate::memory::DirtyLog;
use crate::protocol::Inflight;
use crate::socket::Event;

const PROCESS: Need = Need::Process;
const MANY: Need = Need::ManyClients;
const COMMUNICATION: &str = "Communication";
/// Sessions that are compared with those before them.
const SESSIONS: usize = 40;
/// Entries of the rings.
const ENTRIES: u16 = 64;
/// Sessions after which a backend has all that it keeps for itself.
const WARM_UP: usize = 3;
/// What a session passes beyond memory and rings.
const EXTRAS: ProtocolFeatures = ProtocolFeatures::LOG_SHMFD
    .union(ProtocolFeatures::INFLIGHT_SHMFD)
    .union(ProtocolFeatures::BACKEND_REQ)
    .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS);

cases! {
    "resources.descriptors-of-connections" Must [PROCESS, MANY] |context| leave(context,
        "connections without a message", connects),
        COMMUNICATION => "clients that disconnect without a message leave no descriptor open";
    "resources.descriptors-of-whole-sessions" Must [PROCESS, MANY]
        |context| leave(context, "sessions that pass every kind of descriptor", passes_all),
        COMMUNICATION =>
            "the end of a session closes all of its descriptors: memory, log, kick, call, error, inflight buffer, \
             channel";
    "resources.descriptors-of-cut-sessions" Must [PROCESS, MANY, Need::Harm]
        |context| leave(context, "sessions that end before their last message is read", ends_early),
        COMMUNICATION => "a client that disconnects while its message is read leaves no descriptor open";
}

/// Has many such sessions, after some that warm the backend up.
fn leave(context: &mut Context<'_>, what: &str, session: fn(&mut Context<'_>, usize) -> Outcome) -> Outcome {
    (0..WARM_UP).try_for_each(|number| session(context, number))?;
    let before = resources_while_served(context)?.descriptors;
    (0..SESSIONS).try_for_each(|number| session(context, number))?;
    no_more_descriptors_while_served(context, before, &format!("{SESSIONS} {what}"))
}

fn connects(context: &mut Context<'_>, _number: usize) -> Outcome {
    drop(context.connect()?);
    // One after the other: whether a backend serves a queue of them is another matter.
    context.connect_again().map(drop)
}

/// What a backend refuses ends the session, or is left out.
fn passes_all(context: &mut Context<'_>, _number: usize) -> Outcome {
    let mut link = if context.trace_is_one_sided() {
        context.open_with(USUAL | EXTRAS)?
    } else {
        context.open_again(USUAL | EXTRAS)?
    };
    link.require(&SetFeatures(usual_features(link.offered)), &[])?;
    let mut guest = Guest::new()?;
    guest.share(&mut link)?;
    let has = |features| link.protocol.contains(features);
    let (has_inflight, has_log) = (has(ProtocolFeatures::INFLIGHT_SHMFD), has(ProtocolFeatures::LOG_SHMFD));
    let (has_channel, has_slots) = (has(ProtocolFeatures::BACKEND_REQ), has(ProtocolFeatures::CONFIGURE_MEM_SLOTS));
    let queues = context.facts.queues.clamp(1, 4) as u16;
    if has_inflight {
        let wish = Inflight { num_queues: queues, queue_size: ENTRIES, ..Inflight::default() };
        let (description, fds) = link.call_with_fds(&GetInflightFd(wish), &[])?;
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        link.ask(&SetInflightFd(description), &fds)?;
    }
    if has_log {
        let (_log, description, file) = DirtyLog::create(Guest::BYTES)?;
        super::log::set_log_base(&mut link, description, &file)?;
    }
    if has_channel {
        let (_ours, theirs) = UnixStream::pair()?;
        link.ask(&SetBackendReqFd(Empty), &[theirs.as_fd()])?;
    }
    if has_slots {
        let region = guest.add(1 << 32, 1 << 20)?;
        link.ask(&AddMemReg(SingleRegion(region)), &[guest.file(1).as_fd()])?;
    }
    for index in 0..queues.into() {
        let ring = SplitRing::new(&mut guest, index, ENTRIES)?;
        let error = Event::new()?;
        link.require(&SetVringErr(VringFile::with_descriptor(ring.small_index())), &[error.as_fd()])?;
        ring.start(&mut link)?;
    }
    // Last, since it is optional: some backends close the connection at it.
    let event = Event::new()?;
    link.ask(&SetLogFd(Empty), &[event.as_fd()]).map(drop)
}

/// Ends right behind a message that brings a descriptor, without waiting for what becomes of it; another one each time.
fn ends_early(context: &mut Context<'_>, number: usize) -> Outcome {
    let mut link = context.open_again_device()?;
    let mut guest = Guest::new()?;
    let ring = SplitRing::new(&mut guest, 0, 64)?;
    let file = VringFile::with_descriptor(0);
    let call: [BorrowedFd<'_>; 1] = [ring.call.as_fd()];
    let sent = match number % 4 {
        0 => link.send(&guest.table(), &guest.fds()),
        1 => link.send(&SetVringCall(file), &call),
        2 => link.send(&SetVringErr(file), &call),
        _ => {
            guest.share(&mut link)?;
            ring.place(&mut link)?;
            link.send(&SetVringKick(file), &[ring.kick.as_fd()])
        }
    };
    match sent {
        Err(Stop::Closed(_)) => Ok(()),
        sent => sent,
    }
}
