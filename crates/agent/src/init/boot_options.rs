//! The agent's options on the kernel command line.

use std::fs;

/// The value of `kiln.init` for the root's own init.
const IMAGE_INIT: &str = "image";

/// Keys that start with `kiln.`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct BootOptions {
    /// `kiln.modules=a,b`: loaded after the link is up.
    pub modules: Vec<String>,
    /// `kiln.root=DEVICE:TYPE` or `kiln.root=DEVICE:TYPE:UPPER`.
    pub root: Option<RootDevice>,
    /// `kiln.module_disk=DEVICE:TYPE`: mounted on `/lib/modules/RELEASE` before any command.
    pub module_disk: Option<ModuleDisk>,
    /// `kiln.init=image`: the init of the root becomes PID 1, and the agent runs beside it.
    pub init: bool,
}

/// A read-only disk with all modules of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ModuleDisk {
    /// Path of the block device.
    pub device: String,
    /// Type of its file system.
    pub filesystem: String,
}

/// A read-only root file system.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RootDevice {
    /// Path of the block device.
    pub device: String,
    /// Type of its file system.
    pub filesystem: String,
    /// A disk for the upper layer of the overlay. If absent, that is in memory.
    pub upper: Option<String>,
}

impl BootOptions {
    pub(super) fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }

    fn parse(line: &str) -> Self {
        let mut options = Self::default();
        for (key, value) in line.split_whitespace().filter_map(|word| word.split_once('=')) {
            match key {
                "kiln.modules" => {
                    let names = value.split(',').filter(|name| !name.is_empty()).map(str::to_owned);
                    options.modules.extend(names);
                }
                "kiln.init" => options.init = value == IMAGE_INIT,
                "kiln.root" => {
                    let mut parts = value.split(':').map(str::to_owned);
                    options.root = match (parts.next(), parts.next(), parts.next()) {
                        (Some(device), Some(filesystem), upper) => Some(RootDevice { device, filesystem, upper }),
                        _ => None,
                    };
                }
                "kiln.module_disk" => {
                    options.module_disk = value.split_once(':').map(|(device, filesystem)| ModuleDisk {
                        device: device.to_owned(),
                        filesystem: filesystem.to_owned(),
                    });
                }
                _ => {}
            }
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_and_root_are_read_and_other_words_are_ignored() {
        let options = BootOptions::parse("quiet kiln.modules=a,,b root=/dev/x kiln.root=/dev/vda:erofs panic=-1\n");
        assert_eq!(options.modules, ["a", "b"]);
        let root = options.root.expect("a root is named");
        assert_eq!((root.device.as_str(), root.filesystem.as_str(), root.upper), ("/dev/vda", "erofs", None));
        let disk = BootOptions::parse("kiln.module_disk=/dev/vdb:erofs").module_disk.expect("a disk is named");
        assert_eq!((disk.device.as_str(), disk.filesystem.as_str()), ("/dev/vdb", "erofs"));
        let root = BootOptions::parse("kiln.root=/dev/vda:erofs:/dev/vdb").root.expect("a root is named");
        assert_eq!((root.filesystem.as_str(), root.upper.as_deref()), ("erofs", Some("/dev/vdb")));
        assert!(BootOptions::parse("kiln.init=image").init && !BootOptions::parse("kiln.init=other").init);
    }

    #[test]
    fn an_empty_line_has_no_options() {
        assert_eq!(BootOptions::parse(""), BootOptions::default());
        assert_eq!(BootOptions::parse("kiln.root=/dev/vda").root, None);
        assert_eq!(BootOptions::parse("kiln.module_disk=/dev/vda").module_disk, None);
    }
}
