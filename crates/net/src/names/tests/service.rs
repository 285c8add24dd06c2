//! The whole resolver against one on loopback.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::*;
use crate::gate::{Denied, Gate};
use crate::policy::{Change, Destination, Domain};

const TEST_TIME: Duration = Duration::from_secs(60);

/// A resolver of the host. It answers what the function returns for each query, in datagrams.
async fn host(
    answers: impl Fn(&[u8], &Gate) -> Vec<Vec<u8>> + Send + 'static,
    gate: Arc<Gate>,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let address = socket.local_addr().expect("its address");
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            counted.fetch_add(1, Ordering::SeqCst);
            for answer in answers(&buffer[..length], &gate) {
                socket.send_to(&answer, from).await.expect("the answer is sent");
            }
        }
    });
    (address, count)
}

fn one(address: [u8; 4]) -> impl Fn(&[u8], &Gate) -> Vec<Vec<u8>> {
    move |query, _| vec![reply(query, 0, &[Sent { name: vec![0xc0, 12], kind: A, ttl: 300, data: address.to_vec() }])]
}

fn gate(default: PolicyDefault, allow: &[&str], deny: &[&str]) -> Arc<Gate> {
    Arc::new(Gate::new(policy(default, allow, deny)))
}

fn resolver(gate: &Arc<Gate>, server: SocketAddr) -> Resolver {
    Resolver::new(Arc::clone(gate), Arc::new(NoSink), Upstream::Servers(vec![server]))
}

async fn ask(resolver: &Resolver, name: &str) -> (u16, u16, Vec<Ipv4Addr>) {
    received(&resolver.answer(&query(name, A), Transport::Udp).await.expect("an answer"))
}

async fn bounded<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(TEST_TIME, test).await.expect("the test ends in time")
}

#[tokio::test]
async fn a_name_that_no_rule_allows_is_refused_and_never_forwarded() {
    let gate = gate(PolicyDefault::Deny, &["example.org"], &[]);
    let (server, asked) = host(one([203, 0, 113, 1]), Arc::clone(&gate)).await;
    let resolver = resolver(&gate, server);
    let secret = "c2VjcmV0.evil.example";
    assert_eq!(bounded(ask(&resolver, secret)).await, (5, 0, vec![]));
    assert_eq!(bounded(ask(&resolver, "example.org")).await, (0, 1, vec![Ipv4Addr::new(203, 0, 113, 1)]));
    assert_eq!(asked.load(Ordering::SeqCst), 1, "only the allowed name was forwarded");
    let denials = gate.denials();
    assert_eq!((denials.count, &denials.last[0].what), (1, &Denied::Name(domain(secret))));
}

#[tokio::test]
async fn the_guest_sees_why_if_it_asks_with_options() {
    let gate = gate(PolicyDefault::Deny, &[], &[]);
    let resolver = resolver(&gate, "127.0.0.1:1".parse().expect("an address"));
    let answer =
        bounded(resolver.answer(&query_with_options("example.org", A), Transport::Udp)).await.expect("an answer");
    assert_eq!(answer[answer.len() - 6..], [0, 15, 0, 2, 0, 15], "the extended error `blocked`");
}

#[tokio::test]
async fn an_address_is_open_when_the_guest_has_the_answer() {
    struct Sink(Mutex<Vec<Grant>>);
    impl Opens for Sink {
        fn open(&self, grants: &[Grant]) -> io::Result<()> {
            self.0.lock().expect("no panic").extend_from_slice(grants);
            Ok(())
        }
    }
    let gate = gate(PolicyDefault::Deny, &["example.org:443"], &[]);
    let (server, _) = host(one([203, 0, 113, 1]), Arc::clone(&gate)).await;
    let sink = Arc::new(Sink(Mutex::default()));
    let opens = Arc::clone(&sink) as Arc<dyn Opens>;
    let resolver = Resolver::new(Arc::clone(&gate), opens, Upstream::Servers(vec![server]));
    let to = |port| Destination::tcp(SocketAddr::from(([203, 0, 113, 1], port)));
    assert!(!gate.decide(&to(443)).is_allowed());
    bounded(ask(&resolver, "example.org")).await;
    assert!(gate.decide(&to(443)).is_allowed());
    assert!(!gate.decide(&to(80)).is_allowed());
    let grants = sink.0.lock().expect("no panic");
    assert_eq!(grants.len(), 1);
    assert_eq!(grants[0].opening.lasts, Duration::from_secs(300));
}

#[tokio::test]
async fn without_an_opening_there_is_no_answer() {
    struct Broken;
    impl Opens for Broken {
        fn open(&self, _: &[Grant]) -> io::Result<()> {
            Err(io::ErrorKind::Other.into())
        }
    }
    let gate = gate(PolicyDefault::Deny, &["example.org"], &[]);
    let (server, _) = host(one([203, 0, 113, 1]), Arc::clone(&gate)).await;
    let resolver = Resolver::new(Arc::clone(&gate), Arc::new(Broken), Upstream::Servers(vec![server]));
    assert_eq!(bounded(ask(&resolver, "example.org")).await, (2, 0, vec![]));
}

