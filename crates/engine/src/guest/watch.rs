//! The watch on a guest: turns the events of its VM into rows and findings, and finally into how it ended.
//!
//! A [`Watch`] can follow several VMs one after the other. A guest that was saved and restored is one guest, so its
//! findings, the numbers of its events and an unfinished report of its kernel continue.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_detect::{ConsoleLine, Finding, Kind, Lines, Scanner, Severity};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::events::{EventLog, Events, GuestEvent};
use super::findings::Findings;
use crate::vm::{VmEvent, VmEvents, VmExit};

/// After a fatal report, a VM has this long to end on its own, so that its log is complete. An unfinished fatal report
/// counts as complete once the console was silent for this long.
pub(super) const CRASH_GRACE: Duration = Duration::from_secs(2);

/// Rows of the console in a finding that no text of the console caused.
const LAST_ROWS: usize = 20;

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gone {
    /// Its kernel reported a fatal error. Its VM may still exist.
    Crashed(Box<Finding>),
    /// It powered off, reset, or its VMM ended.
    Exited(VmExit),
    /// All of its CPUs are halted with interrupts off. Its VM still exists.
    Halted,
    /// Its agent has not answered for this long. Its VM still exists.
    Silent(Duration),
}

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Crashed(finding) => f.write_str(&finding.title),
            Self::Exited(exit) => exit.fmt(f),
            Self::Halted => f.write_str("the guest halted: all its CPUs are halted with interrupts off"),
            Self::Silent(time) => write!(f, "the guest's agent has not answered for {} s", time.as_secs()),
        }
    }
}

/// The watch on a guest: its events, and the findings of its kernel. Clones are the same watch.
#[derive(Debug, Clone, Default)]
pub struct Watch(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    log: EventLog,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    lines: Lines,
    scanner: Scanner,
    findings: Findings,
    /// The first fatal finding.
    crash: Option<Finding>,
    /// The guest's own time so far: how long its earlier VMs lived.
    before: Duration,
    /// The time of the last console bytes.
    last: Duration,
    no_space: bool,
    /// The next VM that ends will be restored, so an unfinished row or report continues then.
    goes_on: bool,
}

/// How one VM ends, once it has.
#[derive(Debug, Clone)]
pub(crate) struct End(watch::Receiver<Option<Gone>>);

impl Watch {
    /// Events from now on.
    pub fn events(&self) -> Events {
        self.0.log.from(self.0.log.next())
    }

    /// Events since the entry with this number, and from now on. If older ones were removed from the log, the reader
    /// gets the number of missed ones.
    pub fn events_since(&self, number: u64) -> Events {
        self.0.log.from(number)
    }

    /// All events in the log, and events from now on.
    pub fn events_kept(&self) -> Events {
        self.0.log.from(self.0.log.oldest())
    }

    /// The findings of its kernel, in order: the first ones and the newest.
    pub fn findings(&self) -> Vec<Finding> {
        self.seen().findings.kept()
    }

    /// The number of all findings, kept or not.
    pub fn findings_total(&self) -> u64 {
        self.seen().findings.total()
    }

    /// Whether this host had no space for what the guest wrote to a disk.
    pub fn lacked_space(&self) -> bool {
        self.seen().no_space
    }

    /// Sets whether the next VM that ends will be restored, see [`GuestEvent::Stopped`].
    pub(crate) fn expect_return(&self, returns: bool) {
        self.seen().goes_on = returns;
    }

    /// Records that the guest is over although its VMM still runs. No row of the console reports that, so the last rows
    /// become the finding's log. If its kernel has reported a fatal error, that is the finding, and this is only its
    /// effect.
    pub(super) fn note_over(&self, kind: Kind, title: &str) {
        if self.crash().is_some() {
            return;
        }
        let mut seen = self.seen();
        let mut extract = self.0.log.last_rows(LAST_ROWS);
        extract.extend(seen.lines.partial());
        let finding = Finding::new(title.to_owned(), kind, Severity::Fatal, extract, seen.last);
        seen.add(&self.0.log, finding);
    }

    /// Follows a VM to its end. A watch follows one VM at a time.
    pub(crate) fn follow(&self, events: VmEvents) -> End {
        {
            let mut seen = self.seen();
            seen.before = seen.last;
            seen.goes_on = false;
        }
        let (sender, end) = watch::channel(None);
        tokio::spawn(self.clone().read(events, sender));
        End(end)
    }

