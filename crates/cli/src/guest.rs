//! Failures of guests that did not boot or that ended too early, and what is printed about them.

use std::time::Duration;

use kiln_detect::Finding;
use kiln_engine::Guest;
use kiln_engine::guest::{BOOT_TAIL_ROWS, BootError, Gone};
use kiln_engine::link::LinkError;

use crate::engine_failure::launch_failure;
use crate::failure::{Failure, VM};
use crate::output::say;

/// A failure to boot. Also prints the end of the guest's console.
pub fn boot_failure(error: BootError, boot_timeout: Duration) -> Failure {
    match error {
        BootError::Launch(error) => launch_failure(error),
        error @ BootError::NoVmm { .. } => Failure::new(VM, error).hint("raise --boot-timeout"),
        BootError::Link { source, console } => not_up(source, &console, boot_timeout),
        BootError::Gone { ref gone, ref console } => {
            match gone {
                Gone::Crashed(finding) => print_extract(finding),
                Gone::Exited(_) | Gone::Halted | Gone::Silent(_) => print_tail(console),
            }
            Failure::new(VM, error)
        }
    }
}

/// The failure of a command that was cut off by the end of its guest. Also prints the crash report or the console's
/// end.
pub fn cut_off(guest: &Guest, gone: &Gone) -> Failure {
    match gone {
        Gone::Crashed(finding) => {
            print_extract(finding);
            Failure::words(VM, format!("the guest crashed: {}", finding.title))
        }
        Gone::Exited(exit) => Failure::words(VM, format!("the guest ended before the command did: {exit}")),
        Gone::Halted | Gone::Silent(_) => {
            print_tail(&guest.console_tail(BOOT_TAIL_ROWS));
            Failure::words(VM, gone.to_string())
        }
    }
}

fn not_up(source: LinkError, console: &[String], boot_timeout: Duration) -> Failure {
    match source {
        LinkError::Version { .. } => Failure::new(VM, source)
            .hint("the image has another version of the agent, so build it again: kiln image build mini"),
        LinkError::TimedOut { .. } => {
            print_tail(console);
            Failure::words(VM, format!("the guest did not come up within {boot_timeout:?}"))
                .hint("raise --boot-timeout, or look at the whole console with --console")
        }
        other => {
            print_tail(console);
            Failure::new(VM, other)
        }
    }
}

/// Prints the kernel's lines of a finding.
fn print_extract(finding: &Finding) {
    for line in &finding.extract {
        say(format_args!("    {line}"));
    }
}

/// Prints the last lines of a console.
fn print_tail(rows: &[String]) {
    match rows.len() {
        0 => say("the guest's console is empty"),
        count => say(format_args!("the last {count} lines of the guest's console:")),
    }
    for row in rows {
        say(format_args!("    {row}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_did_not_boot_in_time_has_a_hint() {
        let timeout = Duration::from_secs(60);
        let link = |source| boot_failure(BootError::Link { source, console: Vec::new() }, timeout);
        let failures = [
            boot_failure(BootError::NoVmm { waited: timeout }, timeout),
            link(LinkError::TimedOut { waiting_for: "hello", waited: timeout }),
            link(LinkError::Version { ours: 2, theirs: 1 }),
            link(LinkError::Closed { waiting_for: "hello" }),
        ];
        // The other messages are the engine's.
        assert_eq!(failures[1].message(), "the guest did not come up within 60s");
        let hints =
            failures.map(|failure| format!("exit code {}, hint: {}", failure.code, failure.hint_text().unwrap_or("-")));
        insta::assert_snapshot!(hints.join("\n"));
    }
}
