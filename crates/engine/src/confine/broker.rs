//! Gives a fork's VMM the memory of its snapshot, open for reading only.
//!
//! ```text
//!   VMM: open(MEMORY_NAME, O_RDWR) ──seccomp──▶ broker thread: is it this name? ──▶ a descriptor that can only read
//!        ◀──────────────────────────────── the call's result ──────────────────────┘
//! ```
//! A fork maps the memory file privately, so it never writes to it. But QEMU before version 8.2 opens the file for
//! writing nevertheless. A VMM that its guest has taken over could then write to the memory of all other forks. And a
//! VMM with a user of its own could not open the file at all. So Kiln answers this one call, which no other call of
//! QEMU resembles.
//!
//! With seccomp notifications, the VMM's memory must not be trusted: another thread of it can change the path after
//! Kiln has read it. This broker is safe all the same, because its answer depends on the path only in one way. If the
//! path is the name, the VMM gets a descriptor that can only read. If it is any other path, the kernel continues the
//! call as if there were no filter, with the rights that the VMM has anyway. So a VMM that changes the path meanwhile
//! gains nothing.
#![expect(unsafe_code, reason = "seccomp's notifications have no safe interface")]

use std::ffi::c_long;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// The VMM's name for the memory file. No file has this name.
pub(crate) const MEMORY_NAME: &str = "/memory-of-the-snapshot";
/// A VMM opens its memory in its first milliseconds, or its start has failed.
const OPEN_DEADLINE: Duration = Duration::from_secs(60);
/// Since this kernel, a descriptor can be put into a process that waits for an answer.
const LINUX_WITH_INJECTION: (u32, u32) = (5, 9);
/// `AUDIT_ARCH_X86_64` of linux/audit.h.
const ARCHITECTURE: u32 = 0xc000_003e;
/// Offsets in `struct seccomp_data`.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
/// The lower half of the second and the third argument: the flags of `open` and of `openat`.
const SECOND_AT: u32 = 24;
const THIRD_AT: u32 = 32;
/// The kernel's value. In C libraries for 64 bits the constant is 0.
const O_LARGEFILE: u32 = 0o100_000;
/// The kernel fills all of its structure, which may have grown since.
const NOTIFICATION_BYTES: usize = 512;

/// Both ends, before the VMM exists.
#[derive(Debug)]
pub(crate) struct Broker {
    ours: OwnedFd,
    memory: File,
}

/// The child's end.
#[derive(Debug)]
pub(crate) struct Filter {
    socket: OwnedFd,
    program: Vec<libc::sock_filter>,
}

/// Returns `Ok` if this host can do it, or why it can't.
pub(crate) fn available() -> Result<(), String> {
    if super::border::kernel().is_none_or(|version| version < LINUX_WITH_INJECTION) {
        return Err("handing a VMM its memory needs Linux 5.9".into());
    }
    let (operation, action) = (libc::SECCOMP_GET_ACTION_AVAIL, libc::SECCOMP_RET_USER_NOTIF);
    // SAFETY: the kernel only reads the action.
    match unsafe { libc::syscall(libc::SYS_seccomp, operation, 0, &raw const action) } {
        0 => Ok(()),
        _ => Err(format!("seccomp has no notifications here: {}", io::Error::last_os_error())),
    }
}

/// A broker for one VMM that may read `memory`.
pub(crate) fn broker(memory: File) -> io::Result<(Broker, Filter)> {
    let (ours, socket) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    Ok((Broker { ours, memory }, Filter { socket, program: program() }))
}

