//! Patterns of names, in which `*` matches any text.

/// Whether a text matches a pattern. Takes at most time proportional to the product of both lengths.
///
/// ```
/// use kiln_lab::run::matches;
///
/// assert!(matches("BUG: * in ext4_*", "BUG: KASAN: use-after-free in ext4_put_super"));
/// assert!(!matches("BUG: *", "a BUG: x"));
/// ```
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut from) = (0, 0);
    // Where to continue if the text after the last `*` does not match.
    let mut star: Option<(usize, usize)> = None;
    while from < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at + 1, from));
                at += 1;
            }
            Some(byte) if *byte == text[from] => (at, from) = (at + 1, from + 1),
            _ => {
                let Some((after, taken)) = star else { return false };
                star = Some((after, taken + 1));
                (at, from) = (after, taken + 1);
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_matches_any_text_and_other_bytes_match_themselves() {
        for (pattern, text, matched) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*c*e", "abcde", true),
            ("a*c", "abcd", false),
            ("a**b", "ab", true),
            ("é*", "é1", true),
        ] {
            assert_eq!(matches(pattern, text), matched, "{pattern} {text}");
        }
        assert!(!matches(&"*a".repeat(200), &"a".repeat(20_000)[..199]));
    }
}
