//! Networks of VMs and published ports, as a guest and its host see them.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use kiln_e2e::{Kiln, until_booted};
use rustix::process::Signal;

/// What a guest sees of its network: addresses, resolver, a name and an address that no rule opens.
const SCRIPT: &str = "ip -4 addr show eth0 | grep -c 169.254.0.21/30; ip route | grep -c 'default via 169.254.0.22'; \
     cat /etc/resolv.conf; nslookup other.example 169.254.0.22 2>&1 | grep -o -m 1 REFUSED; \
     nc -w 5 192.0.2.1 80 2>&1 | grep -c refused; nc -w 5 169.254.169.254 80 2>&1 | grep -c refused";

fn sees_its_network(flags: &[&str]) {
    let flags = [flags, &["--allow", "example.org:443"]].concat();
    let outcome = Kiln::shell(&flags, SCRIPT).run();
    assert_eq!(outcome.text(), "1\n1\nnameserver 169.254.0.22\nREFUSED\n1\n1", "{flags:?}: {}", outcome.stderr);
}

#[test]
fn without_root_a_guest_reaches_only_what_a_rule_opens() {
    sees_its_network(&["--net", "user"]);
    sees_its_network(&["--net", "user", "--cold"]);
}

#[test]
fn without_a_network_there_is_no_card() {
    assert_eq!(Kiln::shell(&[], "ls /sys/class/net").run().text(), "lo");
}

#[test]
fn a_published_port_leads_to_the_guest_without_a_network() {
    // The port is free, unless another program takes it now.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|bound| bound.local_addr()).expect("a port").port();
    let publish = format!("127.0.0.1:{port}:8000");
    let script = "mkdir /tmp/www; echo from the guest > /tmp/www/page; exec httpd -f -p 127.0.0.1:8000 -h /tmp/www";
    let mut running = Kiln::shell(&["-p", &publish], script).start();
    let page = until_booted("the guest's page", || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        stream.write_all(b"GET /page HTTP/1.0\r\n\r\n").ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).ok()?;
        page.ends_with("from the guest\n").then_some(page)
    });
    assert!(page.starts_with("HTTP/1"), "{page}");
    running.signal(Signal::TERM);
    running.wait();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "the port is closed with the run");
}
