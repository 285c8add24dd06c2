//! Made-up forks with one fault at a time. Each fault fails its check and no other, so every check can fail.

use super::*;
use crate::verify::facts::Look;

const SECOND: i64 = SECOND_NS;
const MS: i64 = SECOND_NS / 1000;
/// Rounds of the worker before the snapshot.
const BEFORE: u64 = 4;

/// A machine whose worker has done `rounds` rounds. Its draws since the snapshot are its own.
fn machine(who: &str, rounds: u64, at: i64) -> Facts {
    let own = |what: &str| format!("{what} of {who}");
    let draw = |number| if number <= BEFORE { format!("draw {number}") } else { format!("draw {number} of {who}") };
    Facts {
        who: who.into(),
        look: Look {
            random: own("random"),
            uuid: own("uuid"),
            machine_id: own("id"),
            boot_id: own("boot"),
            hostname: own("name"),
            mac: own("mac"),
            unsynced: "digest".into(),
        },
        clock: Clock { asked: at - 100 * MS, before: at, guest: at + 2 * MS, after: at + 4 * MS },
        beats: (1..=rounds).map(|number| Beat { pid: 7, number, draw: draw(number) }).collect(),
        echoes: (1..=rounds).collect(),
        mark: format!("mark of {who}"),
        marks: Vec::new(),
    }
}

/// Three forks, a later fork and two children without a fault.
fn good() -> Seen {
    let fork = |number: i64| {
        let fork = machine(&format!("fork {number}"), BEFORE + 3, 1000 * SECOND + number * MS);
        Facts { marks: vec![fork.mark.clone()], ..fork }
    };
    let forks: Vec<Facts> = (1..=3).map(fork).collect();
    let child = |parent: &Facts| {
        let mut child = machine(&format!("the child of {}", parent.who), BEFORE + 6, 1003 * SECOND);
        child.beats[..parent.beats.len()].clone_from_slice(&parent.beats);
        Facts { marks: parent.marks.clone(), ..child }
    };
    Seen {
        original: machine("the original", BEFORE, 999 * SECOND),
        later: Some(machine("the later fork", BEFORE + 3, 1002 * SECOND)),
        children: vec![(0, child(&forks[0])), (1, child(&forks[1]))],
        forks,
        silent: Vec::new(),
    }
}

/// The claims that fail, with their evidence, after `spoil` changed good forks.
fn failed(spoil: impl FnOnce(&mut Seen)) -> Vec<(&'static str, String)> {
    let mut seen = good();
    spoil(&mut seen);
    judge(&seen).into_iter().filter(|check| !check.ok).map(|check| (check.name, check.evidence)).collect()
}

/// Asserts that `spoil` fails only this claim, with `evidence` in its evidence.
#[track_caller]
fn fails(claim: &str, evidence: &str, spoil: impl FnOnce(&mut Seen)) {
    let failed = failed(spoil);
    assert!(matches!(&failed[..], [(name, why)] if *name == claim && why.contains(evidence)), "{failed:?}");
}

#[test]
fn good_forks_pass_every_check() {
    assert_eq!(failed(|_| ()), []);
    assert_eq!(judge(&good()).len(), 17);
}

#[test]
fn no_facts_fail_every_check() {
    let checks = judge(&Seen::default());
    let passed: Vec<_> = checks.iter().filter(|check| check.ok).collect();
    assert!(passed.is_empty(), "{passed:?}");
}

#[test]
fn a_fork_that_does_not_answer_is_named() {
    fails("forks answer", "fork 2: it runs no commands", |seen| {
        seen.silent.push(("fork 2".into(), "it runs no commands".into()));
    });
}

#[test]
fn two_forks_with_the_same_value_fail() {
    let both = "fork 1 and fork 2 both have";
    fails("random bytes differ", both, |seen| seen.forks[1].look.random = seen.forks[0].look.random.clone());
    fails("uuids differ", both, |seen| seen.forks[1].look.uuid = seen.forks[0].look.uuid.clone());
    fails("machine ids differ", both, |seen| seen.forks[1].look.machine_id = seen.forks[0].look.machine_id.clone());
    fails("host names differ", both, |seen| seen.forks[1].look.hostname = seen.forks[0].look.hostname.clone());
    fails("network addresses differ", both, |seen| seen.forks[1].look.mac = seen.forks[0].look.mac.clone());
}

#[test]
fn a_fork_with_a_value_of_its_parent_fails() {
    fails("network addresses differ", "the original and fork 3", |seen| {
        seen.forks[2].look.mac = seen.original.look.mac.clone();
    });
    fails("host names differ", "fork 1 and the child of fork 1", |seen| {
        seen.children[0].1.look.hostname = seen.forks[0].look.hostname.clone();
    });
}

#[test]
fn a_fork_needs_a_machine_id_and_an_original_does_not() {
    assert_eq!(failed(|seen| seen.original.look.machine_id.clear()), []);
    fails("machine ids differ", "fork 2 has no value", |seen| seen.forks[1].look.machine_id.clear());
}

