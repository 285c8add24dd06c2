//! A stand-in for a VMM that its guest has taken over: inside the same border it tries what such a VMM would try.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use rustix::pipe::{PipeFlags, pipe_with};

use super::*;
use crate::process::{self, Program, Sink, VmmStatus, own_environment};
use crate::spec::OwnerLoss;

/// More than a VMM has threads, and few enough for a host.
const FORKS: usize = 400;
/// More than the size limit of the stand-in's files.
const FILE_BYTES: u64 = 4 << 20;
/// Variables that give the stand-in numbers and names.
const SIBLING: &str = "KILN_TEST_SIBLING";
const SNAPSHOT: &str = "KILN_TEST_SNAPSHOT";
const OWNER: &str = "KILN_TEST_OWNER";
const PORT: &str = "KILN_TEST_PORT";

/// The place of the VMs, and files that a guest should not reach.
struct Place {
    directory: tempfile::TempDir,
    own: Utf8PathBuf,
    sibling: Utf8PathBuf,
    snapshot: Utf8PathBuf,
    tcp: TcpListener,
    _abstract: UnixListener,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = Utf8PathBuf::try_from(directory.path().canonicalize().expect("is there")).expect("UTF-8");
        let [own, sibling] = ["own", "sibling"].map(|name| path.join(name));
        for vm in [&own, &sibling] {
            crate::files::private_file::create_dir(vm).expect("made");
            fs::write(vm.join("memory"), "memory").expect("written");
        }
        let snapshot = path.join("snapshot");
        fs::write(&snapshot, "snapshot").expect("written");
        let tcp = TcpListener::bind("127.0.0.1:0").expect("listens");
        let name = format!("kiln-test-{}", tcp.local_addr().expect("bound").port());
        let address = SocketAddr::from_abstract_name(name).expect("a name");
        let listener = UnixListener::bind_addr(&address).expect("listens");
        Self { directory, own, sibling, snapshot, tcp, _abstract: listener }
    }

    fn needs(&self) -> Needs {
        Needs {
            name: format!("test-{}", self.tcp.local_addr().expect("bound").port()),
            directory: self.own.clone(),
            write: vec![self.own.join("memory")],
            snapshot: Some((self.snapshot.clone(), File::open(&self.snapshot).expect("opens"))),
            file_bytes: FILE_BYTES / 4,
            memory_bytes: 256 << 20,
            cpus: 1,
            ..Needs::default()
        }
    }

    /// Runs the stand-in. Returns the result of each act, and what confined it.
    async fn run(&self, policy: &Policy) -> (Vec<(String, bool)>, Confinement) {
        let program = Utf8PathBuf::try_from(std::env::current_exe().expect("this binary")).expect("UTF-8");
        let mut border = Border::new(policy, &program, self.needs());
        let told = [
            (SIBLING, self.sibling.to_string()),
            (SNAPSHOT, border.memory_name().unwrap_or(&self.snapshot).to_string()),
            (OWNER, std::process::id().to_string()),
            (PORT, self.tcp.local_addr().expect("bound").port().to_string()),
        ];
        let mut environment = own_environment();
        environment.extend(told.map(|(name, value)| (name.into(), value.into())));
        // The test harness of the stand-in needs more descriptors than a VMM.
        border.steps.limits.retain(|(resource, _)| *resource != rustix::process::Resource::Nofile);
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        let words = ["--exact", "confine::tests::stand_in", "--ignored", "--nocapture", "--test-threads=1"];
        let child = process::spawn(Program {
            path: program,
            arguments: words.map(Into::into).into(),
            environment,
            directory: self.own.clone(),
            inherit: Vec::new(),
            stdout: Sink::To(writer),
            stderr: Sink::Null,
            pid_file: None,
            owner_loss: OwnerLoss::Kill,
            border,
        });
        let mut child = child.await.expect("starts");
        let read = tokio::task::spawn_blocking(move || io::read_to_string(File::from(reader)));
        let text = tokio::time::timeout(Duration::from_secs(60), read).await.expect("ends in time");
        let text = text.expect("does not panic").expect("reads");
        let confinement = child.confinement().clone();
        let watch = child.watch().expect("can be watched");
        drop(watch.readable().await.expect("ends"));
        assert_eq!(child.try_reap().expect("is ours"), Some(VmmStatus::Code(0)), "{text}");
        let acts = text.lines().filter_map(|line| line.strip_prefix("act ")?.rsplit_once(' '));
        (acts.map(|(act, done)| (act.to_owned(), done == "done")).collect(), confinement)
    }
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("`{name}` is not set"))
}

