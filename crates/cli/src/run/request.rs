//! Turns arguments into requests to the engine and the agent. Runs before a VM starts, so that bad input is refused
//! early.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use kiln_oci::ImageConfig;
use kiln_wire::{ExecRequest, Limits, Message, Stdin, StreamId, Text, Tty, UserRef};
use rustix::fs::{Access, access};

use super::env_file;
use super::out::Target;
use crate::args::RunArgs;
use crate::failure::{Failure, USAGE};
use crate::image::image_env;

/// One `--in` or `--out`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Path on this host.
    pub host: PathBuf,
    /// Path in the guest.
    pub guest: Text,
}

/// The request to run the command, with a terminal if `terminal` describes one.
pub fn exec_request(args: &RunArgs, terminal: Option<Tty>) -> Result<ExecRequest, Failure> {
    if args.command.first().is_some_and(|program| program.is_empty()) && args.entrypoint.is_none() {
        return Err(Failure::words(USAGE, "the name of the command is empty"));
    }
    if let Some(user) = &args.user {
        user.parse::<UserRef>().map_err(|error| Failure::new(USAGE, anyhow::Error::new(error).context("--user")))?;
    }
    let request = ExecRequest {
        argv: args.command.iter().map(|word| Text::from(word.as_os_str())).collect(),
        env: variables(args)?,
        env_clear: false,
        cwd: args.workdir.as_deref().map(Text::from),
        user: args.user.clone(),
        stdin: if args.stdin || args.tty { Stdin::Stream } else { Stdin::None },
        tty: terminal,
        limits: Limits {
            // Set when the command starts, to the remaining time.
            wall_ms: None,
            cpu_ms: args.limit_cpu.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            // Set later: the agent's capabilities are not known yet.
            grace_ms: None,
            stop_signal: args.docker.stop_signal.map(|signal| signal.number().into()),
            memory_bytes: args.limit_memory,
            pids: args.limit_pids,
            output_bytes: args.limit_output,
            files: None,
        },
        session: None,
    };
    check_size(&request)?;
    Ok(request)
}

/// Adds what the image's configuration decides and the arguments do not: the command, variables, the working directory,
/// the user, and the signal that ends it.
///
/// As in docker, a command replaces the image's command and not its entrypoint, and `--entrypoint` replaces both.
pub fn add_image(request: &mut ExecRequest, args: &RunArgs, config: Option<&ImageConfig>) -> Result<(), Failure> {
    let texts = |words: &[String]| words.iter().map(|word| Text::from(word.as_str())).collect::<Vec<_>>();
    let command = std::mem::take(&mut request.argv);
    let (entrypoint, default) = match (&args.entrypoint, config) {
        (Some(program), _) if program.is_empty() => (vec![], vec![]),
        (Some(program), _) => (vec![Text::from(program.as_os_str())], vec![]),
        (None, Some(config)) => (texts(&config.entrypoint), texts(&config.cmd)),
        (None, None) => (vec![], vec![]),
    };
    request.argv = entrypoint;
    request.argv.extend(if command.is_empty() { default } else { command });
    if request.argv.is_empty() {
        let failure = Failure::words(USAGE, "there is no command to run, and the image has none");
        return Err(failure.hint("write the command after the flags: kiln run -- uname -a"));
    }
    let Some(config) = config else { return Ok(()) };
    let mut env = image_env(config);
    // The last value of a variable counts.
    env.append(&mut request.env);
    request.env = env;
    if request.cwd.is_none() {
        request.cwd = config.working_dir.as_deref().map(Text::from);
    }
    if request.limits.stop_signal.is_none() {
        request.limits.stop_signal = config.stop_signal.map(|signal| signal.number().into());
    }
    if request.user.is_none() {
        request.user = config.user.as_ref().map(ToString::to_string);
    }
    check_size(request)
}

/// Refuses a request that does not fit into a frame.
fn check_size(request: &ExecRequest) -> Result<(), Failure> {
    match Message::Exec(Box::new(request.clone())).encode(StreamId(1), &mut Vec::new()) {
        Ok(()) => Ok(()),
        Err(error) => {
            let words = format!("the command and its variables are too long: {error}");
            Err(Failure::words(USAGE, words).hint("pass long input with --stdin or --in"))
        }
    }
}

