//! The start of a command: arguments, environment, directory and user, and reasons why it fails.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use kiln_e2e::{Agent, bounded};
use kiln_wire::{ErrorCode, ExecRequest, ExitStatus, Text};

use crate::common::{command, refusal, run, sh, stdout};

/// Writes a file with permission bits.
fn place(agent: &Agent, name: &str, content: &str, permissions: u32) -> String {
    let path = agent.path(name);
    fs::write(&path, content).expect("the directory is ours");
    fs::set_permissions(&path, fs::Permissions::from_mode(permissions)).expect("the file is ours");
    path
}

fn with_env(request: ExecRequest, env: &[(&[u8], &[u8])]) -> ExecRequest {
    let env = env.iter().map(|(name, value)| (Text::from(*name), Text::from(*value))).collect();
    ExecRequest { env, ..request }
}

#[test]
fn a_command_runs_and_its_exit_code_comes_back() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        for code in [0, 1, 3, 126, 127, 255] {
            let output = run(&link, sh(&format!("exit {code}"))).await;
            assert_eq!(output.exited.status, ExitStatus::Code(code));
        }
    });
}

#[test]
fn arguments_arrive_unchanged() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let output = run(&link, command(&["printf", "%s|", "a b", "", "$HOME", "*", "ü\n", "-n"])).await;
        assert_eq!(output.stdout, "a b||$HOME|*|ü\n|-n|".as_bytes());
    });
}

#[test]
fn arguments_need_not_be_utf_8() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let mut request = command(&["printf", "%s"]);
        request.argv.push(Text::from(&b"\xff\xfe\x80"[..]));
        assert_eq!(run(&link, request).await.stdout, b"\xff\xfe\x80");
    });
}

#[test]
fn started_names_the_pid_and_the_process_group() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let mut exec = link.exec(sh("echo $$ $(ps -o pgid= -p $$) >&2; read x")).await.expect("starts");
        let pid = exec.started.pid;
        let line = match exec.output.next().await.expect("output") {
            kiln_engine::link::Event::Data(kiln_wire::Channel::Err, bytes) => {
                String::from_utf8_lossy(&bytes).into_owned()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(line.trim(), format!("{pid} {pid}"));
        assert_eq!(exec.started.session, None);
    });
}

#[test]
fn a_command_that_does_not_exist_is_not_found() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        for program in ["no-such-command", "/no/such/command", "./no-such", &agent.path("missing")] {
            let fault = refusal(&link, command(&[program])).await;
            assert_eq!(fault.code, ErrorCode::CommandNotFound, "{fault}");
            assert!(fault.message.contains(program), "{fault}");
        }
    });
}

#[test]
fn a_file_that_may_not_be_executed_is_not_executable() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let plain = place(&agent, "plain", "#!/bin/sh\n", 0o644);
        let directory = agent.directory().to_str().expect("UTF-8").to_owned();
        for program in [plain, directory] {
            let fault = refusal(&link, command(&[&program])).await;
            assert_eq!(fault.code, ErrorCode::NotExecutable, "{fault}");
            assert!(fault.message.contains(&program), "{fault}");
        }
    });
}

#[test]
fn a_script_that_names_no_interpreter_is_run_by_the_shell() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let script = place(&agent, "script", "echo $0 $1\n", 0o755);
        let output = run(&link, command(&[&script, "argument"])).await;
        assert_eq!(output.stdout, format!("{script} argument\n").as_bytes());
    });
}

#[test]
fn a_script_whose_interpreter_is_missing_is_not_executable() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let script = place(&agent, "script", "#!/no/such/interpreter\n", 0o755);
        assert_eq!(refusal(&link, command(&[&script])).await.code, ErrorCode::NotExecutable);
    });
}

#[test]
fn a_program_is_searched_in_the_path_of_its_own_environment() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        place(&agent, "only-here", "#!/bin/sh\necho found\n", 0o755);
        assert_eq!(refusal(&link, command(&["only-here"])).await.code, ErrorCode::CommandNotFound);
        let path = format!("/no/such:{}", agent.directory().display());
        let request = with_env(command(&["only-here"]), &[(b"PATH", path.as_bytes())]);
        assert_eq!(run(&link, request).await.stdout, b"found\n");
    });
}

