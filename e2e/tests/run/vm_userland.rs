//! Real userlands: Debian with Python, a service, a program without a shell, a user that is not root, systemd.
//!
//! One Debian image is built for all tests, by mmdebstrap from this host's mirror, and kept in the home of the tests.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use kiln_e2e::registry::{Registry, buildah_image, program};
use kiln_e2e::{Kiln, Outcome, guest_tool, kiln_binary, until};
use kiln_engine::home::Home;
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;

/// The Debian image. Its name has what it is made of, so that another choice is another image.
const DEBIAN: &str = "e2e/debian:python3-systemd";
const PACKAGES: &str = "python3-minimal,libpython3-stdlib,systemd-sysv";
/// Memory of its VMs.
const MEMORY: [&str; 2] = ["-m", "384"];

/// Runs kiln, which must exit with this code.
fn kiln(args: &[&str], code: i32) -> Outcome {
    let outcome = Kiln::new(args).run();
    assert_eq!(outcome.code, code, "{args:?}: {}", outcome.stderr);
    outcome
}

/// Builds the Debian image, unless it is there. Tests run at the same time, so one of them builds it.
fn debian() {
    let home = Home::from_env().expect("KILN_HOME or HOME is set");
    fs::create_dir_all(home.path()).expect("is ours");
    let lock = File::create(home.path().join("e2e-debian.lock")).expect("is ours");
    flock(&lock, FlockOperation::LockExclusive).expect("can be locked");
    if Kiln::new(["image", "inspect", DEBIAN]).run().code != 0 {
        // As long as a download takes, so not with the deadline of other runs.
        let build = ["image", "build", "debian", "--packages", PACKAGES, "--name", DEBIAN];
        program(kiln_binary().to_str().expect("UTF-8"), &build);
    }
}

#[test]
fn python_runs_a_script_that_uses_files_processes_and_the_network_stack() {
    debian();
    let place = tempfile::tempdir().expect("a directory");
    let script = place.path().join("job.py");
    fs::write(
        &script,
        "import hashlib, http.server, json, os, subprocess, sys, threading, urllib.request\n\
         server = http.server.HTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)\n\
         os.chdir('/job'); open('/job/page', 'w').write('served')\n\
         threading.Thread(target=server.serve_forever, daemon=True).start()\n\
         page = urllib.request.urlopen(f'http://127.0.0.1:{server.server_port}/page').read().decode()\n\
         lines = subprocess.run(['sh', '-c', 'cat /etc/os-release'], capture_output=True, text=True).stdout\n\
         result = {'page': page, 'debian': 'ID=debian' in lines, 'sum': hashlib.sha256(b'x' * 100000).hexdigest()[:8],\n\
                   'arguments': sys.argv[1:], 'uid': os.getuid()}\n\
         json.dump(result, open('/job/result', 'w'))\n",
    )
    .expect("written");
    let (copy_in, out) = (format!("{}:/job/", script.display()), place.path().join("result"));
    let copy_out = format!("/job/result:{}", out.display());
    let flags = ["run", "--image", DEBIAN, "--in", &copy_in, "--out", &copy_out];
    kiln(&[&flags[..], &MEMORY, &["--", "python3", "/job/job.py", "a b", "c"]].concat(), 0);
    let result: Value = serde_json::from_str(&fs::read_to_string(out).expect("came out")).expect("JSON");
    assert_eq!((&result["page"], &result["debian"]), (&"served".into(), &true.into()), "{result}");
    assert_eq!((&result["sum"], &result["uid"]), (&"d69e6898".into(), &0.into()), "{result}");
    assert_eq!(result["arguments"], serde_json::json!(["a b", "c"]));
}

#[test]
fn an_image_goes_through_export_registry_and_pull_and_is_the_same() {
    debian();
    let place = tempfile::tempdir().expect("a directory");
    let archive = place.path().join("debian.tar");
    let archive = archive.to_str().expect("UTF-8");
    let inspect =
        |name: &str| -> Value { serde_json::from_slice(&kiln(&["image", "inspect", name], 0).stdout).expect("JSON") };
    kiln(&["image", "export", DEBIAN, archive], 0);
    let registry = Registry::start();
    registry.push(&[], &format!("oci-archive:{archive}"), "debian:1");
    let pulled = "e2e/pulled-debian";
    kiln(&["image", "pull", &registry.reference("debian:1"), "--name", pulled], 0);
    let digest = inspect(pulled)["digest"].clone();
    kiln(&["image", "rm", pulled], 0);
    assert_eq!(digest, inspect(DEBIAN)["digest"], "the digest is a function of the content");
}