#[test]
fn the_same_draw_in_two_forks_fails_unless_it_is_the_first() {
    let (first, second) = (BEFORE as usize, BEFORE as usize + 1);
    let same = |seen: &mut Seen| later(seen).beats[first].draw = seen.forks[0].beats[first].draw.clone();
    assert_eq!(failed(same), []);
    fails("random draws of a running process differ", "fork 1 and the later fork both", |seen| {
        later(seen).beats[second].draw = seen.forks[0].beats[second].draw.clone();
    });
    let silent = failed(|seen| later(seen).beats.truncate(second));
    assert!(silent.iter().any(|(_, why)| why == "the later fork drew nothing"), "{silent:?}");
}

#[test]
fn a_clock_may_be_off_by_the_bound_and_the_exchange() {
    assert_eq!(failed(|seen| seen.forks[0].clock.guest = seen.forks[0].clock.before - 50 * MS), []);
    assert_eq!(failed(|seen| seen.forks[0].clock.guest = seen.forks[0].clock.after + 50 * MS), []);
    fails("clocks are the host's", "fork 1 is off by -51.0 ms in an exchange of 4.0 ms", |seen| {
        seen.forks[0].clock.guest = seen.forks[0].clock.before - 51 * MS;
    });
    fails("clocks are the host's", "fork 1 is off by 51.0 ms", |seen| {
        seen.forks[0].clock.guest = seen.forks[0].clock.after + 51 * MS;
    });
}

#[test]
fn a_certificate_is_valid_from_the_second_of_its_issue_on() {
    let clock = |asked, guest| Clock { asked, before: guest, guest, after: guest };
    assert_eq!(failed(|seen| seen.forks[0].clock = clock(999 * SECOND + 900 * MS, 999 * SECOND)), []);
    fails("new certificates are valid", "in fork 1 one becomes valid only 1.0 ms later", |seen| {
        seen.forks[0].clock = clock(999 * SECOND, 999 * SECOND - MS);
    });
}

#[test]
fn a_process_that_is_stuck_or_changed_fails() {
    let claim = "a process keeps running";
    fails(claim, "in fork 2 it is stuck: 2 rounds", |seen| {
        seen.forks[1].beats.truncate(BEFORE as usize + 2);
        seen.children.truncate(2);
        seen.children[1].1.beats = seen.forks[1].beats.clone();
        let next = Beat { pid: 7, number: BEFORE + 3, draw: "next".into() };
        seen.children[1].1.beats.push(next);
    });
    fails(claim, "in the later fork its pid is 8, not 7", |seen| later(seen).beats[5].pid = 8);
    fails(claim, "in the later fork it counts 1 instead of 6", |seen| later(seen).beats[5].number = 1);
    fails(claim, "lacks what the process wrote before", |seen| later(seen).beats[0].draw = "another".into());
    assert!(failed(|seen| seen.original.beats.clear()).iter().any(|(name, _)| *name == claim));
}

#[test]
fn a_connection_that_loses_numbers_fails() {
    let claim = "a connection stays open";
    fails(claim, "in the later fork no number arrives", |seen| later(seen).echoes.truncate(BEFORE as usize + 1));
    fails(claim, "in the later fork a number was lost", |seen| {
        later(seen).echoes.remove(BEFORE as usize);
    });
    fails(claim, "in the later fork a number was lost", |seen| later(seen).echoes.clear());
    fails(claim, "no number arrived before", |seen| seen.original.echoes.clear());
}

#[test]
fn an_unsynced_write_that_a_fork_lacks_fails() {
    fails("unsynced writes are in all forks", "in fork 3 its digest is `other`", |seen| {
        seen.forks[2].look.unsynced = "other".into();
    });
}

#[test]
fn a_file_of_another_fork_and_a_lost_file_fail() {
    let claim = "a fork's writes stay its own";
    fails(claim, "fork 3 wrote mark of fork 3 and sees mark of fork 1, mark of fork 3", |seen| {
        seen.forks[2].marks.insert(0, "mark of fork 1".into());
    });
    fails(claim, "fork 3 wrote mark of fork 3 and sees nothing", |seen| seen.forks[2].marks.clear());
}

#[test]
fn a_later_fork_with_a_file_or_an_earlier_time_fails() {
    fails("a later fork has no files of earlier ones", "it sees mark of fork 1", |seen| {
        later(seen).marks.push("mark of fork 1".into());
    });
    fails("a later fork has the later time", "it is 1.0 ms behind fork 3", |seen| {
        let guest = seen.forks[2].clock.guest - MS;
        later(seen).clock = Clock { asked: guest, before: guest, guest, after: guest };
    });
}

#[test]
fn mixed_snapshots_of_two_forks_fail() {
    let claim = "snapshots of forks do not mix";
    fails(claim, "the child of fork 2 has mark of fork 1, not mark of fork 2", |seen| {
        seen.children[1].1.marks = seen.forks[0].marks.clone();
    });
    fails(claim, "in the child of fork 2 the process does not continue from fork 2", |seen| {
        seen.children[1].1.beats = seen.children[0].1.beats.clone();
    });
    fails(claim, "only 1 to compare", |seen| seen.children.truncate(1));
}

fn later(seen: &mut Seen) -> &mut Facts {
    seen.later.as_mut().expect("good forks have a later fork")
}
