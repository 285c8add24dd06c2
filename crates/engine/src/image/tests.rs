//! The store and the builder on kernels small enough for a unit test. Real ones are booted by the end-to-end tests.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc;
use std::thread;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::cpio::TooLarge;
use super::modules::ModulesError;
use super::*;
use crate::every_variant::{chains, every_variant};
use crate::home::Home;
use crate::kernel::elf::made;

const RELEASE: &str = "6.1.0-1-cloud-amd64";

/// A home, a kernel with its modules, and an agent, all removed at the end.
struct Scene {
    _dir: tempfile::TempDir,
    root: Utf8PathBuf,
    store: ImageStore,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = Utf8PathBuf::from_path_buf(dir.path().into()).expect("UTF-8");
        let store = ImageStore::new(&Home::at(root.join("home")));
        let scene = Self { _dir: dir, root, store };
        scene.write("agent", &made::elf(".text", b"agent", &[]));
        scene.write("vmlinux", &made::elf(".text", b"kernel", &[("Xen", 18, &[0; 4])]));
        for (path, needs) in [("virtio", ""), ("virtio_pci", "virtio"), ("virtio_console", "virtio"), ("unused", "")] {
            let info = format!("depends={needs}\0");
            let module = made::elf(".modinfo", info.as_bytes(), &[]);
            scene.write(&format!("{RELEASE}/kernel/{path}.ko"), &module);
        }
        scene
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().expect("is below the root")).expect("is made");
        fs::write(path, bytes).expect("is written");
    }

    fn build(&self) -> Result<(Image, Vec<BuildStep>), ImageError> {
        let mut steps = Vec::new();
        let image = self.build_with(&mut |step| steps.push(step))?;
        Ok((image, steps))
    }

    fn build_with(&self, progress: &mut dyn FnMut(BuildStep)) -> Result<Image, ImageError> {
        let kernel = KernelSource::Files { vmlinuz: self.root.join("vmlinux"), modules_dir: self.root.join(RELEASE) };
        self.store.build_mini(BuildOptions { agent: self.root.join("agent"), kernel, progress })
    }

    /// Directories of images, whole or half-built.
    fn image_dirs(&self) -> Vec<String> {
        let entries = self.root.join("home/images").read_dir_utf8().expect("is there");
        let names = entries.map(|entry| entry.expect("reads").file_name().to_owned());
        names.filter(|name| name != "names" && name != "locks").collect()
    }
}

