//! Parses the command line, and reports a wrong one, in JSON if `--json` is given.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory as _, FromArgMatches as _};

use crate::args::{Args, docker};
use crate::failure::{Failure, USAGE};
use crate::output::say;

/// Whether `--json` is on the command line, as a flag of kiln and not of the command that it runs. Does not use the
/// parser: a program that requested JSON must get JSON also for a line that can't be parsed.
pub fn wants_json(words: &[OsString]) -> bool {
    let mut root = Args::command();
    root.build();
    let mut command = &root;
    let mut positionals = 0;
    let mut words = words.iter().skip(1);
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        if text == "--json" {
            return true;
        } else if text == "--" {
            return false;
        } else if let Some(long) = text.strip_prefix("--") {
            let takes_next =
                !long.contains('=') && command.get_arguments().any(|arg| has_long(arg, long) && takes_value(arg));
            if takes_next {
                words.next();
            }
        } else if text.len() > 1 && text.starts_with('-') {
            if value_is_next(command, &text[1..]) {
                words.next();
            }
        } else if let Some(next) = command.find_subcommand(&*text) {
            command = next;
            positionals = 0;
        } else {
            // All words after the first word of a guest's command belong to that command.
            let positional = command.get_positionals().nth(positionals);
            if positional.is_some_and(Arg::is_trailing_var_arg_set) {
                return false;
            }
            positionals += 1;
        }
    }
    false
}

fn has_long(arg: &Arg, long: &str) -> bool {
    arg.get_long() == Some(long) || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&long))
}

fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values()
}

/// Whether a cluster of short flags (`-it`, `-m512`, `-m`) ends with one whose value is the next word.
fn value_is_next(command: &Command, cluster: &str) -> bool {
    let mut flags = cluster.chars();
    while let Some(flag) = flags.next() {
        if command.get_arguments().any(|arg| arg.get_short() == Some(flag) && takes_value(arg)) {
            return flags.as_str().is_empty();
        }
    }
    false
}

/// Flags of `kiln run` that have no effect with `--from`, each with a hint.
const DECIDED_BY_SNAPSHOT: [(&str, &str); 10] = [
    ("image", DECIDED),
    ("kernel", DECIDED),
    ("all_modules", DECIDED),
    ("memory", DECIDED),
    ("cpus", DECIDED),
    ("modules", DECIDED),
    ("accel", DECIDED),
    ("init_system", DECIDED),
    ("vhost_user", "a VM with a vhost-user device can't be saved or forked: leave one of the two flags out"),
    ("cold", "--cold boots an image and --from forks a snapshot: leave one of the two flags out"),
];
const DECIDED: &str = "the snapshot decides image, kernel, memory, CPUs, acceleration and modules: leave the flag out, or create \
                       another snapshot with it (kiln snapshot create)";

/// Parses a command line. If it is wrong, returns as error what kiln exits with.
pub fn parse(words: &[OsString], json: bool) -> Result<Args, Result<u8, Failure>> {
    let mut command = Args::command();
    let matches = command.try_get_matches_from_mut(words).map_err(|error| refused(&error, json))?;
    refuse_what_a_snapshot_decides(&command, &matches).map_err(Err)?;
    Args::from_arg_matches(&matches).map_err(|error| refused(&error.format(&mut command), json))
}

/// Refuses flags that would have no effect with `--from`. Clap's own conflicts can't do this: they treat a value from
/// `$KILN_IMAGE`, which is meant for all runs, like a flag of this run.
fn refuse_what_a_snapshot_decides(command: &Command, matches: &ArgMatches) -> Result<(), Failure> {
    let (run, matches) = match matches.subcommand() {
        Some(("run", run)) => ("run", run),
        Some(("snapshot", snapshot)) => match snapshot.subcommand() {
            // It has the flags of `run`.
            Some(("create", create)) => ("run", create),
            _ => return Ok(()),
        },
        _ => return Ok(()),
    };
    let is_given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let Some((id, hint)) = DECIDED_BY_SNAPSHOT.iter().find(|(id, _)| is_given("from") && is_given(id)) else {
        return Ok(());
    };
    let flags = command.find_subcommand(run).into_iter().flat_map(Command::get_arguments);
    let flag = flags.filter(|arg| arg.get_id() == id).find_map(Arg::get_long).expect("`run` has each of these flags");
    Err(Failure::words(USAGE, format!("--from cannot be used with --{flag}")).hint(*hint))
}

/// Handles a line that clap rejected. Help and version are printed and end kiln; everything else is a failure.
fn refused(error: &clap::Error, json: bool) -> Result<u8, Failure> {
    if !error.use_stderr() {
        // A closed stdout is not a failure.
        let _ = error.print();
        std::process::exit(0);
    }
    let habit = match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(name)) => docker::subcommand(name),
        _ => None,
    };
    if json {
        let (message, tip) = message_and_tip(error);
        return Err(Failure::words(USAGE, message).maybe_hint(habit.map(str::to_owned).or(tip)));
    }
    say(error.render().ansi().to_string().trim_end());
    if let Some(habit) = habit {
        say(format_args!("\nhint: {habit}"));
    }
    Ok(USAGE)
}

