//! What a backend holds: descriptors, memory, mappings, threads and time. A backend that leaks a little with each client
//! or message fails after days, in the middle of a guest's work.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::prelude::*;
use crate::check::guest::Guest;
use crate::check::process::{processor_time, wait_until};
use crate::check::ring::SplitRing;
use crate::check::verdict::Resources;
use crate::memory::{DirtyLog, SharedFile};
use crate::protocol::Inflight;
use crate::socket::Event;

const PROCESS: Need = Need::Process;
const MANY: Need = Need::ManyClients;
const COMMUNICATION: &str = "Communication";
/// Descriptors that a backend may open late, for reasons of its own.
const SLACK: u64 = 4;
/// Times that a message is repeated.
const TIMES: usize = 50;

cases! {
    "resources.descriptors-of-clients" Must [PROCESS, MANY] descriptors_of_clients,
        COMMUNICATION => "50 clients that disconnect leave no descriptor open";
    "resources.mappings-of-clients" Must [PROCESS, MANY] mappings_of_clients,
        "Memory access" => "the backend unmaps the memory of a guest that has gone";
    "resources.memory-of-clients" Must [PROCESS, MANY] memory_of_clients,
        COMMUNICATION => "clients that disconnect leave no memory allocated";
    "resources.threads-of-clients" Must [PROCESS, MANY] threads_of_clients,
        COMMUNICATION => "clients that disconnect leave no thread running";
    "resources.stray-descriptors" Must [PROCESS, Need::Harm] stray_descriptors,
        COMMUNICATION => "GET_FEATURES has no descriptor; the backend closes those that come with it";
    "resources.stray-descriptors-on-commands" Must [PROCESS, Need::Harm] stray_on_commands,
        COMMUNICATION =>
            "SET_OWNER, SET_FEATURES and SET_VRING_NUM have no descriptor; the backend closes those that come with \
             them";
    "resources.surplus-of-table" Must [PROCESS, Need::Harm] surplus_of_table,
        "VHOST_USER_SET_MEM_TABLE" => "the backend closes descriptors beyond the number of regions";
    "resources.refused-table" Must [PROCESS, MANY, Need::Harm] refused_table,
        "VHOST_USER_SET_MEM_TABLE" => "a refused table leaves no descriptor open and no memory mapped";
    "resources.call-replaced" Must [PROCESS] |context| replaced(context, 13),
        "VHOST_USER_SET_VRING_CALL" => "a new descriptor replaces the old one, which is closed";
    "resources.err-replaced" Must [PROCESS] |context| replaced(context, 14),
        "VHOST_USER_SET_VRING_ERR" => "a new descriptor replaces the old one, which is closed";
    "resources.kick-replaced" Must [PROCESS] kick_replaced,
        "VHOST_USER_SET_VRING_KICK" => "a ring that is stopped and started again has one kick descriptor open";
    "resources.table-replaced" Must [PROCESS] table_replaced,
        "VHOST_USER_SET_MEM_TABLE" => "a new table replaces the old one, which is unmapped and closed";
    "resources.log-replaced" Must [PROCESS, Need::Protocol(ProtocolFeatures::LOG_SHMFD)] log_replaced,
        "VHOST_USER_SET_LOG_BASE" => "a new log replaces the old one, which is unmapped and closed";
    "resources.log-fd-replaced" Must [PROCESS] log_fd_replaced,
        "VHOST_USER_SET_LOG_FD" => "a new descriptor replaces the old one, which is closed";
    "resources.inflight-replaced" Must [PROCESS, Need::Protocol(ProtocolFeatures::INFLIGHT_SHMFD)] inflight_replaced,
        "VHOST_USER_GET_INFLIGHT_FD" => "a new inflight buffer replaces the old one, which is closed";
    "resources.channel-replaced" Must [PROCESS, Need::Protocol(ProtocolFeatures::BACKEND_REQ)] channel_replaced,
        "VHOST_USER_SET_BACKEND_REQ_FD" => "a new channel replaces the old one, which is closed";
    "resources.memory-of-messages" Must [PROCESS] memory_of_messages,
        COMMUNICATION => "a session of 20,000 messages uses no more memory than a short one";
    "resources.idle-without-client" Should [PROCESS, MANY] idle_without_client,
        COMMUNICATION => "a backend without a client uses no CPU time";
    "resources.idle-with-ring" Should [PROCESS] idle_with_ring,
        "Ring states" => "the backend waits for a ring's kick descriptor and does not poll the ring";
    "resources.idle-after-kick-ended" Must [PROCESS, Need::Harm] idle_after_kick_ended,
        "VHOST_USER_SET_VRING_KICK" =>
            "a kick descriptor at end of file stays readable forever; a loop that reads it uses a whole CPU";
}

