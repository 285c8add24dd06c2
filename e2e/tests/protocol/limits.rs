//! Limits of commands. Limits that need control groups work only in a guest; in test mode the agent refuses them.

use std::time::Duration;

use kiln_e2e::{Agent, bounded, until};
use kiln_wire::{ErrorCode, ExecRequest, ExitStatus, Limits};

use crate::common::{refusal, run, runs, sh};

fn limited(script: &str, limits: Limits) -> ExecRequest {
    ExecRequest { limits, ..sh(script) }
}

#[test]
fn a_wall_limit_ends_a_command_and_is_reported() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let limits = Limits { wall_ms: Some(100), ..Limits::default() };
        let output = run(&link, limited("trap '' TERM; sleep 1000 & echo $$ $!; wait", limits)).await;
        assert!(output.exited.timed_out);
        assert_eq!(output.exited.status, ExitStatus::Signal(9));
        assert!(Duration::from_micros(output.exited.wall_us) >= Duration::from_millis(100), "{:?}", output.exited);
        let line = String::from_utf8(output.stdout).expect("UTF-8");
        for pid in line.split_whitespace() {
            let pid = pid.parse().expect("a pid");
            until("the end of the group", || (!runs(pid)).then_some(()));
        }
    });
}

#[test]
fn a_command_that_handles_sigterm_ends_on_its_own_within_the_grace() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let limits = Limits { wall_ms: Some(300), grace_ms: Some(60_000), ..Limits::default() };
        let output = run(&link, limited("trap 'echo bye; exit 7' TERM; while :; do sleep 0.01; done", limits)).await;
        assert_eq!((output.exited.status, output.exited.timed_out), (ExitStatus::Code(7), true));
        assert_eq!(output.stdout, b"bye\n");
    });
}

#[test]
fn a_command_gets_the_signal_of_its_request_when_its_time_is_up() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let limits = Limits { wall_ms: Some(300), grace_ms: Some(60_000), stop_signal: Some(3), ..Limits::default() };
        let script = "trap 'exit 9' TERM; trap 'echo quit; exit 7' QUIT; while :; do sleep 0.01; done";
        let output = run(&link, limited(script, limits)).await;
        assert_eq!((output.exited.status, output.exited.timed_out), (ExitStatus::Code(7), true));
        assert_eq!(output.stdout, b"quit\n");
        for wrong in [0, -1, 65, i32::MAX] {
            let limits = Limits { stop_signal: Some(wrong), ..Limits::default() };
            let error = link.run(limited("true", limits), b"", 0).await.expect_err("is no signal");
            assert!(error.to_string().contains("`stop_signal`"), "{error}");
        }
    });
}

#[test]
fn a_stopped_command_gets_sigterm_when_its_time_is_up() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let limits = Limits { wall_ms: Some(300), grace_ms: Some(60_000), ..Limits::default() };
        let exited = run(&link, limited("trap 'exit 7' TERM; kill -STOP $$; sleep 1000", limits)).await.exited;
        assert_eq!((exited.status, exited.timed_out), (ExitStatus::Code(7), true));
    });
}

#[test]
fn a_command_that_ignores_sigterm_is_killed_after_the_grace() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let limits = Limits { wall_ms: Some(100), grace_ms: Some(200), ..Limits::default() };
        let exited = run(&link, limited("trap '' TERM; while :; do sleep 0.01; done", limits)).await.exited;
        assert_eq!((exited.status, exited.timed_out), (ExitStatus::Signal(9), true));
        assert!(Duration::from_micros(exited.wall_us) >= Duration::from_millis(300), "{exited:?}");
    });
}

#[test]
fn cpu_time_that_is_used_up_has_its_grace_too() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let limits = Limits { cpu_ms: Some(100), grace_ms: Some(60_000), ..Limits::default() };
        let exited = run(&link, limited("trap 'exit 7' TERM; while :; do :; done", limits)).await.exited;
        assert_eq!((exited.status, exited.timed_out), (ExitStatus::Code(7), true));
    });
}

