//! The store of kernels: what is accepted and refused, names, and what a crash leaves.

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::*;
use crate::every_variant::{chains, every_variant};
use crate::home::Home;
use crate::image::modules::ModuleFiles;
use crate::image::{KernelFormat, NoSpace, SourceError};
use crate::kernel::elf::made;
use crate::kernel::made::{bzimage, gzip};

const RELEASE: &str = "6.1.0-mine";
const PVH: (&str, u32, &[u8]) = ("Xen", 18, &[0, 0, 0, 1]);
/// All that any VM needs, built in; what disks need is a module.
const CONFIG: &str = "CONFIG_PCI=y\nCONFIG_BLK_DEV_INITRD=y\nCONFIG_BINFMT_ELF=y\nCONFIG_DEVTMPFS=y\nCONFIG_PROC_FS=y\n\
    CONFIG_SYSFS=y\nCONFIG_TMPFS=y\nCONFIG_SERIAL_8250_CONSOLE=y\nCONFIG_UNIX98_PTYS=y\nCONFIG_UNIX=y\nCONFIG_EPOLL=y\n\
    CONFIG_SIGNALFD=y\nCONFIG_FUTEX=y\nCONFIG_INOTIFY_USER=y\nCONFIG_CGROUPS=y\nCONFIG_MEMCG=y\nCONFIG_CGROUP_PIDS=y\nCONFIG_VIRTIO_PCI=y\n\
    CONFIG_VIRTIO_CONSOLE=y\nCONFIG_VIRTIO_BLK=m\nCONFIG_EROFS_FS=m\nCONFIG_OVERLAY_FS=y\nCONFIG_EXT4_FS=y\n\
    CONFIG_MODULES=y\n";

struct Place {
    _directory: tempfile::TempDir,
    root: Utf8PathBuf,
    store: KernelStore,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let root = Utf8PathBuf::from_path_buf(directory.path().into()).expect("UTF-8");
        let store = KernelStore::new(&Home::at(root.join("home")));
        Self { _directory: directory, root, store }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> Utf8PathBuf {
        let path = self.root.join(name);
        fs::create_dir_all(path.parent().expect("below the root")).expect("is made");
        fs::write(&path, bytes).expect("is written");
        path
    }

    /// The modules of a kernel, as `make modules_install` leaves them.
    fn modules(&self, release: &str) -> Utf8PathBuf {
        for name in ["virtio_blk", "erofs"] {
            let info = format!("depends=\0vermagic={release} SMP\0");
            let module = made::elf(".modinfo", info.as_bytes(), &[]);
            self.file(&format!("modules/lib/modules/{release}/kernel/{name}.ko.gz"), &gzip(&module));
        }
        self.root.join("modules")
    }

    fn add(
        &self,
        kernel: &[u8],
        config: Option<&str>,
        change: impl FnOnce(&mut AddKernel<'_>),
    ) -> Result<Added, KernelError> {
        let input = KernelInput::File(self.file("kernel", kernel));
        let config = config.map(|text| self.file("config", text.as_bytes()));
        let mut silent = |_| {};
        let mut request = AddKernel {
            input,
            modules: None,
            config,
            name: None,
            source: None,
            build_key: None,
            progress: &mut silent,
        };
        change(&mut request);
        self.store.add(request)
    }

    fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root.join("home/kernels")).expect("is there");
        let names = entries.map(|entry| entry.expect("reads").file_name().into_string().expect("UTF-8"));
        names.filter(|name| name != "names").collect()
    }
}

fn vmlinux(release: &str) -> Vec<u8> {
    made::elf(".rodata", format!("Linux version {release} (me@host)\0").as_bytes(), &[PVH])
}

fn named(text: &str) -> KernelName {
    text.parse().expect("a name")
}

