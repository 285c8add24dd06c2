//! The task that owns a VM: its process, its monitor, its console and its directory.
//!
//! One task reads everything that a VMM sends and carries out one command after another. A command runs as a future
//! beside the reads (`busy`), so a guest's console is read also while a save takes seconds. Otherwise the pipe of the
//! console would fill, and the guest would wait for its own save. The next command is received only when the last one
//! has finished, so two commands never control one monitor at the same time.
//!
//! At the end of a VM the order of steps is fixed:
//!
//! 1. The pidfd shows that the VMM has exited. Its pid stays reserved until the process is reaped.
//! 2. A running save finishes, because its threads may still read the memory of the process by its pid. Meanwhile the
//!    monitor, the console and stderr are drained: pipes and sockets still hold the last bytes after the exit, among
//!    them the reason of the end.
//! 3. The process is reaped, and the reason is decided from the exit status and what was drained.
//! 4. The directory is removed, or kept for a stopped VM.
//! 5. `Exited` is sent as the last event, and the waiters of [`Vm::wait`] are woken. So a caller that has waited finds
//!    no process and no directory of the VM any more.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use camino::Utf8PathBuf;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};

use super::console::{ConsoleRing, EVENT_QUEUE, EventQueue};
use super::control::{COMMAND_QUEUE, Command, Cpus, MONITOR_DEADLINE, Shared};
use super::error::{ControlError, VmmError};
use super::events::{ExitReason, VmEvent, VmEvents, VmExit};
use super::handle::Vm;
use super::log_writer::LogWriter;
use super::save::Save;
use super::vmm::{Monitor, MonitorEvent, MonitorEvents, Saver, Transport};
use crate::blocking::{blocking, operation};
use crate::failpoint;
use crate::process::{Child, VmmStatus};
use crate::snapshot::SnapshotId;
use crate::spec::{Acceleration, VmSpec};
use crate::vm_dir::{ConsoleLog, Journal, SocketDir, State, VmDir, VmId};

/// Bytes that one read of the console or monitor takes at most.
const READ_BYTES: usize = 16 << 10;
/// Pause between two reads of the console, whose bytes arrive one by one. The pipe holds far more than a serial port
/// prints meanwhile.
const CONSOLE_PAUSE: Duration = Duration::from_millis(5);
/// How much of the VMM's last error output is kept.
const STDERR_BYTES_MAX: usize = 8 << 10;
/// After the VMM has exited, for the command that was running. Its monitor is gone, so a save has only its files left
/// to write.
const FINISH_DEADLINE: Duration = Duration::from_secs(20);
/// After the VMM has exited, for what is left in its sockets.
const DRAIN_DEADLINE: Duration = Duration::from_secs(1);
/// A Linux kernel prints this when it panics.
const PANIC_MARK: &[u8] = b"Kernel panic - not syncing";

/// The parts of a running VM, for its owner.
pub(crate) struct Parts {
    /// `$KILN_HOME`.
    pub(crate) home: Utf8PathBuf,
    pub(crate) dir: VmDir,
    pub(crate) child: Child,
    pub(crate) spec: VmSpec,
    pub(crate) started: Instant,
    pub(crate) ends: Ends,
}

/// Kiln's ends of the connections to a VMM.
pub(crate) struct Ends {
    pub(crate) stderr: Option<pipe::Receiver>,
    pub(crate) console: Option<pipe::Receiver>,
    pub(crate) monitor: Arc<dyn Monitor>,
    pub(crate) monitor_events: Box<dyn MonitorEvents>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) acceleration: Acceleration,
    /// Saves the VM, if its driver can.
    pub(crate) saver: Option<Arc<dyn Saver>>,
}

