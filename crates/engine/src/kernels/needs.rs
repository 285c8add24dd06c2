//! What Kiln needs of a kernel, and what a kernel lacks of it: decided before anything boots.
//!
//! ```text
//!   KernelConfig ──▶ each option of NEEDS ── y ──────────────────────────▶ has it
//!                                         ── m ──▶ its module is there ──▶ has it
//!                                         │                └ not there ──▶ Missing: "is a module, and …"
//!                                         └─ not set ────────────────────▶ Missing: "is not set"
//! ```
//! Each option is for a purpose. A kernel that lacks one for booting is refused. A kernel that lacks one for another
//! purpose is accepted, and a VM that has that purpose is refused.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::kernel::config::{KernelConfig, Setting};

/// What an option is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Any VM: the agent starts and the host reaches it.
    Boot,
    /// Images with a root filesystem.
    Root,
    /// Volumes.
    Volumes,
    /// Network cards.
    Networks,
    /// All modules of the kernel as a disk.
    Modules,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Boot => "to boot",
            Self::Root => "for images with a root filesystem",
            Self::Volumes => "for volumes",
            Self::Networks => "for networks",
            Self::Modules => "for a disk with all its modules",
        })
    }
}

/// An option of a kernel that Kiln needs.
struct Need {
    purpose: Purpose,
    option: &'static str,
    /// The module that the option can be. `None` if it can only be built in.
    module: Option<&'static str>,
    /// What it is, for users.
    what: &'static str,
}

const fn built_in(purpose: Purpose, option: &'static str, what: &'static str) -> Need {
    Need { purpose, option, module: None, what }
}

const fn module(purpose: Purpose, option: &'static str, module: &'static str, what: &'static str) -> Need {
    Need { purpose, option, module: Some(module), what }
}

/// All that is needed. What is a module must be loaded before a disk can be read, so the initramfs has it.
const NEEDS: &[Need] = &[
    module(Purpose::Boot, "VIRTIO_PCI", "virtio_pci", "devices of a VM"),
    module(Purpose::Boot, "VIRTIO_CONSOLE", "virtio_console", "the link between host and agent"),
    built_in(Purpose::Boot, "PCI", "the bus of a VM's devices"),
    built_in(Purpose::Boot, "BLK_DEV_INITRD", "the initramfs that holds the agent"),
    built_in(Purpose::Boot, "BINFMT_ELF", "programs"),
    built_in(Purpose::Boot, "DEVTMPFS", "the files of devices"),
    built_in(Purpose::Boot, "PROC_FS", "/proc"),
    built_in(Purpose::Boot, "SYSFS", "/sys, where the agent finds devices"),
    built_in(Purpose::Boot, "TMPFS", "/tmp and /run"),
    built_in(Purpose::Boot, "SERIAL_8250_CONSOLE", "the console that the host watches"),
    built_in(Purpose::Boot, "UNIX98_PTYS", "terminals of commands"),
    module(Purpose::Boot, "UNIX", "unix", "sockets between programs"),
    built_in(Purpose::Boot, "EPOLL", "the agent's event loop"),
    built_in(Purpose::Boot, "SIGNALFD", "the end of commands"),
    built_in(Purpose::Boot, "FUTEX", "threads"),
    built_in(Purpose::Boot, "INOTIFY_USER", "watches on files"),
    built_in(Purpose::Boot, "CGROUPS", "groups of processes, which are frozen before a save"),
    built_in(Purpose::Boot, "MEMCG", "the memory of commands"),
    built_in(Purpose::Boot, "CGROUP_PIDS", "the number of processes of commands"),
    module(Purpose::Root, "VIRTIO_BLK", "virtio_blk", "disks of a VM"),
    module(Purpose::Root, "EROFS_FS", "erofs", "the root filesystem of an image"),
    module(Purpose::Root, "OVERLAY_FS", "overlay", "writes to the root of an image"),
    module(Purpose::Volumes, "VIRTIO_BLK", "virtio_blk", "disks of a VM"),
    module(Purpose::Volumes, "EXT4_FS", "ext4", "the filesystem of volumes"),
    module(Purpose::Networks, "VIRTIO_NET", "virtio_net", "network cards of a VM"),
    built_in(Purpose::Networks, "INET", "IPv4"),
    module(Purpose::Modules, "VIRTIO_BLK", "virtio_blk", "disks of a VM"),
    module(Purpose::Modules, "EROFS_FS", "erofs", "the disk with the modules"),
    built_in(Purpose::Modules, "MODULES", "modules at all"),
];

/// The modules that a kernel has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct KnownModules {
    /// Modules that can be loaded, with underscores.
    pub(crate) loadable: BTreeSet<String>,
    /// Modules that are built in, as far as a list of them is there.
    pub(crate) built_in: Option<BTreeSet<String>>,
}

