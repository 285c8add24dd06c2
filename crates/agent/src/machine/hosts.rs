//! The guest's own name in `/etc/hosts`, so that it can be resolved without a name server.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};

const HOSTS: &str = "/etc/hosts";
/// The address for a name that the file doesn't have yet. Debian uses the same, so that 127.0.0.1 is only `localhost`.
const OWN_ADDRESS: &str = "127.0.1.1";
/// The other lines of a new file.
const LOCALHOST: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
/// The name that every machine has. It is never replaced.
const SHARED_NAME: &str = "localhost";
/// A longer file is a list of the user's and is not changed.
const BYTES_MAX: u64 = 1 << 20;

/// Replaces the name `old` by `new`, or adds `new`.
///
/// # Errors
/// If the file can't be read or written, or is not an ordinary file.
pub fn rename(old: &str, new: &str) -> io::Result<()> {
    // With O_NONBLOCK, opening a FIFO doesn't wait for its other side.
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o644).custom_flags(libc::O_NONBLOCK);
    let mut file = options.open(HOSTS)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not an ordinary file"));
    }
    let mut text = Vec::new();
    (&mut file).take(BYTES_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > BYTES_MAX {
        return Err(io::Error::other(format!("it has more than {BYTES_MAX} bytes")));
    }
    let text = String::from_utf8(text).map_err(io::Error::other)?;
    if let Some(changed) = renamed(&text, old, new) {
        file.write_all_at(changed.as_bytes(), 0)?;
        if changed.len() < text.len() {
            file.set_len(changed.len() as u64)?;
        }
    }
    Ok(())
}

/// The new content of the file, or `None` if it needs no change.
fn renamed(text: &str, old: &str, new: &str) -> Option<String> {
    let is_named = |text: &str, name: &str| text.lines().any(|line| names(line).any(|word| word == name));
    if old != new && old != SHARED_NAME && is_named(text, old) {
        return Some(text.split_inclusive('\n').map(|line| rename_in(line, old, new)).collect());
    }
    if is_named(text, new) {
        return None;
    }
    let before = if text.trim().is_empty() { LOCALHOST } else { text };
    let end = if before.ends_with('\n') { "" } else { "\n" };
    Some(format!("{before}{end}{OWN_ADDRESS}\t{new}\n"))
}

/// The names that a line gives to its address.
fn names(line: &str) -> impl Iterator<Item = &str> {
    line.split('#').next().unwrap_or_default().split_whitespace().skip(1)
}

fn rename_in(line: &str, old: &str, new: &str) -> String {
    if !names(line).any(|name| name == old) {
        return line.into();
    }
    let (entry, comment) = line.find('#').map_or((line, ""), |at| line.split_at(at));
    let mut words = entry.split_whitespace();
    let address = words.next().unwrap_or_default();
    let names: Vec<_> = words.map(|name| if name == old { new } else { name }).collect();
    let end = if comment.is_empty() { "\n".into() } else { format!("\t{comment}") };
    format!("{address}\t{}{end}", names.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_old_name_is_replaced() {
        let text = "# mine\n127.0.0.1\tlocalhost\n127.0.1.1  kiln  alias # kiln's own\n10.0.0.1 kiln.example\n\n";
        let expected = "# mine\n127.0.0.1\tlocalhost\n127.0.1.1\tfork-1 alias\t# kiln's own\n10.0.0.1 kiln.example\n\n";
        assert_eq!(renamed(text, "kiln", "fork-1").as_deref(), Some(expected));
        assert_eq!(renamed(expected, "fork-1", "fork-1"), None);
    }

    #[test]
    fn a_missing_name_is_added_at_the_end() {
        let text = "127.0.0.1 localhost\n192.168.0.7 other";
        let expected = "127.0.0.1 localhost\n192.168.0.7 other\n127.0.1.1\tfork-1\n";
        assert_eq!(renamed(text, "kiln", "fork-1").as_deref(), Some(expected));
        let made = renamed("", "kiln", "fork-1").expect("is written");
        assert!(made.contains("127.0.0.1\tlocalhost\n") && made.ends_with("127.0.1.1\tfork-1\n"), "{made}");
    }

    #[test]
    fn localhost_is_not_replaced() {
        let text = "127.0.0.1 localhost\n::1 localhost\n";
        let changed = renamed(text, "localhost", "fork-1").expect("is added");
        assert_eq!(changed, format!("{text}127.0.1.1\tfork-1\n"));
        assert_eq!(renamed(text, "kiln", "localhost"), None);
    }
}
