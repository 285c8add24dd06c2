//! The file that holds a VM's spec.

use std::io;

use camino::Utf8Path;

use crate::files::plain_file;
use crate::spec::VmSpec;

/// Name of the file that holds the spec.
pub(crate) const SPEC_FILE: &str = "spec.json";
/// The longest spec that is read. The longest valid spec is much shorter.
const SPEC_BYTES_MAX: u64 = 1 << 20;

/// Reads the spec of the VM in this directory.
pub(crate) fn read_spec(path: &Utf8Path) -> io::Result<VmSpec> {
    Ok(serde_json::from_slice(&plain_file::read(&path.join(SPEC_FILE), SPEC_BYTES_MAX)?)?)
}
