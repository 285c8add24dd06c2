//! Shell completion and man pages, generated from the definition of the command line.

use std::io::{self, ErrorKind, Write as _};

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::args::{Args, CompletionArgs, ManArgs, VersionArgs};
use crate::failure::Failure;
use crate::output::{print, print_json, say};

/// Prints a shell's completion script.
pub fn completion(args: &CompletionArgs) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "kiln", &mut script);
    written(&script)
}

/// Prints the man page of `kiln`, or writes the pages of all commands to a directory.
pub fn man(args: &ManArgs) -> Result<u8, Failure> {
    let Some(folder) = &args.folder else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Args::command()).render(&mut page)?;
        return written(&page);
    };
    fs_err::create_dir_all(folder)?;
    clap_mangen::generate_to(Args::command(), folder)
        .with_context(|| format!("failed to write man pages to `{folder}`"))?;
    say(format_args!("wrote man pages to `{folder}`; read them with man -l {folder}/kiln.1"));
    Ok(0)
}

/// Prints the version, as `--version` does.
pub fn version(args: &VersionArgs) -> Result<u8, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    if args.json {
        print_json(&serde_json::json!({ "version": version }))?;
    } else {
        print(format_args!("kiln {version}"))?;
    }
    Ok(0)
}

/// Writes to stdout unescaped, since roff and shell scripts have escapes of their own.
fn written(bytes: &[u8]) -> Result<u8, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("failed to write to stdout").into())
        }
        _ => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use clap_complete::Shell;

    use super::*;

    #[test]
    fn every_shell_completes_commands_and_flags() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "kiln", &mut script);
            let script = String::from_utf8(script).expect("text");
            for word in ["snapshot", "boot-timeout", "vhost", "completion"] {
                assert!(script.contains(word), "{shell} does not complete `{word}`");
            }
        }
    }

    #[test]
    fn every_command_has_a_man_page() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = camino::Utf8Path::from_path(folder.path()).expect("UTF-8").join("man1");
        man(&ManArgs { folder: Some(path.clone()) }).expect("written");
        for command in ["kiln", "kiln-run", "kiln-image-warm", "kiln-vhost-check"] {
            let page = fs_err::read_to_string(path.join(format!("{command}.1"))).expect("is there");
            assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{command}");
        }
    }
}
