//! Judges the facts about an original VM and its forks. Nothing here touches a VM.
//!
//! Each check is one thing that a user relies on. A fork that did not answer fails the first check. The other checks
//! judge the forks that did, and fail if there are too few to compare.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::facts::{Beat, Clock, Facts, Seen};

/// How far a guest's clock may be from the host's, in addition to the uncertainty of the exchange itself.
pub const CLOCK_BOUND: Duration = Duration::from_millis(50);
/// Rounds that the worker must have done in a fork.
///
/// The first round is not judged. When the snapshot was taken, the worker may have read a random value that it had not
/// written to its journal yet. All forks then write the same value, and rightly so: it was drawn before the fork. The
/// next draw is the first that must differ.
pub const BEATS_MIN: usize = 3;
/// Numbers that must have arrived through the connection in a fork. One of them may have been sent before the snapshot.
const ECHOES_MIN: usize = 2;
/// Most characters of a value that evidence shows. Host names and addresses are shorter.
const SHOWN_CHARS: usize = 24;
const SECOND_NS: i64 = 1_000_000_000;

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What is claimed.
    pub name: &'static str,
    /// Whether the claim holds.
    pub ok: bool,
    /// The facts for or against it, in short.
    pub evidence: String,
}

/// Makes all checks.
pub fn judge(seen: &Seen) -> Vec<Check> {
    let all: Vec<&Facts> = seen.all().collect();
    let differ = |value: fn(&Facts) -> &str| {
        let original = std::iter::once(&seen.original).filter(|facts| !value(facts).is_empty());
        no_two_the_same(original.chain(seen.all()).map(|facts| (facts.who.as_str(), value(facts))))
    };
    let outcomes = [
        ("forks answer", answer(seen)),
        ("random bytes differ", differ(|facts| &facts.look.random)),
        ("uuids differ", differ(|facts| &facts.look.uuid)),
        ("random draws of a running process differ", draws(seen)),
        ("machine ids differ", differ(|facts| &facts.look.machine_id)),
        ("boot ids differ", differ(|facts| &facts.look.boot_id)),
        ("host names differ", differ(|facts| &facts.look.hostname)),
        ("network addresses differ", differ(|facts| &facts.look.mac)),
        ("clocks are the host's", clocks(&all)),
        ("new certificates are valid", certificates(&all)),
        ("a process keeps running", process(seen)),
        ("a connection stays open", connection(seen)),
        ("unsynced writes are in all forks", unsynced(seen, &all)),
        ("a fork's writes stay its own", own_marks(&seen.forks)),
        ("a later fork has no files of earlier ones", later_is_clean(seen)),
        ("a later fork has the later time", later_time(seen)),
        ("snapshots of forks do not mix", pairing(seen)),
    ];
    let check = |(name, outcome): (_, Outcome)| {
        let ok = outcome.is_ok();
        Check { name, ok, evidence: outcome.unwrap_or_else(|why| why) }
    };
    outcomes.into_iter().map(check).collect()
}

/// Evidence for or against.
type Outcome = Result<String, String>;

impl Seen {
    /// Every fork that answered.
    fn all(&self) -> impl Iterator<Item = &Facts> {
        self.forks.iter().chain(&self.later).chain(self.children.iter().map(|(_, child)| child))
    }

    /// The forks of the original's snapshot.
    fn of_original(&self) -> impl Iterator<Item = &Facts> {
        self.forks.iter().chain(&self.later)
    }
}

fn answer(seen: &Seen) -> Outcome {
    match seen.silent.first() {
        Some((who, why)) => Err(format!("{who}: {why}")),
        None if seen.forks.len() < 2 => Err(format!("only {} to compare", seen.forks.len())),
        None => Ok(format!("{} at once, and {} more", seen.forks.len(), seen.all().count() - seen.forks.len())),
    }
}

fn no_two_the_same<'a>(values: impl Iterator<Item = (&'a str, &'a str)>) -> Outcome {
    let mut owners = BTreeMap::new();
    for (who, value) in values {
        if value.is_empty() {
            return Err(format!("{who} has no value"));
        }
        if let Some(other) = owners.insert(value, who) {
            return Err(format!("{other} and {who} both have {}", short(value)));
        }
    }
    let shown: Vec<_> = owners.keys().take(2).map(|value| short(value)).collect();
    match owners.len() {
        0 | 1 => Err(format!("only {} to compare", owners.len())),
        count => Ok(format!("{count} of {count}, such as {}", shown.join(" and "))),
    }
}

fn draws(seen: &Seen) -> Outcome {
    let judged = seen.original.beats.len() + 1;
    let mut all = Vec::new();
    for fork in seen.of_original() {
        let own = fork.beats.get(judged..).unwrap_or_default();
        if own.is_empty() {
            return Err(format!("{} drew nothing", fork.who));
        }
        all.extend(own.iter().map(|beat| (fork.who.as_str(), beat.draw.as_str())));
    }
    no_two_the_same(all.into_iter())
}

fn clocks(all: &[&Facts]) -> Outcome {
    let bound = i64::try_from(CLOCK_BOUND.as_nanos()).expect("fits");
    let error = |facts: &Facts| {
        let Clock { before, guest, after, .. } = facts.clock;
        // Zero if the guest's time lies within the exchange: it may have read its clock at any moment of it.
        if guest < before { guest.saturating_sub(before) } else { guest.saturating_sub(after).max(0) }
    };
    let worst = all.iter().max_by_key(|facts| error(facts).saturating_abs()).ok_or("no fork answered")?;
    let slack = worst.clock.after.saturating_sub(worst.clock.before);
    let evidence = format!("{} is off by {} in an exchange of {}", worst.who, ms(error(worst)), ms(slack));
    if error(worst).saturating_abs() <= bound { Ok(format!("at most: {evidence}")) } else { Err(evidence) }
}

