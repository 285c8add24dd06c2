//! The sessions of the guest, by name.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use kiln_wire::{
    Channel, ErrorCode, Exited, Fault, HEADER_BYTES, OnDetach, SESSION_RING_BYTES, SESSION_RING_BYTES_MAX, SessionInfo,
    SessionSpec, SessionState,
};
use tokio::sync::Notify;
use tokio::task::yield_now;

use super::ring::Ring;
use crate::link::{CHUNK_BYTES, End, Gone, Inbox};
use crate::process::Sink;

/// Sessions at once. A session that has exited and can still be read counts too.
const SESSIONS_MAX: usize = 64;
/// Longest name.
const NAME_BYTES_MAX: usize = 64;
/// How long the output can be read after the command has exited.
pub(super) const KEPT_AFTER_EXIT: Duration = Duration::from_secs(30);

/// All sessions.
#[derive(Debug, Default)]
pub struct Sessions {
    by_name: RefCell<BTreeMap<String, Rc<Session>>>,
}

/// One session.
#[derive(Debug)]
pub struct Session {
    pub(super) name: String,
    command: String,
    tty: bool,
    on_detach: OnDetach,
    idle_timeout: Option<Duration>,
    pub(super) pid: Cell<u32>,
    pub(super) inbox: Rc<Inbox>,
    pub(super) ring: RefCell<Ring>,
    pub(super) exited: RefCell<Option<Exited>>,
    /// Signalled when something happens that viewers wait for.
    pub(super) changed: Notify,
    viewers: RefCell<Vec<Viewer>>,
    active: Cell<Instant>,
}

#[derive(Debug)]
struct Viewer {
    token: String,
    writes: bool,
}

impl Sessions {
    /// Reserves a name for a command that is about to start.
    ///
    /// # Errors
    /// If the name is invalid or in use, the ring's size is out of bounds, or there are too many sessions.
    pub fn add(&self, spec: &SessionSpec, command: String, tty: bool) -> Result<Rc<Session>, Fault> {
        let mut sessions = self.by_name.borrow_mut();
        let name = match &spec.name {
            Some(name) => name.clone(),
            None => (1..).map(|n: u32| format!("s{n}")).find(|name| !sessions.contains_key(name)).unwrap_or_default(),
        };
        check_name(&name)?;
        if sessions.get(&name).is_some_and(|old| !old.has_exited()) {
            return Err(Fault::new(ErrorCode::SessionExists, format!("session `{name}` already exists")));
        }
        let ring_bytes = spec.ring_bytes.unwrap_or(SESSION_RING_BYTES);
        if !(1..=SESSION_RING_BYTES_MAX).contains(&ring_bytes) {
            let message = format!("`ring_bytes` {ring_bytes} is not in 1..={SESSION_RING_BYTES_MAX}");
            return Err(Fault::new(ErrorCode::InvalidRequest, message));
        }
        if sessions.len() >= SESSIONS_MAX && !sessions.contains_key(&name) {
            let ended = sessions.iter().find(|(_, old)| old.has_exited()).map(|(name, _)| name.clone());
            let Some(ended) = ended else {
                let message = format!("more than {SESSIONS_MAX} sessions at once");
                return Err(Fault::new(ErrorCode::LimitExceeded, message));
            };
            sessions.remove(&ended);
        }
        let session = Rc::new(Session {
            name: name.clone(),
            command,
            tty,
            on_detach: spec.on_detach,
            idle_timeout: spec.idle_timeout_ms.map(Duration::from_millis),
            pid: Cell::new(0),
            inbox: Inbox::shared(),
            ring: RefCell::new(Ring::new(ring_bytes as usize)),
            exited: RefCell::new(None),
            changed: Notify::new(),
            viewers: RefCell::default(),
            active: Cell::new(Instant::now()),
        });
        sessions.insert(name, Rc::clone(&session));
        Ok(session)
    }

    /// Removes a session, unless its name belongs to another session now.
    pub fn remove(&self, session: &Rc<Session>) {
        let mut sessions = self.by_name.borrow_mut();
        if sessions.get(&session.name).is_some_and(|found| Rc::ptr_eq(found, session)) {
            sessions.remove(&session.name);
        }
    }

    /// Finds a session whose command was started.
    ///
    /// # Errors
    /// If there is no session with that name.
    pub fn find(&self, name: &str) -> Result<Rc<Session>, Fault> {
        let found = self.by_name.borrow().get(name).filter(|session| session.pid.get() != 0).cloned();
        found.ok_or_else(|| Fault::new(ErrorCode::SessionNotFound, format!("no session `{name}`")))
    }

    /// All sessions, by name.
    pub fn list(&self) -> Vec<SessionInfo> {
        self.by_name.borrow().values().filter(|session| session.pid.get() != 0).map(|session| session.info()).collect()
    }
}

impl Session {
    /// Adds a viewer.
    ///
    /// # Errors
    /// If it is to write while another viewer writes, and `steal` is false.
    pub(super) fn attach(&self, token: &str, write: bool, steal: bool) -> Result<(), Fault> {
        let mut viewers = self.viewers.borrow_mut();
        if write && !steal && viewers.iter().any(|viewer| viewer.writes) {
            let message = format!("another attachment writes to session `{}`", self.name);
            return Err(Fault::new(ErrorCode::SessionBusy, message));
        }
        if write {
            viewers.iter_mut().for_each(|viewer| viewer.writes = false);
        }
        viewers.push(Viewer { token: token.to_owned(), writes: write });
        self.touch();
        self.changed.notify_waiters();
        Ok(())
    }