#[test]
fn a_program_that_may_not_be_executed_is_passed_over_in_the_path() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        for directory in ["first", "second"] {
            fs::create_dir(agent.path(directory)).expect("the directory is ours");
        }
        place(&agent, "first/tool", "#!/bin/sh\necho first\n", 0o644);
        let path = format!("{}:{}", agent.path("first"), agent.path("second"));
        let request = with_env(command(&["tool"]), &[(b"PATH", path.as_bytes())]);
        assert_eq!(refusal(&link, request.clone()).await.code, ErrorCode::NotExecutable);
        place(&agent, "second/tool", "#!/bin/sh\necho second\n", 0o755);
        assert_eq!(run(&link, request).await.stdout, b"second\n");
    });
}

#[test]
fn an_impossible_command_line_is_invalid() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        for request in [command(&[]), command(&["a\0b"]), command(&["true", "a\0b"])] {
            assert_eq!(refusal(&link, request).await.code, ErrorCode::InvalidRequest);
        }
    });
}

#[test]
fn the_last_variable_with_a_name_wins() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let env: [(&[u8], &[u8]); 4] = [(b"A", b"1"), (b"B", "ä b=c\n".as_bytes()), (b"A", b"2"), (b"EMPTY", b"")];
        let request = with_env(sh(r#"printf '%s|%s|%s' "$A" "$B" "${EMPTY-unset}"; env | grep -c ^A="#), &env);
        assert_eq!(run(&link, request).await.stdout, "2|ä b=c\n|1\n".as_bytes());
    });
}

#[test]
fn variables_need_not_be_utf_8() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let request = with_env(command(&["/usr/bin/env"]), &[(b"N\xff", b"V\xfe\x80")]);
        let output = run(&link, ExecRequest { env_clear: true, ..request }).await;
        let lines: Vec<&[u8]> = output.stdout.split(|byte| *byte == b'\n').collect();
        assert!(lines.contains(&&b"N\xff=V\xfe\x80"[..]), "{:?}", String::from_utf8_lossy(&output.stdout));
    });
}

#[test]
fn a_cleared_environment_has_only_the_given_variables() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let request = ExecRequest { env_clear: true, ..with_env(command(&["/usr/bin/env"]), &[(b"ONLY", b"this")]) };
        assert_eq!(run(&link, request).await.stdout, b"ONLY=this\n");
    });
}

#[test]
fn the_defaults_have_what_programs_expect() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let script = r#"[ -n "$HOME" ] && [ -n "$PATH" ] && [ -n "$USER" ] && echo fine"#;
        assert_eq!(stdout(&link, script).await, "fine\n");
    });
}

#[test]
fn an_impossible_variable_is_invalid() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let bad: [(&[u8], &[u8]); 4] = [(b"", b"x"), (b"A=B", b"x"), (b"A\0", b"x"), (b"A", b"x\0")];
        for variable in bad {
            let fault = refusal(&link, with_env(sh("true"), &[variable])).await;
            assert_eq!(fault.code, ErrorCode::InvalidRequest, "{fault}");
        }
    });
}

#[test]
fn a_command_starts_in_its_working_directory() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let mut name = agent.directory().as_os_str().as_encoded_bytes().to_vec();
        name.extend(b"/d \xff\xfc");
        let directory = Text::from(name);
        fs::create_dir(directory.as_path()).expect("the directory is ours");
        let request = ExecRequest { cwd: Some(directory.clone()), ..command(&["/bin/pwd"]) };
        let output = run(&link, request).await;
        assert_eq!(output.stdout, [directory.as_bytes(), b"\n"].concat());
    });
}

#[test]
fn a_command_starts_at_home_by_default() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let script = r#"home=$(getent passwd "$(id -u)" | cut -d: -f6); [ -d "$home" ] || home=/; cd "$home"; pwd -P"#;
        let home = stdout(&link, script).await;
        assert_eq!(run(&link, command(&["/bin/pwd", "-P"])).await.stdout, home.as_bytes());
    });
}