fn contains(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

#[test]
fn a_built_image_is_found_by_name_digest_and_the_digests_beginning() {
    let scene = Scene::new();
    let (image, _) = scene.build().expect("builds");
    for asked in [MINI, &image.digest, &image.digest[..8]] {
        assert_eq!(scene.store.find_boot(asked).expect("is there"), image, "{asked}");
    }
    assert_eq!(scene.store.list().expect("reads"), [AnyImage::Boot(image.clone().into())]);
    image.verify().expect("is whole");
    assert_eq!(image.kernel_version, RELEASE);
    assert_eq!(image.kernel_format, KernelFormat::Vmlinux);
    assert_eq!(image.modules, ["virtio", "virtio_console", "virtio_pci"]);

    let initramfs = fs::read(&image.initramfs).expect("reads");
    for path in ["init", "bin/busybox", "bin/sh", &format!("lib/modules/{RELEASE}/modules.dep")] {
        assert!(contains(&initramfs, &format!("{path}\0")), "{path}");
    }
    assert!(!contains(&initramfs, "unused.ko"));
}

#[test]
fn the_same_parts_give_the_same_digest_in_another_home() {
    let (one, other) = (Scene::new(), Scene::new());
    let (image, _) = one.build().expect("builds");
    assert_eq!(other.build().expect("builds").0.digest, image.digest);

    other.write("agent", &made::elf(".text", b"another agent", &[]));
    assert_ne!(other.build().expect("builds").0.digest, image.digest);
    assert_eq!(other.image_dirs().len(), 2);
}

#[test]
fn the_same_inputs_are_not_built_twice() {
    let scene = Scene::new();
    let (image, first) = scene.build().expect("builds");
    assert!(!first.contains(&BuildStep::Unchanged));
    let (again, steps) = scene.build().expect("builds");
    assert_eq!((again, steps), (image, vec![BuildStep::Unchanged]));
}

#[test]
fn a_damaged_image_is_found_and_built_again() {
    let scene = Scene::new();
    let (image, _) = scene.build().expect("builds");
    let mut bytes = fs::read(&image.initramfs).expect("reads");
    *bytes.last_mut().expect("has bytes") ^= 1;
    fs::write(&image.initramfs, &bytes).expect("is written");
    let words = image.verify().expect_err("is damaged").to_string();
    assert!(words.contains("`initramfs`"), "{words}");
    let error = scene.store.find(MINI).expect_err("no VM is started with it");
    assert!(matches!(error, ImageError::Damaged { .. }) && error.to_string() == words, "{error}");
    let (repaired, steps) = scene.build().expect("builds");
    assert!(matches!(&steps[0], BuildStep::Repairing { problem } if *problem == words), "{steps:?}");
    assert_eq!(scene.store.find_boot(MINI).expect("is whole").digest, image.digest);
    repaired.verify().expect("is whole");

    fs::write(&image.initramfs, &bytes[1..]).expect("is written");
    let error = scene.store.find(MINI).expect_err("is damaged");
    assert!(matches!(error, ImageError::Damaged { .. }), "{error}");
    let (repaired, _) = scene.build().expect("builds");
    assert_eq!(repaired.digest, image.digest);
    repaired.verify().expect("is whole");
}

#[test]
fn an_unknown_image_is_refused_with_the_known_ones_and_a_hint() {
    let scene = Scene::new();
    let error = scene.store.find("mini").expect_err("nothing is built");
    assert_eq!(error.to_string(), "there is no image `mini` (none is built yet)");
    assert_eq!(error.hint().as_deref(), Some("kiln image build mini"));
    scene.build().expect("builds");
    for asked in ["debian", "", "../names", "0000000000", &"f".repeat(64)] {
        let error = scene.store.find(asked).expect_err("is not there").to_string();
        assert_eq!(error, format!("there is no image `{asked}` (there are: mini)"));
    }
}

#[test]
fn a_size_below_the_measured_least_is_refused_with_the_least() {
    let scene = Scene::new();
    let (image, _) = scene.build().expect("builds");
    for (memory, cpus, good) in [(192, 1, true), (191, 1, false), (192, 2, false), (256, 64, true)] {
        assert_eq!(image.check_memory(memory, cpus).is_ok(), good, "not measured: {memory} MiB, {cpus} CPUs");
    }
    let words = image.check_memory(80, 1).expect_err("may be too little").to_string();
    assert_eq!(
        words,
        "the image `mini` was not measured and is assumed to need 192 MiB of memory with 1 CPU, not 80 MiB"
    );
    assert_eq!(scene.store.measured_before(MINI).expect("reads"), None);

    let measured = scene.store.set_memory_min(&image, 96).expect("is written");
    assert_eq!(scene.store.find_boot(MINI).expect("is whole"), measured);
    assert_eq!((measured.digest.as_str(), measured.memory_mib_min), (image.digest.as_str(), Some(96)));
    assert_eq!(scene.store.measured_before(MINI).expect("reads"), Some(96));
    assert_eq!(scene.build().expect("builds").0, measured, "it is not measured twice");
    for (memory, cpus, good) in [(96, 1, true), (95, 1, false), (98, 4, false), (99, 4, true), (u64::MAX, 64, true)] {
        assert_eq!(measured.check_memory(memory, cpus).is_ok(), good, "{memory} MiB, {cpus} CPUs");
    }
    let words = measured.check_memory(80, 1).expect_err("is too little").to_string();
    assert_eq!(words, "the image `mini` needs 96 MiB of memory with 1 CPU, not 80 MiB");
}

#[test]
fn a_removed_image_is_gone_with_its_names() {
    let scene = Scene::new();
    let (image, _) = scene.build().expect("builds");
    scene.store.set_name("other", &image.digest).expect("is named");
    scene.store.remove(MINI).expect("is removed");
    assert_eq!(scene.store.find_boot("other").expect("has a name left").digest, image.digest);
    scene.store.remove(&image.digest).expect("is removed");
    assert_eq!(scene.image_dirs(), [] as [&str; 0]);
    assert!(scene.store.names().expect("reads").is_empty());
    scene.store.remove(MINI).expect_err("is gone");
}

#[test]
fn a_manifest_that_points_out_of_its_directory_is_refused() {
    let scene = Scene::new();
    let (image, _) = scene.build().expect("builds");
    let path = image.dir.join("image.json");
    let text = fs::read_to_string(&path).expect("reads");
    for (from, to) in [("\"initramfs\"", "\"../x\""), ("loglevel", "init=/bin/sh loglevel"), ("{", "["), ("1", "2")] {
        fs::write(&path, text.replacen(from, to, if from == "\"initramfs\"" { 2 } else { 1 })).expect("is written");
        let error = scene.store.find(MINI).expect_err("was changed");
        assert!(matches!(error, ImageError::Damaged { .. }), "{error}");
    }
}

#[test]
fn builds_of_the_same_image_wait_for_each_other_and_say_so() {
    let scene = Scene::new();
    let (packing, packed) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let first = scope.spawn(|| {
            scene.build_with(&mut move |step| {
                if matches!(step, BuildStep::Packing { .. }) {
                    packing.send(()).expect("the test waits");
                    may_go_on.recv().expect("the test sends");
                }
            })
        });
        packed.recv().expect("the first build gets there");
        let mut steps = Vec::new();
        let second = scene.build_with(&mut |step| {
            if matches!(step, BuildStep::Waiting { .. }) {
                go_on.send(()).expect("the first build waits");
            }
            steps.push(step);
        });
        let first = first.join().expect("does not panic").expect("builds");
        assert_eq!(second.expect("builds"), first);
        assert!(matches!(steps[..], [BuildStep::Waiting { .. }, BuildStep::Unchanged]), "{steps:?}");
    });
}

