//! Docker's flags and subcommands, which users type out of habit: accepted if Kiln has the same, else refused with the
//! command to use instead.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args as ClapArgs;
use kiln_oci::Signal;

use super::publish::Publish;
use crate::failure::{Failure, USAGE};

/// Flags of `docker run` in `kiln run`.
#[derive(Debug, Default, ClapArgs)]
pub struct DockerArgs {
    /// No effect: `kiln run` always removes its VM
    #[arg(long, hide_short_help = true)]
    pub rm: bool,
    /// Set variables from a file: NAME=VALUE, NAME (this shell's value) or a # comment on each line; --env wins
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub env_file: Vec<PathBuf>,
    /// Host name in the guest [default: kiln-ID]
    #[arg(long, value_name = "NAME", value_parser = parse_hostname, hide_short_help = true)]
    pub hostname: Option<String>,
    /// Name the run; shown only in --json
    #[arg(long, value_name = "NAME", value_parser = parse_name, hide_short_help = true)]
    pub name: Option<String>,
    /// Signal that ends the command, by name or number [default: the image's]
    ///
    /// The command gets it when kiln gets Ctrl-C, SIGTERM or SIGHUP, or when the run times out, and SIGKILL after
    /// --grace. Without it, and if the image has none, the command gets the signal that kiln got, and SIGTERM when the
    /// run times out.
    #[arg(long, value_name = "SIGNAL", hide_short_help = true)]
    pub stop_signal: Option<Signal>,
    /// Label the run; shown only in --json
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = parse_label, hide_short_help = true)]
    pub labels: Vec<(String, String)>,
    /// Let a port of this host lead to a port of the guest: [ADDRESS:]HOST:GUEST
    ///
    /// Without ADDRESS only programs of this host can connect. Without HOST a free port is chosen and printed on stderr.
    /// No network is needed: connections go through the guest's agent to its localhost.
    #[arg(short, long, value_name = "PORTS")]
    pub publish: Vec<Publish>,
    #[command(flatten)]
    refused: RefusedArgs,
}

/// Flags that Kiln does not support yet. They are hidden, and refused with a hint.
#[derive(Debug, Default, ClapArgs)]
struct RefusedArgs {
    #[arg(long, hide = true)]
    mount: Vec<OsString>,
    #[arg(short = 'P', long, hide = true)]
    publish_all: bool,
    #[arg(short, long, hide = true)]
    detach: bool,
    #[arg(long, hide = true)]
    privileged: bool,
    #[arg(long, hide = true)]
    restart: Option<OsString>,
    #[arg(long, hide = true)]
    init: bool,
    #[arg(long, hide = true)]
    cap_add: Vec<OsString>,
    #[arg(long, hide = true)]
    cap_drop: Vec<OsString>,
    #[arg(long, hide = true)]
    security_opt: Vec<OsString>,
    #[arg(long, hide = true)]
    read_only: bool,
    #[arg(long, hide = true)]
    tmpfs: Vec<OsString>,
    #[arg(long, hide = true)]
    shm_size: Option<OsString>,
    #[arg(long, hide = true)]
    ulimit: Vec<OsString>,
    #[arg(long, hide = true)]
    pids_limit: Option<OsString>,
    #[arg(long, hide = true)]
    device: Vec<OsString>,
    #[arg(long, hide = true)]
    gpus: Option<OsString>,
    #[arg(long, hide = true)]
    add_host: Vec<OsString>,
    #[arg(long, hide = true)]
    dns: Vec<OsString>,
    #[arg(long, hide = true)]
    link: Vec<OsString>,
    #[arg(long, hide = true)]
    platform: Option<OsString>,
    #[arg(long, hide = true)]
    volumes_from: Vec<OsString>,
}

