//! Snapshots of the help that users read: `-h`, then `--help`, of every command.

use clap::{Command, CommandFactory as _};

use super::Args;

/// The help of a command and of its subcommands, each with the words that are typed for it.
fn pages(command: &mut Command, words: &str) -> Vec<(String, String)> {
    let page = format!("{words} -h\n\n{}\n{words} --help\n\n{}", command.render_help(), command.render_long_help());
    let mut pages = vec![(words.to_owned(), page)];
    for subcommand in command.get_subcommands_mut().filter(|subcommand| subcommand.get_name() != "help") {
        let words = format!("{words} {}", subcommand.get_name());
        pages.extend(self::pages(subcommand, &words));
    }
    pages
}

/// The help shows the values of `$KILN_IMAGE` and the like, which differ from one test run to the next.
fn without_values(command: Command) -> Command {
    command.mut_args(|arg| arg.hide_env_values(true)).mut_subcommands(without_values)
}

#[test]
fn every_command_has_its_help() {
    let mut command = without_values(Args::command());
    command.build();
    for (words, page) in pages(&mut command, "kiln") {
        insta::assert_snapshot!(words.replace(' ', "_"), page);
    }
}
