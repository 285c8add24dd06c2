//! A guest that floods its host, without a reader, costs a bounded queue, whatever kind of stream and frame it chooses.
//! Memory is the process's own resident set, so each test needs a process of its own, which nextest gives it.

use std::fs;

use kiln_wire::{
    AttachRequest, Auth, Channel, Done, ErrorCode, ExecRequest, Fault, FileRequest, FilesRequest, ForwardRequest, Kind,
    LogSource, LogsRequest, Message, MetricsRequest, PAYLOAD_MAX, ReadRange, Reply, SessionInfo, SessionState,
    SessionsRequest, Started, StreamId, Sync, WatchRequest, WriteMode, encode,
};
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use crate::peer::{DEADLINE, Peer, linked};

/// What one flood may cost.
const GROWTH_MAX_BYTES: u64 = 8 << 20;
/// The size of one flood of data. Of the smallest frames that is a quarter of a million, which would cost far more than
/// [`GROWTH_MAX_BYTES`] if each were kept.
const DATA_BYTES: usize = 2 << 20;
/// The size of one flood of answers. Each is kept, with more beside it.
const ANSWER_BYTES: usize = 1 << 20;
/// The size of one flood of frames that end a stream or have no meaning.
const NOTHING_BYTES: usize = 512 << 10;
const WRITE_BYTES: usize = 64 << 10;
/// The stream that is flooded: the first that a link opens.
const STREAM: u32 = 1;

/// One request of each kind that opens a stream.
fn requests() -> Vec<Message<'static>> {
    let files = |request| Message::Files(Box::new(FilesRequest { jail: None, request }));
    vec![
        Message::Exec(Box::default()),
        Message::Exec(Box::new(ExecRequest { session: Some(kiln_wire::SessionSpec::default()), ..Default::default() })),
        Message::Attach(AttachRequest { session: "s".into(), offset: None, write: true, steal: false }),
        files(FileRequest::Read { path: "/f".into(), range: ReadRange::default() }),
        files(FileRequest::Write { path: "/f".into(), mode: WriteMode::Replace, permissions: None, owner: None }),
        files(FileRequest::TarOut { path: "/f".into() }),
        files(FileRequest::TarIn { path: "/f".into() }),
        Message::Forward(ForwardRequest::Tcp { host: "localhost".into(), port: 1 }),
        Message::Watch(WatchRequest { path: "/".into(), recursive: true }),
        Message::Metrics(MetricsRequest::default()),
        Message::Logs(LogsRequest { source: LogSource::Kernel, follow: true }),
        Message::Sessions(SessionsRequest::List),
        Message::Freeze,
        Message::Thaw,
        Message::Activity,
        Message::Sync(Sync { host_time_ns: 0, seed: String::new(), identity: None, network: None, mounts: vec![] }),
        Message::Auth(Auth { token: String::new() }),
    ]
}

fn frames_of(kind: Kind, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    encode(kind, StreamId(stream), payload, &mut frame).expect("it fits");
    frame
}

fn frame(stream: u32, message: &Message<'_>) -> Vec<u8> {
    let mut frame = Vec::new();
    message.encode(StreamId(stream), &mut frame).expect("it fits");
    frame
}

/// Many entries in one answer. Parsed, they take more memory than their bytes.
fn long_list() -> Message<'static> {
    let session = SessionInfo {
        name: "s".into(),
        command: String::new(),
        pid: 1,
        state: SessionState::Running,
        tty: false,
        attached: 0,
        offset: 0,
        oldest: 0,
        idle_ms: 0,
    };
    Message::Reply(Box::new(Reply::Sessions(vec![session; 1000])))
}

/// Resident memory now, and the most since the last [`forget_peak`].
fn resident_bytes(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a process has it");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
    kib << 10
}

fn forget_peak() {
    fs::write("/proc/self/clear_refs", "5").expect("Linux resets the peak");
}

/// The frames of `cycle`, repeated.
fn piece(cycle: &[Vec<u8>]) -> Vec<u8> {
    let once = cycle.concat();
    once.repeat(WRITE_BYTES.div_ceil(once.len()))
}

/// Sends `piece` repeatedly, up to `bytes`, or until the host ends the link, which is allowed.
async fn flood(peer: &mut Peer, piece: &[u8], bytes: usize) {
    let mut sent = 0;
    while sent < bytes {
        let written = timeout(DEADLINE, peer.stream.write_all(piece)).await.expect("the host reads, or ends the link");
        if written.is_err() {
            return;
        }
        sent += piece.len();
    }
}

/// Floods a link on which `request` is open and its stream is not read. Returns by how much this process grew.
async fn growth(request: &Message<'_>, cycle: &[Vec<u8>], bytes: usize) -> u64 {
    let (link, mut peer) = linked().await;
    let stream = link.open(request).expect("the link is up");
    peer.next_of(request.kind()).await;
    let piece = piece(cycle);
    forget_peak();
    let before = resident_bytes("VmRSS:");
    flood(&mut peer, &piece, bytes).await;
    // Either the host received all of it, or it has ended the link.
    if peer.stream.write_all(&frame(0, &Message::Ping(b"fence"))).await.is_ok() {
        tokio::select! {
            _ = peer.until_echo(b"fence") => {}
            _ = link.closed() => {}
        }
    }
    let grown = resident_bytes("VmHWM:").saturating_sub(before);
    drop(stream);
    grown
}

