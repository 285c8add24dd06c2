//! What a copy lacks, by name.

use kiln_wire::{ErrorCode, Fault};

/// Faults that are kept; the count goes on.
const FAULTS_MAX: usize = 256;
/// Their words together.
const WORDS_BYTES_MAX: usize = 64 << 10;

/// What a copy lacks: each by name, until there is no room for more names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LeftOut {
    /// Why, with the name. `not_a_file` is for devices, FIFOs, sockets and mounts; all others could not be read.
    pub faults: Vec<Fault>,
    /// How many more there were.
    pub more: u64,
    words_bytes: usize,
}

impl LeftOut {
    pub(super) fn add(&mut self, fault: Fault) {
        let fits = |left_out: &Self| {
            left_out.faults.len() < FAULTS_MAX && left_out.words_bytes + fault.message.len() <= WORDS_BYTES_MAX
        };
        // What could not be read matters more than what has no content, so that is what stays.
        while !fits(self) && fault.code != ErrorCode::NotAFile {
            let Some(at) = self.faults.iter().position(|kept| kept.code == ErrorCode::NotAFile) else { break };
            self.words_bytes -= self.faults.remove(at).message.len();
            self.more += 1;
        }
        if fits(self) {
            self.words_bytes += fault.message.len();
            self.faults.push(fault);
        } else {
            self.more += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_sockets_do_not_hide_one_file_that_can_not_be_read() {
        let mut left_out = LeftOut::default();
        for number in 0..1000 {
            left_out.add(Fault::new(ErrorCode::NotAFile, format!("{number}{}", "s".repeat(4000))));
        }
        left_out.add(Fault::new(ErrorCode::PermissionDenied, "secret"));
        assert_eq!(left_out.faults.last().map(|fault| fault.message.as_str()), Some("secret"));
        assert_eq!(left_out.faults.len() as u64 + left_out.more, 1001);
        assert!(left_out.words_bytes <= WORDS_BYTES_MAX);
    }
}
