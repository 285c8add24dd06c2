//! `kiln vhost tap`: forward and record.

use std::io::IsTerminal as _;

use kiln_vdev::tap::{TapError, TapOptions, tap};

use super::failure::of_socket;
use super::stop::Stop;
use crate::args::vhost::TapArgs;
use crate::failure::Failure;
use crate::output::{plain, say};

/// Forwards until a signal, or the frontends that were to come have come.
pub fn run(args: TapArgs) -> Result<u8, Failure> {
    let stop = Stop::new()?;
    let options = TapOptions {
        listen: args.listen,
        connect: args.connect,
        record: args.record,
        bytes_max: args.limit,
        timeout: args.timeout,
        sessions_max: args.sessions,
    };
    let is_watched = std::io::stderr().is_terminal();
    let ended = tap(&options, stop.event(), &mut |words| {
        if is_watched {
            say(plain(words));
        }
    });
    let end = match ended {
        Ok(end) => end,
        Err(TapError::Socket(error)) => return Err(of_socket(&options.listen, error)),
        Err(TapError::Recorder(error)) => return Err(error.into()),
    };
    let record = options.record.display().to_string();
    say(format_args!(
        "{} sessions, {} entries in {}: kiln vhost show {}",
        end.sessions,
        end.recording.entries,
        plain(&record),
        plain(&record)
    ));
    if end.recording.is_full {
        say("the recording reached its --limit: later messages were forwarded, but not recorded");
    }
    match end.recording.failure {
        Some(failure) => Err(failure.into()),
        None => Ok(stop.code().unwrap_or(0)),
    }
}
