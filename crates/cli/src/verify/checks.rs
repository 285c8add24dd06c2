//! Judges what was seen of an original and its forks. Nothing here touches a VM.
//!
//! Each check is one thing that a user relies on. Whoever did not answer fails the first check; the others judge those who
//! did, and fail where there are too few of them to show anything.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::facts::{Beat, Clock, Facts, Seen};

/// How far a guest's clock may be from the host's, beyond what the exchange itself leaves open.
pub const CLOCK_BOUND: Duration = Duration::from_millis(50);
/// Beats that a worker must have done in a fork. The first is not judged: its draw may have been on the way from the
/// kernel to the journal when the snapshot was taken, and is the same in all forks then.
pub const BEATS_MIN: usize = 3;
/// Numbers that must have come through the connection in a fork: one may have been on its way.
const ECHOES_MIN: usize = 2;
/// Characters of a value that evidence shows: a host name and an address whole.
const SHOWN_CHARS: usize = 24;
const SECOND_NS: i64 = 1_000_000_000;

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The claim.
    pub name: &'static str,
    /// Whether it holds.
    pub ok: bool,
    /// What was seen, in short.
    pub evidence: String,
}

/// Judges all there is to judge.
pub fn judge(seen: &Seen) -> Vec<Check> {
    let everybody: Vec<&Facts> = seen.all().collect();
    let differ = |value: fn(&Facts) -> &str| {
        let original = std::iter::once(&seen.original).filter(|facts| !value(facts).is_empty());
        no_two_the_same(original.chain(seen.all()).map(|facts| (facts.who.as_str(), value(facts))))
    };
    let outcomes = [
        ("forks answer", answer(seen)),
        ("random bytes differ", differ(|facts| &facts.look.random)),
        ("uuids differ", differ(|facts| &facts.look.uuid)),
        ("random draws of a process that goes on differ", draws(seen)),
        ("machine ids differ", differ(|facts| &facts.look.machine_id)),
        ("boot ids differ", differ(|facts| &facts.look.boot_id)),
        ("host names differ", differ(|facts| &facts.look.hostname)),
        ("network addresses differ", differ(|facts| &facts.look.mac)),
        ("clocks are the host's", clocks(&everybody)),
        ("certificates of now are valid", certificates(&everybody)),
        ("a process goes on", process(seen)),
        ("a connection goes on", connection(seen)),
        ("unsynced writes are in all forks", unsynced(seen, &everybody)),
        ("a fork's writes stay its own", own_marks(&seen.forks)),
        ("a later fork starts clean", later_is_clean(seen)),
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

    /// Those whose snapshot is the original's.
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
            return Err(format!("{who} has none"));
        }
        if let Some(other) = owners.insert(value, who) {
            return Err(format!("{other} and {who} both have {}", short(value)));
        }
    }
    let shown: Vec<_> = owners.keys().take(2).map(|value| short(value)).collect();
    match owners.len() {
        0 | 1 => Err(format!("only {} to compare", owners.len())),
        count => Ok(format!("{count} of {count}, as {}", shown.join(" and "))),
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

fn clocks(everybody: &[&Facts]) -> Outcome {
    let bound = i64::try_from(CLOCK_BOUND.as_nanos()).expect("fits");
    let error = |facts: &Facts| {
        let Clock { before, guest, after, .. } = facts.clock;
        // Zero where the guest's time is one at which it may have answered.
        if guest < before { guest.saturating_sub(before) } else { guest.saturating_sub(after).max(0) }
    };
    let worst = everybody.iter().max_by_key(|facts| error(facts).saturating_abs()).ok_or("nobody to ask")?;
    let slack = worst.clock.after.saturating_sub(worst.clock.before);
    let words = format!("{} is off by {} in an exchange of {}", worst.who, ms(error(worst)), ms(slack));
    if error(worst).saturating_abs() <= bound { Ok(format!("at most: {words}")) } else { Err(words) }
}

/// A certificate that the host issues names the second of its issue as the first of its life.
fn certificates(everybody: &[&Facts]) -> Outcome {
    let early = |facts: &&&Facts| facts.clock.guest / SECOND_NS < facts.clock.asked / SECOND_NS;
    match everybody.iter().find(early) {
        _ if everybody.is_empty() => Err("nobody to ask".into()),
        None => Ok("issued as the fork was asked for, they are not before their time".into()),
        Some(facts) => {
            let lag = ms(facts.clock.asked.saturating_sub(facts.clock.guest));
            Err(format!("in {} it is {lag} before their time", facts.who))
        }
    }
}

fn process(seen: &Seen) -> Outcome {
    let before = &seen.original.beats;
    let Some(Beat { pid, .. }) = before.first() else { return Err("it did not run before the snapshot".into()) };
    let mut least = usize::MAX;
    for fork in seen.of_original() {
        let Facts { who, beats, .. } = fork;
        if !beats.starts_with(before) {
            return Err(format!("{who} does not have what it did before the snapshot"));
        }
        if let Some(other) = beats.iter().find(|beat| beat.pid != *pid) {
            return Err(format!("in {who} its pid is {}, not {pid}", other.pid));
        }
        if let Some(gap) = beats.iter().zip(1..).find(|(beat, number)| beat.number != *number) {
            return Err(format!("in {who} it counts {} where {} comes next", gap.0.number, gap.1));
        }
        let more = beats.len() - before.len();
        if more < BEATS_MIN {
            return Err(format!("in {who} it stands still: {more} rounds since the snapshot"));
        }
        least = least.min(more);
    }
    match least {
        usize::MAX => Err("nobody to ask".into()),
        least => Ok(format!("pid {pid} counted to {} before, and at least {least} further in each", before.len())),
    }
}

fn connection(seen: &Seen) -> Outcome {
    let before = &seen.original.echoes;
    if before.is_empty() {
        return Err("nothing came through it before the snapshot".into());
    }
    let mut least = usize::MAX;
    for Facts { who, echoes, .. } in seen.of_original() {
        if !echoes.starts_with(before) || !echoes.iter().copied().eq(1..=echoes.len() as u64) {
            return Err(format!("in {who} something was lost on it"));
        }
        let more = echoes.len() - before.len();
        if more < ECHOES_MIN {
            return Err(format!("in {who} nothing comes through it"));
        }
        least = least.min(more);
    }
    match least {
        usize::MAX => Err("nobody to ask".into()),
        least => Ok(format!("{} numbers came before, and at least {least} more in each", before.len())),
    }
}

fn unsynced(seen: &Seen, everybody: &[&Facts]) -> Outcome {
    let wanted = &seen.original.look.unsynced;
    if wanted.is_empty() || everybody.is_empty() {
        return Err("nothing to compare".into());
    }
    match everybody.iter().find(|facts| facts.look.unsynced != *wanted) {
        None => Ok(format!("{} have a file with the digest {}", everybody.len(), short(wanted))),
        Some(Facts { who, look, .. }) => {
            Err(format!("in {who} its digest is `{}`, not {}", short(&look.unsynced), short(wanted)))
        }
    }
}

fn own_marks(forks: &[Facts]) -> Outcome {
    match forks.iter().find(|fork| fork.marks != [fork.mark.as_str()]) {
        _ if forks.len() < 2 => Err(format!("only {} to compare", forks.len())),
        None => Ok(format!("{} wrote a file each, and see that one alone", forks.len())),
        Some(Facts { who, mark, marks, .. }) => Err(format!("{who} wrote {mark} and sees {}", listed(marks))),
    }
}

fn later_is_clean(seen: &Seen) -> Outcome {
    match &seen.later {
        None => Err("it did not answer".into()),
        Some(later) if later.marks.is_empty() => Ok("it has no file of the forks before it".into()),
        Some(later) => Err(format!("it sees {}", listed(&later.marks))),
    }
}

fn later_time(seen: &Seen) -> Outcome {
    let later = seen.later.as_ref().ok_or("it did not answer")?;
    let latest = seen.forks.iter().max_by_key(|fork| fork.clock.guest).ok_or("nobody to compare it with")?;
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
            return Err(format!("in {} the process does not go on from where {} was", child.who, parent.who));
        }
    }
    Ok(format!("{} were saved and restored, each with its own file and process", seen.children.len()))
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
