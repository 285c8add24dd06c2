//! Frontends that break the protocol: the server goes on, and holds nothing of theirs.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use kiln_vdev::devices::blk::{Backing, Blk, BlkOptions};
use kiln_vdev::protocol::{Flags, FrontendRequest, ProtocolFeatures};
use kiln_vdev::virtio::feature;
use proptest::prelude::*;

use super::frontend::{ARENA_START, Frontend, Served, eventually, open_descriptors};

/// Something that a frontend does.
#[derive(Debug, Clone)]
enum Act {
    /// A message of this number with bytes that may make sense.
    Say { request: u32, flags: u32, payload: Vec<u8>, fds: Vec<u8> },
    /// Bytes.
    Bytes(Vec<u8>),
    /// Random bytes in memory that rings may use.
    Scribble { at: usize, bytes: Vec<u8> },
    /// A kick.
    Kick,
    /// A file of memory becomes shorter.
    Cut(u16),
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..4_u64,
        2 => Just(8_u64),
        1 => Just(256),
        2 => (0..16_u64).prop_map(|page| ARENA_START + page * 4096),
        1 => any::<u64>(),
        1 => Just(u64::MAX),
        2 => (0..64_u32).prop_map(|bit| 1 << bit),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let payload = prop_oneof![
        4 => prop::collection::vec(number(), 0..6).prop_map(|numbers| {
            numbers.iter().flat_map(|number| number.to_ne_bytes()).collect::<Vec<u8>>()
        }),
        2 => (0..5_u32, prop_oneof![Just(0_u32), Just(1), Just(8), any::<u32>()])
            .prop_map(|(index, num)| [index.to_ne_bytes(), num.to_ne_bytes()].concat()),
        1 => prop::collection::vec(any::<u8>(), 0..100),
    ];
    let request = prop_oneof![10 => 1..46_u32, 1 => any::<u32>()];
    let flags = prop_oneof![10 => Just(9_u32), 3 => Just(1), 1 => any::<u32>()];
    let say = (request, flags, payload, prop::collection::vec(0..5_u8, 0..3));
    prop_oneof![
        20 => say.prop_map(|(request, flags, payload, fds)| Act::Say { request, flags, payload, fds }),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Act::Bytes),
        3 => (0..0x8000_usize, prop::collection::vec(any::<u8>(), 1..64))
            .prop_map(|(at, bytes)| Act::Scribble { at, bytes }),
        4 => Just(Act::Kick),
        1 => any::<u16>().prop_map(Act::Cut),
    ]
}

/// Does all of it on one connection, begun in good order or not.
fn perform(served: &Served, in_order: bool, acts: &[Act]) {
    let mut frontend = served.frontend();
    let mut ring = None;
    if in_order {
        let without = ProtocolFeatures::INBAND_NOTIFICATIONS | ProtocolFeatures::GPA_ADDRESSES;
        frontend.negotiate_as(!feature::LOG_ALL, ProtocolFeatures::ALL.difference(without));
        frontend.share_memory();
        ring = Some(frontend.ring(0, 8));
    }
    // What is not answered, as far as it is not wrong, is not waited for; before that all is in order.
    frontend.channel.set_timeout(Duration::from_millis(200));
    let event = kiln_vdev::socket::Event::new().expect("an event");
    let file = tempfile::tempfile().expect("a file");
    file.set_len(0x8000).expect("grows");
    let (pipe, _other) = std::io::pipe().expect("a pipe");
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let arena = frontend.file.try_clone().expect("clones");
    let fds: [BorrowedFd<'_>; 5] = [event.as_fd(), file.as_fd(), pipe.as_fd(), socket.as_fd(), arena.as_fd()];
    for act in acts {
        let goes_on = match act {
            Act::Say { request, flags, payload, fds: chosen } => {
                let sent: Vec<_> = chosen.iter().map(|which| fds[usize::from(*which)]).collect();
                say(&mut frontend, *request, *flags, payload, &sent)
            }
            Act::Bytes(bytes) => frontend.channel.send_bytes(bytes, &[]).is_ok(),
            Act::Scribble { at, bytes } => {
                frontend.arena.region().slice(*at, bytes.len()).expect("fits").copy_from(bytes);
                true
            }
            Act::Kick => {
                ring.as_ref().map_or(&event, |ring| &ring.kick).signal().expect("kicks");
                true
            }
            Act::Cut(bytes) => file.set_len(u64::from(*bytes)).is_ok(),
        };
        if !goes_on {
            return;
        }
    }
}

/// Sends something, and takes the replies. Whether the session goes on.
fn say(frontend: &mut Frontend, request: u32, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
    if frontend.channel.send_raw(request, Flags::from_bits(flags), payload, fds).is_err() {
        return false;
    }
    let known = FrontendRequest::from_number(request);
    let is_answered = flags == 9 || known.is_some_and(FrontendRequest::has_reply);
    !is_answered || !matches!(frontend.channel.receive_unchecked(), Err(error) if error.is_closed())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_frontend_does_the_next_one_is_served(
        in_order in any::<bool>(),
        acts in prop::collection::vec(act(), 1..40),
    ) {
        let served = Served::new(Blk::open(&BlkOptions::new(Backing::Null { bytes: 1 << 20 })).expect("a disk"));
        let before = open_descriptors();
        perform(&served, in_order, &acts);
        let mut frontend = served.frontend();
        frontend.negotiate();
        frontend.share_memory();
        let mut ring = frontend.ring(0, 8);
        prop_assert_eq!(ring.request(0, 0, 0, 512), (0, 513));
        drop((frontend, ring));
        eventually("all of theirs is closed", || open_descriptors() <= before);
    }
}
