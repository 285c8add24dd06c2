//! What a journal promises.

use proptest::prelude::*;

use super::history::{LINE_BYTES_MAX, parse};
use super::*;
use crate::every_variant::{chains, every_variant};
use crate::vm_dir::{ReopenError, VmId};

fn scratch() -> (tempfile::TempDir, Utf8PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = Utf8PathBuf::try_from(directory.path().join("vm")).expect("UTF-8");
    fs::create_dir(&path).expect("made");
    (directory, path)
}

fn write(directory: &Utf8Path, bytes: impl AsRef<[u8]>) {
    fs::write(directory.join(JOURNAL_FILE), bytes).expect("written");
}

fn states(journal: &Journal) -> Vec<State> {
    journal.history().records.into_iter().map(|record| record.state).collect()
}

fn saving(snapshot: &SnapshotId, then: Then) -> State {
    State::Saving { snapshot: snapshot.clone(), then }
}

#[test]
fn appended_states_survive_a_crash() {
    let (_scratch, path) = scratch();
    let snapshot = SnapshotId::random();
    let life = [
        State::Launching,
        State::Running,
        State::Paused,
        State::Running,
        saving(&snapshot, Then::Stop),
        State::Stopped { snapshot: snapshot.clone() },
        State::Restoring { snapshot: snapshot.clone() },
        State::Lost { reason: "no\nluck".into() },
    ];
    let journal = Journal::create(&path).expect("made");
    let generations = life.iter().cloned().map(|state| journal.append(state).expect("follows"));
    assert_eq!(generations.collect::<Vec<_>>(), (1..=8).collect::<Vec<u64>>());
    let again = Journal::open(&path).expect("opens");
    assert_eq!(states(&again), life);
    assert_eq!(again.history(), journal.history());
    assert_eq!(again.history().own_snapshots(), [snapshot]);
}

#[test]
fn a_torn_last_line_was_never_written() {
    let (_scratch, path) = scratch();
    let journal = Journal::create(&path).expect("made");
    journal.append(State::Launching).expect("follows");
    journal.append(State::Running).expect("follows");
    let whole = fs::read(path.join(JOURNAL_FILE)).expect("reads");
    let first = whole.iter().position(|byte| *byte == b'\n').expect("has lines") + 1;
    for cut in first..whole.len() {
        write(&path, &whole[..cut]);
        let journal = Journal::open(&path).expect("opens");
        assert_eq!(states(&journal), [State::Launching]);
        assert_eq!(journal.append(State::Running).expect("follows"), 2);
        assert_eq!(states(&Journal::open(&path).expect("opens")), [State::Launching, State::Running]);
    }
}

#[test]
fn states_follow_the_drawing_and_no_others_do() {
    let (one, other) = (SnapshotId::random(), SnapshotId::random());
    let stopped = |snapshot: &SnapshotId| State::Stopped { snapshot: snapshot.clone() };
    let restoring = |snapshot: &SnapshotId| State::Restoring { snapshot: snapshot.clone() };
    let lost = || State::Lost { reason: String::new() };
    let legal = [
        (None, State::Launching),
        (None, restoring(&one)),
        (Some(saving(&one, Then::GoOn)), State::Running),
        (Some(saving(&one, Then::Stop)), stopped(&one)),
        (Some(saving(&one, Then::GoOn)), restoring(&one)),
        (Some(stopped(&one)), restoring(&one)),
        (Some(restoring(&one)), stopped(&one)),
        (Some(State::Paused), saving(&one, Then::Stop)),
        (Some(State::Launching), lost()),
        (Some(lost()), stopped(&one)),
    ];
    for (from, to) in legal {
        assert!(follows(from.as_ref(), &to), "{from:?} {to:?}");
    }
    let illegal = [
        (None, State::Running),
        (Some(State::Running), State::Running),
        (Some(State::Running), State::Launching),
        (Some(State::Running), stopped(&one)),
        (Some(State::Launching), saving(&one, Then::Stop)),
        (Some(saving(&one, Then::Stop)), stopped(&other)),
        (Some(saving(&one, Then::Stop)), saving(&other, Then::Stop)),
        (Some(stopped(&one)), State::Running),
        (Some(stopped(&one)), restoring(&other)),
        (Some(restoring(&one)), stopped(&other)),
        (Some(lost()), State::Running),
        (Some(lost()), lost()),
    ];
    for (from, to) in illegal {
        assert!(!follows(from.as_ref(), &to), "{from:?} {to:?}");
    }
}

#[test]
fn a_fork_that_was_not_handed_out_is_being_restored_whatever_its_cpus_do() {
    let (_scratch, path) = scratch();
    let journal = Journal::create(&path).expect("made");
    let snapshot = SnapshotId::random();
    journal.append(State::Restoring { snapshot: snapshot.clone() }).expect("begins");
    for state in [State::Paused, State::Running] {
        assert_eq!(journal.enter(state).expect("is nothing to write down"), 1);
    }
    assert_eq!(states(&journal), [State::Restoring { snapshot }]);
    journal.append(State::Running).expect("is handed out");
    assert_eq!(journal.enter(State::Paused).expect("follows"), 3);
}

