//! A backend that is started for one case and watched: its end, its descriptors, its memory, its last words.
#![expect(
    unsafe_code,
    reason = "one system call between fork and exec: a backend ends with the thread that started it"
)]

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kiln_programs::Environment;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, set_parent_process_death_signal};

use super::verdict::Resources;
use crate::socket::wait_readable;

/// What is kept of a backend's output.
const OUTPUT_BYTES_KEPT: usize = 8 << 10;
/// Lines of it that a report shows.
const OUTPUT_LINES_SHOWN: usize = 12;
/// How long a backend may take to end after `SIGTERM` before it is killed.
pub(super) const END_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the end of a process that was killed is waited for.
const KILL_TIMEOUT: Duration = Duration::from_secs(3);

/// How a backend is started: a program and its arguments, `{socket}` and `{dir}` among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpawnCommand(Vec<String>);

/// A text that is no command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// There is no word in it.
    #[error("the command to spawn is empty")]
    Empty,
    /// A quote that does not end.
    #[error("the command to spawn has an unclosed `{0}`")]
    Quote(char),
}

impl std::str::FromStr for SpawnCommand {
    type Err = CommandError;

    /// Words as a shell splits them, with quotes and backslashes; there is no shell, so nothing else has a meaning.
    fn from_str(text: &str) -> Result<Self, CommandError> {
        let mut words = Vec::new();
        let mut word: Option<String> = None;
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            match character {
                space if space.is_whitespace() => words.extend(word.take()),
                quote @ ('\'' | '"') => {
                    let word = word.get_or_insert_default();
                    loop {
                        match characters.next() {
                            None => return Err(CommandError::Quote(quote)),
                            Some(end) if end == quote => break,
                            Some('\\') if quote == '"' => word.extend(characters.next()),
                            Some(other) => word.push(other),
                        }
                    }
                }
                '\\' => word.get_or_insert_default().extend(characters.next()),
                other => word.get_or_insert_default().push(other),
            }
        }
        words.extend(word);
        if words.is_empty() { Err(CommandError::Empty) } else { Ok(Self(words)) }
    }
}

impl SpawnCommand {
    /// The program.
    pub(super) fn program(&self) -> &str {
        &self.0[0]
    }

    /// The arguments before the first option, and before the first that only a started backend has.
    pub(super) fn words_before_options(&self) -> &[String] {
        let ends = |word: &String| word.starts_with('-') || word.contains("{socket}") || word.contains("{dir}");
        let count = self.0[1..].iter().position(ends).unwrap_or(self.0.len() - 1);
        &self.0[1..=count]
    }

    /// Whether `what` is in it: `{socket}`, `{dir}`.
    pub(super) fn mentions(&self, what: &str) -> bool {
        self.0.iter().any(|word| word.contains(what))
    }
}

impl std::fmt::Display for SpawnCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}

/// A backend that was started. It and all that it started are killed when this is dropped.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    pidfd: OwnedFd,
    socket: PathBuf,
    output: Arc<Mutex<VecDeque<u8>>>,
    ended: Option<ExitStatus>,
    /// How long it has to end after `SIGTERM`.
    grace: Duration,
    /// Removed last, when no backend uses it any more.
    directory: Arc<tempfile::TempDir>,
}

