//! Messages that are out of order, or that were not negotiated, are not sent.

use std::os::fd::AsFd as _;

use super::{Standin, session};
use crate::frontend::{FrontendError, Options, Wish};
use crate::protocol::{ProtocolFeatures, VringAddress};
use crate::socket::Event;
use crate::virtio::feature;

const FEATURES: u64 = feature::VERSION_1 | feature::PROTOCOL_FEATURES;

#[test]
fn what_comes_too_early_is_named_and_not_sent() {
    session(
        &Options::default(),
        |mut backend: Standin| backend.gone(),
        |frontend| {
            let event = Event::new().expect("an eventfd");
            let early = [
                frontend.set_features(0),
                frontend.get_protocol_features().map(drop),
                frontend.set_protocol_features(ProtocolFeatures::MQ),
                frontend.set_vring_num(0, 64),
                frontend.set_vring_addr(&VringAddress::default()),
                frontend.set_vring_base(0, 0),
                frontend.set_vring_kick(0, Some(event.as_fd())),
                frontend.set_vring_call(0, Some(event.as_fd())),
                frontend.set_vring_enable(0, true),
                frontend.set_mem_table(&[], &[]),
            ];
            for error in early.map(|result| result.expect_err("is too early")) {
                assert!(matches!(error, FrontendError::Order { .. }), "{error}");
            }
        },
    );
}

#[test]
fn what_was_not_negotiated_is_named_and_not_sent() {
    let backend = |mut backend: Standin| {
        backend.handshake(FEATURES, ProtocolFeatures::empty());
        backend.gone();
    };
    session(&Options::default(), backend, |frontend| {
        frontend.handshake(&Wish::default()).expect("all is well");
        let refused = [
            frontend.get_queue_num().map(drop),
            frontend.get_config(0, 8).map(drop),
            frontend.get_status().map(drop),
            frontend.set_status(1),
            frontend.reset_device(),
            frontend.get_shared_object([0; 16]).map(drop),
            frontend.get_shmem_config().map(drop),
            frontend.open_backend_channel(),
            frontend.get_inflight(1, 64).map(drop),
            frontend.set_inflight(),
            frontend.start_log(0x1000).map(drop),
            frontend.check_device_state(),
            frontend.vring_kick(0),
        ];
        for error in refused.map(|result| result.expect_err("was not negotiated")) {
            assert!(matches!(error, FrontendError::NotNegotiated { .. }), "{error}");
        }
    });
}

#[test]
fn what_was_not_offered_is_not_acknowledged() {
    let backend = |mut backend: Standin| {
        backend.handshake(FEATURES, ProtocolFeatures::MQ);
        backend.gone();
    };
    session(&Options::default(), backend, |frontend| {
        frontend.handshake(&Wish::default()).expect("all is well");
        let foreign = frontend.set_features(1 << 35).expect_err("was not offered");
        assert!(foreign.to_string().ends_with("SET_FEATURES has bits that the backend does not offer: IN_ORDER"));
        let foreign = frontend.set_protocol_features(ProtocolFeatures::STATUS).expect_err("was not offered");
        assert!(foreign.to_string().ends_with("does not offer: STATUS"));
        assert!(matches!(frontend.set_vring_num(256, 64), Err(FrontendError::Bound { max: 255, .. })));
    });
}

#[test]
fn what_is_required_and_missing_ends_the_handshake() {
    let backend = |mut backend: Standin| {
        backend.done::<crate::protocol::frontend::SetOwner>();
        backend.answered::<crate::protocol::frontend::GetFeatures>(&FEATURES);
        backend.answered::<crate::protocol::frontend::GetProtocolFeatures>(&0_u64);
        backend.gone();
    };
    session(&Options::default(), backend, |frontend| {
        let wish = Wish { required_protocol_features: ProtocolFeatures::INFLIGHT_SHMFD, ..Wish::default() };
        let missing = frontend.handshake(&wish).expect_err("is not offered");
        assert!(missing.to_string().ends_with("does not offer: INFLIGHT_SHMFD"), "{missing}");
    });
}
