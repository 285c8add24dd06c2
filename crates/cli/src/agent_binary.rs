//! Where the guest agent's binary is.

use camino::Utf8PathBuf;
use kiln_engine::host::is_static;

use crate::failure::{Failure, HOST};

/// Places beside `kiln` where its agent may be: an installation, then a build tree.
const PLACES: [&str; 3] = ["kiln-agent", "../lib/kiln/kiln-agent", "../x86_64-unknown-linux-gnu/agent/kiln-agent"];

/// The agent's binary: the one given, else the one that belongs to this `kiln`.
pub fn find(given: Option<Utf8PathBuf>) -> Result<Utf8PathBuf, Failure> {
    if let Some(path) = given {
        return if path.is_file() {
            Ok(path)
        } else {
            Err(Failure::words(HOST, format!("no agent binary at `{path}`")))
        };
    }
    beside_kiln().ok_or_else(|| {
        Failure::words(HOST, "no guest agent beside kiln")
            .hint("build it with `make build`, or name it with --agent or KILN_AGENT")
    })
}

/// The agent that belongs to this `kiln`, if it is where one is expected.
pub fn beside_kiln() -> Option<Utf8PathBuf> {
    if let Some(given) = std::env::var_os("KILN_AGENT") {
        return Utf8PathBuf::from_os_string(given).ok().filter(|path| path.is_file());
    }
    let kiln = Utf8PathBuf::from_path_buf(std::env::current_exe().ok()?).ok()?;
    let folder = kiln.parent()?;
    PLACES.iter().map(|place| folder.join(place)).find(|path| is_static(path))
}