    /// Reads the events of a VM to their end.
    ///
    /// A fatal report does not end the guest at once. A kernel prints it over many rows, and the last ones (the stack,
    /// the registers) are what a user needs. So the guest counts as crashed [`CRASH_GRACE`] after a complete report, or
    /// after the last row of an incomplete one. If its VM ends earlier, it counts then. The end of a VM comes after all
    /// of its console output, because the events of a VM are one ordered stream. So a guest that panics and reboots is
    /// reported as crashed, not as exited.
    async fn read(self, mut events: VmEvents, end: watch::Sender<Option<Gone>>) {
        // When a fatal report counts as the end of the guest.
        let mut due: Option<Instant> = None;
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = until(due) => {
                    due = None;
                    if let Some(crash) = self.crash() {
                        end.send_replace(Some(Gone::Crashed(Box::new(crash))));
                    }
                    continue;
                }
            };
            match event {
                Some(VmEvent::Console { bytes, at }) => {
                    let crashed_before = due.is_some() && self.seen().crash.is_some();
                    self.console(&bytes, at);
                    if end.borrow().is_none() && !crashed_before {
                        due = Some(Instant::now() + CRASH_GRACE);
                    }
                }
                Some(VmEvent::Started { pid }) => self.0.log.push(GuestEvent::Started { pid }),
                Some(VmEvent::Paused) => self.0.log.push(GuestEvent::Paused),
                Some(VmEvent::Resumed) => self.0.log.push(GuestEvent::Resumed),
                Some(VmEvent::NoSpace) => {
                    self.seen().no_space = true;
                    self.0.log.push(GuestEvent::NoSpace);
                }
                Some(VmEvent::Exited(exit)) => {
                    let (crash, returns) = self.ended();
                    self.0.log.push(if returns { GuestEvent::Stopped } else { GuestEvent::Exited(exit.clone()) });
                    end.send_if_modified(|end| {
                        let first = end.is_none();
                        if first {
                            *end = Some(crash.map_or(Gone::Exited(exit), |crash| Gone::Crashed(Box::new(crash))));
                        }
                        first
                    });
                    return;
                }
                // The owner has ended with its runtime, so nothing waits for this.
                None => return,
            }
        }
    }

    fn console(&self, bytes: &[u8], at: Duration) {
        let mut seen = self.seen();
        seen.last = seen.before + at;
        for text in seen.lines.push(bytes) {
            seen.row(&self.0.log, text);
        }
    }

    /// The fatal finding. If its report is not finished, that of the unfinished report.
    fn crash(&self) -> Option<Finding> {
        let mut seen = self.seen();
        let fatal = |finding: &Finding| finding.severity == Severity::Fatal;
        if seen.crash.is_none() && seen.scanner.pending().as_ref().is_some_and(fatal) {
            seen.finish_reports(&self.0.log);
        }
        seen.crash.clone()
    }

    /// Its VM has ended. Returns the fatal finding, and whether the guest will be restored.
    fn ended(&self) -> (Option<Finding>, bool) {
        let mut seen = self.seen();
        if !seen.goes_on {
            if let Some(text) = seen.lines.finish() {
                seen.row(&self.0.log, text);
            }
            seen.finish_reports(&self.0.log);
        }
        (seen.crash.clone(), seen.goes_on)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn row(&mut self, log: &EventLog, text: String) {
        log.push(GuestEvent::Console(text.clone()));
        if let Some(finding) = self.scanner.push(&ConsoleLine { text, at: self.last }) {
            self.note(log, finding);
        }
    }

    fn finish_reports(&mut self, log: &EventLog) {
        for finding in self.scanner.finish() {
            self.note(log, finding);
        }
    }

    fn note(&mut self, log: &EventLog, finding: Finding) {
        if finding.severity == Severity::Fatal && self.crash.is_none() {
            self.crash = Some(finding.clone());
        }
        self.add(log, finding);
    }

    fn add(&mut self, log: &EventLog, finding: Finding) {
        log.push(GuestEvent::Finding(Arc::new(finding.clone())));
        self.findings.push(finding);
    }
}

impl End {
    /// Waits for the end. Safe to cancel.
    pub(crate) async fn gone(&self) -> Gone {
        let mut end = self.0.clone();
        let gone = end.wait_for(Option::is_some).await.ok().and_then(|gone| gone.clone());
        match gone {
            Some(gone) => gone,
            // The task sets the end before it ends, unless the runtime ends.
            None => std::future::pending().await,
        }
    }

