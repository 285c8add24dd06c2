//! Splits console bytes into lines of text that are safe to store, search and show.
//!
//! A guest writes to its console, and the guest may be hostile or broken: it may never send a newline, send bytes that
//! are not UTF-8, or send sequences that control the terminal on which the log is shown. So lines are bounded, decoded
//! lossily, and stripped of escape sequences and control characters.

use std::borrow::Cow;

/// A row longer than this is returned in pieces of this size.
///
/// The kernel's own records end at about 1 KiB. Rows of programs are often longer.
pub const LINE_BYTES_MAX: usize = 4096;

/// The longest UTF-8 sequence minus one byte: a cut moves back by at most this to avoid splitting a character.
const UTF8_TAIL_BYTES_MAX: usize = 3;

/// Bytes that are compared with CR and LF at once.
const BLOCK_BYTES: usize = 16;

/// Splits console bytes into lines. The result doesn't depend on how the bytes were cut into pieces.
///
/// Both LF and CR end a row, so a progress bar that redraws itself with CR becomes many rows and not one that grows.
/// CRLF, and the CRCRLF that a terminal makes of it, end one row.
///
/// ```
/// let mut lines = kiln_detect::Lines::new();
/// assert_eq!(lines.push(b"\x1b[1mLinux\x1b[0m ver"), Vec::<String>::new());
/// assert_eq!(lines.push(b"sion 6\r\n\r\n# "), ["Linux version 6", ""]);
/// assert_eq!(lines.finish().as_deref(), Some("# "));
/// ```
#[derive(Debug, Default)]
pub struct Lines {
    /// The bytes of the row so far, never more than [`LINE_BYTES_MAX`].
    row: Vec<u8>,
    /// A CR ended the last row. If an LF follows directly, it belongs to the same end.
    ended_by_return: bool,
}

impl Lines {
    /// Starts with an empty row.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes from the console and returns the rows that they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut done = Vec::new();
        self.feed(bytes, |row| done.push(row.into_owned()));
        done
    }

    /// Takes bytes from the console and passes on the rows that they complete. A row that is whole within `bytes` and
    /// has nothing to remove is not copied.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut done: impl FnMut(Cow<'_, str>)) {
        #[cfg(test)]
        if crate::reference::is_enabled() {
            self.push_each(bytes).into_iter().for_each(|row| done(Cow::Owned(row)));
            return;
        }
        let mut rest = bytes;
        while let Some(&first) = rest.first() {
            match first {
                b'\n' | b'\r' => {
                    self.end_row(first, &mut done);
                    rest = &rest[1..];
                }
                _ => {
                    let room = LINE_BYTES_MAX - self.row.len();
                    let taken = text_length(&rest[..rest.len().min(room)]);
                    let (text, after) = rest.split_at(taken);
                    rest = after;
                    self.ended_by_return = false;
                    if let Some(&end) = after.first().filter(|_| self.row.is_empty() && taken < LINE_BYTES_MAX) {
                        done(clean(text));
                        self.ended_by_return = end == b'\r';
                        rest = &after[1..];
                        continue;
                    }
                    self.row.extend_from_slice(text);
                    if self.row.len() == LINE_BYTES_MAX {
                        done(Cow::Owned(self.take_piece()));
                    }
                }
            }
        }
    }

    /// [`push`](Self::push) in its simplest form: byte by byte.
    #[cfg(test)]
    fn push_each(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut done = Vec::new();
        for &byte in bytes {
            match byte {
                b'\n' if self.row.is_empty() && self.ended_by_return => self.ended_by_return = false,
                b'\r' if self.row.is_empty() => {}
                b'\r' | b'\n' => {
                    done.push(clean(&self.row).into_owned());
                    self.row.clear();
                    self.ended_by_return = byte == b'\r';
                }
                _ => {
                    self.ended_by_return = false;
                    self.row.push(byte);
                    if self.row.len() == LINE_BYTES_MAX {
                        done.push(self.take_piece());
                    }
                }
            }
        }
        done
    }

    fn end_row(&mut self, end: u8, done: &mut impl FnMut(Cow<'_, str>)) {
        match end {
            b'\n' if self.row.is_empty() && self.ended_by_return => self.ended_by_return = false,
            b'\r' if self.row.is_empty() => {}
            _ => {
                done(clean(&self.row));
                self.row.clear();
                self.ended_by_return = end == b'\r';
            }
        }
    }

    /// The row that has begun and has no end yet: a prompt, or the last bytes of a machine that is gone. The row stays
    /// open.
    #[must_use]
    pub fn partial(&self) -> Option<String> {
        (!self.row.is_empty()).then(|| clean(&self.row).into_owned())
    }

    /// Call this when the console has closed. Returns the row that has no end, if there is one.
    pub fn finish(&mut self) -> Option<String> {
        let last = self.partial();
        *self = Self::default();
        last
    }

    /// Cuts a full row between two characters. The first bytes of a character that is incomplete stay for the next
    /// piece.
    fn take_piece(&mut self) -> String {
        let cut = (self.row.len() - UTF8_TAIL_BYTES_MAX..self.row.len())
            .find(|&start| character_runs_past(&self.row[start..]))
            .unwrap_or(self.row.len());
        let piece = clean(&self.row[..cut]).into_owned();
        self.row.drain(..cut);
        piece
    }
}