    /// Removes a viewer. Returns false if there is no viewer with this token.
    pub(super) fn detach(&self, token: &str) -> bool {
        let mut viewers = self.viewers.borrow_mut();
        let before = viewers.len();
        viewers.retain(|viewer| viewer.token != token);
        if viewers.len() == before {
            return false;
        }
        self.touch();
        self.changed.notify_waiters();
        if viewers.is_empty() && self.on_detach == OnDetach::Kill {
            self.inbox.end(End::Cancelled);
        }
        true
    }

    pub(super) fn is_attached(&self, token: &str) -> bool {
        self.viewers.borrow().iter().any(|viewer| viewer.token == token)
    }

    pub(super) fn may_write(&self, token: &str) -> bool {
        self.viewers.borrow().iter().any(|viewer| viewer.writes && viewer.token == token)
    }

    /// Records activity: input, output or a change of viewers.
    pub(super) fn touch(&self) {
        self.active.set(Instant::now());
    }

    /// When the idle timeout ends if nothing happens until then. `None` while there is a viewer, or if there is no
    /// timeout.
    pub(super) fn idle_until(&self) -> Option<Instant> {
        let unattended = self.viewers.borrow().is_empty();
        self.idle_timeout.filter(|_| unattended).and_then(|timeout| self.active.get().checked_add(timeout))
    }

    pub(super) fn has_exited(&self) -> bool {
        self.exited.borrow().is_some()
    }

    fn info(&self) -> SessionInfo {
        let ring = self.ring.borrow();
        let state = match &*self.exited.borrow() {
            Some(exited) => SessionState::Exited { code: exited.status.shell_code() },
            None => SessionState::Running,
        };
        SessionInfo {
            name: self.name.clone(),
            command: self.command.clone(),
            pid: self.pid.get(),
            state,
            tty: self.tty,
            attached: u32::try_from(self.viewers.borrow().len()).unwrap_or(u32::MAX),
            offset: ring.end(),
            oldest: ring.oldest(),
            idle_ms: u64::try_from(self.active.get().elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl Sink for Session {
    async fn room(&self) -> Result<usize, Gone> {
        // The ring always has room, so a command that writes without a pause must yield to other tasks here.
        yield_now().await;
        Ok(CHUNK_BYTES)
    }

    fn put(&self, _: Channel, frame: &mut Vec<u8>) {
        self.ring.borrow_mut().push(&frame[HEADER_BYTES..]);
        frame.truncate(HEADER_BYTES);
        self.touch();
        self.changed.notify_waiters();
    }
}

fn check_name(name: &str) -> Result<(), Fault> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(good) {
        Ok(())
    } else {
        let message = format!("`{name}` is not a name of a session: 1 to {NAME_BYTES_MAX} of `[A-Za-z0-9._-]`");
        Err(Fault::new(ErrorCode::InvalidRequest, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str) -> SessionSpec {
        SessionSpec { name: Some(name.into()), ..SessionSpec::default() }
    }

    #[test]
    fn names_are_checked_and_free_ones_are_found() {
        let sessions = Sessions::default();
        for wrong in ["", "a b", "é", &"x".repeat(65)] {
            let fault = sessions.add(&spec(wrong), String::new(), false).expect_err("refused");
            assert_eq!(fault.code, ErrorCode::InvalidRequest, "{wrong}");
        }
        sessions.add(&spec("s1"), String::new(), false).expect("a good name");
        let second = sessions.add(&SessionSpec::default(), String::new(), false).expect("a free name");
        assert_eq!(second.name, "s2");
        let fault = sessions.add(&spec("s1"), String::new(), false).expect_err("taken");
        assert_eq!(fault.code, ErrorCode::SessionExists);
    }

    #[test]
    fn the_number_of_sessions_is_bounded() {
        let sessions = Sessions::default();
        for _ in 0..SESSIONS_MAX {
            sessions.add(&SessionSpec::default(), String::new(), false).expect("within the bound");
        }
        let fault = sessions.add(&SessionSpec::default(), String::new(), false).expect_err("one too many");
        assert_eq!(fault.code, ErrorCode::LimitExceeded);
    }

    #[test]
    fn one_viewer_writes_until_another_steals() {
        let session = Sessions::default().add(&spec("x"), String::new(), false).expect("a good name");
        session.attach("a", true, false).expect("no viewer writes yet");
        session.attach("b", false, false).expect("there may be many viewers");
        assert_eq!(session.attach("c", true, false).expect_err("busy").code, ErrorCode::SessionBusy);
        session.attach("c", true, true).expect("stealing is allowed");
        assert!(!session.may_write("a") && session.may_write("c") && session.is_attached("a"));
        assert!(session.detach("c") && !session.detach("c"), "an old token changes nothing");
        session.attach("d", true, false).expect("the writer is gone");
    }

    #[test]
    fn a_ring_out_of_bounds_is_refused() {
        for ring_bytes in [0, SESSION_RING_BYTES_MAX + 1] {
            let spec = SessionSpec { ring_bytes: Some(ring_bytes), ..SessionSpec::default() };
            let fault = Sessions::default().add(&spec, String::new(), false).expect_err("refused");
            assert_eq!(fault.code, ErrorCode::InvalidRequest);
        }
    }
}
