//! Clients that come and go, the program around the backend, and the device's own status and state.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use kiln_programs::{Environment, command};
use rustix::process::{Pid, Signal, kill_process_group};

use super::data::Batch;
use super::prelude::*;
use crate::check::disk::{Disk, kind, on_scratch, pattern, require_status, status};
use crate::check::guest::Guest;
use crate::check::process::{end_words, wait_until};
use crate::check::ring::SplitRing;
use crate::protocol::{DeviceStateTransfer, Header};

const MANY: Need = Need::ManyClients;
const CONVENTIONS: &str = "Backend program conventions";
const COMMUNICATION: &str = "Communication";
const STATUS: Need = Need::Protocol(ProtocolFeatures::STATUS);
const STATE: Need = Need::Protocol(ProtocolFeatures::DEVICE_STATE);

cases! {
    "lifecycle.next-client" Should [MANY] next_client,
        COMMUNICATION =>
            "\"An optional reconnection mechanism can be implemented\": a VMM reconnects without a restart of the \
             backend";
    "lifecycle.fifty-clients" Should [MANY] fifty_clients,
        COMMUNICATION => "the fiftieth client is served like the first";
    "lifecycle.first-client-undisturbed" Must [] first_client_undisturbed,
        COMMUNICATION => "a second connection must not end the first session";
    "lifecycle.leaves-in-handshake" Must [] leaves_in_handshake,
        COMMUNICATION => "a VMM may exit at any time; the next one is served";
    "lifecycle.leaves-in-message" Must [Need::Harm] leaves_in_message,
        COMMUNICATION => "a VMM may exit at any time; half a message ends only its session";
    "lifecycle.leaves-before-answer" Must [Need::Harm] leaves_before_answer,
        COMMUNICATION => "a reply to a client that has disconnected (SIGPIPE) must not end the backend";
    "lifecycle.leaves-with-rings" Must [] leaves_with_rings,
        COMMUNICATION => "a VMM that is killed does not stop its rings";
    "lifecycle.leaves-with-requests" Must [Need::DataPath] leaves_with_requests,
        COMMUNICATION => "a VMM that is killed leaves requests in its rings; the next VMM has its own";
    "lifecycle.half-closed" Should [] half_closed,
        COMMUNICATION => "a frontend that shuts down its side has left; a session that stays open blocks the next one";
    "lifecycle.next-client-works" Should [MANY, Need::DataPath, Need::Writes] next_client_works,
        COMMUNICATION => "a client reads the data that the client before it wrote";
    "lifecycle.flushed-survives-kill" Must
        [Need::DataPath, Need::Writes, Need::Spawned, Need::Feature(feature::blk::FLUSH, "VIRTIO_BLK_F_FLUSH")]
        flushed_survives_kill,
        "VIRTIO 1.2, 5.2.6.2 Device Requirements: Device Operation" =>
            "flushed data survives a kill and restart of the backend";
    "lifecycle.stays-in-foreground" Must [Need::Spawned] stays_in_foreground,
        CONVENTIONS => "\"The back-end program must not daemonize itself\": its parent supervises it";
    "lifecycle.ends-at-sigterm" Must [Need::Spawned] ends_at_sigterm,
        CONVENTIONS => "it \"must end (as quickly and cleanly as possible) when the SIGTERM signal is received\"";
    "lifecycle.ends-at-sigterm-with-client" Must [Need::Spawned] ends_at_sigterm_with_client,
        CONVENTIONS =>
            "it \"must end (as quickly and cleanly as possible) when the SIGTERM signal is received\", also while it \
             serves";
    "lifecycle.print-capabilities" Should [Need::Spawned] print_capabilities,
        CONVENTIONS =>
            "`--print-capabilities` prints the backend's capabilities as JSON for management software, \"and then \
             exit successfully\"";
    "lifecycle.status-kept" Must [STATUS] status_kept,
        "VHOST_USER_GET_STATUS" => "GET_STATUS returns the status that was set";
    "lifecycle.status-reset" Must [STATUS] status_reset,
        "VHOST_USER_SET_STATUS" => "status 0 resets the device, \"as defined in the Virtio specification\"";
    "lifecycle.state-saved" Must [STATE] state_saved,
        "VHOST_USER_SET_DEVICE_STATE_FD" =>
            "a device that offers DEVICE_STATE writes its whole state, closes the pipe, and reports success";
    "lifecycle.state-loaded" Must [STATE] state_loaded,
        "VHOST_USER_CHECK_DEVICE_STATE" => "a saved state can be loaded";
    "lifecycle.state-of-noise" Must [STATE, Need::Harm] state_of_noise,
        "VHOST_USER_CHECK_DEVICE_STATE" =>
            "a state comes from another host; an invalid one is refused and does not end the backend";
    "lifecycle.shmem-config" Must [Need::Protocol(ProtocolFeatures::SHMEM)] shmem_config,
        "VHOST_USER_GET_SHMEM_CONFIG" => "the reply has as many sizes of VIRTIO shared memory regions as it announces";
}

