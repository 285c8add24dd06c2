//! Configurations that kernels are built with: fragments, which the kernel's own `make` completes.
//!
//! Everything is built in, so such a kernel needs no modules. `lean` is a kernel for VMs of Kiln and little else. The
//! others are `lean` with the checks that find errors in kernels.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::kernel::config::{KernelConfig, Setting};

/// The options of every configuration, without `CONFIG_`; all are `y`.
const LEAN: &str = include_str!("lean.config");
/// Memory that is used after it was freed, or outside of its bounds.
const KASAN: &str = include_str!("kasan.config");
/// Locks that are taken in an order that can block forever.
const LOCKDEP: &str = include_str!("lockdep.config");
/// What code ran, for fuzzers.
const KCOV: &str = include_str!("kcov.config");

/// A configuration that Kiln has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigName {
    /// Small and quick to build and boot.
    Lean,
    /// With the address sanitizer.
    Kasan,
    /// With the checker of locks.
    Lockdep,
    /// With coverage for fuzzers, and the address sanitizer.
    Kcov,
}

impl ConfigName {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Lean, Self::Kasan, Self::Lockdep, Self::Kcov];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lean => "lean",
            Self::Kasan => "kasan",
            Self::Lockdep => "lockdep",
            Self::Kcov => "kcov",
        }
    }

    /// What is requested, as a file of options. Later lines win.
    pub(super) fn text(self) -> String {
        let more: &[&str] = match self {
            Self::Lean => &[],
            Self::Kasan => &[KASAN],
            Self::Lockdep => &[LOCKDEP],
            Self::Kcov => &[KASAN, KCOV],
        };
        [&[LEAN], more].concat().concat()
    }
}

impl fmt::Display for ConfigName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ConfigName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|one| one.name() == text);
        found.ok_or_else(|| format!("`{text}` is not lean, kasan, lockdep or kcov"))
    }
}

/// The requested options that a configuration does not have, each with what it has instead.
pub(super) fn lost(requested: &str, got: &KernelConfig) -> Vec<String> {
    let mut wanted = BTreeMap::new();
    for line in requested.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (option, value) = line.split_once('=').expect("a fragment has options alone");
        wanted.insert(option.strip_prefix("CONFIG_").expect("a fragment has options alone"), value);
    }
    let lost = wanted.into_iter().filter_map(|(option, value)| {
        let has = match got.get(option) {
            Setting::Yes => "y",
            Setting::Module => "m",
            Setting::No => "n",
            Setting::Value(value) => value,
        };
        (has != value).then(|| format!("CONFIG_{option}={value} (it is {has})"))
    });
    lost.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::needs::{self, KnownModules, Purpose};

    #[test]
    fn each_configuration_has_all_that_kiln_needs_built_in() {
        for name in ConfigName::ALL {
            let text = name.text();
            let config = KernelConfig::parse(text.as_bytes()).expect("is one");
            let missing = needs::check(Some(&config), &KnownModules::default()).expect("is known");
            // There are no modules, and so no disk with all of them.
            assert!(missing.iter().all(|one| one.purpose == Purpose::Modules), "{name}: {missing:?}");
            assert_eq!(lost(&text, &config), [] as [String; 0]);
            assert_eq!(name.name().parse(), Ok(name));
        }
        assert_eq!("tiny".parse::<ConfigName>(), Err("`tiny` is not lean, kasan, lockdep or kcov".into()));
    }

    #[test]
    fn an_option_that_did_not_survive_is_named_with_what_came_instead() {
        let got =
            KernelConfig::parse(b"CONFIG_A=y\nCONFIG_B=m\nCONFIG_HZ=250\n# CONFIG_D is not set\n").expect("is one");
        let requested = "# a comment\nCONFIG_A=n\nCONFIG_A=y\nCONFIG_B=y\nCONFIG_C=y\nCONFIG_D=n\nCONFIG_HZ=100\n";
        let lost = lost(requested, &got);
        assert_eq!(lost, ["CONFIG_B=y (it is m)", "CONFIG_C=y (it is n)", "CONFIG_HZ=100 (it is 250)"]);
    }
}