/// Starts the owner's task. If that fails, a child is killed, but an adopted process keeps running.
pub(crate) fn start(parts: Parts) -> io::Result<Vm> {
    let opened = parts.open();
    let Parts { home, dir, child, spec, started, ends } = parts;
    let Ends { stderr, console, monitor, monitor_events, transport, acceleration, saver } = ends;
    let save = |saver| Arc::new(Save::new(dir.path(), &home, &spec, Arc::clone(&monitor), saver));
    let save = saver.map(save);
    let (sockets, log, watch) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            child.give_up();
            return Err(error);
        }
    };
    let (commands, inbox) = mpsc::channel(COMMAND_QUEUE);
    let (sender, receiver) = mpsc::channel(EVENT_QUEUE);
    let (exit_sender, exit) = watch::channel(None);
    let shared = Arc::new(Shared {
        killer: child.killer(),
        killed: AtomicBool::new(false),
        saving: AtomicBool::new(false),
        stopped: Mutex::new(None),
        fate: dir.fate().clone(),
        ring: ConsoleRing::default(),
        dropped_console_bytes: Arc::new(AtomicU64::new(0)),
    });
    let (id, path, pid) = (dir.id().clone(), dir.path().to_owned(), child.pid());
    let owner = Owner {
        events: EventQueue::new(sender, Arc::clone(&shared.dropped_console_bytes)),
        shared: Arc::clone(&shared),
        child,
        dir,
        monitor,
        save,
        monitor_events: Some(monitor_events),
        console,
        console_due: tokio::time::Instant::now(),
        stderr,
        log,
        started,
        last_words: BytesMut::new(),
        end_seen: None,
        no_space_seen: false,
        busy: None,
    };
    tracing::info!(vm = %id, pid, ?acceleration, "started vm");
    tokio::spawn(owner.run(id.clone(), watch, inbox, exit_sender));
    let events = Some(VmEvents(receiver));
    let ports = spec.extra_ports;
    Ok(Vm { id, path, pid, acceleration, ports, sockets, transport, shared, commands, events, exit })
}

impl Parts {
    /// Opens everything that can fail to open.
    fn open(&self) -> io::Result<(SocketDir, Option<LogWriter>, ExitWatch)> {
        let log = self.ends.console.as_ref().map(|_| ConsoleLog::open(self.dir.path())).transpose()?;
        Ok((self.dir.sockets()?, log.map(LogWriter::new), self.child.watch()?))
    }
}

type Busy = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Owner {
    // Dropped first: the directory is removed after the process is gone.
    child: Child,
    dir: VmDir,
    shared: Arc<Shared>,
    monitor: Arc<dyn Monitor>,
    save: Option<Arc<Save>>,
    monitor_events: Option<Box<dyn MonitorEvents>>,
    console: Option<pipe::Receiver>,
    /// The console is not read before this time.
    console_due: tokio::time::Instant,
    stderr: Option<pipe::Receiver>,
    log: Option<LogWriter>,
    events: EventQueue,
    started: Instant,
    last_words: BytesMut,
    end_seen: Option<ExitReason>,
    no_space_seen: bool,
    /// The command that the monitor is carrying out.
    busy: Option<Busy>,
}

type ExitWatch = tokio::io::unix::AsyncFd<Arc<std::os::fd::OwnedFd>>;

impl Owner {
    async fn run(
        mut self,
        id: VmId,
        exit_watch: ExitWatch,
        mut inbox: mpsc::Receiver<Command>,
        exit_sender: watch::Sender<Option<VmExit>>,
    ) {
        self.events.push(VmEvent::Started { pid: self.child.pid() });
        let mut console_buffer = BytesMut::new();
        let mut handle_dropped = false;
        loop {
            tokio::select! {
                // Not biased. A guest that prints without a pause must not keep this branch or the commands from being
                // polled. The bytes that are left at the exit are drained below.
                _ = exit_watch.readable() => break,
                alive = read_from(self.console_due, &mut self.console, &mut console_buffer) => {
                    if !alive { self.console = None; }
                    self.console_bytes(&mut console_buffer);
                    self.console_due = tokio::time::Instant::now() + CONSOLE_PAUSE;
                }
                alive = read(&mut self.stderr, &mut self.last_words) => {
                    if !alive { self.stderr = None; }
                    self.trim_last_words();
                }
                event = next(&mut self.monitor_events) => match event {
                    Some(event) => self.monitor_event(event),
                    None => self.monitor_events = None,
                },
                written = written(&mut self.log) => self.log_written(written),
                () = self.events.room(), if self.events.is_waiting() => self.events.flush(),
                () = finished(&mut self.busy) => self.busy = None,
                command = inbox.recv(), if self.busy.is_none() && !handle_dropped => match command {
                    Some(command) => self.start_command(command),
                    None => {
                        handle_dropped = true;
                        self.shared.kill();
                    }
                },
            }
        }
        let mut busy = self.busy.take();
        // Threads of a save may be reading the process's memory by its pid. So the process is reaped only after they
        // have ended, and the pid can't be reused before. If the save has published its snapshot by now, the save
        // counts.
        let finish = tokio::time::timeout(FINISH_DEADLINE, async {
            if busy.is_some() {
                finished(&mut busy).await;
            }
        });
        // If this times out, only the VMM's last output is lost.
        let drain = tokio::time::timeout(DRAIN_DEADLINE, self.drain(&mut console_buffer));
        let (finished, _) = tokio::join!(finish, drain);
        if finished.is_err() {
            tracing::warn!(vm = %id, "a vm ended, but the command that was running does not");
        }
        let exit = self.exit();
        tracing::info!(vm = %id, %exit, "vm ended");
        let Self { child, dir, mut events, shared, .. } = self;
        blocking(move || {
            drop(child);
            let stopped = shared.stopped.lock().unwrap_or_else(PoisonError::into_inner).take();
            match stopped {
                Some(snapshot) => {
                    if let Err(error) = stop_for_good(dir, snapshot.clone()) {
                        tracing::warn!(vm = %id, %error, "failed to record that a vm has stopped");
                        // The caller that stopped the VM sees by this that the next recovery has to finish the stop.
                        shared.keep_as(snapshot);
                    }
                }
                None => drop(dir),
            }
        })
        .await;
        events.push(VmEvent::Exited(exit.clone()));
        // Callers whose commands still wait in the inbox get `Ended`. The inbox is dropped before the waiters are
        // woken, so a caller that has seen the end never sends another command without an answer.
        drop(inbox);
        // The handle may be gone already.
        drop(exit_sender.send(Some(exit)));
        // Last, because it waits for the reader of the events, who may be slow. Nothing else waits for that.
        events.finish().await;
    }

