//! What a session sends to a backend that behaves.

use std::os::fd::AsFd as _;

use super::{Standin, TIMEOUT, session};
use crate::frontend::{Frontend, FrontendError, Options, SharedRegion, Wish};
use crate::memory::Region;
use crate::protocol::{
    Config, DeviceStateTransfer, Inflight, Log, MemoryRegion, ProtocolFeatures, VringAddress, VringState,
    frontend as message,
};
use crate::socket::{Event, Listener};
use crate::virtio::feature;

const FEATURES: u64 = feature::VERSION_1 | feature::PROTOCOL_FEATURES | feature::LOG_ALL | 0b11;

fn region(at: u64) -> SharedRegion {
    let (region, file) = Region::create(at, 0x1000).expect("memory");
    SharedRegion { region: *region.description(), file }
}

fn start_ring(frontend: &mut Frontend) -> Result<(), FrontendError> {
    let [kick, call, err] = std::array::from_fn(|_| Event::new().expect("an eventfd"));
    frontend.set_vring_num(0, 64)?;
    frontend.set_vring_addr(&VringAddress::default())?;
    frontend.set_vring_base(0, 7)?;
    frontend.set_vring_call(0, Some(call.as_fd()))?;
    frontend.set_vring_err(0, Some(err.as_fd()))?;
    frontend.set_vring_kick(0, Some(kick.as_fd()))?;
    frontend.set_vring_enable(0, true)
}

fn take_ring(backend: &mut Standin) {
    assert_eq!(backend.done::<message::SetVringNum>().0.0, VringState { index: 0, num: 64 });
    backend.done::<message::SetVringAddr>();
    assert_eq!(backend.done::<message::SetVringBase>().0.0.num, 7);
    assert_eq!(backend.done::<message::SetVringCall>().1.fds.len(), 1);
    assert_eq!(backend.done::<message::SetVringErr>().1.fds.len(), 1);
    assert_eq!(backend.done::<message::SetVringKick>().1.fds.len(), 1);
    assert_eq!(backend.done::<message::SetVringEnable>().0.0.num, 1);
}

#[test]
fn a_handshake_takes_what_both_want_and_every_message_is_acknowledged() {
    let offered = ProtocolFeatures::ALL;
    let backend = move |mut backend: Standin| {
        assert_eq!(backend.negotiate(FEATURES, offered), Wish::USUAL_PROTOCOL_FEATURES);
        backend.answered::<message::GetQueueNum>(&4_u64);
        backend.answered::<message::GetMaxMemSlots>(&9_u64);
        let asked = backend.answered::<message::GetConfig>(&Config { offset: 0, flags: 0, bytes: vec![7; 8] });
        assert_eq!(asked.0.bytes.len(), 8);
        backend.done::<message::SetBackendReqFd>();
        let (features, _) = backend.done::<message::SetFeatures>();
        assert_eq!(features.0, FEATURES & !feature::LOG_ALL);
        backend.done::<message::AddMemReg>();
        backend.done::<message::AddMemReg>();
        take_ring(&mut backend);
        assert_eq!(backend.answered::<message::GetVringBase>(&VringState { index: 0, num: 9 }).0.index, 0);
        backend.gone();
    };
    session(&Options::default(), backend, |frontend| {
        let wish = Wish { config_bytes: Some(8), ..Wish::default() };
        let negotiated = frontend.handshake(&wish).expect("all is well");
        assert_eq!((negotiated.usable_queues(), negotiated.memory_slots), (4, Some(9)));
        assert_eq!(negotiated.config.as_deref(), Some([7; 8].as_slice()));
        frontend.share_memory(vec![region(0), region(0x1000)]).expect("is taken");
        start_ring(frontend).expect("starts");
        assert_eq!(frontend.get_vring_base(0).expect("stops"), 9);
    });
}

#[test]
fn without_reply_ack_and_slots_a_table_is_sent_and_nothing_awaited() {
    let backend = |mut backend: Standin| {
        backend.handshake(FEATURES, ProtocolFeatures::MQ);
        let (table, raw) = backend.done::<message::SetMemTable>();
        assert_eq!((table.0.0.len(), raw.fds.len()), (2, 2));
        take_ring(&mut backend);
        backend.gone();
    };
    session(&Options::default(), backend, |frontend| {
        frontend.handshake(&Wish::default()).expect("all is well");
        frontend.share_memory(vec![region(0), region(0x1000)]).expect("is sent");
        start_ring(frontend).expect("is sent");
    });
}

