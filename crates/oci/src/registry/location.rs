//! URLs of registries: absolute, http or https, without user names. Redirects are resolved against the last one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest URL that is followed. Storage servers sign theirs with some kilobytes.
const URL_BYTES_MAX: usize = 16 << 10;

/// A URL, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// Whether it is https.
    pub secure: bool,
    /// Lower-case host, in brackets if it is an IPv6 address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// From the first `/` on, with the query.
    pub path: String,
}

/// Why a text is not such a URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not a URL that Kiln follows", .0.escape_debug())]
pub struct LocationError(String);

impl Location {
    /// The API of a registry, from its host and optional port.
    pub(crate) fn of_registry(registry: &str, secure: bool, path: &str) -> Result<Self, LocationError> {
        let scheme = if secure { "https" } else { "http" };
        Self::parse(&format!("{scheme}://{registry}{path}"))
    }

    /// Parses an absolute URL.
    ///
    /// # Errors
    /// If it is something else.
    pub fn parse(text: &str) -> Result<Self, LocationError> {
        let refused = || LocationError(text.chars().take(200).collect());
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'`');
        if text.len() > URL_BYTES_MAX || !text.bytes().all(is_plain) {
            return Err(refused());
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(refused)?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(refused()),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (host, port) = split_port(authority).ok_or_else(refused)?;
        let port = match port {
            Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or_else(refused)?,
            None if secure => 443,
            None => 80,
        };
        let path = path.split('#').next().unwrap_or("");
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { secure, host: host.to_ascii_lowercase(), port, path })
    }

    /// Where a `Location` header of an answer of this URL leads.
    pub(crate) fn join(&self, target: &str) -> Result<Self, LocationError> {
        if target.contains("://") && !target.starts_with('/') {
            return Self::parse(target);
        }
        let scheme = if self.secure { "https" } else { "http" };
        if target.starts_with("//") {
            return Self::parse(&format!("{scheme}:{target}"));
        }
        let folder =
            self.path.split('?').next().and_then(|path| path.rsplit_once('/')).map_or("", |(folder, _)| folder);
        let path = if target.starts_with('/') { target.to_owned() } else { format!("{folder}/{target}") };
        Self::parse(&format!("{scheme}://{}:{}{path}", self.host, self.port))
    }

    /// Whether both are on the same server: only then one's credentials are the other's.
    pub(crate) fn same_server(&self, other: &Self) -> bool {
        (self.secure, &self.host, self.port) == (other.secure, &other.host, other.port)
    }

    /// The host's address, if it is not a name.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        let bare = self.host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        match bare {
            Some(address) => address.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            None => self.host.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        }
    }

    /// Whether the host is this machine, by name or address.
    pub(crate) fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.address().is_some_and(|address| address.is_loopback())
    }

    /// The server without path, for errors.
    pub fn server(&self) -> String {
        match (self.secure, self.port) {
            (true, 443) | (false, 80) => self.host.clone(),
            (_, port) => format!("{}:{port}", self.host),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.server(), self.path)
    }
}

/// Host and port of an authority without a user name. The host is a name, an IPv4 address in its usual form, or an IPv6
/// address in brackets.
fn split_port(authority: &str) -> Option<(&str, Option<&str>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let end = rest.find(']')?;
            rest[..end].parse::<Ipv6Addr>().ok()?;
            (&authority[..end + 2], &rest[end + 1..])
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port = if port.is_empty() { None } else { Some(port.strip_prefix(':')?) };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if host.is_empty() || !(host.starts_with('[') || host.bytes().all(is_name)) {
        return None;
    }
    // `127.1` and `2130706433` are addresses for some resolvers and names for us.
    let is_number = host.split('.').next_back().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    if is_number && host.parse::<Ipv4Addr>().is_err() {
        return None;
    }
    port.is_none_or(|port| port.bytes().all(|byte| byte.is_ascii_digit())).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Location {
        Location::parse(text).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn redirects_are_resolved_like_a_browser_does() {
        let base = parse("https://a.example/v2/x/blobs/y?z=1");
        let cases = [
            ("https://b.example/p?q#f", "https://b.example/p?q"),
            ("//c.example:8443/p", "https://c.example:8443/p"),
            ("/p", "https://a.example/p"),
            ("z", "https://a.example/v2/x/blobs/z"),
            ("HTTP://B.example", "http://b.example/"),
            ("/p?u=http://x", "https://a.example/p?u=http://x"),
        ];
        for (target, expected) in cases {
            assert_eq!(base.join(target).expect(target).to_string(), expected, "{target}");
        }
    }

    #[test]
    fn other_urls_are_refused() {
        let texts = [
            "",
            "file:///etc/shadow",
            "ftp://a/b",
            "https://user:pass@a/b",
            "https://a@b/c",
            "https:///p",
            "https://a b/c",
            "https://a\r\nX: y/c",
            "https://[::1/c",
            "https://[::1]x/c",
            "https://a:b/c",
            "https://a:0/c",
            "https://127.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://a:80:80/",
            "https://\u{e9}/",
        ];
        for text in texts {
            assert!(Location::parse(text).is_err(), "{text:?}");
        }
        assert!(Location::parse(&format!("https://a/{}", "x".repeat(URL_BYTES_MAX))).is_err());
        assert!(parse("https://a/").join("file:///etc/shadow").is_err());
    }

    #[test]
    fn servers_are_the_same_by_scheme_host_and_port() {
        let same = |a: &str, b: &str| parse(a).same_server(&parse(b));
        assert!(same("https://a/x", "https://A:443/y"));
        assert!(!same("https://a/x", "http://a/x"));
        assert!(!same("https://a/x", "https://a:444/x"));
        assert!(!same("https://a/x", "https://a.b/x"));
        assert!(parse("http://[::1]:5000/").is_loopback() && parse("http://localhost/").is_loopback());
        assert!(!parse("http://localhost.example/").is_loopback());
    }
}