/// The variables of --env-file, then those of --env, so that --env wins.
fn variables(args: &RunArgs) -> Result<Vec<(Text, Text)>, Failure> {
    let mut variables = Vec::new();
    for file in &args.docker.env_file {
        variables.extend(env_file::read(file)?);
    }
    for pair in &args.env {
        variables.push(variable(pair)?);
    }
    Ok(variables)
}

fn variable(given: &OsStr) -> Result<(Text, Text), Failure> {
    let bytes = given.as_bytes();
    let (name, value) = match bytes.iter().position(|byte| *byte == b'=') {
        Some(at) => (&bytes[..at], bytes[at + 1..].to_vec()),
        None => match std::env::var_os(given) {
            Some(value) => (bytes, value.into_vec()),
            None => {
                let words = format!("--env {}: the variable is not set in this shell", given.display());
                return Err(Failure::words(USAGE, words).hint("give it a value: --env NAME=VALUE"));
            }
        },
    };
    if name.is_empty() {
        let words = format!("--env {}: a variable needs a name", given.display());
        return Err(Failure::words(USAGE, words).hint("write --env NAME=VALUE"));
    }
    Ok((name.into(), value.into()))
}

/// Parses `HOST:GUEST` of `--in`. HOST must be a readable file or directory.
pub fn copy_in(given: &OsString) -> Result<Copy, Failure> {
    let (host, guest) = split("--in", "HOST:GUEST", given)?;
    let host = PathBuf::from(host);
    let refused = |why: String| Failure::words(USAGE, format!("--in: `{}`: {why}", host.display()));
    let metadata = std::fs::metadata(&host).map_err(|error| refused(error.to_string()))?;
    if !metadata.is_file() && !metadata.is_dir() {
        return Err(refused("is not a file or a directory".into()));
    }
    access(&host, Access::READ_OK).map_err(|error| refused(std::io::Error::from(error).to_string()))?;
    Ok(Copy { host, guest: guest.as_os_str().into() })
}

/// Parses `GUEST:HOST` of `--out`. HOST must be writable, or must not exist in a directory that is writable. With
/// `--json` it must not be stdout.
pub fn copy_out(given: &OsString, json: bool) -> Result<Copy, Failure> {
    let (guest, host) = split("--out", "GUEST:HOST", given)?;
    let host = PathBuf::from(host);
    let parent = host.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent
        && !parent.is_dir()
    {
        return Err(Failure::words(USAGE, format!("--out: `{}` is not a directory", parent.display())));
    }
    let target = Target::find(&host).map_err(|why| Failure::words(USAGE, format!("--out: {why}")))?;
    if json && target.is_stdout() {
        return Err(Failure::words(USAGE, "--out: stdout is used by --json").hint("write to a file or a FIFO instead"));
    }
    if let Some(folder) = target.folder()
        && let Err(error) = access(folder, Access::WRITE_OK | Access::EXEC_OK)
    {
        let why = std::io::Error::from(error);
        return Err(Failure::words(USAGE, format!("--out: can't write to `{}`: {why}", folder.display())));
    }
    Ok(Copy { host, guest: guest.as_os_str().into() })
}

fn split(flag: &str, form: &str, given: &OsString) -> Result<(OsString, OsString), Failure> {
    let bytes = given.as_bytes();
    let parts = bytes.iter().rposition(|byte| *byte == b':').map(|at| (&bytes[..at], &bytes[at + 1..]));
    match parts {
        Some((from, to)) if !from.is_empty() && !to.is_empty() => {
            Ok((OsString::from_vec(from.to_vec()), OsString::from_vec(to.to_vec())))
        }
        _ => Err(Failure::words(USAGE, format!("{flag} `{}`: write {flag} {form}", given.display()))),
    }
}

#[cfg(test)]
mod tests {
    use kiln_oci::PATH_DEFAULT;

    use super::*;
    use crate::args::{Args, Command};
    use clap::Parser as _;