impl Process {
    /// Starts a backend that listens on `socket`, or in a new folder. It has this process's environment, and no
    /// descriptors of it.
    ///
    /// # Errors
    /// If the program can't be started.
    pub(super) fn start(command: &SpawnCommand, socket: Option<&Path>) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("kiln-check-").tempdir()?;
        Self::start_in(command, socket, Arc::new(directory))
    }

    /// Kills it and starts another in the same folder, which finds there what this one has kept.
    ///
    /// # Errors
    /// If the program can't be started.
    pub(super) fn kill_and_start(mut self, command: &SpawnCommand, socket: Option<&Path>) -> io::Result<Self> {
        self.kill();
        let directory = Arc::clone(&self.directory);
        drop(self);
        // A process that is killed can't remove its sockets, and binding to a path that is there fails. A person who starts a
        // backend again after a crash removes them; all other files are the backend's state.
        for entry in std::fs::read_dir(directory.path())?.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
                remove_if_there(&entry.path())?;
            }
        }
        Self::start_in(command, socket, directory)
    }

    fn start_in(command: &SpawnCommand, socket: Option<&Path>, directory: Arc<tempfile::TempDir>) -> io::Result<Self> {
        let socket = socket.map_or_else(|| directory.path().join("backend.sock"), Path::to_owned);
        // What a backend before this one left would be connected to instead of waited for.
        remove_if_there(&socket)?;
        let filled = |word: &String| {
            word.replace("{socket}", &socket.to_string_lossy()).replace("{dir}", &directory.path().to_string_lossy())
        };
        let (reader, writer) = io::pipe()?;
        let mut program = kiln_programs::command(filled(&command.0[0]), Environment::Callers);
        program
            .args(command.0[1..].iter().map(filled))
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .process_group(0);
        // SAFETY: between fork and exec only this system call is made, which neither allocates nor takes a lock.
        unsafe {
            program.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let child = program.spawn()?;
        drop(program);
        let pid = Pid::from_child(&child);
        let output = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&output);
        // It ends when no process is left that can write to the pipe. The kill of the group ensures that.
        std::thread::Builder::new().name("backend-output".to_owned()).spawn(move || keep_output(reader, &kept))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { child, pidfd, socket, output, ended: None, grace: END_TIMEOUT, directory })
    }

    /// Where it listens.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has. What it has started ends then too.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() && self.has_ended(Duration::ZERO) {
            // As long as its status has not been read, no other group can have its number.
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            self.ended = self.child.wait().ok();
        }
        self.ended
    }

    /// Waits for its end.
    pub(super) fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.has_ended(timeout);
        }
        self.ended()
    }

    /// Sends SIGTERM. Returns how it ended, if in time.
    pub(super) fn terminate(&mut self, timeout: Duration) -> Option<ExitStatus> {
        self.signal(Signal::TERM);
        self.wait(timeout)
    }

    /// Ends it at once.
    fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait(KILL_TIMEOUT);
    }

    /// Sends SIGTERM, and kills it if it does not end within `grace`. Returns whether it ended at SIGTERM.
    pub(super) fn end(mut self, grace: Duration) -> bool {
        self.grace = grace;
        self.end_in_time()
    }

    fn end_in_time(&mut self) -> bool {
        let has_ended = !self.grace.is_zero() && self.terminate(self.grace).is_some();
        if !has_ended {
            self.kill();
            let _ = remove_if_there(&self.socket);
        }
        has_ended
    }

    /// The last lines that it wrote.
    pub(super) fn last_words(&self) -> Vec<String> {
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let (first, second) = output.as_slices();
        let text = String::from_utf8_lossy(&[first, second].concat()).into_owned();
        // A backend does not decide what a terminal would do with them.
        let plain =
            |line: &str| line.replace(|character: char| character.is_control() && character != '\t', "\u{fffd}");
        let lines: Vec<_> = text.lines().map(plain).collect();
        lines[lines.len().saturating_sub(OUTPUT_LINES_SHOWN)..].to_vec()
    }

    fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            // It may have ended between the two lines; its number is still its own.
            let _ = kill_process_group(Pid::from_child(&self.child), signal);
        }
    }

    fn has_ended(&self, timeout: Duration) -> bool {
        wait_readable([self.pidfd.as_fd()], Some(timeout)).is_ok_and(|[ended]| ended)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end_in_time();
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn keep_output(mut reader: io::PipeReader, kept: &Mutex<VecDeque<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = reader.read(&mut buffer) {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(&buffer[..count]);
        let surplus = kept.len().saturating_sub(OUTPUT_BYTES_KEPT);
        kept.drain(..surplus);
    }
}

/// How a process ended, in words: `SIGSEGV (signal 11)`, `exit code 1`.
pub(super) fn end_words(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => match signal_name(signal) {
            Some(name) => format!("{name} (signal {signal})"),
            None => format!("signal {signal}"),
        },
        (None, code) => format!("exit code {}", code.expect("a process ends by a signal or with a code")),
    }
}

const fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGILL => "SIGILL",
        libc::SIGKILL => "SIGKILL",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGSYS => "SIGSYS",
        libc::SIGTERM => "SIGTERM",
        libc::SIGTRAP => "SIGTRAP",
        _ => return None,
    })
}

/// Whether a process that is not ours has ended. Its parent may not have read its status yet.
pub(super) fn has_gone(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    // The name before the state may hold anything, parentheses too.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, Some('Z' | 'X' | 'x'))
}

/// What a process holds now. Nothing if it has ended or cannot be inspected.
pub(super) fn resources(pid: u32) -> Option<Resources> {
    let path = |name: &str| PathBuf::from(format!("/proc/{pid}/{name}"));
    let status = std::fs::read_to_string(path("status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some(Resources {
        descriptors: std::fs::read_dir(path("fd")).ok()?.count() as u64,
        threads: field("Threads:")?,
        mappings: std::fs::read_to_string(path("maps")).ok()?.lines().count() as u64,
        resident_kib: field("VmRSS:")?,
    })
}

/// What a thread has had of the processors.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ThreadTime {
    /// How long it ran.
    pub ran: Duration,
    /// How long it could have run and had to wait for a processor, without the wait that has not ended yet.
    pub waited: Duration,
    /// Whether it runs or waits for a processor now.
    is_runnable: bool,
    /// How often it went to sleep.
    sleeps: u64,
}

impl ThreadTime {
    /// Whether it never slept since then. This does not depend on how much of a processor it gets. A spinning thread
    /// that waits for a processor at the second look has hardly any `ran`, and `waited` has only waits that ended: the
    /// kernel adds a wait when the thread runs again.
    pub(super) fn never_slept_since(self, before: Self) -> bool {
        before.is_runnable && self.is_runnable && before.sleeps == self.sleeps
    }
}