#[test]
fn a_service_answers_on_its_port_and_ends_on_its_stop_signal() {
    debian();
    let name = "e2e/service:1";
    let code = "import http.server,signal,sys\n\
        def end(*_): print('ended by its signal', flush=True); sys.exit(0)\n\
        signal.signal(signal.SIGINT, end)\n\
        s = http.server.HTTPServer(('127.0.0.1', 8080), http.server.SimpleHTTPRequestHandler)\n\
        print('listening', flush=True); s.serve_forever()\n";
    let write = format!("mkdir -p /srv/www && cat > /srv/serve.py <<'END'\n{code}END\necho hello > /srv/www/page");
    let snapshot = "e2e-service";
    // Of an earlier run of this test that was killed.
    let _ = Kiln::new(["snapshot", "rm", snapshot]).run();
    let create = [&["snapshot", "create", snapshot, "--image", DEBIAN], &MEMORY[..], &["--", "sh", "-c", &write]];
    kiln(&create.concat(), 0);
    let changes = ["CMD [\"python3\", \"/srv/serve.py\"]", "WORKDIR /srv/www", "STOPSIGNAL SIGINT", "USER www-data"];
    let changes: Vec<&str> = changes.iter().flat_map(|change| ["--change", change]).collect();
    kiln(&[&["commit", snapshot, "--name", name], &changes[..]].concat(), 0);
    kiln(&["snapshot", "rm", snapshot], 0);

    let mut running = Kiln::new([&["run", "-p", "127.0.0.1:0:8080"], &MEMORY[..], &[name]].concat()).start();
    let mut stdout = running.0.stdout.take().expect("is piped");
    stdout.read_exact(&mut [0; "listening\n".len()]).expect("the service starts");
    let mut stderr = running.0.stderr.take().expect("is piped");
    let mut told = Vec::new();
    let port: u16 = loop {
        let mut byte = [0];
        stderr.read_exact(&mut byte).expect("the port is told");
        told.extend(byte);
        let text = String::from_utf8_lossy(&told);
        if let Some((_, rest)) = text.split_once("is 127.0.0.1:")
            && let Some((digits, _)) = rest.split_once(' ')
        {
            break digits.parse().expect("is a port");
        }
    };
    let answer = until("the page", || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        stream.write_all(b"GET /page HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        (!answer.is_empty()).then_some(answer)
    });
    assert!(answer.contains("200 OK") && answer.ends_with("hello\n"), "{answer}");
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.wait(), 0, "its own code");
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("text");
    assert_eq!(rest, "ended by its signal\n");
    kiln(&["image", "rm", name], 0);
}

#[test]
fn a_program_alone_runs_without_a_shell_and_as_a_user_that_is_not_root() {
    let place = tempfile::tempdir().expect("a directory");
    let files = place.path().join("files");
    fs::create_dir_all(files.join("data")).expect("a directory");
    fs::create_dir_all(files.join("etc")).expect("a directory");
    fs::copy(guest_tool(), files.join("tool")).expect("is copied");
    fs::write(files.join("etc/passwd"), "root:x:0:0::/:/tool\nworker:x:1234:77::/data:/tool\n").expect("a file");
    fs::write(files.join("etc/group"), "root:x:0:\nteam:x:77:\n").expect("a file");
    fs::set_permissions(files.join("data"), fs::Permissions::from_mode(0o777)).expect("ours");
    let config = ["--entrypoint", "[\"/tool\"]", "--cmd", "whoami", "--user", "worker", "--workingdir", "/data"];
    let layout = buildah_image(place.path(), &files, &config);
    let registry = Registry::start();
    let zstd = ["--dest-compress", "--dest-compress-format", "zstd"];
    registry.push(&zstd, &layout, "team/tool:1");
    // An image that is not here is pulled by its name.
    let name = registry.reference("team/tool:1");
    assert_eq!(kiln(&["run", &name], 0).text(), "uid 1234 gid 77 in /data");
    // What it may not do, it does not do.
    let refused = kiln(&["run", &name, "write", "/etc/passwd"], 1);
    assert!(refused.stderr.contains("Permission denied"), "{}", refused.stderr);
    kiln(&["run", &name, "write", "/data/file"], 0);
    assert_eq!(kiln(&["run", "-u", "root", &name], 0).text(), "uid 0 gid 0 in /data");
    let none = kiln(&["run", "--entrypoint", "", &name, "sh", "-c", "true"], 127);
    assert!(none.stderr.contains("`sh` was not found"), "{}", none.stderr);
    // Without a shell no line can run before the save.
    let warm = kiln(&["image", "warm", &name, "--run", "true"], 1);
    assert!(warm.stderr.contains("--run needs `/bin/sh`"), "{}", warm.stderr);
    kiln(&["image", "rm", &name], 0);
}

