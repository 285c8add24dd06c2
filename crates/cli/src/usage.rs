//! A command line that is wrong, and what a command line asks for even where it is wrong.

use std::ffi::{OsStr, OsString};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, CommandFactory as _};

use crate::args::{Args, docker};
use crate::failure::{Failure, USAGE};
use crate::output::say;

/// Whether `--json` is on the command line, as a flag of kiln and not of the command that it runs. Found without parsing,
/// since a program that asked for JSON gets it for a line that can't be parsed too.
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
            // What follows the first word of a guest's command is the command's.
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

/// Answers a line that clap did not take: help and version are printed and end kiln, everything else is a failure.
pub fn refused(error: &clap::Error, words: &[OsString], json: bool) -> Result<u8, Failure> {
    if !error.use_stderr() {
        // A reader that went away is no failure.
        let _ = error.print();
        std::process::exit(0);
    }
    if words.iter().take_while(|word| *word != "--").any(|word| is_volume(word)) {
        return Err(docker::Habit::Volume.refuse());
    }
    let habit = match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(name)) => docker::subcommand(name),
        _ => None,
    };
    if json {
        let (words, tip) = said(error);
        return Err(Failure::words(USAGE, words).maybe_hint(habit.map(str::to_owned).or(tip)));
    }
    say(error.render().ansi().to_string().trim_end());
    if let Some(habit) = habit {
        say(format_args!("\nhint: {habit}"));
    }
    Ok(USAGE)
}

/// `-v./dir:/dir`, with its value in the same word.
fn is_volume(word: &OsStr) -> bool {
    word.to_str().and_then(|word| word.strip_prefix("-v")).is_some_and(|value| value.contains(":/"))
}

/// What clap says, and its tip, each in one line without its marks.
fn said(error: &clap::Error) -> (String, Option<String>) {
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
    fn json_is_asked_for_by_a_flag_of_kiln_alone() {
        for asks in [
            "kiln run --json -- true",
            "kiln run --no-such-flag --json -- true",
            "kiln run -m lots --json true",
            "kiln run -it --name x --json true",
            "kiln run -m512 --json true",
            "kiln --json fly",
            "kiln fly --json",
            "kiln -v scan log --json",
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
            "kiln run --env --json true",
            "kiln scan -- --json",
            "kiln",
        ] {
            assert!(!wants_json(&line(does_not)), "{does_not}");
        }
    }

    #[test]
    fn a_wrong_line_is_answered_in_json_too() {
        let mut answers = String::new();
        for words in [
            "kiln --json",
            "kiln fly --json",
            "kiln ps --json",
            "kiln run --json",
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
            let failure = refused(&error, &words, wants_json(&words)).expect_err("in JSON it is a failure");
            assert_eq!(failure.code, USAGE);
            let hint = failure.hint_words().unwrap_or("-");
            writeln!(answers, "{words:?}\n  {}\n  hint: {hint}", failure.message()).expect("a string takes everything");
        }
        insta::assert_snapshot!(answers);
    }
}
