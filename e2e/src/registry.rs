//! Debian's registry on loopback, and programs that make images for it.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

/// How long a registry may take to start, on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A registry with its own storage. It ends with its owner.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    port: u16,
    /// Removed with it.
    _home: tempfile::TempDir,
}

impl Registry {
    /// Starts a registry without a password and TLS.
    ///
    /// # Panics
    /// If it is not installed, or does not start in time.
    pub fn start() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let at = |name: &str| home.path().join(name);
        let storage = at("storage");
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n  secret: x\n",
            storage.display()
        );
        std::fs::write(at("config.yml"), config).expect("a file");
        // The registry ends with the test's thread, also when the test is killed.
        let mut process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "docker-registry", "serve"])
            .arg(at("config.yml"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry and setpriv are installed");
        let log = BufReader::new(process.stderr.take().expect("is piped"));
        let (found, port) = channel();
        std::thread::spawn(move || {
            // Reads to the end, so that the registry never blocks on its log.
            for line in log.lines().map_while(Result::ok) {
                let Some((_, rest)) = line.split_once("listening on 127.0.0.1:") else { continue };
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                let _ = found.send(digits.parse().expect("is a port"));
            }
        });
        let mut registry = Self { process, port: 0, _home: home };
        registry.port = port.recv_timeout(START_DEADLINE).expect("the registry starts");
        registry
    }

    /// The reference of an image in it.
    pub fn reference(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// Copies an image to the registry with skopeo, with these flags.
    ///
    /// # Panics
    /// If skopeo fails.
    pub fn push(&self, flags: &[&str], source: &str, name: &str) {
        let target = format!("docker://{}", self.reference(name));
        let words = ["copy", "--insecure-policy", "--dest-tls-verify=false"];
        program("skopeo", &[&words[..], flags, &[source, &target]].concat());
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An image of files of this host, made by buildah without a daemon. `config` are flags of `buildah config`. Returns its
/// name for skopeo: a layout below `place`.
///
/// # Panics
/// If buildah fails.
pub fn buildah_image(place: &Path, files: &Path, config: &[&str]) -> String {
    let path = |name: &str| place.join(name).to_str().expect("UTF-8").to_owned();
    let (root, run) = (path("storage"), path("run"));
    let buildah = |words: &[&str]| {
        let global = ["--storage-driver", "vfs", "--root", &root, "--runroot", &run];
        program("buildah", &[&global[..], words].concat())
    };
    let from = buildah(&["from", "scratch"]);
    buildah(&["copy", &from, files.to_str().expect("UTF-8"), "/"]);
    buildah(&[&["config"], config, &[&from]].concat());
    buildah(&["commit", &from, "localhost/made:1"]);
    let target = format!("oci:{}:1", path("layout"));
    buildah(&["push", "localhost/made:1", &target]);
    target
}

/// Runs a program to its end. Returns what it prints.
///
/// # Panics
/// If it is not installed, or fails.
pub fn program(name: &str, words: &[&str]) -> String {
    let output = Command::new(name).args(words).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("`{name}` is not installed: {error}"));
    assert!(output.status.success(), "{name} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("prints text").trim().to_owned()
}
