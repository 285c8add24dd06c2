//! Kernel modules: found by `modules.dep` and `modules.alias`, and loaded after the modules that they depend on.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::log::note;

/// From linux/module.h: the kernel unpacks the file itself.
const MODULE_INIT_COMPRESSED_FILE: i32 = 4;

/// The modules of the running kernel.
#[derive(Debug)]
pub(super) struct Modules {
    directory: PathBuf,
    index: HashMap<String, Module>,
    aliases: Vec<(String, String)>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Module {
    path: String,
    /// Paths in the order of `modules.dep`: the last must be loaded first.
    needs: Vec<String>,
}

impl Modules {
    /// Reads the index. It is empty if the image has no modules.
    pub(super) fn of_running_kernel() -> Self {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let directory = Path::new("/lib/modules").join(release);
        let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_default();
        Self { index: parse_dep(&read("modules.dep")), aliases: parse_aliases(&read("modules.alias")), directory }
    }

    /// Loads a module and the modules that it needs. Does nothing if it is built in or not in the image.
    pub(super) fn load(&self, name: &str) {
        let name = canonical(name);
        if is_loaded(&name) {
            return;
        }
        let Some(module) = self.index.get(&name) else { return };
        for path in module.needs.iter().rev().chain([&module.path]) {
            let name = name_of(path);
            if is_loaded(&name) {
                continue;
            }
            if let Err(error) = self.insert(path) {
                note(format!("can't load module `{name}`: {error}"));
                return;
            }
        }
    }

    /// Modules for the devices on the virtio bus that have no driver yet.
    pub(super) fn for_devices(&self) -> Vec<String> {
        let devices = fs::read_dir("/sys/bus/virtio/devices").into_iter().flatten().flatten();
        let mut names: Vec<String> = devices
            .filter(|device| !device.path().join("driver").exists())
            .filter_map(|device| fs::read_to_string(device.path().join("modalias")).ok())
            .filter_map(|modalias| self.by_alias(modalias.trim()))
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    fn by_alias(&self, device: &str) -> Option<String> {
        let found = self.aliases.iter().find(|(pattern, _)| matches(pattern.as_bytes(), device.as_bytes()));
        found.map(|(_, name)| name.clone())
    }

    fn insert(&self, path: &str) -> io::Result<()> {
        let file = File::open(self.directory.join(path))?;
        let compressed = !path.ends_with(".ko");
        let flags = if compressed { MODULE_INIT_COMPRESSED_FILE } else { 0 };
        match rustix::system::finit_module(file, c"", flags) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn is_loaded(name: &str) -> bool {
    Path::new("/sys/module").join(name).exists()
}

/// The kernel's spelling: dashes in file names become underscores.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    canonical(file.split(".ko").next().unwrap_or(file))
}

fn parse_dep(text: &str) -> HashMap<String, Module> {
    let module = |line: &str| {
        let (path, needs) = line.split_once(':')?;
        let needs = needs.split_whitespace().map(str::to_owned).collect();
        Some((name_of(path), Module { path: path.to_owned(), needs }))
    };
    text.lines().filter_map(module).collect()
}

fn parse_aliases(text: &str) -> Vec<(String, String)> {
    let alias = |line: &str| {
        let (pattern, name) = line.strip_prefix("alias ")?.rsplit_once(' ')?;
        pattern.starts_with("virtio:").then(|| (pattern.to_owned(), canonical(name)))
    };
    text.lines().filter_map(alias).collect()
}

/// Matches a shell pattern with `*` and `?`, the form of `modules.alias` for virtio.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    // Where to continue after a mismatch: the index after the last star, and the end of the text that the star has
    // matched.
    let mut retry: Option<(usize, usize)> = None;
    let (mut at, mut seen) = (0, 0);
    while seen < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                retry = Some((at + 1, seen));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[seen] => {
                at += 1;
                seen += 1;
            }
            _ => match &mut retry {
                Some((after_star, swallowed)) => {
                    *swallowed += 1;
                    (at, seen) = (*after_star, *swallowed);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_found_by_the_kernels_spelling() {
        let index = parse_dep("kernel/a/snd-x.ko.xz: kernel/b.ko kernel/c.ko\nkernel/b.ko:\nnonsense\n");
        let module = index.get("snd_x").expect("dashes are underscores");
        assert_eq!(module.needs, ["kernel/b.ko", "kernel/c.ko"]);
        assert_eq!(index.get("b").map(|module| module.needs.len()), Some(0));
        assert_eq!(index.len(), 2);
    }

    #[test]
    fn the_driver_of_a_virtio_device_is_found() {
        let text =
            "# comment\nalias pci:v* other\nalias virtio:d00000002v* virtio_blk\nalias virtio:d00000001v* virtio-net\n";
        let modules = Modules { directory: PathBuf::new(), index: HashMap::new(), aliases: parse_aliases(text) };
        assert_eq!(modules.by_alias("virtio:d00000002v00001AF4").as_deref(), Some("virtio_blk"));
        assert_eq!(modules.by_alias("virtio:d00000001v00001AF4").as_deref(), Some("virtio_net"));
        assert_eq!(modules.by_alias("virtio:d00000099v00001AF4"), None);
    }

    #[test]
    fn patterns_match_like_in_a_shell() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c*", "abcbd", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a*d", "abc", false),
            ("abc", "abcd", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }
}
