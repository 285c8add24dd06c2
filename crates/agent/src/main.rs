//! The `kiln-agent` program, see the library.

use std::process::ExitCode;

use kiln_agent::arguments::{self, Mode, USAGE};
use kiln_agent::{bench, heap, init, serve};

fn main() -> ExitCode {
    let pid_1 = std::process::id() == 1;
    let mode = match arguments::parse(std::env::args_os().skip(1), pid_1) {
        Ok(mode) => mode,
        Err(error) => {
            eprint!("kiln-agent: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    heap::keep_free_memory();
    let result = match mode {
        Mode::Init => init::run(),
        Mode::BesideInit { ready, upper } => init::run_beside(ready, upper),
        Mode::SocketFd(fd) => serve::socket(fd),
        Mode::Listen(listen) => serve::listen(&listen),
        Mode::SpawnBench { count, argv } => bench::spawn(count, &argv),
        Mode::TerminalBench { count, argv } => bench::terminal(count, &argv),
        Mode::Version => {
            println!("kiln-agent {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kiln-agent: {error}");
            ExitCode::FAILURE
        }
    }
}