/// Notifies for `open` and `openat` with the flags `O_RDWR` and no other. Allows all other calls.
fn program() -> Vec<libc::sock_filter> {
    let load = |at| (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at);
    // How many instructions to skip if the value is equal, and if it is not.
    let compare = |value, same, other| (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, same, other, value);
    let end = |action| (libc::BPF_RET | libc::BPF_K, 0, 0, action);
    let lines = [
        load(ARCHITECTURE_AT),
        compare(ARCHITECTURE, 0, 9),
        load(NUMBER_AT),
        compare(libc::SYS_openat as u32, 3, 0),
        compare(libc::SYS_open as u32, 0, 6),
        load(SECOND_AT),
        (libc::BPF_JMP | libc::BPF_JA, 0, 0, 1),
        load(THIRD_AT),
        // Some C libraries add it on their own. Here it has no meaning.
        (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, !O_LARGEFILE),
        compare(libc::O_RDWR as u32, 0, 1),
        end(libc::SECCOMP_RET_USER_NOTIF),
        end(libc::SECCOMP_RET_ALLOW),
    ];
    lines.map(|(code, jt, jf, k)| libc::sock_filter { code: code as u16, jt, jf, k }).into()
}

impl Filter {
    /// Installs the filter on this process and sends its listener to the parent. Runs between fork and exec, after
    /// `no_new_privs` is set, which the kernel requires.
    pub(super) fn install(&self) -> Result<(), Errno> {
        let length = u16::try_from(self.program.len()).expect("it has twelve instructions");
        let program = libc::sock_fprog { len: length, filter: self.program.as_ptr().cast_mut() };
        let (operation, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
        // SAFETY: the kernel copies the program during the call, and writes to none of it.
        let listener = unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, &raw const program) };
        if listener < 0 {
            return Err(last_errno());
        }
        // SAFETY: the kernel has just opened it for us, close-on-exec.
        let listener = unsafe { OwnedFd::from_raw_fd(listener as i32) };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        let fds = [listener.as_fd()];
        rights.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(&self.socket, &[IoSlice::new(b"f")], &mut rights, SendFlags::empty()).map(drop)
    }
}

impl Broker {
    /// Serves the VMM that was started with this broker's filter, on a thread that ends once the VMM has its memory.
    pub(crate) fn serve(self) -> io::Result<()> {
        let listener = self.listener()?;
        std::thread::Builder::new().name("kiln-broker".into()).spawn(move || {
            if let Err(error) = answer(&listener, &self.memory) {
                tracing::warn!(%error, "failed to hand a vmm the memory of its snapshot");
            }
        })?;
        Ok(())
    }

    /// The listener, which the child sent before its exec.
    fn listener(&self) -> io::Result<OwnedFd> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        // Without waiting: the child sends the listener before its exec, and this runs after the exec has succeeded. If
        // the message is missing nevertheless, a wait would never end, because this process holds the child's end of
        // the socket too.
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        recvmsg(&self.ours, &mut [IoSliceMut::new(&mut byte)], &mut rights, flags)?;
        let mut fds = rights.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        fds.next().and_then(|mut fds| fds.next()).ok_or_else(|| io::Error::other("the child sent no descriptor"))
    }
}

/// Answers calls until the memory was handed over, or the VMM has exited.
fn answer(listener: &OwnedFd, memory: &File) -> io::Result<()> {
    let timeout = Timespec::try_from(OPEN_DEADLINE).map_err(io::Error::other)?;
    loop {
        let mut polled = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
        if rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&timeout)))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // An event without `IN` is a hang-up: no process has the filter any more, so the VMM has ended.
        if !polled[0].revents().contains(PollFlags::IN) {
            return Ok(());
        }
        let Some(call) = receive(listener)? else { continue };
        if is_for_memory(&call) {
            match hand_over(listener, call.id, memory)? {
                Answered::Yes => return Ok(()),
                Answered::TooLate => continue,
            }
        }
        let flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
        respond(listener, libc::seccomp_notif_resp { id: call.id, val: 0, error: 0, flags })?;
    }
}