fn next_client(context: &mut Context<'_>) -> Outcome {
    drop(context.open_device()?);
    context.open_again_device().map(drop)
}

fn fifty_clients(context: &mut Context<'_>) -> Outcome {
    drop(context.open_device()?);
    for _ in 0..49 {
        drop(context.connect_again()?);
    }
    context.open_again_device().map(drop)
}

fn first_client_undisturbed(context: &mut Context<'_>) -> Outcome {
    let mut first = context.open_device()?;
    let socket = context.target.socket();
    // It may be queued or refused; both are fine.
    let second = crate::socket::Channel::connect(&socket, context.timeout());
    first.note(if second.is_ok() { "a second client is connected" } else { "a second client is refused" });
    if let Ok(mut second) = second {
        let question = Header { request: 1, flags: Flags::request(), payload_bytes: 0 }.encode();
        // A backend that refuses may have closed it already.
        let _ = second.send_bytes(&question, &[]);
    }
    for _ in 0..10 {
        first.features()?;
    }
    Ok(())
}

fn leaves_in_handshake(context: &mut Context<'_>) -> Outcome {
    drop(context.open()?);
    context.serves_again()
}

fn leaves_in_message(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    let header = Header { request: 9, flags: Flags::request(), payload_bytes: 40 }.encode();
    link.send_bytes(&[&header[..], &[0; 10]].concat(), &[], "SET_VRING_ADDR, its first 10 bytes only")?;
    drop(link);
    context.serves_again()
}

fn leaves_before_answer(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    for _ in 0..20 {
        link.send(&GetFeatures(Empty), &[])?;
    }
    drop(link);
    context.serves_again()
}

fn leaves_with_rings(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    let mut guest = Guest::new()?;
    guest.share(&mut link)?;
    let ring = SplitRing::new(&mut guest, 0, 64)?;
    ring.start(&mut link)?;
    drop(link);
    context.serves_again()
}

fn leaves_with_requests(context: &mut Context<'_>) -> Outcome {
    let mut disk = Disk::open(context)?;
    let batch = Batch::new(&mut disk.guest, &disk.ring);
    for place in 0..Batch::count(&disk.ring) {
        let data = disk.data_at() + 512 * u64::from(place);
        batch.offer(&disk.guest, &mut disk.ring, place, kind::IN, u64::from(place), data);
    }
    disk.ring.publish();
    disk.ring.kick()?;
    disk.link.done("42 reads are under way");
    drop(disk);
    context.serves_again()
}

fn half_closed(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    link.note("the frontend's direction is shut down");
    link.channel().stream().shutdown(std::net::Shutdown::Write)?;
    if link.is_closed_within(context.timeout())? { Ok(()) } else { Stop::fail("the session is still open") }
}

fn next_client_works(context: &mut Context<'_>) -> Outcome {
    let bytes = pattern(21, 4096);
    let (sector, kept) = {
        let mut disk = Disk::open(context)?;
        let sector = disk.scratch;
        let kept = disk.read(sector, 4096)?;
        disk.write(sector, &bytes)?;
        (sector, kept)
    };
    let link = context.open_again(USUAL)?;
    let mut disk = Disk::on(context, link, &Default::default())?;
    disk.require_contents(sector, &bytes, "the data of the client before")?;
    disk.write(sector, &kept)
}

fn flushed_survives_kill(context: &mut Context<'_>) -> Outcome {
    let bytes = pattern(22, 64 << 10);
    let mut sector = 0;
    let mut disk = Disk::open(context)?;
    sector += disk.scratch;
    let kept = disk.read(sector, bytes.len())?;
    disk.write(sector, &bytes)?;
    let (found, _) = disk.request(kind::FLUSH, 0, None)?;
    require_status(found, status::OK, "a flush")?;
    disk.link.done("kill -9; the backend is started again");
    context.target.kill_and_start()?;
    on_scratch(context, &Default::default(), |disk| {
        disk.require_contents(sector, &bytes, "the flushed data")?;
        disk.write(sector, &kept)
    })
}

