//! Requests of a backend, and their replies.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use super::{Standin, TIMEOUT, session};
use crate::frontend::backend_channel::Notice;
use crate::frontend::{Frontend, FrontendError, Options, Wish};
use crate::protocol::{
    Empty, Flags, Iotlb, IotlbKind, IotlbPermission, Message, Payload, ProtocolFeatures, SharedMemoryMap, SharedObject,
    VringArea, VringState, backend, frontend as message,
};
use crate::socket::Channel;
use crate::virtio::feature;

const FEATURES: u64 = feature::VERSION_1 | feature::PROTOCOL_FEATURES;
const PROTOCOL: ProtocolFeatures = ProtocolFeatures::BACKEND_REQ
    .union(ProtocolFeatures::REPLY_ACK)
    .union(ProtocolFeatures::CONFIG)
    .union(ProtocolFeatures::SHARED_OBJECT)
    .union(ProtocolFeatures::INBAND_NOTIFICATIONS);

fn wish() -> Wish {
    Wish { protocol_features: PROTOCOL, ..Wish::default() }
}

/// Sends a request with `need_reply` and returns the reply.
fn ask<M: Message>(own: &mut Channel, message: &M) -> u64 {
    own.send_with(message, Flags::request_with_reply(), &[]).expect("is taken");
    let reply = own.receive().expect("an answer");
    assert_eq!(reply.header.request, M::REQUEST.number());
    u64::decode(&reply.payload).expect("a number")
}

