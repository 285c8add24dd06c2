//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::init::BESIDE_INIT;

/// The mode in which the agent runs.
#[derive(Debug, PartialEq, Eq)]
pub enum Mode {
    /// PID 1 of a guest.
    Init,
    /// Serves a guest beside its init: PID 1 starts the agent so. With two descriptors that PID 1 has opened.
    BesideInit {
        /// Where PID 1 waits until the agent is ready.
        ready: i32,
        /// The upper layer of the root.
        upper: i32,
    },
    /// Serves one link on an inherited, connected Unix stream socket, then exits.
    SocketFd(i32),
    /// Serves a Unix socket. A newer link replaces the older one.
    Listen(Listen),
    /// Times `count` × fork + exec + wait of `argv`.
    SpawnBench {
        /// Number of runs.
        count: usize,
        /// Program and arguments.
        argv: Vec<OsString>,
    },
    /// Times `count` × `argv` on a terminal.
    TerminalBench {
        /// Number of runs.
        count: usize,
        /// Program and arguments.
        argv: Vec<OsString>,
    },
    /// Prints the version.
    Version,
}

/// The options of a Unix socket.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listen {
    /// Path of the socket, which is created.
    pub path: PathBuf,
    /// A file with the token that hosts must send.
    pub token_file: Option<PathBuf>,
    /// A directory, if the agent stands in for a guest, see [`Setup`](crate::agent::Setup).
    pub stand_in: Option<PathBuf>,
}

