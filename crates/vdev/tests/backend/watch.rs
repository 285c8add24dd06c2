//! A frontend is judged by what it does.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use kiln_vdev::backend::Device;
use kiln_vdev::check::{Report, Verdict};
use kiln_vdev::devices::blk::{Backing, Blk, BlkOptions};
use kiln_vdev::devices::net::{Behind, Net, NetOptions};
use kiln_vdev::frontend::Options;
use kiln_vdev::frontend::blk::{BlkDriver, BlkOptions as DriverOptions};
use kiln_vdev::memory::SharedFile;
use kiln_vdev::mock::{Mock, Watch};
use kiln_vdev::protocol::frontend::*;
use kiln_vdev::protocol::{Config, Empty, Flags, MemoryRegion, MemoryTable, ProtocolFeatures, VringFile, VringState};
use kiln_vdev::virtio::feature;

use super::frontend::{Frontend, Served, eventually};

struct Watched {
    served: Served,
    watch: Arc<Watch>,
}

fn watched() -> Watched {
    watched_device(Arc::new(Blk::open(&BlkOptions::new(Backing::Null { bytes: 1 << 20 })).expect("a disk")))
}

fn watched_device(device: Arc<dyn Device>) -> Watched {
    let watch = Arc::new(Watch::new("a mock").of_device(device.kind()));
    let mut mock = Mock::new(Arc::clone(&device)).observer(Arc::clone(&watch) as _);
    Watched { served: Served::of(mock.options_mut().clone(), device), watch }
}

impl Watched {
    /// The report, once the session of the client that has left is closed.
    fn report(self) -> Report {
        eventually("it has ended", || self.served.is_idle());
        drop(self.served);
        self.watch.report()
    }
}

fn failures(report: &Report) -> Vec<(&'static str, String)> {
    let cases = report.cases.iter().filter(|case| case.verdict.is_failure());
    cases.map(|case| (case.id, case.verdict.because().unwrap_or_default().to_owned())).collect()
}

/// What a frontend did that a test makes, and the rules that it has broken by it.
fn broken(act: impl FnOnce(&mut Frontend)) -> Vec<&'static str> {
    let watched = watched();
    let mut frontend = watched.served.frontend();
    act(&mut frontend);
    drop(frontend);
    let report = watched.report();
    for case in report.cases.iter().filter(|case| case.verdict.is_failure()) {
        assert!(case.verdict.because().is_some_and(|because| !because.is_empty()), "{}", case.id);
    }
    failures(&report).into_iter().map(|(id, _)| id).collect()
}

#[test]
fn our_own_frontend_breaks_no_rule() {
    let watched = watched();
    let mut driver =
        BlkDriver::connect(&watched.served.socket(), &Options::default(), &DriverOptions::default()).expect("starts");
    driver.read(0, &mut [0; 4096]).expect("reads");
    driver.write(8, &[1; 512]).expect("writes");
    driver.frontend_mut().get_vring_base(0).expect("stops");
    drop(driver);
    let report = watched.report();
    assert_eq!(failures(&report), []);
    let passed = report.cases.iter().filter(|case| case.verdict == Verdict::Pass).count();
    assert!(passed >= 25, "{passed} of {} had an occasion", report.cases.len());
    assert!(report.cases.len() >= 50);
}

#[test]
fn a_frontend_that_does_all_of_it_wrong_is_told_rule_by_rule() {
    let ask = |frontend: &mut Frontend, request: u32, payload: &[u8]| {
        frontend.channel.send_raw(request, Flags::request_with_reply(), payload, &[]).expect("is sent");
        frontend.channel.receive().expect("an answer");
    };
    let ids = broken(|frontend| {
        frontend.negotiate();
        ask(frontend, 200, &[]);
        ask(frontend, 8, &[0; 7]);
        ask(frontend, 37, &[0; 40]);
        ask(frontend, 23, &[0; 8]);
        frontend.refused(&SetFeatures(1 << 63), &[]);
        frontend.refused(&SetProtocolFeatures(1 << 63), &[]);
        frontend.must(&SetOwner(Empty), &[]);
    });
    for id in ["messages.known", "messages.payload", "messages.descriptors", "features.negotiated"] {
        assert!(ids.contains(&id), "{id} is not in {ids:?}");
    }
    let ids = broken(|frontend| {
        frontend.negotiate();
        frontend.refused(&SetFeatures(1 << 63), &[]);
        frontend.refused(&SetProtocolFeatures(1 << 63), &[]);
        frontend.must(&SetOwner(Empty), &[]);
        frontend.must(&ResetOwner(Empty), &[]);
    });
    for id in ["features.offered", "features.protocol-offered", "handshake.owner-once", "handshake.no-reset-owner"] {
        assert!(ids.contains(&id), "{id} is not in {ids:?}");
    }
    let ids = broken(|frontend| {
        frontend.negotiate();
        frontend.share_memory();
        frontend.refused(&SetVringNum(VringState { index: 99, num: 8 }), &[]);
        frontend.refused(&SetVringNum(VringState { index: 0, num: 7 }), &[]);
        frontend.refused(&SetVringEnable(VringState { index: 0, num: 7 }), &[]);
        frontend.refused(&SetVringKick(VringFile { reserved: 1 << 40, ..VringFile::polled(0) }), &[]);
        frontend.refused(&SetVringCall(VringFile::with_descriptor(0)), &[]);
        frontend.refused(&SetConfig(Config { offset: 0, flags: 0, bytes: vec![1; 8] }), &[]);
        let file = SharedFile::new(0x1000).expect("a file");
        let region = MemoryRegion { guest_address: 1, size: 0x2001, user_address: 5, mmap_offset: 0 };
        frontend.refused(&SetMemTable(MemoryTable(vec![region])), &[file.as_fd()]);
        let ring = frontend.prepare(0, 8);
        frontend.must(&SetVringKick(VringFile::with_descriptor(0)), &[ring.kick.as_fd()]);
        frontend.refused(&SetVringNum(VringState { index: 0, num: 16 }), &[]);
    });
    for id in [
        "rings.index",
        "rings.size",
        "rings.enable-value",
        "rings.reserved-bits",
        "rings.descriptor-flag",
        "config.write",
        "memory.fits-its-file",
        "memory.whole-pages",
        "rings.stay",
        "rings.stop-before-close",
    ] {
        assert!(ids.contains(&id), "{id} is not in {ids:?}");
    }
}

