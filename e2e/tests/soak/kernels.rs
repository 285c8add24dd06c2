//! A kernel that is built from source: cancelled once, then built to its end and booted.

use std::fs;
use std::path::Path;
use std::time::Duration;

use kiln_e2e::image::{Entry, busybox, docker_archive, layer};
use kiln_e2e::{TestHome, until_within};
use rustix::process::Signal;
use serde_json::json;

/// A whole kernel takes twenty minutes on two slow CPUs.
const BUILD_DEADLINE: Duration = Duration::from_secs(90 * 60);
/// The package of the source has 140 MB, and 80,000 files.
const UNPACK_DEADLINE: Duration = Duration::from_secs(15 * 60);

#[test]
fn soak_a_kernel_that_is_built_boots_mini_and_an_image_without_modules() {
    let home = TestHome::with_downloads();
    let build = || home.kiln(["kernel", "build", "--config", "lean", "--json"]);

    let mut cancelled = build().start();
    let objects = || objects(&home.path().join("cache"));
    until_within(UNPACK_DEADLINE, "a compiled file", || (objects() > 20).then_some(()));
    cancelled.signal(Signal::INT);
    assert_eq!(cancelled.wait(), 130);
    assert_eq!(objects(), 0, "a build that was cancelled leaves nothing");
    let kernels = home.kiln(["kernel", "ls", "--json"]).run();
    assert_eq!((kernels.code, kernels.text().as_str()), (0, "[]"));

    let built = build().run_within(BUILD_DEADLINE);
    assert_eq!(built.code, 0, "{}", built.stderr);
    assert_eq!(objects(), 0, "only the kernel stays");
    let again = build().run();
    assert_eq!((again.code, &again.stdout), (0, &built.stdout), "it is built once: {}", again.stderr);

    let run = |flags: &[&str], script: &str| {
        let ran = home.kiln([&["run", "--kernel", "lean"], flags, &["--", "sh", "-c", script]].concat()).run();
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran.text()
    };
    assert_eq!(run(&[], "ls /lib/modules 2>/dev/null | wc -l; test -e /proc/modules || echo none"), "0\nnone");
    let volume = home.kiln(["volume", "create", "data", "--size", "32M"]).run();
    assert_eq!(volume.code, 0, "{}", volume.stderr);
    assert_eq!(run(&["-v", "data:/data"], "echo kept > /data/file; cat /data/file"), "kept");
    import(&home, "userland");
    assert_eq!(run(&["--image", "userland"], "echo from an image"), "from an image");
}

/// The number of compiled files below a directory.
fn objects(directory: &Path) -> usize {
    // Directories come and go while a build is cancelled.
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let count = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => objects(&entry.path()),
        _ => usize::from(entry.path().extension().is_some_and(|extension| extension == "o")),
    };
    entries.map(count).sum()
}

/// An image with a root filesystem that is busybox.
fn import(home: &TestHome, name: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("image.tar");
    let busybox = busybox();
    let entries = [
        ("bin", Entry::Directory, 0o755),
        ("bin/busybox", Entry::File(&busybox), 0o755),
        ("bin/sh", Entry::Symlink("busybox"), 0o777),
    ];
    docker_archive(&path, "other:1", &[layer(&entries)], &json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"] }));
    let imported = home.kiln(["image", "import", path.to_str().expect("UTF-8"), "--name", name]).run();
    assert_eq!(imported.code, 0, "{}", imported.stderr);
}