/// What the backend holds while it serves a client that has only negotiated features.
///
/// Readings on both sides of many clients are compared in this state. Between two clients is no such state: a backend
/// that takes down all it had for one client before it sets up what the next needs holds less for a moment, and one that
/// is slow to take down holds more.
pub(super) fn resources_while_served(context: &mut Context<'_>) -> Outcome<Resources> {
    let _client = context.open_again_device()?;
    context.resources()
}

/// Fails if there are more descriptors than [`resources_while_served`] found before, in the same state.
pub(super) fn no_more_descriptors_while_served(context: &mut Context<'_>, before: u64, what: &str) -> Outcome {
    let _client = context.open_again_device()?;
    no_more_descriptors(context, before, what)
}

/// Fails if there are more descriptors than before.
pub(super) fn no_more_descriptors(context: &Context<'_>, before: u64, what: &str) -> Outcome {
    let after = context.descriptors_fall_to(before + SLACK)?;
    if after > before + SLACK {
        Stop::fail(format!("{before} descriptors before, {after} after {what}"))
    } else {
        Ok(())
    }
}

/// Some clients that come and leave.
fn clients(context: &mut Context<'_>, count: usize) -> Outcome {
    for _ in 0..count {
        let mut link = context.open_again_device()?;
        let mut guest = Guest::new()?;
        guest.share(&mut link)?;
        SplitRing::new(&mut guest, 0, 64)?.start(&mut link)?;
    }
    Ok(())
}

fn descriptors_of_clients(context: &mut Context<'_>) -> Outcome {
    clients(context, 2)?;
    let before = resources_while_served(context)?.descriptors;
    clients(context, 50)?;
    no_more_descriptors_while_served(context, before, "50 clients")
}

fn mappings_of_clients(context: &mut Context<'_>) -> Outcome {
    clients(context, 31)?;
    // The backend has seen the end of the last client when it serves the next.
    drop(context.connect_again()?);
    let Some(pid) = context.target.pid() else { return Stop::skip("the backend's process cannot be inspected") };
    let ours = || {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        maps.lines().filter(|line| line.contains("memfd:kiln-memory")).count()
    };
    wait_until(Duration::from_millis(500), || ours() == 0);
    match ours() {
        0 => Ok(()),
        left => Stop::fail(format!("30 guests have gone, but {left} mappings of their memory are left")),
    }
}

fn memory_of_clients(context: &mut Context<'_>) -> Outcome {
    const GROWTH_KIB: u64 = 4 << 10;
    clients(context, 20)?;
    let before = resources_while_served(context)?.resident_kib;
    clients(context, 100)?;
    let after = resources_while_served(context)?.resident_kib;
    if after > before + GROWTH_KIB {
        Stop::fail(format!("{before} KiB before, {after} KiB after 100 clients"))
    } else {
        Ok(())
    }
}

fn threads_of_clients(context: &mut Context<'_>) -> Outcome {
    clients(context, 5)?;
    let before = resources_while_served(context)?.threads;
    clients(context, 30)?;
    let _client = context.open_again_device()?;
    let mut after = before;
    wait_until(Duration::from_millis(500), || {
        after = context.resources().map_or(0, |resources| resources.threads);
        after <= before + 8
    });
    // A pool of threads may still grow; thirty are one for each client.
    if after > before + 8 { Stop::fail(format!("{before} threads before, {after} after 30 clients")) } else { Ok(()) }
}

