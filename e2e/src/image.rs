//! Images for tests: archives like those of `docker save`, made of a few files.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// The time of every file.
pub const MODIFIED: u64 = 1_600_000_000;

/// What an entry of a layer is.
#[derive(Debug, Clone, Copy)]
pub enum Entry<'a> {
    /// A directory.
    Directory,
    /// A file with its content.
    File(&'a [u8]),
    /// A symlink to a target.
    Symlink(&'a str),
    /// A hard link to another entry.
    HardLink(&'a str),
}

/// A layer: a tar archive of entries with their paths and permissions.
///
/// # Panics
/// If a path is too long for a header.
pub fn layer(entries: &[(&str, Entry<'_>, u32)]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (path, entry, mode) in entries {
        let mut header = Header::new_gnu();
        header.set_mode(*mode);
        header.set_mtime(MODIFIED);
        header.set_uid(0);
        header.set_gid(0);
        let (kind, content, link): (_, &[u8], _) = match entry {
            Entry::Directory => (EntryType::Directory, b"", None),
            Entry::File(content) => (EntryType::Regular, content, None),
            Entry::Symlink(target) => (EntryType::Symlink, b"", Some(target)),
            Entry::HardLink(target) => (EntryType::Link, b"", Some(target)),
        };
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        if let Some(target) = link {
            header.set_link_name(target).expect("a short target");
        }
        tar.append_data(&mut header, path, content).expect("a short path");
    }
    tar.into_inner().expect("bytes in memory")
}

/// Writes an archive of layers, the lowest first, and the `config` of an image.
///
/// # Panics
/// If it can't be written.
pub fn docker_archive(path: &Path, name: &str, layers: &[Vec<u8>], config: &Value) {
    let digest = |bytes: &[u8]| format!("{:x}", Sha256::digest(bytes));
    let diff_ids: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", digest(layer))).collect();
    let document = json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": layers.iter().map(|_| json!({ "created_by": "a test" })).collect::<Vec<_>>(),
    })
    .to_string();
    let config_file = format!("{}.json", digest(document.as_bytes()));
    let files: Vec<_> = (0..layers.len()).map(|number| format!("layer{number}/layer.tar")).collect();
    let manifest = json!([{ "Config": config_file, "RepoTags": [name], "Layers": files }]).to_string();
    let mut tar = Builder::new(fs::File::create(path).expect("a new file"));
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes).expect("writes");
    };
    add(&config_file, document.as_bytes());
    for (file, layer) in files.iter().zip(layers) {
        add(file, layer);
    }
    add("manifest.json", manifest.as_bytes());
    tar.into_inner().and_then(|mut file| file.flush()).expect("writes");
}

/// The static busybox of this host.
///
/// # Panics
/// If it is not installed.
pub fn busybox() -> Vec<u8> {
    let found = ["/usr/bin/busybox", "/bin/busybox"].iter().find_map(|path| fs::read(path).ok());
    found.expect("busybox-static is installed")
}