fn act<T>(name: &str, result: io::Result<T>) {
    // On its own line: the harness does not end its line before.
    println!("\nact {name} {}", result.map_or("refused", |_| "done"));
}

#[test]
#[ignore = "the stand-in for a taken over VMM, started by the tests below"]
fn stand_in() {
    let owner = env(OWNER).parse().expect("a number");
    let sibling = Utf8PathBuf::from(env(SIBLING));
    let port = env(PORT).parse::<u16>().expect("a number");
    let open = |path: &str| OpenOptions::new().read(true).write(true).open(path);

    act("own file", open("memory").and_then(|mut file| file.write_all(b"guest")));
    act("another VM's file", open(sibling.join("memory").as_str()));
    act("another VM's directory", std::fs::read_dir(&sibling));
    act("a new file beside its own", File::create("new"));
    let planted = format!("/etc/cron.d/kiln-test-{}", std::process::id());
    act("a file in /etc/cron.d", File::create(&planted).and_then(|_| std::fs::remove_file(&planted)));
    act("the host's passwords", File::open("/etc/shadow"));
    act("its owner's memory", open(&format!("/proc/{owner}/mem")));
    act("its owner's environment", std::fs::read(format!("/proc/{owner}/environ")));
    let shared = open_as_qemu(&env(SNAPSHOT));
    let mut text = String::new();
    act(
        "reading the snapshot's memory",
        shared.as_ref().map_err(|_| io::ErrorKind::Other.into()).and_then(|mut file| file.read_to_string(&mut text)),
    );
    act("writing to the snapshot's memory", shared.and_then(|mut file| file.write_all(b"planted")));
    act(
        "a signal to its owner",
        rustix::process::test_kill_process(rustix::process::Pid::from_raw(owner).expect("above zero"))
            .map_err(Into::into),
    );
    act("tracing its owner", trace(owner));
    act("a TCP connection", TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), Duration::from_secs(5)));
    let address = SocketAddr::from_abstract_name(format!("kiln-test-{port}")).expect("a name");
    act("an abstract socket", UnixStream::connect_addr(&address));
    act("root", become_root());
    act("a mount", mount());
    act("a file that is too large", open("memory").and_then(|file| file.set_len(FILE_BYTES)));
    act("a fork bomb", fork_bomb());
}

#[tokio::test]
async fn a_vmm_that_was_taken_over_reaches_nothing_of_the_host() {
    let place = Place::new();
    let (acts, confinement) = place.run(&Policy::default()).await;
    let done: Vec<_> = acts.iter().filter(|(_, done)| *done).map(|(act, _)| act.as_str()).collect();
    assert_eq!(acts.len(), 18, "{acts:?}");
    assert_eq!(done, ["own file", "reading the snapshot's memory"], "{confinement:?}");
    assert_eq!(fs::read_to_string(&place.snapshot).expect("reads"), "snapshot");
    drop(place.directory);
}

#[tokio::test]
async fn without_a_border_the_stand_in_reaches_the_host() {
    let place = Place::new();
    let (acts, confinement) = place.run(&Policy::without(Measure::ALL)).await;
    assert!(confinement.iter().all(|(_, state)| *state == MeasureState::Off), "{confinement:?}");
    // If the user is not root, the other acts fail for lack of rights.
    for act in [
        "another VM's file",
        "another VM's directory",
        "a new file beside its own",
        "writing to the snapshot's memory",
        "a signal to its owner",
        "a TCP connection",
        "an abstract socket",
        "a file that is too large",
        "a fork bomb",
    ] {
        assert!(acts.contains(&(act.to_owned(), true)), "{act}: {acts:?}");
    }
}