/// Sends messages with a descriptor that they must not have, on new connections if old ones are closed.
fn stray(context: &mut Context<'_>, messages: &[(u32, &[u8])], what: &str) -> Outcome {
    let file = Event::new()?;
    let fds: [BorrowedFd<'_>; 1] = [file.as_fd()];
    let mut link = context.open_device()?;
    let before = context.resources()?.descriptors;
    'messages: for _ in 0..TIMES {
        for (request, payload) in messages {
            link.send_raw(*request, Flags::request(), payload, &fds).or_else(|stop| match stop {
                Stop::Closed(_) => Ok(()),
                stop => Err(stop),
            })?;
            if link.is_alive()? {
                continue;
            }
            if context.facts.ends_with_client {
                break 'messages;
            }
            drop(link);
            link = context.open_again_device()?;
        }
    }
    // While its connection is open: the end of a session would hide what it held.
    if context.target.has_ended() { Ok(()) } else { no_more_descriptors(context, before, what) }
}

fn stray_descriptors(context: &mut Context<'_>) -> Outcome {
    stray(context, &[(1, &[])], "50 times GET_FEATURES with one")
}

fn stray_on_commands(context: &mut Context<'_>) -> Outcome {
    let num = [[0; 4], 64_u32.to_ne_bytes()].concat();
    let features = usual_features(context.facts.features).to_ne_bytes();
    stray(
        context,
        &[(3, &[]), (2, &features), (8, &num)],
        "50 times SET_OWNER, SET_FEATURES and SET_VRING_NUM with one",
    )
}

fn surplus_of_table(context: &mut Context<'_>) -> Outcome {
    let file = SharedFile::new(1 << 20)?;
    let mut link = context.open_device()?;
    let region = MemoryRegion { guest_address: 0, size: 1 << 20, user_address: 1 << 40, mmap_offset: 0 };
    let table = SetMemTable(MemoryTable(vec![region]));
    link.require(&table, &[file.as_fd()])?;
    let before = context.resources()?.descriptors;
    for _ in 0..TIMES {
        let answer = link.ask(&table, &[file.as_fd(), file.as_fd(), file.as_fd()])?;
        if answer.closed {
            if context.facts.ends_with_client {
                return Ok(());
            }
            drop(link);
            link = context.open_again_device()?;
        }
    }
    no_more_descriptors(context, before, "50 tables of 1 region with 3 descriptors each")
}

fn refused_table(context: &mut Context<'_>) -> Outcome {
    let file = SharedFile::new(1 << 20)?;
    clients(context, 2)?;
    let before = resources_while_served(context)?;
    for _ in 0..TIMES {
        let mut link = context.open_again_device()?;
        let good = MemoryRegion { guest_address: 0, size: 1 << 20, user_address: 1 << 40, mmap_offset: 0 };
        let bad = MemoryRegion { guest_address: 1 << 32, size: 1 << 20, user_address: 1 << 41, mmap_offset: 1 << 50 };
        let (pipe, _other) = std::io::pipe()?;
        let pipe = OwnedFd::from(pipe);
        link.ask(&SetMemTable(MemoryTable(vec![good, bad])), &[file.as_fd(), pipe.as_fd()])?;
    }
    let _client = context.open_again_device()?;
    no_more_descriptors(context, before.descriptors, "50 tables that cannot be mapped")?;
    let after = context.resources()?.mappings;
    if after > before.mappings + 20 {
        Stop::fail(format!("{} mappings before, {after} after 50 tables that cannot be mapped", before.mappings))
    } else {
        Ok(())
    }
}

/// Replaces the call or error descriptor of a ring.
fn replaced(context: &mut Context<'_>, request: u32) -> Outcome {
    let mut link = context.open_device()?;
    let mut before = 0;
    for time in 0..=TIMES {
        let event = Event::new()?;
        let file = VringFile::with_descriptor(0);
        match request {
            13 => link.require(&SetVringCall(file), &[event.as_fd()])?,
            _ => link.require(&SetVringErr(file), &[event.as_fd()])?,
        }
        if time == 0 {
            before = context.resources()?.descriptors;
        }
    }
    no_more_descriptors(context, before, "50 more")
}

fn kick_replaced(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    let mut guest = Guest::new()?;
    guest.share(&mut link)?;
    let mut before = 0;
    for time in 0..=TIMES {
        let ring = SplitRing::new(&mut guest, 0, 64)?;
        ring.start(&mut link)?;
        if time == 0 {
            before = context.resources()?.descriptors;
        }
        ring.stop(&mut link)?;
    }
    no_more_descriptors(context, before, "50 times stopped and started again")
}

