//! A block device as a whole: the session, its queues, and one request after the other.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::Instant;

use super::options::{BlkConfig, BlkOptions};
use super::queue::{BlkQueue, Slot};
use super::request::{BlkRequest, BlkStatus, Done};
use crate::frontend::{Frontend, FrontendError, Options, SharedRegion, Wish};
use crate::protocol::ProtocolFeatures;
use crate::queue::Arena;

/// The guest address of the shared memory. There is no guest.
const GUEST_ADDRESS: u64 = 0x10_0000;
/// Bits of the virtio status byte: acknowledged, a driver is there, features are settled, the driver is up.
const STATUS_UP: u8 = 1 | 2 | 8 | 4;

/// A block device and its queues.
///
/// ```no_run
/// use kiln_vdev::frontend::{Options, blk::{BlkDriver, BlkOptions}};
///
/// let mut disk = BlkDriver::connect("disk.sock".as_ref(), &Options::default(), &BlkOptions::default())?;
/// let mut first = [0; 512];
/// disk.read(0, &mut first)?;
/// # Ok::<(), kiln_vdev::frontend::FrontendError>(())
/// ```
#[derive(Debug)]
pub struct BlkDriver {
    frontend: Frontend,
    config: BlkConfig,
    queues: Vec<BlkQueue>,
}

impl BlkDriver {
    /// Connects to a backend and starts its queues.
    ///
    /// # Errors
    /// If the session fails, or the backend lacks what the options require.
    pub fn connect(path: &Path, session: &Options, options: &BlkOptions) -> Result<Self, FrontendError> {
        Self::start(Frontend::connect(path, session)?, &Wish::default(), options)
    }

    /// Does the handshake on a session without messages so far, and starts the device's queues.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn start(mut frontend: Frontend, wish: &Wish, options: &BlkOptions) -> Result<Self, FrontendError> {
        let wish = options.wish(wish.clone());
        // The backend takes the connection meanwhile.
        let bytes = BlkQueue::memory_bytes(options) * u64::from(options.queues.max(1));
        let memory = Arena::new(GUEST_ADDRESS, bytes);
        let (mut arena, file) = memory.map_err(|source| memory_error(&frontend, source))?;
        // All that is not answered with something we need is answered at the end.
        let (config, queues) = frontend.batched(|frontend| {
            let negotiated = frontend.handshake(&wish)?;
            let config = BlkConfig::of(&negotiated);
            let most = config.queues.map_or(1, u32::from).min(negotiated.usable_queues());
            let count = options.queues.min(most).max(1);
            let layout = negotiated.ring_layout(options.queue_size);
            let queues = (0..count)
                .map(|index| {
                    let connection = connection(frontend)?;
                    BlkQueue::create(index, layout, options, &config, &mut arena, connection)
                        .map_err(|what| frontend.queue_error(what))
                })
                .collect::<Result<Vec<_>, _>>()?;
            if options.inflight && frontend.has_protocol(ProtocolFeatures::INFLIGHT_SHMFD) {
                let count = u16::try_from(count).expect("there are at most 256 queues");
                frontend.get_inflight(count, options.queue_size)?;
                frontend.set_inflight()?;
            }
            let region = *arena.region().description();
            frontend.share_memory(vec![SharedRegion { region, file }])?;
            start_queues(frontend, &queues)?;
            Ok((config, queues))
        })?;
        Ok(Self { frontend, config, queues })
    }

    /// The session.
    pub const fn frontend(&self) -> &Frontend {
        &self.frontend
    }

    /// The session, for other requests on it.
    pub const fn frontend_mut(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    /// The device's configuration.
    pub const fn config(&self) -> &BlkConfig {
        &self.config
    }

    /// The device's queues. Each may be driven by a thread of its own.
    pub fn queues_mut(&mut self) -> &mut [BlkQueue] {
        &mut self.queues
    }

    /// Reads from a sector on. `into` has whole sectors, at most as many as a request may have.
    ///
    /// # Errors
    /// If the device fails, reports too few written bytes, or does not come back after it has ended.
    pub fn read(&mut self, sector: u64, into: &mut [u8]) -> Result<(), FrontendError> {
        let bytes = self.length("read", into.len())?;
        self.run(BlkRequest::Read { sector, bytes }, &[], into)
    }

    /// One request on the first queue, from its beginning to its end; nothing else may be under way there. A backend that
    /// goes meanwhile is waited for, and the request is not lost.
    fn run(&mut self, request: BlkRequest, from: &[u8], into: &mut [u8]) -> Result<(), FrontendError> {
        let queue = &mut self.queues[0];
        let Some(slot) = queue.reserve() else { return Err(queue.full()) };
        let done = match Self::submit(queue, slot, request, from) {
            Ok(()) => self.next_done(0),
            Err(error) => {
                queue.release(slot);
                return Err(error);
            }
        };
        let queue = &mut self.queues[0];
        let done = done?;
        let ended = match done.status {
            BlkStatus::Ok if done.is_short() => {
                Err(queue.device_error(&request, format!("{} bytes, status included", done.written)))
            }
            BlkStatus::Ok => Ok(()),
            status => Err(queue.device_error(&request, status.name().to_owned())),
        };
        if ended.is_ok() {
            queue.data(done.slot).copy_to(into);
        }
        queue.release(done.slot);
        ended
    }

    fn submit(queue: &mut BlkQueue, slot: Slot, request: BlkRequest, from: &[u8]) -> Result<(), FrontendError> {
        queue.data(slot).copy_from(from);
        queue.submit(slot, request)?;
        queue.publish()
    }

    /// The next request that completes on a queue. If the backend ends meanwhile, it is waited for, and gets its
    /// requests again.
    ///
    /// # Errors
    /// If nothing completes in time, the backend does not come back, or it breaks the protocol.
    pub fn next_done(&mut self, queue: usize) -> Result<Done, FrontendError> {
        let queues = &self.queues[queue];
        let deadline = Instant::now() + queues.timeout + self.frontend.options.reconnect_timeout;
        loop {
            match self.queues[queue].next_done() {
                // One that comes back and goes again, time after time, does nothing.
                Err(FrontendError::RingLost { .. }) if Instant::now() < deadline => self.recover()?,
                other => return other,
            }
        }
    }

    /// Stops all rings, as a frontend does before it leaves. What is under way is finished by the backend first.
    ///
    /// # Errors
    /// If the backend does not answer.
    pub(crate) fn stop(&mut self) -> Result<(), FrontendError> {
        let queues = &self.queues;
        let frontend = &mut self.frontend;
        queues.iter().try_for_each(|queue| frontend.stop_ring(&queue.ring).map(drop))
    }

    /// After the backend has ended: waits until it is back, sends it all that the last one had, and has requests in
    /// flight done again. With an inflight region the backend finds them there; without one the rings begin again with
    /// what was not completed. A request may be done twice, and it is never forgotten: what it writes is the same.
    ///
    /// # Errors
    /// If the backend does not come back, or as another one.
    pub fn recover(&mut self) -> Result<(), FrontendError> {
        self.frontend.reconnect()?;
        for queue in &mut self.queues {
            (_, queue.connection) = connection(&self.frontend)?;
            // With a region the ring stays as it is: the new backend counts on it.
            if self.frontend.inflight().is_none() {
                queue.submit_again()?;
            }
        }
        let queues = &self.queues;
        self.frontend.batched(|frontend| start_queues(frontend, queues))
    }

    fn length(&self, request: &'static str, bytes: usize) -> Result<u32, FrontendError> {
        u32::try_from(bytes).map_err(|_| FrontendError::NoRequest {
            socket: self.frontend.name().to_owned(),
            request,
            what: format!("{bytes} bytes"),
        })
    }
}

