//! Backends that break the protocol, stop in the middle, or send nothing: each is an error that names the socket and
//! the message.

use std::os::fd::AsFd as _;
use std::time::Instant;

use super::{Standin, TIMEOUT, quick, session};
use crate::frontend::{FrontendError, Options, Wish};
use crate::memory::{Region, SharedFile};
use crate::protocol::{Config, Inflight, Payload, ProtocolFeatures, VringState, frontend as message};
use crate::socket::SocketError;
use crate::virtio::feature;

const FEATURES: u64 = feature::VERSION_1 | feature::PROTOCOL_FEATURES;

/// The answer to `GET_FEATURES` from a backend that this closure is.
fn features_from(backend: impl FnOnce(&mut Standin) + Send + 'static) -> FrontendError {
    let backend = |mut standin: Standin| {
        standin.expect::<message::GetFeatures>();
        backend(&mut standin);
    };
    session(&quick(), backend, |frontend| frontend.get_features().expect_err("is no answer"))
}

#[test]
fn a_mute_backend_is_given_up_in_time() {
    let started = Instant::now();
    let error = features_from(Standin::gone);
    assert!(error.is_timeout() && started.elapsed() < TIMEOUT);
    assert!(error.to_string().contains("GET_FEATURES"), "{error}");
}

#[test]
fn a_mute_backend_with_a_channel_of_its_own_is_given_up_in_time() {
    let backend = |mut backend: Standin| {
        let _own = backend.handshake(FEATURES, ProtocolFeatures::BACKEND_REQ);
        backend.expect::<message::GetFeatures>();
        backend.gone();
    };
    session(&quick(), backend, |frontend| {
        frontend.handshake(&Wish::default()).expect("all is well");
        assert!(frontend.get_features().expect_err("is mute").is_timeout());
    });
}

#[test]
fn an_answer_to_another_message_is_refused() {
    let error = features_from(|backend| backend.channel.answer(15, &[0; 8], &[]).expect("is taken"));
    assert!(matches!(error, FrontendError::Socket(SocketError::WrongReply { .. })), "{error}");
}

#[test]
fn a_request_in_place_of_an_answer_is_refused() {
    let error = features_from(|backend| {
        let flags = crate::protocol::Flags::request();
        backend.channel.send_raw(1, flags, &[0; 8], &[]).expect("is taken");
    });
    assert!(matches!(error, FrontendError::Socket(SocketError::WrongReply { .. })), "{error}");
}

#[test]
fn an_answer_of_another_size_is_refused() {
    for size in [0, 4, 7, 9, 16, 4096] {
        let error = features_from(move |backend| backend.channel.answer(1, &vec![0; size], &[]).expect("is taken"));
        assert!(matches!(error, FrontendError::Socket(SocketError::Payload { .. })), "{size}: {error}");
    }
}

#[test]
fn an_answer_that_is_cut_is_refused() {
    let header = |backend: &mut Standin| backend.reply_header(1, 5, 8);
    assert!(matches!(features_from(header), FrontendError::Socket(SocketError::Cut { .. })));
    let piece = |backend: &mut Standin| backend.channel.send_bytes(&[1, 0, 0], &[]).expect("is taken");
    assert!(matches!(features_from(piece), FrontendError::Socket(SocketError::Cut { .. })));
}

#[test]
fn an_answer_larger_than_any_is_refused_before_it_is_read() {
    let error = features_from(|backend| backend.reply_header(1, 5, u32::MAX));
    assert!(matches!(error, FrontendError::Socket(SocketError::Header { .. })), "{error}");
}

#[test]
fn an_answer_of_another_version_or_with_reserved_flags_is_refused() {
    for bits in [4, 6, 7, 5 | 1 << 31, 13] {
        let error = features_from(move |backend| {
            backend.reply_header(1, bits, 8);
            backend.channel.send_bytes(&[0; 8], &[]).expect("is taken");
        });
        assert!(matches!(error, FrontendError::Socket(SocketError::Header { .. })), "{bits}: {error}");
    }
}