fn stays_in_foreground(context: &mut Context<'_>) -> Outcome {
    let _link = context.open()?;
    match context.target.ended() {
        None => Ok(()),
        Some(status) => {
            Stop::fail(format!("the started process has exited ({}), but its socket still replies", end_words(status)))
        }
    }
}

fn ends_at_sigterm(context: &mut Context<'_>) -> Outcome {
    if !context.facts.ends_with_client {
        drop(context.connect_again()?);
        return sigterm(context);
    }
    // It listens when it takes a connection; it has not been served one yet.
    let link = context.connect()?;
    let outcome = sigterm(context);
    drop(link);
    outcome
}

fn ends_at_sigterm_with_client(context: &mut Context<'_>) -> Outcome {
    let link = context.open_device()?;
    let outcome = sigterm(context);
    drop(link);
    outcome
}

fn sigterm(context: &mut Context<'_>) -> Outcome {
    const AS_QUICKLY: Duration = Duration::from_secs(2);
    context.note("SIGTERM");
    context.target.expect_end();
    let Some(process) = context.target.process() else {
        return Stop::skip("the backend was not started with `--spawn`");
    };
    let started = Instant::now();
    match process.terminate(AS_QUICKLY) {
        None => Stop::fail(format!("the backend did not exit within {AS_QUICKLY:?} of SIGTERM")),
        Some(status) => {
            let words = end_words(status);
            context.note(format!("exited after {:?}: {words}", started.elapsed()));
            if matches!(words.as_str(), "SIGTERM (signal 15)") || words.starts_with("exit code") {
                return Ok(());
            }
            Stop::fail(format!("after SIGTERM it ended with {words}"))
        }
    }
}

/// Programs that start another: the first argument is theirs, and the backend never sees it.
const STARTERS: [&str; 19] = [
    "ash", "bash", "busybox", "chroot", "dash", "doas", "env", "fish", "flock", "ksh", "nice", "nohup", "setpriv",
    "sh", "stdbuf", "strace", "sudo", "timeout", "zsh",
];

fn print_capabilities(context: &mut Context<'_>) -> Outcome {
    let Some(program) = context.target.command().map(|command| command.program().to_owned()) else {
        return Stop::skip("the backend was not started with `--spawn`");
    };
    let name = std::path::Path::new(&program).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if STARTERS.contains(&name) {
        return Stop::skip(format!(
            "`{name}` starts the backend, so `--print-capabilities` would not reach the backend"
        ));
    }
    // What comes before the first option names what the program is to be: `qemu-tool vhost-user-blk`.
    let words = context.target.command().map(|command| command.words_before_options().to_vec()).unwrap_or_default();
    let mut child = command(&program, Environment::Callers)
        .args(words)
        .arg("--print-capabilities")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    let output = child.stdout.take().map(|output| read_to_end(output, "its output", context.timeout()));
    let ended = wait_until(context.timeout(), || matches!(child.try_wait(), Ok(Some(_)) | Err(_)));
    if !ended {
        // It may run as a backend, and may have started others; none of them is needed.
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    }
    let status = child.wait()?;
    if !ended {
        return Stop::fail(format!("`{program} --print-capabilities` does not exit"));
    }
    if !status.success() {
        return Stop::fail(format!("`{program} --print-capabilities` failed: {}", end_words(status)));
    }
    let text = output.transpose()?.unwrap_or_default();
    let said: serde_json::Value = match serde_json::from_slice(&text) {
        Ok(said) => said,
        Err(error) => {
            return Stop::fail(format!("the output of `{program} --print-capabilities` is not JSON: {error}"));
        }
    };
    if said["type"].is_string() { Ok(()) } else { Stop::fail("the capabilities have no `type`") }
}

/// A session with a status.
fn with_status(context: &mut Context<'_>) -> Outcome<Link> {
    let mut link = context.open_with(USUAL | ProtocolFeatures::STATUS)?;
    let features = usual_features(link.offered);
    link.require(&SetFeatures(features), &[])?;
    Ok(link)
}

/// `ACKNOWLEDGE` and `DRIVER`.
const DRIVER: u64 = 1 | 2;

fn status_kept(context: &mut Context<'_>) -> Outcome {
    let mut link = with_status(context)?;
    for value in [1, DRIVER] {
        link.require(&SetStatus(value), &[])?;
        let found = link.call(&GetStatus(Empty))?;
        if found != value {
            return Stop::fail(format!("the status was set to {value}, but is {found}"));
        }
    }
    Ok(())
}

