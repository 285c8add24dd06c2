//! Flows of a guest that keeps the rules.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::Ordering;

use smoltcp::socket::tcp::State;

use super::guest::{echo, udp};
use super::*;
use crate::policy::{Domain, Opening};

const SERVER: &str = "203.0.113.1:80";
const MIB: usize = 1 << 20;

fn public() -> Policy {
    policy(PolicyDefault::Public, &[], &[])
}

/// A guest's connection to a server, with both ends.
fn connected(net: &mut Net) -> (smoltcp::iface::SocketHandle, TcpStream) {
    let listener = net.host.listen(SERVER);
    let handle = net.guest.connect(SERVER);
    let server = accepted(net, &listener);
    net.until("the guest is connected", |guest| (guest.state(handle) == State::Established).then_some(()));
    (handle, server)
}

fn accepted(net: &mut Net, listener: &TcpListener) -> TcpStream {
    let (server, _) = net.until("the server has a connection", |_| listener.accept().ok());
    server.set_nonblocking(true).expect("it does not block");
    server
}

fn noise(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|index| (index * 31 + index / 251) as u8).collect()
}

/// Reads until the end.
fn read_all(net: &mut Net, server: &mut TcpStream) -> Vec<u8> {
    let (mut bytes, mut buffer) = (vec![], vec![0; 1 << 16]);
    net.until("the server has read all", |_| match server.read(&mut buffer) {
        Ok(0) => Some(()),
        Ok(length) => {
            bytes.extend_from_slice(&buffer[..length]);
            None
        }
        Err(_) => None,
    });
    bytes
}

#[test]
fn bytes_go_both_ways_and_each_side_ends_on_its_own() {
    let mut net = Net::new(public());
    let (handle, mut server) = connected(&mut net);
    let sent = noise(3 * MIB);
    let mut rest = sent.as_slice();
    let mut received = vec![];
    let mut buffer = vec![0; 1 << 16];
    net.until("all has come", |guest| {
        let length = guest.tcp(handle).send_slice(rest).expect("the connection is open");
        rest = &rest[length..];
        if let Ok(length) = server.read(&mut buffer) {
            received.extend_from_slice(&buffer[..length]);
        }
        (received.len() == sent.len()).then_some(())
    });
    assert!(received == sent, "the bytes differ");
    net.guest.tcp(handle).close();
    assert_eq!(read_all(&mut net, &mut server), b"", "the end of the guest arrives");
    // The other direction is still open.
    let reply = noise(2 * MIB);
    let (mut rest, mut received) = (reply.as_slice(), vec![]);
    net.until("the guest has read all", |guest| {
        if let Ok(length) = server.write(rest) {
            rest = &rest[length..];
        }
        if rest.is_empty() {
            server.shutdown(Shutdown::Both).ok();
        }
        while guest.tcp(handle).can_recv() {
            guest.tcp(handle).recv(|bytes| (bytes.len(), received.extend_from_slice(bytes))).expect("it is open");
        }
        (received.len() == reply.len()).then_some(())
    });
    assert!(received == reply, "the bytes differ");
    let counts = net.stack.counts();
    net.until("the flow is gone", |_| (counts.open.load(Ordering::Relaxed) == 0).then_some(()));
    assert_eq!(net.guest.wire().resets, 0);
}

#[test]
fn a_denied_connection_gets_rst_at_once_and_no_socket_is_made() {
    let mut net = Net::new(policy(PolicyDefault::Public, &[], &["203.0.113.2"]));
    for to in ["203.0.113.2:80", "10.0.0.1:80", "127.0.0.1:22", "169.254.169.254:80", "169.254.0.22:80"] {
        let handle = net.guest.connect(to);
        net.until(to, |guest| (guest.state(handle) == State::Closed).then_some(()));
    }
    assert_eq!(net.host.lock().asked, Vec::<String>::new());
    let denials = net.gate.denials();
    assert_eq!((net.guest.wire().resets, denials.count), (5, 5));
    assert_eq!(denials.last[0].what.to_string(), "tcp/203.0.113.2:80");
    assert_eq!(denials.last[0].by, "rule `--deny 203.0.113.2`");
}

