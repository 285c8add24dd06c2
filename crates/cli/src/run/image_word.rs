//! Finds the image in a command line like docker's: `kiln run python:3.12 python3 -V`.

use std::ffi::{OsStr, OsString};

use kiln_engine::home::Home;
use kiln_engine::image::{ImageName, ImageStore};

use crate::args::RunArgs;

/// The image of a run. If the first word of the command names it, the word is taken out of the command. `None` if
/// `--from` names a snapshot, or nothing names an image.
pub fn take(args: &mut RunArgs) -> Option<String> {
    if args.image.is_some()
        || args.from.is_some()
        || follows_dashes(&args.command, &std::env::args_os().collect::<Vec<_>>())
    {
        return args.image.clone();
    }
    let word = args.command.first()?.to_str()?;
    if !is_image(word, known) {
        return None;
    }
    let word = word.to_owned();
    args.command.remove(0);
    Some(word)
}

/// Whether `--` stands before the command. Then all of it is the command.
fn follows_dashes(command: &[OsString], words: &[OsString]) -> bool {
    let before = words.len().checked_sub(command.len() + 1).and_then(|at| words.get(at));
    before.map(OsString::as_os_str) == Some(OsStr::new("--"))
}

/// Whether the first word of a command is an image. Programs have neither a tag nor a registry, but may have a path.
fn is_image(word: &str, known: impl Fn(&ImageName) -> bool) -> bool {
    let Ok(name) = word.parse::<ImageName>() else { return word.contains("@sha256:") };
    word.contains([':', '/']) || known(&name)
}

fn known(name: &ImageName) -> bool {
    let names = Home::from_env().ok().and_then(|home| ImageStore::new(&home).names().ok());
    names.is_some_and(|names| names.contains_key(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_word_with_a_tag_or_a_registry_is_an_image_and_a_path_is_not() {
        for image in ["python:3.12", "ghcr.io/team/app", "localhost:5000/app", "here", "app@sha256:00"] {
            assert!(is_image(image, |name| name.as_str() == "here"), "{image}");
        }
        for program in ["sh", "/bin/sh", "./run.sh", "../x", "a b", "", "-x"] {
            assert!(!is_image(program, |name| name.as_str() == "here"), "{program}");
        }
    }

    #[test]
    fn all_words_after_dashes_are_the_command() {
        assert!(follows_dashes(&words("sh -c x"), &words("kiln run --rm -- sh -c x")));
        assert!(!follows_dashes(&words("sh -c x"), &words("kiln run --rm sh -c x")));
        assert!(!follows_dashes(&words("sh -- x"), &words("kiln run --rm sh -- x")));
        assert!(!follows_dashes(&[], &words("kiln run --rm")));
    }
}
