//! A peer that keeps no rules.

use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::guest::{echo, frame, syn, udp};
use super::*;
use crate::inner::GUEST;

fn public() -> Net {
    Net::new(policy(PolicyDefault::Public, &[], &[]))
}

fn ignored(net: &Net) -> u64 {
    net.stack.counts().ignored.load(Ordering::Relaxed)
}

#[test]
fn packets_with_a_false_source_are_dropped() {
    let mut net = public();
    for from in [[203, 0, 113, 1], [169, 254, 0, 22], [127, 0, 0, 1], [0, 0, 0, 0], [255, 255, 255, 255]] {
        net.stack.frame(&frame(from, 6, [203, 0, 113, 7], &syn(1, 80)));
        net.stack.frame(&frame(from, 17, [203, 0, 113, 7], &udp(1, 80, b"x")));
    }
    assert_eq!((ignored(&net), net.host.lock().asked.len()), (10, 0));
}

#[test]
fn fragments_and_other_protocols_are_dropped() {
    let mut net = public();
    let mut fragment = frame(GUEST.octets(), 17, [203, 0, 113, 7], &udp(1, 80, b"x"));
    fragment[20] = 0x20;
    let ipv6 = [&fragment[..12], &[0x86, 0xdd], &[0x60; 60]].concat();
    let vlan = [&fragment[..12], &[0x81, 0, 0, 1, 8, 0], &fragment[14..]].concat();
    for bytes in [fragment, ipv6, vlan, vec![], vec![0; 13], vec![0xff; 60]] {
        net.stack.frame(&bytes);
    }
    for protocol in [2, 41, 47, 132] {
        net.stack.frame(&frame(GUEST.octets(), protocol, [203, 0, 113, 7], &[0; 40]));
    }
    assert_eq!((ignored(&net), net.host.lock().asked.len()), (10, 0));
}

#[test]
fn groups_and_broadcasts_are_dropped_without_an_answer() {
    let mut net = Net::new(policy(PolicyDefault::Public, &["*"], &[]));
    for to in [[224, 0, 0, 251], [239, 1, 2, 3], [255, 255, 255, 255]] {
        net.stack.frame(&frame(GUEST.octets(), 17, to, &udp(1, 80, b"x")));
        net.stack.frame(&frame(GUEST.octets(), 6, to, &syn(1, 80)));
        net.stack.frame(&frame(GUEST.octets(), 1, to, &echo([0, 1], b"x")));
    }
    assert_eq!((ignored(&net), net.host.lock().asked.len()), (9, 0));
}

#[test]
fn a_flood_of_connections_meets_a_bound() {
    let mut net = public();
    let _listener = net.host.listen("203.0.113.1:80");
    for port in 1..=4000 {
        net.stack.frame(&frame(GUEST.octets(), 6, [203, 0, 113, 1], &syn(port, 80)));
    }
    let counts = net.stack.counts();
    assert_eq!(counts.connections.load(Ordering::Relaxed), CONNECTIONS_MAX as u64);
    assert_eq!(counts.refused.load(Ordering::Relaxed), 4000 - CONNECTIONS_MAX as u64);
    assert_eq!(net.host.lock().asked.len(), CONNECTIONS_MAX);
}

#[test]
fn floods_of_datagrams_and_echo_meet_a_bound() {
    let mut net = public();
    let _server = net.host.bind("203.0.113.1:9");
    for port in 1..=2000 {
        net.stack.frame(&frame(GUEST.octets(), 17, [203, 0, 113, 1], &udp(port, 9, b"x")));
        net.stack.frame(&frame(GUEST.octets(), 1, [203, 0, 113, 1], &echo(port.to_be_bytes(), b"x")));
    }
    net.stack.turn(Duration::ZERO).expect("the network runs");
    let open = net.stack.counts().open.load(Ordering::Relaxed);
    assert_eq!(open, (DATAGRAM_FLOWS_MAX + ECHO_FLOWS_MAX) as u64);
}

#[test]
fn a_peer_that_never_reads_costs_a_bounded_amount() {
    let mut net = public();
    let request = frame(GUEST.octets(), 1, [169, 254, 0, 22], &echo([0, 1], &[b'x'; 1400]));
    let mut frames = 0;
    // The peer sends as long as the network takes it. It must stop: what answers the frames is not read.
    let stopped = (0..20_000).any(|_| {
        net.guest.wire().frame(&request);
        net.guest.wire().push();
        frames += 1;
        let before = net.stack.counts().frames.load(Ordering::Relaxed);
        net.stack.turn(Duration::ZERO).expect("the network runs");
        frames > 1000 && net.stack.counts().frames.load(Ordering::Relaxed) == before
    });
    assert!(stopped, "the network takes frames without an end");
    assert!(frames * 1400 < 8 * OUT_BYTES_MAX, "{frames} frames");
    net.until("it goes on when the peer reads", |guest| (guest.wire().others.len() + 1 >= frames).then_some(()));
}

#[test]
fn a_frame_that_is_too_long_ends_the_network() {
    let mut net = public();
    net.guest.wire().raw(&(FRAME_BYTES_MAX as u32 + 1).to_be_bytes());
    net.guest.wire().push();
    let error = net.stack.turn(Duration::from_secs(5)).expect_err("it can't go on");
    assert_eq!(error.to_string(), "a frame is too long");
}

#[test]
fn the_longest_frame_is_taken_in_pieces() {
    let mut net = public();
    let long = vec![0x55; FRAME_BYTES_MAX];
    for chunk in [&(FRAME_BYTES_MAX as u32).to_be_bytes()[..], &long[..100], &long[100..]] {
        net.guest.wire().raw(chunk);
        net.guest.wire().push();
        net.stack.turn(Duration::ZERO).expect("the network runs");
    }
    net.until("the frame is taken", |_| Some(()));
    assert_eq!(net.stack.counts().frames.load(Ordering::Relaxed), 1);
}

#[test]
fn a_peer_that_is_gone_ends_the_network() {
    let mut net = public();
    net.guest = Guest::new(std::os::unix::net::UnixStream::pair().expect("a socket pair").0.into());
    assert!(!net.stack.turn(Duration::from_secs(5)).expect("no error"));
}

proptest! {
    #[test]
    fn any_frames_reach_only_what_the_policy_allows(
        frames in prop::collection::vec((any::<u8>(), any::<[u8; 4]>(), prop::collection::vec(any::<u8>(), 0..80), any::<u8>()), 1..40),
    ) {
        let mut net = Net::new(policy(PolicyDefault::Deny, &["203.0.113.0/25"], &[]));
        for (kind, to, payload, flip) in frames {
            let protocol = [6, 17, 1, kind][usize::from(kind % 4)];
            let to = if kind & 0x10 == 0 { [203, 0, 113, to[3]] } else { to };
            let mut bytes = frame(GUEST.octets(), protocol, to, &payload);
            let at = usize::from(flip) % bytes.len();
            if kind & 0x20 == 0 {
                bytes[at] ^= kind;
            }
            net.stack.frame(&bytes);
            net.stack.turn(Duration::ZERO).expect("the network runs");
        }
        for asked in &net.host.lock().asked {
            let (_, address) = asked.split_once('/').expect("a protocol");
            let octets: Vec<u8> = address.split([':', '.']).take(4).map(|part| part.parse().expect("a number")).collect();
            prop_assert!(octets[..3] == [203, 0, 113] && octets[3] < 128, "{asked}");
        }
    }
}
