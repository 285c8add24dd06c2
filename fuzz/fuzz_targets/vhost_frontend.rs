//! A hostile backend: the replies of an honest one with changes, then false entries in the rings and any requests on
//! its own channel, sent to our frontend and its disk driver. Each call returns in time, and nothing stays open.
//!
//! No backend runs: an honest session is recorded once, and its replies are in the socket before they are requested.
#![no_main]

mod hostile;

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostile::input::Input;
use kiln_vdev::backend::{Options as ServerOptions, Server};
use kiln_vdev::devices::blk::{Backing, Blk, BlkOptions as DiskOptions};
use kiln_vdev::frontend::blk::{BlkDriver, BlkOptions};
use kiln_vdev::frontend::{Frontend, FrontendError, Options, Wish};
use kiln_vdev::protocol::{Flags, FrontendRequest, Payload as _, ProtocolFeatures, SingleRegion, VringAddress};
use kiln_vdev::socket::{Channel, Event, RawMessage};
use libfuzzer_sys::fuzz_target;

/// A call that takes longer hangs, even on a busy machine.
const BOUND: Duration = Duration::from_secs(4);
const TIMEOUT: Duration = Duration::from_millis(2);

/// A reply of an honest backend.
struct Answer {
    number: u32,
    payload: Vec<u8>,
    fds: usize,
}

thread_local! {
    static HONEST: [Vec<Answer>; 2] = [record(false), record(true)];
}

fn options(packed: bool) -> BlkOptions {
    BlkOptions {
        queue_size: 8,
        depth: 4,
        request_bytes: 4096,
        packed,
        spin: Duration::ZERO,
        timeout: TIMEOUT,
        ..BlkOptions::default()
    }
}

fn wish() -> Wish {
    Wish { protocol_features: Wish::USUAL_PROTOCOL_FEATURES | ProtocolFeatures::SHMEM, ..Wish::default() }
}

/// Records an honest session with one of our own disks: a thread between the two sides keeps the replies.
fn record(packed: bool) -> Vec<Answer> {
    let disk = Blk::open(&DiskOptions::new(Backing::Null { bytes: 1 << 20 })).expect("a disk");
    let server = Server::new(Arc::new(disk), ServerOptions::default()).expect("a server");
    let stop = Event::new().expect("an event");
    let patient = Duration::from_secs(20);
    let [(ours, mut middle_front), (mut middle_back, theirs)] =
        [(); 2].map(|()| Channel::pair(patient).expect("sockets"));
    std::thread::scope(|scope| {
        scope.spawn(|| server.serve_client(theirs, 1, &stop));
        let recorder = scope.spawn(move || {
            let mut answers = Vec::new();
            while let Ok(RawMessage { header, payload, fds }) = middle_front.receive() {
                let borrowed: Vec<_> = fds.iter().map(OwnedFd::as_fd).collect();
                middle_back.send_raw(header.request, header.flags, &payload, &borrowed).expect("is passed on");
                let has_answer = FrontendRequest::from_number(header.request).is_some_and(|known| known.has_reply());
                if header.flags.needs_reply() || has_answer {
                    let answer = middle_back.receive().expect("is answered");
                    let borrowed: Vec<_> = answer.fds.iter().map(OwnedFd::as_fd).collect();
                    let (number, flags) = (answer.header.request, answer.header.flags);
                    middle_front.send_raw(number, flags, &answer.payload, &borrowed).expect("is passed on");
                    answers.push(Answer { number, payload: answer.payload, fds: answer.fds.len() });
                }
            }
            answers
        });
        let frontend = Frontend::from_channel(ours, &Options { timeout: patient, ..Options::default() });
        let options = BlkOptions { timeout: patient, ..options(packed) };
        let driver = BlkDriver::start(frontend, &wish(), &options).expect("an honest backend");
        use_all(driver);
        recorder.join().expect("no panic")
    })
}

/// Calls all that a connected driver offers. With a hostile backend some calls fail.
fn use_all(mut driver: BlkDriver) {
    let frontend = driver.frontend_mut();
    let _ = frontend.get_config(0, 60);
    let _ = frontend.get_status();
    let _ = frontend.get_shmem_config();
    let _ = frontend.get_shared_object([1; 16]);
    let _ = frontend.save_device_state(TIMEOUT);
    let _ = frontend.start_log(1 << 20);
    let _ = frontend.serve_backend_requests(Duration::ZERO);
    while frontend.take_notice().is_some() {}
    let mut data = [0; 512];
    for request in 0..3 {
        let done = match request {
            0 => driver.read(1, &mut data),
            1 => driver.write(2, &data),
            _ => driver.flush(),
        };
        if matches!(done, Err(FrontendError::Queue { .. } | FrontendError::RingTimeout { .. })) {
            break;
        }
    }
    let _ = driver.frontend_mut().get_vring_base(0);
    let _ = driver.frontend_mut().reset_device();
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let how = input.u8();
    let packed = how & 1 != 0;
    let (ours, mut theirs) = Channel::pair(Duration::from_millis(200)).expect("sockets");
    let spare = Event::new().expect("an event");
    HONEST.with(|honest| reply(&honest[usize::from(packed)], &mut theirs, &spare, &mut input));
    if how & 2 != 0 {
        let _ = theirs.stream().shutdown(std::net::Shutdown::Write);
    }
    let started = Instant::now();
    let session = Options { timeout: TIMEOUT, ..Options::default() };
    let frontend = Frontend::from_channel(ours, &session);
    if let Ok(driver) = BlkDriver::start(frontend, &wish(), &options(packed)) {
        Backend::of(&mut theirs).attack(&mut input);
        use_all(driver);
    }
    let took = started.elapsed();
    assert!(took < BOUND, "the session took {took:?}");
    hostile::count_open();
});

