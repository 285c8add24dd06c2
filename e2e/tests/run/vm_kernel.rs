//! Kernels of the user's choice: Debian's, and the user's own, with and without their modules.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_e2e::image::{Entry, busybox, docker_archive, layer};
use kiln_e2e::{Outcome, TestHome};
use serde_json::{Value, json};

fn ok(outcome: Outcome) -> Outcome {
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    outcome
}

fn json_of(outcome: Outcome) -> Value {
    let outcome = ok(outcome);
    serde_json::from_slice(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {}", outcome.text()))
}

/// Adds a kernel and returns what `--json` prints of it.
fn add(home: &TestHome, flags: &[&str]) -> Value {
    json_of(home.kiln([&["kernel", "add", "--json"], flags].concat()).run())
}

/// An image with a root filesystem that is busybox.
fn import(home: &TestHome, name: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("image.tar");
    let busybox = busybox();
    let links = ["sh", "modprobe", "uname", "grep", "mount"];
    let mut entries = vec![("bin", Entry::Directory, 0o755), ("bin/busybox", Entry::File(&busybox), 0o755)];
    let paths = links.map(|link| format!("bin/{link}"));
    entries.extend(paths.iter().map(|path| (path.as_str(), Entry::Symlink("busybox"), 0o777)));
    docker_archive(&path, "other:1", &[layer(&entries)], &json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"] }));
    ok(home.kiln(["image", "import", path.to_str().expect("UTF-8"), "--name", name]).run());
}

/// Debian's package of the kernel that `mini` has, as the build of `mini` has downloaded it.
fn package(home: &TestHome) -> PathBuf {
    let entries = fs::read_dir(home.path().join("cache")).expect("has downloads");
    let paths = entries.map(|entry| entry.expect("reads").path());
    let is_kernel = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("linux-image-6.1.") && name.ends_with(".deb")
    };
    paths.filter(is_kernel).max().expect("mini was built from a package")
}

/// The files of a package: a kernel as a user has who built it.
struct Unpacked {
    folder: tempfile::TempDir,
    release: String,
}

impl Unpacked {
    fn of(package: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let status = Command::new("dpkg-deb").arg("-x").arg(package).arg(folder.path()).status().expect("is installed");
        assert!(status.success());
        let boot = fs::read_dir(folder.path().join("boot")).expect("has a kernel");
        let names: Vec<_> = boot.map(|entry| entry.expect("reads").file_name().into_string().expect("UTF-8")).collect();
        let release = names.iter().find_map(|name| name.strip_prefix("vmlinuz-")).expect("has a kernel").to_owned();
        Self { folder, release }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    fn kernel(&self) -> String {
        self.path(&format!("boot/vmlinuz-{}", self.release))
    }

    fn config(&self) -> String {
        self.path(&format!("boot/config-{}", self.release))
    }
}

/// Runs a kernel as `mini` and as an image, with all its modules and without.
fn boots_everywhere(home: &TestHome, kernel: &str, release: &str) {
    let run = |flags: &[&str], script: &str| {
        home.kiln([&["run", "--kernel", kernel], flags, &["--", "sh", "-c", script]].concat()).run()
    };
    assert_eq!(ok(run(&[], "uname -r")).text(), release);
    let again = json_of(home.kiln(["run", "--json", "--kernel", kernel, "--", "uname", "-r"]).run());
    assert_eq!((&again["start"], &again["ready_ms"]), (&"fork".into(), &Value::Null), "{again}");
    assert_eq!(home.snapshots().len(), 1, "the second run forks the snapshot of the first");

    // `dummy` is not among the modules of an initramfs.
    let refused = run(&["--module", "dummy"], "true");
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("--all-modules"), "{}", refused.stderr);
    let script = "modprobe dummy && grep -c '^dummy ' /proc/modules && mount | grep -c ' /lib/modules/.* erofs (ro'";
    assert_eq!(ok(run(&["--all-modules"], script)).text(), "1\n1");
    let loaded = run(&["--all-modules", "--module", "dummy"], "grep -c '^dummy ' /proc/modules");
    assert_eq!(ok(loaded).text(), "1");

    import(home, "userland");
    let script = format!("uname -r && {script}");
    let seen = run(&["--image", "userland", "--all-modules"], &script);
    assert_eq!(ok(seen).text(), format!("{release}\n1\n1"));
}

#[test]
fn a_kernel_of_debian_boots_mini_and_images_with_all_its_modules() {
    let home = TestHome::with_downloads();
    let added = add(&home, &["debian:6.1"]);
    assert_eq!((&added["names"], &added["missing"]), (&json!(["debian:6.1"]), &json!([])), "{added}");
    assert!(added["modules"].as_u64().is_some_and(|count| count > 1000), "{added}");
    boots_everywhere(&home, "6.1", added["release"].as_str().expect("a text"));
}

#[test]
#[ignore = "needs a package of Linux 6.12 in KILN_TEST_LINUX612, which make test sets after scripts/install.sh newer"]
fn linux_612_boots_mini_and_images_with_all_its_modules() {
    let package = std::env::var("KILN_TEST_LINUX612").expect("KILN_TEST_LINUX612 is set");
    let home = TestHome::with_downloads();
    let added = add(&home, &[&package, "--name", "debian:6.12"]);
    let release = added["release"].as_str().expect("a text");
    assert!(release.starts_with("6.12."), "{added}");
    boots_everywhere(&home, "6.12", release);
}

#[test]
fn a_kernel_of_the_user_boots_with_its_modules_and_is_refused_without_them() {
    let home = TestHome::with_downloads();
    let own = Unpacked::of(&package(&home));
    let (kernel, config) = (own.kernel(), own.config());
    let refused = home.kiln(["kernel", "add", &kernel, "--config", &config]).run();
    assert_eq!(refused.code, 69, "{}", refused.stderr);
    for part in ["CONFIG_VIRTIO_PCI", "there is no module `virtio_pci`", "hint: --modules DIR"] {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    let unknown = home.kiln(["kernel", "add", &kernel]).run();
    assert!(unknown.stderr.contains("--config FILE"), "{}", unknown.stderr);
    let lean = own.path("lean");
    let without = fs::read_to_string(&config).expect("reads").replace("CONFIG_VIRTIO_PCI=m", "CONFIG_VIRTIO_PCI=n");
    fs::write(&lean, without).expect("written");
    let modules = own.path("");
    let refused = home.kiln(["kernel", "add", &kernel, "--config", &lean, "--modules", &modules]).run();
    assert!(refused.stderr.contains("CONFIG_VIRTIO_PCI (devices of a VM)"), "{}", refused.stderr);
    let none = json_of(home.kiln(["kernel", "ls", "--json"]).run());
    assert_eq!(none, json!([]));

    let added = add(&home, &[&kernel, "--modules", &modules, "--name", "mine"]);
    assert_eq!((&added["release"], &added["names"]), (&own.release.as_str().into(), &json!(["mine"])));
    let seen = home.kiln(["run", "--kernel", "mine", "--", "uname", "-r"]).run();
    assert_eq!(ok(seen).text(), own.release);
}

#[test]
fn a_kernel_that_a_snapshot_needs_is_kept_and_one_that_is_gone_is_named() {
    let home = TestHome::with_downloads();
    add(&home, &["debian:6.1", "--name", "one"]);
    ok(home.kiln(["snapshot", "create", "kept", "--kernel", "one", "--all-modules", "--", "true"]).run());
    let refused = home.kiln(["kernel", "rm", "one"]).run();
    assert_eq!(refused.code, 69, "{}", refused.stderr);
    assert!(refused.stderr.contains("the kernel `one` is in use: the snapshot"), "{}", refused.stderr);
    ok(home.kiln(["run", "--from", "kept", "--", "modprobe", "dummy"]).run());

    ok(home.kiln(["kernel", "rm", "--force", "one"]).run());
    let gone = home.kiln(["run", "--from", "kept", "--", "true"]).run();
    assert_ne!(gone.code, 0);
    assert!(gone.stderr.contains("modules.erofs"), "{}", gone.stderr);
    let unknown = home.kiln(["run", "--kernel", "one", "--", "true"]).run();
    assert_eq!(unknown.code, 69, "{}", unknown.stderr);
    assert!(unknown.stderr.contains("there is no kernel `one`"), "{}", unknown.stderr);
    // The image `mini` has the same kernel, and stays.
    assert_eq!(ok(home.kiln(["run", "--", "echo", "still"]).run()).text(), "still");
    let images = json_of(home.kiln(["image", "ls", "--json"]).run());
    assert!(images.as_array().is_some_and(|images| images.iter().any(|image| image["name"] == "mini")), "{images}");
}
