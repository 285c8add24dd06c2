//! What kiln's programs inherit from its caller, who has descriptors 3 to 300 open and a secret in the environment.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use kiln_e2e::{Kiln, TestHome, agent_binary, kiln_binary, until};

const SECRET: &str = "KILN_TEST_SECRET";

/// Stand-ins that record what they inherit and then execute the real programs.
struct Spies {
    directory: tempfile::TempDir,
}

/// One start of a program.
#[derive(Debug)]
struct Start {
    line: String,
    environment: Vec<String>,
    descriptors: Vec<i32>,
}

impl Spies {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory") }
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// Makes a stand-in for the program `real`.
    fn add(&self, name: &str, real: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        let log = self.log();
        // One write for each start, because several programs may write at once.
        let script = format!(
            "#!/bin/sh\ngiven=$(echo \"start {name} $*\"; cat /proc/self/environ | tr '\\n\\0' '?\\n' | cut -d= -f1; echo descriptors; \
             ls /proc/self/fd; echo end)\necho \"$given\" >>{log}\nexec {real}\n",
            log = log.display()
        );
        fs::write(&path, script).expect("is written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("is ours");
        path
    }

    fn starts(&self) -> Vec<Start> {
        let log = fs::read_to_string(self.log()).expect("something was started");
        let starts = log.split("\nend\n").filter_map(|part| part.split_once("start ").map(|(_, rest)| rest));
        let start = |text: &str| {
            let (given, descriptors) = text.split_once("descriptors\n").expect("both are written down");
            let (line, names) = given.split_once('\n').expect("a line");
            // Descriptors of the shell itself, of its redirection and of `ls`.
            let environment = names.lines().filter(|name| !["PWD", "OLDPWD", "SHLVL", "_"].contains(name));
            let descriptors = descriptors.lines().map(|number| number.parse().expect("a number"));
            let mut environment: Vec<String> = environment.map(str::to_owned).collect();
            environment.sort();
            Start {
                line: line.to_owned(),
                environment,
                descriptors: descriptors.filter(|number| *number > 3).collect(),
            }
        };
        starts.map(start).collect()
    }
}

fn crowded(kiln: Kiln) -> Kiln {
    kiln.env(SECRET, "x").env("http_proxy", "http://127.0.0.1:9").crowded()
}

fn search_path(first: &Path) -> String {
    format!("{}:{}", first.display(), std::env::var("PATH").expect("is set"))
}

/// The variables that apt inherits if they are set.
const APT: [&str; 9] =
    ["PATH", "LC_ALL", "APT_CONFIG", "HOME", "TMPDIR", "http_proxy", "https_proxy", "all_proxy", "no_proxy"];

#[test]
fn the_program_that_unpacks_a_package_gets_only_a_path() {
    let (home, spies) = (TestHome::with_downloads(), Spies::new());
    fs::remove_dir_all(home.path().join("images")).expect("is there");
    spies.add("dpkg-deb", "/usr/bin/dpkg-deb \"$@\"");
    let build = home.kiln(["image", "build", "mini", "--cached"]).env("KILN_AGENT", agent_binary());
    // The kernel is not booted in this test.
    let build = build.env("PATH", search_path(spies.directory.path())).env("KILN_QEMU", "/surely/not/qemu");
    let built = crowded(build).run();
    assert_eq!(built.code, 0, "{}", built.stderr);
    for start in spies.starts() {
        assert_eq!(start.environment, ["LC_ALL", "PATH"], "{start:?}");
        assert!(start.descriptors.is_empty(), "{start:?}");
    }
}

#[test]
fn programs_of_doctor_get_only_the_named_variables() {
    let (home, spies) = (TestHome::with_image(), Spies::new());
    let vmm = spies.add("vmm", "qemu-system-x86_64 \"$@\"");
    spies.add("apt-cache", "/usr/bin/apt-cache \"$@\"");
    spies.add("apt-get", "/usr/bin/apt-get \"$@\"");
    let doctor = home.kiln(["doctor"]).env("KILN_QEMU", &vmm).env("PATH", search_path(spies.directory.path()));
    crowded(doctor).run();
    let starts = spies.starts();
    let asked = |line: &str| starts.iter().filter(|start| start.line.starts_with(line)).collect::<Vec<_>>();
    let (versions, packages) = (asked("vmm --version"), asked("apt-"));
    assert!(!versions.is_empty() && !packages.is_empty(), "{starts:?}");
    for start in &versions {
        assert_eq!(start.environment, ["PATH"], "{start:?}");
    }
    for start in &packages {
        let names: Vec<&str> = start.environment.iter().map(String::as_str).collect();
        assert!(names.contains(&"PATH") && names.contains(&"http_proxy"), "{start:?}");
        assert!(names.iter().all(|name| APT.contains(name)), "{start:?}");
    }
    for start in versions.iter().chain(&packages) {
        assert!(start.descriptors.is_empty(), "{start:?}");
    }
}

#[test]
fn a_backend_of_the_user_gets_the_environment_and_no_descriptors() {
    let spies = Spies::new();
    let mock = format!("{} vhost mock --device blk --socket \"$1\"", kiln_binary().display());
    let backend = spies.add("backend", &mock);
    let spawn = format!("{} {{socket}}", backend.display());
    let cases = ["--case", "lifecycle.print-capabilities", "--case", "lifecycle.ends-at-sigterm"];
    let check = ["vhost", "check", "--device", "blk", "--spawn", &spawn].into_iter().chain(cases);
    // The mock has no flag `--print-capabilities`.
    let checked = crowded(Kiln::new(check)).run();
    assert_eq!(checked.code, 100, "{}", checked.stderr);
    let starts = spies.starts();
    assert!(starts.iter().any(|start| start.line.contains("--print-capabilities")), "{starts:?}");
    assert!(starts.iter().any(|start| start.line.contains(".sock")), "{starts:?}");
    for start in starts {
        assert!(start.environment.iter().any(|name| name == SECRET), "{start:?}");
        assert!(start.descriptors.is_empty(), "{start:?}");
    }
}

/// Shows that kiln itself inherits descriptors and secret. If it did not, the tests above could not fail.
#[test]
fn kiln_itself_inherits_everything() {
    let kiln = crowded(Kiln::new(["scan", "-"])).start();
    let process = PathBuf::from(format!("/proc/{}", kiln.0.id()));
    // Checked only now, because the shell opens them first.
    until("kiln", || fs::read_link(process.join("exe")).ok().filter(|exe| exe.ends_with("kiln")));
    let held = fs::read_dir(process.join("fd")).expect("it runs").count();
    assert!(held >= 298, "{held}");
}
