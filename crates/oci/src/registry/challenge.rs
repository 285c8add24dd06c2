//! What a registry requires: the `WWW-Authenticate` header of an answer with status 401.

use std::iter::Peekable;
use std::str::Chars;

/// The longest header that is read. A challenge has some hundred bytes.
const CHALLENGE_BYTES_MAX: usize = 8 << 10;

/// How to authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// With a token of another server.
    Bearer {
        /// URL of that server.
        realm: String,
        /// For which service; empty if the header has none.
        service: String,
    },
    /// With user name and password.
    Basic,
}

/// The first challenge of a header that Kiln knows; a token is preferred. `None` if there is none, or it is malformed.
pub fn parse(header: &str) -> Option<Challenge> {
    if header.len() > CHALLENGE_BYTES_MAX {
        return None;
    }
    let mut text = header.chars().peekable();
    let (mut scheme, mut basic) = (String::new(), false);
    let (mut realm, mut service) = (None, String::new());
    loop {
        skip(&mut text, |letter| letter == ',' || letter.is_whitespace());
        if text.peek().is_none() {
            break;
        }
        let name = word(&mut text).to_ascii_lowercase();
        if name.is_empty() {
            return None;
        }
        skip(&mut text, char::is_whitespace);
        if text.next_if_eq(&'=').is_none() {
            // A word without a value begins the next challenge.
            if scheme == "bearer" && realm.is_some() {
                break;
            }
            scheme = name;
            basic |= scheme == "basic";
            continue;
        }
        skip(&mut text, char::is_whitespace);
        let value = if text.next_if_eq(&'"').is_some() { quoted(&mut text)? } else { word(&mut text) };
        match (scheme.as_str(), name.as_str()) {
            ("bearer", "realm") => realm = Some(value),
            ("bearer", "service") => service = value,
            _ => {}
        }
    }
    match realm {
        Some(realm) => Some(Challenge::Bearer { realm, service }),
        None => basic.then_some(Challenge::Basic),
    }
}

fn skip(text: &mut Peekable<Chars<'_>>, is_skipped: impl Fn(char) -> bool) {
    while text.next_if(|letter| is_skipped(*letter)).is_some() {}
}

fn word(text: &mut Peekable<Chars<'_>>) -> String {
    let is_part = |letter: &char| !letter.is_whitespace() && !matches!(letter, ',' | '=' | '"');
    std::iter::from_fn(|| text.next_if(is_part)).collect()
}

fn quoted(text: &mut Peekable<Chars<'_>>) -> Option<String> {
    let mut value = String::new();
    loop {
        match text.next()? {
            '"' => return Some(value),
            '\\' => value.push(text.next()?),
            letter => value.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: &str) -> Option<Challenge> {
        Some(Challenge::Bearer { realm: realm.to_owned(), service: service.to_owned() })
    }

    #[test]
    fn challenges_are_read() {
        let docker = r#"Bearer realm="https://auth.example/token",service="registry.example",scope="a:b:pull""#;
        assert_eq!(parse(docker), bearer("https://auth.example/token", "registry.example"));
        assert_eq!(parse(r#"bearer realm = "https://a/\"b" , service=x"#), bearer("https://a/\"b", "x"));
        assert_eq!(parse(r#"Basic realm="Registry Realm""#), Some(Challenge::Basic));
        assert_eq!(parse("Basic"), Some(Challenge::Basic));
        assert_eq!(parse(r#"Basic realm="x", Bearer realm="https://a""#), bearer("https://a", ""));
        assert_eq!(parse(r#"Bearer realm="https://a", Basic realm="x""#), bearer("https://a", ""));
    }

    #[test]
    fn malformed_challenges_are_no_challenges() {
        let long = format!("Bearer realm=\"{}\"", "x".repeat(1 << 20));
        for text in ["", "Negotiate", "Bearer", r#"Bearer realm="open"#, "=x", "\"", r#"Bearer service="x""#, &long] {
            assert_eq!(parse(text), None, "{text:.40}");
        }
    }
}
