//! All modules of a kernel as one read-only filesystem: what a guest mounts on `/lib/modules/<release>`.
//!
//! ```text
//!   ModuleFiles ──each: unpacked, read, compared with the release──▶ Spool ──▶ Tree ──▶ modules.erofs
//!                                 └──▶ ModuleInfo ──▶ tables, as text and for kmod ──┘
//! ```
//! Modules are stored unpacked: then every `modprobe` and every kernel can load them, and nothing is unpacked in a guest.
//! The tables are made here, because packages come without them, and those of a user's directory may be old.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Path, Utf8PathBuf};
use kiln_rootfs::{Attributes, Children, Kind, Node, NodeId, Spool, SpoolLimits, Tree, erofs};

use super::error::KernelError;
use super::needs::KnownModules;
use crate::files::private_file;
use crate::image::command::{self, CommandError};
use crate::image::module_tables::{self, ModuleInfo};
use crate::image::modules::{BUILTIN, ModuleFiles, module_info, module_name};
use crate::image::{FileEntry, SourceError};

/// The file.
pub(super) const MODULES_FILE: &str = "modules.erofs";
/// Modules and other files of a kernel. Debian's largest has 4,000.
const FILES_MAX: usize = 1 << 16;
/// Unpacked bytes of all modules. Debian's largest has 600 MiB; one with debug symbols has some GiB.
const BYTES_MAX: u64 = 8 << 30;
/// Bytes of the disk that stay free.
const RESERVE_BYTES: u64 = 64 << 20;
/// Files of a directory of modules that are kept as they are.
const KEPT: [&str; 2] = [BUILTIN, "modules.builtin.modinfo"];

/// The modules of a kernel, written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ModuleTree {
    /// The file, if the kernel has modules or a list of those that are built in.
    pub(super) file: Option<FileEntry>,
    /// The modules.
    pub(super) known: KnownModules,
}

/// Writes all modules as [`MODULES_FILE`] into a directory. Each must be a module of the kernel of this release.
pub(super) fn write(files: &ModuleFiles, release: &str, directory: &Utf8Path) -> Result<ModuleTree, KernelError> {
    let paths = files.paths().map_err(|error| KernelError::modules(release, &error))?;
    if paths.len() > FILES_MAX {
        let problem = format!("it has {} files, more than {FILES_MAX}", paths.len());
        return Err(KernelError::Modules { release: release.into(), problem });
    }
    let limits = SpoolLimits { bytes_max: BYTES_MAX, reserve_bytes: RESERVE_BYTES };
    let mut contents = Contents { spool: Spool::new(directory.as_std_path(), limits)?, files: BTreeMap::new() };
    let mut infos = BTreeMap::new();
    let mut builtin = None;
    for path in &paths {
        if command::is_cancelled() {
            return Err(SourceError::from(CommandError::Cancelled).into());
        }
        if let Some(name) = module_name(path) {
            let read = files.read_module(path).and_then(|bytes| Ok((module_info(path, &bytes)?, bytes)));
            let (info, bytes) = read.map_err(|error| KernelError::modules(release, &error))?;
            check_release(&info, release)?;
            contents.add(&info.path, &bytes)?;
            infos.insert(name, info);
        } else if KEPT.contains(&path.as_str()) {
            let bytes = files.read(path).map_err(|error| KernelError::modules(release, &error))?;
            contents.add(path, &bytes)?;
            if path == BUILTIN {
                builtin = Some(bytes);
            }
        }
    }
    let known = KnownModules {
        loadable: infos.keys().cloned().collect(),
        built_in: builtin
            .as_ref()
            .map(|text| String::from_utf8_lossy(text).lines().filter_map(|line| module_name(line.into())).collect()),
    };
    if infos.is_empty() && builtin.is_none() {
        return Ok(ModuleTree { file: None, known });
    }
    let builtin = builtin.unwrap_or_default();
    let infos = in_load_order(infos);
    let tables = module_tables::binary(&infos, &builtin).into_iter().chain(module_tables::text(&infos, builtin));
    for (name, bytes) in tables {
        contents.add(name.into(), &bytes)?;
    }
    let path = directory.join(MODULES_FILE);
    let mut out = private_file::create_new(&path).map_err(KernelError::io(&path))?;
    let (spool, tree) = contents.into_tree();
    let written = erofs::write(&tree, &spool, &mut out, &erofs::Options::default())?;
    let blake3 = blake3::Hash::from_bytes(written.digest).to_hex().to_string();
    Ok(ModuleTree { file: Some(FileEntry { file: MODULES_FILE.into(), bytes: written.bytes, blake3 }), known })
}

