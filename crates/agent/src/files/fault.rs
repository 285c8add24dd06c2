//! Turns errors of the kernel into faults of the protocol: each has a code, and a message with the path.

use std::fmt::Display;
use std::io;

use kiln_wire::{ErrorCode, Fault};
use rustix::io::Errno;

/// The fault for an errno: ``failed to <operation> `<path>`: <text of the errno>``.
pub fn fault_from_errno(path: impl Display, operation: &str, error: impl Into<io::Error>) -> Fault {
    let error = error.into();
    let code = error.raw_os_error().map_or(ErrorCode::Io, |raw| code_of(Errno::from_raw_os_error(raw)));
    Fault::new(code, format!("failed to {operation} `{path}`: {}", text_of(&error, code)))
}

/// The fault for an error of the caller's `Read` or `Write`: the [`Fault`] in the error, if it contains one.
pub(super) fn fault_from_stream(stream: &str, error: io::Error) -> Fault {
    match error.downcast::<Fault>() {
        Ok(fault) => fault,
        Err(error) => Fault::new(ErrorCode::Io, format!("the {stream} failed: {error}")),
    }
}

pub(super) fn invalid(message: impl Into<String>) -> Fault {
    Fault::new(ErrorCode::InvalidRequest, message)
}

fn code_of(errno: Errno) -> ErrorCode {
    match errno {
        Errno::NOENT => ErrorCode::NotFound,
        Errno::EXIST => ErrorCode::AlreadyExists,
        Errno::ACCESS | Errno::PERM => ErrorCode::PermissionDenied,
        Errno::ISDIR => ErrorCode::IsADirectory,
        Errno::NOTDIR => ErrorCode::NotADirectory,
        Errno::NOTEMPTY => ErrorCode::NotEmpty,
        Errno::NOSPC | Errno::DQUOT => ErrorCode::NoSpace,
        Errno::ROFS => ErrorCode::ReadOnly,
        Errno::NAMETOOLONG => ErrorCode::NameTooLong,
        Errno::LOOP => ErrorCode::TooManyLinks,
        Errno::XDEV => ErrorCode::CrossDevice,
        Errno::BUSY | Errno::TXTBSY => ErrorCode::Busy,
        Errno::MFILE | Errno::NFILE => ErrorCode::TooManyFiles,
        Errno::NXIO | Errno::NODEV => ErrorCode::NotAFile,
        Errno::NOSYS | Errno::OPNOTSUPP => ErrorCode::Unsupported,
        _ => ErrorCode::Io,
    }
}

/// The library's text in lower case, with the number only if the code doesn't identify the errno.
fn text_of(error: &io::Error, code: ErrorCode) -> String {
    let text = error.to_string();
    let (sentence, number) = text.split_once(" (os error ").unwrap_or((&text, ""));
    let mut letters = sentence.chars();
    let lower: String = letters.next().into_iter().flat_map(char::to_lowercase).chain(letters).collect();
    match (code, number.trim_end_matches(')')) {
        (ErrorCode::Io, number) if !number.is_empty() => format!("{lower} (errno {number})"),
        _ => lower,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_names_the_path_and_the_operation() {
        let fault = fault_from_errno("/x", "read", Errno::NOENT);
        assert_eq!(fault, Fault::new(ErrorCode::NotFound, "failed to read `/x`: no such file or directory"));
    }

    #[test]
    fn an_errno_without_a_code_is_shown_by_its_number() {
        let fault = fault_from_errno("/x", "read", Errno::NOTTY);
        assert_eq!(fault.code, ErrorCode::Io);
        assert!(fault.message.ends_with("(errno 25)"), "{}", fault.message);
    }

    #[test]
    fn a_fault_in_a_streams_error_is_returned_unchanged() {
        let fault = Fault::new(ErrorCode::Cancelled, "cancelled");
        assert_eq!(fault_from_stream("archive", io::Error::other(fault.clone())), fault);
    }
}