/// The number of bytes before the first CR or LF.
fn text_length(bytes: &[u8]) -> usize {
    let is_end = |byte: &u8| matches!(byte, b'\n' | b'\r');
    // Whole blocks first: the loop over a block has no early exit, so the compiler uses vector instructions.
    let (blocks, _) = bytes.as_chunks::<BLOCK_BYTES>();
    let clear = blocks.iter().take_while(|block| !block.iter().fold(false, |ends, byte| ends | is_end(byte))).count();
    let start = clear * BLOCK_BYTES;
    bytes[start..].iter().position(is_end).map_or(bytes.len(), |end| start + end)
}

/// Whether `bytes` begin with a UTF-8 character that is longer than `bytes`.
fn character_runs_past(bytes: &[u8]) -> bool {
    let needed = match bytes[0] {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => return false,
    };
    needed > bytes.len()
}

/// Decodes a row: bytes that are not UTF-8 become U+FFFD, escape sequences and control characters other than tabs are
/// removed.
fn clean(row: &[u8]) -> Cow<'_, str> {
    let is_plain = row.iter().fold(true, |plain, byte| plain & matches!(byte, b' '..=b'~' | b'\t'));
    if is_plain && let Ok(text) = std::str::from_utf8(row) {
        return Cow::Borrowed(text);
    }
    let text = String::from_utf8_lossy(row);
    if !text.chars().any(|character| character.is_control() && character != '\t') {
        return text;
    }
    let mut kept = String::with_capacity(text.len());
    let mut rest = text.as_ref();
    while let Some(next) = rest.chars().next() {
        let after = &rest[next.len_utf8()..];
        rest = if next == '\x1b' {
            // If a sequence doesn't end within its row, only its ESC is removed. Otherwise a program could begin a
            // sequence and so hide the kernel's message that follows on the row.
            &after[escape_length(after).unwrap_or(0)..]
        } else {
            if !next.is_control() || next == '\t' {
                kept.push(next);
            }
            after
        };
    }
    Cow::Owned(kept)
}

