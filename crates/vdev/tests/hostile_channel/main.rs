//! A channel against a peer that sends any bytes, in any pieces, with any descriptors: it gives messages or errors, comes
//! to the end of what was sent, and keeps no descriptor. The one test of its binary, because it counts the descriptors
//! of the whole process.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use kiln_vdev::protocol::{Flags, Header, PAYLOAD_BYTES_MAX};
use kiln_vdev::socket::{Channel, Event, SocketError};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// A mute channel would be a failure, so this is long.
const TIMEOUT: Duration = Duration::from_secs(20);
/// More than a channel takes with one message.
const DESCRIPTORS_SENT_MAX: usize = 100;

/// What a peer sends.
#[derive(Debug, Clone)]
struct Attack {
    bytes: Vec<u8>,
    /// The places at which the bytes are divided, and how many descriptors go with the piece after each.
    cuts: Vec<(Index, usize)>,
    /// Whether the victim checks headers.
    is_checked: bool,
}

#[test]
fn any_stream_of_bytes_and_descriptors_comes_to_an_end_and_leaves_none_open() {
    let event = Event::new().expect("an eventfd");
    let before = open_descriptors();
    let mut runner = TestRunner::new(Config { cases: 512, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&attack(), |attack| {
        suffer(&attack, event.as_fd())?;
        prop_assert_eq!(open_descriptors(), before, "a descriptor was kept");
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

fn suffer(attack: &Attack, fd: BorrowedFd<'_>) -> Result<(), TestCaseError> {
    let (peer, victim) = UnixStream::pair().expect("a socket pair");
    let mut victim = Channel::new(victim, "the victim", TIMEOUT);
    std::thread::scope(|scope| {
        scope.spawn(move || send(&peer, attack, fd));
        // Each takes a byte at least, or is the end.
        for _ in 0..attack.bytes.len() + 2 {
            let received = if attack.is_checked { victim.receive() } else { victim.receive_unchecked() };
            match received {
                Ok(message) => {
                    prop_assert_eq!(message.payload.len(), message.header.payload_bytes as usize);
                    prop_assert!(message.fds.len() <= 64, "{} descriptors", message.fds.len());
                }
                Err(SocketError::Header { .. }) => {}
                Err(error) if error.is_closed() => return Ok(()),
                Err(error) => prop_assert!(false, "{}", error),
            }
        }
        Err(TestCaseError::fail("it did not end"))
    })
}

/// Sends the pieces, each with its descriptors, then disconnects. The victim may disconnect first.
fn send(peer: &UnixStream, attack: &Attack, fd: BorrowedFd<'_>) {
    let mut cuts: Vec<_> = attack.cuts.iter().map(|(at, fds)| (at.index(attack.bytes.len() + 1), *fds)).collect();
    cuts.sort_unstable();
    let ends = cuts.iter().skip(1).map(|(at, _)| *at).chain([attack.bytes.len()]);
    let start = cuts.first().map_or(attack.bytes.len(), |(at, _)| *at);
    let pieces = [(0, start, 0)].into_iter().chain(cuts.iter().zip(ends).map(|((at, fds), end)| (*at, end, *fds)));
    for (from, to, fds) in pieces.filter(|(from, to, _)| from < to) {
        if send_piece(peer, &attack.bytes[from..to], &vec![fd; fds]).is_err() {
            return;
        }
        std::thread::yield_now();
    }
}

fn send_piece(peer: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_SENT_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)), "there is room for all");
    }
    sendmsg(peer, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
}

/// A few pieces that look like messages, with some wrong ones among them, divided anywhere.
fn attack() -> impl Strategy<Value = Attack> {
    let flags = prop_oneof![3 => Just(Flags::request().bits()), 2 => Just(Flags::reply().bits()), 1 => any::<u32>()];
    let lie = prop_oneof![
        6 => Just(None),
        1 => (0..=2 * PAYLOAD_BYTES_MAX).prop_map(Some),
        1 => any::<u32>().prop_map(Some),
    ];
    let payload = prop_oneof![4 => vec(any::<u8>(), 0..64), 1 => vec(any::<u8>(), 0..5000)];
    let message = (0..50_u32, flags, payload, lie).prop_map(|(request, flags, payload, lie)| {
        let payload_bytes = lie.unwrap_or_else(|| u32::try_from(payload.len()).expect("is small"));
        let header = Header { request, flags: Flags::from_bits(flags), payload_bytes };
        [&header.encode()[..], &payload].concat()
    });
    let piece = prop_oneof![5 => message, 1 => vec(any::<u8>(), 0..40)];
    let fds = prop_oneof![4 => 0..=8_usize, 1 => 9..=DESCRIPTORS_SENT_MAX];
    let cuts = vec((any::<Index>(), fds), 0..8);
    (vec(piece, 0..6), cuts, any::<bool>()).prop_map(|(pieces, cuts, is_checked)| Attack {
        bytes: pieces.concat(),
        cuts,
        is_checked,
    })
}

/// How many descriptors this process has; the one that lists them is always among them.
fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("Linux").count()
}
