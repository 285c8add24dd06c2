//! Hosts that flood the agent and never read. The memory of the agent stays bounded for every kind of frame and stream.

use std::os::unix::net::UnixListener;
use std::time::Duration;

use kiln_e2e::{Agent, RawLink};
use kiln_wire::{
    AttachRequest, Channel, ExecRequest, ForwardRequest, Kind, LogSource, LogsRequest, Message, MetricsRequest, Resize,
    SessionSpec, SessionsRequest, Signal, Stdin, StreamId, Sync, Tty, WatchRequest, encode,
};

use crate::common::sh;

/// By how much one flood may make the agent grow.
const GROWTH_MAX_BYTES: u64 = 8 << 20;
/// Bytes of one flood: a quarter of a million of the smallest frames.
const FLOOD_BYTES: usize = 2 << 20;
/// The host stops sending after the agent has read nothing for this long.
const PATIENCE: Duration = Duration::from_millis(200);
/// The stream that is flooded.
const STREAM: u32 = 1;

/// A stream whose task takes no input, or little.
#[derive(Debug, Clone, Copy)]
enum Sleeper {
    Exec,
    ExecWithStdin,
    ExecOnTerminal,
    Session,
    Attach,
    Forward,
    Watch,
    Logs,
    Metrics,
    ArchiveIn,
}

const SLEEPERS: [Sleeper; 10] = [
    Sleeper::Exec,
    Sleeper::ExecWithStdin,
    Sleeper::ExecOnTerminal,
    Sleeper::Session,
    Sleeper::Attach,
    Sleeper::Forward,
    Sleeper::Watch,
    Sleeper::Logs,
    Sleeper::Metrics,
    Sleeper::ArchiveIn,
];

/// Keeps the files and sockets that a stream needs outside of the agent.
struct Opened {
    _listener: Option<UnixListener>,
}

impl Sleeper {
    fn open(self, agent: &Agent, raw: &mut RawLink) -> Opened {
        let sleep = |stdin| ExecRequest { stdin, ..sh("exec sleep 1000") };
        let session = Some(SessionSpec { name: Some("s".into()), ..SessionSpec::default() });
        let mut listener = None;
        let request = match self {
            Self::Exec => Message::Exec(Box::new(sleep(Stdin::None))),
            Self::ExecWithStdin => Message::Exec(Box::new(sleep(Stdin::Stream))),
            Self::ExecOnTerminal => {
                let tty = Some(Tty { rows: 24, cols: 80, term: String::new() });
                Message::Exec(Box::new(ExecRequest { tty, ..sleep(Stdin::Stream) }))
            }
            Self::Session => Message::Exec(Box::new(ExecRequest { session, ..sleep(Stdin::Stream) })),
            Self::Attach => {
                let request = ExecRequest { session, ..sleep(Stdin::Stream) };
                raw.send(3, &Message::Exec(Box::new(request)));
                raw.frame_of(3);
                Message::Attach(AttachRequest { session: "s".into(), offset: None, write: true, steal: true })
            }
            Self::Forward => {
                let path = agent.path("socket");
                listener = Some(UnixListener::bind(&path).expect("the directory is ours"));
                Message::Forward(ForwardRequest::Unix { path: path.as_str().into() })
            }
            Self::Watch => Message::Watch(WatchRequest { path: agent.path("").as_str().into(), recursive: false }),
            Self::Logs => Message::Logs(LogsRequest { source: LogSource::Agent, follow: true }),
            Self::Metrics => Message::Metrics(MetricsRequest { interval_ms: Some(10) }),
            Self::ArchiveIn => {
                let request = kiln_wire::FileRequest::TarIn { path: agent.path("").as_str().into() };
                Message::Files(Box::new(kiln_wire::FilesRequest { jail: None, request }))
            }
        };
        raw.send(STREAM, &request);
        raw.ping();
        Opened { _listener: listener }
    }
}

fn message(stream: u32, message: &Message<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(StreamId(stream), &mut bytes).expect("it fits");
    bytes
}

fn frame(stream: u32, kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(kind, StreamId(stream), payload, &mut bytes).expect("it fits");
    bytes
}

/// Sends `flood` up to [`FLOOD_BYTES`] and reads nothing, and returns by how much the agent has grown.
fn growth(agent: &Agent, raw: &mut RawLink, flood: &[u8]) -> u64 {
    let before = agent.rss_peak_bytes();
    let whole = flood.repeat((64_usize << 10).div_ceil(flood.len()));
    let sent = raw.write_while_taken(&whole, FLOOD_BYTES, PATIENCE);
    assert!(sent > 0, "the agent takes something");
    agent.rss_peak_bytes() - before
}

