//! Chooses kernel modules for an image: the requested ones and all that they need, with the tables by which `modprobe`
//! and the agent find them. Packages have no `modules.dep`, which is made when they are installed, so a module's needs
//! are read from the module itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use kiln_rootfs::erofs::{self, ReadLimits};
use kiln_rootfs::{Body, Kind, Source, Tree};

use super::module_tables::{self, ModuleInfo};
use crate::kernel::elf::Elf;
use crate::kernel::{gunzip, unxz, unzstd};

/// No module is larger.
const MODULE_BYTES_MAX: usize = 64 << 20;
/// Directories below `/lib/modules/<release>`.
const DEPTH_MAX: usize = 16;
pub(crate) const BUILTIN: &str = "modules.builtin";

/// The modules of one kernel, below its `/lib/modules/<release>`; paths are relative to that.
#[derive(Debug)]
pub(crate) enum ModuleFiles {
    Directory(Utf8PathBuf),
    Memory(BTreeMap<Utf8PathBuf, Vec<u8>>),
    /// An EROFS file, and where the contents of its files are in it.
    Erofs(std::fs::File, BTreeMap<Utf8PathBuf, Body>),
}

/// Why modules can't be chosen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModulesError {
    #[error("the kernel has no module `{name}`, which guests need")]
    Missing { name: String },
    #[error(
        "the module `{path}` is damaged or packed in an unknown way (`.ko`, `.ko.gz`, `.ko.xz` and `.ko.zst` are known)"
    )]
    Damaged { path: Utf8PathBuf },
    #[error("failed to read the modules in `{path}`")]
    Read {
        path: Utf8PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The files for `/lib/modules/<release>` of an image.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// By path. Modules are stored unpacked.
    pub(crate) files: BTreeMap<Utf8PathBuf, Vec<u8>>,
    /// Names of the modules, sorted.
    pub(crate) names: Vec<String>,
}

impl ModuleFiles {
    /// A kernel without modules.
    pub(crate) fn none() -> Self {
        Self::Memory(BTreeMap::new())
    }

    /// The modules in an EROFS file.
    pub(crate) fn erofs(path: &Utf8Path) -> io::Result<Self> {
        let file = fs::File::open(path)?.into_file();
        let bytes = file.metadata()?.len();
        let tree = erofs::read(&file, bytes, &ReadLimits::default()).map_err(io::Error::other)?;
        let mut bodies = BTreeMap::new();
        let mut open = vec![(Utf8PathBuf::new(), Tree::ROOT)];
        while let Some((path, id)) = open.pop() {
            match &tree.node(id).kind {
                Kind::Directory(children) => {
                    let names = children.iter().filter_map(|(name, id)| Some((std::str::from_utf8(name).ok()?, *id)));
                    open.extend(names.map(|(name, id)| (path.join(name), id)));
                }
                Kind::File(body) => _ = bodies.insert(path, body.clone()),
                _ => {}
            }
        }
        Ok(Self::Erofs(file, bodies))
    }

    /// All files: a path, and a text that changes with the contents.
    pub(crate) fn paths(&self) -> Result<Vec<Utf8PathBuf>, ModulesError> {
        match self {
            Self::Memory(files) => Ok(files.keys().cloned().collect()),
            Self::Erofs(_, bodies) => Ok(bodies.keys().cloned().collect()),
            Self::Directory(root) => {
                let mut paths = Vec::new();
                walk(root, Utf8Path::new(""), DEPTH_MAX, &mut paths)
                    .map_err(|source| ModulesError::Read { path: root.clone(), source })?;
                paths.sort();
                Ok(paths)
            }
        }
    }

    pub(crate) fn read(&self, path: &Utf8Path) -> Result<Vec<u8>, ModulesError> {
        let bytes = match self {
            Self::Memory(files) => files.get(path).cloned().ok_or(io::ErrorKind::NotFound.into()),
            Self::Directory(root) => read_bounded(&root.join(path)),
            Self::Erofs(file, bodies) => match bodies.get(path) {
                Some(body) => read_body(file, body),
                None => Err(io::ErrorKind::NotFound.into()),
            },
        };
        bytes.map_err(|source| ModulesError::Read { path: path.into(), source })
    }