#[tokio::test]
async fn forged_answers_are_ignored() {
    let gate = gate(PolicyDefault::Public, &[], &[]);
    let forge = |query: &[u8], _: &Gate| {
        let mut number = reply(query, 0, &[a("example.org", 300, [203, 0, 113, 66])]);
        number[0] ^= 1;
        let mut question = reply(query, 0, &[a("example.org", 300, [203, 0, 113, 66])]);
        question[13] = b'f';
        vec![vec![], vec![0; 12], number, question, reply(query, 0, &[a("example.org", 300, [203, 0, 113, 1])])]
    };
    let (server, _) = host(forge, Arc::clone(&gate)).await;
    let answer = bounded(ask(&resolver(&gate, server), "example.org")).await;
    assert_eq!(answer.2, [Ipv4Addr::new(203, 0, 113, 1)]);
}

#[tokio::test]
async fn a_policy_that_changes_while_a_query_is_on_its_way_decides_about_the_answer() {
    let gate = gate(PolicyDefault::Deny, &["example.org"], &[]);
    let change = |query: &[u8], gate: &Gate| {
        gate.set_policy(Policy::default());
        vec![reply(query, 0, &[a("example.org", 300, [203, 0, 113, 1])])]
    };
    let (server, _) = host(change, Arc::clone(&gate)).await;
    assert_eq!(bounded(ask(&resolver(&gate, server), "example.org")).await, (5, 0, vec![]));
    assert!(gate.learned().addresses(&domain("example.org"), std::time::Instant::now()).is_empty());
}

#[tokio::test]
async fn public_resolves_all_names_without_private_addresses() {
    let gate = gate(PolicyDefault::Public, &[], &["ads.example"]);
    let answers = |query: &[u8], _: &Gate| {
        let address = if query[13] == b'i' { [10, 0, 0, 1] } else { [203, 0, 113, 1] };
        one(address)(query, &Gate::default())
    };
    let (server, asked) = host(answers, Arc::clone(&gate)).await;
    let resolver = resolver(&gate, server);
    assert_eq!(bounded(ask(&resolver, "anything.example")).await.2.len(), 1);
    assert_eq!(bounded(ask(&resolver, "internal.example")).await, (0, 0, vec![]));
    assert_eq!(bounded(ask(&resolver, "ads.example")).await.0, 5);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    let denials = gate.denials();
    assert!(denials.last.iter().any(|denial| denial.what.to_string() == "answer 10.0.0.1 for internal.example"));
}