/// `None` if the thread that made the call is gone.
fn receive(listener: &OwnedFd) -> io::Result<Option<libc::seccomp_notif>> {
    #[repr(C, align(8))]
    struct Space([u8; NOTIFICATION_BYTES]);
    let mut space = Space([0; NOTIFICATION_BYTES]);
    // SAFETY: the space is zeroed, as the kernel wants it, and larger than what it writes.
    match unsafe { ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_RECV, (&raw mut space).cast()) } {
        Ok(_) => {}
        Err(Errno::NOENT | Errno::INTR) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    // SAFETY: the space is larger than the structure, is aligned for it, and any numbers are one.
    Ok(Some(unsafe { (&raw const space).cast::<libc::seccomp_notif>().read() }))
}

/// Whether the call's path is the name. If the path can't be read, it is not.
fn is_for_memory(call: &libc::seccomp_notif) -> bool {
    let mut path = [0; MEMORY_NAME.len() + 1];
    let local = libc::iovec { iov_base: path.as_mut_ptr().cast(), iov_len: path.len() };
    let at = if c_long::from(call.data.nr) == libc::SYS_open { call.data.args[0] } else { call.data.args[1] };
    let remote = libc::iovec { iov_base: at as *mut _, iov_len: path.len() };
    // SAFETY: `local` is this function's buffer; the kernel checks the other process's address.
    let read = unsafe { libc::process_vm_readv(call.pid.cast_signed(), &local, 1, &remote, 1, 0) };
    read == path.len().cast_signed() && path.strip_suffix(b"\0") == Some(MEMORY_NAME.as_bytes())
}

/// Whether an answer reached the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answered {
    Yes,
    /// The call was gone. Either its thread has ended, or a signal interrupted the call; then the kernel restarts it
    /// and notifies again. If the listener were closed by then, the restarted call would fail with `ENOSYS`, so the
    /// broker has to keep answering.
    TooLate,
}

fn hand_over(listener: &OwnedFd, id: u64, memory: &File) -> io::Result<Answered> {
    let mut add = libc::seccomp_notif_addfd {
        id,
        flags: libc::SECCOMP_ADDFD_FLAG_SEND as u32,
        srcfd: memory.as_raw_fd().cast_unsigned(),
        newfd: 0,
        newfd_flags: libc::O_CLOEXEC as u32,
    };
    // SAFETY: the kernel only reads the structure.
    match unsafe { ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_ADDFD, (&raw mut add).cast()) } {
        Ok(_) => return Ok(Answered::Yes),
        Err(Errno::NOENT) => return Ok(Answered::TooLate),
        // Before Linux 5.14 it takes two calls.
        Err(Errno::INVAL) => add.flags = 0,
        Err(error) => return Err(error.into()),
    }
    // SAFETY: as above.
    let fd = match unsafe { ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_ADDFD, (&raw mut add).cast()) } {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(Answered::TooLate),
        Err(error) => return Err(error.into()),
    };
    respond(listener, libc::seccomp_notif_resp { id, val: fd.into(), error: 0, flags: 0 })
}

fn respond(listener: &OwnedFd, mut response: libc::seccomp_notif_resp) -> io::Result<Answered> {
    // SAFETY: the kernel only reads the structure.
    match unsafe { ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_SEND, (&raw mut response).cast()) } {
        Ok(_) => Ok(Answered::Yes),
        Err(Errno::NOENT) => Ok(Answered::TooLate),
        Err(error) => Err(error.into()),
    }
}

/// # Safety
/// `argument` is what the request requires.
unsafe fn ioctl(fd: &OwnedFd, request: libc::Ioctl, argument: *mut libc::c_void) -> Result<i32, Errno> {
    // SAFETY: the caller's part.
    match unsafe { libc::syscall(libc::SYS_ioctl, c_long::from(fd.as_raw_fd()), request as c_long, argument) } {
        -1 => Err(last_errno()),
        result => Ok(result as i32),
    }
}

fn last_errno() -> Errno {
    // SAFETY: points to this thread's number.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}