    /// Reads a module and unpacks it.
    pub(crate) fn read_module(&self, path: &Utf8Path) -> Result<Vec<u8>, ModulesError> {
        let bytes = self.read(path)?;
        match path.extension() {
            Some("ko") => Some(bytes),
            Some("gz") => gunzip(&bytes, MODULE_BYTES_MAX),
            Some("xz") => unxz(&bytes, MODULE_BYTES_MAX),
            Some("zst") => unzstd(&bytes, MODULE_BYTES_MAX),
            _ => None,
        }
        .ok_or_else(|| ModulesError::Damaged { path: path.into() })
    }
}

/// Reads a file of a directory that the user named.
fn read_bounded(path: &Utf8Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MODULE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MODULE_BYTES_MAX { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

fn read_body(file: &std::fs::File, body: &Body) -> io::Result<Vec<u8>> {
    let size = usize::try_from(body.size).ok().filter(|size| *size <= MODULE_BYTES_MAX);
    let mut bytes = vec![0; size.ok_or(io::ErrorKind::FileTooLarge)?];
    for extent in &body.extents {
        // The reader has checked that extents are within their file.
        let (start, length) = (extent.offset as usize, extent.bytes as usize);
        Source::read_exact_at(file, &mut bytes[start..start + length], extent.spool_offset)?;
    }
    Ok(bytes)
}

fn walk(root: &Utf8Path, below: &Utf8Path, depth: usize, paths: &mut Vec<Utf8PathBuf>) -> io::Result<()> {
    for entry in root.join(below).read_dir_utf8()? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_file() {
            paths.push(path);
        } else if kind.is_dir() && depth > 0 {
            walk(root, &path, depth - 1, paths)?;
        }
    }
    Ok(())
}

/// The kernel's name of the module in a file. `None` for other files.
pub(crate) fn module_name(path: &Utf8Path) -> Option<String> {
    let file = path.file_name()?;
    let (name, packing) = file.split_once(".ko")?;
    matches!(packing, "" | ".xz" | ".gz" | ".zst").then(|| name.replace('-', "_"))
}

/// Takes the modules `required` and, if the kernel has them, `optional`, with all that they need. A module that is
/// built into the kernel counts as present.
pub(crate) fn choose(files: &ModuleFiles, required: &[&str], optional: &[&str]) -> Result<Chosen, ModulesError> {
    let paths = files.paths()?;
    let builtin_list = Utf8PathBuf::from(BUILTIN);
    let builtin_text = if paths.contains(&builtin_list) { files.read(&builtin_list)? } else { Vec::new() };
    let builtin = String::from_utf8_lossy(&builtin_text).lines().filter_map(|line| module_name(line.into())).collect();
    let by_name = paths.into_iter().filter_map(|path| Some((module_name(&path)?, path))).collect();

    let mut closure = Closure { files, by_name, builtin, modules: BTreeMap::new(), order: Vec::new() };
    for name in required {
        if !closure.add(name)? {
            return Err(ModulesError::Missing { name: (*name).into() });
        }
    }
    for name in optional {
        closure.add(name)?;
    }
    Ok(closure.finish(builtin_text))
}

struct Closure<'a> {
    files: &'a ModuleFiles,
    by_name: BTreeMap<String, Utf8PathBuf>,
    builtin: BTreeSet<String>,
    modules: BTreeMap<String, (ModuleInfo, Vec<u8>)>,
    /// Names, each after those that it needs.
    order: Vec<String>,
}