/// Sends the replies of an honest backend with some changes, before they are requested.
fn reply(honest: &[Answer], theirs: &mut Channel, spare: &Event, input: &mut Input<'_>) {
    // One input byte is the number of right replies before the next changed one.
    let mut right = usize::from(input.u8());
    for Answer { number, payload, fds } in honest {
        let (mut number, mut payload, mut fds, mut flags) = (*number, payload.clone(), *fds, Flags::reply());
        if right > 0 {
            right -= 1;
        } else {
            right = usize::from(input.u8() & 0x1f);
            match input.u8() % 8 {
                0 => continue,
                1 => number = input.u8().into(),
                2 => flags = Flags::from_bits(input.odd() as u32),
                3 => fds = usize::from(input.u8() & 3),
                4 => payload = input.some().to_vec(),
                5 => {
                    let bytes = [input.some(), &[0; 4]].concat();
                    let _ = theirs.send_bytes(&bytes, &[]);
                    continue;
                }
                _ => {
                    let at = usize::from(input.u8()) % payload.len().max(1);
                    let new = input.odd().to_le_bytes();
                    for (byte, new) in payload.iter_mut().skip(at).zip(new) {
                        *byte = new;
                    }
                }
            }
        }
        let fds = vec![spare.as_fd(); fds];
        if theirs.send_raw(number, flags, &payload, &fds).is_err() {
            return;
        }
    }
}

/// What the frontend has sent to the backend: memory, the ring's address, its eventfds, and the backend's own channel.
#[derive(Default)]
struct Backend {
    memory: Option<(SingleRegion, std::fs::File)>,
    ring: Option<VringAddress>,
    events: Vec<OwnedFd>,
    channel: Option<Channel>,
}

impl Backend {
    fn of(theirs: &mut Channel) -> Self {
        let mut backend = Self::default();
        while theirs.is_readable(Duration::ZERO).unwrap_or(false) {
            let Ok(RawMessage { header, payload, mut fds }) = theirs.receive() else { break };
            let Some(request) = FrontendRequest::from_number(header.request) else { break };
            match request {
                FrontendRequest::AddMemReg => {
                    let region = SingleRegion::decode(&payload).ok();
                    backend.memory = region.zip(fds.pop().map(std::fs::File::from));
                }
                FrontendRequest::SetVringAddr => backend.ring = VringAddress::decode(&payload).ok(),
                FrontendRequest::SetVringKick | FrontendRequest::SetVringCall | FrontendRequest::SetVringErr => {
                    backend.events.append(&mut fds);
                }
                FrontendRequest::SetBackendReqFd => {
                    let timeout = Duration::from_millis(200);
                    backend.channel = fds.pop().map(|fd| Channel::new(fd.into(), "the backend's own", timeout));
                }
                _ => {}
            }
        }
        backend
    }

    fn attack(&mut self, input: &mut Input<'_>) {
        for _ in 0..16 {
            if input.is_empty() {
                return;
            }
            match input.u8() % 6 {
                0 => {
                    if let Some(event) = self.events.get(usize::from(input.u8() & 3)) {
                        let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
                    }
                }
                1 => {
                    let (number, flags) = (u32::from(input.u8() % 12), 1 | u32::from(input.u8() & 3) << 2);
                    let payload = match input.u8() & 3 {
                        0 => Vec::new(),
                        1 => [&input.odd().to_le_bytes()[..], &[0; 8]].concat(),
                        _ => input.some().to_vec(),
                    };
                    if let Some(channel) = &mut self.channel {
                        let _ = channel.send_raw(number, Flags::from_bits(flags), &payload, &[]);
                    }
                }
                2 | 3 => {
                    // Writes into the used ring, or into the descriptors of a packed ring.
                    let used = input.u8() & 1 != 0;
                    let (at, bytes) = (u64::from(input.u8()), input.some());
                    if let (Some((region, file)), Some(ring)) = (&self.memory, &self.ring) {
                        let start = if used { ring.used } else { ring.descriptor };
                        let start = start.wrapping_sub(region.0.user_address);
                        let _ = file.write_all_at(bytes, start.wrapping_add(at) % region.0.size.max(1));
                    }
                }
                4 => {
                    // Used entries one after the other, and a status for each.
                    let (id, written, count) = (input.odd() as u32, input.odd() as u32, input.u16() & 0xf);
                    let status = input.u8() & 3;
                    if let (Some((region, file)), Some(ring)) = (&self.memory, &self.ring) {
                        let start = ring.used.wrapping_sub(region.0.user_address);
                        let entries = [id.to_le_bytes(), written.to_le_bytes()].concat();
                        let used = [&[0, 0], &count.to_le_bytes()[..], &entries.repeat(8)].concat();
                        let _ = file.write_all_at(&used, start % region.0.size.max(1));
                        // The statuses are in the page after the ring's tables.
                        let _ = file.write_all_at(&[status], (start & !0xfff) % region.0.size.max(1));
                    }
                }
                _ => {
                    if let Some((_, file)) = &self.memory {
                        let _ = file.set_len(u64::from(input.u8()) << 8);
                    }
                }
            }
        }
    }
}
