//! Messages: what is not offered, not negotiated or not well-formed is refused as the frontend can see, and changes nothing.

use std::os::fd::{AsFd as _, BorrowedFd};

use kiln_vdev::devices::blk::{Backing, Blk, BlkOptions};
use kiln_vdev::memory::SharedFile;
use kiln_vdev::protocol::frontend::*;
use kiln_vdev::protocol::{
    Config, Empty, Flags, FrontendRequest, Inflight, Log, MemoryRegion, MemoryTable, Payload as _, ProtocolFeatures,
    SingleRegion, VringAddress, VringFile, VringState,
};
use kiln_vdev::socket::{Channel, Event};
use kiln_vdev::virtio::feature;

use super::frontend::{ARENA_START, Frontend, Served};

fn served() -> Served {
    Served::new(Blk::open(&BlkOptions::new(Backing::Null { bytes: 1 << 20 })).expect("a disk"))
}

fn ready(served: &Served) -> Frontend {
    let mut frontend = served.frontend();
    frontend.negotiate();
    frontend
}

fn event() -> Event {
    Event::new().expect("an event")
}

/// A message of any number with a payload that fits it, if it is known.
fn payload(request: FrontendRequest) -> Vec<u8> {
    let sizes = [0, 8, 16, 40, 32, 20, 264, 13];
    let fits = |size: &&usize| kiln_vdev::protocol::FrontendCall::decode(request, &vec![0; **size]).is_ok();
    match request {
        FrontendRequest::GetConfig | FrontendRequest::SetConfig => {
            let mut bytes = Vec::new();
            Config { offset: 0, flags: 0, bytes: vec![0; 8] }.encode(&mut bytes);
            bytes
        }
        FrontendRequest::IotlbMsg => [[0; 24].as_slice(), &[1, 2, 0, 0, 0, 0, 0, 0]].concat(),
        _ => vec![0; *sizes.iter().find(fits).unwrap_or_else(|| panic!("no size of {request}"))],
    }
}

#[test]
fn every_message_of_a_feature_that_was_not_negotiated_is_refused() {
    let served = served();
    let gated = FrontendRequest::ALL.iter().filter(|request| {
        use FrontendRequest as R;
        matches!(
            request,
            R::SendRarp
                | R::NetSetMtu
                | R::SetBackendReqFd
                | R::SetVringEndian
                | R::SetConfig
                | R::CloseCryptoSession
                | R::PostcopyListen
                | R::SetInflightFd
                | R::GpuSetSocket
                | R::ResetDevice
                | R::VringKick
                | R::AddMemReg
                | R::RemMemReg
                | R::SetStatus
        )
    });
    for request in gated {
        let mut frontend = served.frontend();
        frontend.negotiate_as(!feature::RING_PACKED, ProtocolFeatures::REPLY_ACK);
        let stray = event();
        let fds = [stray.as_fd()];
        let fds = &fds[..*request.descriptors().start()];
        let flags = Flags::request_with_reply();
        frontend.channel.send_raw(request.number(), flags, &payload(*request), fds).expect("is sent");
        let reply = frontend.channel.receive().unwrap_or_else(|error| panic!("{request}: {error}"));
        assert_eq!(reply.header.request, request.number());
        assert_eq!(reply.payload, 1_u64.to_ne_bytes(), "{request}");
        assert_ne!(frontend.get(&GetFeatures(Empty)), 0);
        frontend.ends(request.number(), Flags::request(), &payload(*request), fds);
    }
}

#[test]
fn a_question_that_was_not_negotiated_has_no_answer_that_could_be_believed() {
    let served = served();
    for request in FrontendRequest::ALL.iter().filter(|request| request.has_reply()) {
        use FrontendRequest as R;
        if matches!(
            request,
            R::GetFeatures | R::GetProtocolFeatures | R::GetVringBase | R::SetLogBase | R::SetDeviceStateFd
        ) || matches!(request, R::CheckDeviceState | R::IotlbMsg | R::PostcopyEnd)
        {
            continue;
        }
        let mut frontend = served.frontend();
        frontend.negotiate_as(!feature::RING_PACKED, ProtocolFeatures::REPLY_ACK);
        frontend.ends(request.number(), Flags::request(), &payload(*request), &[]);
    }
}