impl Closure<'_> {
    /// Adds a module after those that it needs. Returns false if the kernel does not have it.
    fn add(&mut self, name: &str) -> Result<bool, ModulesError> {
        let name = name.replace('-', "_");
        if self.modules.contains_key(&name) || self.builtin.contains(&name) {
            return Ok(true);
        }
        let Some(path) = self.by_name.get(&name).cloned() else { return Ok(false) };
        let bytes = self.files.read_module(&path)?;
        let info = module_info(&path, &bytes)?;
        let (needs, soft) = (info.needs.clone(), info.soft.clone());
        // Added before its needs are followed, so that a circle ends.
        self.modules.insert(name.clone(), (info, bytes));
        for need in needs {
            if !self.add(&need)? {
                return Err(ModulesError::Missing { name: need });
            }
        }
        for line in &soft {
            for wish in line.split_ascii_whitespace().skip(1).filter(|word| !word.ends_with(':')) {
                // A soft dependency may name an algorithm ("crc32c"). Any guest can use the generic module that
                // provides it.
                let _ = self.add(wish)? || self.add(&format!("{wish}_generic"))?;
            }
        }
        self.order.push(name);
        Ok(true)
    }

    fn finish(mut self, builtin_text: Vec<u8>) -> Chosen {
        let mut files = BTreeMap::new();
        let mut infos = Vec::with_capacity(self.order.len());
        for name in &self.order {
            let (info, bytes) = self.modules.remove(name).expect("each module of the order was read");
            files.insert(info.path.clone(), bytes);
            infos.push(info);
        }
        let mut names = self.order;
        names.sort();
        let tables = module_tables::text(&infos, builtin_text);
        files.extend(tables.into_iter().map(|(name, bytes)| (name.into(), bytes)));
        Chosen { files, names }
    }
}

