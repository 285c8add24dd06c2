//! Finds out from QEMU's registers whether a guest's CPUs can still run.
//!
//! `query-cpus-fast` lists threads, but not their state. The text of `info registers` is meant for reading, but these
//! two fields are as old as QEMU. They are right with KVM too, because QEMU fetches the state of its CPUs before it
//! prints them.

use std::time::Duration;

use serde_json::json;

use super::qmp::Qmp;
use crate::vm::VmmError;

/// The interrupt flag in EFLAGS.
const INTERRUPTS_ON: u32 = 1 << 9;

/// Whether every CPU is halted with its interrupts off: after `halt -f`, or if a kernel gave up. Only a reset ends
/// that.
pub(super) async fn all_halted(qmp: &Qmp, deadline: Duration) -> Result<bool, VmmError> {
    let arguments = json!({ "command-line": "info registers -a" });
    let registers = qmp.execute("human-monitor-command", Some(arguments), deadline).await?;
    Ok(registers.as_str().is_some_and(are_halted))
}

/// A text without CPUs does not prove a halt.
fn are_halted(registers: &str) -> bool {
    let mut cpus = registers.lines().filter_map(is_halted).peekable();
    cpus.peek().is_some() && cpus.all(|halted| halted)
}

/// Parses the one line of a CPU that has its flags: `RIP=… RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1`. A CPU
/// that waits for an interrupt is idle, not halted. A CPU that handles an SMI does not count as halted.
fn is_halted(line: &str) -> Option<bool> {
    let value = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name));
    let flags = value("RFL=").or_else(|| value("EFL="))?;
    let halted = value("HLT=")? == "1" && value("SMM=") == Some("0");
    Some(halted && u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & INTERRUPTS_ON == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(number: u32, flags: &str, halted: u32) -> String {
        format!(
            "CPU#{number}\r\nRAX=0000000000000000 RBX=0000000000000000 RCX=0000000000000000 RDX=0000000000000000\r\n\
             RIP=ffffffff8b8a1c0b {flags} [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT={halted}\r\n\
             ES =0000 0000000000000000 ffffffff 00c00000\r\n\r\n"
        )
    }

    #[test]
    fn a_cpu_that_waits_for_an_interrupt_is_idle_and_not_halted() {
        assert!(!are_halted(&cpu(0, "RFL=00000246", 1)));
    }

    #[test]
    fn a_cpu_that_runs_with_interrupts_off_is_not_halted() {
        assert!(!are_halted(&cpu(0, "RFL=00000046", 0)));
    }

    #[test]
    fn a_guest_has_halted_once_each_of_its_cpus_has() {
        let halted = cpu(0, "RFL=00000046", 1);
        assert!(are_halted(&halted));
        assert!(!are_halted(&format!("{halted}{}", cpu(1, "RFL=00000246", 1))));
        assert!(are_halted(&format!("{halted}{}", cpu(1, "EFL=00000002", 1))));
    }

    #[test]
    fn words_without_cpus_say_nothing() {
        for words in ["", "HLT=1", "RFL=0", "RFL=xyz HLT=1 SMM=0", "unknown command: 'info registers'"] {
            assert!(!are_halted(words), "{words}");
        }
    }
}
