//! Headings of reports: literal text with holes, matched without backtracking.
//!
//! `"^INFO: task {} blocked for more than {} second"`: a `^` requires the start of the message, `{}` matches any text,
//! `{fn}` matches any text too, which then is the name of the function to blame. A hole takes as little text as
//! possible; a hole at the end takes the rest of the line.

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
        table.candidates(self).find_map(|index| self.find(table.patterns[index]).map(|holes| (index, holes)))
    }

    /// Whether any of `patterns` matches.
    pub(crate) fn is_any(&self, patterns: &[&str]) -> bool {
        patterns.iter().any(|pattern| self.find(pattern).is_some())
    }
}

/// Patterns in their order, with a filter that selects the few that a text can match.
///
/// Most lines of a log match nothing, and a table has more than a hundred patterns. Matching each line with each
/// pattern took ten times as long as everything else together. So a text is matched only with the patterns that pass
/// one of two cheap tests. No match is lost, because each test is a condition that every match meets. [`Text::find`]
/// shows this:
///
/// - A pattern that is anchored and begins with a literal is tried at two places only: the start of the text, and the
///   start after a subsystem. It matches there only if the literal is there, so the byte at one of the two places is
///   the literal's first byte. The filter selects all such patterns for the bytes at both places.
/// - Any other pattern has at least one literal, and a match contains every literal of its pattern. All places where a
///   match may be are parts of the whole text, so the whole text contains the literal. The filter searches it there.
///   Patterns whose literals begin with the same shorter literal share one search for the shorter one: a text that
///   contains the longer literal contains its beginning.
///
/// So the selected patterns are all that match and some that don't. They are then matched in the order of the table, so
/// the first match is the same as without the filter. The tests in `reference` compare both ways on every fixture and
/// on random mixes of headings.
#[derive(Debug)]
pub(crate) struct Table {
    patterns: Vec<&'static str>,
    /// Anchored patterns, by the first byte of their first literal.
    anchored: [Set; 256],
    /// The others, by a literal that each of them requires.
    anywhere: Vec<(&'static str, Set)>,
}

impl Table {
    /// Takes patterns in the order in which they are tried.
    pub(crate) fn new(patterns: impl IntoIterator<Item = &'static str>) -> Self {
        let patterns: Vec<_> = patterns.into_iter().collect();
        let mut table = Self { patterns: Vec::new(), anchored: [Set::default(); 256], anywhere: Vec::new() };
        let mut needles = Vec::new();
        for (index, pattern) in patterns.iter().enumerate() {
            match pattern.strip_prefix('^').and_then(|literal| literal.bytes().next()).filter(|byte| *byte != b'{') {
                Some(first) => table.anchored[usize::from(first)].insert(index),
                None => needles.push((needle(pattern), index)),
            }
        }
        // Text with `kernel BUG at mm/` contains `kernel BUG at ` too, so one search is enough for both. After sorting,
        // a literal that is the beginning of others comes directly before them.
        needles.sort_unstable();
        for (needle, index) in needles {
            match table.anywhere.last_mut() {
                Some((shorter, set)) if needle.starts_with(*shorter) => set.insert(index),
                _ => table.anywhere.push((needle, Set::default().with(index))),
            }
        }
        table.patterns = patterns;
        table
    }

    /// The indices of the patterns that a text can match, in order: all that match, and a few that don't.
    fn candidates(&self, text: &Text<'_>) -> impl Iterator<Item = usize> + use<> {
        let first = |text: &str| text.bytes().next().map_or(Set::default(), |byte| self.anchored[usize::from(byte)]);
        let mut set = first(text.start).or(text.after_subsystem.map_or(Set::default(), first));
        for (needle, with_needle) in &self.anywhere {
            // `find` takes several times as long as `contains` for a text this short.
            if text.whole.contains(needle) {
                set = set.or(*with_needle);
            }
        }
        set.into_indices()
    }
}

/// The first literal of a pattern that is not empty. Each match contains it.
fn needle(pattern: &'static str) -> &'static str {
    let mut literals =
        pattern.trim_start_matches('^').split('{').map(|part| part.split_once('}').map_or(part, |it| it.1));
    literals.find(|literal| !literal.is_empty()).expect("the table's patterns have a literal")
}

/// Indices into a table.
#[derive(Clone, Copy, Debug, Default)]
struct Set([u64; Set::WORDS]);

impl Set {
    const WORDS: usize = 3;

    fn insert(&mut self, index: usize) {
        *self.0.get_mut(index / 64).expect("a table has room for 192 patterns") |= 1 << (index % 64);
    }

    fn with(mut self, index: usize) -> Self {
        self.insert(index);
        self
    }

    fn or(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] | other.0[word]))
    }

    fn into_indices(mut self) -> impl Iterator<Item = usize> {
        std::iter::from_fn(move || {
            let word = self.0.iter().position(|word| *word != 0)?;
            let bit = self.0[word].trailing_zeros() as usize;
            self.0[word] &= self.0[word] - 1;
            Some(word * 64 + bit)
        })
    }
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
