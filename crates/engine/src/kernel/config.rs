//! A kernel's configuration: as a file, or as it lies within a kernel that was built with `IKCONFIG`.
//!
//! ```text
//!   /boot/config-…, .config ──────────────────────────────▶ parse ──▶ KernelConfig: option ─▶ yes, module, a value
//!   bzImage ─▶ unpacked ─▶ "IKCFG_ST" gzip "IKCFG_ED" ─────┘
//! ```

use std::collections::BTreeMap;

use super::unpack::{elf_of, find, gunzip};

/// The largest configuration. Debian's have 250 KiB.
pub(crate) const CONFIG_BYTES_MAX: usize = 4 << 20;
/// What is before a configuration within a kernel, see kernel/configs.c.
const EMBEDDED_START: &[u8] = b"IKCFG_ST\x1f\x8b";
/// Bytes of the start that are not of the gzip member.
const EMBEDDED_MARK_BYTES: usize = 8;
const PREFIX: &str = "CONFIG_";
const NOT_SET: &str = " is not set";

/// How an option is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Setting {
    /// Built in.
    Yes,
    /// A module.
    Module,
    /// Not set.
    No,
    /// A number or a text, as it is written.
    Value(String),
}

/// The configuration of a kernel. Options that it does not mention are not set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct KernelConfig(BTreeMap<String, Setting>);

impl KernelConfig {
    /// Reads a configuration. `None` if it has no line of one, or a line that none can have.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= CONFIG_BYTES_MAX)?;
        let mut options = BTreeMap::new();
        for line in text.lines().map(str::trim) {
            let comment = line.strip_prefix("# ").and_then(|line| line.strip_suffix(NOT_SET));
            let (name, setting) = match (comment, line.split_once('=')) {
                (Some(name), _) => (name, Setting::No),
                (None, _) if line.is_empty() || line.starts_with('#') => continue,
                (None, Some((name, "y"))) => (name, Setting::Yes),
                (None, Some((name, "m"))) => (name, Setting::Module),
                (None, Some((name, "n"))) => (name, Setting::No),
                (None, Some((name, value))) => (name, Setting::Value(value.to_owned())),
                (None, None) => return None,
            };
            let name = name.strip_prefix(PREFIX).filter(|name| is_option(name))?;
            options.insert(name.to_owned(), setting);
        }
        (!options.is_empty()).then_some(Self(options))
    }

    /// The text of the configuration within a kernel: a bzImage, or an ELF file. `None` if it has none.
    pub(crate) fn embedded(kernel: &[u8]) -> Option<Vec<u8>> {
        let unpacked = elf_of(kernel);
        let kernel = unpacked.as_deref().unwrap_or(kernel);
        let mut at = 0;
        // The mark is in the code that reads it, too. The right one is followed by gzip.
        while let Some(found) = find(&kernel[at..], EMBEDDED_START) {
            at += found + EMBEDDED_MARK_BYTES;
            if let Some(text) = gunzip(&kernel[at..], CONFIG_BYTES_MAX)
                && Self::parse(&text).is_some()
            {
                return Some(text);
            }
        }
        None
    }

    /// How an option is set; its name is without `CONFIG_`.
    pub(crate) fn get(&self, option: &str) -> &Setting {
        self.0.get(option).unwrap_or(&Setting::No)
    }
}

fn is_option(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::elf::made;
    use crate::kernel::unpack::made::{bzimage, gzip};

    const TEXT: &str = "#\n# Linux/x86 6.1.0 Kernel Configuration\n#\nCONFIG_VIRTIO=y\nCONFIG_EROFS_FS=m\n\
                        # CONFIG_KASAN is not set\nCONFIG_HZ=250\nCONFIG_LOCALVERSION=\"-mine\"\n";

    #[test]
    fn options_are_built_in_modules_values_or_not_set() {
        let config = KernelConfig::parse(TEXT.as_bytes()).expect("is one");
        assert_eq!(config.get("VIRTIO"), &Setting::Yes);
        assert_eq!(config.get("EROFS_FS"), &Setting::Module);
        assert_eq!(config.get("HZ"), &Setting::Value("250".into()));
        for option in ["KASAN", "NEVER_HEARD_OF"] {
            assert_eq!(config.get(option), &Setting::No);
        }
    }

    #[test]
    fn other_files_are_no_configurations() {
        for text in
            ["", "# a comment\n", "#!/bin/sh\necho x\n", "VIRTIO=y\n", "CONFIG_=y\n", "CONFIG_A B=y\n", "\u{ff}"]
        {
            assert_eq!(KernelConfig::parse(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(KernelConfig::parse(b"CONFIG_A=\xff\n"), None);
    }

    #[test]
    fn a_configuration_is_found_within_a_kernel() {
        let inside = [b"code IKCFG_ST code IKCFG_ST".as_slice(), &gzip(TEXT.as_bytes()), b"IKCFG_ED"].concat();
        let vmlinux = made::elf(".rodata", &inside, &[]);
        for kernel in [vmlinux.clone(), bzimage(&gzip(&vmlinux))] {
            assert_eq!(KernelConfig::embedded(&kernel).as_deref(), Some(TEXT.as_bytes()));
        }
        for none in [&b""[..], b"IKCFG_ST\x1f\x8b rubbish", &[b"IKCFG_ST", &gzip(b"rubbish")[..]].concat()] {
            assert_eq!(KernelConfig::embedded(none), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_and_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            KernelConfig::parse(&bytes);
            let marked = [EMBEDDED_START, &bytes[..]].concat();
            KernelConfig::embedded(&marked);
        }
    }
}