    fn parse(words: &[&str]) -> RunArgs {
        let words = ["kiln", "run"].iter().chain(words);
        match Args::try_parse_from(words).expect("good arguments").command {
            Command::Run(args) => *args,
            other => panic!("not run: {other:?}"),
        }
    }

    #[test]
    fn all_words_after_the_command_are_its_arguments() {
        let args = parse(&["-e", "A=b=c", "-w", "/tmp", "-i", "--", "sh", "-c", "exit 3", "--json"]);
        let request = exec_request(&args, None).expect("a good request");
        assert_eq!(request.argv, ["sh", "-c", "exit 3", "--json"].map(Text::from));
        assert_eq!(request.env, [(Text::from("A"), Text::from("b=c"))]);
        assert_eq!(request.stdin, Stdin::Stream);
        assert!(!args.json);
    }

    fn image() -> ImageConfig {
        ImageConfig {
            env: vec!["COLOR=blue".into(), "A=image".into()],
            entrypoint: vec!["/entry".into(), "-x".into()],
            cmd: vec!["from".into(), "cmd".into()],
            working_dir: Some("/opt".into()),
            user: Some("job:7".parse().expect("a user")),
            stop_signal: Some("SIGQUIT".parse().expect("a signal")),
            ..ImageConfig::bare()
        }
    }

    fn with_image(words: &[&str], config: Option<&ImageConfig>) -> Result<ExecRequest, Failure> {
        let args = parse(words);
        let mut request = exec_request(&args, None)?;
        add_image(&mut request, &args, config).map(|()| request)
    }

    #[test]
    fn a_command_replaces_that_of_the_image_and_an_entrypoint_replaces_both() {
        let argv = |words: &[&str], config: &ImageConfig| {
            let request = with_image(words, Some(config)).expect("has a command");
            request.argv.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        let image = image();
        assert_eq!(argv(&[], &image), "/entry -x from cmd");
        assert_eq!(argv(&["--", "a", "b"], &image), "/entry -x a b");
        assert_eq!(argv(&["--entrypoint", "/bin/sh", "--", "-c", "x"], &image), "/bin/sh -c x");
        assert_eq!(argv(&["--entrypoint", "/bin/sh"], &image), "/bin/sh");
        assert_eq!(argv(&["--entrypoint", "", "--", "ls"], &image), "ls");
        let bare = ImageConfig { cmd: vec!["sh".into()], ..ImageConfig::bare() };
        assert_eq!(argv(&[], &bare), "sh");
    }

    #[test]
    fn the_arguments_win_over_the_image() {
        let image = image();
        let request = with_image(&["-e", "A=mine"], Some(&image)).expect("has a command");
        let last = |name: &str| {
            let values = request.env.iter().filter(|(key, _)| key.as_bytes() == name.as_bytes());
            values.map(|(_, value)| value.to_string()).next_back()
        };
        assert_eq!((last("COLOR").as_deref(), last("A").as_deref()), (Some("blue"), Some("mine")));
        assert_eq!(last("PATH").as_deref(), Some(PATH_DEFAULT));
        assert_eq!((request.cwd, request.user.as_deref()), (Some(Text::from("/opt")), Some("job:7")));
        assert_eq!(request.limits.stop_signal, Some(3));
        let request = with_image(&["--stop-signal", "USR1"], Some(&image)).expect("has a command");
        assert_eq!(request.limits.stop_signal, Some(10));
        let request = with_image(&["-w", "/tmp", "-u", "root"], Some(&image)).expect("has a command");
        assert_eq!((request.cwd, request.user.as_deref()), (Some(Text::from("/tmp")), Some("root")));
    }

    #[test]
    fn without_any_command_there_is_nothing_to_run() {
        for config in [None, Some(&ImageConfig::bare())] {
            let failure = with_image(&[], config).expect_err("refused");
            assert_eq!(failure.code, USAGE);
            assert!(failure.hint_text().is_some());
        }
    }

    #[test]
    fn a_variable_without_a_name_or_value_is_refused() {
        for bad in ["=x", "KILN_TEST_SURELY_NOT_SET"] {
            let failure = exec_request(&parse(&["-e", bad, "true"]), None).expect_err("refused");
            assert_eq!(failure.code, USAGE);
        }
    }

    #[test]
    fn a_command_without_a_name_or_too_long_for_a_request_is_refused() {
        let failure = exec_request(&parse(&["--", ""]), None).expect_err("no name");
        assert_eq!(failure.code, USAGE);
        let failure = exec_request(&parse(&["echo", &"x".repeat(2 << 20)]), None).expect_err("too long");
        assert_eq!(failure.code, USAGE);
    }

    #[test]
    fn an_invalid_user_is_refused() {
        for bad in ["", ":", "a:", "a:b:c", "4294967295", "0:4294967295", "-1"] {
            let failure = exec_request(&parse(&[&format!("--user={bad}"), "true"]), None).expect_err("refused");
            assert_eq!(failure.code, USAGE, "{bad}");
        }
        for good in ["root", "0", "job:team", ":5", "1000:1000"] {
            exec_request(&parse(&["-u", good, "true"]), None).expect("a user");
        }
    }

    #[test]
    fn only_files_and_directories_are_copied_in() {
        let folder = tempfile::tempdir().expect("a folder");
        let (socket, link) = (folder.path().join("socket"), folder.path().join("link"));
        let _socket = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        std::os::unix::fs::symlink("nowhere", &link).expect("a link");
        for bad in [socket, link, "/dev/null".into()] {
            let failure = copy_in(&format!("{}:/x", bad.display()).into()).expect_err("refused");
            assert!(failure.message().contains(bad.to_str().expect("UTF-8")), "{}", failure.message());
        }
    }

    #[test]
    fn an_output_that_is_not_writable_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let (socket, link) = (folder.path().join("socket"), folder.path().join("link"));
        let _socket = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        std::os::unix::fs::symlink("nowhere", &link).expect("a link");
        for bad in [socket, link, folder.path().join("no/folder")] {
            let failure = copy_out(&format!("/x:{}", bad.display()).into(), false).expect_err("refused");
            assert_eq!(failure.code, USAGE, "{}", failure.message());
        }
        for fine in ["-", "/dev/stdout", "/dev/stderr", "/dev/null"] {
            copy_out(&format!("/x:{fine}").into(), false).expect(fine);
        }
        assert!(copy_out(&"/x:-".into(), true).expect_err("stdout is taken").message().contains("--json"));
    }