#[test]
fn without_a_policy_nothing_is_reached() {
    let mut net = Net::new(Policy::default());
    let handle = net.guest.connect(SERVER);
    net.until("the guest is refused", |guest| (guest.state(handle) == State::Closed).then_some(()));
    assert!(net.host.lock().asked.is_empty());
}

#[test]
fn a_server_that_refuses_is_seen_as_one() {
    let mut net = Net::new(public());
    let handle = net.guest.connect(SERVER);
    net.until("the guest is refused", |guest| (guest.state(handle) == State::Closed).then_some(()));
    assert_eq!(net.host.lock().asked, ["tcp/203.0.113.1:80"]);
    assert_eq!((net.guest.wire().resets, net.gate.denials().count), (1, 0));
}

#[test]
fn an_address_of_the_host_itself_is_refused_unless_a_rule_has_it_alone() {
    let mut net = Net::new(policy(PolicyDefault::Public, &["10.1.0.0/16", "10.1.0.6"], &[]));
    let own = ["203.0.113.1", "10.1.0.5", "10.1.0.6"];
    net.host.lock().own = own.map(|address| address.parse().expect("an address")).to_vec();
    for address in own {
        let handle = net.guest.connect(&format!("{address}:80"));
        net.until("the guest is refused", |guest| (guest.state(handle) == State::Closed).then_some(()));
    }
    assert_eq!(net.host.lock().asked, ["tcp/10.1.0.6:80"], "no server listens there, but the policy allows it");
}

#[test]
fn a_server_that_does_not_read_stops_its_guest() {
    let mut net = Net::new(public());
    let (handle, mut server) = connected(&mut net);
    let chunk = noise(64 << 10);
    let (mut sent, mut idle) = (0, 0);
    // The buffers of the kernel are bounded too, so the guest must come to a stop.
    net.until("the guest can't send more", |guest| {
        let length = guest.tcp(handle).send_slice(&chunk).expect("the connection is open");
        idle = if length == 0 { idle + 1 } else { 0 };
        sent += length;
        assert!(sent < 64 * MIB, "the guest is never stopped");
        (idle > 200).then_some(())
    });
    let (mut received, mut buffer) = (0, vec![0; 1 << 16]);
    net.until("all arrives", |_| {
        received += server.read(&mut buffer).unwrap_or(0);
        (received == sent).then_some(())
    });
}

#[test]
fn rst_of_one_side_becomes_rst_for_the_other() {
    let mut net = Net::new(public());
    let (handle, mut server) = connected(&mut net);
    net.guest.tcp(handle).abort();
    let error = net.until("the server sees it", |_| match server.read(&mut [0; 8]) {
        Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => Some(error.kind()),
        Ok(length) => panic!("read {length} bytes"),
        Err(_) => None,
    });
    assert_eq!(error, std::io::ErrorKind::ConnectionReset);
    let (handle, server) = connected(&mut net);
    rustix::net::sockopt::set_socket_linger(&server, Some(Duration::ZERO)).expect("it is set");
    drop(server);
    net.until("the guest sees it", |guest| (guest.state(handle) == State::Closed).then_some(()));
    assert_eq!(net.guest.wire().resets, 1);
}

#[test]
fn a_new_policy_resets_the_flows_that_it_denies_and_keeps_others() {
    let mut net = Net::new(public());
    let (lost, _server) = connected(&mut net);
    let listener = net.host.listen("203.0.113.9:443");
    let kept = net.guest.connect("203.0.113.9:443");
    let mut server = accepted(&mut net, &listener);
    net.gate.set_policy(policy(PolicyDefault::Deny, &["203.0.113.9:443"], &[]));
    net.until("the first is reset", |guest| (guest.state(lost) == State::Closed).then_some(()));
    server.write_all(b"x").expect("it is open");
    net.until("the second goes on", |guest| guest.tcp(kept).can_recv().then_some(()));
}