fn status_reset(context: &mut Context<'_>) -> Outcome {
    let mut link = with_status(context)?;
    link.require(&SetStatus(DRIVER), &[])?;
    link.require(&SetStatus(0), &[])?;
    match link.call(&GetStatus(Empty))? {
        0 => Ok(()),
        found => Stop::fail(format!("the status was reset, but is {found}")),
    }
}

/// Moves the device's state; returns whether the backend took the descriptor.
fn transfer(link: &mut Link, direction: u32, fd: std::os::fd::BorrowedFd<'_>) -> Outcome {
    /// There is no descriptor of the backend's own: ours is used.
    const OURS: u64 = 1 << 8;
    let message = SetDeviceStateFd(DeviceStateTransfer { direction, phase: 0 });
    let (answer, _) = link.call_with_fds(&message, &[fd])?;
    if answer & !OURS & 0xff == 0 { Ok(()) } else { Stop::fail(format!("SET_DEVICE_STATE_FD returned {answer:#x}")) }
}

fn state(context: &mut Context<'_>) -> Outcome<(Link, Vec<u8>)> {
    let mut link = context.open_with(USUAL | ProtocolFeatures::DEVICE_STATE)?;
    let features = usual_features(link.offered);
    link.require(&SetFeatures(features), &[])?;
    let (reader, writer) = std::io::pipe()?;
    transfer(&mut link, 0, writer.as_fd())?;
    drop(writer);
    let saved = read_to_end(reader, "the device's state", context.timeout())?;
    link.note(format!("{} bytes of state", saved.len()));
    match link.call(&CheckDeviceState(Empty))? {
        0 => Ok((link, saved)),
        code => Stop::fail(format!("after saving, CHECK_DEVICE_STATE returned {code}")),
    }
}

/// All that comes from a pipe, to its end.
fn read_to_end(mut reader: impl Read + AsFd, what: &str, timeout: Duration) -> Outcome<Vec<u8>> {
    const BYTES_MAX: usize = 64 << 20;
    let deadline = Instant::now() + timeout;
    let (mut all, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let [ready] = crate::socket::wait_readable([reader.as_fd()], Some(left))?;
        if !ready {
            return Err(Stop::Hang(format!("{what} does not end")));
        }
        match reader.read(&mut buffer)? {
            0 => return Ok(all),
            count => all.extend_from_slice(&buffer[..count]),
        }
        if all.len() > BYTES_MAX {
            return Stop::fail(format!("{what} is too long"));
        }
    }
}

fn state_saved(context: &mut Context<'_>) -> Outcome {
    state(context).map(drop)
}

/// Sends a state to a device; returns its verdict on it.
fn load(link: &mut Link, bytes: &[u8], timeout: Duration) -> Outcome<u64> {
    use std::io::Write as _;
    let (reader, mut writer) = std::io::pipe()?;
    transfer(link, 1, reader.as_fd())?;
    drop(reader);
    // A pipe holds 64 KiB; the backend reads while no request is sent to it.
    let bytes = bytes.to_vec();
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // A backend that refuses early closes its end.
        let _ = writer.write_all(&bytes);
        drop(writer);
        let _ = done.send(());
    });
    if is_done.recv_timeout(timeout).is_err() {
        return Err(Stop::Hang("the backend does not read the state".to_owned()));
    }
    link.call(&CheckDeviceState(Empty))
}

fn state_loaded(context: &mut Context<'_>) -> Outcome {
    let (mut link, saved) = state(context)?;
    match load(&mut link, &saved, context.timeout())? {
        0 => Ok(()),
        code => Stop::fail(format!("the state that was just saved was refused with {code}")),
    }
}

fn state_of_noise(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_with(USUAL | ProtocolFeatures::DEVICE_STATE)?;
    let features = usual_features(link.offered);
    link.require(&SetFeatures(features), &[])?;
    match load(&mut link, &pattern(31, 10_000), context.timeout()) {
        Ok(0) => return Stop::fail("10,000 random bytes were accepted as a state"),
        Ok(_) | Err(Stop::Closed(_)) => {}
        Err(stop) => return Err(stop),
    }
    context.survives_messages(link)
}

fn shmem_config(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_with(USUAL | ProtocolFeatures::SHMEM)?;
    let config = link.call(&GetShmemConfig(Empty))?;
    let regions = config.sizes.iter().filter(|size| **size > 0).count();
    if regions == config.regions as usize {
        Ok(())
    } else {
        Stop::fail(format!("it announces {} regions, but {regions} have a size", config.regions))
    }
}
