//! The files that a copy lacks.

use kiln_wire::{ErrorCode, Fault};

/// Faults that are kept. Further ones are only counted.
const FAULTS_MAX: usize = 256;
/// Bytes of their messages together.
const MESSAGES_BYTES_MAX: usize = 64 << 10;

/// The files that a copy lacks. Each is named, until there is no room for more names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LeftOut {
    /// The reasons, with the names. `not_a_file` is for devices, FIFOs, sockets and mounts; all others could not be
    /// read.
    pub faults: Vec<Fault>,
    /// The number of further files.
    pub more: u64,
    messages_bytes: usize,
}

impl LeftOut {
    pub(super) fn add(&mut self, fault: Fault) {
        let fits = |left_out: &Self| {
            left_out.faults.len() < FAULTS_MAX && left_out.messages_bytes + fault.message.len() <= MESSAGES_BYTES_MAX
        };
        // A file that could not be read is more important than one that has no content, so it replaces one of those.
        while !fits(self) && fault.code != ErrorCode::NotAFile {
            let Some(at) = self.faults.iter().position(|kept| kept.code == ErrorCode::NotAFile) else { break };
            self.messages_bytes -= self.faults.remove(at).message.len();
            self.more += 1;
        }
        if fits(self) {
            self.messages_bytes += fault.message.len();
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
    fn an_unreadable_file_is_named_after_a_thousand_sockets() {
        let mut left_out = LeftOut::default();
        for number in 0..1000 {
            left_out.add(Fault::new(ErrorCode::NotAFile, format!("{number}{}", "s".repeat(4000))));
        }
        left_out.add(Fault::new(ErrorCode::PermissionDenied, "secret"));
        assert_eq!(left_out.faults.last().map(|fault| fault.message.as_str()), Some("secret"));
        assert_eq!(left_out.faults.len() as u64 + left_out.more, 1001);
        assert!(left_out.messages_bytes <= MESSAGES_BYTES_MAX);
    }
}