#[test]
fn a_build_that_cannot_be_published_leaves_no_half_image() {
    let scene = Scene::new();
    let (image, _) = scene.build().expect("builds");
    scene.store.remove(MINI).expect("is removed");
    let error = scene.build_with(&mut |step| {
        if matches!(step, BuildStep::Writing { .. }) {
            fs::create_dir_all(image.dir.join("occupied")).expect("is made");
        }
    });
    assert!(matches!(error, Err(ImageError::Io { .. })), "{error:?}");
    assert_eq!(scene.image_dirs(), [image.digest.as_str()]);
    assert!(scene.store.names().expect("reads").is_empty());

    // The directory that was in the way is not an image, so the next build removes it.
    scene.build().expect("builds").0.verify().expect("is whole");
}

#[test]
fn unusable_parts_are_named() {
    let refused = |break_it: &dyn Fn(&Scene)| {
        let scene = Scene::new();
        break_it(&scene);
        let words = scene.build().expect_err("can't be built").to_string();
        assert_eq!(scene.image_dirs(), [] as [&str; 0]);
        words
    };
    let module = format!("{RELEASE}/kernel/virtio_pci.ko");
    let remove = |scene: &Scene, path: &str| fs::remove_file(scene.root.join(path)).expect("is removed");
    assert!(refused(&|scene| remove(scene, &module)).contains("no module `virtio_pci`"));
    assert!(refused(&|scene| scene.write(&module, b"rubbish")).contains("virtio_pci.ko` is damaged"));
    assert!(refused(&|scene| scene.write("vmlinux", b"rubbish")).contains("not a Linux kernel"));
    assert!(refused(&|scene| remove(scene, "vmlinux")).contains("vmlinux"));
}

#[test]
fn agents_that_cannot_run_in_a_guest_are_refused_before_a_build() {
    let scene = Scene::new();
    scene.write("agent", b"#!/bin/sh\n");
    let error = scene.build().expect_err("is a script");
    assert!(error.to_string().contains("agent` is not a program for x86-64 Linux"), "{error}");
    fs::remove_file(scene.root.join("agent")).expect("is removed");
    assert!(scene.build().expect_err("is missing").to_string().contains("agent"));
    assert!(!scene.root.join("home").exists());
}

#[test]
fn only_this_user_can_read_an_image() {
    let scene = Scene::new();
    let (image, _) = scene.build().expect("builds");
    let mode = |path: &Utf8Path| fs::metadata(path).expect("is there").permissions().mode() & 0o777;
    for directory in [&scene.root.join("home"), &scene.root.join("home/images/names"), &image.dir] {
        assert_eq!(mode(directory), 0o700, "{directory}");
    }
    for file in [&scene.root.join("home/images/names/mini"), &image.kernel, &image.dir.join("image.json")] {
        assert_eq!(mode(file), 0o600, "{file}");
    }
}

