//! Shows the peer's text to people: characters that steer a terminal or are invisible become escapes.
//!
//! A guest chooses the bytes of its console, of its errors and of the names in them. On a terminal, control characters
//! move the cursor and overwrite text, bidirectional marks reverse the order of words, and characters
//! without width hide text from a reader while a program still sees it. [`shown`] prints `\u{202e}` in their place.
//! Everything that prints text of a guest uses [`shown`], or [`is_hidden`] for another form of escape (JSON has
//! `\u202e`), so that there is only one list.

use std::fmt;

/// Text that may come from a guest, safe to print on one line.
///
/// ```
/// use kiln_wire::shown;
/// assert_eq!(shown("a\u{202e}b\u{9b}31m\x1b[2J\n").to_string(), r"a\u{202e}b\u{9b}31m\u{1b}[2J\n");
/// assert_eq!(shown("grün\t日本").to_string(), "grün\t日本");
/// ```
pub const fn shown(text: &str) -> Shown<'_> {
    Shown(text)
}

/// Prints text with escapes; see [`shown`].
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some((start, hidden)) = rest.char_indices().find(|(_, character)| is_hidden(*character)) {
            f.write_str(&rest[..start])?;
            match hidden {
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                other => write!(f, "{}", other.escape_unicode())?,
            }
            rest = &rest[start + hidden.len_utf8()..];
        }
        f.write_str(rest)
    }
}

/// Whether a character steers a terminal, changes the order of the text around it, or is invisible. Tabs are not
/// hidden. Ends of lines are, because a line of a guest must not become two.
///
/// These are the control characters (C0, DEL, C1), Unicode's `Default_Ignorable_Code_Point` (bidirectional marks, zero
/// width, fillers, variation selectors, tags), its separators of lines and paragraphs, and interlinear annotations.
pub const fn is_hidden(character: char) -> bool {
    matches!(character,
        '\0'..='\u{8}' | '\n'..='\u{1f}' | '\u{7f}'..='\u{9f}'
        | '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
        | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_steer_or_hide_are_escaped() {
        let named = [0x202a..=0x202e, 0x2066..=0x2069, 0x200b..=0x200f, 0x61c..=0x61c, 0..=8, 10..=31, 0x7f..=0x9f];
        for character in named.into_iter().flatten().filter_map(char::from_u32) {
            let text = shown(&format!("a{character}b")).to_string();
            assert!(text.is_ascii() && text.starts_with("a\\") && text.ends_with('b'), "{text:?}");
        }
    }

    #[test]
    fn letters_of_every_script_are_unchanged() {
        for text in ["plain", "grün\tß", "日本語", "العربية", "עברית", "ไทย", "e\u{301}", "🦀", "\\u{202e}", "\u{fffd}"]
        {
            assert_eq!(shown(text).to_string(), text);
        }
    }
}