fn table_replaced(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    let mut before = None;
    for time in 0..=TIMES {
        Guest::with_regions(&[(0, 1 << 20), (1 << 32, 1 << 20)])?.share(&mut link)?;
        if time == 0 {
            before = Some(context.resources()?);
        }
    }
    let Some(before) = before else { return Ok(()) };
    no_more_descriptors(context, before.descriptors, "50 more tables")?;
    let after = context.resources()?.mappings;
    if after > before.mappings + 20 {
        Stop::fail(format!("{} mappings before, {after} after 50 more tables", before.mappings))
    } else {
        Ok(())
    }
}

fn log_replaced(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_with(USUAL | ProtocolFeatures::LOG_SHMFD)?;
    let mut before = None;
    for time in 0..=TIMES {
        let (_log, description, file) = DirtyLog::create(Guest::BYTES)?;
        super::log::set_log_base(&mut link, description, &file)?;
        if time == 0 {
            before = Some(context.resources()?);
        }
    }
    let Some(before) = before else { return Ok(()) };
    no_more_descriptors(context, before.descriptors, "50 more logs")?;
    let after = context.resources()?.mappings;
    if after > before.mappings + 20 {
        Stop::fail(format!("{} mappings before, {after} after 50 more logs", before.mappings))
    } else {
        Ok(())
    }
}

fn log_fd_replaced(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    let mut before = 0;
    for time in 0..=TIMES {
        let event = Event::new()?;
        let answer = link.ask(&SetLogFd(Empty), &[event.as_fd()])?;
        if answer.closed {
            return Stop::skip("SET_LOG_FD is not accepted");
        }
        if time == 0 {
            before = context.resources()?.descriptors;
        }
    }
    no_more_descriptors(context, before, "50 more")
}

fn inflight_replaced(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_with(USUAL | ProtocolFeatures::INFLIGHT_SHMFD)?;
    let wish = Inflight { num_queues: 1, queue_size: 128, ..Inflight::default() };
    let mut before = 0;
    for time in 0..=TIMES {
        let (description, fds) = link.call_with_fds(&GetInflightFd(wish), &[])?;
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        link.require(&SetInflightFd(description), &fds)?;
        if time == 0 {
            before = context.resources()?.descriptors;
        }
    }
    no_more_descriptors(context, before, "50 more")
}

