//! Real images, made by buildah, umoci and skopeo, and Debian's registry to pull them from.
//!
//! The images are made once for all tests, below Cargo's directory for that; a change of this file makes them again.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use kiln_oci::Digest;
use rustix::fs::{FlockOperation, flock};

/// How long a registry may take to start, on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// Directories with images.
pub struct Images {
    home: PathBuf,
}

impl Images {
    /// The images; the first caller makes them.
    pub fn get() -> Self {
        let script = Digest::sha256(include_bytes!("tools.rs"));
        let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("oci-images-{}", &script.hex()[..16]));
        std::fs::create_dir_all(&home).expect("Cargo's directory can be written");
        let lock = File::create(home.join("lock")).expect("can be written");
        flock(&lock, FlockOperation::LockExclusive).expect("can be locked");
        let images = Self { home };
        if !images.path("whole").exists() {
            images.make();
            std::fs::write(images.path("whole"), "").expect("can be written");
        }
        images
    }

    /// A file or directory of the images.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    /// An image of two layers from buildah, one for two platforms, and one from umoci.
    fn make(&self) {
        let root = tempfile::tempdir().expect("a directory");
        let files = root.path().join("files");
        std::fs::create_dir_all(files.join("etc")).expect("a directory");
        std::fs::write(files.join("etc/greeting"), "hello\n").expect("a file");
        std::fs::write(files.join("large"), "all work and no play\n".repeat(50_000)).expect("a file");
        let storage = root.path().join("storage");
        let buildah = |words: &[&str]| {
            let global = ["--storage-driver", "vfs", "--root"].map(str::to_owned);
            let mut all: Vec<String> = global.into();
            all.extend([path(&storage.join("root")), "--runroot".to_owned(), path(&storage.join("run"))]);
            all.extend(words.iter().map(|word| (*word).to_owned()));
            run("buildah", &all.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let (files, layout) = (path(&files), path(&self.path("layout")));
        for (arch, name) in [("amd64", "amd"), ("arm64", "arm")] {
            let from = buildah(&["from", "--arch", arch, "--name", name, "scratch"]);
            buildah(&["copy", &from, &files, "/"]);
            let config = [
                "config",
                "--arch",
                arch,
                "--env",
                "GREETING=hi there",
                "--entrypoint",
                r#"["/bin/app","-v"]"#,
                "--cmd",
                "serve",
                "--user",
                "1000:1000",
                "--workingdir",
                "/srv",
                "--port",
                "8080/tcp",
                "--volume",
                "/data",
                "--stop-signal",
                "SIGINT",
                "--label",
                "maker=buildah",
                &from,
            ];
            buildah(&config);
            buildah(&["commit", &from, &format!("localhost/{name}:base")]);
            let from =
                buildah(&["from", "--pull-never", "--name", &format!("{name}2"), &format!("localhost/{name}:base")]);
            buildah(&["copy", &from, &format!("{files}/etc/greeting"), "/srv/second"]);
            buildah(&["commit", &from, &format!("localhost/{name}:two")]);
        }
        buildah(&["push", "localhost/amd:two", &format!("oci:{layout}:two")]);
        buildah(&["push", "localhost/amd:base", &format!("oci:{layout}:base")]);
        buildah(&["manifest", "create", "localhost/both:1"]);
        for name in ["arm", "amd"] {
            buildah(&["manifest", "add", "localhost/both:1", &format!("containers-storage:localhost/{name}:two")]);
        }
        buildah(&["manifest", "push", "--all", "localhost/both:1", &format!("oci:{}:1", path(&self.path("both")))]);

        let umoci = format!("{}:1", path(&self.path("umoci")));
        run("umoci", &["init", "--layout", &path(&self.path("umoci"))]);
        run("umoci", &["new", "--image", &umoci]);
        run("umoci", &["insert", "--image", &umoci, &files, "/"]);
        run("umoci", &["config", "--image", &umoci, "--config.user", "nobody", "--config.cmd", "/bin/true"]);

        let two = format!("oci:{layout}:two");
        let copy = |words: &[&str]| run("skopeo", &[&["copy", "--insecure-policy"], words].concat());
        copy(&["--dest-compress-format", "zstd", &two, &format!("oci:{}:two", path(&self.path("zstd")))]);
        copy(&[&two, &format!("docker-archive:{}:two:1", path(&self.path("docker.tar")))]);
        copy(&[&two, &format!("oci-archive:{}:two", path(&self.path("oci.tar")))]);
    }
}

/// Debian's registry, on loopback, with its own storage. It ends with its owner.
pub struct Registry {
    process: Child,
    port: u16,
    home: tempfile::TempDir,
}

/// How a registry is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// Not at all.
    Open,
    /// By the user `me` with the password `secret`.
    Password,
    /// By a certificate of its own authority, in [`Registry::ca_file`].
    Tls,
}

