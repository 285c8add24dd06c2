//! The tables by which `modprobe` and the agent find modules, as `depmod` writes them.
//!
//! busybox and the agent read text. The `modprobe` of kmod reads the same in a binary form: see `module_index.rs`.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;

use camino::Utf8PathBuf;

use super::module_index::Index;
use super::modules::{BUILTIN, module_name};

/// What a module says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModuleInfo {
    /// The kernel's name of it, with underscores.
    pub(crate) name: String,
    /// Its path below `/lib/modules/<release>`, unpacked.
    pub(crate) path: Utf8PathBuf,
    /// Names of the modules that it can't be loaded without.
    pub(crate) needs: Vec<String>,
    /// Patterns of the devices and services that it is for.
    pub(crate) aliases: Vec<String>,
    /// Lines such as `pre: crc32c`.
    pub(crate) soft: Vec<String>,
    /// The release of the kernel that it was built for.
    pub(crate) release: Option<String>,
}

/// The tables as text, by the names of their files. Each module comes after those that it needs.
pub(crate) fn text(modules: &[ModuleInfo], builtin: Vec<u8>) -> Vec<(&'static str, Vec<u8>)> {
    let [mut dep, mut alias, mut soft, mut order] = [const { String::new() }; 4];
    for (module, needs) in modules.iter().zip(dep_lines(modules)) {
        // Writing to a String can't fail.
        _ = writeln!(dep, "{needs}");
        _ = writeln!(order, "{}", module.path);
        for pattern in &module.aliases {
            _ = writeln!(alias, "alias {pattern} {}", module.name);
        }
        for line in &module.soft {
            _ = writeln!(soft, "softdep {} {line}", module.name);
        }
    }
    vec![
        ("modules.dep", dep.into_bytes()),
        ("modules.alias", alias.into_bytes()),
        ("modules.softdep", soft.into_bytes()),
        ("modules.order", order.into_bytes()),
        ("modules.symbols", Vec::new()),
        (BUILTIN, builtin),
    ]
}

/// The tables that kmod reads, by the names of their files.
pub(crate) fn binary(modules: &[ModuleInfo], builtin: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let [mut dep, mut alias, mut inside] = [const { Index::new() }; 3];
    for (number, (module, line)) in (0..).zip(modules.iter().zip(dep_lines(modules))) {
        dep.add(&module.name, &line, number);
        for pattern in &module.aliases {
            alias.add(&plain_alias(pattern), &module.name, number);
        }
    }
    for name in String::from_utf8_lossy(builtin).lines().filter_map(|line| module_name(line.into())) {
        inside.add(&name, "", 0);
    }
    vec![
        ("modules.dep.bin", dep.to_bytes()),
        ("modules.alias.bin", alias.to_bytes()),
        ("modules.symbols.bin", Index::new().to_bytes()),
        ("modules.builtin.bin", inside.to_bytes()),
    ]
}

/// The lines of `modules.dep`: a path and all that it needs, what must be loaded first at the end.
fn dep_lines(modules: &[ModuleInfo]) -> impl Iterator<Item = String> {
    let numbers: HashMap<&str, usize> =
        modules.iter().enumerate().map(|(number, module)| (module.name.as_str(), number)).collect();
    modules.iter().enumerate().map(move |(number, module)| {
        let mut needed = BTreeSet::new();
        let mut open = vec![module];
        while let Some(module) = open.pop() {
            for other in module.needs.iter().filter_map(|name| numbers.get(name.as_str())) {
                // A circle leads back to the module itself.
                if *other != number && needed.insert(*other) {
                    open.push(&modules[*other]);
                }
            }
        }
        let needs: String = needed.iter().rev().map(|other| format!(" {}", modules[*other].path)).collect();
        format!("{}:{needs}", module.path)
    })
}

/// A pattern as kmod looks it up: dashes are underscores, but not in brackets, where they are ranges.
fn plain_alias(pattern: &str) -> String {
    let mut inside = false;
    let plain = |c: char| {
        inside = (inside || c == '[') && c != ']';
        if c == '-' && !inside { '_' } else { c }
    };
    pattern.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashes_are_underscores_except_in_ranges() {
        assert_eq!(plain_alias("fs-iso9660"), "fs_iso9660");
        assert_eq!(plain_alias("usb:v0[0-9a-f]p-*"), "usb:v0[0-9a-f]p_*");
    }
}