#[test]
fn what_was_never_offered_is_never_accepted() {
    let served = served();
    let mut frontend = ready(&served);
    let offered = frontend.get(&GetFeatures(Empty));
    for bit in (0..64).map(|bit| 1_u64 << bit).filter(|bit| offered & bit == 0) {
        frontend.refused(&SetFeatures(frontend.features | bit), &[]);
    }
    let offered = frontend.get(&GetProtocolFeatures(Empty));
    for bit in (0..64).map(|bit| 1_u64 << bit).filter(|bit| offered & bit == 0) {
        frontend.refused(&SetProtocolFeatures(offered & !(1 << 14) | bit), &[]);
    }
    let mut first = served.connect_after(frontend);
    first.ends(16, Flags::request(), &(1_u64 << 63).to_ne_bytes(), &[]);
    let mut first = served.frontend();
    first.ends(2, Flags::request(), &(1_u64 << 63).to_ne_bytes(), &[]);
}

#[test]
fn in_band_notifications_without_what_they_need_end_the_session() {
    let served = served();
    for bits in [1_u64 << 14, 1 << 14 | 1 << 3, 1 << 14 | 1 << 5] {
        let mut frontend = served.frontend();
        frontend.ends(16, Flags::request(), &bits.to_ne_bytes(), &[]);
    }
    let mut frontend = served.frontend();
    frontend.ask(&SetProtocolFeatures(1 << 3));
    frontend.ends(16, Flags::request_with_reply(), &(1_u64 << 14 | 1 << 3).to_ne_bytes(), &[]);
}

#[test]
fn need_reply_is_answered_once_it_is_negotiated_and_not_before() {
    let served = served();
    let mut frontend = served.frontend();
    frontend.channel.send_with(&SetOwner(Empty), Flags::request_with_reply(), &[]).expect("is sent");
    assert_eq!(frontend.get(&GetProtocolFeatures(Empty)) & 1 << 3, 1 << 3, "the next answer is to the next question");
    frontend.channel.send_with(&SetProtocolFeatures(1 << 3), Flags::request_with_reply(), &[]).expect("is sent");
    let reply = frontend.channel.receive().expect("it has just been negotiated");
    assert_eq!((reply.header.request, reply.payload), (16, vec![0; 8]));
    frontend.must(&SetOwner(Empty), &[]);
    frontend.channel.send_with(&GetFeatures(Empty), Flags::request_with_reply(), &[]).expect("is sent");
    assert_ne!(frontend.channel.reply_to::<GetFeatures>().expect("one answer").0, 0);
    assert_ne!(frontend.get(&GetFeatures(Empty)), 0, "and no other");
}

#[test]
fn headers_that_no_peer_may_send_end_the_session() {
    let served = served();
    for bits in [0, 2, 3, 1 | 1 << 31, 1 | 1 << 4, 0b1101] {
        let mut frontend = ready(&served);
        frontend.ends(1, Flags::from_bits(bits), &[], &[]);
    }
    let mut frontend = ready(&served);
    frontend.ends(1, Flags::reply(), &[], &[]);
    let mut frontend = ready(&served);
    let header = kiln_vdev::protocol::Header { request: 24, flags: Flags::request(), payload_bytes: u32::MAX };
    frontend.channel.send_bytes(&header.encode(), &[]).expect("is sent");
    assert!(frontend.channel.receive().expect_err("it ends").is_closed());
}

#[test]
fn unknown_messages_and_wrong_payloads_are_refused_and_the_session_goes_on() {
    let served = served();
    let mut frontend = ready(&served);
    let ask = |frontend: &mut Frontend, request: u32, payload: &[u8]| {
        frontend.channel.send_raw(request, Flags::request_with_reply(), payload, &[]).expect("is sent");
        let reply = frontend.channel.receive().expect("an answer");
        (reply.header.request, reply.payload)
    };
    let no = 1_u64.to_ne_bytes().to_vec();
    for (request, size) in
        [(200, 0), (0, 0), (46, 8), (u32::MAX, 4096), (8, 7), (8, 9), (9, 39), (5, 7), (37, 32), (3, 1)]
    {
        assert_eq!(ask(&mut frontend, request, &vec![0; size]), (request, no.clone()), "{request} {size}");
    }
    let mut other = served.connect_after(frontend);
    other.ends(200, Flags::request(), &[], &[]);
}