    /// Reads what the VMM has left in its pipes.
    async fn drain(&mut self, console_buffer: &mut BytesMut) {
        while let Some(event) = next_or_end(&mut self.monitor_events).await {
            self.monitor_event(event);
        }
        while self.console.is_some() {
            if !read(&mut self.console, console_buffer).await {
                self.console = None;
            }
            self.console_bytes(console_buffer);
        }
        while self.stderr.is_some() {
            if !read(&mut self.stderr, &mut self.last_words).await {
                self.stderr = None;
            }
            self.trim_last_words();
        }
        if let Some(log) = &mut self.log {
            let written = log.finish().await;
            self.log_written(written);
        }
    }

    fn console_bytes(&mut self, buffer: &mut BytesMut) {
        if buffer.is_empty() {
            return;
        }
        self.shared.ring.push(buffer);
        if let Some(log) = &mut self.log {
            log.push(buffer);
        }
        self.events.push_console(self.started.elapsed(), buffer);
        buffer.clear();
    }

    fn log_written(&mut self, written: io::Result<()>) {
        if let Err(error) = written {
            // A full disk must not end a VM. Its events and its last lines are still available.
            tracing::warn!(path = %self.dir.path(), %error, "failed to write the console log, it ends here");
            self.log = None;
        }
    }

    fn trim_last_words(&mut self) {
        let excess = self.last_words.len().saturating_sub(STDERR_BYTES_MAX);
        drop(self.last_words.split_to(excess));
    }

    fn monitor_event(&mut self, event: MonitorEvent) {
        match event {
            MonitorEvent::Paused => self.events.push(VmEvent::Paused),
            MonitorEvent::Resumed => self.events.push(VmEvent::Resumed),
            // A guest can repeat its writes without end.
            MonitorEvent::NoSpace if self.no_space_seen => {}
            MonitorEvent::NoSpace => {
                self.no_space_seen = true;
                self.events.push(VmEvent::NoSpace);
            }
            MonitorEvent::Ended(reason) => self.end_seen = Some(reason),
        }
    }

    fn start_command(&mut self, command: Command) {
        let (monitor, save) = (Arc::clone(&self.monitor), self.save.clone());
        let (shared, journal) = (Arc::clone(&self.shared), self.dir.journal().clone());
        self.busy = Some(Box::pin(async move {
            match command {
                Command::Save(order, reply) => {
                    let saved = match save {
                        Some(save) => operation(async move { save.run(&journal, order, &shared).await }).await,
                        None => Err(ControlError::Unsupported.into()),
                    };
                    // This fails if the caller has given up.
                    drop(reply.send(saved));
                }
                Command::Pause(reply) => {
                    answer(reply, monitor.pause(MONITOR_DEADLINE).await, journal, State::Paused).await;
                }
                Command::Resume(deadline, reply) => {
                    answer(reply, monitor.resume(deadline).await, journal, State::Running).await;
                }
                Command::GrowDisk(disk, bytes, reply) => {
                    let grown = monitor.grow_disk(disk, bytes, MONITOR_DEADLINE).await;
                    // Its caller may have gone.
                    drop(reply.send(grown.map_err(ControlError::from)));
                }
                Command::Cpus(reply) => drop(reply.send(cpus(&*monitor).await)),
                Command::PowerDown => {
                    if let Err(error) = monitor.power_down(MONITOR_DEADLINE).await {
                        tracing::warn!(%error, "failed to press the power button");
                    }
                }
            }
        }));
    }