    #[test]
    fn copies_need_both_sides() {
        for bad in ["", ":", "a:", ":b", "a"] {
            assert!(copy_out(&bad.into(), false).is_err(), "{bad}");
        }
        assert!(copy_in(&"/surely/not/here:/x".into()).is_err());
        let copy = copy_out(&"/a:b:./c".into(), false).expect("the last colon splits");
        assert_eq!(copy, Copy { host: "./c".into(), guest: "/a:b".into() });
    }

    #[test]
    fn refusals_read_like_this() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::os::unix::fs::symlink("nowhere", path("link")).expect("a link");
        std::fs::write(path("vars"), "A=1\n=x\n").expect("written");
        let exec = |words: &[&str]| exec_request(&parse(words), None).err();
        let into = |given: &str| copy_in(&given.into()).err();
        let out = |given: &str, json| copy_out(&given.into(), json).err();
        let refusals = [
            exec(&["--", ""]),
            exec(&["--user=a:b:c", "true"]),
            exec(&["-e", "=x", "true"]),
            exec(&["-e", "KILN_TEST_SURELY_NOT_SET", "true"]),
            exec(&["--env-file", &path("missing"), "true"]),
            exec(&["--env-file", &path("vars"), "true"]),
            exec(&["echo", &"x".repeat(2 << 20)]),
            into("a"),
            into(&format!("{}:/x", path("missing"))),
            into("/dev/null:/x"),
            out("a:", false),
            out(&format!("/x:{}", path("no/file")), false),
            out(&format!("/x:{}", path("link")), false),
            out("/x:-", true),
        ];
        let lines = refusals.map(|failure| {
            let failure = failure.expect("refused");
            assert_eq!(failure.code, USAGE);
            format!("{}\n  hint: {}\n", failure.message(), failure.hint_text().unwrap_or("-"))
        });
        insta::assert_snapshot!(lines.concat().replace(&path(""), "FOLDER/"));
    }
}