/// Reads a module's own description. The path in it is that of the unpacked module.
pub(crate) fn module_info(path: &Utf8Path, bytes: &[u8]) -> Result<ModuleInfo, ModulesError> {
    let damaged = || ModulesError::Damaged { path: path.into() };
    let name = module_name(path).ok_or_else(damaged)?;
    let text = Elf::parse(bytes).and_then(|elf| elf.section(".modinfo")).ok_or_else(damaged)?;
    let fields: Vec<_> = text
        .split(|&byte| byte == 0)
        .filter_map(|field| std::str::from_utf8(field).ok()?.split_once('='))
        // A field with a line break would break the tables, which have one field per line.
        .filter(|(_, value)| !value.contains('\n'))
        .collect();
    let all =
        |key: &str| fields.iter().filter(|(name, _)| *name == key).map(|(_, value)| (*value).to_owned()).collect();
    let needs: Vec<String> = all("depends");
    let (aliases, soft, versions): (_, _, Vec<String>) = (all("alias"), all("softdep"), all("vermagic"));
    let names = needs.iter().flat_map(|list| list.split(',')).filter(|name| !name.is_empty());
    let needs = names.map(|name| name.replace('-', "_")).collect();
    let path = match path.as_str().split_once(".ko") {
        Some((stem, _)) => Utf8PathBuf::from(format!("{stem}.ko")),
        None => path.to_owned(),
    };
    let release = versions.first().and_then(|text| text.split(' ').next()).map(str::to_owned);
    Ok(ModuleInfo { name, path, needs, aliases, soft, release })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::elf::made;

    fn module(info: &str) -> Vec<u8> {
        made::elf(".modinfo", info.replace('|', "\0").as_bytes(), &[])
    }

    fn files() -> ModuleFiles {
        let modules = [
            ("kernel/virtio/virtio.ko", "depends="),
            ("kernel/virtio/virtio_ring.ko", "depends=virtio"),
            ("kernel/virtio/virtio_pci.ko", "alias=pci:v00001AF4d*|depends=virtio-ring,virtio|license=GPL"),
            ("kernel/fs/erofs.ko", "depends=libcrc32c|alias=fs-erofs"),
            ("kernel/lib/libcrc32c.ko", "depends=|softdep=pre: crc32c"),
            ("kernel/crypto/crc32c_generic.ko", "depends=|alias=crypto-crc32c"),
            ("kernel/fs/unused.ko", "depends=virtio"),
            ("kernel/fs/round.ko", "depends=about"),
            ("kernel/fs/about.ko", "depends=round"),
            ("kernel/fs/broken.ko", "depends=nowhere"),
        ];
        let mut files: BTreeMap<_, _> = modules.map(|(path, info)| (path.into(), module(info))).into();
        files.insert(BUILTIN.into(), b"kernel/fs/ext4/ext4.ko\n".to_vec());
        ModuleFiles::Memory(files)
    }

    fn text(chosen: &Chosen, name: &str) -> String {
        String::from_utf8(chosen.files[Utf8Path::new(name)].clone()).expect("UTF-8")
    }

    #[test]
    fn a_module_comes_with_all_that_it_needs_and_wishes_for_and_nothing_else() {
        let chosen = choose(&files(), &["virtio_pci"], &["erofs", "ext4", "nothing"]).expect("are there");
        assert_eq!(chosen.names, ["crc32c_generic", "erofs", "libcrc32c", "virtio", "virtio_pci", "virtio_ring"],);
        assert_eq!(chosen.files.keys().filter(|path| path.extension() == Some("ko")).count(), 6);
    }

    #[test]
    fn the_tables_list_the_chosen_modules_in_load_order() {
        let chosen = choose(&files(), &["virtio-pci"], &["erofs"]).expect("are there");
        assert_eq!(
            text(&chosen, "modules.dep"),
            "kernel/virtio/virtio.ko:\n\
             kernel/virtio/virtio_ring.ko: kernel/virtio/virtio.ko\n\
             kernel/virtio/virtio_pci.ko: kernel/virtio/virtio_ring.ko kernel/virtio/virtio.ko\n\
             kernel/crypto/crc32c_generic.ko:\n\
             kernel/lib/libcrc32c.ko:\n\
             kernel/fs/erofs.ko: kernel/lib/libcrc32c.ko\n"
        );
        assert_eq!(
            text(&chosen, "modules.alias"),
            "alias pci:v00001AF4d* virtio_pci\nalias crypto-crc32c crc32c_generic\nalias fs-erofs erofs\n"
        );
        assert_eq!(text(&chosen, "modules.softdep"), "softdep libcrc32c pre: crc32c\n");
        assert_eq!(text(&chosen, BUILTIN), "kernel/fs/ext4/ext4.ko\n");
    }

    #[test]
    fn a_builtin_module_counts_as_present_and_a_missing_one_is_named() {
        assert_eq!(choose(&files(), &["ext4"], &[]).expect("is there").names, [] as [&str; 0]);
        for (asked, missing) in [("virtio_mem", "virtio_mem"), ("broken", "nowhere")] {
            let error = choose(&files(), &[asked], &[]).expect_err("is not there");
            assert!(matches!(&error, ModulesError::Missing { name } if name == missing), "{error}");
        }
    }

    #[test]
    fn a_circle_ends() {
        assert_eq!(choose(&files(), &["round"], &[]).expect("are there").names, ["about", "round"]);
    }

    #[test]
    fn packed_modules_of_a_directory_are_unpacked() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = Utf8PathBuf::from_path_buf(dir.path().into()).expect("UTF-8");
        fs::create_dir_all(root.join("kernel/virtio")).expect("is made");
        let plain = module("depends=");
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        io::Write::write_all(&mut encoder, &plain).expect("packs");
        fs::write(root.join("kernel/virtio/virtio.ko.xz"), encoder.finish().expect("packs")).expect("is written");
        let chosen = choose(&ModuleFiles::Directory(root), &["virtio"], &[]).expect("is there");
        assert_eq!(chosen.files[Utf8Path::new("kernel/virtio/virtio.ko")], plain);
    }

    #[test]
    fn rubbish_with_the_name_of_a_module_is_refused() {
        let files = ModuleFiles::Memory([("kernel/virtio.ko".into(), b"rubbish".to_vec())].into());
        assert!(matches!(choose(&files, &["virtio"], &[]), Err(ModulesError::Damaged { .. })));
    }
}
