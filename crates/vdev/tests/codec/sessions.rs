//! Messages of real peers: each decodes and is encoded again byte for byte. Once from fixtures, and once live, from
//! which the fixtures are made: `KILN_RECORD=1 cargo test -p kiln-vdev --test codec vm_`.

use std::path::PathBuf;

use kiln_vdev::protocol::{FrontendCall, FrontendRequest, Message, Payload, ProtocolFeatures, VringState, frontend};
use kiln_vdev::virtio::{DeviceKind, config, feature, plausible};

use super::live::{self, DISK_BYTES, Steering};
use super::transcript::{Line, Side, read};
use super::values::for_each_frontend_message;

/// A session, and what it holds beyond what every session does.
struct Session {
    fixture: &'static str,
    title: &'static str,
    steering: Steering,
    holds: &'static [FrontendRequest],
}

/// As the peers do it by themselves.
const PLAIN: Session = Session {
    fixture: "qemu-7.2-blk.session",
    title: "# QEMU 7.2.22, vhost-user-blk-pci, with qemu-storage-daemon 7.2.22: the firmware starts the disk of 64 MiB,\n\
            # reads it, is reset and does so again; then QEMU ends.\n",
    steering: Steering { withheld: ProtocolFeatures::empty(), granted: ProtocolFeatures::empty() },
    holds: &[FrontendRequest::AddMemReg, FrontendRequest::GetMaxMemSlots, FrontendRequest::SetBackendReqFd],
};

/// The older way to send memory, and requests in flight: what the daemon has and does not offer.
const STEERED: Session = Session {
    fixture: "qemu-7.2-blk-table-inflight.session",
    title: "# As qemu-7.2-blk.session, but QEMU is told that the daemon has INFLIGHT_SHMFD and no CONFIGURE_MEM_SLOTS.\n",
    steering: Steering { withheld: ProtocolFeatures::CONFIGURE_MEM_SLOTS, granted: ProtocolFeatures::INFLIGHT_SHMFD },
    holds: &[FrontendRequest::SetMemTable, FrontendRequest::GetInflightFd, FrontendRequest::SetInflightFd],
};

#[test]
fn a_recorded_session_is_decoded_and_encoded_byte_for_byte() {
    recorded(&PLAIN);
}

#[test]
fn a_recorded_session_with_a_memory_table_and_inflight_is_decoded_and_encoded_byte_for_byte() {
    recorded(&STEERED);
}

#[test]
fn vm_a_live_session_is_decoded_and_encoded_byte_for_byte() {
    live(&PLAIN);
}

#[test]
fn vm_a_live_session_with_a_memory_table_and_inflight_is_decoded_and_encoded_byte_for_byte() {
    live(&STEERED);
}

fn recorded(session: &Session) {
    let lines = read(&std::fs::read_to_string(path(session)).expect("the fixture"));
    check_all(session, &lines);
}

fn live(session: &Session) {
    let directory = tempfile::tempdir().expect("a directory");
    let lines = live::record(directory.path(), session.steering);
    if std::env::var_os("KILN_RECORD").is_some() {
        let text: String = lines.iter().map(|line| line.to_text() + "\n").collect();
        std::fs::write(path(session), session.title.to_owned() + &text).expect("the fixture is written");
    }
    check_all(session, &lines);
}

fn path(session: &Session) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(session.fixture)
}

fn check_all(session: &Session, lines: &[Line]) {
    lines.iter().for_each(check);
    check_content(session, lines);
}

/// The message of a line survives the codec, and the number of its descriptors is allowed.
fn check(line: &Line) {
    line.header.check().unwrap_or_else(|error| panic!("{}: {error}", line.to_text()));
    assert_eq!(line.header.payload_bytes as usize, line.payload.len());
    let request = FrontendRequest::from_number(line.header.request).expect("a request that is defined");
    if line.side == Side::Backend {
        assert!(line.header.flags.is_reply());
        assert_eq!(reply(request, &line.payload), line.payload, "{request}: {}", line.to_text());
        return;
    }
    assert!(request.descriptors().contains(&line.fds), "{request} with {} descriptors", line.fds);
    let call = FrontendCall::decode(request, &line.payload).unwrap_or_else(|error| panic!("{request}: {error}"));
    assert_eq!(call.payload(), line.payload, "{request}: {}", line.to_text());
}

/// A reply, encoded again. A message without a reply is acknowledged.
fn reply(request: FrontendRequest, bytes: &[u8]) -> Vec<u8> {
    fn again<P: Payload>(bytes: &[u8]) -> Vec<u8> {
        let mut encoded = Vec::new();
        P::decode(bytes).expect("a reply of this request").encode(&mut encoded);
        encoded
    }
    macro_rules! by_request {
        ($($name:ident)*) => {
            match request {
                $(FrontendRequest::$name if frontend::$name::HAS_REPLY => {
                    again::<<frontend::$name as Message>::Reply>(bytes)
                })*
                _ => again::<u64>(bytes),
            }
        };
    }
    for_each_frontend_message!(by_request)
}

/// The session is whole, and the disk in it is the disk that was there.
fn check_content(session: &Session, lines: &[Line]) {
    for request in [
        FrontendRequest::SetOwner,
        FrontendRequest::SetProtocolFeatures,
        FrontendRequest::SetFeatures,
        FrontendRequest::SetVringAddr,
        FrontendRequest::SetVringKick,
        FrontendRequest::SetVringCall,
    ]
    .iter()
    .chain(session.holds)
    {
        let mut asked = lines.iter().filter(|line| line.side == Side::Frontend);
        assert!(asked.any(|line| line.header.request == request.number()), "{request}");
    }
    let answers = lines.iter().filter(|line| line.side == Side::Backend);
    let stops = answers.filter(|line| line.header.request == FrontendRequest::GetVringBase.number());
    let bases: Vec<_> = stops.map(|line| VringState::decode(&line.payload).expect("a base").num).collect();
    assert!(bases.len() >= 2 && bases.iter().all(|base| *base > 0), "the disk was used before each stop: {bases:?}");

    let said = |request: FrontendRequest| {
        let mut answers = lines.iter().filter(|line| line.side == Side::Backend);
        answers.find(|line| line.header.request == request.number()).unwrap_or_else(|| panic!("no {request}"))
    };
    let offered = u64::decode(&said(FrontendRequest::GetFeatures).payload).expect("features");
    let told = <frontend::GetConfig as Message>::Reply::decode(&said(FrontendRequest::GetConfig).payload);
    let bytes = told.expect("a configuration").bytes;
    let fields = config::decode(DeviceKind::Blk, &bytes);
    assert_eq!(fields[0].to_string(), format!("capacity {} (64 MiB)", DISK_BYTES / 512));
    let names: Vec<_> = feature::names(Some(DeviceKind::Blk), offered).iter().map(ToString::to_string).collect();
    for name in ["SEG_MAX", "BLK_SIZE", "FLUSH", "VERSION_1", "PROTOCOL_FEATURES"] {
        assert!(names.iter().any(|known| known == name), "{name} in {names:?}");
    }
    assert!(!names.iter().any(|name| name.starts_with("bit ")), "{names:?}");
    assert_eq!(plausible(offered, None, &bytes).first().map(|it| it.kind), Some(DeviceKind::Blk));
}