#[tokio::test]
async fn each_measure_can_be_off_alone() {
    for measure in Measure::ALL {
        let place = Place::new();
        let (acts, confinement) = place.run(&Policy::without([measure])).await;
        assert_eq!(confinement.state(measure), Some(&MeasureState::Off));
        assert!(acts.contains(&("own file".into(), true)), "{measure}: {acts:?}");
        let others = confinement.iter().filter(|(one, _)| *one != measure);
        let on = others.filter(|(_, state)| matches!(state, MeasureState::On { .. })).count();
        assert!(on >= 2, "{measure}: {confinement:?}");
    }
}

#[tokio::test]
async fn an_ended_vmm_leaves_nothing() {
    let place = Place::new();
    place.run(&Policy::default()).await;
    let name = place.needs().name;
    let groups =
        ["", "memory", "pids", "cpu"].map(|one| Utf8Path::new("/sys/fs/cgroup").join(one).join("kiln").join(&name));
    assert!(groups.iter().all(|group| !group.exists()), "{groups:?}");
    let names = fs::read_dir(&place.own).expect("lists").map(|entry| entry.expect("lists").file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["memory"]);
}

#[tokio::test]
async fn a_vmm_starts_without_a_measure_that_the_host_refuses() {
    let place = Place::new();
    let mut border = Border::new(&Policy::default(), "/bin/sh".into(), place.needs());
    // A descriptor that is not a ruleset, and a user namespace that can't be made twice: a strict host refuses in the
    // same way.
    let null = || OwnedFd::from(File::open("/dev/null").expect("opens"));
    border.steps.landlock = Some(null());
    border.entrances = vec![null()];
    let child = process::spawn(Program {
        path: "/bin/sh".into(),
        arguments: vec!["-c".into(), "exit 7".into()],
        environment: own_environment(),
        directory: place.own.clone(),
        inherit: Vec::new(),
        stdout: Sink::Null,
        stderr: Sink::Null,
        pid_file: None,
        owner_loss: OwnerLoss::Kill,
        border,
    });
    let mut child = child.await.expect("starts all the same");
    child.settle();
    for measure in [Measure::Landlock, Measure::Cgroup] {
        let state = child.confinement().state(measure);
        assert!(
            matches!(state, Some(MeasureState::Refused { reason }) if reason.contains("the child could not")),
            "{state:?}"
        );
    }
    drop(child.watch().expect("can be watched").readable().await.expect("ends"));
    assert_eq!(child.try_reap().expect("is ours"), Some(VmmStatus::Code(7)));
}

/// Without close-on-exec, and with the system call that the C library chooses.
fn open_as_qemu(path: &str) -> io::Result<File> {
    let path = CString::new(path).expect("a path");
    // SAFETY: the path lives during the call, and what is opened is ours.
    match unsafe { libc::open(path.as_ptr(), libc::O_RDWR) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: it was opened just now.
        fd => Ok(unsafe { File::from_raw_fd(fd) }),
    }
}

fn trace(pid: i32) -> io::Result<()> {
    // SAFETY: attaches or fails. If it attaches, it detaches at once.
    unsafe {
        if libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) == -1 {
            return Err(io::Error::last_os_error());
        }
        libc::ptrace(libc::PTRACE_DETACH, pid, 0, 0);
    }
    Ok(())
}

fn become_root() -> io::Result<()> {
    // SAFETY: changes only the ids of this process.
    match unsafe { libc::setuid(0) } {
        0 if rustix::process::geteuid().is_root() => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn mount() -> io::Result<()> {
    // SAFETY: the strings live during the call.
    match unsafe { libc::mount(c"none".as_ptr(), c"/tmp".as_ptr(), c"tmpfs".as_ptr(), 0, std::ptr::null()) } {
        0 => {
            // SAFETY: as above.
            unsafe { libc::umount2(c"/tmp".as_ptr(), libc::MNT_DETACH) };
            Ok(())
        }
        _ => Err(io::Error::last_os_error()),
    }
}

fn fork_bomb() -> io::Result<()> {
    let mut children = Vec::new();
    let mut result = Ok(());
    for _ in 0..FORKS {
        // SAFETY: the child only waits to be killed.
        match unsafe { libc::fork() } {
            -1 => {
                result = Err(io::Error::last_os_error());
                break;
            }
            0 => loop {
                // SAFETY: waits for a signal.
                unsafe { libc::pause() };
            },
            pid => children.push(pid),
        }
    }
    for pid in children {
        // SAFETY: our own child, not reaped yet.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
    }
    result
}