/// A certificate that the host issues is valid from the second of its issue on. A guest whose clock is behind that
/// rejects it.
fn certificates(all: &[&Facts]) -> Outcome {
    let early = |facts: &&&Facts| facts.clock.guest / SECOND_NS < facts.clock.asked / SECOND_NS;
    match all.iter().find(early) {
        _ if all.is_empty() => Err("no fork answered".into()),
        None => Ok("a certificate issued at the start of a fork is valid in it".into()),
        Some(facts) => {
            let lag = ms(facts.clock.asked.saturating_sub(facts.clock.guest));
            Err(format!("in {} one becomes valid only {lag} later", facts.who))
        }
    }
}

fn process(seen: &Seen) -> Outcome {
    let before = &seen.original.beats;
    let Some(Beat { pid, .. }) = before.first() else {
        return Err("the process did not run before the snapshot".into());
    };
    let mut least = usize::MAX;
    for fork in seen.of_original() {
        let Facts { who, beats, .. } = fork;
        if !beats.starts_with(before) {
            return Err(format!("{who} lacks what the process wrote before the snapshot"));
        }
        if let Some(other) = beats.iter().find(|beat| beat.pid != *pid) {
            return Err(format!("in {who} its pid is {}, not {pid}", other.pid));
        }
        if let Some(gap) = beats.iter().zip(1..).find(|(beat, number)| beat.number != *number) {
            return Err(format!("in {who} it counts {} instead of {}", gap.0.number, gap.1));
        }
        let more = beats.len() - before.len();
        if more < BEATS_MIN {
            return Err(format!("in {who} it is stuck: {more} rounds since the snapshot"));
        }
        least = least.min(more);
    }
    match least {
        usize::MAX => Err("no fork answered".into()),
        least => Ok(format!(
            "pid {pid} counted to {} before the snapshot, and at least {least} further in each fork",
            before.len()
        )),
    }
}

fn connection(seen: &Seen) -> Outcome {
    let before = &seen.original.echoes;
    if before.is_empty() {
        return Err("no number arrived before the snapshot".into());
    }
    let mut least = usize::MAX;
    for Facts { who, echoes, .. } in seen.of_original() {
        if !echoes.starts_with(before) || !echoes.iter().copied().eq(1..=echoes.len() as u64) {
            return Err(format!("in {who} a number was lost"));
        }
        let more = echoes.len() - before.len();
        if more < ECHOES_MIN {
            return Err(format!("in {who} no number arrives"));
        }
        least = least.min(more);
    }
    match least {
        usize::MAX => Err("no fork answered".into()),
        least => {
            Ok(format!("{} numbers arrived before the snapshot, and at least {least} more in each fork", before.len()))
        }
    }
}

fn unsynced(seen: &Seen, all: &[&Facts]) -> Outcome {
    let wanted = &seen.original.look.unsynced;
    if wanted.is_empty() || all.is_empty() {
        return Err("nothing to compare".into());
    }
    match all.iter().find(|facts| facts.look.unsynced != *wanted) {
        None => Ok(format!("{} forks have a file with the digest {}", all.len(), short(wanted))),
        Some(Facts { who, look, .. }) => {
            Err(format!("in {who} its digest is `{}`, not {}", short(&look.unsynced), short(wanted)))
        }
    }
}

fn own_marks(forks: &[Facts]) -> Outcome {
    match forks.iter().find(|fork| fork.marks != [fork.mark.as_str()]) {
        _ if forks.len() < 2 => Err(format!("only {} to compare", forks.len())),
        None => Ok(format!("each of {} forks sees only the file that it wrote", forks.len())),
        Some(Facts { who, mark, marks, .. }) => Err(format!("{who} wrote {mark} and sees {}", listed(marks))),
    }
}

fn later_is_clean(seen: &Seen) -> Outcome {
    match &seen.later {
        None => Err("the later fork did not answer".into()),
        Some(later) if later.marks.is_empty() => Ok("the later fork has no file of an earlier one".into()),
        Some(later) => Err(format!("it sees {}", listed(&later.marks))),
    }
}

fn later_time(seen: &Seen) -> Outcome {
    let later = seen.later.as_ref().ok_or("the later fork did not answer")?;
    let latest = seen.forks.iter().max_by_key(|fork| fork.clock.guest).ok_or("no fork to compare it with")?;
    let ahead = later.clock.guest.saturating_sub(latest.clock.guest);
    if ahead > 0 {
        Ok(format!("it is {} ahead of {}", ms(ahead), latest.who))
    } else {
        Err(format!("it is {} behind {}", ms(ahead.saturating_neg()), latest.who))
    }
}

fn pairing(seen: &Seen) -> Outcome {
    if seen.children.len() < 2 {
        return Err(format!("only {} to compare", seen.children.len()));
    }
    for (parent, child) in &seen.children {
        let parent = seen.forks.get(*parent).ok_or("its parent did not answer")?;
        if child.marks != [parent.mark.as_str()] {
            return Err(format!("{} has {}, not {}", child.who, listed(&child.marks), parent.mark));
        }
        if !child.beats.starts_with(&parent.beats) || child.beats.len() <= parent.beats.len() {
            return Err(format!("in {} the process does not continue from {}", child.who, parent.who));
        }
    }
    Ok(format!("{} forks were saved and forked again, each with its own file and process", seen.children.len()))
}

fn listed(marks: &[String]) -> String {
    if marks.is_empty() { "nothing".into() } else { marks.join(", ") }
}

fn short(value: &str) -> String {
    match value.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => value.into(),
    }
}

fn ms(nanoseconds: i64) -> String {
    format!("{:.1} ms", nanoseconds as f64 / 1e6)
}

#[cfg(test)]
mod tests;