#[test]
fn a_command_that_keeps_its_wall_limit_is_not_timed_out() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let limits = Limits { wall_ms: Some(60_000), ..Limits::default() };
        let exited = run(&link, limited("exit 2", limits)).await.exited;
        assert_eq!((exited.status, exited.timed_out), (ExitStatus::Code(2), false));
    });
}

#[test]
fn a_limit_of_cpu_time_ends_a_command_that_computes_and_no_other() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let limits = Limits { cpu_ms: Some(100), ..Limits::default() };
        let exited = run(&link, limited("while :; do :; done", limits)).await.exited;
        assert!(exited.timed_out && matches!(exited.status, ExitStatus::Signal(_)), "{exited:?}");
        assert!(exited.user_us + exited.sys_us >= 90_000, "{exited:?}");
        let exited = run(&link, limited("sleep 0.2; exit 3", limits)).await.exited;
        assert_eq!(
            (exited.status, exited.timed_out),
            (ExitStatus::Code(3), false),
            "sleeping takes no time of the CPU"
        );
    });
}

#[test]
fn a_limit_under_which_nothing_could_run_is_invalid() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        for limits in [
            Limits { cpu_ms: Some(0), ..Limits::default() },
            Limits { wall_ms: Some(0), ..Limits::default() },
            Limits { files: Some(0), ..Limits::default() },
        ] {
            assert_eq!(refusal(&link, limited("true", limits)).await.code, ErrorCode::InvalidRequest);
        }
    });
}

#[test]
fn limits_of_any_size_are_accepted() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let most = Some(u64::MAX);
        let limits = Limits { cpu_ms: most, wall_ms: most, grace_ms: most, output_bytes: most, ..Limits::default() };
        assert_eq!(run(&link, limited("exit 4", limits)).await.exited.status, ExitStatus::Code(4));
    });
}

#[test]
fn output_over_its_limit_is_dropped_and_the_command_continues() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let limits = Limits { output_bytes: Some(1000), ..Limits::default() };
        let output = run(&link, limited("head -c 3000000 /dev/zero; exit 5", limits)).await;
        assert_eq!(output.stdout.len(), 1000);
        assert!(output.exited.truncated);
        assert_eq!(output.exited.status, ExitStatus::Code(5));
    });
}

#[test]
fn an_output_limit_counts_stdout_and_stderr_together() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let limits = Limits { output_bytes: Some(7), ..Limits::default() };
        let script = "printf 12345; sleep 0.05; printf abcde >&2";
        let output = run(&link, limited(script, limits)).await;
        assert_eq!(output.stdout.len() + output.stderr.len(), 7);
        assert!(output.exited.truncated);
    });
}

#[test]
fn output_of_exactly_the_limit_is_not_truncated() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let limits = Limits { output_bytes: Some(5), ..Limits::default() };
        let output = run(&link, limited("printf 12345", limits)).await;
        assert_eq!(output.stdout, b"12345");
        assert!(!output.exited.truncated);
        let limits = Limits { output_bytes: Some(0), ..Limits::default() };
        let output = run(&link, limited("printf 1", limits)).await;
        assert_eq!((output.stdout.len(), output.exited.truncated), (0, true));
    });
}

#[test]
fn a_limit_that_needs_cgroups_is_refused_without_them() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        assert!(!link.hello().capabilities.contains(&kiln_wire::Capability::Cgroups));
        for limits in [
            Limits { memory_bytes: Some(64 << 20), ..Limits::default() },
            Limits { pids: Some(10), ..Limits::default() },
        ] {
            let fault = refusal(&link, limited("true", limits)).await;
            assert_eq!(fault.code, ErrorCode::Unsupported, "{fault}");
        }
    });
}

#[test]
fn a_limit_of_open_files_holds() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let limits = Limits { files: Some(20), ..Limits::default() };
        assert_eq!(run(&link, limited("ulimit -n; ulimit -Hn", limits)).await.stdout, b"20\n20\n");
    });
}