#[tokio::test]
async fn reverse_names_of_private_addresses_are_not_forwarded() {
    let gate = gate(PolicyDefault::Public, &[], &[]);
    let (server, asked) = host(|query, _| vec![reply(query, 3, &[])], Arc::clone(&gate)).await;
    let resolver = resolver(&gate, server);
    for name in ["1.0.0.10.in-addr.arpa", "10.in-addr.arpa", "254.169.254.169.in-addr.arpa", "1.0.d.f.ip6.arpa"] {
        let answer = bounded(resolver.answer(&query(name, 12), Transport::Udp)).await.expect("an answer");
        assert_eq!(received(&answer).0, 5, "{name}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    bounded(resolver.answer(&query("1.113.0.203.in-addr.arpa", 12), Transport::Udp)).await.expect("an answer");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn hints_of_addresses_and_ipv6_are_empty_without_a_query() {
    let gate = gate(PolicyDefault::Public, &[], &[]);
    let (server, asked) = host(one([203, 0, 113, 1]), Arc::clone(&gate)).await;
    let resolver = resolver(&gate, server);
    for kind in [64, 65, AAAA] {
        let answer = bounded(resolver.answer(&query("example.org", kind), Transport::Udp)).await.expect("an answer");
        assert_eq!(received(&answer), (0, 0, vec![]));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

/// The VM `db`.
struct OneNeighbour;

impl Neighbours for OneNeighbour {
    fn addresses(&self, name: &Domain) -> Vec<IpAddr> {
        if *name == domain("db") { vec![Ipv4Addr::new(10, 77, 0, 2).into()] } else { Vec::new() }
    }
}

#[tokio::test]
async fn names_of_other_vms_are_answered_and_open_nothing() {
    let gate = gate(PolicyDefault::Deny, &[], &[]);
    let resolver = resolver(&gate, "127.0.0.1:1".parse().expect("an address")).with_neighbours(Arc::new(OneNeighbour));
    assert_eq!(bounded(ask(&resolver, "db")).await, (0, 1, vec![Ipv4Addr::new(10, 77, 0, 2)]));
    assert_eq!(bounded(ask(&resolver, "web")).await.0, 5);
    assert!(!gate.decide(&Destination::tcp("10.77.0.2:5432".parse().expect("an address"))).is_allowed());
}

#[tokio::test]
async fn a_guest_that_asks_too_fast_gets_no_answers() {
    let gate = gate(PolicyDefault::Deny, &[], &[]);
    let resolver = resolver(&gate, "127.0.0.1:1".parse().expect("an address"));
    let queries = 20 * QUERIES_BURST;
    let mut answers = 0;
    let start = std::time::Instant::now();
    for _ in 0..queries {
        answers += u32::from(bounded(resolver.answer(&query("a.example", A), Transport::Udp)).await.is_some());
    }
    let seconds = u32::try_from(start.elapsed().as_secs()).expect("a short test") + 1;
    assert!(answers >= QUERIES_BURST);
    assert!(answers <= QUERIES_BURST + seconds * QUERIES_PER_SECOND, "{answers} answers in {seconds} s");
}

#[tokio::test]
async fn queries_in_flight_are_bounded() {
    let gate = gate(PolicyDefault::Public, &[], &[]);
    let (server, asked) = host(|_, _| vec![], Arc::clone(&gate)).await;
    let resolver = Arc::new(resolver(&gate, server));
    let waiting: Vec<_> = (0..IN_FLIGHT_MAX)
        .map(|_| {
            let resolver = Arc::clone(&resolver);
            tokio::spawn(async move { resolver.answer(&query("slow.example", A), Transport::Udp).await })
        })
        .collect();
    bounded(async {
        while asked.load(Ordering::SeqCst) < IN_FLIGHT_MAX {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(bounded(ask(&resolver, "one.more.example")).await, (2, 0, vec![]));
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_asked_for_over_tcp() {
    let gate = gate(PolicyDefault::Public, &[], &[]);
    let truncate = |query: &[u8], _: &Gate| {
        let mut bytes = reply(query, 0, &[]);
        bytes[2] |= 2;
        vec![bytes]
    };
    let (server, _) = host(truncate, Arc::clone(&gate)).await;
    let listener = TcpListener::bind(server).await.expect("the port is free for TCP");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut query = vec![0; usize::from(stream.read_u16().await.expect("a length"))];
        stream.read_exact(&mut query).await.expect("a query");
        let records: Vec<Sent> = (0..40).map(|number| a("example.org", 60, [203, 0, 113, number])).collect();
        let answer = reply(&query, 0, &records);
        stream.write_u16(answer.len() as u16).await.expect("it is sent");
        stream.write_all(&answer).await.expect("it is sent");
    });
    let resolver = resolver(&gate, server);
    let answer = bounded(resolver.answer(&query("example.org", A), Transport::Tcp)).await.expect("an answer");
    assert_eq!(received(&answer).2.len(), 40);
}

#[tokio::test]
async fn both_transports_are_served() {
    let gate = gate(PolicyDefault::Deny, &["example.org"], &[]);
    let (server, _) = host(one([203, 0, 113, 1]), Arc::clone(&gate)).await;
    let resolver = Arc::new(resolver(&gate, server));
    let udp = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
    let addresses = (udp.local_addr().expect("its address"), tcp.local_addr().expect("its address"));
    let served = [tokio::spawn(serve_udp(Arc::clone(&resolver), udp)), tokio::spawn(serve_tcp(resolver, tcp))];
    bounded(async {
        let client = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        client.connect(addresses.0).await.expect("it connects");
        for junk in [vec![], vec![0; 5], vec![0xff; 2000], query("example.org", A)] {
            client.send(&junk).await.expect("it is sent");
        }
        let mut buffer = [0; 2048];
        let length = loop {
            let length = client.recv(&mut buffer).await.expect("an answer");
            if buffer[..2] == [0, 7] {
                break length;
            }
        };
        assert_eq!(received(&buffer[..length]).2, [Ipv4Addr::new(203, 0, 113, 1)]);
        let mut client = TcpStream::connect(addresses.1).await.expect("it connects");
        for _ in 0..3 {
            let query = query("example.org", A);
            client.write_u16(query.len() as u16).await.expect("it is sent");
            client.write_all(&query).await.expect("it is sent");
            let mut answer = vec![0; usize::from(client.read_u16().await.expect("a length"))];
            client.read_exact(&mut answer).await.expect("an answer");
            assert_eq!(received(&answer).2, [Ipv4Addr::new(203, 0, 113, 1)]);
        }
    })
    .await;
    served.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_change_of_the_policy_reaches_the_next_query() {
    let gate = gate(PolicyDefault::Deny, &[], &[]);
    let (server, _) = host(one([203, 0, 113, 1]), Arc::clone(&gate)).await;
    let resolver = resolver(&gate, server);
    assert_eq!(bounded(ask(&resolver, "example.org")).await.0, 5);
    let change = Change { allow: vec!["example.org".parse().expect("a rule")], ..Change::default() };
    gate.set_policy(gate.policy().changed(&change).expect("the change is right"));
    assert_eq!(bounded(ask(&resolver, "example.org")).await.0, 0);
}

#[test]
fn the_hosts_configuration_is_read_like_the_c_library_does() {
    let text = "# nameserver 192.0.2.9\nsearch example.org\nnameserver 127.0.0.53\nnameserver\tbad\n nameserver 192.0.2.1 # x\nnameserver 2001:db8::1\nnameserver 192.0.2.3\n";
    let servers: Vec<String> = upstream::servers(text).iter().map(ToString::to_string).collect();
    assert_eq!(servers, ["127.0.0.53:53", "192.0.2.1:53", "[2001:db8::1]:53"]);
}
