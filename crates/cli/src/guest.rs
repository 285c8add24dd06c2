//! A VM whose agent answers, and a watch on its end: crashes come from its console, the exit from its engine.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kiln_detect::{ConsoleLine, Finding, Lines, Scanner, Severity};
use kiln_engine::link::{GuestLink, LinkError, LinkOptions};
use kiln_engine::snapshot::{Snapshot, SnapshotError};
use kiln_engine::{Engine, Fork, ForkSpec, Vm, VmEvent, VmEvents, VmExit, VmSpec};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::failure::{Failure, VM};
use crate::image::launch_failure;
use crate::output::{console_row, say};

/// Lines of the console that are shown when a guest never came up.
const BOOT_TAIL_LINES: usize = 20;
/// After a fatal report, a VM has this long to end by itself, so that its log is whole.
const CRASH_GRACE: Duration = Duration::from_secs(2);
/// Findings that are kept; a guest can make any number.
const FINDINGS_MAX: usize = 100;

/// How a guest ended before its command did.
#[derive(Debug, Clone)]
pub enum Gone {
    /// Its kernel reported something that it does not survive.
    Crashed(Box<Finding>),
    /// It powered off, reset, or its VMM ended.
    Exited(VmExit),
}

/// What the console said so far.
#[derive(Debug, Clone, Default)]
pub struct Findings(Arc<Mutex<Vec<Finding>>>);

impl Findings {
    /// All of them, in order.
    pub fn all(&self) -> Vec<Finding> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn push(&self, finding: Finding) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < FINDINGS_MAX {
            all.push(finding);
        }
    }
}

/// A VM whose agent answers.
pub struct Guest {
    pub vm: Vm,
    pub link: GuestLink,
    /// Time from the request for a VM to the agent's answer, in a fork also to its being a machine of its own.
    pub boot: Duration,
    pub findings: Findings,
    gone: watch::Receiver<Option<Gone>>,
    _watcher: JoinHandle<()>,
}

impl Guest {
    /// Starts a VM and waits for its agent.
    pub async fn start(
        engine: &dyn Engine,
        spec: VmSpec,
        boot_timeout: Duration,
        show_console: bool,
    ) -> Result<Self, Failure> {
        let started = Instant::now();
        let launched = tokio::time::timeout(boot_timeout, engine.launch(spec)).await;
        let late = |_| {
            let words =
                format!("the guest did not come up within {boot_timeout:?}: no console yet, its VMM still starts");
            Failure::words(VM, words).hint("give it longer with --boot-timeout")
        };
        let mut vm = launched.map_err(late)?.map_err(launch_failure)?;
        let Watched { findings, mut gone, watcher } = watch(&mut vm, show_console);
        let stream = vm.link_stream().await.map_err(|error| Failure::new(VM, error))?;
        let left = boot_timeout.saturating_sub(started.elapsed());
        let linked = tokio::select! {
            linked = GuestLink::connect(stream, LinkOptions::virtio_serial(left)) => linked,
            gone = until_gone(&mut gone) => {
                let words = format!("the guest ended while it booted: {}", describe(&gone));
                return Err(with_tail(&vm, words, &gone));
            }
        };
        let link = match linked {
            Ok(link) => link,
            Err(error) => return Err(not_up(&vm, error, boot_timeout, &mut gone).await),
        };
        Ok(Self { vm, link, boot: started.elapsed(), findings, gone, _watcher: watcher })
    }

    /// Forks a snapshot once. What its console said before it was saved is not said again.
    pub async fn fork(
        engine: &dyn Engine,
        snapshot: &Snapshot,
        forks: ForkSpec,
        show_console: bool,
    ) -> Result<Self, SnapshotError> {
        let started = Instant::now();
        let forks = engine.restore(snapshot, ForkSpec { count: 1, ..forks }).await?;
        let Fork { mut vm, link } = forks.into_iter().next().expect("all that were asked for are there");
        let Watched { findings, gone, watcher } = watch(&mut vm, show_console);
        Ok(Self { vm, link, boot: started.elapsed(), findings, gone, _watcher: watcher })
    }

    /// Waits until the guest is gone.
    pub async fn gone(&self) -> Gone {
        until_gone(&mut self.gone.clone()).await
    }

    /// Why the link was lost, if the VM ended with it; waits a moment for that to show.
    pub async fn gone_soon(&self) -> Option<Gone> {
        tokio::time::timeout(CRASH_GRACE, self.gone()).await.ok()
    }
}

/// What a VM's events say of it.
struct Watched {
    findings: Findings,
    gone: watch::Receiver<Option<Gone>>,
    watcher: JoinHandle<()>,
}

fn watch(vm: &mut Vm, show_console: bool) -> Watched {
    let findings = Findings::default();
    let console = Console { findings: findings.clone(), show: show_console, ..Console::default() };
    let (sender, gone) = watch::channel(None);
    let events = vm.take_events().expect("nobody else took this VM's events");
    Watched { findings, gone, watcher: tokio::spawn(watch_vm(events, console, sender)) }
}

/// Prints a crash report or the reason of an end, for a command that was cut off by it.
pub fn cut_off(gone: &Gone) -> Failure {
    if let Gone::Crashed(finding) = gone {
        print_extract(finding);
        return Failure::words(VM, format!("the guest crashed: {}", finding.title));
    }
    Failure::words(VM, format!("the guest ended before the command did: {}", describe(gone)))
}