#[test]
fn systemd_boots_its_services_and_each_fork_has_them() {
    debian();
    let name = "e2e/system:1";
    let unit = "[Service]\nExecStart=python3 -u -c 'import http.server; http.server.HTTPServer((\"127.0.0.1\", 8080), \
                http.server.SimpleHTTPRequestHandler).serve_forever()'\nWorkingDirectory=/srv\n\
                [Install]\nWantedBy=multi-user.target\n";
    let once = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c 'cat /proc/1/comm > /srv/booted'\n\
                [Install]\nWantedBy=multi-user.target\n";
    let write = format!(
        "cat > /etc/systemd/system/web.service <<'END'\n{unit}END\ncat > /etc/systemd/system/once.service <<'END'\n{once}END\n\
         systemctl enable web once 2>/dev/null; echo hello > /srv/page"
    );
    let snapshot = "e2e-system";
    // Of an earlier run of this test that was killed.
    let _ = Kiln::new(["snapshot", "rm", snapshot]).run();
    let create = [&["snapshot", "create", snapshot, "--image", DEBIAN], &MEMORY[..], &["--", "sh", "-c", &write]];
    kiln(&create.concat(), 0);
    kiln(&["commit", snapshot, "--name", name], 0);
    kiln(&["snapshot", "rm", snapshot], 0);

    let run = |script: &str, code: i32| {
        let run = ["run", "--init-system", "--image", name, MEMORY[0], MEMORY[1], "--", "sh", "-c", script];
        kiln(&run, code)
    };
    let get =
        "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:8080/page\").read().decode())'";
    // PID 1 is the image's, its services run, and its agent is in none of them.
    let seen = run(
        &format!(
            "cat /proc/1/comm /srv/booted; systemctl is-system-running --wait; systemctl is-active web once; {get}; \
             systemctl list-units --failed --no-legend --plain; cat /proc/self/cgroup; hostname; cat /etc/machine-id"
        ),
        0,
    );
    let text = seen.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..2], ["systemd", "systemd"], "{text}");
    assert!(["running", "degraded"].contains(&lines[2]), "{text}");
    assert_eq!(lines[3..6], ["active", "active", "hello"], "{text}");
    // A fork is another machine, and its services were frozen and continue.
    let again =
        run(&format!("{get}; systemctl restart web && systemctl is-active web; hostname; cat /etc/machine-id"), 0);
    let again = again.text();
    let others: Vec<&str> = again.lines().collect();
    assert_eq!(others[0], "hello", "{again}");
    assert_eq!(others[2], "active", "{again}");
    assert_ne!(lines[lines.len() - 2..], others[others.len() - 2..], "each has its own names");
    // When it powers off, its init ends all programs first, the command too, and not the agent, which reports that.
    run("systemctl poweroff; sleep 100", 143);
    // A volume is unmounted by init when the run ends.
    let volume = "e2e-system-volume";
    let _ = Kiln::new(["volume", "rm", volume]).run();
    let mount = format!("{volume}:/data");
    let flags = ["run", "--init-system", "--image", name, MEMORY[0], MEMORY[1], "-v", &mount, "--", "sh", "-c"];
    kiln(&[&flags[..], &["echo kept > /data/file"]].concat(), 0);
    let kept = kiln(&["run", "-v", &mount, "--", "cat", "/data/file"], 0);
    assert_eq!(kept.text(), "kept");
    assert!(!kept.stderr.contains("repair"), "{}", kept.stderr);
    kiln(&["volume", "rm", volume], 0);
    kiln(&["image", "rm", name], 0);

    let refused = kiln(&["run", "--init-system", "--", "true"], 2);
    assert!(refused.stderr.contains("no init of its own"), "{}", refused.stderr);
}