#[test]
fn unexpected_descriptors_are_refused_and_closed() {
    let error = features_from(|backend| {
        let (read, _write) = std::io::pipe().expect("a pipe");
        backend.channel.answer(1, &[0; 8], &[read.as_fd(), read.as_fd()]).expect("is taken");
    });
    assert!(error.to_string().contains("it has 2 descriptors"), "{error}");
}

#[test]
fn a_backend_that_hangs_up_is_named() {
    let error = features_from(|_| {});
    assert!(error.is_closed(), "{error}");
    assert!(error.to_string().contains("`one end`"), "{error}");
}

#[test]
fn a_configuration_that_was_not_asked_for_is_refused() {
    let backend = |mut backend: Standin| {
        backend.handshake(FEATURES, ProtocolFeatures::CONFIG);
        for (offset, bytes) in [(4, 8), (0, 9)] {
            backend.answered::<message::GetConfig>(&Config { offset, flags: 0, bytes: vec![0; bytes] });
        }
        backend.answered::<message::GetConfig>(&crate::protocol::Empty);
    };
    session(&Options::default(), backend, |frontend| {
        frontend.handshake(&Wish::default()).expect("all is well");
        for _ in 0..2 {
            assert!(matches!(frontend.get_config(0, 8), Err(FrontendError::Answer { .. })));
        }
        assert!(frontend.get_config(0, 8).is_err(), "no payload means no configuration");
        assert!(matches!(frontend.get_config(200, 57), Err(FrontendError::Bound { .. })));
    });
}

#[test]
fn the_base_of_another_ring_is_refused() {
    let backend = |mut backend: Standin| {
        backend.handshake(FEATURES, ProtocolFeatures::empty());
        backend.answered::<message::GetVringBase>(&VringState { index: 1, num: 0 });
    };
    session(&Options::default(), backend, |frontend| {
        frontend.handshake(&Wish::default()).expect("all is well");
        assert!(matches!(frontend.get_vring_base(0), Err(FrontendError::Answer { .. })));
    });
}

#[test]
fn an_inflight_region_that_is_none_is_refused() {
    const ASKED: Inflight = Inflight { mmap_size: 0x1000, mmap_offset: 0, num_queues: 1, queue_size: 64 };
    let lies = [
        (Inflight { mmap_size: 0, ..ASKED }, 1),
        (Inflight { mmap_size: 0x1001, ..ASKED }, 1),
        (Inflight { mmap_offset: u64::MAX, ..ASKED }, 1),
        (Inflight { num_queues: 2, ..ASKED }, 1),
        (Inflight { queue_size: 128, ..ASKED }, 1),
        (ASKED, 0),
        (ASKED, 2),
    ];
    let backend = move |mut backend: Standin| {
        backend.handshake(FEATURES, ProtocolFeatures::INFLIGHT_SHMFD);
        let file: SharedFile = Region::create(0, 0x1000).expect("memory").1;
        for (lie, fds) in lies {
            backend.expect::<message::GetInflightFd>();
            let mut bytes = Vec::new();
            lie.encode(&mut bytes);
            backend.channel.answer(31, &bytes, &vec![file.as_fd(); fds]).expect("is taken");
        }
    };
    session(&Options::default(), backend, |frontend| {
        frontend.handshake(&Wish::default()).expect("all is well");
        for (lie, fds) in lies {
            assert!(matches!(frontend.get_inflight(1, 64), Err(FrontendError::Answer { .. })), "{lie:?} {fds}");
        }
        assert!(matches!(frontend.set_inflight(), Err(FrontendError::Order { .. })));
    });
}

#[test]
fn a_state_that_does_not_end_is_given_up_in_time() {
    let backend = |mut backend: Standin| {
        backend.handshake(FEATURES, ProtocolFeatures::DEVICE_STATE);
        let (_, raw) = backend.expect::<message::SetDeviceStateFd>();
        backend.reply::<message::SetDeviceStateFd>(&0x100_u64);
        backend.gone();
        drop(raw);
    };
    session(&Options::default(), backend, |frontend| {
        frontend.handshake(&Wish::default()).expect("all is well");
        let error = frontend.save_device_state(std::time::Duration::from_millis(50)).expect_err("does not end");
        assert!(matches!(error, FrontendError::DeviceState { moved: "saved", .. }), "{error}");
    });
}
