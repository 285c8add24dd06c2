//! Compares names by their version numbers.

/// Orders names by their numbers: `6.1.0-9` is before `6.1.0-44`.
pub(super) fn version_key(name: &str) -> Vec<(u64, String)> {
    let mut key = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text_end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (text, after) = rest.split_at(text_end);
        let number_end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        let (number, after) = after.split_at(number_end);
        key.push((number.parse().unwrap_or(0), text.to_owned()));
        rest = after;
    }
    key
}
