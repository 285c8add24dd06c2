//! Signals for commands that run until they are stopped: a thread waits for them and sets an event and a flag.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use anyhow::Context as _;
use kiln_vdev::socket::Event;

use crate::interrupt::Interrupts;

/// Whether a signal has ended kiln, and which.
pub struct Stop {
    event: Event,
    flag: Arc<AtomicBool>,
    code: Arc<AtomicU8>,
}

impl Stop {
    /// Hears signals from now on. A second one ends kiln at once.
    pub fn new() -> anyhow::Result<Self> {
        let event = Event::new().context("failed to create an event")?;
        let (code, flag) = (Arc::new(AtomicU8::new(0)), Arc::new(AtomicBool::new(false)));
        let (heard, raised, told) =
            (Arc::clone(&code), Arc::clone(&flag), event.try_clone().context("failed to create an event")?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let guard = runtime.enter();
        let mut interrupts = Interrupts::new().context("failed to handle signals")?;
        drop(guard);
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            runtime.block_on(async {
                let first = interrupts.any().await;
                heard.store(first, Ordering::SeqCst);
                raised.store(true, Ordering::SeqCst);
                // A full eventfd is signalled already.
                let _ = told.signal();
                std::process::exit(interrupts.any().await.into())
            })
        })?;
        Ok(Self { event, flag, code })
    }

    /// Readable once kiln was stopped. It is never read, so every thread that polls it sees it.
    pub const fn event(&self) -> &Event {
        &self.event
    }

    /// Set once a signal has arrived, for loops that don't poll.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.flag)
    }

    /// The exit code of the signal, once there was one.
    pub fn code(&self) -> Option<u8> {
        Some(self.code.load(Ordering::SeqCst)).filter(|code| *code != 0)
    }
}
