//! The man in the middle changes nothing: bytes, descriptors and ends pass as they are, and all of it is in the recording.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kiln_vdev::protocol::frontend::{GetFeatures, SetBackendReqFd, SetOwner, SetVringKick};
use kiln_vdev::protocol::{BackendRequest, Empty, Flags, FrontendRequest, VringFile, backend};
use kiln_vdev::socket::{Channel, Event};
use kiln_vdev::tap::{
    Descriptor, Ending, Entry, Recorded, Recording, Side, TapChannel, TapEnd, TapEvent, TapOptions, tap,
};

const DEADLINE: Duration = Duration::from_secs(20);

struct Bed {
    dir: tempfile::TempDir,
    stop: Event,
    tap: Option<JoinHandle<TapEnd>>,
    backend: UnixListener,
}

impl Bed {
    fn new(bytes_max: u64) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let backend = UnixListener::bind(dir.path().join("b")).expect("can listen");
        let stop = Event::new().expect("an eventfd");
        let options = TapOptions {
            listen: dir.path().join("a"),
            connect: dir.path().join("b"),
            record: dir.path().join("f"),
            bytes_max,
            timeout: DEADLINE,
            sessions_max: None,
        };
        let heard = stop.try_clone().expect("a descriptor");
        let tap = std::thread::spawn(move || tap(&options, &heard, &mut |_| {}).expect("the tap runs"));
        let bed = Self { dir, stop, tap: Some(tap), backend };
        let started = Instant::now();
        while !bed.path("a").exists() {
            assert!(started.elapsed() < DEADLINE, "the tap does not listen");
            std::thread::sleep(Duration::from_millis(1));
        }
        bed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn connect(&self) -> (Channel, Channel) {
        let started = Instant::now();
        // A socket has its name a moment before it listens.
        let frontend = loop {
            match Channel::connect(&self.path("a"), DEADLINE) {
                Ok(frontend) => break frontend,
                Err(error) => assert!(started.elapsed() < DEADLINE, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let (backend, _) = self.backend.accept().expect("the tap connects");
        (frontend, Channel::new(backend, "backend", DEADLINE))
    }

    fn streams(&self) -> (UnixStream, UnixStream) {
        let (frontend, backend) = self.connect();
        let clone = |channel: &Channel| channel.stream().try_clone().expect("a descriptor");
        let streams = (clone(&frontend), clone(&backend));
        for stream in [&streams.0, &streams.1] {
            stream.set_read_timeout(Some(DEADLINE)).expect("can be set");
        }
        streams
    }

    fn end(mut self) -> (TapEnd, Vec<Entry>) {
        self.stop.signal().expect("the tap is told");
        let end = self.tap.take().expect("it was started").join().expect("no panic");
        let recording = Recording::open(&self.path("f")).expect("a recording");
        let entries = recording.map(|entry| entry.expect("a whole line")).collect();
        assert!(!self.path("a").exists(), "the socket is removed");
        (end, entries)
    }
}

fn messages(entries: &[Entry]) -> Vec<&Recorded> {
    let message = |entry: &'_ Entry| matches!(entry.event, TapEvent::Message(_));
    let messages = entries.iter().filter(|entry| message(entry));
    messages
        .filter_map(|entry| match &entry.event {
            TapEvent::Message(message) => Some(message),
            _ => None,
        })
        .collect()
}

#[test]
fn messages_and_their_descriptors_pass_both_ways_and_are_recorded() {
    let bed = Bed::new(1 << 20);
    let (mut frontend, mut backend) = bed.connect();
    let kick = Event::new().expect("an eventfd");
    frontend.send(&SetVringKick(VringFile::with_descriptor(3)), &[kick.as_fd()]).expect("passes");
    let got = backend.receive().expect("passes");
    assert_eq!((got.header.request, got.payload, got.fds.len()), (12, 3_u64.to_ne_bytes().to_vec(), 1));
    let there = Event::from_peer(got.fds.into_iter().next().expect("one")).expect("an eventfd");
    there.signal().expect("can be signalled");
    assert!(kick.wait(DEADLINE).expect("can be waited for"), "it is the same eventfd");

    frontend.send(&GetFeatures(Empty), &[]).expect("passes");
    backend.receive().expect("passes");
    backend.answer(1, &0x1_4000_0000_u64.to_ne_bytes(), &[]).expect("passes");
    assert_eq!(frontend.reply_to::<GetFeatures>().expect("passes").0, 0x1_4000_0000);
    drop((frontend, backend));

    let (end, entries) = bed.end();
    assert_eq!((end.sessions, end.unreachable), (1, 0));
    let messages = messages(&entries);
    let names: Vec<_> = messages.iter().map(|message| (message.name.as_str(), message.from)).collect();
    assert_eq!(
        names,
        [("SET_VRING_KICK", Side::Frontend), ("GET_FEATURES", Side::Frontend), ("GET_FEATURES", Side::Backend)]
    );
    assert_eq!(messages[0].fds, [Descriptor::Eventfd]);
    assert!(entries.windows(2).all(|pair| pair[0].time_us <= pair[1].time_us));
}

#[test]
fn what_the_backend_asks_on_its_own_channel_is_recorded_too() {
    let bed = Bed::new(1 << 20);
    let (mut frontend, mut backend) = bed.connect();
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    frontend.send(&SetBackendReqFd(Empty), &[theirs.as_fd()]).expect("passes");
    drop(theirs);
    let got = backend.receive().expect("passes");
    let channel = UnixStream::from(got.fds.into_iter().next().expect("a socket"));
    let mut channel = Channel::new(channel, "backend's channel", DEADLINE);
    let mut ours = Channel::new(ours, "frontend's channel", DEADLINE);
    channel.send_with(&backend::ConfigChangeMsg(Empty), Flags::request_with_reply(), &[]).expect("passes");
    assert_eq!(ours.receive().expect("passes").header.request, BackendRequest::ConfigChangeMsg.number());
    ours.acknowledge(BackendRequest::ConfigChangeMsg.number(), 0).expect("passes");
    assert_eq!(channel.receive().expect("passes").payload, 0_u64.to_ne_bytes());
    // The channel stays open on both sides, and ends with its session all the same.
    drop((frontend, backend));
    assert!(ours.receive().expect_err("it ended").is_closed());

    let (_, entries) = bed.end();
    let messages = messages(&entries);
    let on_channel: Vec<_> = messages.iter().filter(|message| message.channel == TapChannel::Backend).collect();
    assert_eq!(on_channel.len(), 2);
    assert_eq!((on_channel[0].from, on_channel[0].name.as_str()), (Side::Backend, "BACKEND_CONFIG_CHANGE_MSG"));
    assert_eq!(on_channel[1].from, Side::Frontend);
}

#[test]
fn a_half_close_is_passed_on_and_the_other_half_goes_on() {
    let bed = Bed::new(1 << 20);
    let (mut frontend, mut backend) = bed.streams();
    frontend.write_all(&[1; 5]).expect("passes");
    frontend.shutdown(Shutdown::Write).expect("can be shut");
    let mut got = Vec::new();
    backend.read_to_end(&mut got).expect("ends");
    assert_eq!(got, [1; 5], "a cut message passes too");
    backend.write_all(b"still here").expect("passes");
    backend.shutdown(Shutdown::Both).expect("can be shut");
    let mut got = Vec::new();
    frontend.read_to_end(&mut got).expect("ends");
    assert_eq!(got, b"still here");
    drop((frontend, backend));
    let (_, entries) = bed.end();
    let half = TapEvent::Ended { channel: TapChannel::Main, from: Side::Frontend, how: Ending::HalfClosed };
    assert!(entries.iter().any(|entry| entry.event == half), "{entries:?}");
}

#[test]
fn bytes_that_are_no_messages_pass_unchanged() {
    let bed = Bed::new(1 << 20);
    let (mut frontend, mut backend) = bed.streams();
    let rubbish: Vec<u8> = (0..100_000_u32).map(|number| (number % 251) as u8 | 0x80).collect();
    let sent = rubbish.clone();
    let writer = std::thread::spawn(move || {
        frontend.write_all(&sent).expect("passes");
        frontend.shutdown(Shutdown::Write).expect("can be shut");
        frontend
    });
    let mut got = Vec::new();
    backend.read_to_end(&mut got).expect("ends");
    assert!(got == rubbish, "{} bytes of {}", got.len(), rubbish.len());
    drop((writer.join().expect("no panic"), backend));
    let (_, entries) = bed.end();
    let bytes: u64 = entries
        .iter()
        .filter_map(|entry| match &entry.event {
            TapEvent::Bytes { bytes, .. } => Some(*bytes),
            _ => None,
        })
        .sum();
    assert_eq!(bytes, 100_000);
}

#[test]
fn a_header_without_its_payload_is_passed_on_before_the_payload_comes() {
    let bed = Bed::new(1 << 20);
    let (mut frontend, mut backend) = bed.streams();
    let header = [8_u32.to_ne_bytes(), 1_u32.to_ne_bytes(), 8_u32.to_ne_bytes()].concat();
    frontend.write_all(&header).expect("passes");
    let mut got = [0; 12];
    backend.read_exact(&mut got).expect("comes at once");
    frontend.write_all(&[7; 8]).expect("passes");
    let mut got = [0; 8];
    backend.read_exact(&mut got).expect("comes");
    assert_eq!(got, [7; 8]);
    drop((frontend, backend));
    assert_eq!(messages(&bed.end().1).len(), 1);
}

#[test]
fn a_side_that_does_not_read_holds_up_only_its_own_direction() {
    let bed = Bed::new(1 << 30);
    let (mut frontend, mut backend) = bed.connect();
    frontend.set_timeout(Duration::from_millis(200));
    let stuck = std::iter::repeat_with(|| frontend.send(&SetOwner(Empty), &[])).take(1_000_000).find(Result::is_err);
    assert!(stuck.is_some_and(|error| error.is_err_and(|error| error.is_timeout())), "buffers have a bound");
    backend.answer(FrontendRequest::GetFeatures.number(), &[0; 8], &[]).expect("passes");
    frontend.set_timeout(DEADLINE);
    assert_eq!(frontend.receive().expect("passes").header.request, 1);
    let (end, _) = bed.end();
    assert_eq!(end.sessions, 1);
}

#[test]
fn a_full_recording_ends_no_connection() {
    let bed = Bed::new(1000);
    let (mut frontend, mut backend) = bed.connect();
    for _ in 0..100 {
        frontend.send(&SetOwner(Empty), &[]).expect("passes");
        backend.receive().expect("passes");
    }
    drop((frontend, backend));
    let (end, entries) = bed.end();
    assert!(end.recording.is_full);
    assert_eq!(entries.last().map(|entry| &entry.event), Some(&TapEvent::Full));
}

#[test]
fn a_frontend_is_turned_away_where_the_backend_is_not_there_and_the_next_is_taken() {
    let bed = Bed::new(1 << 20);
    std::fs::remove_file(bed.path("b")).expect("is there");
    let mut turned_away = Channel::connect(&bed.path("a"), DEADLINE).expect("the tap listens");
    assert!(turned_away.receive().expect_err("it was closed").is_closed());
    let again = UnixListener::bind(bed.path("b")).expect("can listen");
    let _second = Channel::connect(&bed.path("a"), DEADLINE).expect("the tap listens");
    again.accept().expect("the tap connects");
    let (end, entries) = bed.end();
    assert_eq!((end.sessions, end.unreachable), (2, 1));
    assert!(
        entries
            .iter()
            .any(|entry| matches!(&entry.event, TapEvent::Unreachable { error } if error.contains("No such")))
    );
}

#[test]
fn descriptors_beyond_those_of_any_message_end_the_connection() {
    let bed = Bed::new(1 << 20);
    let (mut frontend, mut backend) = bed.connect();
    let event = Event::new().expect("an event");
    for byte in [1, 0, 0, 0, 1] {
        // It may end in the middle.
        let _ = frontend.send_bytes(&[byte], &[event.as_fd(); 60]);
    }
    assert!(frontend.receive().expect_err("it ended").is_closed());
    assert!(backend.receive().is_err());
    drop((frontend, backend));
    bed.end();
}
