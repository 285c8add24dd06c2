//! Finds the guest agent's binary.

use camino::Utf8PathBuf;
use kiln_engine::host::is_static;

use crate::failure::{Failure, HOST};

/// Paths of the agent, relative to `kiln`'s directory: in an installation, then in a build tree.
const PLACES: [&str; 3] = ["kiln-agent", "../lib/kiln/kiln-agent", "../x86_64-unknown-linux-gnu/agent/kiln-agent"];

/// The agent's binary: `given` if there is one, else the agent that belongs to this `kiln`.
pub fn find(given: Option<Utf8PathBuf>) -> Result<Utf8PathBuf, Failure> {
    if let Some(path) = given {
        return if path.is_file() {
            Ok(path)
        } else {
            Err(Failure::words(HOST, format!("the agent `{path}` is not a file")))
        };
    }
    beside_kiln().ok_or_else(|| {
        Failure::words(HOST, "no guest agent was found next to kiln")
            .hint("build the agent with make build, or set its path with --agent or KILN_AGENT")
    })
}

/// The agent that belongs to this `kiln`, if it exists.
pub fn beside_kiln() -> Option<Utf8PathBuf> {
    if let Some(given) = std::env::var_os("KILN_AGENT") {
        return Utf8PathBuf::from_os_string(given).ok().filter(|path| path.is_file());
    }
    let kiln = Utf8PathBuf::from_path_buf(std::env::current_exe().ok()?).ok()?;
    let folder = kiln.parent()?;
    PLACES.iter().map(|place| folder.join(place)).find(|path| is_static(path))
}
