//! What is seen of the machines that take part in a proof, and how it is read from what a guest says.

/// Lines that a guest's files are read for; a worker beats a few times each second.
const LINES_MAX: usize = 4096;
/// Longest value that is kept of a guest's answer.
const VALUE_CHARS_MAX: usize = 128;

/// All that a proof has seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The VM that was saved, as it was then.
    pub original: Facts,
    /// Its forks, made at once; those that answered.
    pub forks: Vec<Facts>,
    /// A fork of the same snapshot, made when those had written their files.
    pub later: Option<Facts>,
    /// Forks of snapshots of forks, each with the place of its parent in [`Self::forks`].
    pub children: Vec<(usize, Facts)>,
    /// Who did not answer, and why.
    pub silent: Vec<(String, String)>,
}

/// One machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// For people: `fork 3`.
    pub who: String,
    /// What it says of itself.
    pub look: Look,
    /// Its clock beside the host's.
    pub clock: Clock,
    /// What the worker that was started before the snapshot has done so far.
    pub beats: Vec<Beat>,
    /// Numbers that have come through the connection that was opened before the snapshot.
    pub echoes: Vec<u64>,
    /// The file that it writes, and nobody else.
    pub mark: String,
    /// Such files that it has.
    pub marks: Vec<String>,
}

/// What a command in a guest says of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// Bytes of `/dev/urandom`, in hexadecimal digits.
    pub random: String,
    /// A fresh UUID of the kernel.
    pub uuid: String,
    pub machine_id: String,
    /// The boot id that programs read.
    pub boot_id: String,
    pub hostname: String,
    /// Address of its first network card.
    pub mac: String,
    /// Digest of a file that was written and not synced before the snapshot.
    pub unsynced: String,
}

/// One exchange of times, in nanoseconds since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Clock {
    /// The host's, when the fork was asked for.
    pub asked: i64,
    /// The host's, before the guest was asked.
    pub before: i64,
    /// The guest's.
    pub guest: i64,
    /// The host's, when the guest had answered.
    pub after: i64,
}

/// One round of the worker's loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// The worker's process.
    pub pid: u32,
    /// From 1, kept in the worker's memory.
    pub number: u64,
    /// A random UUID that it drew.
    pub draw: String,
}

impl Look {
    /// Reads lines of a key and a value.
    pub fn parse(text: &str) -> Self {
        let value = |key: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
            found.unwrap_or_default().trim().chars().take(VALUE_CHARS_MAX).collect()
        };
        Self {
            random: value("random"),
            uuid: value("uuid"),
            machine_id: value("machine-id"),
            boot_id: value("boot-id"),
            hostname: value("hostname"),
            mac: value("mac"),
            unsynced: value("unsynced"),
        }
    }
}

/// Reads the worker's journal. A last line that is still being written is left out; any other that is none ends it.
pub fn beats(text: &str) -> Vec<Beat> {
    let beat = |line: &str| {
        let mut words = line.split(' ');
        let (pid, number, draw) = (words.next()?, words.next()?, words.next()?);
        Some(Beat { pid: pid.parse().ok()?, number: number.parse().ok()?, draw: draw.into() })
    };
    whole_lines(text).map_while(beat).collect()
}

/// Reads the numbers that have come through the connection.
pub fn echoes(text: &str) -> Vec<u64> {
    whole_lines(text).map_while(|line| line.parse().ok()).collect()
}

fn whole_lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).take(LINES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_read_line_by_line_and_what_is_missing_is_empty() {
        let look = Look::parse("random 00ff\nuuid u-1\nmachine-id\nhostname kiln-7\nnoise\n");
        let expected = Look { random: "00ff".into(), uuid: "u-1".into(), hostname: "kiln-7".into(), ..Look::default() };
        assert_eq!(look, expected);
        assert_eq!(Look::parse(&format!("uuid {}", "x".repeat(1000))).uuid.len(), VALUE_CHARS_MAX);
    }

    #[test]
    fn a_line_that_is_still_being_written_is_no_beat() {
        let beat = |number, draw: &str| Beat { pid: 7, number, draw: draw.into() };
        assert_eq!(beats("7 1 a\n7 2 b\n7 3 c"), [beat(1, "a"), beat(2, "b")]);
        assert_eq!(beats("7 1 a\nx\n7 2 b\n"), [beat(1, "a")]);
        assert_eq!(echoes("1\n2\n3"), [1, 2]);
    }
}
