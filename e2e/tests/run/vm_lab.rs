//! `kiln net create`, and VMs that reach each other by name.

use std::io::{BufRead as _, BufReader, Write as _};

use kiln_e2e::{Internet, Running, TestHome, until, until_booted};
use rustix::process::Signal;
use serde_json::Value;

/// Serves its first argument on port 80, and then runs each line of stdin as a command, with a dot behind its output.
/// Ends with its stdin.
const SERVE: &str = "mkdir /tmp/www; echo \"this is $0\" > /tmp/www/page; httpd -p 80 -h /tmp/www; echo ready; \
     while read -r line; do sh -c \"$line\" 2>&1 </dev/null; echo; echo .; done";

/// A VM of a network that runs commands for a test.
struct Member {
    running: Running,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Member {
    fn start(internet: &Internet, home: &TestHome, network: &str, name: &str) -> Self {
        let flags = ["run", "-i", "--net", network, "--name", name, "--", "sh", "-c", SERVE, name];
        let mut running = internet.kiln(home, flags).start();
        let mut lines = BufReader::new(running.0.stdout.take().expect("is piped")).lines();
        assert_eq!(lines.next().expect("it starts").expect("text"), "ready");
        Self { running, lines }
    }

    fn sh(&mut self, line: &str) -> String {
        writeln!(self.running.0.stdin.as_mut().expect("is piped"), "{line}").expect("the guest reads");
        let rows = self.lines.by_ref().map(|line| line.expect("text")).take_while(|line| line != ".");
        rows.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
    }

    /// The page of another VM, or the error. Busybox is linked statically in this guest, so only its `nslookup` resolves.
    fn page(&mut self, host: &str) -> String {
        let resolve = format!("nslookup -type=a {host} | sed -n '/^Name/{{n;s/Address: //p;}}'");
        let fetch = fetch("$address");
        self.sh(&format!("address=$({resolve}); if [ -n \"$address\" ]; then {fetch}; else echo bad address; fi"))
    }

    /// The same of an address.
    fn page_at(&mut self, address: &str) -> String {
        self.sh(&fetch(address))
    }

    fn end(mut self) {
        drop(self.running.0.stdin.take());
        assert_eq!(self.running.wait(), 0);
    }
}

/// A line that prints the page of an address.
fn fetch(address: &str) -> String {
    format!("printf 'GET /page HTTP/1.0\\r\\n\\r\\n' | nc -w 10 {address} 80 2>&1 | tail -n 1")
}

fn networks(internet: &Internet, home: &TestHome) -> Value {
    let listed = internet.kiln(home, ["net", "ls", "--json"]).run();
    serde_json::from_str(&listed.text()).expect("JSON")
}

fn succeeds(internet: &Internet, home: &TestHome, words: &[&str]) {
    let outcome = internet.kiln(home, words.iter().copied()).run();
    assert_eq!(outcome.code, 0, "{words:?}: {}", outcome.stderr);
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn as_root_vms_of_a_network_reach_each_other_by_name_and_nothing_else() {
    let (internet, home) = (Internet::new(), TestHome::with_image());
    internet.serve("9.9.9.9", 80, "a server of the internet");
    let before = internet.listing();
    for name in ["lab", "other"] {
        succeeds(&internet, &home, &["net", "create", name]);
    }
    let mut web = Member::start(&internet, &home, "lab", "web");
    let mut db = Member::start(&internet, &home, "lab", "db");
    let stranger = Member::start(&internet, &home, "other", "stranger");
    assert_eq!(web.page("db"), "this is db");
    assert_eq!(db.page("web"), "this is web");
    assert_eq!(web.page("web"), "this is web", "itself");
    // Neither a name of another network, nor the internet, nor the host.
    assert_eq!(web.page("stranger"), "bad address");
    for closed in ["9.9.9.9", "198.51.100.2"] {
        let answer = web.page_at(closed);
        assert!(answer.contains("refused"), "{closed}: {answer}");
    }

    let listed = networks(&internet, &home);
    let [lab, other] = &listed["networks"].as_array().expect("a list")[..] else { panic!("{listed}") };
    assert_eq!((&lab["name"], &other["name"]), (&"lab".into(), &"other".into()));
    assert_eq!((&lab["vms"][0]["name"], &lab["vms"][1]["name"]), (&"web".into(), &"db".into()));
    let vms = listed["vms"].as_array().expect("a list");
    assert_eq!(vms.iter().filter(|vm| vm["network"] == "lab").count(), 2, "{listed}");
    let text = internet.kiln(&home, ["net", "ls"]).run().text();
    assert!(text.contains("web 10.77.0.2, db 10.77.0.3"), "{text}");

    // The name is taken, and the network is in use.
    let refused = internet.kiln(&home, ["run", "--net", "lab", "--name", "db", "--", "true"]).run();
    assert!(refused.stderr.contains("already has a VM `db`"), "{}", refused.stderr);
    let refused = internet.kiln(&home, ["net", "rm", "lab"]).run();
    assert!(refused.code == 2 && refused.stderr.contains("2 VMs use the network `lab`"), "{}", refused.stderr);

    // The names are answered as long as one owner lives, not only the first one.
    web.end();
    assert_eq!(db.page("db"), "this is db");
    assert_eq!(db.page("web"), "bad address");
    let mut web = Member::start(&internet, &home, "lab", "web");
    assert_eq!(web.page("db"), "this is db");
    for member in [web, db, stranger] {
        member.end();
    }
    succeeds(&internet, &home, &["net", "rm", "lab", "other"]);
    assert_eq!(internet.listing(), before);
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn as_root_a_killed_run_leaves_its_network_and_nothing_else() {
    let (internet, home) = (Internet::new(), TestHome::with_image());
    let before = internet.listing();
    succeeds(&internet, &home, &["net", "create", "lab"]);
    let killed = Member::start(&internet, &home, "lab", "web");
    let vmm = until_booted("its VMM", || home.vmm());
    let mut running = killed.running;
    running.signal(Signal::KILL);
    assert_eq!(running.wait(), 128 + 9);
    until("the end of its VMM", || (!kiln_e2e::is_running(vmm)).then_some(()));
    // The place is free again, and so is the name.
    let mut web = Member::start(&internet, &home, "lab", "web");
    assert!(web.sh("ip -4 addr show eth0").contains("10.77.0.2/24"));
    let pid = running_owner(&web);
    web.running.signal(Signal::KILL);
    web.running.wait();
    until("the end of its owner", || (!kiln_e2e::is_running(pid)).then_some(()));
    until("the network", || (internet.kiln(&home, ["net", "rm", "lab"]).run().code == 0).then_some(()));
    assert_eq!(internet.listing(), before);
}

fn running_owner(member: &Member) -> i32 {
    member.running.0.id().cast_signed()
}