/// An option that a kernel lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Its name, with `CONFIG_`.
    pub option: String,
    /// What it is needed for.
    pub purpose: Purpose,
    /// What it is.
    pub what: String,
    /// Set if the option is set to be a module which is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { option, what, module, .. } = self;
        match module {
            None => write!(f, "{option} ({what})"),
            Some(module) => write!(f, "{option} ({what}; it is set to m, and there is no module `{module}`)"),
        }
    }
}

/// Several options that a kernel lacks, in one line.
pub(crate) fn line<'a>(missing: impl IntoIterator<Item = &'a Missing>) -> String {
    missing.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Nothing says what a kernel was built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unknown;

/// What a kernel lacks. Without a configuration, the list of modules that are built in says what is there, as far as
/// it can be a module.
pub(crate) fn check(config: Option<&KernelConfig>, modules: &KnownModules) -> Result<Vec<Missing>, Unknown> {
    if config.is_none() && modules.built_in.is_none() {
        return Err(Unknown);
    }
    let built_in = |name: &str| modules.built_in.as_ref().is_some_and(|names| names.contains(name));
    let there = |name: &str| modules.loadable.contains(name) || built_in(name);
    let missing = |need: &Need, module: Option<&str>| Missing {
        option: format!("CONFIG_{}", need.option),
        purpose: need.purpose,
        what: need.what.to_owned(),
        module: module.map(str::to_owned),
    };
    let lacks = |need: &Need| match (config.map(|config| config.get(need.option)), need.module) {
        (Some(Setting::Yes), _) | (None, None) => None,
        (Some(Setting::Module) | None, Some(name)) if there(name) => None,
        (Some(Setting::Module), Some(name)) => Some(missing(need, Some(name))),
        (Some(_), _) | (None, Some(_)) => Some(missing(need, None)),
    };
    Ok(NEEDS.iter().filter_map(lacks).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(loadable: &[&str], built_in: Option<&[&str]>) -> KnownModules {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        KnownModules { loadable: set(loadable), built_in: built_in.map(set) }
    }

    /// A configuration with all that is needed, and other settings of some options.
    fn config(changed: &[(&str, &str)]) -> KernelConfig {
        let mut text = String::new();
        for need in NEEDS {
            let setting = changed.iter().find(|(option, _)| *option == need.option).map_or("y", |(_, setting)| setting);
            text.push_str(&format!("CONFIG_{}={setting}\n", need.option));
        }
        KernelConfig::parse(text.as_bytes()).expect("is one")
    }

    #[test]
    fn a_kernel_that_has_all_lacks_nothing() {
        assert_eq!(check(Some(&config(&[])), &KnownModules::default()), Ok(vec![]));
    }

    #[test]
    fn each_option_that_is_off_is_named_with_its_purpose() {
        let lean = config(&[("VIRTIO_PCI", "n"), ("EROFS_FS", "n"), ("DEVTMPFS", "n")]);
        let missing = check(Some(&lean), &KnownModules::default()).expect("is known");
        let lines: Vec<_> = missing.iter().map(|one| format!("{}: {one}", one.purpose)).collect();
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn a_module_counts_if_it_is_there() {
        let modular = config(&[("VIRTIO_PCI", "m"), ("EXT4_FS", "m")]);
        assert_eq!(check(Some(&modular), &modules(&["virtio_pci", "ext4"], None)), Ok(vec![]));
        let missing = check(Some(&modular), &modules(&["virtio_pci"], None)).expect("is known");
        assert_eq!(
            line(&missing),
            "CONFIG_EXT4_FS (the filesystem of volumes; it is set to m, and there is no module `ext4`)"
        );
        // An option that can't be a module is not satisfied by one.
        let strange = config(&[("DEVTMPFS", "m")]);
        assert_eq!(check(Some(&strange), &modules(&["devtmpfs"], None)).expect("is known").len(), 1);
    }

    #[test]
    fn without_a_configuration_the_list_of_what_is_built_in_decides() {
        let all: Vec<_> = NEEDS.iter().filter_map(|need| need.module).collect();
        assert_eq!(check(None, &modules(&all[1..], Some(&all[..1]))), Ok(vec![]));
        let missing = check(None, &modules(&[], Some(&all[2..]))).expect("is known");
        let options: Vec<_> = missing.iter().map(|one| one.option.as_str()).collect();
        assert_eq!(options, ["CONFIG_VIRTIO_PCI", "CONFIG_VIRTIO_CONSOLE"]);
        assert_eq!(check(None, &modules(&all, None)), Err(Unknown));
    }
}
