//! Scripts that make a backend wrong, and our own frontend that reports it: each of `tests/scripts` is used here.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_vdev::backend::Device;
use kiln_vdev::devices::blk::{Backing, Blk, BlkOptions};
use kiln_vdev::frontend::blk::{BlkDriver, BlkOptions as DriverOptions};
use kiln_vdev::frontend::{Frontend, FrontendError, Options, Wish};
use kiln_vdev::mock::{Mock, Script};
use kiln_vdev::protocol::Flags;
use kiln_vdev::queue::QueueError;
use kiln_vdev::socket::{Channel, Event, Listener};

use super::frontend::{Killed, Served, TIMEOUT, eventually, wait_until_it_listens};

fn script(name: &str) -> Script {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts").join(name).with_extension("toml");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(text.starts_with("# "), "{name} says what it is for");
    text.parse().unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn disk() -> Arc<dyn Device> {
    Arc::new(Blk::open(&BlkOptions::new(Backing::Null { bytes: 1 << 20 })).expect("a disk"))
}

fn served(name: &str) -> Served {
    let mut mock = Mock::new(disk()).script(&script(name)).expect("features that there are");
    Served::of(mock.options_mut().clone(), disk())
}

fn patience() -> Options {
    Options { timeout: Duration::from_millis(500), ..Options::default() }
}

fn driver_options() -> DriverOptions {
    DriverOptions { timeout: Duration::from_millis(500), spin: Duration::ZERO, ..DriverOptions::default() }
}

fn connect(served: &Served) -> Result<BlkDriver, FrontendError> {
    BlkDriver::connect(&served.socket(), &patience(), &driver_options())
}

/// The result of a session that connects, reads a sector, and flushes what it has not written.
fn session(name: &str) -> Result<Vec<u8>, String> {
    let served = served(name);
    let text = |error: FrontendError| {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        text
    };
    let mut driver = connect(&served).map_err(text)?;
    let mut sector = vec![0xaa; 512];
    driver.read(8, &mut sector).map_err(text)?;
    Ok(sector)
}

/// A session that must fail, and the parts that its error must have.
fn reports(name: &str, parts: &[&str]) {
    let began = Instant::now();
    let error = session(name).expect_err(name);
    for part in parts {
        assert!(error.contains(part), "{name}: `{part}` is not in `{error}`");
    }
    assert!(began.elapsed() < TIMEOUT, "{name} took too long");
}

#[test]
fn wrong_answers_are_reported_with_the_message_that_they_answer() {
    reports("reply_wrong_number", &["GET_FEATURES", "99"]);
    reports("reply_wrong_size", &["GET_FEATURES", "4 bytes"]);
    reports("reply_no_reply_flag", &["GET_FEATURES", "flags 0x1"]);
    reports("reply_reserved_flags", &["GET_FEATURES", "reserved flags 0x80000000"]);
    reports("reply_too_large", &["GET_FEATURES", "1073741824 bytes"]);
    reports("reply_cut", &["GET_FEATURES", "closed by its peer 15 bytes into a message of 20"]);
    reports("reply_twice", &["GET_PROTOCOL_FEATURES", "message 1 "]);
    reports("reply_descriptors", &["GET_FEATURES", "descriptors"]);
}

#[test]
fn missing_answers_end_at_the_deadline() {
    reports("reply_silent", &["ADD_MEM_REG"]);
    reports("reply_late", &["GET_CONFIG", "500ms"]);
    reports("ignore_message", &["SET_VRING_ADDR"]);
}

#[test]
fn a_backend_that_refuses_or_goes_is_named_with_the_message() {
    // Messages that need no answer for the next one go out without waiting, so the end is seen later.
    reports("close_on_message", &["/s`"]);
    reports("nack_message", &["SET_VRING_NUM", "refused with 22"]);
}

#[test]
fn lies_in_a_ring_are_reported_and_not_followed() {
    reports("used_length", &["ring 0", "returned 100000000 bytes written"]);
    reports("used_id", &["ring 0", "77"]);
    reports("used_jump", &["used index of ring 0"]);
    reports("used_twice", &["ring 0"]);
    reports("status_missing", &["ring 0", "no status"]);
}

#[test]
fn a_ring_that_is_not_served_ends_at_the_deadline() {
    for name in ["ack_not_done", "used_never"] {
        reports(name, &["requests of ring 0 within 500ms"]);
    }
    let served = served("kick_ignored");
    loses_its_kick(&served, &mut connect(&served).expect("starts"));
}

/// A worker looks at a ring that was just started or enabled, and serves what it finds without a kick. So the worker must have
/// looked before the request comes. It takes one kick in each turn and looks at its rings after it. The first of these
/// kicks may be taken in a turn that began before; when the second one is taken, the look of that turn has ended.
fn loses_its_kick(served: &Served, driver: &mut BlkDriver) {
    for _ in 0..2 {
        let before = served.events.kicks();
        driver.queues_mut()[0].kick().expect("is sent");
        eventually("the kick is taken", || served.events.kicks() > before);
    }
    let error = driver.read(8, &mut [0; 512]).expect_err("the kick is lost");
    assert!(error.is_timeout(), "{error}");
}

#[test]
fn kicks_are_heard_until_a_message_has_come() {
    let served = served("kick_ignored_after");
    let mut driver = connect(&served).expect("starts");
    let read = |driver: &mut BlkDriver| driver.read(8, &mut [0; 512]);
    read(&mut driver).and_then(|()| read(&mut driver)).expect("is served");
    drop(driver);
    let mut channel = Channel::connect(&served.socket(), TIMEOUT).expect("listens");
    channel.send_raw(200, Flags::request(), &[], &[]).expect("is sent");
    assert!(channel.receive_unchecked().expect_err("there is no such message").is_closed());
    loses_its_kick(&served, &mut connect(&served).expect("starts"));
}

#[test]
fn clients_are_served_late_or_not_at_all_or_one_alone() {
    let served = served("serve_late");
    let mut driver = connect(&served).expect("is accepted in the end");
    driver.read(8, &mut [0; 512]).expect("is served");
    drop(driver);
    let error = connect(&served).expect_err("it comes too soon");
    assert!(error.is_closed(), "{error}");
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("s");
    let mock = Mock::new(disk()).script(&script("serve_one")).expect("features that there are");
    let serving = std::thread::spawn({
        let socket = socket.clone();
        move || mock.serve(&socket, &Event::new().expect("an event")).expect("serves")
    });
    // To find out whether it listens would be its one client.
    let began = Instant::now();
    while let Err(error) = BlkDriver::connect(&socket, &patience(), &driver_options()) {
        assert!(began.elapsed() < TIMEOUT, "{error}");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(serving.join().expect("no panic"), 1, "it ends without being told to");
}

#[test]
fn what_is_only_slow_or_loud_is_borne() {
    for name in ["call_storm", "used_late"] {
        assert_eq!(session(name), Ok(vec![0; 512]), "{name}");
    }
}

#[test]
fn a_backend_that_never_calls_does_not_hang_the_driver() {
    let began = Instant::now();
    // Either is right: to find the completion at the deadline, or to report the missing call.
    let _ = session("call_missing");
    assert!(began.elapsed() < TIMEOUT);
}

#[test]
fn a_sector_with_wrong_data_is_found_by_comparing() {
    let sector = session("corrupt_sector").expect("is read");
    assert_eq!((sector[0], &sector[1..]), (0xff, &[0; 511][..]));
}

#[test]
fn what_a_backend_says_of_itself_is_told_as_it_is() {
    let served = served("offer_wrong");
    let mut frontend = Frontend::connect(&served.socket(), &patience()).expect("connects");
    let negotiated = frontend.handshake(&Wish::default()).expect("shakes hands");
    assert_eq!(negotiated.offered_features >> 60 & 1, 1);
    assert_eq!(negotiated.offered_protocol_features.undefined(), 1 << 40);
    assert_eq!((negotiated.queues, negotiated.usable_queues()), (Some(9999), 256));
    assert_eq!(negotiated.config, None);
}

#[test]
fn a_disk_without_a_sector_gives_none() {
    let served = served("config_wrong");
    let mut driver = connect(&served).expect("starts");
    assert_eq!(driver.config().capacity, 0);
    assert!(driver.read(1 << 40, &mut [0; 512]).is_err());
}

#[test]
fn garbage_on_the_backends_channel_is_reported() {
    let served = served("channel_garbage");
    let mut frontend = Frontend::connect(&served.socket(), &patience()).expect("connects");
    frontend.handshake(&Wish::default()).expect("shakes hands");
    frontend.open_backend_channel().expect("opens");
    frontend.set_vring_enable(0, true).expect("is done");
    let error = frontend.serve_backend_requests(Duration::from_millis(500)).expect_err("says garbage");
    assert!(error.to_string().contains("own channel"), "{error}");
}

#[test]
fn a_ring_that_is_written_after_it_was_stopped_is_noticed() {
    let served = served("write_after_stop");
    let mut driver = connect(&served).expect("starts");
    driver.read(8, &mut [0; 512]).expect("reads");
    driver.frontend_mut().get_vring_base(0).expect("stops");
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match driver.queues_mut()[0].poll() {
            Ok(None) => assert!(Instant::now() < deadline, "the mock does not write"),
            Ok(Some(done)) => panic!("{done:?} was not requested"),
            Err(FrontendError::Queue { what: QueueError::UsedJump { .. }, .. }) => break,
            Err(other) => panic!("{other}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A mock in another process: this test again, in a process whose environment has the socket.
const CRASHER: &str = "KILN_TEST_CRASHER";
/// Which script it has.
const CRASH_SCRIPT: &str = "KILN_TEST_CRASH_SCRIPT";

#[test]
fn a_backend_that_crashes_is_noticed_at_once() {
    if let Some(socket) = std::env::var_os(CRASHER) {
        let stop = Event::new().expect("an event");
        let name = std::env::var(CRASH_SCRIPT).expect("comes with the socket");
        let mock = Mock::new(disk()).script(&script(&name)).expect("features that there are");
        mock.serve(Path::new(&socket), &stop).expect("serves");
        return;
    }
    for name in ["crash_on_message", "crash_later"] {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("s");
        let test = "misbehave::a_backend_that_crashes_is_noticed_at_once";
        let child = Killed::start(test, &[(CRASHER, &socket), (CRASH_SCRIPT, Path::new(name))]);
        wait_until_it_listens(&socket);
        let session = BlkDriver::connect(&socket, &patience(), &driver_options());
        if name == "crash_on_message" {
            let error = session.expect_err("it crashes");
            assert!(error.is_closed(), "{error}");
        }
        assert_eq!(child.ended().signal(), Some(6), "it was ended by its abort");
        // No process was left to remove it.
        assert!(Listener::bind(&socket).is_ok(), "the socket can be had again");
    }
}

#[test]
fn every_script_is_used_by_a_test() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let entries = std::fs::read_dir(directory).expect("is there");
    let names = entries.map(|entry| entry.expect("is there").path().file_stem().expect("a name").to_owned());
    let names: BTreeSet<_> = names.map(|name| name.into_string().expect("a name")).collect();
    let this = include_str!("misbehave.rs");
    let unused: Vec<_> = names.iter().filter(|name| !this.contains(&format!("\"{name}\""))).collect();
    assert!(unused.is_empty(), "{unused:?}");
}