#[test]
fn a_backend_of_bare_features_is_not_asked_for_more() {
    let backend = |mut backend: Standin| {
        backend.done::<message::SetOwner>();
        backend.answered::<message::GetFeatures>(&feature::VERSION_1);
        assert_eq!(backend.done::<message::SetFeatures>().0.0, feature::VERSION_1);
        backend.gone();
    };
    session(&Options::default(), backend, |frontend| {
        let negotiated = frontend.handshake(&Wish::default()).expect("all is well");
        assert_eq!(negotiated.protocol_features, ProtocolFeatures::empty());
        assert!(matches!(frontend.get_queue_num(), Err(FrontendError::NotNegotiated { feature: "MQ", .. })));
    });
}

#[test]
fn a_batch_is_sent_whole_before_its_first_answer_and_names_what_was_refused() {
    let backend = |mut backend: Standin| {
        backend.handshake(FEATURES, ProtocolFeatures::REPLY_ACK);
        backend.expect::<message::SetVringNum>();
        backend.expect::<message::SetVringBase>();
        backend.expect::<message::SetVringNum>();
        for (request, code) in [(8, 0), (10, 22), (8, 0)] {
            backend.channel.acknowledge(request, code).expect("is taken");
        }
        backend.answered::<message::GetFeatures>(&FEATURES);
    };
    session(&Options::default(), backend, |frontend| {
        frontend.handshake(&Wish::default()).expect("all is well");
        let refused = frontend.batched(|this| {
            this.set_vring_num(3, 64)?;
            this.set_vring_base(3, 1)?;
            this.set_vring_num(4, 64)
        });
        let error = refused.expect_err("the second was refused");
        assert_eq!(error.to_string(), "`one end`: SET_VRING_BASE failed for ring 3");
        assert_eq!(error.refused(), Some(22));
        frontend.get_features().expect("answers are still told apart");
    });
}

#[test]
fn the_log_is_taken_whether_its_answer_is_a_number_or_nothing() {
    let backend = |mut backend: Standin| {
        backend.handshake(FEATURES, ProtocolFeatures::LOG_SHMFD | ProtocolFeatures::REPLY_ACK);
        for reply in [[].as_slice(), &[0; 8], &[1; 8]] {
            let (_, raw) = backend.expect::<message::SetLogBase>();
            assert_eq!(raw.fds.len(), 1);
            backend.channel.answer(6, reply, &[]).expect("is taken");
        }
    };
    session(&Options::default(), backend, |frontend| {
        frontend.handshake(&Wish::default()).expect("all is well");
        let (_, file) = Region::create(0, 0x1000).expect("memory");
        let log = Log { size: 0x1000, offset: 0 };
        frontend.set_log_base(&log, file.as_fd()).expect("an empty answer");
        frontend.set_log_base(&log, file.as_fd()).expect("a number");
        assert!(matches!(frontend.set_log_base(&log, file.as_fd()), Err(FrontendError::Answer { .. })));
    });
}

#[test]
fn device_state_goes_through_a_pipe_in_both_directions() {
    let state = b"what a device knows".repeat(10_000);
    let expected = state.clone();
    let backend = move |mut backend: Standin| {
        backend.handshake(FEATURES, ProtocolFeatures::DEVICE_STATE);
        let (save, mut raw) = backend.expect::<message::SetDeviceStateFd>();
        assert_eq!(save.0, DeviceStateTransfer { direction: 0, phase: 0 });
        backend.reply::<message::SetDeviceStateFd>(&0x100_u64);
        let mut pipe = std::fs::File::from(raw.fds.pop().expect("a pipe"));
        std::io::Write::write_all(&mut pipe, &state).expect("is taken");
        drop((pipe, raw));
        backend.answered::<message::CheckDeviceState>(&0_u64);
        let (load, mut raw) = backend.expect::<message::SetDeviceStateFd>();
        assert_eq!(load.0.direction, 1);
        backend.reply::<message::SetDeviceStateFd>(&0x100_u64);
        let mut read = Vec::new();
        let mut pipe = std::fs::File::from(raw.fds.pop().expect("a pipe"));
        std::io::Read::read_to_end(&mut pipe, &mut read).expect("ends");
        assert_eq!(read, state);
        backend.answered::<message::CheckDeviceState>(&3_u64);
    };
    session(&Options::default(), backend, |frontend| {
        frontend.handshake(&Wish::default()).expect("all is well");
        assert_eq!(frontend.save_device_state(TIMEOUT).expect("is told"), expected);
        assert!(matches!(frontend.load_device_state(&expected, TIMEOUT), Err(FrontendError::Answer { .. })));
    });
}