/// Clap's message and tip, each on one line and without its prefix.
fn message_and_tip(error: &clap::Error) -> (String, Option<String>) {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return ("a command is missing".to_owned(), Some("kiln --help".to_owned()));
    }
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n").map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
    let first = paragraphs.next().unwrap_or_default();
    let tip = paragraphs.find_map(|paragraph| Some(paragraph.strip_prefix("tip: ")?.replace(" tip: ", "; ")));
    (first.strip_prefix("error: ").map(str::to_owned).unwrap_or(first), tip)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use clap::Parser as _;

    use super::*;

    fn line(words: &str) -> Vec<OsString> {
        words.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn only_a_json_flag_of_kiln_asks_for_json() {
        for asks in [
            "kiln run --json -- true",
            "kiln run --no-such-flag --json -- true",
            "kiln run -m lots --json true",
            "kiln run -it --name x --json true",
            "kiln run -m512 --json true",
            "kiln --json fly",
            "kiln fly --json",
            "kiln -v scan log --json",
            "kiln run -v --json --json true",
            "kiln scan -v log --json",
            "kiln image warm mini --json",
            "kiln vhost probe a.sock --json",
            "kiln image build mini --json --kernel-deb",
        ] {
            assert!(wants_json(&line(asks)), "{asks}");
        }
        for does_not in [
            "kiln run true --json",
            "kiln run -- true --json",
            "kiln run -m 512 true --json",
            "kiln run -e --json true",
            "kiln run -v --json true",
            "kiln run --env --json true",
            "kiln scan -- --json",
            "kiln",
        ] {
            assert!(!wants_json(&line(does_not)), "{does_not}");
        }
    }

    #[test]
    fn flags_that_a_snapshot_decides_are_refused_with_from() {
        let given: [(&str, &[&str]); 10] = [
            ("image", &["--image mini", "--image=other"]),
            ("kernel", &["--kernel 6.1"]),
            ("all_modules", &["--all-modules"]),
            ("memory", &["--memory 256", "-m 512", "-m512"]),
            ("cpus", &["--cpus 1", "-c 2"]),
            ("modules", &["--module tun"]),
            ("accel", &["--accel auto", "--accel tcg"]),
            ("init_system", &["--init-system"]),
            ("vhost_user", &["--vhost-user blk:/a.sock"]),
            ("cold", &["--cold"]),
        ];
        assert_eq!(given.map(|(id, _)| id), DECIDED_BY_SNAPSHOT.map(|(id, _)| id));
        for flag in given.iter().flat_map(|(_, flags)| *flags) {
            for start in ["kiln run", "kiln snapshot create name"] {
                for rest in [format!("--from x {flag} -- true"), format!("{flag} --from x -- true")] {
                    let words = line(&format!("{start} {rest}"));
                    let refused = parse(&words, false).expect_err("is refused").expect_err("is a failure");
                    let named = flag.split([' ', '=']).next().unwrap_or_default();
                    assert_eq!(refused.code, USAGE);
                    let message = refused.message();
                    assert!(message.starts_with("--from cannot be used with --"), "{message}");
                    assert!(!named.starts_with("--") || message.ends_with(named), "{message}");
                    assert!(refused.hint_text().is_some_and(|hint| hint.contains("leave")));
                }
                assert!(parse(&line(&format!("{start} {flag} -- true")), false).is_ok(), "{flag} alone");
            }
        }
        let others =
            "-t --timeout 3s --boot-timeout 9s --limit-pids 7 --hostname a --name b -l c=d --console --in /:/x";
        assert!(parse(&line(&format!("kiln run --from x {others} -- true")), false).is_ok());
        // Flags of the guest's command are not kiln's.
        assert!(parse(&line("kiln run --from x -- true --image y"), false).is_ok());
    }

    #[test]
    fn a_v_logs_more_before_run_and_is_a_volume_after_it() {
        for (words, verbose, volumes) in [
            ("kiln -v run -- true", 1, 0),
            ("kiln -vv run -v data:/x -- true", 2, 1),
            ("kiln run -v data:/x -vdata:/y:ro -- true", 0, 2),
            ("kiln run --verbose --verbose -- true", 2, 0),
            ("kiln run true -v", 0, 0),
            ("kiln doctor -v", 1, 0),
            ("kiln doctor --verbose", 1, 0),
        ] {
            let parsed = parse(&line(words), false).unwrap_or_else(|_| panic!("{words}"));
            let given = match parsed.command {
                crate::args::Command::Run(run) => run.storage.volumes.len(),
                _ => 0,
            };
            assert_eq!((parsed.verbose, given), (verbose, volumes), "{words}");
        }
    }

    #[test]
    fn a_wrong_command_line_gets_json_too() {
        let mut answers = String::new();
        for words in [
            "kiln --json",
            "kiln fly --json",
            "kiln ps --json",
            "kiln run --json --no-such-flag true",
            "kiln run --json --timeuot 3s true",
            "kiln run --json -t true",
            "kiln run --json -m lots true",
            "kiln run --json -v./a:/b true",
            "kiln image warm --json",
            "kiln scan --json",
        ] {
            let words = line(words);
            let error = Args::try_parse_from(&words).expect_err("is wrong");
            let failure = refused(&error, wants_json(&words)).expect_err("in JSON it is a failure");
            assert_eq!(failure.code, USAGE);
            let hint = failure.hint_text().unwrap_or("-");
            writeln!(answers, "{words:?}\n  {}\n  hint: {hint}", failure.message())
                .expect("writing to a string does not fail");
        }
        insta::assert_snapshot!(answers);
    }
}