#[test]
fn stray_descriptors_are_refused_and_closed() {
    let served = served();
    let mut frontend = ready(&served);
    let (one, other) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let one_of = |count: usize| vec![other.as_fd(); count];
    for (request, size, count) in [(1, 0, 1), (3, 0, 1), (8, 8, 8), (5, 8, 1), (12, 8, 2), (21, 0, 2), (37, 40, 2)] {
        let fds: Vec<BorrowedFd<'_>> = one_of(count);
        frontend.channel.send_raw(request, Flags::request_with_reply(), &vec![0; size], &fds).expect("is sent");
        if request == 1 {
            // Its own reply has no error, so the session ends.
            assert!(frontend.channel.receive().expect_err("it ends").is_closed());
            frontend = ready(&served);
        } else {
            assert_eq!(frontend.channel.receive().expect("an answer").payload, 1_u64.to_ne_bytes(), "{request}");
        }
    }
    drop(other);
    // All copies of the other end are closed when this one reads its end.
    let mut byte = [0];
    let mut one = one;
    one.set_read_timeout(Some(super::frontend::TIMEOUT)).expect("is set");
    assert_eq!(std::io::Read::read(&mut one, &mut byte).expect("comes to its end"), 0);
}

#[test]
fn rings_that_are_not_there_or_can_not_be_are_refused() {
    let served = served();
    let mut frontend = ready(&served);
    frontend.share_memory();
    for index in [4, 255, 9999, u32::MAX] {
        let state = VringState { index, num: 8 };
        frontend.refused(&SetVringNum(state), &[]);
        frontend.refused(&SetVringBase(state), &[]);
        frontend.refused(&SetVringEnable(VringState { index, num: 1 }), &[]);
        frontend.refused(&SetVringAddr(VringAddress { index, ..VringAddress::default() }), &[]);
    }
    for num in [0, 3, 100, 65536, 65535, u32::MAX, 1 << 16 | 8] {
        frontend.refused(&SetVringNum(VringState { index: 0, num }), &[]);
    }
    frontend.must(&SetVringNum(VringState { index: 0, num: 8 }), &[]);
    let inside = frontend.arena.region().description().user_address;
    let at = |descriptor, available, used| VringAddress { descriptor, available, used, ..VringAddress::default() };
    for address in [
        at(0, 0, 0),
        at(inside, inside + 4096, u64::MAX - 4),
        at(inside, inside + (16 << 20) - 8, inside + 8192),
        at(inside + 8, inside + 4096, inside + 8192),
        at(inside, inside + 4097, inside + 8192),
        at(ARENA_START, ARENA_START + 4096, ARENA_START + 8192),
        VringAddress { flags: 2, ..at(inside, inside + 4096, inside + 8192) },
    ] {
        frontend.refused(&SetVringAddr(address), &[]);
    }
    frontend.refused(&SetVringEnable(VringState { index: 0, num: 2 }), &[]);
    frontend.refused(&SetVringBase(VringState { index: 0, num: 0x1_0000 }), &[]);
    let stray = event();
    for (bits, with_fd) in [(0_u64, false), (1 << 8, true), (1 << 9, true), (1 << 63 | 1 << 8, false), (4, true)] {
        for request in [12, 13, 14] {
            let fds = [stray.as_fd()];
            let fds = if with_fd { &fds[..] } else { &[] };
            let flags = Flags::request_with_reply();
            frontend.channel.send_raw(request, flags, &bits.to_ne_bytes(), fds).expect("is sent");
            let reply = frontend.channel.receive().expect("an answer");
            assert_eq!(reply.payload, 1_u64.to_ne_bytes(), "{request} {bits:#x}");
        }
    }
    let file = tempfile::tempfile().expect("a file");
    frontend.refused(&SetVringKick(VringFile::with_descriptor(0)), &[file.as_fd()]);
}

