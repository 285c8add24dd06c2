//! What people type out of habit with containers: taken if it means something here, else answered with what to type.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args as ClapArgs;

use crate::failure::{Failure, USAGE};

/// Flags of `docker run` in `kiln run`.
#[derive(Debug, Default, ClapArgs)]
pub struct DockerArgs {
    /// Accepted and without effect: a VM of `kiln run` is always removed when it ends
    #[arg(long, hide_short_help = true)]
    pub rm: bool,
    /// Set the variables of a file: NAME=VALUE lines, NAME alone for this shell's value, # for comments; --env wins
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub env_file: Vec<PathBuf>,
    /// Name of the machine in the guest, instead of kiln-ID
    #[arg(long, value_name = "NAME", value_parser = parse_hostname, hide_short_help = true)]
    pub hostname: Option<String>,
    /// Give the run a name: it is in --json, nothing else depends on it
    #[arg(long, value_name = "NAME", value_parser = parse_name, hide_short_help = true)]
    pub name: Option<String>,
    /// Label the run: it is in --json, nothing else depends on it
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = parse_label, hide_short_help = true)]
    pub labels: Vec<(String, String)>,
    #[command(flatten)]
    refused: RefusedArgs,
}

/// Flags that mean nothing here yet. They are hidden, and refused with what to use.
#[derive(Debug, Default, ClapArgs)]
struct RefusedArgs {
    #[arg(long, alias = "mount", hide = true)]
    volume: Vec<OsString>,
    #[arg(short, long, hide = true)]
    publish: Vec<OsString>,
    #[arg(short = 'P', long, hide = true)]
    publish_all: bool,
    #[arg(short, long, hide = true)]
    detach: bool,
    #[arg(long, hide = true)]
    entrypoint: Option<OsString>,
    #[arg(long, alias = "net", hide = true)]
    network: Option<OsString>,
    #[arg(long, hide = true)]
    privileged: bool,
    #[arg(long, hide = true)]
    restart: Option<OsString>,
}

impl DockerArgs {
    /// Refuses what does not work yet.
    pub fn check(&self) -> Result<(), Failure> {
        let RefusedArgs { volume, publish, publish_all, detach, entrypoint, network, privileged, restart } =
            &self.refused;
        let given = [
            (!volume.is_empty(), Habit::Volume),
            (!publish.is_empty() || *publish_all, Habit::Publish),
            (*detach, Habit::Detach),
            (entrypoint.is_some(), Habit::Entrypoint),
            (network.as_deref().is_some_and(|name| name != "none"), Habit::Network),
            (*privileged, Habit::Privileged),
            (restart.as_deref().is_some_and(|policy| policy != "no"), Habit::Restart),
        ];
        given.into_iter().find(|(is_given, _)| *is_given).map_or(Ok(()), |(_, habit)| Err(habit.refuse()))
    }
}

/// A habit that does not work here yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    Volume,
    Publish,
    Detach,
    Entrypoint,
    Network,
    Privileged,
    Restart,
}

impl Habit {
    /// What comes, and what to use today.
    pub fn refuse(self) -> Failure {
        let (words, hint) = match self {
            Self::Volume => (
                "-v HOST:GUEST and --mount: volumes and directories of the host come with a later version",
                "copy with --in ./dir:/dir and --out /dir/result:./result, or share a directory that virtiofsd serves: \
                 --vhost-user fs:SOCKET,tag=NAME",
            ),
            Self::Publish => (
                "-p: ports come with networks, in a later version; there is no network in the VM",
                "pass data through stdin and stdout (-i) or files (--in, --out), or connect by a vsock device: \
                 --vhost-user vsock:SOCKET",
            ),
            Self::Detach => (
                "-d: VMs that outlive the command that started them come with a later version",
                "let the shell do it: kiln run -- COMMAND > log 2>&1 &",
            ),
            Self::Entrypoint => (
                "--entrypoint: images with an entrypoint come with a later version",
                "write the whole command: kiln run -- PROGRAM ARGUMENTS",
            ),
            Self::Network => (
                "--network: networks come with a later version; there is none in the VM, as with --network none",
                "copy what the command needs with --in, or attach a card that a backend serves: --vhost-user net:SOCKET",
            ),
            Self::Privileged => {
                ("--privileged: the command is root on a kernel of its own already", "leave the flag out")
            }
            Self::Restart => (
                "--restart: kiln runs a command once",
                "repeat it in the shell: until kiln run -- COMMAND; do sleep 1; done",
            ),
        };
        Failure::words(USAGE, words).hint(hint)
    }
}

