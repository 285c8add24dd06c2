//! Helpers that most tests use.

use kiln_engine::link::{ExecOutput, GuestLink, StreamError};
use kiln_wire::{ErrorCode, ExecRequest, ExitStatus, Fault, Text};

/// More output than any test makes by mistake.
pub const OUTPUT_BYTES_MAX: u64 = 256 << 20;

/// A command with its arguments.
pub fn command(argv: &[&str]) -> ExecRequest {
    ExecRequest { argv: argv.iter().map(|argument| Text::from(*argument)).collect(), ..ExecRequest::default() }
}

/// A shell script.
pub fn sh(script: &str) -> ExecRequest {
    command(&["/bin/sh", "-c", script])
}

/// Runs a command without input to its end.
pub async fn run(link: &GuestLink, request: ExecRequest) -> ExecOutput {
    link.run(request, b"", OUTPUT_BYTES_MAX).await.expect("the command starts")
}

/// Runs a shell script to its end and returns its stdout.
pub async fn stdout(link: &GuestLink, script: &str) -> String {
    let output = run(link, sh(script)).await;
    assert_eq!(output.exited.status, ExitStatus::Code(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The fault of a command that fails to start.
pub async fn refusal(link: &GuestLink, request: ExecRequest) -> Fault {
    fault(link.run(request, b"", OUTPUT_BYTES_MAX).await)
}

/// The agent's fault. Panics if the outcome is not a fault.
pub fn fault<T: std::fmt::Debug>(outcome: Result<T, StreamError>) -> Fault {
    match outcome {
        Err(StreamError::Fault(fault)) => fault,
        other => panic!("expected a fault of the agent, got {other:?}"),
    }
}

/// The code of the agent's fault.
pub fn code<T: std::fmt::Debug>(outcome: Result<T, StreamError>) -> ErrorCode {
    fault(outcome).code
}

/// Whether a process runs; a zombie does not.
pub fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}