fn channel_replaced(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_with(USUAL | ProtocolFeatures::BACKEND_REQ)?;
    let mut before = 0;
    for time in 0..=TIMES {
        let (_ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        link.require(&SetBackendReqFd(Empty), &[theirs.as_fd()])?;
        if time == 0 {
            before = context.resources()?.descriptors;
        }
    }
    no_more_descriptors(context, before, "50 more channels")
}

fn memory_of_messages(context: &mut Context<'_>) -> Outcome {
    const GROWTH_KIB: u64 = 2 << 10;
    let mut link = context.open_device()?;
    let features = usual_features(link.offered);
    let mut before = 0;
    link.note("20,000 times SET_FEATURES, GET_FEATURES");
    for time in 0..10_000 {
        let channel = link.channel();
        channel.send(&SetFeatures(features), &[])?;
        channel.call(&GetFeatures(Empty), &[])?;
        if time == 100 {
            before = context.resources()?.resident_kib;
        }
    }
    let after = context.resources()?.resident_kib;
    if after > before + GROWTH_KIB {
        Stop::fail(format!("{before} KiB before, {after} KiB after 20,000 messages"))
    } else {
        Ok(())
    }
}

/// How long a backend is watched that has nothing to do.
const WATCHED: Duration = Duration::from_millis(150);
/// Processor time that an idle backend may use in that time. A thread that spins gets less than all of a processor that is
/// shared, and more than this.
const IDLE_MAX: Duration = WATCHED.checked_div(10).expect("10 is not 0");
/// How often a backend that polls before it has a client is looked at again.
const BASELINE_TRIES: u32 = 5;

/// What a backend did in [`WATCHED`].
#[derive(Clone, Copy)]
pub(super) struct Work {
    used: Duration,
    /// Threads that never slept: they ran or waited for a processor most of the time. How much processor time they get
    /// depends on what else runs on this host, but whether they try does not.
    polling: usize,
}

impl Work {
    fn watch(context: &Context<'_>) -> Outcome<Self> {
        let times = || {
            let times = context.target.pid().and_then(processor_time);
            times.ok_or_else(|| Stop::Skip("the backend's process cannot be inspected".to_owned()))
        };
        let before = times()?;
        std::thread::sleep(WATCHED);
        let mut work = Self { used: Duration::ZERO, polling: 0 };
        for (thread, after) in times()? {
            let before = before.get(&thread).copied().unwrap_or_default();
            let ran = after.ran.saturating_sub(before.ran);
            work.used += ran;
            let was_busy = ran + after.waited.saturating_sub(before.waited) > WATCHED / 2;
            work.polling += usize::from(was_busy || after.never_slept_since(before));
        }
        Ok(work)
    }

    /// What the backend does before this case has sent anything to it.
    ///
    /// A backend that has just been started may still be busy with that, so a busy one is looked at again: only one that is
    /// busy each time polls.
    pub(super) fn baseline(context: &Context<'_>) -> Outcome<Self> {
        let socket = context.target.socket();
        wait_until(context.timeout(), || socket.exists());
        let mut work = Self::watch(context)?;
        for _ in 1..BASELINE_TRIES {
            if work.polling == 0 {
                break;
            }
            work = Self::watch(context)?;
        }
        Ok(work)
    }
}

/// Fails if the backend's process works although there is nothing to do.
///
/// Some backends poll on purpose (DPDK, SPDK): they take whole processors from their start on. Those are compared with
/// themselves: no more threads may poll than did before.
pub(super) fn idles(context: &Context<'_>, baseline: Work, what: &str) -> Outcome {
    // What it still does is done soon; what spins goes on.
    std::thread::sleep(Duration::from_millis(20));
    let Work { used, polling } = Work::watch(context)?;
    if baseline.polling > 0 && polling > baseline.polling {
        return Stop::fail(format!("{what}: {polling} threads poll, {} did before", baseline.polling));
    }
    if baseline.polling == 0 && used > IDLE_MAX {
        return Stop::fail(format!("{what}: it used {used:?} of CPU time in {WATCHED:?}"));
    }
    Ok(())
}

/// As [`idles`], for rules that a backend which polls on purpose does not follow.
fn idles_unless_it_polls(context: &Context<'_>, baseline: Work, what: &str) -> Outcome {
    idles(context, baseline, what)?;
    match baseline.polling {
        0 => Ok(()),
        threads => Stop::skip(format!(
            "it polls by design: {threads} threads have done so since its start, and no more do now"
        )),
    }
}

fn idle_without_client(context: &mut Context<'_>) -> Outcome {
    let baseline = Work::baseline(context)?;
    clients(context, 2)?;
    // The backend has seen the end of the last client when it serves the next.
    drop(context.connect_again()?);
    idles_unless_it_polls(context, baseline, "no client is connected")
}

fn idle_with_ring(context: &mut Context<'_>) -> Outcome {
    let baseline = Work::baseline(context)?;
    let mut link = context.open_device()?;
    let mut guest = Guest::new()?;
    guest.share(&mut link)?;
    let ring = SplitRing::new(&mut guest, 0, 64)?;
    ring.start(&mut link)?;
    idles_unless_it_polls(context, baseline, "a ring is empty")
}

fn idle_after_kick_ended(context: &mut Context<'_>) -> Outcome {
    let baseline = Work::baseline(context)?;
    let mut link = context.open_device()?;
    let mut guest = Guest::new()?;
    guest.share(&mut link)?;
    let ring = SplitRing::new(&mut guest, 0, 64)?;
    ring.place(&mut link)?;
    link.require(&SetVringCall(VringFile::with_descriptor(0)), &[ring.call.as_fd()])?;
    let (reader, writer) = std::io::pipe()?;
    drop(writer);
    let fds = [reader.as_fd()];
    let answer = link.ask(&SetVringKick(VringFile::with_descriptor(0)), &fds)?;
    if answer.is_refused() {
        return context.survives_messages(link);
    }
    link.ask(&SetVringEnable(ring.state(1)), &[])?;
    if context.target.has_ended() { Ok(()) } else { idles(context, baseline, "the kick descriptor is at end of file") }
}
