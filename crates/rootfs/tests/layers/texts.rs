//! Every text of a refusal.

use std::error::Error as _;
use std::io;
use std::iter::successors;

use kiln_archive::ArchiveError;
use kiln_rootfs::{LayerError, PathFault, Refusal, SpoolError};

/// Each kind names the next one, so a new kind does not compile before its text is here.
fn next(last: &Refusal) -> Option<Refusal> {
    Some(match last {
        Refusal::Archive(_) => Refusal::Spool(SpoolError::TooLarge { bytes_max: 17_179_869_184 }),
        Refusal::Spool(_) => Refusal::Path(PathFault::Upwards),
        Refusal::Path(PathFault::Upwards) => Refusal::Path(PathFault::Nul),
        Refusal::Path(PathFault::Nul) => Refusal::Path(PathFault::NameTooLong),
        Refusal::Path(PathFault::NameTooLong) => Refusal::Path(PathFault::TooLong),
        Refusal::Path(PathFault::TooLong) => Refusal::Path(PathFault::TooDeep),
        Refusal::Path(PathFault::TooDeep) => Refusal::Root,
        Refusal::Root => Refusal::MarkOfNothing,
        Refusal::MarkOfNothing => Refusal::MarkAsDirectory,
        Refusal::MarkAsDirectory => Refusal::NotADirectory { name: "usr".into() },
        Refusal::NotADirectory { .. } => Refusal::LinkLoop,
        Refusal::LinkLoop => Refusal::Owner { uid: 4_294_967_295, gid: -1 },
        Refusal::Owner { .. } => Refusal::Device { major: 4096, minor: 0 },
        Refusal::Device { .. } => Refusal::Time { nanoseconds: -1 },
        Refusal::Time { .. } => Refusal::FileTooLarge { size: 1 << 62 },
        Refusal::FileTooLarge { .. } => Refusal::SymlinkTarget { bytes: 0 },
        Refusal::SymlinkTarget { .. } => Refusal::SymlinkNul,
        Refusal::SymlinkNul => Refusal::LinkPath(PathFault::Upwards),
        Refusal::LinkPath(_) => Refusal::LinkToNothing { target: "etc/shadow".into() },
        Refusal::LinkToNothing { .. } => Refusal::LinkToDirectory { target: "etc".into() },
        Refusal::LinkToDirectory { .. } => Refusal::LinkToItself,
        Refusal::LinkToItself => Refusal::XattrName { bytes: 256 },
        Refusal::XattrName { .. } => Refusal::XattrsTooLarge,
        Refusal::XattrsTooLarge => Refusal::TooManyBytes { bytes_max: 17_179_869_184 },
        Refusal::TooManyBytes { .. } => Refusal::TooManyEntries { entries_max: 4_000_000 },
        Refusal::TooManyEntries { .. } => Refusal::TooMuchText { bytes_max: 536_870_912 },
        Refusal::TooMuchText { .. } => Refusal::TooManyXattrs { bytes_max: 536_870_912 },
        Refusal::TooManyXattrs { .. } => Refusal::TooManyLinkNames { names_max: 67_108_864 },
        Refusal::TooManyLinkNames { .. } => return None,
    })
}

#[test]
fn refusals_read_like_this() {
    let first = Refusal::Archive(ArchiveError::Malformed("no tar header at byte 512".into()));
    let error = |reason| LayerError { layer: 2, entry: 17, path: Some("usr/lib/x".into()), reason: Box::new(reason) };
    let texts = successors(Some(first), next).map(|reason| error(reason).to_string());
    insta::assert_snapshot!(texts.collect::<Vec<_>>().join("\n"));
}

#[test]
fn an_error_of_the_input_is_the_source_of_the_refusal() {
    let reason = Box::new(Refusal::Archive(ArchiveError::Input(io::Error::other("connection reset"))));
    let error = LayerError { layer: 1, entry: 3, path: None, reason };
    assert_eq!(error.to_string(), "layer 1, entry 3: failed to read the archive");
    assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("connection reset"));
    let folder = || "/spool".into();
    let reason = Refusal::Spool(SpoolError::NoSpace { folder: folder(), free_bytes: 0, reserve_bytes: 1 });
    let error = LayerError { layer: 1, entry: 3, path: None, reason: Box::new(reason) };
    assert_eq!(error.hint().as_deref(), Some("free some space on the disk of `/spool`"));
}