#[test]
#[should_panic(expected = "a VM that is running can't become launching")]
fn a_state_that_does_not_follow_is_a_bug() {
    let (_scratch, path) = scratch();
    let journal = Journal::create(&path).expect("made");
    journal.append(State::Launching).expect("follows");
    journal.append(State::Running).expect("follows");
    drop(journal.append(State::Launching));
}

#[test]
fn a_vm_of_many_pauses_has_a_bounded_journal_that_still_names_its_snapshots() {
    let (_scratch, path) = scratch();
    let snapshot = SnapshotId::random();
    let journal = Journal::create(&path).expect("made");
    journal.append(State::Launching).expect("follows");
    journal.append(State::Running).expect("follows");
    journal.append(saving(&snapshot, Then::GoOn)).expect("follows");
    let mut last = 0;
    for _ in 0..5_000 {
        journal.append(State::Running).expect("follows");
        last = journal.append(State::Paused).expect("follows");
    }
    assert_eq!(last, 3 + 10_000);
    assert!(fs::metadata(path.join(JOURNAL_FILE)).expect("there").len() <= JOURNAL_BYTES_MAX + 1024);
    let again = Journal::open(&path).expect("opens");
    assert_eq!(again.last().map(|record| record.generation), Some(last));
    assert_eq!(again.history().own_snapshots(), [snapshot]);
}

#[test]
fn a_reason_of_any_length_fits() {
    let (_scratch, path) = scratch();
    let journal = Journal::create(&path).expect("made");
    journal.append(State::Lost { reason: "\u{1}".repeat(1 << 20) }).expect("follows");
    assert_eq!(Journal::open(&path).expect("opens").history().records.len(), 1);
}

#[test]
fn a_broken_journal_is_refused_and_its_valid_lines_can_be_kept() {
    let good = r#"{"generation":1,"state":"launching","at_unix_ms":0}"#;
    let same = format!("{good}\n{good}\n");
    let last = r#"{"generation":18446744073709551615,"state":"running","at_unix_ms":0}"#;
    let snapshot = r#"{"generation":2,"state":{"stopped":{"snapshot":"../../etc"}},"at_unix_ms":0}"#;
    let long = format!("{good}\n{}\n", "x".repeat(LINE_BYTES_MAX + 1));
    let deep = format!("{good}\n{}\n", "[".repeat(LINE_BYTES_MAX));
    let broken =
        [same, format!("{good}\n{last}\n"), format!("{good}\n{snapshot}\n"), long, deep, format!("{good}\n\0\n")];
    for bytes in broken {
        let (_scratch, path) = scratch();
        write(&path, &bytes);
        let error = Journal::open(&path).expect_err("refused");
        assert!(matches!(&error, JournalError::Broken { problem, .. } if problem.starts_with("line 2")), "{error}");
        let history = History::read(&path).expect("reads");
        assert_eq!(history.records.len(), 1);
        let journal = Journal::repair(&path, history, "broken").expect("repairs");
        assert_eq!(states(&journal), [State::Launching, State::Lost { reason: "broken".into() }]);
        assert_eq!(Journal::open(&path).expect("whole").history(), journal.history());
    }
}

#[test]
fn a_journal_too_long_to_be_ours_is_not_read() {
    let (_scratch, path) = scratch();
    let file = fs::File::create(path.join(JOURNAL_FILE)).expect("made");
    file.file().set_len(1 << 40).expect("sparse");
    let error = Journal::open(&path).expect_err("refused");
    assert!(error.to_string().contains("longer than"), "{error}");
}

proptest! {
    #[test]
    fn no_bytes_make_reading_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let history = parse(&bytes);
        prop_assert!(history.bytes <= bytes.len() as u64);
    }
}

#[test]
fn each_error_of_a_vm_directory_has_its_text() {
    let vm: VmId = "0123456789ab".parse().expect("an id");
    let source = || io::Error::from(io::ErrorKind::PermissionDenied);
    let illegal = || JournalError::Illegal { from: "lost", to: "running" };
    let path = || Utf8PathBuf::from("/vms/0123456789ab");
    let journal = every_variant!(JournalError {
        Illegal: [illegal()],
        Broken: [JournalError::Broken { path: path(), problem: "line 2 is not a state".into() }],
        Io: [JournalError::Io { what: "append to", path: path(), source: source() }],
    });
    let reopen = every_variant!(ReopenError {
        Unknown: [ReopenError::Unknown(vm.clone())],
        Owned: [ReopenError::Owned(vm)],
        Journal: [ReopenError::Journal(illegal())],
        Io: [ReopenError::Io { path: path(), source: source() }],
    });
    let texts = [
        chains(&journal, |error| vec![error.kind().to_string()]),
        chains(&reopen, |error| vec![error.kind().to_string()]),
        "web".parse::<VmId>().expect_err("is not an id").to_string(),
    ];
    insta::assert_snapshot!(texts.join("\n"));
}
