//! Damaged and outdated files in a home.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use kiln_e2e::{Kiln, TestHome};
use kiln_engine::home::Home;

/// The kernel package that the shared image was built from.
fn shared_package() -> PathBuf {
    let cache = Home::from_env().expect("KILN_HOME or HOME is set").cache();
    let files = fs::read_dir(cache).expect("a cache").flatten().map(|entry| entry.path());
    let is_kernel = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with("linux-image-") && name.ends_with("_amd64.deb")
    };
    files.filter(is_kernel).max().expect("the shared image was built from a package that was downloaded")
}

/// An apt with one package. It writes a line for each download.
fn fake_apt(directory: &Path, package: &Path) -> PathBuf {
    let (bin, log) = (directory.join("bin"), directory.join("log"));
    fs::create_dir(&bin).expect("made");
    let file = package.file_name().expect("a file").to_str().expect("a plain name");
    let (name, deb) = (file.split('_').next().expect("a name"), package.display());
    let scripts = [
        ("apt-cache", format!("[ \"$1\" != depends ] || echo '  Depends: {name}'")),
        (
            "apt-get",
            format!(
                "if [ \"$2\" = --print-uris ]; then\n\
                 echo \"'http://mirror/{file}' {file} $(stat -c %s {deb}) SHA256:$(sha256sum < {deb} | cut -c1-64)\"\n\
                 else cp {deb} . && echo {file} >> {}; fi",
                log.display()
            ),
        ),
    ];
    for (name, script) in scripts {
        fs::write(bin.join(name), format!("#!/bin/sh\n{script}\n")).expect("written");
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).expect("set");
    }
    log
}

#[test]
fn only_a_damaged_package_is_downloaded_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let home = directory.path().join("home");
    let package = shared_package();
    let log = fake_apt(directory.path(), &package);
    let path = format!("{}:{}", directory.path().join("bin").display(), std::env::var("PATH").expect("a PATH"));
    let build = |flag| Kiln::new(["image", "build", "mini", flag]).env("KILN_HOME", &home).env("PATH", &path).run();
    let downloads = || fs::read_to_string(&log).unwrap_or_default().lines().count();
    let cached = home.join("cache").join(package.file_name().expect("a file"));
    let whole = fs::read(&package).expect("reads");

    let first = build("--latest");
    assert_eq!((first.code, downloads()), (0, 1), "{}", first.stderr);
    let again = build("--cached");
    assert_eq!((again.code, downloads()), (0, 1), "{}", again.stderr);

    fs::write(&cached, &whole[..whole.len() / 2]).expect("cut short");
    let cut = build("--cached");
    assert_eq!((cut.code, downloads()), (0, 2), "{}", cut.stderr);
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 1;
    fs::write(&cached, &changed).expect("changed");
    let changed = build("--cached");
    assert_eq!((changed.code, downloads()), (0, 3), "{}", changed.stderr);
    assert!(fs::read(&cached).expect("is there") == whole, "it is whole again");
}

#[test]
fn doctor_names_a_newer_kernel_and_the_command_that_takes_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let newer = directory.path().join("linux-image-6.99.0-1-cloud-amd64_6.99.1-1_amd64.deb");
    fs::write(&newer, "not looked into").expect("written");
    let path = format!("{}:{}", directory.path().join("bin").display(), std::env::var("PATH").expect("a PATH"));
    fake_apt(directory.path(), &newer);
    let home = TestHome::with_image();
    let doctor = home.kiln(["doctor"]).env("PATH", &path).run().text();
    assert!(doctor.contains("apt has a newer kernel: linux-image-6.99.0-1-cloud-amd64_6.99.1-1_amd64.deb"), "{doctor}");
    assert!(doctor.contains("→ kiln image build mini"), "{doctor}");
}

#[test]
fn an_image_that_was_changed_starts_no_vm_and_is_built_again() {
    let home = TestHome::with_image();
    let image = home.kiln(["image", "inspect", "mini"]).run();
    let image: serde_json::Value = serde_json::from_slice(&image.stdout).expect("an object");
    let directory = PathBuf::from(image["dir"].as_str().expect("a directory"));
    let initramfs = directory.join("initramfs");
    let mut bytes = fs::read(&initramfs).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&initramfs, &bytes).expect("written");

    let digest = image["digest"].as_str().expect("a digest");
    let refused = home.kiln(["run", "--image", digest, "--", "true"]).run();
    assert_eq!(refused.code, 69, "{}", refused.stderr);
    assert!(refused.stderr.contains("`initramfs` is not what was built"), "{}", refused.stderr);
    assert!(refused.stderr.contains("hint: kiln image build mini"), "{}", refused.stderr);
    assert_eq!(home.vms(), [""; 0]);
}

#[test]
fn kvm_that_runs_no_guest_is_refused_with_the_reason() {
    let home = TestHome::with_image();
    // A made-up result of the probe, so that the refusal is the same with a working /dev/kvm and without one.
    assert_eq!(home.kiln(["run", "--cold", "--", "true"]).run().code, 0);
    let probe = home.path().join("probe.json");
    if let Ok(text) = fs::read_to_string(&probe) {
        let mut answers: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        for answer in answers["answers"].as_array_mut().expect("a list") {
            answer["kvm"] = serde_json::json!({ "state": "lies", "reason": "it said nothing" });
        }
        fs::write(&probe, answers.to_string()).expect("written");
    }
    let refused = home.kiln(["run", "--accel", "kvm", "--", "true"]).run();
    assert_eq!(refused.code, 69, "{}", refused.stderr);
    assert!(refused.stderr.contains("KVM can't be used: "), "{}", refused.stderr);
    assert!(refused.stderr.contains("hint: "), "{}", refused.stderr);
}