/// The number of bytes after an ESC that belong to its sequence (ECMA-48, and the OSC strings of xterm). `None` if the
/// sequence has no end.
fn escape_length(after: &str) -> Option<usize> {
    match after.as_bytes().first()? {
        b'[' => {
            let is_final = |byte: &u8| (0x40..=0x7E).contains(byte);
            let end = after.bytes().skip(1).position(|byte| is_final(&byte) || !(0x20..=0x3F).contains(&byte))? + 1;
            is_final(&after.as_bytes()[end]).then_some(end + 1)
        }
        b']' | b'P' | b'X' | b'^' | b'_' => {
            let bell = after.find('\x07').map(|end| end + 1);
            let terminator = after.find("\x1b\\").map(|end| end + 2);
            bell.into_iter().chain(terminator).min()
        }
        // Two-byte sequences with an intermediate byte, such as the selection of a character set.
        b' '..=b'/' => (after.len() >= 2 && after.is_char_boundary(2)).then_some(2),
        b'0'..=b'~' => Some(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(bytes: &[u8]) -> Vec<String> {
        let mut lines = Lines::new();
        let mut all = lines.push(bytes);
        all.extend(lines.finish());
        all
    }

    #[test]
    fn each_form_of_row_end_ends_one_row() {
        assert_eq!(lines_of(b"a\nb\r\nc\r\r\nd\re\n\nf"), ["a", "b", "c", "d", "e", "", "f"]);
    }

    #[test]
    fn an_empty_row_is_kept_and_a_doubled_end_is_not() {
        assert_eq!(lines_of(b"\r\n\r\n"), ["", ""]);
        assert_eq!(lines_of(b"a\r\n\r\r\n\nb"), ["a", "", "", "b"]);
        assert_eq!(lines_of(b"\r\r\r"), [""; 0]);
    }

    #[test]
    fn a_row_without_an_end_is_returned_in_pieces_of_the_bound() {
        let mut lines = Lines::new();
        let pieces = lines.push(&vec![b'x'; 3 * LINE_BYTES_MAX + 5]);
        assert_eq!(pieces.iter().map(String::len).collect::<Vec<_>>(), [LINE_BYTES_MAX; 3]);
        assert_eq!(lines.finish().as_deref(), Some("xxxxx"));
    }

    #[test]
    fn a_cut_does_not_split_a_character() {
        let mut row = vec![b'x'; LINE_BYTES_MAX - 2];
        row.extend("€uro".as_bytes());
        let pieces = lines_of(&row);
        assert_eq!(pieces[0].len(), LINE_BYTES_MAX - 2);
        assert_eq!(pieces[1], "€uro");
    }

    #[test]
    fn bytes_that_are_not_utf8_become_replacement_characters() {
        assert_eq!(lines_of(b"a\xff\xfeb\xc3\n"), ["a\u{fffd}\u{fffd}b\u{fffd}"]);
    }

    #[test]
    fn colours_titles_and_cursor_moves_are_removed() {
        assert_eq!(
            lines_of(b"\x1b[1;31mred\x1b[0m \x1b]0;title\x07on \x1b(B\x1b7\x1b[2J\tblue\x1bPx\x1b\\!\n"),
            ["red on \tblue!"]
        );
    }

    #[test]
    fn control_characters_are_removed() {
        assert_eq!(lines_of("a\x08\x07\0\u{9b}31mb\x7f\n".as_bytes()), ["a31mb"]);
    }

    #[test]
    fn a_sequence_without_an_end_does_not_hide_the_rest_of_the_row() {
        assert_eq!(lines_of(b"\x1b]2;[    1.000000] Kernel panic\n"), ["]2;[    1.000000] Kernel panic"]);
        assert_eq!(lines_of(b"\x1b[12\x1b[0m\x1b[\xc3\xa9\x1b\n"), ["[12[\u{e9}"]);
        assert_eq!(lines_of("\x1b(é \x1b".as_bytes()), ["(é "]);
    }

    #[test]
    fn a_row_can_be_read_before_it_ends() {
        let mut lines = Lines::new();
        assert_eq!(lines.partial(), None);
        assert!(lines.push(b"login: ").is_empty());
        assert_eq!(lines.partial().as_deref(), Some("login: "));
        assert_eq!(lines.push(b"root\n"), ["login: root"]);
    }
}