/// Sends a request while the frontend waits for the reply to `GET_FEATURES`, which comes last.
fn asks(backend: impl FnOnce(&mut Channel) + Send + 'static) -> impl FnOnce(Standin) + Send + 'static {
    move |mut standin: Standin| {
        let mut own = standin.handshake(FEATURES, PROTOCOL).expect("was negotiated");
        standin.expect::<message::GetFeatures>();
        backend(&mut own);
        standin.reply::<message::GetFeatures>(&FEATURES);
        standin.gone();
    }
}

#[test]
fn a_backend_that_asks_before_it_answers_is_served() {
    let backend = asks(|own| {
        for _ in 0..100 {
            assert_eq!(ask(own, &backend::ConfigChangeMsg(Empty)), 0);
        }
        assert_eq!(ask(own, &backend::VringCall(VringState { index: 255, num: 0 })), 0);
        assert_eq!(ask(own, &backend::VringErr(VringState { index: 3, num: 0 })), 0);
        assert_ne!(ask(own, &backend::VringCall(VringState { index: 256, num: 0 })), 0);
    });
    session(&Options::default(), backend, |frontend| {
        frontend.handshake(&wish()).expect("all is well");
        frontend.get_features().expect("is answered at last");
        assert_eq!(frontend.take_notice(), Some(Notice::ConfigChanged));
        assert_eq!(frontend.take_notice(), None);
        assert!(frontend.take_call(255) && !frontend.take_call(255) && !frontend.take_call(3));
        assert!(frontend.take_ring_error(3) && !frontend.take_ring_error(u32::MAX));
    });
}

#[test]
fn what_needs_a_guest_around_us_is_refused() {
    let backend = asks(|own| {
        assert_ne!(ask(own, &backend::VringHostNotifierMsg(VringArea::default())), 0);
        assert_ne!(ask(own, &backend::ShmemUnmap(SharedMemoryMap::default())), 0);
        let (read, _write) = std::io::pipe().expect("a pipe");
        let map = backend::ShmemMap(SharedMemoryMap::default());
        own.send_with(&map, Flags::request_with_reply(), &[read.as_fd()]).expect("is taken");
        assert_ne!(u64::decode(&own.receive().expect("an answer").payload), Ok(0));
    });
    session(&Options::default(), backend, |frontend| {
        frontend.handshake(&wish()).expect("all is well");
        frontend.get_features().expect("is answered at last");
        assert_eq!(frontend.take_notice(), None);
    });
}

#[test]
fn shared_objects_come_go_and_are_found() {
    let object = |first: u8| SharedObject { uuid: [first; 16] };
    let backend = asks(move |own| {
        assert_eq!(ask(own, &backend::SharedObjectAdd(object(1))), 0);
        assert_ne!(ask(own, &backend::SharedObjectAdd(object(1))), 0, "is there already");
        assert_ne!(ask(own, &backend::SharedObjectRemove(object(9))), 0, "is the frontend's");
        assert_ne!(ask(own, &backend::SharedObjectLookup(object(2))), 0, "has no owner");
        own.send_with(&backend::SharedObjectLookup(object(9)), Flags::request_with_reply(), &[]).expect("is taken");
        let found = own.receive().expect("an answer");
        assert_eq!((u64::decode(&found.payload), found.fds.len()), (Ok(0), 1));
        assert_eq!(ask(own, &backend::SharedObjectRemove(object(1))), 0);
    });
    session(&Options::default(), backend, |frontend| {
        frontend.handshake(&wish()).expect("all is well");
        assert!(frontend.offer_object([9; 16], std::io::pipe().expect("a pipe").0.into()));
        frontend.get_features().expect("is answered at last");
        assert_eq!(frontend.take_notice(), Some(Notice::ObjectAdded([1; 16])));
        assert_eq!(frontend.take_notice(), Some(Notice::ObjectRemoved([1; 16])));
    });
}

#[test]
fn what_is_kept_of_a_backends_requests_has_a_bound() {
    let backend = asks(|own| {
        let miss = |iova| {
            let (permission, kind) = (IotlbPermission::Read, IotlbKind::Miss);
            backend::IotlbMsg(Iotlb { iova, size: 0x1000, user_address: 0, permission, kind })
        };
        let answers: Vec<u64> = (0..100).map(|iova| ask(own, &miss(iova))).collect();
        assert_eq!(answers.iter().filter(|answer| **answer == 0).count(), 64);
        for first in 0..=255 {
            let object = SharedObject { uuid: [first; 16] };
            assert_ne!(ask(own, &backend::SharedObjectAdd(object)), 0, "the notices are full");
        }
    });
    session(&Options::default(), backend, |frontend| {
        frontend.handshake(&wish()).expect("all is well");
        frontend.get_features().expect("is answered at last");
        assert!(matches!(frontend.take_notice(), Some(Notice::IotlbMiss(Iotlb { iova: 0, .. }))));
    });
}

/// Sends this on the backend's channel; returns the result of serving it.
fn says(backend: impl FnOnce(&mut Channel) + Send + 'static) -> (FrontendError, bool) {
    let standin = move |mut standin: Standin| {
        let mut own = standin.handshake(FEATURES, PROTOCOL).expect("was negotiated");
        backend(&mut own);
        standin.gone();
    };
    session(&Options::default(), standin, |frontend: &mut Frontend| {
        frontend.handshake(&wish()).expect("all is well");
        let error = frontend.serve_backend_requests(TIMEOUT).expect_err("no backend may say that");
        (error, frontend.has_backend_channel())
    })
}

#[test]
fn a_backend_that_says_what_none_may_say_loses_its_channel() {
    let nothing_known = says(|own| own.send_raw(11, Flags::request(), &[], &[]).expect("is taken"));
    let a_reply = says(|own| own.send_raw(2, Flags::reply(), &[], &[]).expect("is taken"));
    let a_size = says(|own| own.send_raw(2, Flags::request(), &[0; 4], &[]).expect("is taken"));
    let huge = says(|own| own.send_bytes(&[2, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], &[]).expect("is taken"));
    let descriptors = says(|own| {
        let (read, _write) = std::io::pipe().expect("a pipe");
        own.send_raw(2, Flags::request(), &[], &[read.as_fd(); 8]).expect("is taken");
    });
    for (error, open) in [nothing_known, a_reply, a_size, huge, descriptors] {
        assert!(matches!(error, FrontendError::BackendChannel { .. }), "{error}");
        assert!(!open, "{error}");
    }
}

#[test]
fn a_channel_that_the_backend_closes_is_no_error() {
    let standin = |mut standin: Standin| {
        drop(standin.handshake(FEATURES, PROTOCOL));
        standin.answered::<message::GetFeatures>(&FEATURES);
        standin.gone();
    };
    session(&Options::default(), standin, |frontend| {
        frontend.handshake(&wish()).expect("all is well");
        frontend.get_features().expect("is answered");
        frontend.serve_backend_requests(Duration::from_millis(10)).expect("is no error");
        assert_eq!(frontend.take_notice(), Some(Notice::Closed));
        assert_eq!(frontend.serve_backend_requests(Duration::from_secs(9)).expect("there is no channel"), 0);
    });
}

#[test]
fn a_backend_that_asks_without_end_is_one_that_does_not_answer() {
    let backend = |mut standin: Standin| {
        let mut own = standin.handshake(FEATURES, PROTOCOL).expect("was negotiated");
        standin.expect::<message::GetFeatures>();
        let started = Instant::now();
        while own.send(&backend::ConfigChangeMsg(Empty), &[]).is_ok() {
            assert!(started.elapsed() < TIMEOUT, "the frontend never stops reading");
        }
    };
    session(&super::quick(), backend, |frontend| {
        frontend.handshake(&wish()).expect("all is well");
        assert!(frontend.get_features().expect_err("is not answered").is_timeout());
        // The session is of no use any more, and the stand-in sees its end.
        frontend.backend.close();
    });
}
