//! `--net nat` on a host with an internet of its own.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};

use kiln_e2e::{Internet, Running, TestHome, until, until_booted};
use rustix::process::Signal;
use serde_json::Value;

/// Two servers of the internet. Rules open the first one.
const OPEN: (&str, &str) = ("9.9.9.9", "the first server");
const OTHER: (&str, &str) = ("1.1.1.1", "the second server");
const PORT: u16 = 80;

/// For each line of stdin, asks the address in it, and ends the answer with a dot. Ends with its stdin.
const ASK: &str = "echo ready; while read -r address; do nc -w 10 $address 80 </dev/null 2>&1; echo; echo .; done";

/// A guest that asks addresses of the internet for a test.
struct Asking {
    running: Running,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Asking {
    fn start(internet: &Internet, home: &TestHome, name: &str) -> Self {
        let flags = ["run", "-i", "--name", name, "--net", "nat", "--allow", "9.9.9.9:80", "--", "sh", "-c", ASK];
        let mut running = internet.kiln(home, flags).start();
        let mut lines = BufReader::new(running.0.stdout.take().expect("is piped")).lines();
        assert_eq!(lines.next().expect("it starts").expect("text"), "ready");
        Self { running, lines }
    }

    /// What the address answers, or the guest's error.
    fn ask(&mut self, address: &str) -> String {
        writeln!(self.running.0.stdin.as_mut().expect("is piped"), "{address}").expect("the guest reads");
        let rows = self.lines.by_ref().map(|line| line.expect("text")).take_while(|line| line != ".");
        rows.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
    }

    /// Ends the guest. Returns its stderr.
    fn end(mut self) -> String {
        drop(self.running.0.stdin.take());
        assert_eq!(self.running.wait(), 0);
        let mut stderr = String::new();
        self.running.0.stderr.take().expect("is piped").read_to_string(&mut stderr).expect("text");
        stderr
    }
}

fn internet() -> (Internet, TestHome) {
    let internet = Internet::new();
    for (address, word) in [OPEN, OTHER] {
        internet.serve(address, PORT, word);
    }
    (internet, TestHome::with_image())
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn as_root_a_guest_reaches_what_rules_open_and_the_rest_is_counted() {
    let (internet, home) = internet();
    let before = internet.listing();
    let mut guest = Asking::start(&internet, &home, "web");
    let refused = |address: &str| format!("nc: can't connect to remote host ({address}): Connection refused");
    assert_eq!(guest.ask(OPEN.0), OPEN.1);
    assert_eq!(guest.ask(OTHER.0), refused(OTHER.0));
    // The host itself, as its own network has it.
    assert_eq!(guest.ask("198.51.100.2"), refused("198.51.100.2"));

    let listed = internet.kiln(&home, ["net", "ls", "--json"]).run().text();
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    let listed = listed["vms"].as_array().expect("a list");
    assert_eq!((listed.len(), &listed[0]["name"], &listed[0]["kind"]), (1, &"web".into(), &"nat".into()));
    assert!(listed[0]["denied"].as_u64() >= Some(2), "{listed:?}");
    let denials = listed[0]["denials"].to_string();
    assert!(denials.contains("tcp/1.1.1.1:80: ") && denials.contains("tcp/198.51.100.2:80: "), "{denials}");

    // Each change applies to the running guest.
    let changed = internet.kiln(&home, ["net", "policy", "web", "--allow", "1.1.1.1:80"]).run();
    assert_eq!(changed.code, 0, "{}", changed.stderr);
    assert_eq!(guest.ask(OTHER.0), OTHER.1);
    assert_eq!(guest.end(), "");
    assert_eq!(internet.listing(), before);
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn as_root_rules_that_another_program_flushed_are_reported_and_set_again() {
    let (internet, home) = internet();
    let mut guest = Asking::start(&internet, &home, "web");
    let rules = internet.sh("nft list tables");
    assert!(rules.contains("kiln"), "{rules}");
    internet.sh("nft flush ruleset");
    until("the rules", || (internet.sh("nft list tables") == rules).then_some(()));
    assert_eq!(guest.ask(OPEN.0), OPEN.1);
    assert!(guest.ask(OTHER.0).ends_with("Connection refused"));
    let stderr = guest.end();
    assert!(stderr.contains("the rules of a VM's network were changed"), "{stderr}");
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn as_root_the_network_of_a_killed_run_is_removed_by_the_next() {
    let (internet, home) = internet();
    let before = internet.listing();
    let guest = Asking::start(&internet, &home, "web");
    let vmm = until_booted("its VMM", || home.vmm());
    guest.running.signal(Signal::KILL);
    let mut running = guest.running;
    assert_eq!(running.wait(), 128 + 9);
    assert_ne!(internet.listing(), before, "its network is still there");
    until("the end of its VMM", || (!kiln_e2e::is_running(vmm)).then_some(()));
    let next = internet.kiln(&home, ["run", "--net", "nat", "--", "true"]).run();
    assert_eq!(next.code, 0, "{}", next.stderr);
    assert_eq!(internet.listing(), before);
}