/// Floods streams of every kind with each of these cycles.
async fn assert_bounded(bytes: usize, cycles: &[(&str, Vec<Vec<u8>>)]) {
    for request in requests() {
        for (name, cycle) in cycles {
            let grown = growth(&request, cycle, bytes).await;
            let kind = request.kind();
            assert!(grown <= GROWTH_MAX_BYTES, "{name} on {kind:?}: grew by {} KiB", grown >> 10);
        }
    }
}

#[tokio::test]
async fn empty_data_on_any_stream_does_not_grow_the_host() {
    let out = frames_of(Kind::DATA_OUT, STREAM, b"");
    let err = frames_of(Kind::DATA_ERR, STREAM, b"");
    assert_bounded(DATA_BYTES, &[("empty", vec![out.clone()]), ("empty, two channels", vec![out, err])]).await;
}

#[tokio::test]
async fn data_of_single_bytes_on_any_stream_does_not_grow_the_host() {
    let out = frames_of(Kind::DATA_OUT, STREAM, b"x");
    let err = frames_of(Kind::DATA_ERR, STREAM, b"x");
    assert_bounded(DATA_BYTES, &[("single bytes", vec![out.clone()]), ("two channels in turn", vec![out, err])]).await;
}

#[tokio::test]
async fn data_that_is_never_joined_does_not_grow_the_host() {
    let out = frames_of(Kind::DATA_OUT, STREAM, &[7; 33]);
    let err = frames_of(Kind::DATA_ERR, STREAM, &[7; 33]);
    let large = frames_of(Kind::DATA_OUT, STREAM, &[7; 9000]);
    let answer = frame(STREAM, &Message::Eof);
    assert_bounded(
        DATA_BYTES,
        &[
            ("middle-sized, two channels", vec![out.clone(), err]),
            ("nine thousand bytes", vec![large]),
            ("data and ends of data", vec![out, answer]),
        ],
    )
    .await;
}

#[tokio::test]
async fn answers_on_any_stream_do_not_grow_the_host() {
    assert_bounded(
        ANSWER_BYTES,
        &[
            ("ends of data", vec![frame(STREAM, &Message::Eof)]),
            ("starts", vec![frame(STREAM, &Message::Started(Started { pid: 1, session: None }))]),
            ("replies", vec![frame(STREAM, &Message::Reply(Box::new(Reply::Watching)))]),
            ("long replies", vec![frame(STREAM, &long_list())]),
            ("longest replies", vec![frames_of(Kind::REPLY, STREAM, &vec![b' '; PAYLOAD_MAX])]),
            ("replies that say nothing", vec![frames_of(Kind::REPLY, STREAM, b"")]),
        ],
    )
    .await;
}

#[tokio::test]
async fn ends_and_frames_that_do_not_belong_there_do_not_grow_the_host() {
    assert_bounded(
        NOTHING_BYTES,
        &[
            ("credit", vec![frame(STREAM, &Message::Credit(u32::MAX))]),
            ("ends", vec![frame(STREAM, &Message::Done(Done::default()))]),
            ("faults", vec![frame(STREAM, &Message::Error(Fault::new(ErrorCode::Io, "x".repeat(1000))))]),
            ("stdin", vec![frame(STREAM, &Message::Data(Channel::In, b""))]),
            ("a kind without a name", vec![frames_of(Kind(0x7f), STREAM, b"")]),
            ("cancels", vec![frame(STREAM, &Message::Cancel)]),
        ],
    )
    .await;
}

#[tokio::test]
async fn frames_of_the_link_and_of_unknown_streams_do_not_grow_the_host() {
    let cycles = [
        ("small pings", vec![frame(0, &Message::Ping(b""))]),
        ("long pings", vec![frame(0, &Message::Ping(&[7; 1024]))]),
        ("echoes", vec![frame(0, &Message::Pong(&[0; 8]))]),
        ("credit of the link", vec![frame(0, &Message::Credit(1))]),
        ("ends of the link's own", vec![frame(0, &Message::Done(Done::default()))]),
        ("data of the link's own", vec![frame(0, &Message::Data(Channel::Out, b"x"))]),
        ("data of no stream", vec![frame(99, &Message::Data(Channel::Out, b"x"))]),
        ("streams of the guest's", vec![frame(2, &Message::Exec(Box::default()))]),
        ("a kind without a name", vec![frames_of(Kind(0xee), 0, b"")]),
    ];
    for (name, cycle) in cycles {
        let grown = growth(&Message::Exec(Box::default()), &cycle, DATA_BYTES).await;
        assert!(grown <= GROWTH_MAX_BYTES, "{name}: grew by {} KiB", grown >> 10);
    }
}

#[tokio::test]
async fn answers_that_the_guest_does_not_read_end_the_link() {
    let (link, mut peer) = linked().await;
    // The peer never reads, so the socket fills with echoes and then the queue does.
    let ping = frame(0, &Message::Ping(&[7; 1024]));
    flood(&mut peer, &piece(&[ping]), DATA_BYTES).await;
    let why = timeout(DEADLINE, link.closed()).await.expect("the link ends");
    assert!(why.contains("echoes"), "{why}");
}