impl Registry {
    /// Starts a registry.
    pub fn start(protection: Protection) -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let at = |name: &str| path(&home.path().join(name));
        let extra = match protection {
            Protection::Open => String::new(),
            Protection::Password => {
                let line = run("htpasswd", &["-nbB", "me", "secret"]);
                std::fs::write(at("users"), line).expect("a file");
                format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", at("users"))
            }
            Protection::Tls => {
                certificates(home.path());
                format!("  tls:\n    certificate: {}\n    key: {}\n", at("server.pem"), at("server.key"))
            }
        };
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n  secret: x\n{extra}",
            at("storage")
        );
        std::fs::write(at("config.yml"), config).expect("a file");
        // The registry ends with the test's thread, also when the test is killed.
        let mut process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "docker-registry", "serve", &at("config.yml")])
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
        let mut registry = Self { process, port: 0, home };
        registry.port = port.recv_timeout(START_DEADLINE).expect("the registry starts");
        registry
    }

    /// Host and port.
    pub fn authority(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The certificate of the authority.
    pub fn ca_file(&self) -> PathBuf {
        self.home.path().join("ca.pem")
    }

    /// Copies an image to the registry.
    pub fn push(&self, source: &str, name: &str) {
        let target = format!("docker://{}/{name}", self.authority());
        let words = ["copy", "--insecure-policy", "--all", "--dest-tls-verify=false", "--dest-creds", "me:secret"];
        run("skopeo", &[&words[..], &[source, &target]].concat());
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().expect("is ours");
        self.process.wait().expect("is ours");
    }
}

/// An authority, and a certificate of it for loopback.
fn certificates(home: &Path) {
    let at = |name: &str| path(&home.join(name));
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let ca = ["-subj", "/CN=test authority", "-days", "2", "-keyout", &at("ca.key"), "-out", &at("ca.pem")];
    run("openssl", &[&["req", "-x509"][..], &key, &ca].concat());
    run(
        "openssl",
        &[&["req"][..], &key, &["-subj", "/CN=x", "-keyout", &at("server.key"), "-out", &at("csr")]].concat(),
    );
    std::fs::write(at("names"), "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n").expect("a file");
    let sign = ["x509", "-req", "-days", "2", "-CAcreateserial", "-in", &at("csr"), "-CA", &at("ca.pem"), "-CAkey"];
    run("openssl", &[&sign[..], &[&at("ca.key"), "-extfile", &at("names"), "-out", &at("server.pem")]].concat());
}

/// Runs a program to its end. Returns what it prints.
pub fn run(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("`{program}` is not installed: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words:?}: {errors}");
    String::from_utf8(output.stdout).expect("prints text").trim().to_owned()
}

pub fn path(path: &Path) -> String {
    path.to_str().expect("is text").to_owned()
}

/// Writes a file.
pub fn write(path: &Path, bytes: &[u8]) {
    File::create(path).and_then(|mut file| file.write_all(bytes)).expect("can be written");
}