/// Prints the kernel's own lines.
pub fn print_extract(finding: &Finding) {
    for line in &finding.extract {
        say(format_args!("    {line}"));
    }
}

/// In a few words.
pub fn describe(gone: &Gone) -> String {
    match gone {
        Gone::Crashed(finding) => finding.title.clone(),
        Gone::Exited(exit) => exit.to_string(),
    }
}

async fn until_gone(gone: &mut watch::Receiver<Option<Gone>>) -> Gone {
    match gone.wait_for(Option::is_some).await {
        Ok(gone) => gone.clone().expect("waited for it"),
        // The watcher ends only after it has said how the VM did.
        Err(_) => std::future::pending().await,
    }
}

async fn not_up(
    vm: &Vm,
    error: LinkError,
    boot_timeout: Duration,
    gone: &mut watch::Receiver<Option<Gone>>,
) -> Failure {
    match error {
        LinkError::TimedOut { .. } => {
            let words = format!("the guest did not come up within {boot_timeout:?}");
            tail(vm, Failure::words(VM, words)).hint("give it longer with --boot-timeout, or see more with --console")
        }
        LinkError::Version { .. } => {
            Failure::new(VM, error).hint("the image holds another agent: kiln image build mini")
        }
        LinkError::Closed { .. } | LinkError::Io(_) => {
            match tokio::time::timeout(CRASH_GRACE, until_gone(gone)).await {
                Ok(gone) => with_tail(vm, format!("the guest ended while it booted: {}", describe(&gone)), &gone),
                Err(_) => tail(vm, Failure::new(VM, error)),
            }
        }
        other => tail(vm, Failure::new(VM, other)),
    }
}

fn with_tail(vm: &Vm, words: String, gone: &Gone) -> Failure {
    match gone {
        Gone::Crashed(finding) => {
            print_extract(finding);
            Failure::words(VM, words)
        }
        Gone::Exited(_) => tail(vm, Failure::words(VM, words)),
    }
}

/// Shows the end of the console on the way to a failure.
fn tail(vm: &Vm, failure: Failure) -> Failure {
    let lines = last_rows(&vm.console_tail(BOOT_TAIL_LINES));
    match lines.len() {
        0 => say("the guest's console is empty"),
        count => say(format_args!("the last {count} lines of the guest's console:")),
    }
    for line in lines {
        say(format_args!("    {line}"));
    }
    failure
}

/// The last rows of a console as a terminal may have them: a guest that draws or steers it made any number of each line.
fn last_rows(raw: &[String]) -> Vec<String> {
    let mut lines = Lines::new();
    let mut rows: Vec<String> = raw.iter().flat_map(|line| lines.push(format!("{line}\n").as_bytes())).collect();
    rows.drain(..rows.len().saturating_sub(BOOT_TAIL_LINES));
    rows
}

/// Reads a VM's events to their end.
async fn watch_vm(mut events: VmEvents, mut console: Console, gone: watch::Sender<Option<Gone>>) {
    let mut deadline = None;
    loop {
        let event = match deadline {
            None => events.next().await,
            Some(deadline) => match tokio::time::timeout_at(deadline, events.next()).await {
                Ok(event) => event,
                Err(_) => break,
            },
        };
        match event {
            Some(VmEvent::Console { bytes, at }) => {
                console.push(&bytes, at);
                if console.crash.is_some() && deadline.is_none() {
                    deadline = Some(Instant::now() + CRASH_GRACE);
                }
            }
            Some(VmEvent::Exited(exit)) => {
                console.finish();
                if console.crash.is_none() {
                    gone.send_replace(Some(Gone::Exited(exit)));
                    return;
                }
                break;
            }
            Some(_) => {}
            None => break,
        }
    }
    if let Some(finding) = console.crash {
        gone.send_replace(Some(Gone::Crashed(Box::new(finding))));
    }
}

/// A guest's console on its way to findings.
#[derive(Default)]
struct Console {
    lines: Lines,
    scanner: Scanner,
    findings: Findings,
    /// The first finding that the guest does not survive.
    crash: Option<Finding>,
    /// Passes each line on to stderr.
    show: bool,
    last: Duration,
}

impl Console {
    fn push(&mut self, bytes: &[u8], at: Duration) {
        self.last = at;
        for text in self.lines.push(bytes) {
            self.line(text);
        }
    }

    fn finish(&mut self) {
        if let Some(text) = self.lines.finish() {
            self.line(text);
        }
        for finding in self.scanner.finish() {
            self.note(finding);
        }
    }

    fn line(&mut self, text: String) {
        if self.show {
            console_row(&text);
        }
        if let Some(finding) = self.scanner.push(&ConsoleLine { text, at: self.last }) {
            self.note(finding);
        }
    }

    fn note(&mut self, finding: Finding) {
        if finding.severity == Severity::Fatal && self.crash.is_none() {
            self.crash = Some(finding.clone());
        }
        self.findings.push(finding);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_console_cannot_steer_the_terminal_of_its_reader() {
        let mut raw = vec!["\x1b]0;title\x07boot\r\x1b[2Jok".to_owned()];
        raw.extend((0..BOOT_TAIL_LINES).map(|number| format!("\x1b[31m{number}\rx")));
        let rows = last_rows(&raw);
        assert_eq!(rows.len(), BOOT_TAIL_LINES);
        assert!(rows.iter().all(|row| !row.contains('\x1b') && !row.contains('\r')), "{rows:?}");
        assert_eq!(rows.last().map(String::as_str), Some("x"));
    }
}
