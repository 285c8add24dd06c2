//! The facts about the VMs of a proof, and how they are parsed from a guest's output.

/// Most lines that are read of a guest's file. A worker does a few rounds each second.
const LINES_MAX: usize = 4096;
/// Most characters that are kept of a guest's value.
const VALUE_CHARS_MAX: usize = 128;

/// All facts of a proof.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The VM that was saved, at that moment.
    pub original: Facts,
    /// Its forks that were started at once and that answered.
    pub forks: Vec<Facts>,
    /// A fork of the same snapshot, started after those had written their files.
    pub later: Option<Facts>,
    /// Forks of forks' snapshots, each with the index of its parent in [`Self::forks`].
    pub children: Vec<(usize, Facts)>,
    /// The name of each fork that did not answer, and why.
    pub silent: Vec<(String, String)>,
}

/// One VM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its name in the report, such as `fork 3`.
    pub who: String,
    /// Its own values, as a command in it printed them.
    pub look: Look,
    /// Its clock compared with the host's.
    pub clock: Clock,
    /// The rounds so far of the worker that was started before the snapshot.
    pub beats: Vec<Beat>,
    /// Numbers that arrived through the connection that was opened before the snapshot.
    pub echoes: Vec<u64>,
    /// The name of the file that only this VM writes.
    pub mark: String,
    /// The names of such files that it has.
    pub marks: Vec<String>,
}

/// Values of a guest.
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
    /// MAC address of its first network card.
    pub mac: String,
    /// Digest of a file that was written and not synced before the snapshot.
    pub unsynced: String,
}

/// One exchange of times, in nanoseconds since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Clock {
    /// The host's, when the fork was requested.
    pub asked: i64,
    /// The host's, before the guest's clock was read.
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
    /// Parses lines of a key and a value.
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

/// Parses the worker's journal, up to the first invalid line. A last line without a newline is still being written and
/// is left out.
pub fn beats(text: &str) -> Vec<Beat> {
    let beat = |line: &str| {
        let mut words = line.split(' ');
        let (pid, number, draw) = (words.next()?, words.next()?, words.next()?);
        Some(Beat { pid: pid.parse().ok()?, number: number.parse().ok()?, draw: draw.into() })
    };
    whole_lines(text).map_while(beat).collect()
}

/// Parses the numbers that arrived through the connection.
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
    fn values_that_a_guest_does_not_print_are_empty() {
        let look = Look::parse("random 00ff\nuuid u-1\nmachine-id\nhostname kiln-7\nnoise\n");
        let expected = Look { random: "00ff".into(), uuid: "u-1".into(), hostname: "kiln-7".into(), ..Look::default() };
        assert_eq!(look, expected);
        assert_eq!(Look::parse(&format!("uuid {}", "x".repeat(1000))).uuid.len(), VALUE_CHARS_MAX);
    }

    #[test]
    fn a_line_that_is_still_being_written_is_left_out() {
        let beat = |number, draw: &str| Beat { pid: 7, number, draw: draw.into() };
        assert_eq!(beats("7 1 a\n7 2 b\n7 3 c"), [beat(1, "a"), beat(2, "b")]);
        assert_eq!(beats("7 1 a\nx\n7 2 b\n"), [beat(1, "a")]);
        assert_eq!(echoes("1\n2\n3"), [1, 2]);
    }
}