fn assert_bounded(floods: &[(&str, Vec<u8>)]) {
    for sleeper in SLEEPERS {
        for (name, flood) in floods {
            let (agent, mut raw) = Agent::greeted();
            let _opened = sleeper.open(&agent, &mut raw);
            let grown = growth(&agent, &mut raw, flood);
            assert!(grown <= GROWTH_MAX_BYTES, "{name} on {sleeper:?}: grew by {} KiB", grown >> 10);
        }
    }
}

#[test]
fn small_data_on_any_stream_does_not_grow_the_agent() {
    let data = |bytes: &[u8]| message(STREAM, &Message::Data(Channel::In, bytes));
    assert_bounded(&[("empty data", data(b"")), ("single bytes", data(b"x")), ("33 bytes", data(&[7; 33]))]);
}

#[test]
fn data_and_other_frames_in_turn_do_not_grow_the_agent() {
    let data = message(STREAM, &Message::Data(Channel::In, b"x"));
    let resize = message(STREAM, &Message::Resize(Resize { rows: 1, cols: 1 }));
    let window_change = message(STREAM, &Message::Signal(Signal { signal: 28 }));
    assert_bounded(&[
        ("data and sizes", [data.clone(), resize].concat()),
        ("data and signals", [data, window_change].concat()),
        ("large data", message(STREAM, &Message::Data(Channel::In, &[7; 4097]))),
    ]);
}

#[test]
fn frames_without_data_do_not_grow_the_agent() {
    assert_bounded(&[
        ("ends of data", message(STREAM, &Message::Eof)),
        ("credit", message(STREAM, &Message::Credit(u32::MAX))),
        ("cancels", message(STREAM, &Message::Cancel)),
        ("a kind without a name", frame(STREAM, Kind(0x7f), b"")),
        ("requests on a stream in use", frame(STREAM, Kind::ACTIVITY, b"")),
    ]);
}

#[test]
fn frames_of_the_link_and_of_unknown_streams_do_not_grow_the_agent() {
    let floods = [
        ("small pings", message(0, &Message::Ping(b""))),
        ("long pings", message(0, &Message::Ping(&[7; 60_000]))),
        ("echoes", message(0, &Message::Pong(b""))),
        ("credit of the link", message(0, &Message::Credit(1))),
        ("credit of no stream", message(99, &Message::Credit(1))),
        ("data of no stream", message(99, &Message::Data(Channel::In, b"x"))),
        ("a kind without a name", frame(0, Kind(0xee), b"")),
        ("requests that are no JSON", frame(7, Kind::EXEC, b"")),
        ("requests on the guest's ids", frame(2, Kind::ACTIVITY, b"")),
    ];
    for (name, flood) in floods {
        let (agent, mut raw) = Agent::greeted();
        raw.ping();
        let grown = growth(&agent, &mut raw, &flood);
        assert!(grown <= GROWTH_MAX_BYTES, "{name}: grew by {} KiB", grown >> 10);
    }
}

#[test]
fn requests_on_new_streams_whose_replies_are_not_read_do_not_grow_the_agent() {
    let sync =
        || Message::Sync(Sync { host_time_ns: 1, seed: String::new(), identity: None, network: None, mounts: vec![] });
    let requests: [fn() -> Message<'static>; 4] = [
        || Message::Activity,
        || Message::Thaw,
        || Message::Sessions(SessionsRequest::List),
        || Message::Exec(Box::default()),
    ];
    for request in requests.into_iter().map(|request| request()).chain([sync()]) {
        let (agent, mut raw) = Agent::greeted();
        raw.ping();
        let flood: Vec<u8> = (0..50_000).flat_map(|number| message(2 * number + 1, &request)).collect();
        let grown = growth(&agent, &mut raw, &flood);
        assert!(grown <= GROWTH_MAX_BYTES, "{:?}: grew by {} KiB", request.kind(), grown >> 10);
    }
}

#[test]
fn output_in_single_bytes_that_is_not_read_does_not_grow_the_agent() {
    let scripts = ["while :; do echo -n a; echo -n b >&2; done", "while :; do echo; done", "yes"];
    for script in scripts {
        for sleeper in [false, true] {
            let (agent, mut raw) = Agent::greeted();
            raw.ping();
            let before = agent.rss_peak_bytes();
            let tty = sleeper.then(|| Tty { rows: 24, cols: 80, term: String::new() });
            for stream in [1, 3, 5, 7] {
                raw.send(stream, &Message::Exec(Box::new(ExecRequest { tty: tty.clone(), ..sh(script) })));
            }
            // The host sends credit without end and reads none of the output.
            raw.write_while_taken(&message(1, &Message::Credit(1 << 20)), 256 << 10, PATIENCE);
            std::thread::sleep(PATIENCE);
            let grown = agent.rss_peak_bytes() - before;
            assert!(grown <= GROWTH_MAX_BYTES, "`{script}`: grew by {} KiB", grown >> 10);
        }
    }
}
