//! `--env-file`: variables from a file, in Docker's format.
//!
//! A line is `NAME=VALUE`, `NAME` (this shell's value; skipped if it is not set), empty, or a comment that begins with
//! `#`. Values are taken literally: quotes, escapes and spaces are kept.

use std::ffi::OsStr;
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt};
use std::path::Path;

use kiln_wire::Text;

use crate::failure::{Failure, USAGE};

/// The largest file. A request can't hold more.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads a file of variables.
pub fn read(path: &Path) -> Result<Vec<(Text, Text)>, Failure> {
    let refused = |why: String| Failure::words(USAGE, format!("--env-file `{}`: {why}", path.display()));
    let mut content = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| refused(error.to_string()))?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut content).map_err(|error| refused(error.to_string()))?;
    if content.len() as u64 > FILE_BYTES_MAX {
        return Err(refused(format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    parse(&content, |name| std::env::var_os(OsStr::from_bytes(name)).map(OsStringExt::into_vec))
        .map_err(|line| refused(format!("line {line} has no name: write NAME=VALUE")))
}

/// The variables, or the number of the first line without a name.
fn parse(content: &[u8], shell: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Result<Vec<(Text, Text)>, usize> {
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    let mut variables = Vec::new();
    for (number, line) in content.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let (name, value) = match line.iter().position(|byte| *byte == b'=') {
            Some(at) => (&line[..at], Some(line[at + 1..].to_vec())),
            None => (line, shell(line)),
        };
        if name.is_empty() || name.contains(&b' ') || line.contains(&0) {
            return Err(number + 1);
        }
        variables.extend(value.map(|value| (Text::from(name), Text::from(value))));
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_parsed_like_docker_does() {
        let file = "\u{feff}# comment\n\n  A=1\r\nB= two words # and no comment\nC=\nQUOTED=\"x\"\nSHELL_HAS\nSHELL_LACKS\nD=a=b";
        let shell = |name: &[u8]| (name == b"SHELL_HAS").then(|| b"yes".to_vec());
        let read: Vec<(Text, Text)> = parse(file.as_bytes(), shell).expect("a good file");
        let expected = [
            ("A", "1"),
            ("B", " two words # and no comment"),
            ("C", ""),
            ("QUOTED", "\"x\""),
            ("SHELL_HAS", "yes"),
            ("D", "a=b"),
        ];
        assert_eq!(read, expected.map(|(name, value)| (Text::from(name), Text::from(value))));
    }

    #[test]
    fn a_line_without_a_name_is_named() {
        assert_eq!(parse(b"A=1\n=x\n", |_| None), Err(2));
        assert_eq!(parse(b"export A=1\n", |_| None), Err(1));
        assert_eq!(parse(b"A=\0\n", |_| None), Err(1));
    }
}