#[test]
fn each_error_has_its_text_and_a_hint() {
    let source = || io::Error::from(io::ErrorKind::PermissionDenied);
    let no_space = || NoSpace { path: "/i".into(), needed_mib: 57, available_mib: 40 };
    let dpkg = || CommandError::Missing { program: "dpkg-deb".into() };
    let name = || "mini".to_owned();
    let image = every_variant!(ImageError {
        Unknown: [
            ImageError::Unknown { asked: "big".into(), known: Vec::new() },
            ImageError::Unknown { asked: "big".into(), known: vec![name(), "test".into()] },
        ],
        Ambiguous: [ImageError::Ambiguous { asked: "0123".into(), count: 2 }],
        BadName: [ImageError::BadName(BadName { name: "a b".into() })],
        NoBoot: [ImageError::NoBoot { name: "python".into() }],
        OtherRoot: [ImageError::OtherRoot { digest: "0123".into(), disk: "/d".into() }],
        Damaged: [ImageError::Damaged { dir: "/i/01".into(), problem: "`kernel` is not what was built".into() }],
        Agent: [ImageError::Agent { path: "/a".into(), problem: "needs a dynamic loader" }],
        Source: [ImageError::Source(SourceError::Command(dpkg()))],
        NoKernel: [ImageError::NoKernel { release: RELEASE.into() }],
        Modules: [
            ImageError::modules(RELEASE, &ModulesError::Missing { name: "erofs".into() }),
            ImageError::modules(RELEASE, &ModulesError::Damaged { path: "fs/erofs.ko".into() }),
            ImageError::modules(RELEASE, &ModulesError::Read { path: "/lib/modules".into(), source: source() }),
        ],
        TooLarge: [ImageError::from(TooLarge { path: "init".into(), bytes: 1 << 32 })],
        DoesNotBoot: [ImageError::DoesNotBoot { image: name(), memory_mib: 512, problem: "the guest halted".into() }],
        Warm: [ImageError::Warm],
        NoSpace: [ImageError::NoSpace(no_space())],
        Busy: [ImageError::Busy {
            name: name(),
            lock: "/i/mini.lock".into(),
            waited: std::time::Duration::from_secs(600)
        }],
        Io: [ImageError::Io { path: "/i".into(), source: source() }],
    });
    let parts = every_variant!(SourceError {
        NoKernel: [SourceError::NoKernel {
            cache: "/c".into(),
            refused: String::new(),
            apt: "apt-get was not found".into()
        }],
        NoBusybox: [SourceError::NoBusybox {
            cache: "/c".into(),
            refused: String::new(),
            apt: "apt-get was not found".into()
        }],
        Unusable: [SourceError::Unusable { path: "/p.deb".into(), problem: "is not a package" }],
        NoSpace: [SourceError::NoSpace(no_space())],
        Command: [
            SourceError::Command(dpkg()),
            SourceError::Command(CommandError::Missing { program: "apt-get".into() })
        ],
        NoVersion: [SourceError::NoVersion {
            version: "6.12".into(),
            cache: "/c".into(),
            refused: String::new(),
            apt: "`apt-cache` was not found".into(),
        }],
        Io: [SourceError::Io { path: "/c".into(), source: source() }],
    });
    let command = every_variant!(CommandError {
        Missing: [dpkg()],
        Io: [CommandError::Io { program: "dpkg-deb".into(), source: source() }],
        Failed: [CommandError::Failed {
            command: "dpkg-deb -x a.deb".into(),
            status: std::process::ExitStatus::default(),
            stderr: "no such file".into(),
        }],
        Cancelled: [CommandError::Cancelled],
        TimedOut: [CommandError::TimedOut {
            command: "apt-get download".into(),
            deadline: std::time::Duration::from_secs(60)
        }],
    });
    let memory =
        |cpus, is_measured| TooLittleMemory { image: name(), memory_mib: 80, cpus, needed_mib: 104, is_measured };
    let quota = NoSpace { available_mib: 9000, ..no_space() };
    let module = NoModule { image: name(), module: "kvm".into(), has: vec!["erofs".into()] };
    let hint = |hint: Option<String>| vec![format!("hint: {}", hint.unwrap_or("-".into()))];
    let texts = [
        chains(&image, |error| hint(error.hint())),
        chains(&parts, |error| hint(error.hint().map(str::to_owned))),
        chains(&command, |_| Vec::new()),
        chains(&[("TooLittleMemory", memory(1, true)), ("TooLittleMemory", memory(2, false))], |_| Vec::new()),
        chains(&[("NoSpace", quota)], |_| Vec::new()),
        chains(&[("NoModule", module)], |_| Vec::new()),
    ];
    insta::assert_snapshot!(texts.join("\n"));
}