    fn exit(&mut self) -> VmExit {
        let status = match self.child.try_reap() {
            Ok(Some(status)) => status,
            Ok(None) => VmmStatus::Signal(0),
            Err(error) => {
                tracing::warn!(%error, "failed to learn how the VMM ended");
                VmmStatus::Signal(0)
            }
        };
        let reason = match self.end_seen.take() {
            // With `panic=-1` every panic becomes a reboot, so that no guest hangs. Only its console shows the
            // difference.
            Some(ExitReason::GuestReset) if self.shared.ring.contains(PANIC_MARK) => ExitReason::GuestPanicked,
            Some(reason) => reason,
            None if self.shared.killed.load(Ordering::Acquire) => ExitReason::Killed,
            None => ExitReason::VmmFailed { stderr: String::from_utf8_lossy(&self.last_words).trim().to_owned() },
        };
        VmExit { status, reason }
    }
}

async fn cpus(monitor: &dyn Monitor) -> Cpus {
    match monitor.is_running(MONITOR_DEADLINE).await {
        Ok(false) => return Cpus::Paused,
        Ok(true) => {}
        // A VMM that does not answer proves nothing about its guest.
        Err(_) => return Cpus::Running,
    }
    if monitor.is_halted(MONITOR_DEADLINE).await.unwrap_or(false) { Cpus::Halted } else { Cpus::Running }
}

/// Tidies the directory of a VM that was saved to stop, after its VMM has exited. If that fails, everything stays, and
/// recovery finds the same snapshot.
fn stop_for_good(dir: VmDir, snapshot: SnapshotId) -> io::Result<()> {
    failpoint::hit("stop.killed")?;
    dir.journal().append(State::Stopped { snapshot })?;
    failpoint::hit("stop.journaled")?;
    dir.keep()
}

async fn answer(
    reply: oneshot::Sender<Result<(), ControlError>>,
    result: Result<(), VmmError>,
    journal: Journal,
    state: State,
) {
    if result.is_ok()
        && let Err(error) = blocking(move || journal.enter(state)).await
    {
        // Recovery handles both states in the same way, and an adopter asks the VMM.
        tracing::warn!(%error, "failed to record a vm's state");
    }
    // This fails if the caller has given up.
    drop(reply.send(result.map_err(ControlError::from)));
}

/// Reads some bytes. Returns false at the end. Without a source it is never ready. Safe to cancel.
async fn read(source: &mut Option<impl tokio::io::AsyncRead + Unpin>, buffer: &mut BytesMut) -> bool {
    let Some(source) = source else { return std::future::pending().await };
    buffer.reserve(READ_BYTES);
    match source.read_buf(buffer).await {
        Ok(count) => count > 0,
        Err(error) => {
            tracing::debug!(%error, "a VMM's stream ended");
            false
        }
    }
}

/// Runs [`read`], but not before `due`.
async fn read_from(
    due: tokio::time::Instant,
    source: &mut Option<impl tokio::io::AsyncRead + Unpin>,
    buffer: &mut BytesMut,
) -> bool {
    if source.is_some() {
        tokio::time::sleep_until(due).await;
    }
    read(source, buffer).await
}

async fn written(log: &mut Option<LogWriter>) -> io::Result<()> {
    match log {
        Some(log) => log.written().await,
        None => std::future::pending().await,
    }
}

async fn next(events: &mut Option<Box<dyn MonitorEvents>>) -> Option<MonitorEvent> {
    match events {
        Some(events) => poll_fn(|context| events.poll_next(context)).await,
        None => std::future::pending().await,
    }
}

async fn next_or_end(events: &mut Option<Box<dyn MonitorEvents>>) -> Option<MonitorEvent> {
    let events = events.as_mut()?;
    poll_fn(|context| events.poll_next(context)).await
}

async fn finished(busy: &mut Option<Busy>) {
    match busy {
        Some(busy) => busy.await,
        None => std::future::pending().await,
    }
}
