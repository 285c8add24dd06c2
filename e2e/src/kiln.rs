//! The real `kiln` binary, run as a user runs it.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::wait::until;

/// The longest that one `kiln` may take in a test; a cold boot under TCG on a busy host is a few seconds.
pub const KILN_DEADLINE: Duration = Duration::from_secs(150);
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// How a `kiln` ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit code.
    pub code: i32,
    /// Its stdout.
    pub stdout: Vec<u8>,
    /// Its stderr.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
}

impl Outcome {
    /// Its stdout as text without the last end of line.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }
}

/// A `kiln` to be run.
#[derive(Debug)]
pub struct Kiln(Command);

impl Kiln {
    /// With these arguments, in the environment that the test runs in.
    pub fn new<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        let mut command = Command::new(kiln_binary());
        command.args(args);
        Self(command)
    }

    /// `kiln run -- sh -c SCRIPT`, after these flags of `run`.
    pub fn shell(flags: &[&str], script: &str) -> Self {
        Self::new(["run"].iter().chain(flags).chain(&["--", "sh", "-c", script]))
    }

    /// Sets a variable for kiln itself.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    /// Gives kiln a umask of its own.
    pub fn umask(self, umask: u32) -> Self {
        self.after("sh", &format!("umask {umask:o}"))
    }

    /// Gives kiln descriptors 3 to 300, like a caller that leaves its descriptors open for its children.
    pub fn crowded(self) -> Self {
        self.after("bash", "for number in {3..300}; do eval \"exec $number</dev/null\"; done")
    }

    /// Becomes kiln only after a shell's script.
    fn after(self, shell: &str, script: &str) -> Self {
        self.under(shell, &["-c", &format!("{script} && exec \"$0\" \"$@\"")])
    }

    /// Starts another program that becomes kiln.
    pub fn under(self, program: &str, args: &[&str]) -> Self {
        let mut outer = Command::new(program);
        outer.args(args).arg(self.0.get_program()).args(self.0.get_args());
        outer.envs(self.0.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Self(outer)
    }

    /// Starts it in that directory.
    pub fn in_directory(mut self, path: &Path) -> Self {
        self.0.current_dir(path);
        self
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// If it can't be started, or does not end within [`KILN_DEADLINE`].
    pub fn run(self) -> Outcome {
        self.run_with(b"")
    }

    /// Runs it to its end, which may take this long.
    ///
    /// # Panics
    /// See [`run`](Self::run).
    pub fn run_within(self, limit: Duration) -> Outcome {
        self.run_to_end(b"", limit)
    }

    /// Runs it to its end with this stdin.
    ///
    /// # Panics
    /// See [`run`](Self::run).
    pub fn run_with(self, stdin: &[u8]) -> Outcome {
        self.run_to_end(stdin, KILN_DEADLINE)
    }

    fn run_to_end(self, stdin: &[u8], limit: Duration) -> Outcome {
        let started = Instant::now();
        let mut running = self.start();
        let mut input = running.0.stdin.take().expect("stdin is piped");
        let mut output = running.0.stdout.take().expect("stdout is piped");
        let mut errors = running.0.stderr.take().expect("stderr is piped");
        thread::scope(|scope| {
            scope.spawn(move || {
                // A command may end without reading its input.
                let _ = input.write_all(stdin);
            });
            let stdout = scope.spawn(move || {
                let mut stdout = Vec::new();
                output.read_to_end(&mut stdout).map(|_| stdout)
            });
            let stderr = scope.spawn(move || {
                let mut stderr = Vec::new();
                errors.read_to_end(&mut stderr).map(|_| stderr)
            });
            let code = running.wait_within(limit);
            Outcome {
                code,
                stdout: stdout.join().expect("no panic").expect("stdout can be read"),
                stderr: String::from_utf8_lossy(&stderr.join().expect("no panic").expect("stderr can be read")).into(),
                took: started.elapsed(),
            }
        })
    }

    /// Runs it to its end with its stdout going to a file.
    ///
    /// # Panics
    /// See [`run`](Self::run).
    pub fn run_into(mut self, file: fs::File) -> Outcome {
        let started = Instant::now();
        self.0.stdin(Stdio::null()).stdout(file).stderr(Stdio::piped());
        let mut running = Running(self.0.spawn().expect("kiln starts"));
        let mut errors = running.0.stderr.take().expect("stderr is piped");
        let mut stderr = String::new();
        let code = thread::scope(|scope| {
            let read = scope.spawn(|| errors.read_to_string(&mut stderr));
            let code = running.wait();
            read.join().expect("no panic").expect("text");
            code
        });
        Outcome { code, stdout: Vec::new(), stderr, took: started.elapsed() }
    }

    /// Starts it and leaves it running; it is killed when dropped.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn start(mut self) -> Running {
        self.0.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running(self.0.spawn().expect("kiln starts"))
    }
}

/// A `kiln` that runs.
#[derive(Debug)]
pub struct Running(pub Child);

impl Running {
    /// Waits for its end and gives its exit code; a signal is 128 + its number.
    ///
    /// # Panics
    /// If it does not end within [`KILN_DEADLINE`].
    pub fn wait(&mut self) -> i32 {
        self.wait_within(KILN_DEADLINE)
    }

    fn wait_within(&mut self, limit: Duration) -> i32 {
        use std::os::unix::process::ExitStatusExt as _;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.0.try_wait().expect("a child can be waited for") {
                return status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            }
            assert!(Instant::now() < deadline, "kiln did not end within {limit:?}");
            thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it has ended already.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a child has a pid");
        rustix::process::kill_process(pid, signal).expect("it runs");
    }

    /// The VMMs that it started: its children by the names of their programs.
    pub fn vmms(&self) -> Vec<i32> {
        vmms_of(self.0.id())
    }
}

/// The directory in which this host's kiln keeps a VM, found by its VMM.
///
/// # Panics
/// If there is no image, or no such directory in time.
pub fn vm_dir(vmm: i32) -> PathBuf {
    let images = Kiln::new(["image", "ls", "--json"]).run();
    let images: serde_json::Value = serde_json::from_slice(&images.stdout).expect("a list of images");
    let image = images[0]["dir"].as_str().expect("an image with a directory");
    let home = PathBuf::from(image).ancestors().nth(2).expect("it is below images").to_owned();
    let vms = home.join("vms");
    let is_of = |dir: &PathBuf| vmm_of(dir) == Some(vmm);
    // A VMM starts shortly before its directory names it.
    until("the VM's directory", || fs::read_dir(&vms).ok()?.flatten().map(|entry| entry.path()).find(is_of))
}

/// The VMM that a VM's directory names: its first words are those of the process's own `/proc/<pid>/stat`.
pub(crate) fn vmm_of(dir: &Path) -> Option<i32> {
    fs::read_to_string(dir.join("pid")).ok()?.split(' ').next()?.parse().ok()
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn vmms_of(parent: u32) -> Vec<i32> {
    let parent = format!("PPid:\t{parent}");
    let processes = fs::read_dir("/proc").expect("proc is mounted").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.starts_with("Name:\tqemu") && status.lines().any(|line| line == parent)
    })
    .collect()
}

/// Whether a process runs; a zombie does not.
pub fn is_running(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !stat.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// The binary under test.
///
/// # Panics
/// If it was not built.
pub fn kiln_binary() -> PathBuf {
    let named = std::env::var_os("KILN_BIN").map(PathBuf::from);
    let built = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/debug/kiln");
    let binary = named.unwrap_or_else(built);
    assert!(binary.is_file(), "no kiln at `{}`: build it, or set KILN_BIN", binary.display());
    binary
}