#[test]
fn a_kernel_with_its_modules_is_found_by_its_names_and_its_digest() {
    let place = Place::new();
    let modules = place.modules(RELEASE);
    let added = place
        .add(&vmlinux(RELEASE), Some(CONFIG), |request| {
            (request.modules, request.name) = (Some(modules), Some(named("mine:debug")));
        })
        .expect("is accepted");
    let kernel = added.kernel;
    assert!(added.is_new && kernel.release == RELEASE && kernel.format == KernelFormat::Vmlinux);
    assert_eq!(fs::read(&kernel.file).expect("reads"), vmlinux(RELEASE));
    assert_eq!(kernel.module_count, 2);
    let tree = ModuleFiles::erofs(kernel.modules.as_deref().expect("has modules")).expect("reads");
    assert!(tree.read("kernel/erofs.ko".into()).expect("is there").starts_with(b"\x7fELF"));
    let missing: Vec<_> = kernel.missing.iter().map(|one| one.option.as_str()).collect();
    assert_eq!(missing, ["CONFIG_VIRTIO_NET", "CONFIG_INET"]);
    kernel.check(Purpose::Root).expect("has what disks need");
    kernel.check_modules(&["virtio-blk".into(), "erofs".into()]).expect("are there");
    let error = kernel.check_modules(&["erofs".into(), "btrfs".into()]).expect_err("is not there");
    assert!(matches!(&error, KernelError::NoModule { module, .. } if module == "btrfs"), "{error}");
    let error = kernel.check(Purpose::Networks).expect_err("has no network");
    assert!(error.to_string().contains("CONFIG_VIRTIO_NET"), "{error}");

    for asked in ["mine:debug", "debug", "6.1.0", "6.1", "6", &kernel.digest, &kernel.digest[..8]] {
        assert_eq!(place.store.find(asked).expect(asked), kernel, "{asked}");
    }
    for asked in ["mine", "6.1.0-m", "6.12", "bug", "", &kernel.digest[..7]] {
        let error = place.store.find(asked).expect_err(asked);
        assert!(matches!(&error, KernelError::Unknown { known, .. } if known == &["mine:debug"]), "{asked}: {error}");
    }
}

#[test]
fn the_same_kernel_is_stored_once_and_a_name_goes_to_the_newest() {
    let place = Place::new();
    let first = place.add(&vmlinux(RELEASE), Some(CONFIG), |_| {}).expect("is accepted");
    let again = place
        .add(&vmlinux(RELEASE), Some(CONFIG), |request| request.name = Some(named("second")))
        .expect("is accepted");
    assert!(!again.is_new && again.kernel.digest == first.kernel.digest);
    let other = place
        .add(&bzimage(b"x"), Some(CONFIG), |request| {
            request.name = Some(named("second"));
            request.modules = Some(place.modules("6.12.0"));
        })
        .expect("is accepted");
    assert_eq!((other.kernel.format, other.kernel.release.as_str()), (KernelFormat::BzImage, "6.12.0"));
    assert_eq!(place.store.find("second").expect("is there"), other.kernel);
    assert_eq!(place.store.list().expect("lists").len(), 2);
    let error = place.store.find("6").expect_err("both begin so");
    assert!(matches!(&error, KernelError::Ambiguous { found, .. } if found.len() == 2), "{error}");

    place.store.remove("second").expect("is removed");
    assert_eq!(place.store.list().expect("lists"), std::slice::from_ref(&first.kernel));
    place.store.remove(&first.kernel.digest).expect("is removed");
    assert_eq!((place.left(), place.store.names().expect("lists").len()), (vec![], 0));
}

#[test]
fn a_name_that_is_not_the_last_one_goes_alone() {
    let place = Place::new();
    place.add(&vmlinux(RELEASE), Some(CONFIG), |_| {}).expect("is accepted");
    place.add(&vmlinux(RELEASE), Some(CONFIG), |request| request.name = Some(named("b"))).expect("is accepted");
    place.store.remove("b").expect("is removed");
    assert_eq!(place.store.names_of(&place.store.find("6").expect("stays").digest).expect("lists"), [named(RELEASE)]);
}

#[test]
fn a_kernel_that_lacks_what_each_vm_needs_is_refused_by_name_and_leaves_nothing() {
    let place = Place::new();
    let without = CONFIG.replace("CONFIG_VIRTIO_PCI=y", "# CONFIG_VIRTIO_PCI is not set");
    let without = without.replace("CONFIG_VIRTIO_CONSOLE=y", "CONFIG_VIRTIO_CONSOLE=m");
    let error = place.add(&vmlinux(RELEASE), Some(&without), |_| {}).expect_err("no virtio");
    insta::assert_snapshot!(format!("{error}\nhint: {}", error.hint().expect("has one")));
    assert_eq!(place.left(), [] as [String; 0]);
}

