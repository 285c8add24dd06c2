//! The rules. A group (the word before the dot of an id) has one file or several.
//!
//! To add a rule: a row in the table of its file and a function; a row in `tests/conformance/wrong.rs` with a backend that
//! breaks just this rule; entries in `tests/expected/` for the known backends that break it, each with the reason. A new
//! group also goes into `GROUPS` and into the list of the test `every_group_has_rules_that_bind`.

use super::case::Case;

/// A table of rules: id, level, what the backend must have, the function; then section and reason.
macro_rules! cases {
    ($($id:literal $level:ident [$($need:expr),*] $run:expr, $section:expr => $reason:expr;)*) => {
        pub(super) const CASES: &[Case] = &[$(Case {
            id: $id,
            level: $level,
            section: $section,
            reason: $reason,
            needs: &[$($need),*],
            run: $run,
        }),*];
    };
}

mod channel;
mod config;
mod data;
mod features;
mod handshake;
mod hangup;
mod hostile;
mod hostile_rings;
mod inflight;
mod layouts;
mod lifecycle;
mod log;
mod memory;
mod notify;
mod packed;
mod requests;
mod resources;
mod rings;
mod sessions;

/// What every file of rules needs.
mod prelude {
    pub(super) use crate::check::Level::{May, Must, Should};
    pub(super) use crate::check::case::{Case, Need};
    pub(super) use crate::check::context::{Context, USUAL, usual_features};
    pub(super) use crate::check::link::Link;
    pub(super) use crate::check::outcome::{Answer, Outcome, Stop};
    pub(super) use crate::protocol::frontend::*;
    pub(super) use crate::protocol::{
        Config, Empty, Flags, MemoryRegion, MemoryTable, Message, ProtocolFeatures, SingleRegion, VringAddress,
        VringFile, VringState,
    };
    pub(super) use crate::virtio::{DeviceKind, feature};
}

const GROUPS: &[&[Case]] = &[
    handshake::CASES,
    features::CASES,
    memory::CASES,
    rings::CASES,
    config::CASES,
    requests::CASES,
    data::CASES,
    layouts::CASES,
    notify::CASES,
    packed::CASES,
    log::CASES,
    inflight::CASES,
    channel::CASES,
    lifecycle::CASES,
    resources::CASES,
    sessions::CASES,
    hostile::CASES,
    hostile_rings::CASES,
    hangup::CASES,
];

/// Every rule, in the order in which they are run: a backend that is not restarted exits at the last ones, if at any.
pub fn all() -> impl Iterator<Item = &'static Case> {
    GROUPS.iter().copied().flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::check::Level;

    #[test]
    fn every_rule_has_a_name_of_its_own_a_section_and_a_reason() {
        let mut ids = BTreeSet::new();
        for case in all() {
            assert!(ids.insert(case.id), "`{}` is there twice", case.id);
            let (group, name) = case.id.split_once('.').expect("group and name");
            let is_word = |word: &str| {
                !word.is_empty()
                    && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            };
            assert!(is_word(group) && is_word(name), "`{}` is no id", case.id);
            assert!(!case.section.is_empty() && case.reason.len() > 20 && !case.reason.ends_with('.'), "`{}`", case.id);
        }
        assert!(ids.len() >= 120, "{} rules", ids.len());
    }

    #[test]
    fn every_rule_is_listed_with_its_section_and_reason() {
        let lines = all().map(|case| {
            let (level, id) = (case.level, case.id);
            format!("{level} {id}\n    {}\n    {}\n", case.section, case.reason)
        });
        insta::assert_snapshot!(lines.collect::<String>());
    }

    #[test]
    fn the_specification_has_the_number_of_rules() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../SPECIFICATION.md");
        let text = std::fs::read_to_string(path).expect("is in the repository");
        let line =
            text.lines().find(|line| line.contains("| Cases of `kiln vhost check`")).expect("a line of the table");
        let count = all().count();
        assert!(line.contains(&format!("({count})")), "there are {count} rules: {line}");
    }

    #[test]
    fn every_group_has_rules_that_bind() {
        let groups = [
            "handshake",
            "features",
            "memory",
            "rings",
            "config",
            "data",
            "requests",
            "inflight",
            "channel",
            "lifecycle",
            "hostile",
            "resources",
        ];
        for group in groups {
            assert!(all().any(|case| case.group() == group && case.level == Level::Must), "{group}");
        }
        assert!(all().all(|case| groups.contains(&case.group())));
    }
}