impl DockerArgs {
    /// Refuses the flags that are not supported yet.
    pub fn check(&self) -> Result<(), Failure> {
        let RefusedArgs { mount, publish_all, detach, privileged, restart, init, .. } = &self.refused;
        let RefusedArgs { cap_add, cap_drop, security_opt, read_only, tmpfs, shm_size, ulimit, .. } = &self.refused;
        let RefusedArgs { pids_limit, device, gpus, add_host, dns, link, platform, volumes_from, .. } = &self.refused;
        let given = [
            (*init, Habit::Init),
            (!cap_add.is_empty() || !cap_drop.is_empty() || !security_opt.is_empty(), Habit::Capabilities),
            (*read_only, Habit::ReadOnly),
            (!tmpfs.is_empty() || shm_size.is_some(), Habit::Tmpfs),
            (!ulimit.is_empty() || pids_limit.is_some(), Habit::Ulimit),
            (!device.is_empty() || gpus.is_some(), Habit::Device),
            (!add_host.is_empty() || !dns.is_empty() || !link.is_empty(), Habit::Names),
            (platform.as_deref().is_some_and(|platform| platform != "linux/amd64"), Habit::Platform),
            (!volumes_from.is_empty(), Habit::VolumesFrom),
            (!mount.is_empty(), Habit::Mount),
            (*publish_all, Habit::PublishAll),
            (*detach, Habit::Detach),
            (*privileged, Habit::Privileged),
            (restart.as_deref().is_some_and(|policy| policy != "no"), Habit::Restart),
        ];
        given.into_iter().find(|(is_given, _)| *is_given).map_or(Ok(()), |(_, habit)| Err(habit.refuse()))
    }
}

/// A flag of Docker's that Kiln does not support yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    Mount,
    PublishAll,
    Detach,
    Privileged,
    Restart,
    Init,
    Capabilities,
    ReadOnly,
    Tmpfs,
    Ulimit,
    Device,
    Names,
    Platform,
    VolumesFrom,
}

impl Habit {
    /// The error, and a hint with what to use instead.
    pub fn refuse(self) -> Failure {
        let (words, hint) = match self {
            Self::Mount => (
                "--mount: volumes are given with -v",
                "-v NAME:/DIR for a volume, --in ./DIR:/DIR for a copy of a host directory",
            ),
            Self::PublishAll => ("-P: kiln does not choose which ports to publish", "name each port: -p 8080:80"),
            Self::Detach => (
                "-d: VMs that outlive kiln are not supported yet",
                "run kiln in the background: kiln run -- COMMAND > log 2>&1 &",
            ),
            Self::Privileged => ("--privileged: the command is root in its own kernel already", "leave the flag out"),
            Self::Restart => (
                "--restart: kiln runs a command once",
                "repeat the command in the shell: until kiln run -- COMMAND; do sleep 1; done",
            ),
            Self::Init => (
                "--init: the agent of the VM is its init already, and reaps what the command leaves",
                "leave the flag out; --init-system boots the image's own init, such as systemd",
            ),
            Self::Capabilities => (
                "--cap-add, --cap-drop, --security-opt: the command has a kernel of its own, which protects the host",
                "leave the flags out; -u USER runs the command without the rights of root",
            ),
            Self::ReadOnly => (
                "--read-only: the image is never written to; changes of the root are dropped with the VM",
                "leave the flag out",
            ),
            Self::Tmpfs => (
                "--tmpfs, --shm-size: /tmp, /run, /dev/shm and all changes of the root are in memory already",
                "leave the flags out; -m gives the VM more memory",
            ),
            Self::Ulimit => (
                "--ulimit, --pids-limit: limits of the command have flags of their own",
                "--limit-pids N, --limit-memory SIZE, --limit-cpu TIME; others: -- sh -c 'ulimit -n 1024; exec COMMAND'",
            ),
            Self::Device => (
                "--device, --gpus: devices of the host can't be given to a VM",
                "-v NAME:disk gives it a disk, --vhost-user a device that another process serves",
            ),
            Self::Names => (
                "--add-host, --dns, --link: kiln answers the names of a VM",
                "--net nat --allow NAME:PORT opens a name; to add one: -- sh -c 'echo ADDRESS NAME >> /etc/hosts; exec COMMAND'",
            ),
            Self::Platform => ("--platform: VMs run programs for linux/amd64", "leave the flag out"),
            Self::VolumesFrom => ("--volumes-from: each VM names its volumes", "-v NAME:/DIR"),
        };
        Failure::words(USAGE, words).hint(hint)
    }
}