#[test]
fn memory_that_is_none_is_refused_and_what_was_there_stays() {
    let served = served();
    let mut frontend = ready(&served);
    frontend.share_memory();
    let ring = frontend.ring(0, 8);
    let file = SharedFile::new(0x2000).expect("a file");
    let region =
        |guest_address, size, mmap_offset| MemoryRegion { guest_address, size, user_address: 0x7000_0000, mmap_offset };
    let fd = file.as_fd();
    frontend.refused(&SetMemTable(MemoryTable(vec![region(0, 0x3000, 0)])), &[fd]);
    frontend.refused(&SetMemTable(MemoryTable(vec![region(0, 0x1000, 0x2000)])), &[fd]);
    frontend.refused(&SetMemTable(MemoryTable(vec![region(0, 0, 0)])), &[fd]);
    frontend.refused(&SetMemTable(MemoryTable(vec![region(u64::MAX, 0x1000, 0)])), &[fd]);
    frontend.refused(&SetMemTable(MemoryTable(vec![region(0, 0x1000, 0); 2])), &[fd]);
    frontend.refused(&SetMemTable(MemoryTable(vec![region(0, 0x1000, 0); 2])), &[fd, fd]);
    frontend.refused(&SetMemTable(MemoryTable(vec![region(0, 0x1000, 0)])), &[event().as_fd()]);
    // Good memory, but the ring that runs is not in it.
    frontend.refused(&SetMemTable(MemoryTable(vec![region(0, 0x2000, 0)])), &[fd]);
    frontend.refused(&AddMemReg(SingleRegion(region(0, 0x3000, 0))), &[fd]);
    frontend.refused(&AddMemReg(SingleRegion(region(ARENA_START, 0x1000, 0))), &[fd]);
    frontend.refused(&RemMemReg(SingleRegion(region(0, 0x1000, 0))), &[]);
    let here = *frontend.arena.region().description();
    frontend.refused(&RemMemReg(SingleRegion(here)), &[]);

    frontend.must(&AddMemReg(SingleRegion(region(0, 0x1000, 0x1000))), &[fd]);
    frontend.must(&RemMemReg(SingleRegion(region(0, 0x1000, 0))), &[fd]);
    let slots = frontend.get(&GetMaxMemSlots(Empty));
    for slot in 1..slots {
        let region = MemoryRegion { guest_address: slot << 32, user_address: slot << 40, ..region(0, 0x1000, 0) };
        frontend.must(&AddMemReg(SingleRegion(region)), &[fd]);
    }
    frontend.refused(&AddMemReg(SingleRegion(MemoryRegion { guest_address: 1 << 50, ..region(0, 0x1000, 0) })), &[fd]);
    let mut ring = ring;
    assert_eq!(ring.request(0, 0, 0, 512).0, 0, "the ring has gone on");
}

#[test]
fn the_configuration_is_answered_in_the_size_that_was_asked_for_or_not_at_all() {
    let served = served();
    let mut frontend = ready(&served);
    let mut read = |offset, bytes| {
        let asked = Config { offset, flags: 0, bytes: vec![0; bytes] };
        frontend.channel.send(&GetConfig(asked), &[]).expect("is sent");
        let reply = frontend.channel.receive().expect("an answer");
        (!reply.payload.is_empty()).then(|| Config::decode(&reply.payload).expect("a configuration").bytes)
    };
    let whole = read(0, 60).expect("is there");
    assert_eq!(whole[..8], 2048_u64.to_le_bytes());
    assert_eq!(read(20, 4).expect("is there"), 512_u32.to_le_bytes());
    assert_eq!(read(34, 2).expect("is there"), 4_u16.to_le_bytes());
    assert_eq!(read(0, 256).expect("is there")[60..], [0; 196]);
    for (offset, bytes) in [(0, 257), (256, 1), (250, 8), (u32::MAX, 8), (0, 0)] {
        assert_eq!(read(offset, bytes), None, "{offset} {bytes}");
    }
    let write = |offset, flags, bytes: &[u8]| SetConfig(Config { offset, flags, bytes: bytes.to_vec() });
    frontend.refused(&write(0, 0, &[1; 8]), &[]);
    frontend.refused(&write(32, 0, &[2]), &[]);
    frontend.refused(&write(32, 2, &[0]), &[]);
    frontend.refused(&write(0, 1, &[1; 8]), &[]);
    frontend.must(&write(32, 0, &[0]), &[]);
    frontend.must(&write(0, 1, &whole), &[]);
}