/// What each thread of a process has had of the processors, by the thread's number.
pub(super) fn processor_time(pid: u32) -> Option<BTreeMap<u32, ThreadTime>> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let used = tasks.filter_map(|task| {
        let task = task.ok()?;
        // A thread may end meanwhile.
        let schedule = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        let mut nanos = schedule.split_whitespace().map_while(|number| number.parse().ok()).map(Duration::from_nanos);
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        let field = |name| Some(status.lines().find_map(|line| line.strip_prefix(name))?.trim());
        let time = ThreadTime {
            ran: nanos.next()?,
            waited: nanos.next()?,
            is_runnable: field("State:")?.starts_with('R'),
            sleeps: field("voluntary_ctxt_switches:")?.parse().ok()?,
        };
        Some((task.file_name().to_str()?.parse().ok()?, time))
    });
    Some(used.collect())
}

/// Waits until `is_so` holds; looks again ever less often.
pub(super) fn wait_until(timeout: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_micros(200);
    loop {
        if is_so() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn command(text: &str) -> Result<Vec<String>, CommandError> {
        text.parse().map(|SpawnCommand(words)| words)
    }

    #[test]
    fn a_command_is_split_as_a_shell_does() {
        assert_eq!(command("a  'b c' \"d \\\" e\" f\\ g ''").expect("is one"), ["a", "b c", "d \" e", "f g", ""]);
        assert_eq!(command(" \t "), Err(CommandError::Empty));
        assert_eq!(command("a 'b"), Err(CommandError::Quote('\'')));
        let words = |text: &str| text.parse::<SpawnCommand>().expect("a command").words_before_options().join(" ");
        assert_eq!(words("kiln vhost mock --socket {socket} x"), "vhost mock");
        assert_eq!(words("a {socket} b"), "");
        assert_eq!(words("a b"), "b");
    }

    #[test]
    fn an_end_by_a_signal_is_named_and_last_words_are_kept() {
        let command = "sh -c 'echo {socket}; seq 5000; kill -SEGV $$'".parse().expect("is one");
        let mut process = Process::start(&command, None).expect("starts");
        let status = process.wait(Duration::from_secs(10)).expect("ends");
        assert_eq!(end_words(status), "SIGSEGV (signal 11)");
        let has_all = || process.last_words().last().is_some_and(|line| line == "5000");
        assert!(wait_until(Duration::from_secs(5), has_all), "{:?}", process.last_words());
        assert_eq!(process.last_words().len(), OUTPUT_LINES_SHOWN);
    }

    #[test]
    fn a_backend_ends_with_the_process_that_started_it() {
        let starter = std::thread::spawn(|| {
            let process = Process::start(&"sleep 1000".parse().expect("is one"), None).expect("starts");
            let left = (process.pid(), process.socket().parent().expect("lies in a folder").to_owned());
            // Nothing drops it: the thread is lost, as a process that is killed is.
            std::mem::forget(process);
            left
        });
        let (pid, directory) = starter.join().expect("no panic");
        let stat = format!("/proc/{pid}/stat");
        let is_gone = || !std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(" Z "));
        assert!(wait_until(Duration::from_secs(5), is_gone));
        std::fs::remove_dir_all(directory).expect("is still there");
    }

    #[test]
    fn a_thread_that_spins_never_sleeps_and_one_that_waits_does() {
        let stop = AtomicBool::new(false);
        let (sender, started) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let spinner = sender.clone();
            scope.spawn(|| {
                let spinner = spinner;
                spinner.send(rustix::thread::gettid()).expect("is received");
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
            let spins = started.recv().expect("starts");
            let waiter = scope.spawn(|| {
                sender.send(rustix::thread::gettid()).expect("is received");
                std::thread::park();
            });
            let waits = started.recv().expect("starts");
            let times = || processor_time(std::process::id()).expect("is our own");
            let id = |thread: Pid| u32::try_from(thread.as_raw_nonzero().get()).expect("is positive");
            wait_until(Duration::from_secs(10), || !times()[&id(waits)].is_runnable);
            let before = times();
            std::thread::sleep(Duration::from_millis(20));
            let after = times();
            stop.store(true, Ordering::Relaxed);
            waiter.thread().unpark();
            let never_slept = |thread| after[&id(thread)].never_slept_since(before[&id(thread)]);
            assert!(never_slept(spins) && !never_slept(waits));
        });
    }

    #[test]
    fn a_backend_that_ignores_sigterm_is_killed_with_all_that_it_started() {
        let command = "sh -c 'trap \"\" TERM; sleep 1000 & echo $!; wait; sleep 1000'".parse().expect("is one");
        let process = Process::start(&command, None).expect("starts");
        let has_spoken = || process.last_words().first().is_some_and(|line| line.parse::<u32>().is_ok());
        assert!(wait_until(Duration::from_secs(5), has_spoken));
        let child: u32 = process.last_words()[0].parse().expect("a process");
        let directory = process.socket().parent().expect("lies in a folder").to_owned();
        assert!(resources(child).is_some() && processor_time(child).is_some());
        drop(process);
        let is_gone =
            || !std::fs::read_to_string(format!("/proc/{child}/stat")).is_ok_and(|stat| !stat.contains(" Z "));
        assert!(wait_until(Duration::from_secs(5), is_gone) && !directory.exists());
    }
}
