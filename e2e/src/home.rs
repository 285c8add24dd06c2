//! A test's own `$KILN_HOME`, for tests that would break a shared one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use camino::Utf8Path;
use kiln_engine::home::Home;
use kiln_engine::image::{ImageStore, MINI};
use serde_json::Value;

use crate::kiln::{Kiln, is_running, vmm_of};

/// A home that is removed when dropped. It holds a copy of the image that boots.
#[derive(Debug)]
pub struct TestHome(tempfile::TempDir);

impl TestHome {
    /// With the image alone.
    ///
    /// # Panics
    /// If there is no image, or it can't be copied.
    pub fn with_image() -> Self {
        let shared = shared();
        let this = Self(tempfile::tempdir().expect("a directory"));
        // Only this one: others are large, and tests that run beside this one make and remove some.
        let store = ImageStore::new(&Home::at(utf8(&shared)));
        let image = store.find_boot(MINI).expect("the image is built: kiln image build mini");
        let images = this.path().join("images");
        fs::create_dir(&images).expect("is new");
        copy(image.dir.as_std_path(), &images);
        let copied = ImageStore::new(&Home::at(utf8(this.path())));
        copied.set_name(MINI, &image.digest).expect("the copy can be written to");
        // Without it, the first run would boot a guest to test KVM.
        if shared.join("probe.json").exists() {
            copy(&shared.join("probe.json"), this.path());
        }
        this
    }

    /// With the image, and what it is built from: nothing is downloaded if it is built again.
    ///
    /// # Panics
    /// See [`with_image`](Self::with_image).
    pub fn with_downloads() -> Self {
        let this = Self::with_image();
        copy(&shared().join("cache"), this.path());
        this
    }

    /// With the image, what it is built from, and its ready-made snapshot.
    ///
    /// # Panics
    /// See [`with_ready_made`](Self::with_ready_made).
    pub fn with_everything() -> Self {
        let this = Self::with_ready_made();
        copy(&shared().join("cache"), this.path());
        this
    }

    /// With the image and the ready-made snapshot that `kiln run` forks if no flag selects another.
    ///
    /// # Panics
    /// See [`with_image`](Self::with_image). Also if there is no such snapshot.
    pub fn with_ready_made() -> Self {
        let this = Self::with_image();
        let made = Kiln::new(["run", "--", "true"]).run();
        assert_eq!(made.code, 0, "{}", made.stderr);
        // A home that is older than the image has those of earlier images too.
        let home = Home::from_env().expect("KILN_HOME or HOME is set");
        let image = ImageStore::new(&home).find_boot(MINI).expect("the image is built: kiln image build mini");
        let is_default = |one: &Value| {
            let size = (&one["memory_mib"], &one["cpus"]) == (&256.into(), &1.into());
            // Others have the root of an image, a volume, or a network card.
            let devices = (&one["disks"], &one["nics"]) == (&0.into(), &0.into());
            let plain = devices && one["modules"] == Value::Array(vec![]) && one["ready_made"] == true;
            size && plain && one["kernel"] == image.kernel.as_str()
        };
        let shared = shared().join("snapshots");
        let snapshots = this.path().join("snapshots");
        let ready = snapshots.join("ready");
        fs::create_dir_all(&ready).expect("is new");
        // A name with a suffix is a lock or unfinished, and is removed by the test that makes it.
        for key in names(&shared.join("ready")).iter().filter(|name| !name.contains('.')) {
            copy(&shared.join("ready").join(key), &ready);
        }
        for one in list(Kiln::new(["snapshot", "ls", "--json"])).iter().filter(|one| is_default(one)) {
            copy(&shared.join(id(one)), &snapshots);
        }
        this
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A `kiln` with this home.
    pub fn kiln<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Kiln {
        Kiln::new(args).env("KILN_HOME", self.path())
    }

    /// The output of `kiln snapshot ls --json`.
    ///
    /// # Panics
    /// If the output is not a list.
    pub fn snapshots(&self) -> Vec<Value> {
        list(self.kiln(["snapshot", "ls", "--json"]))
    }

    /// The only snapshot of this home.
    ///
    /// # Panics
    /// If there is no snapshot, or more than one.
    pub fn only_snapshot(&self) -> String {
        let snapshots = self.snapshots();
        assert_eq!(snapshots.len(), 1, "{snapshots:?}");
        id(&snapshots[0])
    }

    /// A file of a snapshot.
    pub fn file(&self, snapshot: &str, name: &str) -> PathBuf {
        self.path().join("snapshots").join(snapshot).join(name)
    }

    /// Names of what is below `vms`.
    ///
    /// # Panics
    /// If it can't be read.
    pub fn vms(&self) -> Vec<String> {
        names(&self.path().join("vms"))
    }

    /// A VMM that runs for a VM of this home.
    pub fn vmm(&self) -> Option<i32> {
        let dirs = fs::read_dir(self.path().join("vms")).ok()?.flatten();
        dirs.filter_map(|entry| vmm_of(&entry.path())).find(|vmm| is_running(*vmm))
    }

    /// Names of what is below `snapshots`, beside the names of ready-made ones.
    ///
    /// # Panics
    /// If it can't be read.
    pub fn snapshot_names(&self) -> Vec<String> {
        let mut names = names(&self.path().join("snapshots"));
        names.retain(|name| name != "ready");
        names
    }
}

fn id(listed: &Value) -> String {
    listed["id"].as_str().expect("a snapshot has an id").to_owned()
}

fn list(kiln: Kiln) -> Vec<Value> {
    let listed = kiln.run();
    assert_eq!(listed.code, 0, "{}", listed.stderr);
    serde_json::from_slice(&listed.stdout).expect("a list")
}

fn names(directory: &Path) -> Vec<String> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => panic!("{}: {error}", directory.display()),
    }
}

fn utf8(path: &Path) -> &Utf8Path {
    Utf8Path::from_path(path).expect("UTF-8")
}

fn shared() -> PathBuf {
    Home::from_env().expect("KILN_HOME or HOME is set").path().into()
}

/// Copies a file or directory with its holes. The copy can be written to, whatever the original's mode is.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").args(["-r", "--sparse=always", "--reflink=auto"]).arg(from).arg(to).status();
    assert!(copied.expect("cp starts").success(), "{} can't be copied", from.display());
}
