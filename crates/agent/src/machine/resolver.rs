//! The guest's name servers, in `/etc/resolv.conf`.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The new file before it replaces the old one.
const NEW_FILE: &str = "/etc/.resolv.conf.kiln";

/// Makes these the name servers. Does nothing if they are that already.
///
/// An image may have a symlink there, to a file of a service that does not run, such as
/// `/run/systemd/resolve/stub-resolv.conf`. So the file is replaced, not written through.
///
/// # Errors
/// If the file can't be written.
pub fn set_nameservers(servers: &[Ipv4Addr]) -> io::Result<()> {
    set(Path::new(RESOLV_CONF), Path::new(NEW_FILE), servers)
}

fn set(path: &Path, new: &Path, servers: &[Ipv4Addr]) -> io::Result<()> {
    let text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    if has_content(path, text.as_bytes()) {
        return Ok(());
    }
    // An earlier attempt may have left it.
    let _ = fs::remove_file(new);
    let mut file = File::options().write(true).create_new(true).mode(0o644).open(new)?;
    file.write_all(text.as_bytes())?;
    fs::rename(new, path)
}

/// Whether an ordinary file has exactly this content.
fn has_content(path: &Path, content: &[u8]) -> bool {
    // With O_NONBLOCK, opening a FIFO doesn't wait for its other side.
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let Ok(file) = File::options().read(true).custom_flags(flags).open(path) else { return false };
    let mut found = Vec::new();
    file.metadata().is_ok_and(|meta| meta.is_file())
        && file.take(content.len() as u64 + 1).read_to_end(&mut found).is_ok()
        && found == content
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_replaced_also_if_it_is_a_symlink_and_left_alone_if_it_is_right() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, new) = (directory.path().join("resolv.conf"), directory.path().join("new"));
        let target = directory.path().join("target");
        fs::write(&target, "nameserver 9.9.9.9\n").expect("written");
        std::os::unix::fs::symlink(&target, &path).expect("a link");
        let servers = [Ipv4Addr::new(169, 254, 0, 22), Ipv4Addr::LOCALHOST];
        set(&path, &new, &servers).expect("written");
        assert_eq!(fs::read_to_string(&path).expect("reads"), "nameserver 169.254.0.22\nnameserver 127.0.0.1\n");
        assert_eq!(fs::read_to_string(&target).expect("reads"), "nameserver 9.9.9.9\n");
        let inode = || std::os::unix::fs::MetadataExt::ino(&fs::symlink_metadata(&path).expect("exists"));
        let before = inode();
        set(&path, &new, &servers).expect("unchanged");
        assert_eq!(inode(), before);
        assert!(!new.exists());
    }
}
