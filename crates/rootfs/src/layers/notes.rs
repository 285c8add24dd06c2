//! What layers have that a root filesystem must not have: left out, and told to the user.

use super::names::shown;

/// Examples that are kept of each kind.
pub const NOTED_MAX: usize = 5;

/// How often something was left out, with the first paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Noted {
    /// How often.
    pub count: u64,
    /// At most [`NOTED_MAX`] of the paths, escaped.
    pub first: Vec<String>,
}

/// What was left out of the tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    /// Extended attributes that would be orders to the guest's overlay filesystem.
    pub overlay_xattrs: Noted,
    /// Extended attributes of an unknown kind, which no filesystem of Linux stores.
    pub unknown_xattrs: Noted,
    /// Character devices 0:0, by which an overlay filesystem marks a name as removed.
    pub whiteout_devices: Noted,
    /// Files that a union filesystem (aufs) keeps for itself.
    pub union_files: Noted,
}

impl Noted {
    pub(super) fn add(&mut self, path: &[u8]) {
        self.count += 1;
        if self.first.len() < NOTED_MAX {
            self.first.push(shown(path));
        }
    }
}

impl Notes {
    /// A line for each kind of which there is something.
    pub fn lines(&self) -> Vec<String> {
        let Self { overlay_xattrs, unknown_xattrs, whiteout_devices, union_files } = self;
        let kinds = [
            (overlay_xattrs, "xattrs of an overlay filesystem"),
            (unknown_xattrs, "xattrs of unknown kinds"),
            (whiteout_devices, "devices 0:0, which mean a removed name"),
            (union_files, "files of a union filesystem"),
        ];
        let present = kinds.into_iter().filter(|(noted, _)| noted.count > 0);
        let line = |(noted, what): (&Noted, &str)| {
            let more = if noted.count > noted.first.len() as u64 { ", …" } else { "" };
            format!("left out {what} ({}): `{}`{more}", noted.count, noted.first.join("`, `"))
        };
        present.map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_read_like_this() {
        let mut notes = Notes::default();
        assert_eq!(notes.lines(), Vec::<String>::new());
        notes.whiteout_devices.add(b"a/\x1b");
        (0..7).for_each(|at| notes.overlay_xattrs.add(format!("dir/{at}").as_bytes()));
        notes.unknown_xattrs.add(b"u");
        notes.union_files.add(b".wh..wh.aufs");
        insta::assert_snapshot!(notes.lines().join("\n"));
    }
}