/// Subcommands of `docker`, and the Kiln command that does the same.
pub fn subcommand(name: &str) -> Option<&'static str> {
    Some(match name {
        "images" | "ls" | "list" => "kiln image ls lists images, kiln snapshot ls lists snapshots",
        "ps" | "top" | "stats" => {
            "a VM of kiln run ends with its command, so there is no list of VMs; kiln image ls lists images"
        }
        "exec" | "attach" | "start" | "create" => "kiln run -- COMMAND runs a command in a new VM",
        "sh" | "shell" => "kiln run -t -- sh",
        "cp" => "kiln run has --in HOST:GUEST and --out GUEST:HOST",
        "build" => "build it with docker or buildah, then: kiln image import FILE --name NAME",
        "rmi" => "kiln image rm NAME",
        "pull" => "kiln image pull REFERENCE",
        "load" | "import" => "kiln image import FILE --name NAME",
        "save" | "export" => "kiln image export NAME FILE",
        "inspect" | "history" => "kiln image inspect NAME, kiln image history NAME",
        "push" => "kiln image export NAME FILE writes a file that skopeo copies to a registry",
        "login" => {
            "credentials come from docker's config.json; skopeo login --authfile ~/.docker/config.json writes it"
        }
        "kill" | "stop" | "rm" => "a VM of kiln run ends with its command, or on Ctrl-C",
        "info" => "kiln doctor",
        "tag" | "rename" => "kiln image pull and import have --name; the same image can have several names",
        "logs" | "events" => "kiln run prints what its command prints; kiln run --console shows the kernel's log, too",
        "wait" | "pause" | "unpause" | "update" | "restart" => "a VM of kiln run ends with its command",
        "diff" => "kiln commit makes an image of what a VM changed: kiln commit SNAPSHOT --name NAME",
        "port" => "kiln run -p publishes ports, and prints those that it chose",
        "prune" | "system" => {
            "kiln image prune removes images without a name; kiln snapshot rm --ready what can be made again"
        }
        "compose" | "buildx" | "search" | "swarm" => "kiln has no counterpart; kiln run IMAGE runs one image",
        "network" => "kiln net ls lists the networks of VMs; kiln run --net connects one",
        _ => return None,
    })
}

/// A host name that the agent accepts.
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

/// A name that Docker accepts.
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

    use clap::Parser as _;

    use super::*;
    use crate::args::{Args, Command};

    /// The flags of docker in a line of `kiln run`.
    fn parse(line: &str) -> DockerArgs {
        let words = ["kiln", "run"].into_iter().chain(line.split(' '));
        match Args::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}")).command {
            Command::Run(args) => args.docker,
            other => panic!("not run: {other:?}"),
        }
    }

    #[test]
    fn every_unsupported_flag_has_a_hint() {
        let mut answers = String::new();
        let refused = [
            "--mount x",
            "-P",
            "-d",
            "--privileged",
            "--restart always",
            "--init",
            "--cap-add ALL",
            "--cap-drop ALL",
            "--security-opt x",
            "--read-only",
            "--tmpfs /x",
            "--shm-size 1g",
            "--ulimit x",
            "--pids-limit 9",
            "--device /dev/x",
            "--gpus all",
            "--add-host a:b",
            "--dns 1.1.1.1",
            "--link x",
            "--platform linux/arm64",
            "--volumes-from x",
        ];
        for line in refused {
            let docker = parse(&format!("{line} IMAGE:1"));
            let failure = docker.check().expect_err(line);
            assert_eq!(failure.code, USAGE);
            let hint = failure.hint_text().expect("every refusal has a hint");
            writeln!(answers, "{line}\n  {}\n  hint: {hint}", failure.message())
                .expect("writing to a string does not fail");
        }
        insta::assert_snapshot!(answers);
        for fine in
            ["--rm -it", "--restart no", "--platform linux/amd64", "--name n --hostname h -l a=b -e A=b -w /x -u 1"]
        {
            parse(&format!("{fine} IMAGE:1 COMMAND")).check().expect(fine);
        }
    }

    #[test]
    fn every_subcommand_of_docker_has_a_hint() {
        let names = [
            "images", "ps", "exec", "sh", "cp", "build", "rmi", "pull", "kill", "info", "tag", "logs", "wait", "diff",
            "port", "system", "compose",
        ];
        let hints = names.map(|name| format!("{name}\n  hint: {}", subcommand(name).expect("a hint")));
        insta::assert_snapshot!(hints.join("\n"));
        assert_eq!(subcommand("fly"), None);
    }

    #[test]
    fn host_names_names_and_labels_are_checked() {
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