#[test]
fn a_wrong_working_directory_is_named() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let file = place(&agent, "file", "", 0o755);
        for (directory, code) in [(agent.path("missing"), ErrorCode::NotFound), (file, ErrorCode::NotADirectory)] {
            let fault = refusal(&link, ExecRequest { cwd: Some(directory.as_str().into()), ..sh("true") }).await;
            assert_eq!(fault.code, code, "{fault}");
            assert!(fault.message.contains(&directory), "{fault}");
        }
    });
}

#[test]
fn a_relative_program_is_taken_from_the_working_directory() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        place(&agent, "here", "#!/bin/sh\necho here\n", 0o755);
        let cwd = agent.directory().to_str().expect("UTF-8").into();
        let output = run(&link, ExecRequest { cwd: Some(cwd), ..command(&["./here"]) }).await;
        assert_eq!(output.stdout, b"here\n");
    });
}

#[test]
fn a_user_that_does_not_exist_is_unknown() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        for user in ["no-such-one", "0:no-such-one", ":no-such-one"] {
            let fault = refusal(&link, ExecRequest { user: Some(user.into()), ..sh("true") }).await;
            assert_eq!(fault.code, ErrorCode::UnknownUser, "{user}");
            assert!(fault.message.contains("`no-such-one`"), "{fault}");
        }
    });
}

#[test]
fn an_impossible_user_is_invalid() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        for user in ["", ":", "0:", "1:2:3", "-1:0", "99999999999", "4294967295", "0:4294967295", ":4294967295"] {
            let fault = refusal(&link, ExecRequest { user: Some(user.into()), ..sh("true") }).await;
            assert_eq!(fault.code, ErrorCode::InvalidRequest, "{user}: {fault}");
        }
    });
}

#[test]
fn the_agents_own_user_may_be_named_in_every_way() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let own = stdout(&link, "id -un; id -u; id -g; id -gn").await;
        let own: Vec<&str> = own.lines().collect();
        let [name, uid, gid, group] = own[..] else { panic!("four lines: {own:?}") };
        let both = [format!("{uid}:{gid}"), format!("{name}:{group}"), format!(":{group}"), format!(":{gid}")];
        for user in both.into_iter().chain([name.to_owned(), uid.to_owned()]) {
            let request = ExecRequest { user: Some(user.clone()), ..command(&["id", "-u"]) };
            assert_eq!(run(&link, request).await.stdout, format!("{}\n", own[1]).into_bytes(), "{user}");
        }
    });
}

#[test]
fn only_root_runs_commands_as_another_user() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let request = ExecRequest { user: Some("12345:54321".into()), ..sh("id -u; id -g; id -G") };
        let outcome = link.run(request, b"", 1 << 20).await;
        if rustix::process::geteuid().is_root() {
            assert_eq!(outcome.expect("root may").stdout, b"12345\n54321\n54321\n");
        } else {
            assert_eq!(crate::common::code(outcome), ErrorCode::PermissionDenied);
        }
    });
}

#[test]
fn a_command_inherits_no_file_and_no_signal_mask_of_the_agent() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        assert_eq!(stdout(&link, "ls /proc/$$/fd; :").await, "0\n1\n2\n");
        // Only classic signals: the C library uses those above, also in the process that runs the tests.
        let masks = stdout(&link, "grep -E '^Sig(Blk|Ign)' /proc/self/status").await;
        for line in masks.lines() {
            let mask = line.split_whitespace().nth(1).map(|mask| u64::from_str_radix(mask, 16));
            assert_eq!(mask.expect("two words").expect("a mask") & 0x7fff_ffff, 0, "{line}");
        }
    });
}

#[test]
fn a_command_without_stdin_reads_an_end_at_once() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        assert_eq!(stdout(&link, "readlink /proc/$$/fd/0; cat").await, "/dev/null\n");
    });
}

#[test]
fn resources_of_a_command_are_reported() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let script = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; sleep 0.02";
        let exited = run(&link, sh(script)).await.exited;
        assert!(exited.wall_us >= 20_000, "{exited:?}");
        assert!(exited.user_us > 0 && exited.user_us + exited.sys_us <= exited.wall_us * 64, "{exited:?}");
        assert!(exited.max_rss_bytes >= 100 << 10, "{exited:?}");
        assert!(!(exited.oom_killed || exited.timed_out || exited.truncated || exited.pipes_held), "{exited:?}");
    });
}