/// What only tests do to a disk.
#[cfg(feature = "testing")]
impl BlkDriver {
    /// Writes from a sector on. `from` has whole sectors, at most as many as a request may have.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write(&mut self, sector: u64, from: &[u8]) -> Result<(), FrontendError> {
        let bytes = self.length("write", from.len())?;
        self.run(BlkRequest::Write { sector, bytes }, from, &mut [])
    }

    /// Makes what was written survive a loss of power.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn flush(&mut self) -> Result<(), FrontendError> {
        self.run(BlkRequest::Flush, &[], &mut [])
    }

    /// The device's id, up to its first zero.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn id(&mut self) -> Result<Vec<u8>, FrontendError> {
        let mut id = vec![0; super::request::ID_BYTES as usize];
        self.run(BlkRequest::GetId, &[], &mut id)?;
        id.truncate(id.iter().position(|byte| *byte == 0).unwrap_or(id.len()));
        Ok(id)
    }

    /// Tells that sectors are of no use any more.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn discard(&mut self, sector: u64, sectors: u32) -> Result<(), FrontendError> {
        self.run(BlkRequest::Discard { sector, sectors }, &[], &mut [])
    }

    /// Makes sectors zeroes.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write_zeroes(&mut self, sector: u64, sectors: u32, unmap: bool) -> Result<(), FrontendError> {
        self.run(BlkRequest::WriteZeroes { sector, sectors, unmap }, &[], &mut [])
    }

    /// Whether these virtio features were negotiated, such as `feature::blk::DISCARD`.
    pub fn has(&self, features: u64) -> bool {
        self.frontend.has_features(features)
    }
}

fn start_queues(frontend: &mut Frontend, queues: &[BlkQueue]) -> Result<(), FrontendError> {
    if frontend.has_protocol(ProtocolFeatures::STATUS) {
        frontend.set_status(STATUS_UP)?;
    }
    queues.iter().try_for_each(|queue| frontend.start_ring(&queue.ring))
}

/// The connection under another descriptor, for a queue to see its end.
fn connection(frontend: &Frontend) -> Result<(String, OwnedFd), FrontendError> {
    let fd = frontend.channel().stream().as_fd().try_clone_to_owned();
    let fd = fd.map_err(|source| frontend.system("watching the connection", source))?;
    Ok((frontend.name().to_owned(), fd))
}

fn memory_error(frontend: &Frontend, source: crate::memory::MemoryError) -> FrontendError {
    FrontendError::Memory { socket: frontend.name().to_owned(), source }
}
