//! What holds for every message: values come back, bytes of any kind give a value or an error, and the tables of
//! replies and descriptors match the specification.

use kiln_vdev::protocol::{
    BackendCall, BackendRequest, DESCRIPTORS_MAX, FrontendCall, FrontendRequest, HEADER_BYTES, Header, Message,
    PAYLOAD_BYTES_MAX, Payload, backend, frontend,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::values::{AnyPayload, backend_call, for_each_backend_message, for_each_frontend_message, frontend_call};

/// Cases for each message and property.
const CASES: u32 = 64;

#[test]
fn every_message_of_a_frontend_comes_back_as_it_was() {
    for request in FrontendRequest::ALL {
        for_any(&frontend_call(*request), |call| {
            prop_assert_eq!(call.request(), *request);
            let payload = call.payload();
            prop_assert!(payload.len() <= PAYLOAD_BYTES_MAX as usize);
            prop_assert_eq!(FrontendCall::decode(*request, &payload), Ok(call));
            Ok(())
        });
    }
}

#[test]
fn every_message_of_a_backend_comes_back_as_it_was() {
    for request in BackendRequest::ALL {
        for_any(&backend_call(*request), |call| {
            prop_assert_eq!(call.request(), *request);
            prop_assert_eq!(BackendCall::decode(*request, &call.payload()), Ok(call));
            Ok(())
        });
    }
}

#[test]
fn every_reply_comes_back_as_it_was() {
    macro_rules! frontends {
        ($($name:ident)*) => {{ $(reply_comes_back::<frontend::$name>();)* }};
    }
    macro_rules! backends {
        ($($name:ident)*) => {{ $(reply_comes_back::<backend::$name>();)* }};
    }
    for_each_frontend_message!(frontends);
    for_each_backend_message!(backends);
}

fn reply_comes_back<M: Message>()
where
    M::Reply: AnyPayload,
{
    for_any(&M::Reply::any(), |reply| {
        let bytes = encoded(&reply);
        prop_assert_eq!(M::Reply::decode(&bytes), Ok(reply));
        Ok(())
    });
}

#[test]
fn any_bytes_for_any_request_are_an_error_or_a_value_that_stays() {
    for request in FrontendRequest::ALL {
        for_any(&near(frontend_call(*request).prop_map(|call| call.payload())), |bytes| {
            if let Ok(call) = FrontendCall::decode(*request, &bytes) {
                prop_assert_eq!(FrontendCall::decode(*request, &call.payload()), Ok(call));
            }
            Ok(())
        });
    }
    for request in BackendRequest::ALL {
        for_any(&near(backend_call(*request).prop_map(|call| call.payload())), |bytes| {
            if let Ok(call) = BackendCall::decode(*request, &bytes) {
                prop_assert_eq!(BackendCall::decode(*request, &call.payload()), Ok(call));
            }
            Ok(())
        });
    }
}

#[test]
fn any_bytes_for_any_reply_are_an_error_or_a_value_that_stays() {
    macro_rules! frontends {
        ($($name:ident)*) => {{ $(hostile_reply::<frontend::$name>();)* }};
    }
    macro_rules! backends {
        ($($name:ident)*) => {{ $(hostile_reply::<backend::$name>();)* }};
    }
    for_each_frontend_message!(frontends);
    for_each_backend_message!(backends);
}

fn hostile_reply<M: Message>()
where
    M::Reply: AnyPayload,
{
    for_any(&near(M::Reply::any().prop_map(|reply| encoded(&reply))), |bytes| {
        if let Ok(reply) = M::Reply::decode(&bytes) {
            prop_assert_eq!(M::Reply::decode(&encoded(&reply)), Ok(reply));
        }
        Ok(())
    });
}

proptest! {
    #[test]
    fn any_header_survives_and_what_is_passed_fits_the_bound(bytes: [u8; HEADER_BYTES]) {
        let header = Header::decode(bytes);
        prop_assert_eq!(header.encode(), bytes);
        if header.check().is_ok() {
            prop_assert!(header.payload_bytes <= PAYLOAD_BYTES_MAX);
            prop_assert!(!(header.flags.is_reply() && header.flags.needs_reply()));
        }
    }
}

#[test]
fn descriptors_come_only_where_the_specification_has_them() {
    use FrontendRequest as F;
    let carrying: Vec<_> = F::ALL.iter().copied().filter(|request| *request.descriptors().end() > 0).collect();
    let wanted = [
        F::SetMemTable,
        F::SetLogBase,
        F::SetLogFd,
        F::SetVringKick,
        F::SetVringCall,
        F::SetVringErr,
        F::SetBackendReqFd,
        F::SetInflightFd,
        F::GpuSetSocket,
        F::AddMemReg,
        F::RemMemReg,
        F::SetDeviceStateFd,
    ];
    assert_eq!(carrying, wanted);
    let carrying: Vec<_> = BackendRequest::ALL.iter().filter(|request| *request.descriptors().end() > 0).collect();
    assert_eq!(carrying, [&BackendRequest::VringHostNotifierMsg, &BackendRequest::ShmemMap]);

    let frontends = F::ALL.iter().map(|request| request.descriptors());
    let all = frontends.chain(BackendRequest::ALL.iter().map(|request| request.descriptors()));
    assert!(all.into_iter().all(|range| range.start() <= range.end() && *range.end() <= DESCRIPTORS_MAX));
}

#[test]
fn the_tables_of_replies_agree_with_the_types() {
    macro_rules! frontends {
        ($($name:ident)*) => {{
            $(assert_eq!(FrontendRequest::$name.has_reply(), frontend::$name::HAS_REPLY, stringify!($name));)*
            [$(FrontendRequest::$name),*]
        }};
    }
    macro_rules! backends {
        ($($name:ident)*) => {{
            $(assert_eq!(BackendRequest::$name.has_reply(), backend::$name::HAS_REPLY, stringify!($name));)*
            [$(BackendRequest::$name),*]
        }};
    }
    // The lists that the properties go by hold every message.
    assert_eq!(for_each_frontend_message!(frontends), FrontendRequest::ALL);
    assert_eq!(for_each_backend_message!(backends), BackendRequest::ALL);
    let asking = FrontendRequest::ALL.iter().filter(|request| request.name().starts_with("GET_"));
    assert!(asking.into_iter().all(|request| request.has_reply()));
}

/// Bytes that are nearly a payload: one with a byte changed, cut short or drawn out; and bytes of no plan at all.
fn near(payload: impl Strategy<Value = Vec<u8>> + 'static) -> impl Strategy<Value = Vec<u8>> {
    let changes = (any::<prop::sample::Index>(), any::<u8>(), -2_isize..=2);
    let changed = (payload, changes).prop_map(|(mut bytes, (place, byte, longer))| {
        if !bytes.is_empty() {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes.resize(bytes.len().saturating_add_signed(longer), byte);
        bytes
    });
    prop_oneof![2 => changed, 1 => vec(any::<u8>(), 0..300), 1 => vec(any::<u8>(), 4090..4110)]
}

fn encoded(payload: &impl Payload) -> Vec<u8> {
    let mut bytes = Vec::new();
    payload.encode(&mut bytes);
    bytes
}

fn for_any<T: std::fmt::Debug>(values: &impl Strategy<Value = T>, holds: impl Fn(T) -> Result<(), TestCaseError>) {
    let mut runner = TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() });
    if let Err(error) = runner.run(values, holds) {
        panic!("{error}");
    }
}