#[test]
fn a_configuration_is_taken_from_the_kernel_itself() {
    let place = Place::new();
    let text = [format!("Linux version {RELEASE} x").as_bytes(), b"IKCFG_ST", &gzip(CONFIG.as_bytes())].concat();
    let kernel = bzimage(&gzip(&made::elf(".rodata", &text, &[PVH])));
    let added = place.add(&kernel, None, |request| request.modules = Some(place.modules(RELEASE))).expect("accepted");
    let config = added.kernel.config.expect("was found");
    assert_eq!(fs::read_to_string(config).expect("reads"), CONFIG);
    let error = place.add(&vmlinux(RELEASE), None, |_| {}).expect_err("nothing says what it has");
    assert!(matches!(error, KernelError::NoConfig { .. }), "{error}");
}

#[test]
fn files_that_are_no_kernels_configurations_or_modules_are_refused_by_name() {
    let place = Place::new();
    let refused = |kernel: &[u8], config: &str, modules: Option<&str>| {
        let modules = modules.map(|path| place.root.join(path));
        let added = place.add(kernel, Some(config), |request| request.modules = modules);
        added.expect_err("is refused").to_string().replace(place.root.as_str(), "/r")
    };
    place.modules("6.12.0");
    fs::create_dir_all(place.root.join("empty")).expect("is made");
    let good = vmlinux(RELEASE);
    let lines = [
        refused(b"#!/bin/sh\n", CONFIG, None),
        refused(&made::elf(".text", b"", &[]), CONFIG, None),
        refused(&bzimage(b"x"), CONFIG, None),
        refused(b"!<arch>\ndebian-binary   rubbish", CONFIG, None),
        refused(&good, "no configuration", None),
        refused(&good, CONFIG, Some("empty")),
        refused(&good, CONFIG, Some("nowhere")),
        refused(&good, CONFIG, Some("modules")),
        refused(&good, CONFIG, Some("modules/lib/modules/6.12.0")),
    ];
    insta::assert_snapshot!(lines.map(|line| line.lines().next().unwrap_or_default().to_owned()).join("\n"));
    assert_eq!(place.left(), [] as [String; 0]);
}

#[test]
fn a_changed_file_is_found_and_the_kernel_can_be_added_again() {
    let place = Place::new();
    let kernel = place.add(&vmlinux(RELEASE), Some(CONFIG), |_| {}).expect("is accepted").kernel;
    let mut bytes = fs::read(&kernel.file).expect("reads");
    bytes[100] ^= 1;
    fs::write(&kernel.file, &bytes).expect("is changed");
    let error = place.store.find(RELEASE).expect_err("is damaged");
    assert!(error.to_string().contains("`vmlinux` is not what was added"), "{error}");
    let again = place.add(&vmlinux(RELEASE), Some(CONFIG), |_| {}).expect("is accepted");
    assert!(again.is_new);
    place.store.find(RELEASE).expect("is whole");

    let record = kernel.dir.join("kernel.json");
    for (from, to) in [("vmlinux", "../x"), ("6.1.0-mine", "../../x"), ("\"format\": 1", "\"format\": 9"), ("{", "")] {
        let text = fs::read_to_string(&record).expect("reads");
        fs::write(&record, text.replacen(from, to, 1)).expect("is changed");
        let error = place.store.find(&kernel.digest).expect_err("is damaged");
        assert!(matches!(error, KernelError::Damaged { .. }), "{error}");
        fs::write(&record, text).expect("is restored");
    }
}