/// A module of another kernel would not load, or load and crash.
fn check_release(info: &ModuleInfo, release: &str) -> Result<(), KernelError> {
    match &info.release {
        Some(found) if found != release => Err(KernelError::OtherModules {
            module: info.path.clone(),
            found: found.clone(),
            release: release.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Each module after those that it needs. Of a circle, the order is any.
fn in_load_order(mut infos: BTreeMap<String, ModuleInfo>) -> Vec<ModuleInfo> {
    let mut order = Vec::with_capacity(infos.len());
    let names: Vec<_> = infos.keys().cloned().collect();
    let (mut begun, mut done) = (BTreeSet::new(), BTreeSet::new());
    for name in names {
        // The second time that a name is on top, all that it needs is done.
        let mut open = vec![name];
        while let Some(name) = open.pop() {
            let Some(info) = infos.get(&name).filter(|_| !done.contains(&name)) else { continue };
            if begun.insert(name.clone()) {
                open.push(name);
                open.extend(info.needs.iter().filter(|need| !begun.contains(*need)).cloned());
            } else {
                done.insert(name.clone());
                order.push(name);
            }
        }
    }
    order.iter().filter_map(|name| infos.remove(name)).collect()
}

/// Files that are collected: contents in the spool, places in memory.
struct Contents {
    spool: Spool,
    files: BTreeMap<Utf8PathBuf, kiln_rootfs::Body>,
}

impl Contents {
    fn add(&mut self, path: &Utf8Path, bytes: &[u8]) -> Result<(), KernelError> {
        let mut writer = self.spool.body();
        writer.data(0, bytes)?;
        let body = writer.finish(bytes.len() as u64)?;
        self.files.insert(path.to_owned(), body);
        Ok(())
    }

    fn into_tree(self) -> (Spool, Tree) {
        let attributes = |permissions| Attributes { permissions, ..Attributes::default() };
        let mut tree = Tree::new(attributes(0o755));
        for (path, body) in self.files {
            let mut directory = Tree::ROOT;
            for part in path.parent().into_iter().flat_map(Utf8Path::components) {
                let new = Node { attributes: attributes(0o755), kind: Kind::Directory(Children::new()) };
                directory = child(&mut tree, directory, part.as_str(), new);
            }
            let file = Node { attributes: attributes(0o644), kind: Kind::File(body) };
            child(&mut tree, directory, path.file_name().unwrap_or_default(), file);
        }
        (self.spool, tree)
    }
}

/// The node of a name in a directory; if there is none, it is made.
fn child(tree: &mut Tree, directory: NodeId, name: &str, new: Node) -> NodeId {
    if let Some(found) = tree.children(directory).and_then(|children| children.get(name.as_bytes())) {
        return *found;
    }
    let id = tree.add(new);
    if let Some(children) = tree.children_mut(directory) {
        children.insert(name.as_bytes().into(), id);
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::elf::made;

    const RELEASE: &str = "6.1.0-mine";

    fn module(info: &str) -> Vec<u8> {
        let info = format!("{info}\0vermagic={RELEASE} SMP mod_unload\0");
        made::elf(".modinfo", info.as_bytes(), &[])
    }

    fn scratch() -> (tempfile::TempDir, Utf8PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = Utf8PathBuf::from_path_buf(directory.path().into()).expect("UTF-8");
        (directory, path)
    }

    fn files(files: &[(&str, Vec<u8>)]) -> ModuleFiles {
        ModuleFiles::Memory(files.iter().map(|(path, bytes)| ((*path).into(), bytes.clone())).collect())
    }

    #[test]
    fn all_modules_are_in_the_tree_unpacked_with_their_tables() {
        let (_guard, path) = scratch();
        let packed = |bytes: Vec<u8>| crate::kernel::made::gzip(&bytes);
        let given = files(&[
            ("kernel/fs/erofs.ko.gz", packed(module("depends=libcrc32c"))),
            ("kernel/lib/libcrc32c.ko", module("depends=")),
            ("kernel/fs/round.ko", module("depends=about")),
            ("kernel/fs/about.ko", module("depends=round")),
            (BUILTIN, b"kernel/fs/ext4/ext4.ko\n".to_vec()),
            ("modules.dep", b"old".to_vec()),
        ]);
        let written = write(&given, RELEASE, &path).expect("is written");
        assert!(written.known.loadable.contains("erofs") && written.known.built_in.expect("known").contains("ext4"));

        let read = ModuleFiles::erofs(&path.join(MODULES_FILE)).expect("is one");
        assert_eq!(read.read("kernel/fs/erofs.ko".into()).expect("is there"), module("depends=libcrc32c"));
        let dep = String::from_utf8(read.read("modules.dep".into()).expect("is there")).expect("text");
        insta::assert_snapshot!(dep);
        let names: Vec<_> =
            read.paths().expect("reads").into_iter().filter(|path| path.extension() != Some("ko")).collect();
        assert_eq!(names.len(), 10, "{names:?}");
    }

    #[test]
    fn the_same_modules_are_the_same_file() {
        let (_guard, path) = scratch();
        let one = files(&[("kernel/a.ko", module("depends=")), ("kernel/b.ko", module("depends=a"))]);
        let digest = |name: &str| {
            let below = path.join(name);
            private_file::create_dir(&below).expect("made");
            write(&one, RELEASE, &below).expect("is written").file.expect("has modules").blake3
        };
        assert_eq!(digest("first"), digest("second"));
    }

    #[test]
    fn modules_of_another_kernel_and_rubbish_are_refused_with_their_names() {
        let (_guard, path) = scratch();
        let other = made::elf(".modinfo", b"depends=\0vermagic=6.12.0 SMP\0", &[]);
        let error = write(&files(&[("kernel/x.ko", other)]), RELEASE, &path).expect_err("of another kernel");
        assert!(matches!(&error, KernelError::OtherModules { found, .. } if found == "6.12.0"), "{error}");
        let error = write(&files(&[("kernel/x.ko", b"rubbish".to_vec())]), RELEASE, &path).expect_err("no module");
        assert!(error.to_string().contains("kernel/x.ko"), "{error}");
    }

    #[test]
    fn a_kernel_without_modules_has_no_file() {
        let (_guard, path) = scratch();
        let written = write(&ModuleFiles::none(), RELEASE, &path).expect("is written");
        assert_eq!(written, ModuleTree { file: None, known: KnownModules::default() });
    }
}
