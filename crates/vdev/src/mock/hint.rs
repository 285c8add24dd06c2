//! Finds the known name that is nearest to an unknown one.

/// The name that is nearest to this one, if any is near.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_ascii_lowercase();
    let near = known.into_iter().map(|known| (distance(&name, &known.to_ascii_lowercase()), known)).min()?;
    (near.0 <= 1 + name.len() / 4).then_some(near.1)
}

/// How many letters must be changed, put in or taken out to make one of the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let changed = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_anything_else_is_not() {
        let known = ["GET_FEATURES", "SET_FEATURES", "GET_CONFIG"];
        assert_eq!(nearest("get_feature", known), Some("GET_FEATURES"));
        assert_eq!(nearest("GETCONFIG", known), Some("GET_CONFIG"));
        assert_eq!(nearest("banana", known), None);
        assert_eq!(nearest("x", []), None);
    }
}