#[test]
fn each_error_has_its_text_and_a_hint() {
    let release = || RELEASE.to_owned();
    let path = || Utf8PathBuf::from("/k");
    let source = || std::io::Error::from(std::io::ErrorKind::PermissionDenied);
    let missing = |module: Option<&str>| Missing {
        option: "CONFIG_VIRTIO_PCI".into(),
        purpose: Purpose::Boot,
        what: "devices of a VM".into(),
        module: module.map(str::to_owned),
    };
    let lacks = |one| KernelError::Lacks { release: release(), purpose: Purpose::Boot, missing: vec![one] };
    let unknown = |asked: &str, known: &[&str]| KernelError::Unknown {
        asked: asked.into(),
        known: known.iter().map(|name| (*name).to_owned()).collect(),
    };
    let errors = every_variant!(KernelError {
        Unknown: [unknown("6.12", &[]), unknown("debian:6.12", &["mine"]), unknown("other", &["a", "b"])],
        Ambiguous: [KernelError::Ambiguous { asked: "6.1".into(), found: vec!["a (0123)".into(), "b (4567)".into()] }],
        BadName: [KernelError::BadName(BadKernelName { name: "a/b".into() })],
        Source: [KernelError::Source(SourceError::Unusable { path: path(), problem: "is not a kernel package" })],
        NotAKernel: [KernelError::NotAKernel { path: path() }],
        NoRelease: [KernelError::NoRelease { path: path() }],
        NoConfig: [KernelError::NoConfig { release: release() }],
        BadConfig: [KernelError::BadConfig { path: path() }],
        Lacks: [lacks(missing(None)), lacks(missing(Some("virtio_pci")))],
        NoModules: [KernelError::NoModules { path: path() }],
        Modules: [KernelError::Modules { release: release(), problem: "the module `x.ko` is damaged".into() }],
        NoModule: [KernelError::NoModule { release: release(), module: "btrfs".into() }],
        OtherModules: [KernelError::OtherModules { module: "x.ko".into(), found: "6.12.0".into(), release: release() }],
        Spool: [KernelError::Spool(kiln_rootfs::SpoolError::TooLarge { bytes_max: 1 << 30 })],
        Write: [KernelError::Write(kiln_rootfs::erofs::WriteError::TooLarge { bytes: 2, bytes_max: 1 })],
        NoSpace: [KernelError::NoSpace(NoSpace { path: path(), needed_mib: 57, available_mib: 40 })],
        Damaged: [KernelError::Damaged { dir: path(), problem: "`vmlinux` is not what was added".into() }],
        Io: [KernelError::Io { path: path(), source: source() }],
    });
    insta::assert_snapshot!(chains(&errors, |error| error
        .hint()
        .map(|hint| format!("hint: {hint}"))
        .into_iter()
        .collect()));
}

/// A process is killed at each step.
#[cfg(feature = "failpoints")]
mod killed {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    use super::*;
    use crate::failpoint::{FAIL_POINT_VARIABLE, FAIL_POINTS};

    const HOME_VARIABLE: &str = "KILN_TEST_KERNEL_HOME";

    #[test]
    #[ignore = "the other half of the test below, started by it in a process of its own"]
    fn add_and_be_killed() {
        let root = std::env::var(HOME_VARIABLE).expect("started by the test below");
        let root = Utf8Path::new(&root);
        let mut silent = |_| {};
        let request = AddKernel {
            input: KernelInput::File(root.join("kernel")),
            modules: Some(root.join("modules")),
            config: Some(root.join("config")),
            name: None,
            source: None,
            build_key: None,
            progress: &mut silent,
        };
        KernelStore::new(&Home::at(root.join("home"))).add(request).expect("is accepted");
    }

    #[test]
    fn a_kernel_exists_whole_or_not_at_all_and_the_next_one_cleans_up() {
        let points: Vec<_> = FAIL_POINTS.iter().filter(|point| point.starts_with("kernel.")).collect();
        assert_eq!(points.len(), 3);
        for point in points {
            let place = Place::new();
            place.modules(RELEASE);
            place.file("kernel", &vmlinux(RELEASE));
            place.file("config", CONFIG.as_bytes());
            let ended = Command::new(std::env::current_exe().expect("this binary"))
                .args(["--exact", "kernels::tests::killed::add_and_be_killed", "--ignored"])
                .env(HOME_VARIABLE, &place.root)
                .env(FAIL_POINT_VARIABLE, point)
                .output()
                .expect("runs");
            assert_eq!(ended.status.signal(), Some(9), "{point}: {ended:?}");
            let found = place.store.list().expect("lists");
            assert_eq!(found.len(), usize::from(*point == "kernel.published"), "{point}");
            assert_eq!(place.store.names().expect("lists").len(), 0, "{point}");

            let modules = place.root.join("modules");
            let added = place.add(&vmlinux(RELEASE), Some(CONFIG), |request| request.modules = Some(modules));
            let digest = added.expect("is accepted").kernel.digest;
            assert_eq!(place.left(), [digest], "{point}");
            place.store.find(RELEASE).expect("is whole");
        }
    }
}