/// Whether a command is what follows `-v` in `docker run -v HOST:GUEST`: here `-v` says more and takes no value.
pub fn is_volume(verbose: u8, command: &[OsString]) -> bool {
    let first = command.first().and_then(|word| word.to_str());
    verbose > 0 && first.is_some_and(|word| word.contains(":/"))
}

/// Subcommands of `docker`, and what does the same here.
pub fn subcommand(name: &str) -> Option<&'static str> {
    Some(match name {
        "images" | "ls" | "list" => "kiln image ls lists images, kiln snapshot ls snapshots",
        "ps" | "top" | "stats" => "a VM of kiln run lives as long as its command; kiln image ls lists images",
        "exec" | "attach" | "start" | "create" => "kiln run -- COMMAND runs a command in a VM of its own",
        "sh" | "shell" => "kiln run -t -- sh",
        "cp" => "kiln run has --in HOST:GUEST and --out GUEST:HOST",
        "build" => "kiln image build mini",
        "rmi" => "kiln image rm NAME",
        "pull" | "push" | "login" => "images of registries come with a later version; kiln image build mini makes one",
        "kill" | "stop" | "rm" => "a VM of kiln run ends with its command, or by Ctrl-C",
        "info" => "kiln doctor",
        _ => return None,
    })
}

/// What the agent takes as a host name.
fn parse_hostname(text: &str) -> Result<String, String> {
    let is_good = |label: &str| {
        let edges = !label.starts_with('-') && !label.ends_with('-');
        !label.is_empty() && edges && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if text.len() <= 64 && text.split('.').all(is_good) {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is not a host name: up to 64 letters, digits, `-` and `.`"))
    }
}

/// The names that docker takes.
fn parse_name(text: &str) -> Result<String, String> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if (1..=128).contains(&text.len()) && text.bytes().all(is_good) && text.as_bytes()[0].is_ascii_alphanumeric() {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is not a name: a letter or digit, then up to 127 letters, digits, `_`, `.` and `-`"))
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        Err("a label needs a key: write KEY=VALUE".into())
    } else {
        Ok((key.to_owned(), value.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn every_habit_is_answered_with_what_to_use() {
        let mut answers = String::new();
        for habit in [
            Habit::Volume,
            Habit::Publish,
            Habit::Detach,
            Habit::Entrypoint,
            Habit::Network,
            Habit::Privileged,
            Habit::Restart,
        ] {
            let failure = habit.refuse();
            assert_eq!(failure.code, USAGE);
            let hint = failure.hint_words().expect("every answer has one");
            writeln!(answers, "{}\n  hint: {hint}", failure.message()).expect("a string takes everything");
        }
        insta::assert_snapshot!(answers);
    }

    #[test]
    fn names_are_what_machines_and_people_take() {
        for good in ["a", "web-1", "web-1.example.org", "7"] {
            assert_eq!(parse_hostname(good).as_deref(), Ok(good));
        }
        for bad in ["", "-a", "a-", "a..b", "a b", "ü", "a_b", &"x".repeat(65)] {
            assert!(parse_hostname(bad).is_err(), "{bad}");
        }
        assert!(parse_name("web_1.x").is_ok() && parse_name("_x").is_err() && parse_name("").is_err());
        assert_eq!(parse_label("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(parse_label("a"), Ok(("a".into(), String::new())));
        assert!(parse_label("=b").is_err());
    }
}