#[test]
fn a_lost_backend_is_found_again_and_told_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("backend.sock");
    let listener = Listener::bind(&path).expect("listens");
    let protocol = ProtocolFeatures::REPLY_ACK | ProtocolFeatures::INFLIGHT_SHMFD;
    let first = move |listener: &Listener| {
        let channel = listener.accept(Some(TIMEOUT), TIMEOUT).expect("polls").expect("comes");
        Standin { channel, acknowledge: false }
    };
    let backend = std::thread::spawn(move || {
        let mut backend = first(&listener);
        backend.handshake(FEATURES, protocol);
        let (asked, _) = backend.expect::<message::GetInflightFd>();
        let description = Inflight { mmap_size: 0x1000, ..asked.0 };
        let (_, file) = Region::create(0, 0x1000).expect("memory");
        let mut bytes = Vec::new();
        crate::protocol::Payload::encode(&description, &mut bytes);
        backend.channel.answer(31, &bytes, &[file.as_fd()]).expect("is taken");
        backend.done::<message::SetInflightFd>();
        let (table, _) = backend.done::<message::SetMemTable>();
        drop(backend);
        let mut backend = first(&listener);
        // More is offered than before, and not taken: the rings in memory are made for what was.
        backend.handshake(FEATURES | feature::RING_PACKED, protocol | ProtocolFeatures::STATUS);
        assert_eq!(backend.done::<message::SetInflightFd>().0.0, description);
        assert_eq!(backend.done::<message::SetMemTable>().0, table);
        drop(backend);
        let mut backend = first(&listener);
        backend.negotiate(FEATURES & !1, protocol);
        backend.done::<message::SetFeatures>();
    });
    let mut frontend = Frontend::connect(&path, &Options::default()).expect("connects");
    frontend.handshake(&Wish::default()).expect("all is well");
    frontend.get_inflight(2, 64).expect("a region");
    frontend.set_inflight().expect("is taken");
    frontend.share_memory(vec![region(0)]).expect("is taken");
    frontend.reconnect().expect("comes back");
    let changed = frontend.reconnect().expect_err("is another one now");
    assert!(matches!(changed, FrontendError::Changed { .. }), "{changed:?}");
    backend.join().expect("the stand-in saw what it expected");
}

#[test]
fn a_region_goes_by_name_where_slots_are_negotiated() {
    let shared = region(0);
    let gone: MemoryRegion = shared.region;
    let backend = move |mut backend: Standin| {
        backend.handshake(FEATURES, ProtocolFeatures::CONFIGURE_MEM_SLOTS | ProtocolFeatures::REPLY_ACK);
        backend.done::<message::AddMemReg>();
        let (removed, raw) = backend.done::<message::RemMemReg>();
        assert_eq!((removed.0.0, raw.fds.len()), (gone, 0));
        backend.done::<message::AddMemReg>();
    };
    session(&Options::default(), backend, |frontend| {
        frontend.handshake(&Wish::default()).expect("all is well");
        frontend.share_memory(vec![shared]).expect("is taken");
        frontend.share_memory(vec![region(0x8000)]).expect("takes its place");
        let many = (0..9).map(|at| region(0x1000 * at)).collect();
        assert!(frontend.memory.len() == 1 && matches!(too_many(frontend, many), FrontendError::Bound { max: 8, .. }));
    });
}

fn too_many(frontend: &mut Frontend, regions: Vec<SharedRegion>) -> FrontendError {
    frontend.said.memory = false;
    frontend.share_memory(regions).expect_err("eight slots")
}
