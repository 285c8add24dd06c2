//! Headings of reports: literal text with holes, matched without backtracking.
//!
//! `"^INFO: task {} blocked for more than {} second"`: a `^` asks for the start of the message, `{}` takes what stands
//! there, `{fn}` takes it as the name of the guilty function. A hole takes as little as it can; one at the end takes the
//! rest of the line.

/// What a heading's holes took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holes<'a> {
    /// What each `{}` took, in order.
    pub(crate) texts: Vec<&'a str>,
    /// What `{fn}` took: a name with offset, or more text around it.
    pub(crate) function: Option<&'a str>,
}

/// The text of a kernel line, looked at once for all the patterns that it is held against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text<'a> {
    whole: &'a str,
    start: &'a str,
    after_subsystem: Option<&'a str>,
}

impl<'a> Text<'a> {
    pub(crate) fn new(whole: &'a str) -> Self {
        // Old lockdep headings stand in brackets: `[ INFO: possible recursive locking detected ]`.
        let start = whole.trim_start().trim_start_matches("[ ");
        Self { whole, start, after_subsystem: without_subsystem(start) }
    }

    /// Holds the text against one pattern.
    pub(crate) fn find(&self, pattern: &str) -> Option<Holes<'a>> {
        if let Some(anchored) = pattern.strip_prefix('^') {
            return fill(anchored, self.start).or_else(|| fill(anchored, self.after_subsystem?));
        }
        let first = pattern.split('{').next().unwrap_or(pattern);
        fill(pattern, &self.whole[self.whole.find(first)?..])
    }

    /// Whether any of `patterns` matches.
    pub(crate) fn is_any(&self, patterns: &[&str]) -> bool {
        patterns.iter().any(|pattern| self.find(pattern).is_some())
    }
}

/// `watchdog: BUG: soft lockup` to `BUG: soft lockup`: one word and a colon may stand before a heading.
fn without_subsystem(text: &str) -> Option<&str> {
    let (word, rest) = text.split_once(": ")?;
    word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)).then(|| rest.trim_start())
}

/// Matches `pattern` at the very start of `text`.
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
    fn holes_take_what_stands_between_literals() {
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