    /// How it ended, if it has.
    pub(crate) fn now(&self) -> Option<Gone> {
        self.0.borrow().clone()
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::sync::mpsc;
    use tokio::time::timeout;

    use super::*;
    use crate::process::VmmStatus;
    use crate::vm::ExitReason;

    const PANIC: &str = "[    1.000000] Kernel panic - not syncing: No working init found.\r\n";
    const DEADLINE: Duration = Duration::from_secs(20);

    fn console(text: &str) -> VmEvent {
        VmEvent::Console { at: Duration::from_secs(1), bytes: Bytes::copy_from_slice(text.as_bytes()) }
    }

    fn killed() -> VmExit {
        VmExit { status: VmmStatus::Signal(9), reason: ExitReason::Killed }
    }

    async fn follow(watch: &Watch, events: impl IntoIterator<Item = VmEvent>) -> (End, mpsc::Sender<VmEvent>) {
        let (sender, receiver) = mpsc::channel(64);
        let end = watch.follow(VmEvents(receiver));
        for event in events {
            sender.send(event).await.expect("it is read");
        }
        (end, sender)
    }

    async fn gone(end: &End) -> Gone {
        timeout(DEADLINE, end.gone()).await.expect("it ends in time")
    }

    #[tokio::test]
    async fn a_panic_is_the_end_even_if_the_vm_stays() {
        let watch = Watch::default();
        let mut events = watch.events();
        let (end, _vm) = follow(&watch, [console(PANIC)]).await;
        let Gone::Crashed(finding) = gone(&end).await else { panic!("it crashed") };
        assert_eq!(finding.title, "kernel panic: No working init found");
        assert_eq!(watch.findings(), [*finding.clone()]);
        let row = events.next().await.expect("it is there").expect("nothing was missed");
        assert_eq!((row.number, row.event), (0, GuestEvent::Console(PANIC.trim_end().into())));
        let found = events.next().await.expect("it is there").expect("nothing was missed");
        assert_eq!(found.event, GuestEvent::Finding(Arc::new(*finding)));
    }

    #[tokio::test]
    async fn a_guest_that_is_over_without_a_word_is_a_finding_with_its_last_rows() {
        let watch = Watch::default();
        let mut events = watch.events();
        let rows: String = (0..30).map(|row| format!("[    1.000000] row {row}\n")).collect();
        let (end, vm) = follow(&watch, [console(&rows), console("reboot: System halted")]).await;
        for _ in 0..30 {
            events.next().await.expect("it is there").expect("nothing was missed");
        }
        // The row has no end yet, so it causes no event that could be waited for.
        timeout(DEADLINE, async {
            while watch.seen().lines.partial().is_none() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("it is read");
        watch.note_over(Kind::Halted, "it is halted");
        let [finding] = &watch.findings()[..] else { panic!("one finding: {:?}", watch.findings()) };
        assert_eq!(
            (finding.title.as_str(), finding.kind, finding.severity),
            ("it is halted", Kind::Halted, Severity::Fatal)
        );
        assert_eq!(finding.extract.len(), LAST_ROWS + 1);
        assert_eq!(finding.extract[LAST_ROWS - 1..], ["[    1.000000] row 29", "reboot: System halted"]);
        let found = events.next().await.expect("it is there").expect("nothing was missed");
        assert_eq!(found.event, GuestEvent::Finding(Arc::new(finding.clone())));
        vm.send(VmEvent::Exited(killed())).await.expect("it is read");
        assert_eq!(gone(&end).await, Gone::Exited(killed()), "it is no crash");
    }

    #[tokio::test]
    async fn a_crash_that_left_a_guest_halted_is_the_only_finding() {
        let watch = Watch::default();
        let (end, _vm) = follow(&watch, [console(PANIC)]).await;
        assert!(matches!(gone(&end).await, Gone::Crashed(_)));
        watch.note_over(Kind::Halted, "it is halted");
        assert_eq!(watch.findings().iter().map(|finding| finding.kind).collect::<Vec<_>>(), [Kind::Panic]);
    }

    #[tokio::test]
    async fn a_vm_that_ends_after_its_panic_has_crashed() {
        let watch = Watch::default();
        let (end, _vm) = follow(&watch, [console(PANIC), VmEvent::Exited(killed())]).await;
        assert!(matches!(gone(&end).await, Gone::Crashed(_)));
    }

    #[tokio::test]
    async fn a_vm_that_ends_without_a_report_has_exited_and_ends_its_events() {
        let watch = Watch::default();
        let mut events = watch.events_kept();
        let (end, vm) = follow(&watch, [console("login: "), VmEvent::Exited(killed())]).await;
        assert_eq!(gone(&end).await, Gone::Exited(killed()));
        drop((watch, vm));
        let mut seen = Vec::new();
        while let Some(entry) = timeout(DEADLINE, events.next()).await.expect("it ends in time") {
            seen.push(entry.expect("nothing was missed").event);
        }
        assert_eq!(seen, [GuestEvent::Console("login: ".into()), GuestEvent::Exited(killed())]);
    }

    #[tokio::test]
    async fn a_row_that_a_save_has_cut_is_one_row_after_the_restore() {
        let watch = Watch::default();
        let mut events = watch.events_kept();
        let (first, second) = PANIC.split_at(30);
        let (end, _vm) = follow(&watch, [console(first)]).await;
        watch.expect_return(true);
        _vm.send(VmEvent::Exited(killed())).await.expect("it is read");
        assert_eq!(gone(&end).await, Gone::Exited(killed()));
        let (end, _vm) = follow(&watch, [console(second)]).await;
        let Gone::Crashed(finding) = gone(&end).await else { panic!("it crashed") };
        assert_eq!(finding.at, Duration::from_secs(2), "its time goes on");
        let all: Vec<GuestEvent> =
            std::iter::from_fn(|| events.read()).map(|entry| entry.expect("kept").event).collect();
        assert_eq!(all[..2], [GuestEvent::Stopped, GuestEvent::Console(PANIC.trim_end().into())]);
    }
}