#[test]
fn an_opening_that_ends_does_not_end_its_connection() {
    let mut net = Net::new(policy(PolicyDefault::Deny, &["example.org:80"], &[]));
    let name = Domain::new("example.org").expect("a name");
    let address = "203.0.113.1".parse().expect("an address");
    net.gate.learn([&Opening { name, address, lasts: Duration::from_secs(60) }]);
    let (handle, mut server) = connected(&mut net);
    *net.gate.learned() = crate::policy::Learned::default();
    // Another policy makes the network judge all flows again.
    net.gate.set_policy(policy(PolicyDefault::Deny, &["example.org", "example.com"], &[]));
    server.write_all(b"x").expect("it is open");
    net.until("it goes on", |guest| guest.tcp(handle).can_recv().then_some(()));
    let another = net.guest.connect("203.0.113.1:81");
    net.until("a new one is refused", |guest| (guest.state(another) == State::Closed).then_some(()));
    net.gate.set_policy(policy(PolicyDefault::Deny, &["example.com"], &[]));
    net.until("a rule that is gone ends it", |guest| (guest.state(handle) == State::Closed).then_some(()));
}

#[test]
fn datagrams_go_only_where_the_policy_allows() {
    let mut net = Net::new(policy(PolicyDefault::Deny, &["udp/203.0.113.1:123"], &[]));
    let server = net.host.bind("203.0.113.1:123");
    net.guest.wire().ipv4(17, [203, 0, 113, 1], &udp(5000, 123, b"time"));
    let mut buffer = [0; 64];
    let (length, from) = net.until("the server has it", |_| server.recv_from(&mut buffer).ok());
    assert_eq!(&buffer[..length], b"time");
    server.send_to(b"noon", from).expect("it is sent");
    let reply = net.until("the guest has it", |guest| guest.wire().others.pop());
    assert_eq!((&reply[14..18], &reply[30..]), (&[203, 0, 113, 1][..], &b"noon"[..]));
    net.guest.wire().ipv4(17, [203, 0, 113, 1], &udp(5000, 124, b"no"));
    let reply = net.until("the guest is told", |guest| guest.wire().others.pop());
    assert_eq!((reply[11], &reply[22..24]), (1, &[3, 13][..]), "administratively prohibited");
    assert_eq!(&reply[30 + 20..30 + 24], &[0x13, 0x88, 0, 124], "its ports are quoted");
    assert_eq!(net.host.lock().asked, ["udp/203.0.113.1:123"]);
}

#[test]
fn names_are_asked_at_the_gateway_over_both_protocols() {
    let mut net = Net::new(Policy::default());
    net.guest.wire().ipv4(17, [169, 254, 0, 22], &udp(5353, 53, b"query"));
    let host = Arc::clone(&net.host);
    net.until("the resolver has it", |_| (!host.lock().answers.is_empty()).then_some(()));
    rustix::io::write(&*net.wake, &1_u64.to_ne_bytes()).expect("it is written");
    let reply = net.until("the guest has the answer", |guest| guest.wire().others.pop());
    assert_eq!((&reply[24..26], &reply[30..]), (&5353_u16.to_be_bytes()[..], &b"answer to query"[..]));
    let handle = net.guest.connect("169.254.0.22:53");
    let mut resolver = net.until("the resolver has a connection", |_| host.lock().resolver.take());
    net.until("it is open", |guest| (guest.state(handle) == State::Established).then_some(()));
    resolver.write_all(b"answer").expect("it is sent");
    net.until("the guest has it", |guest| (guest.tcp(handle).recv_queue() == 6).then_some(()));
    assert!(net.host.lock().asked.is_empty());
}

