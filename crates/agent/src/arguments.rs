//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

/// What the agent was asked to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Mode {
    /// PID 1 of a guest.
    Init,
    /// Serves one link on an inherited, connected Unix stream socket, then ends.
    SocketFd(i32),
    /// Serves a Unix socket; a newer link replaces the older one.
    Listen(Listen),
    /// Times `count` × fork + exec + wait of `argv`.
    SpawnBench {
        /// How often.
        count: usize,
        /// Program and arguments.
        argv: Vec<OsString>,
    },
    /// Times `count` × `argv` on a terminal.
    TerminalBench {
        /// How often.
        count: usize,
        /// Program and arguments.
        argv: Vec<OsString>,
    },
    /// Prints the version.
    Version,
}

/// What a served Unix socket is for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listen {
    /// Where the socket is made.
    pub path: PathBuf,
    /// Holds the token that links must show.
    pub token_file: Option<PathBuf>,
    /// The agent stands in for a guest whose files are in here, see [`Setup`](crate::agent::Setup).
    pub stand_in: Option<PathBuf>,
}

/// A command line that means nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// No mode was given and this is not PID 1.
    #[error("no mode given")]
    NoMode,
    /// Nothing that is known.
    #[error("unknown argument `{0}`")]
    Unknown(String),
    /// An option without its value.
    #[error("`{0}` needs a value")]
    MissingValue(&'static str),
    /// An option whose value is no number.
    #[error("`{option}` needs a number, not `{value}`")]
    NotANumber {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
    },
    /// Nothing to run.
    #[error("`{0}` needs a command after `--`")]
    NoCommand(&'static str),
}

/// One screen of help.
pub const USAGE: &str = "usage: kiln-agent --socket-fd N
       kiln-agent --listen PATH [--token-file FILE] [--stand-in DIRECTORY]
       kiln-agent --spawn-bench N -- COMMAND [ARGUMENT]...
       kiln-agent --terminal-bench N -- COMMAND [ARGUMENT]...
       kiln-agent --version
As PID 1 it takes no arguments and serves the virtio-serial port `kiln.agent.0`.
";

/// Reads the arguments after the program's name.
///
/// # Errors
/// Arguments that mean nothing; see [`USAGE`].
pub fn parse(arguments: impl IntoIterator<Item = OsString>, pid_1: bool) -> Result<Mode, UsageError> {
    // The kernel passes words of its command line that it does not know to PID 1.
    if pid_1 {
        return Ok(Mode::Init);
    }
    let mut rest = arguments.into_iter();
    let first = rest.next().ok_or(UsageError::NoMode)?;
    match first.to_str() {
        Some("--version") => Ok(Mode::Version),
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
    fn pid_1_ignores_what_the_kernel_passes_on() {
        assert_eq!(parse(["panic_on_x".into()], true), Ok(Mode::Init));
    }

    #[test]
    fn mistakes_are_named() {
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
}
