//! Headings of reports: literal text with holes, matched without backtracking.
//!
//! `"^INFO: task {} blocked for more than {} second"`: a `^` requires the start of the message, `{}` matches any text,
//! `{fn}` matches any text too, which then is the name of the function to blame. A hole takes as little text as
//! possible; a hole at the end takes the rest of the line.

use aho_corasick::AhoCorasick;

/// The text in a heading's holes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holes<'a> {
    /// The text in each `{}`, in order.
    pub(crate) texts: Vec<&'a str>,
    /// The text in `{fn}`: a name with an offset, possibly with more text around it.
    pub(crate) function: Option<&'a str>,
}

/// The text of a kernel line, with the two places where an anchored pattern may begin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text<'a> {
    whole: &'a str,
    start: &'a str,
    after_subsystem: Option<&'a str>,
}

impl<'a> Text<'a> {
    pub(crate) fn new(whole: &'a str) -> Self {
        // Headings of an old lockdep are in brackets: `[ INFO: possible recursive locking detected ]`.
        let start = whole.trim_start().trim_start_matches("[ ");
        Self { whole, start, after_subsystem: without_subsystem(start) }
    }

    /// Matches the text with one pattern.
    pub(crate) fn find(&self, pattern: &str) -> Option<Holes<'a>> {
        if let Some(anchored) = pattern.strip_prefix('^') {
            return fill(anchored, self.start).or_else(|| fill(anchored, self.after_subsystem?));
        }
        let first = pattern.split('{').next().unwrap_or(pattern);
        fill(pattern, &self.whole[self.whole.find(first)?..])
    }

    /// The first pattern of a table that matches: its index, and the text in its holes.
    pub(crate) fn first_of(&self, table: &Table) -> Option<(usize, Holes<'a>)> {
        #[cfg(test)]
        if crate::reference::is_enabled() {
            return table.patterns.iter().enumerate().find_map(|(index, pattern)| Some((index, self.find(pattern)?)));
        }
        table
            .candidates(self)
            .into_iter()
            .find_map(|index| self.find(table.patterns[index]).map(|holes| (index, holes)))
    }

    /// Whether any of `patterns` matches.
    pub(crate) fn is_any(&self, patterns: &[&str]) -> bool {
        patterns.iter().any(|pattern| self.find(pattern).is_some())
    }
}

/// Patterns in their order, with a filter that selects the few that a text can match.
///
/// Most lines of a log match nothing. One pass over the text finds which patterns have a literal in it, regardless of
/// the number of patterns. No match is lost: all places where a match may be are parts of the whole text, and a match
/// contains every literal of its pattern, so the whole text contains the literal.
///
/// The selected patterns are then matched in the order of the table, so the first match is the same as without the
/// filter. The tests in `reference` compare both ways on every fixture and on random mixes of headings.
#[derive(Debug)]
pub(crate) struct Table {
    patterns: Vec<&'static str>,
    /// Finds whether a text has any of the literals. It skips ahead faster than `literals` can, but doesn't find all.
    any: AhoCorasick,
    /// A literal of each pattern, with the index of the pattern.
    literals: AhoCorasick,
}

impl Table {
    /// Takes patterns in the order in which they are tried.
    pub(crate) fn new(patterns: impl IntoIterator<Item = &'static str>) -> Self {
        let patterns: Vec<_> = patterns.into_iter().collect();
        let needles: Vec<_> = patterns.iter().map(|pattern| needle(pattern)).collect();
        // Text with `kernel BUG at mm/` has `kernel BUG at ` too, so the shorter literal is enough.
        let has_shorter =
            |needle: &str| needles.iter().any(|other| other.len() < needle.len() && needle.contains(other));
        let mut shortest: Vec<_> = needles.iter().copied().filter(|needle| !has_shorter(needle)).collect();
        shortest.sort_unstable();
        shortest.dedup();
        let build = |needles: &[&str]| AhoCorasick::new(needles).expect("the tables are small");
        Self { any: build(&shortest), literals: build(&needles), patterns }
    }

    /// Whether a text can match any pattern.
    pub(crate) fn may_match(&self, text: &str) -> bool {
        self.any.is_match(text)
    }

    /// The indices of the patterns that a text can match, in order: all that match, and some that don't.
    fn candidates(&self, text: &Text<'_>) -> Vec<usize> {
        if !self.may_match(text.whole) {
            return Vec::new();
        }
        let mut indices: Vec<_> =
            self.literals.find_overlapping_iter(text.whole).map(|found| found.pattern().as_usize()).collect();
        indices.sort_unstable();
        indices.dedup();
        indices
    }
}

/// The longest literal of a pattern. Each match contains it.
fn needle(pattern: &'static str) -> &'static str {
    let literals = pattern.trim_start_matches('^').split('{').map(|part| part.split_once('}').map_or(part, |it| it.1));
    literals
        .max_by_key(|literal| literal.len())
        .filter(|it| !it.is_empty())
        .expect("the table's patterns have a literal")
}

/// Turns `watchdog: BUG: soft lockup` into `BUG: soft lockup`: a heading may follow one word and a colon.
fn without_subsystem(text: &str) -> Option<&str> {
    let (word, rest) = text.split_once(": ")?;
    word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)).then(|| rest.trim_start())
}

/// Matches `pattern` at the start of `text`.
fn fill<'a>(pattern: &str, text: &'a str) -> Option<Holes<'a>> {
    let mut parts = pattern.split('{');
    let mut rest = text.strip_prefix(parts.next()?)?;
    let mut holes = Holes::default();
    for part in parts {
        let (name, literal) = part.split_once('}').expect("the table's patterns close their holes");
        let end = if literal.is_empty() { rest.len() } else { rest.find(literal)? };
        match name {
            "fn" => holes.function = Some(&rest[..end]),
            _ => holes.texts.push(&rest[..end]),
        }
        rest = &rest[end + literal.len()..];
    }
    Some(holes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(pattern: &str, text: &'a str) -> Option<Holes<'a>> {
        Text::new(text).find(pattern)
    }

    #[test]
    fn a_hole_takes_the_text_between_literals() {
        let holes = find("^BUG: KASAN: {} in {fn}", "BUG: KASAN: use-after-free in f+0x1/0x2 [mod]").unwrap();
        assert_eq!(holes.texts, ["use-after-free"]);
        assert_eq!(holes.function, Some("f+0x1/0x2 [mod]"));
        assert_eq!(find("^a {} c {}", "a b c d c").unwrap().texts, ["b", "d c"]);
        assert_eq!(find("^a {} c", "a b d"), None);
    }

    #[test]
    fn an_anchor_allows_a_subsystem_and_nothing_else() {
        assert!(find("^BUG: x", "watchdog: BUG: x").is_some());
        assert!(find("^BUG: x", "  [ BUG: x ]").is_some());
        assert!(find("^BUG: x", "comm=\"BUG: x\"").is_none());
        assert!(find("^BUG: x", "name BUG: x").is_none());
        assert!(find("^BUG: x", "a: b: BUG: x").is_none());
    }

    #[test]
    fn without_an_anchor_a_pattern_is_found_anywhere() {
        assert!(find("BUG: x", "ffff8800BUG: x").is_some());
        assert_eq!(find("kernel BUG at {}:", "x kernel BUG at a.c:1").unwrap().texts, ["a.c"]);
    }
}
