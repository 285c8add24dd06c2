//! Backends that break one rule: the suite has to find that, and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use kiln_vdev::backend::fault::{AnswerFault, Completion, Faults, Instead, MessageFault, Offer, RingEvent};
use kiln_vdev::check::{Level, Verdict};
use kiln_vdev::protocol::{Flags, FrontendRequest, PackedBase, ProtocolFeatures};
use kiln_vdev::queue::Chain;
use kiln_vdev::virtio::{DeviceKind, feature};

use super::{backend, check, disk, failed, spawned, verdict};

/// One way to be wrong.
struct Wrong(&'static str);

/// The ways to be wrong, by name.
pub fn faults(name: &str) -> Option<Arc<dyn Faults>> {
    if name.is_empty() || name == "forgets-writes" {
        return None;
    }
    if name.starts_with("polls") {
        std::thread::spawn(spin);
    }
    Some(Arc::new(Wrong(name.to_owned().leak())))
}

/// The largest ring of a backend that is wrong in this way.
pub fn ring_max(name: &str) -> u16 {
    name.strip_prefix("has-rings-of-").map_or(1 << 15, |max| max.parse().expect("a size"))
}

fn spin() {
    loop {
        std::hint::spin_loop();
    }
}

fn answer(fault: AnswerFault) -> Option<MessageFault> {
    Some(MessageFault { answer: fault, ..MessageFault::default() })
}

fn instead(instead: Instead) -> Option<MessageFault> {
    Some(MessageFault { instead: Some(instead), ..MessageFault::default() })
}

impl Faults for Wrong {
    fn offer(&self, offer: &mut Offer) {
        match self.0 {
            "is-legacy" => offer.features &= !feature::VERSION_1,
            "has-no-mq" => offer.protocol_features = offer.protocol_features.difference(ProtocolFeatures::MQ),
            "has-undefined-bits" => {
                offer.protocol_features = offer.protocol_features | ProtocolFeatures::from_bits(1 << 61);
            }
            "has-no-queues" => offer.queues = 0,
            // A session begins.
            "leaks-of-each-session" => std::mem::forget(std::fs::File::open("/dev/null").expect("opens")),
            "has-ecn-without-tso" => offer.features |= feature::net::HOST_ECN,
            "has-mq-without-control-queue" => offer.features |= feature::net::MQ,
            "requires-data" => offer.features &= !feature::i2c::ZERO_LENGTH_REQUEST,
            "has-wce-without-flush" => offer.features &= !feature::blk::FLUSH,
            _ => {}
        }
    }

    fn config(&self, config: &mut Vec<u8>) {
        static TIMES: AtomicU8 = AtomicU8::new(0);
        match self.0 {
            "config-changes" => config[20] = TIMES.fetch_add(1, Ordering::Relaxed),
            // Behind the 96 bytes of a disk, and before what no device has.
            "tells-what-lies-behind" => {
                config.resize(200, 0);
                config[120] = 0xab;
            }
            "has-no-capacity" => config[..8].fill(0),
            _ => {}
        }
    }

    fn message(&self, request: u32) -> Option<MessageFault> {
        use FrontendRequest as Request;
        let known = FrontendRequest::from_number(request);
        match (self.0, known) {
            ("version-2", Some(Request::GetFeatures)) => {
                answer(AnswerFault { flags: Some(Flags::from_bits(0b110)), ..AnswerFault::default() })
            }
            ("no-reply-flag", Some(Request::GetFeatures)) => {
                answer(AnswerFault { flags: Some(Flags::from_bits(1)), ..AnswerFault::default() })
            }
            ("asks-back", Some(Request::SetFeatures)) => {
                answer(AnswerFault { flags: Some(Flags::from_bits(0b1101)), ..AnswerFault::default() })
            }
            ("sends-descriptors", Some(Request::GetFeatures)) => {
                answer(AnswerFault { extra_fds: 1, ..AnswerFault::default() })
            }
            ("mute-at-call", Some(Request::SetVringCall)) => {
                answer(AnswerFault { silent: true, ..AnswerFault::default() })
            }
            ("twice-at-err", Some(Request::SetVringErr)) => {
                answer(AnswerFault { twice: true, ..AnswerFault::default() })
            }
            ("wrong-name-at-base", Some(Request::SetVringBase)) => {
                answer(AnswerFault { request: Some(9), ..AnswerFault::default() })
            }
            ("base-77", Some(Request::GetVringBase)) => {
                let payload = [0_u32.to_ne_bytes(), 77_u32.to_ne_bytes()].concat();
                answer(AnswerFault { payload: Some(payload), ..AnswerFault::default() })
            }
            ("status-is-4", Some(Request::GetStatus)) => {
                answer(AnswerFault { payload: Some(4_u64.to_ne_bytes().to_vec()), ..AnswerFault::default() })
            }
            ("takes-any-memory", Some(Request::SetMemTable)) => instead(Instead::Ack),
            ("takes-any-config", Some(Request::SetConfig)) => instead(Instead::Ack),
            ("forgets-inflight", Some(Request::SetInflightFd)) => instead(Instead::Ack),
            ("refuses-enable", Some(Request::SetVringEnable)) => instead(Instead::Nack(1)),
            ("mute-at-slots", Some(Request::GetMaxMemSlots)) => instead(Instead::Ignore),
            ("crashes-at-rarp", Some(Request::SendRarp)) => instead(Instead::Crash),
            ("leaks-at-err", Some(Request::SetVringErr)) | ("leaks-descriptors", Some(Request::GetFeatures)) => {
                std::mem::forget(std::fs::File::open("/dev/null").expect("opens"));
                None
            }
            ("spins" | "polls-and-spins", Some(Request::SetVringNum)) => {
                static ONCE: std::sync::Once = std::sync::Once::new();
                ONCE.call_once(|| drop(std::thread::spawn(spin)));
                None
            }
            ("leaks-memory", Some(Request::GetFeatures)) => {
                Vec::leak(vec![1_u8; 4096]);
                None
            }
            _ => None,
        }
    }

    fn completed(&self, _queue: u16, chain: &Chain, written: u32) -> Completion {
        let right = Completion::as_it_is(chain.id(), written);
        match self.0 {
            "counts-one-more" => Completion { written: written + 1, ..right },
            "uses-twice" => Completion { times: 2, ..right },
            "counts-what-it-reads" => Completion { written: 600, ..right },
            "loses-chains-of-two" if chain.id().descriptors() == 2 => Completion { times: 0, ..right },
            "loses-chains-of-many" if chain.id().descriptors() > 3 => Completion { times: 0, ..right },
            "loses-tables" if chain.id().descriptors() == 1 => Completion { times: 0, ..right },
            "loses-the-last-entry" if chain.id().number() == 15 => Completion { times: 0, ..right },
            _ => right,
        }
    }

    fn ignores(&self, _queue: u16, event: RingEvent) -> bool {
        match (self.0, event) {
            ("forgets-kicks-of-disabled-rings", RingEvent::Enable) | ("skips-what-is-there", RingEvent::Start) => true,
            ("ends-with-its-kick", RingEvent::KickEnds) => std::process::abort(),
            ("spins-with-its-kick", RingEvent::KickEnds) => {
                std::thread::spawn(spin);
                false
            }
            _ => false,
        }
    }

    fn base(&self, _queue: u16, base: u32) -> u32 {
        match self.0 {
            "packed-base-of-16-bits" => base & 0xffff,
            "packed-base-without-wrap-counters" => base | PackedBase::START.bits(),
            "packed-base-without-indices" => base & PackedBase::START.bits(),
            "packed-base-zero-at-start" if base == PackedBase::START.bits() => 0,
            _ => base,
        }
    }

    fn calls(&self, _queue: u16) -> u32 {
        if self.0 == "never-calls" { 0 } else { 1 }
    }
}

/// A backend that is wrong in this way fails exactly these of the cases that match.
#[track_caller]
fn finds(wrong: &str, among: &[&str], expected: &[&str]) {
    finds_in(DeviceKind::Blk, Level::Should, wrong, among, expected);
}

/// As [`finds`], of a device of this kind and of rules up to this level; and the device fails none of them while it is
/// right.
#[track_caller]
fn finds_in(kind: DeviceKind, level: Level, wrong: &str, among: &[&str], expected: &[&str]) {
    for (wrong, expected) in [(wrong, expected), ("", &[])] {
        fails(kind, level, wrong, among, expected);
    }
}

#[track_caller]
fn fails(kind: DeviceKind, level: Level, wrong: &str, among: &[&str], expected: &[&str]) {
    let (directory, disk) = disk();
    let beside = match kind {
        DeviceKind::Vsock => directory.path().join("vm.vsock"),
        _ => disk,
    };
    let beside = &beside.display().to_string();
    let mut options = spawned(&backend::serve(kind, wrong, beside));
    options.device = Some(kind);
    options.level = level;
    options.timeout = Duration::from_secs(2);
    options.only = among.iter().map(ToString::to_string).collect();
    let report = check(&options);
    assert_eq!(failed(&report), expected, "`{wrong}`\n{}", report.to_text());
}

#[test]
fn wrong_replies_are_found() {
    finds("version-2", &["handshake.*"], &["handshake.reply-version"]);
    finds("no-reply-flag", &["handshake.reply-*"], &["handshake.reply-flag"]);
    finds("asks-back", &["handshake.*"], &["handshake.reply-asks-nothing"]);
    finds("sends-descriptors", &["handshake.*"], &["handshake.features-answered"]);
}

#[test]
fn wrong_acknowledgements_are_found() {
    finds(
        "mute-at-call",
        &["handshake.*", "!handshake.ack-vring-kick", "!handshake.ack-vring-enable"],
        &["handshake.ack-vring-call"],
    );
    finds("twice-at-err", &["handshake.*"], &["handshake.ack-vring-err"]);
    finds(
        "wrong-name-at-base",
        &["handshake.ack-vring-base", "handshake.ack-vring-num"],
        &["handshake.ack-vring-base"],
    );
    finds("refuses-enable", &["handshake.*"], &["handshake.ack-vring-enable"]);
}

#[test]
fn wrong_offers_are_found() {
    finds("is-legacy", &["features.*"], &["features.version-1"]);
    finds("has-no-mq", &["features.*"], &["features.mq"]);
    finds("has-undefined-bits", &["features.*"], &["features.defined-protocol-features"]);
    finds("has-no-queues", &["features.*"], &["features.queue-num", "features.queues-of-device"]);
    finds("has-wce-without-flush", &["features.*"], &["features.requirements"]);
}

#[test]
fn features_without_those_that_they_require_are_found() {
    let net = |wrong, expected: &[&str]| finds_in(DeviceKind::Net, Level::May, wrong, &["features.*"], expected);
    net("has-ecn-without-tso", &["features.requirements"]);
    net("has-mq-without-control-queue", &["features.control-queue"]);
}

#[test]
fn wrong_bases_of_packed_rings_are_found() {
    let [kept, second_lap, at_start] =
        ["rings.packed-base-kept", "rings.packed-base-of-second-lap", "rings.packed-base-at-start"];
    let finds = |wrong, expected: &[&str]| finds(wrong, &["rings.packed-base-*"], expected);
    finds("packed-base-without-wrap-counters", &[second_lap]);
    finds("packed-base-zero-at-start", &[at_start]);
    // Both rules start at an index other than 0. Only their wrap counters differ, and this backend keeps those.
    finds("packed-base-without-indices", &[kept, second_lap]);
    // One fault breaks all three rules: the upper half has a wrap counter or an index in each of their bases.
    finds("packed-base-of-16-bits", &[kept, second_lap, at_start]);
}

#[test]
fn an_adapter_without_the_feature_that_drivers_require_is_found() {
    finds_in(DeviceKind::I2c, Level::May, "requires-data", &["features.*"], &["features.zero-length-request"]);
}

#[test]
fn rings_that_a_backend_refuses_for_their_size_are_found() {
    let finds = |wrong, expected: &[&str]| finds_in(DeviceKind::I2c, Level::May, wrong, &["rings.size-*"], expected);
    // A limit refuses all larger rings too, so each limit adds one rule to those of the next.
    let sizes = ["rings.size-64", "rings.size-128", "rings.size-256", "rings.size-1024"];
    finds("has-rings-of-32", &sizes);
    finds("has-rings-of-64", &sizes[1..]);
    finds("has-rings-of-128", &sizes[2..]);
}

#[test]
fn wrong_memory_and_rings_are_found() {
    let lies = [
        "memory.fd-missing",
        "memory.fd-surplus",
        "memory.nine-regions",
        "memory.no-memory-file",
        "memory.past-file",
        "memory.size-zero",
        "memory.endless",
    ];
    finds("takes-any-memory", &["memory.*", "!memory.table-after-rings"], &lies);
    finds("mute-at-slots", &["memory.*"], &["memory.max-slots", "memory.add-all-slots"]);
    let bases = ["rings.every-queue", "rings.queues-apart", "rings.base-kept", "rings.base-at-the-end"];
    finds("base-77", &["rings.*", "!rings.packed-*"], &bases);
}

#[test]
fn a_wrong_configuration_is_found() {
    finds("config-changes", &["config.*"], &["config.part", "config.stable"]);
    finds("takes-any-config", &["config.*"], &["config.read-only-field", "config.write-cache", "config.flags-unknown"]);
    finds("has-no-capacity", &["config.*"], &["config.capacity"]);
    finds("tells-what-lies-behind", &["config.*"], &["config.nothing-beyond-the-end"]);
}

#[test]
fn wrong_requests_are_found() {
    let counts = [
        "data.written-length-at-most",
        "data.written-length-of-read",
        "data.written-length-of-write",
        "data.packed-written-length",
    ];
    finds("counts-one-more", &["data.*", "!data.log-*"], &counts);
    let calls =
        ["data.call", "data.call-changed", "data.event-idx", "data.event-idx-ignores-flags", "data.event-idx-wraps"];
    finds("never-calls", &["data.call", "data.call-ch*", "data.event-idx*", "!data.*quiet"], &calls);
    finds("uses-twice", &["data.many-at-once", "data.stop-and-go-on"], &["data.many-at-once", "data.stop-and-go-on"]);
    let forgotten = [
        "data.write-read-back",
        "data.write-its-sectors-only",
        "data.large",
        "data.many-at-once",
        "data.many-descriptors",
        "data.packed-write-read-back",
    ];
    finds("forgets-writes", &["data.*write*", "data.large", "data.many*"], &forgotten);
}

#[test]
fn rings_of_any_device_that_lose_requests_are_found() {
    for kind in [DeviceKind::Blk, DeviceKind::Net, DeviceKind::Vsock] {
        let finds = |wrong, among: &[&str], expected: &[&str]| finds_in(kind, Level::May, wrong, among, expected);
        let layouts = ["requests.chain-*", "requests.indirect-*"];
        finds("counts-what-it-reads", &["requests.*"], &["requests.written-length"]);
        finds("loses-chains-of-many", &layouts, &["requests.chain-of-many"]);
        finds("loses-tables", &layouts, &["requests.indirect-table"]);
        finds("loses-chains-of-two", &layouts, &["requests.chain-of-two"]);
        finds("loses-the-last-entry", &["requests.*"], &["requests.goes-around"]);
        finds("skips-what-is-there", &["requests.*"], &["requests.offered-before-start"]);
    }
    // A network card discards what is sent by a disabled ring, and uses it at once; a disk does it later.
    let lost = ["requests.kick-before-enable", "requests.kick-while-disabled"];
    finds("forgets-kicks-of-disabled-rings", &["requests.*"], &lost);
}

#[test]
fn a_backend_that_does_not_bear_the_end_of_a_kick_descriptor_is_found() {
    let ends = ["hostile.kick-pipe-hangs-up", "hostile.kick-socket-hangs-up"];
    finds("ends-with-its-kick", &["hostile.kick-*-hangs-up"], &ends);
    let spins = ["resources.idle-after-kick-hangs-up"];
    finds("spins-with-its-kick", &["hostile.kick-*-hangs-up", "resources.idle-after-kick-hangs-up"], &spins);
}

#[test]
fn descriptors_of_sessions_that_are_kept_are_found() {
    let of_all = "resources.descriptors-of-whole-sessions";
    let of_connections = ["resources.descriptors-of-connections", of_all, "resources.descriptors-of-cut-sessions"];
    let among = ["resources.descriptors-of-*", "!resources.descriptors-of-clients"];
    finds("leaks-of-each-session", &among, &of_connections);
    finds("leaks-at-err", &["resources.descriptors-of-clients", "resources.descriptors-of-whole-*"], &[of_all]);
}

#[test]
fn a_backend_that_forgets_what_is_under_way_is_found() {
    let lost = ["inflight.too-small", "inflight.without-fd", "inflight.resubmits", "inflight.last-batch-not-twice"];
    finds("forgets-inflight", &["inflight.*"], &lost);
}

#[test]
fn a_backend_that_keeps_what_it_should_let_go_is_found() {
    finds("leaks-memory", &["resources.memory-*"], &["resources.memory-of-messages"]);
    let held =
        ["resources.descriptors-of-clients", "resources.stray-descriptors", "resources.stray-descriptors-on-commands"];
    finds("leaks-descriptors", &["resources.*descriptors-of-clients", "resources.stray*"], &held);
    finds("spins", &["resources.idle-*"], &IDLE);
    finds("polls-and-spins", &["resources.idle-*"], &IDLE);
    finds("status-is-4", &["lifecycle.status-*"], &["lifecycle.status-kept", "lifecycle.status-reset"]);
}

/// The rules that a backend which spins breaks.
const IDLE: [&str; 4] = [
    "resources.idle-without-client",
    "resources.idle-with-ring",
    "resources.idle-after-kick-ended",
    "resources.idle-after-kick-hangs-up",
];

#[test]
fn a_backend_that_polls_from_its_start_is_compared_with_itself() {
    let (_directory, disk) = disk();
    let mut options = spawned(&backend::command("polls", &disk));
    options.only = vec!["resources.idle-*".to_owned()];
    options.device = Some(DeviceKind::Blk);
    let report = check(&options);
    assert_eq!(failed(&report), [""; 0], "{}", report.to_text());
    let is_named = |id| matches!(verdict(&report, id), Verdict::Skip(because) if because.starts_with("it polls by design: 1 thread"));
    assert!(is_named(IDLE[0]) && is_named(IDLE[1]), "{:?}", report.cases);
    assert!(IDLE[2..].iter().all(|id| verdict(&report, id) == &Verdict::Pass), "{:?}", report.cases);
}

#[test]
fn a_crash_and_its_message_are_named() {
    let (_directory, disk) = disk();
    let mut options = spawned(&backend::command("crashes-at-rarp", &disk));
    options.only = vec!["hostile.every-request-zeros".to_owned()];
    let report = check(&options);
    let Verdict::Crash(how) = verdict(&report, "hostile.every-request-zeros") else { panic!("{}", report.to_text()) };
    assert!(how.contains("after SEND_RARP"), "{how}");
}

#[test]
fn a_backend_that_ignores_sigterm_is_found_and_killed() {
    let (_directory, disk) = disk();
    let server = backend::command("", &disk).replace('\'', "");
    let mut options = spawned(&format!("sh -c 'trap \"\" TERM; {server}'"));
    options.only = vec!["lifecycle.*sigterm*".to_owned()];
    let report = check(&options);
    assert_eq!(
        failed(&report),
        ["lifecycle.ends-at-sigterm", "lifecycle.ends-at-sigterm-with-client"],
        "{}",
        report.to_text()
    );
}
