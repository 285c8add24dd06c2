//! Whether a text has any of a few words, in one pass.

use aho_corasick::{AhoCorasick, packed};

/// A set of words to look for.
#[derive(Debug)]
pub(crate) struct Words {
    /// Compares 16 or 32 bytes at once. Not every CPU can do that, and it takes few words only.
    packed: Option<packed::Searcher>,
    automaton: AhoCorasick,
}

impl Words {
    pub(crate) fn new<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        let words: Vec<_> = words.into_iter().collect();
        let packed = packed::Searcher::new(&words);
        Self { packed, automaton: AhoCorasick::new(&words).expect("the sets are small") }
    }

    /// Whether one of the words is in `text`.
    pub(crate) fn are_in(&self, text: &str) -> bool {
        match &self.packed {
            Some(packed) => packed.find(text).is_some(),
            None => self.automaton.is_match(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_searches_find_the_same() {
        let words = Words::new(["BUG", "WARNING:", "Kernel panic", " backtrace"]);
        let only = Words { packed: None, ..Words::new(["BUG", "WARNING:", "Kernel panic", " backtrace"]) };
        for text in
            ["", "BU", "BUG", "x BUG", "WARNING", "a long text without any of them, and more", " a stack backtrace:"]
        {
            for text in [text.to_owned(), format!("{text}{}", "x".repeat(70)), format!("{}{text}", "x".repeat(70))] {
                assert_eq!(words.are_in(&text), only.are_in(&text), "{text}");
            }
        }
    }
}