#[test]
fn a_frontend_that_asks_for_answers_too_early_or_never_kicks_is_told() {
    let ids = broken(|frontend| {
        frontend.channel.send_with(&SetFeatures(0), Flags::request_with_reply(), &[]).expect("is sent");
        assert_ne!(frontend.get(&GetFeatures(Empty)), 0);
    });
    assert_eq!(ids, ["handshake.owner", "messages.need-reply"]);
    let ids = broken(|frontend| {
        frontend.negotiate();
        frontend.share_memory();
        frontend.ring(0, 8);
        frontend.base(0);
    });
    assert_eq!(ids, ["rings.kick-after-start"]);
}

#[test]
fn a_frontend_that_stops_a_ring_with_a_number_is_told() {
    let ids = broken(|frontend| {
        frontend.negotiate();
        frontend.share_memory();
        let ring = frontend.ring(0, 8);
        ring.kick.signal().expect("kicks");
        let state = frontend.channel.call(&GetVringBase(VringState { index: 0, num: 1 }), &[]).expect("is answered").0;
        assert_eq!(state.index, 0);
    });
    assert_eq!(ids, ["rings.stop-num"]);
}

#[test]
fn a_base_that_no_ring_has_is_told() {
    let ids = broken(|frontend| {
        frontend.negotiate();
        frontend.refused(&SetVringBase(VringState { index: 0, num: 0x1_0003 }), &[]);
    });
    assert_eq!(ids, ["rings.base-value"]);
    let of_packed = |num| {
        broken(|frontend| {
            frontend.negotiate_as(!feature::LOG_ALL, ProtocolFeatures::REPLY_ACK);
            frontend.must(&SetVringNum(VringState { index: 0, num: 6 }), &[]);
            frontend.must(&SetVringBase(VringState { index: 0, num }), &[]);
        })
    };
    for wrong in [0x8000, 0x8006_8006, 0x8003_8002, 0x8000_0001] {
        assert_eq!(of_packed(wrong), ["rings.base-value"], "{wrong:#x}");
    }
    for right in [0x8000_8000, 0x8003_8003, 0x0005_0005, 0x0002_0005, 0x8005_0003, 0x0000_0000] {
        assert_eq!(of_packed(right), Vec::<&str>::new(), "{right:#x}");
    }
}

#[test]
fn a_driver_that_accepts_a_feature_without_the_one_it_requires_is_told() {
    let card =
        || Arc::new(Net::new(NetOptions { behind: Behind::Reflection, ..NetOptions::default() }).expect("a card"));
    let ecn = |features: u64| {
        let watched = watched_device(card());
        let mut frontend = watched.served.frontend();
        frontend.negotiate();
        // The card refuses what it does not offer; what the driver accepts is judged all the same.
        let _ = frontend.channel.call_acknowledged(&SetFeatures(features), &[]);
        drop(frontend);
        let failures = failures(&watched.report());
        failures.into_iter().filter(|(id, _)| *id == "features.requirements").map(|(_, because)| because).collect()
    };
    let because: Vec<String> = ecn(feature::net::GUEST_ECN | feature::net::GUEST_CSUM);
    assert_eq!(because, ["SET_FEATURES accepts GUEST_ECN without GUEST_TSO4 or GUEST_TSO6"]);
    let because: Vec<String> = ecn(feature::net::GUEST_ECN | feature::net::GUEST_TSO4 | feature::net::GUEST_CSUM);
    assert!(because.is_empty(), "{because:?}");
}

#[test]
fn a_driver_that_lies_in_its_ring_is_told() {
    let watched = watched();
    let mut frontend = watched.served.frontend();
    frontend.negotiate();
    frontend.share_memory();
    let ring = frontend.ring(0, 8);
    ring.driver.areas().driver.store_u16(2, 999, std::sync::atomic::Ordering::Release);
    ring.kick.signal().expect("kicks");
    let broke = || failures(&watched.watch.report()).iter().any(|(id, _)| *id == "data.available-index");
    eventually("it is seen", broke);
    let report = watched.watch.report();
    let case = report.cases.iter().find(|case| case.id == "data.available-index").expect("is a rule");
    assert!(case.trace.lines().any(|line| line.contains("SET_VRING_KICK")), "what was said before is shown");
    assert!(report.to_text().contains("data.available-index"));
}

#[test]
fn headers_and_halves_of_messages_are_told() {
    let ids = broken(|frontend| frontend.ends(1, Flags::from_bits(2), &[], &[]));
    assert_eq!(ids, ["messages.header"]);
    let ids = broken(|frontend| {
        frontend.channel.send_bytes(&[1, 0, 0, 0, 1], &[]).expect("is sent");
    });
    assert_eq!(ids, ["messages.whole"]);
}
