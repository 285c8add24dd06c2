//! Reaps children that have exited: sends the status of commands to their owners, and drops the status of orphans.
//!
//! # No status is lost
//! A command is created on a thread of the pool, and it may exit before that thread returns. All reaping happens on the
//! runtime's thread, in [`Reaper::sweep`], and each child that exits is one of three:
//!
//! - *Tracked*: an owner waits for it. It is reaped by its pidfd, which can refer to no other process, and the status
//!   is sent to the owner.
//! - *In flight*: it was created, but its owner isn't registered yet. [`Reaper::expect_child`] is called before the
//!   clone, and the kernel writes the pid into the flight before the child runs, so a child that can be reaped has its
//!   pid in a flight. The exit is kept there, and [`Flight::track`] gives it to the owner. `track` and `sweep` run on
//!   the same thread, so a sweep finds the child either in its flight or tracked, and never between the two.
//! - *An orphan*: any other child. PID 1 inherits processes whose parent has exited. No owner waits for them.
//!
//! The pid is looked up before the child is reaped (`WNOWAIT`): a pid can't be used again until its process is reaped,
//! and only the sweep reaps, so the pid still means the same process when it is compared. A flight keeps its pid from
//! the reaping until `track`; in this short time the kernel doesn't use the pid again, because it assigns pids in a
//! cycle.
//!
//! Several exits may share one SIGCHLD. The signal is read first and then all exited children are reaped, so a child
//! that exits during or after the sweep is reaped by this sweep or raises another signal.
#![expect(unsafe_code, reason = "waitid with resource usage is only reachable as a raw system call")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use kiln_wire::ExitStatus;
use tokio::sync::oneshot;

/// How a child exited and the resources that it used.
#[derive(Debug, Clone, Copy)]
pub struct Exit {
    /// Code or signal.
    pub status: ExitStatus,
    /// CPU time in user mode, including children that it waited for.
    pub user: Duration,
    /// CPU time in the kernel, including children that it waited for.
    pub sys: Duration,
    /// Largest resident set.
    pub max_rss_bytes: u64,
    /// When it was reaped.
    pub at: Instant,
}

/// The owners of children.
#[derive(Debug, Default)]
pub struct Reaper {
    tracked: Rc<RefCell<HashMap<i32, Tracked>>>,
    /// Children that are being created: the pid, when there is one, and the exit, if the child has already exited.
    flights: Rc<RefCell<Vec<Expected>>>,
}

#[derive(Debug)]
struct Expected {
    pid: Arc<AtomicI32>,
    exit: Option<Exit>,
}

/// A child that is being created. If it exits before its owner is registered, the exit is kept for the owner.
#[derive(Debug)]
pub struct Flight {
    pid: Arc<AtomicI32>,
    tracked: Rc<RefCell<HashMap<i32, Tracked>>>,
    flights: Rc<RefCell<Vec<Expected>>>,
}

#[derive(Debug)]
struct Tracked {
    pidfd: Rc<OwnedFd>,
    owner: oneshot::Sender<Exit>,
}

impl Reaper {
    /// Announces a child. Call it before the child is created.
    pub fn expect_child(&self) -> Flight {
        let pid = Arc::new(AtomicI32::new(0));
        self.flights.borrow_mut().push(Expected { pid: Arc::clone(&pid), exit: None });
        Flight { pid, tracked: Rc::clone(&self.tracked), flights: Rc::clone(&self.flights) }
    }

    /// Reaps all children that have exited. Call it after each SIGCHLD.
    pub fn sweep(&self) {
        while let Some(pid) = peek() {
            let tracked = self.tracked.borrow_mut().remove(&pid);
            match tracked {
                Some(Tracked { pidfd, owner }) => {
                    if let Some(exit) = reap(libc::P_PIDFD, pidfd.as_raw_fd()) {
                        // This fails if the owner is gone, and then the status isn't needed.
                        let _ = owner.send(exit);
                    }
                }
                None => {
                    let exit = reap(libc::P_PID, pid);
                    let mut flights = self.flights.borrow_mut();
                    if let Some(expected) = flights.iter_mut().find(|one| one.pid.load(Ordering::Acquire) == pid) {
                        expected.exit = exit;
                    }
                }
            }
        }
    }
}

impl Flight {
    /// The place to which the kernel writes the child's pid before the child runs.
    pub fn pid(&self) -> Arc<AtomicI32> {
        Arc::clone(&self.pid)
    }

    /// Makes the caller the owner of the child, which must have a pid.
    pub fn track(self, pidfd: Rc<OwnedFd>) -> oneshot::Receiver<Exit> {
        let (owner, status) = oneshot::channel();
        let exit = self.land();
        match exit {
            Some(exit) => drop(owner.send(exit)),
            None => drop(self.tracked.borrow_mut().insert(self.pid.load(Ordering::Acquire), Tracked { pidfd, owner })),
        }
        status
    }

    fn land(&self) -> Option<Exit> {
        let mut flights = self.flights.borrow_mut();
        let index = flights.iter().position(|one| Arc::ptr_eq(&one.pid, &self.pid))?;
        flights.swap_remove(index).exit
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.land();
    }
}

/// The pid of a child that has exited. The child is not reaped.
fn peek() -> Option<i32> {
    let (info, _) = waitid(libc::P_ALL, 0, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)?;
    // SAFETY: waitid filled the struct for a child that has exited, or left it zero.
    let pid = unsafe { info.si_pid() };
    (pid != 0).then_some(pid)
}

fn reap(kind: libc::idtype_t, id: i32) -> Option<Exit> {
    let (info, usage) = waitid(kind, id, libc::WEXITED | libc::WNOHANG)?;
    // SAFETY: see `peek`.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return None;
    }
    let status = if info.si_code == libc::CLD_EXITED { ExitStatus::Code(status) } else { ExitStatus::Signal(status) };
    Some(Exit {
        status,
        user: duration(usage.ru_utime),
        sys: duration(usage.ru_stime),
        max_rss_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0) << 10,
        at: Instant::now(),
    })
}

fn waitid(kind: libc::idtype_t, id: i32, options: i32) -> Option<(libc::siginfo_t, libc::rusage)> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both output structs live through the call, and all-zero bytes are a value of each.
    unsafe {
        let result = libc::syscall(libc::SYS_waitid, kind, id, info.as_mut_ptr(), options, usage.as_mut_ptr());
        (result == 0).then(|| (info.assume_init(), usage.assume_init()))
    }
}

fn duration(time: libc::timeval) -> Duration {
    let micros = time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_usec);
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}