/// An invalid command line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// No mode was given and this is not PID 1.
    #[error("no mode given")]
    NoMode,
    /// An argument that is unknown or is given twice.
    #[error("unknown argument `{0}`")]
    Unknown(String),
    /// An option without its value.
    #[error("`{0}` needs a value")]
    MissingValue(&'static str),
    /// An option whose value is not a number.
    #[error("`{option}` needs a number, not `{value}`")]
    NotANumber {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
    },
    /// A bench without a command.
    #[error("`{0}` needs a command after `--`")]
    NoCommand(&'static str),
}

/// One screen of help.
pub const USAGE: &str = "usage: kiln-agent --socket-fd N
       kiln-agent --listen PATH [--token-file FILE] [--stand-in DIRECTORY]
       kiln-agent --spawn-bench N -- COMMAND [ARGUMENT]...
       kiln-agent --terminal-bench N -- COMMAND [ARGUMENT]...
       kiln-agent --version
As PID 1 it takes no arguments and serves the virtio-serial port `kiln.agent.0`. PID 1 starts it with `--beside-init`.
";

/// Parses the arguments after the program's name.
///
/// # Errors
/// If the arguments are not in the form of [`USAGE`].
pub fn parse(arguments: impl IntoIterator<Item = OsString>, pid_1: bool) -> Result<Mode, UsageError> {
    // The kernel passes unknown words of its command line to PID 1 as arguments.
    if pid_1 {
        return Ok(Mode::Init);
    }
    let mut rest = arguments.into_iter();
    let first = rest.next().ok_or(UsageError::NoMode)?;
    match first.to_str() {
        Some("--version") => Ok(Mode::Version),
        Some(BESIDE_INIT) => {
            Ok(Mode::BesideInit { ready: number(BESIDE_INIT, rest.next())?, upper: number(BESIDE_INIT, rest.next())? })
        }
        Some("--socket-fd") => Ok(Mode::SocketFd(number("--socket-fd", rest.next())?)),
        Some("--listen") => {
            let mut listen =
                Listen { path: rest.next().ok_or(UsageError::MissingValue("--listen"))?.into(), ..Listen::default() };
            while let Some(option) = rest.next() {
                let (name, place) = match option.to_str() {
                    Some("--token-file") => ("--token-file", &mut listen.token_file),
                    Some("--stand-in") => ("--stand-in", &mut listen.stand_in),
                    _ => return Err(unknown(&option)),
                };
                match place.replace(rest.next().ok_or(UsageError::MissingValue(name))?.into()) {
                    None => {}
                    Some(_) => return Err(unknown(&option)),
                }
            }
            Ok(Mode::Listen(listen))
        }
        Some("--spawn-bench") => {
            let (count, argv) = count_and_command("--spawn-bench", rest)?;
            Ok(Mode::SpawnBench { count, argv })
        }
        Some("--terminal-bench") => {
            let (count, argv) = count_and_command("--terminal-bench", rest)?;
            Ok(Mode::TerminalBench { count, argv })
        }
        _ => Err(unknown(&first)),
    }
}

fn count_and_command(
    option: &'static str,
    mut rest: impl Iterator<Item = OsString>,
) -> Result<(usize, Vec<OsString>), UsageError> {
    let count = number(option, rest.next())?;
    match rest.next() {
        Some(dashes) if dashes == "--" => {}
        Some(other) => return Err(unknown(&other)),
        None => return Err(UsageError::NoCommand(option)),
    }
    let argv: Vec<OsString> = rest.collect();
    if argv.is_empty() { Err(UsageError::NoCommand(option)) } else { Ok((count, argv)) }
}

fn number<T: std::str::FromStr>(option: &'static str, value: Option<OsString>) -> Result<T, UsageError> {
    let value = value.ok_or(UsageError::MissingValue(option))?;
    let text = value.to_string_lossy();
    text.parse().map_err(|_| UsageError::NotANumber { option, value: text.into_owned() })
}

fn unknown(argument: &OsString) -> UsageError {
    UsageError::Unknown(argument.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Result<Mode, UsageError> {
        parse(words.iter().map(OsString::from), false)
    }

    #[test]
    fn each_mode_is_read() {
        assert_eq!(of(&["--version"]), Ok(Mode::Version));
        assert_eq!(of(&["--socket-fd", "7"]), Ok(Mode::SocketFd(7)));
        let plain = || Listen { path: "/s".into(), ..Listen::default() };
        assert_eq!(of(&["--listen", "/s"]), Ok(Mode::Listen(plain())));
        let all = Listen { token_file: Some("/t".into()), stand_in: Some("/g".into()), ..plain() };
        assert_eq!(of(&["--listen", "/s", "--stand-in", "/g", "--token-file", "/t"]), Ok(Mode::Listen(all)));
        assert_eq!(
            of(&["--spawn-bench", "3", "--", "true"]),
            Ok(Mode::SpawnBench { count: 3, argv: vec!["true".into()] })
        );
        assert_eq!(
            of(&["--terminal-bench", "1", "--", "seq", "9"]),
            Ok(Mode::TerminalBench { count: 1, argv: vec!["seq".into(), "9".into()] })
        );
    }

    #[test]
    fn pid_1_ignores_its_arguments() {
        assert_eq!(parse(["panic_on_x".into()], true), Ok(Mode::Init));
    }

    #[test]
    fn errors_name_the_argument() {
        assert_eq!(of(&[]), Err(UsageError::NoMode));
        assert_eq!(of(&["--nope"]), Err(UsageError::Unknown("--nope".into())));
        assert_eq!(of(&["--listen"]), Err(UsageError::MissingValue("--listen")));
        assert_eq!(of(&["--listen", "/s", "--stand-in"]), Err(UsageError::MissingValue("--stand-in")));
        let twice = ["--listen", "/s", "--stand-in", "/g", "--stand-in", "/h"];
        assert_eq!(of(&twice), Err(UsageError::Unknown("--stand-in".into())));
        assert_eq!(of(&["--spawn-bench", "3"]), Err(UsageError::NoCommand("--spawn-bench")));
        assert_eq!(of(&["--terminal-bench", "3", "--"]), Err(UsageError::NoCommand("--terminal-bench")));
        assert_eq!(of(&["--socket-fd", "x"]), Err(UsageError::NotANumber { option: "--socket-fd", value: "x".into() }));
    }

    #[test]
    fn errors_and_usage_read_like_this() {
        let wrong: [&[&str]; 7] = [
            &[],
            &["--nope"],
            &["--listen"],
            &["--listen", "/s", "--token-file"],
            &["--socket-fd", "x"],
            &["--spawn-bench", "3"],
            &["--terminal-bench", "3", "--"],
        ];
        let errors: Vec<String> =
            wrong.iter().map(|words| of(words).expect_err("these are wrong").to_string()).collect();
        insta::assert_snapshot!(format!("{}\n\n{USAGE}", errors.join("\n")), @"
        no mode given
        unknown argument `--nope`
        `--listen` needs a value
        `--token-file` needs a value
        `--socket-fd` needs a number, not `x`
        `--spawn-bench` needs a command after `--`
        `--terminal-bench` needs a command after `--`

        usage: kiln-agent --socket-fd N
               kiln-agent --listen PATH [--token-file FILE] [--stand-in DIRECTORY]
               kiln-agent --spawn-bench N -- COMMAND [ARGUMENT]...
               kiln-agent --terminal-bench N -- COMMAND [ARGUMENT]...
               kiln-agent --version
        As PID 1 it takes no arguments and serves the virtio-serial port `kiln.agent.0`. PID 1 starts it with `--beside-init`.
        ");
    }
}