#[test]
fn a_dirty_log_and_an_inflight_region_must_be_what_they_say() {
    let served = served();
    let mut frontend = ready(&served);
    let file = SharedFile::new(0x2000).expect("a file");
    let ask = |frontend: &mut Frontend, log: Log| {
        let flags = Flags::request_with_reply();
        frontend.channel.send_with(&SetLogBase(log), flags, &[file.as_fd()]).expect("is sent");
        frontend.channel.reply_to::<SetLogBase>().expect("an answer").0
    };
    assert_eq!(ask(&mut frontend, Log { size: 0x1000, offset: 0 }), 0);
    assert_eq!(ask(&mut frontend, Log { size: 0x3000, offset: 0 }), 1);
    assert_eq!(ask(&mut frontend, Log { size: 0, offset: 0 }), 1);

    let inflight = |num_queues, queue_size| Inflight { num_queues, queue_size, mmap_size: 0, mmap_offset: 0 };
    let (region, fds) = frontend.channel.call(&GetInflightFd(inflight(2, 64)), &[]).expect("is answered");
    assert_eq!((region.num_queues, region.queue_size, fds.len()), (2, 64, 1));
    assert!(region.mmap_size > 0);
    frontend.must(&SetInflightFd(region), &[fds[0].as_fd()]);
    frontend.refused(&SetInflightFd(Inflight { mmap_size: u64::MAX, ..region }), &[fds[0].as_fd()]);
    frontend.refused(&SetInflightFd(Inflight { num_queues: 99, ..region }), &[fds[0].as_fd()]);
    let mut other = served.connect_after(frontend);
    other.negotiate();
    let mut payload = Vec::new();
    inflight(0, 64).encode(&mut payload);
    other.ends(31, Flags::request(), &payload, &[]);
}

#[test]
fn the_devices_state_goes_through_a_pipe_and_comes_back() {
    let served = served();
    let mut frontend = ready(&served);
    let transfer = |direction| SetDeviceStateFd(kiln_vdev::protocol::DeviceStateTransfer { direction, phase: 0 });
    let write = SetConfig(Config { offset: 32, flags: 0, bytes: vec![0] });
    frontend.must(&write, &[]);
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let answer = frontend.channel.call(&transfer(0), &[writer.as_fd()]).expect("is answered").0;
    assert_eq!(answer, 1 << 8, "no descriptor of ours");
    drop(writer);
    let mut state = Vec::new();
    std::io::Read::read_to_end(&mut reader, &mut state).expect("comes to its end");
    assert_eq!(frontend.get(&CheckDeviceState(Empty)), 0);

    for (bytes, expected) in [(&state[..], 0), (&[][..], 0), (&[9, 9][..], 1), (&[0; 5000][..], 1)] {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        frontend.channel.call(&transfer(1), &[reader.as_fd()]).expect("is answered");
        std::io::Write::write_all(&mut writer, bytes).expect("has room");
        drop(writer);
        assert_eq!(frontend.get(&CheckDeviceState(Empty)), expected, "{} bytes", bytes.len());
    }
    let (mute, _writer) = std::io::pipe().expect("a pipe");
    frontend.channel.call(&transfer(1), &[mute.as_fd()]).expect("is answered");
    assert_eq!(frontend.get(&CheckDeviceState(Empty)), 1, "a state that does not end is refused");
}

#[test]
fn a_channel_of_the_backend_tells_of_a_new_configuration() {
    let served = served();
    let mut frontend = ready(&served);
    let (ours, theirs) = Channel::pair(super::frontend::TIMEOUT).expect("a pair");
    frontend.refused(&SetBackendReqFd(Empty), &[event().as_fd()]);
    frontend.must(&SetBackendReqFd(Empty), &[theirs.as_fd()]);
    drop(theirs);
    served.config_changed.signal().expect("is told");
    let mut ours = ours;
    let message = ours.receive().expect("is told");
    assert_eq!((message.header.request, message.header.flags), (2, Flags::request()));
}