#[test]
fn the_gateway_answers_arp_and_echo() {
    let mut net = Net::new(Policy::default());
    let request = [
        &[0xff; 6][..],
        &crate::inner::GUEST_MAC,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &crate::inner::GUEST_MAC,
        &[169, 254, 0, 21],
        &[0; 6],
        &[169, 254, 0, 22],
    ]
    .concat();
    net.guest.wire().frame(&request);
    let reply = net.until("the gateway answers", |guest| guest.wire().others.pop());
    assert_eq!((&reply[8..10], &reply[10..16]), (&[0, 2][..], &crate::inner::GATEWAY_MAC[..]));
    net.guest.wire().ipv4(1, [169, 254, 0, 22], &echo([7, 7], b"data"));
    let reply = net.until("the gateway answers", |guest| guest.wire().others.pop());
    assert_eq!((reply[22], &reply[26..28], &reply[30..]), (0, &[7, 7][..], &b"data"[..]));
    net.guest.wire().ipv4(1, [203, 0, 113, 1], &echo([7, 7], b"data"));
    let reply = net.until("others are denied", |guest| guest.wire().others.pop());
    assert_eq!(&reply[22..24], &[3, 13]);
    assert_eq!(net.gate.denials().last[0].what.to_string(), "icmp/203.0.113.1");
}

#[test]
fn an_echo_that_is_allowed_comes_back_to_the_program_that_asked() {
    let mut net = Net::new(public());
    net.guest.wire().ipv4(1, [203, 0, 113, 1], &echo([7, 9], b"data"));
    let host = Arc::clone(&net.host);
    let mut remote = net.until("the host's socket is there", |_| host.lock().echo.take());
    let mut request = [0; 12];
    remote.read_exact(&mut request).expect("the request has come");
    // The kernel puts a number of its own there.
    request[0] = 0;
    request[4..6].copy_from_slice(&[0xbe, 0xef]);
    remote.write_all(&request).expect("it is sent");
    let reply = net.until("the guest has the reply", |guest| guest.wire().others.pop());
    assert_eq!((reply[22], &reply[26..28], &reply[30..]), (0, &[7, 9][..], &b"data"[..]));
}

#[test]
fn a_guest_that_forgot_its_connection_can_make_it_again() {
    let mut net = Net::new(public());
    let (handle, mut old) = connected(&mut net);
    // The guest starts again: it has the same ports, and knows nothing of the connection.
    net.guest.sockets.remove(handle);
    net.guest.forget_ports();
    let (_, _server) = connected(&mut net);
    let error = net.until("the old one is reset", |_| match old.read(&mut [0; 8]) {
        Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => Some(error.kind()),
        _ => None,
    });
    assert_eq!(error, std::io::ErrorKind::ConnectionReset);
    assert_eq!(net.stack.counts().connections.load(Ordering::Relaxed), 2);
}

#[test]
fn a_published_port_leads_to_the_guest() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let address = listener.local_addr().expect("its address");
    let mut net = Net::publishing(Policy::default(), vec![Published { listener, guest_port: 8080 }]);
    let handle = net.guest.listen(8080);
    let mut client = TcpStream::connect(address).expect("it connects");
    client.write_all(b"hello").expect("it is sent");
    net.until("the guest has it", |guest| (guest.tcp(handle).recv_queue() == 5).then_some(()));
    net.guest.tcp(handle).send_slice(b"world").expect("it is open");
    net.guest.tcp(handle).close();
    client.set_nonblocking(true).expect("it does not block");
    assert_eq!(read_all(&mut net, &mut client), b"world");
    drop(client);
    // No program of the guest listens any more.
    let mut refused = TcpStream::connect(address).expect("the host accepts");
    refused.set_nonblocking(true).expect("it does not block");
    net.until("the client sees it", |_| match refused.read(&mut [0; 8]) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Some(()),
        _ => None,
    });
}
