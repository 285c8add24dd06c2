//! The program inside the guest: see the library's page for what it does.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;

use kiln_e2e_guest::{disk, vsock};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> io::Result<()> {
    match words {
        ["disk", device, blocks, passes, depth] => {
            let report = |pass, step| println!("at {pass} {step}");
            let done = disk::load(Path::new(device), number(blocks)?, number(passes)?, number(depth)?, &report)?;
            println!("done {} writes {} reads longest {:?}", done.writes, done.reads, done.longest);
            Ok(())
        }
        ["vsock-serve", port, connections] => {
            let echoed = vsock::serve(number(port)?, number(connections)?, &|| println!("listening"))?;
            println!("echoed {echoed} times");
            Ok(())
        }
        ["vsock-call", port, bytes, rounds] => {
            vsock::call(number(port)?, number(bytes)?, number(rounds)?)?;
            println!("all came back");
            Ok(())
        }
        ["whoami"] => {
            let directory = std::env::current_dir()?;
            // The directory of a process belongs to its user.
            let own = std::fs::metadata("/proc/self")?;
            println!("uid {} gid {} in {}", own.uid(), own.gid(), directory.display());
            Ok(())
        }
        ["write", file] => std::fs::write(file, "written\n"),
        _ => Err(io::Error::other("no such command")),
    }
}

fn number<T: FromStr>(word: &str) -> io::Result<T> {
    word.parse().map_err(|_| io::Error::other(format!("`{word}` is not a number")))
}
