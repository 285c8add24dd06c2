//! References: the name under which a registry has an image, as users of docker write it.
//!
//! ```text
//!   python                             docker.io/library/python:latest
//!   ghcr.io/a/b:1.2                    ghcr.io/a/b:1.2
//!   localhost:5000/a@sha256:…          localhost:5000/a@sha256:…
//! ```
//! The first component is a registry if it has a dot or a colon or is `localhost`; otherwise the registry is docker.io.
//! A tag beside a digest is kept for display; the digest decides.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

/// The registry of names without one.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The tag of names without one.
pub const DEFAULT_TAG: &str = "latest";
/// The longest reference: registry, repository, tag and digest together.
pub const REFERENCE_BYTES_MAX: usize = 1024;

/// Docker's own images are in this namespace of its registry.
const DEFAULT_NAMESPACE: &str = "library";
/// A name that docker.io also has, in old configuration files.
const OLD_DEFAULT_REGISTRY: &str = "index.docker.io";
/// Docker's bound for a registry and a repository together.
const NAME_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;
/// Bound of a name in DNS.
const HOST_BYTES_MAX: usize = 253;

/// Where a registry has an image. Its parts are checked: they can be parts of a URL without escapes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// It is empty.
    #[error("the name of an image is empty")]
    Empty,
    /// It is too long.
    #[error("the name of an image has {bytes} bytes, over {REFERENCE_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Its registry is not a host with an optional port.
    #[error("`{}` is not a registry", .registry.escape_debug())]
    Registry {
        /// The text before the first `/`.
        registry: String,
    },
    /// Its repository has a character or a form that no registry has.
    #[error("`{}` is not a repository of a registry", .repository.escape_debug())]
    Repository {
        /// The text between the registry and the tag.
        repository: String,
    },
    /// Its tag is not a tag.
    #[error("`{}` is not a tag", .tag.escape_debug())]
    Tag {
        /// The text after the last `:`.
        tag: String,
    },
    /// Its digest is not a digest.
    #[error("the digest after `@` is malformed")]
    Digest(#[source] DigestError),
}

impl ReferenceError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Repository { repository } if repository.chars().any(|letter| letter.is_ascii_uppercase()) => {
                Some("names of repositories are in lower case")
            }
            Self::Repository { .. } => Some("a name is `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`, such as `python:3.12`"),
            Self::Tag { .. } => Some("a tag has letters, digits, `_`, `.` and `-`, at most 128 of them"),
            Self::Empty | Self::TooLong { .. } | Self::Registry { .. } | Self::Digest(_) => None,
        }
    }
}

impl Reference {
    /// The host of the registry, with its port if the reference has one.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository in the registry, such as `library/python`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` if the reference has neither tag nor digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest or index.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same image by its digest.
    #[must_use]
    pub fn pinned(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// The short form that docker shows: without the defaults for registry and namespace.
    pub fn familiar(&self) -> String {
        let whole = self.to_string();
        let Some(rest) = whole.strip_prefix("docker.io/") else { return whole };
        let short = rest.strip_prefix("library/").filter(|name| !name.contains('/'));
        // A first component that looks like a registry needs docker.io in front of it.
        match short.unwrap_or(rest) {
            name if name.split_once('/').is_some_and(|(first, _)| is_registry(first)) => whole.clone(),
            name => name.to_owned(),
        }
    }

    /// How the registry's API names what is asked for: the digest, or else the tag.
    pub fn object(&self) -> String {
        match &self.digest {
            Some(digest) => digest.to_string(),
            None => self.tag.clone().unwrap_or_else(|| DEFAULT_TAG.to_owned()),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() > REFERENCE_BYTES_MAX {
            return Err(ReferenceError::TooLong { bytes: text.len() });
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse().map_err(ReferenceError::Digest)?)),
            None => (text, None),
        };
        let (registry, rest) = match name.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first, rest),
            _ => (DEFAULT_REGISTRY, name),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        let registry = check_registry(registry)?;
        let namespaced = registry == DEFAULT_REGISTRY && !path.contains('/');
        let repository = if namespaced { format!("{DEFAULT_NAMESPACE}/{path}") } else { path.to_owned() };
        if path.is_empty() || !is_repository(&repository) || registry.len() + repository.len() >= NAME_BYTES_MAX {
            return Err(ReferenceError::Repository { repository: path.to_owned() });
        }
        let tag = match tag {
            Some(tag) if !is_tag(tag) => return Err(ReferenceError::Tag { tag: tag.to_owned() }),
            Some(tag) => Some(tag.to_owned()),
            None => digest.is_none().then(|| DEFAULT_TAG.to_owned()),
        };
        Ok(Self { registry, repository, tag, digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Whether the first component of a name is a registry and not a part of a repository.
fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':', '['])
}

/// The registry in the form in which it is compared: in lower case, docker.io under its one name.
fn check_registry(registry: &str) -> Result<String, ReferenceError> {
    let refused = || ReferenceError::Registry { registry: registry.to_owned() };
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or_else(refused)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| refused())?;
            let port = if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or_else(refused)?) };
            (registry, port)
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    let digits = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    if port.is_some_and(|port| !digits(port) || port.parse::<u16>().unwrap_or(0) == 0) {
        return Err(refused());
    }
    let is_label = |label: &str| {
        let inner = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        !label.is_empty() && inner && !label.starts_with('-') && !label.ends_with('-')
    };
    if host.len() > HOST_BYTES_MAX || !(host.starts_with('[') || host.split('.').all(is_label)) {
        return Err(refused());
    }
    let lower = registry.to_ascii_lowercase();
    Ok(if lower == OLD_DEFAULT_REGISTRY { DEFAULT_REGISTRY.to_owned() } else { lower })
}

/// Components of lower-case letters and digits, with single separators `.`, `_`, `__` or any number of `-` in between.
fn is_repository(repository: &str) -> bool {
    repository.split('/').all(is_component)
}

fn is_component(component: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    let separators = bytes.split(|byte| is_word(*byte)).filter(|part| !part.is_empty());
    let is_separator = |part: &[u8]| matches!(part, b"." | b"_" | b"__") || part.iter().all(|byte| *byte == b'-');
    is_word(*first) && is_word(*last) && separators.into_iter().all(is_separator)
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let inner = tag.bytes().all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'));
    tag.len() <= TAG_BYTES_MAX && inner && tag.bytes().next().is_some_and(is_word)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(text: &str) -> Reference {
        text.parse().unwrap_or_else(|error| panic!("`{text}`: {error}"))
    }

    #[test]
    fn names_get_the_defaults_of_docker() {
        let whole = [
            ("python", "docker.io/library/python:latest"),
            ("python:3.12", "docker.io/library/python:3.12"),
            ("docker.io/python", "docker.io/library/python:latest"),
            ("index.docker.io/library/x", "docker.io/library/x:latest"),
            ("grafana/grafana", "docker.io/grafana/grafana:latest"),
            ("ghcr.io/a/b/c:v1_2", "ghcr.io/a/b/c:v1_2"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a:b", "localhost:5000/a:b"),
            ("host:5000/a/b:tag", "host:5000/a/b:tag"),
            ("Registry.Example.COM/a", "registry.example.com/a:latest"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("[::1]/a", "[::1]/a:latest"),
            ("a__b/c--d.e", "docker.io/a__b/c--d.e:latest"),
        ];
        for (text, expected) in whole {
            assert_eq!(parse(text).to_string(), expected, "{text}");
        }
    }

    #[test]
    fn a_digest_needs_no_tag_and_keeps_the_one_it_has() {
        let pinned = parse(&format!("python@{DIGEST}"));
        assert_eq!((pinned.tag(), pinned.object().as_str()), (None, DIGEST));
        let both = parse(&format!("host:5000/a/b:tag@{DIGEST}"));
        assert_eq!((both.tag(), both.object().as_str()), (Some("tag"), DIGEST));
        assert_eq!(both.to_string(), format!("host:5000/a/b:tag@{DIGEST}"));
    }

    #[test]
    fn a_name_can_be_shown_as_docker_shows_it() {
        let short = [
            ("python", "python:latest"),
            ("docker.io/library/python:3", "python:3"),
            ("grafana/grafana", "grafana/grafana:latest"),
            ("docker.io/localhost/x", "docker.io/localhost/x:latest"),
            ("ghcr.io/a/b", "ghcr.io/a/b:latest"),
            ("docker.io/library/a/b", "library/a/b:latest"),
        ];
        for (text, expected) in short {
            assert_eq!(parse(text).familiar(), expected);
            assert_eq!(parse(&parse(text).familiar()), parse(text), "{text}");
        }
    }

    #[test]
    fn hostile_names_are_refused() {
        let long_tag = format!("a:{}", "t".repeat(129));
        let long = "a/".repeat(128) + "a";
        let texts = [
            "",
            "/",
            ":",
            "@",
            "a:",
            ":a",
            "a@",
            "a@sha256:../../x",
            "Python",
            "a/B",
            "../x",
            "a/../b",
            "a//b",
            "/a",
            "a/",
            "a b",
            "a\n",
            "a\0",
            "a%2f..",
            "a?x=1",
            "a#x",
            "user:pass@host/a",
            "http://host/a",
            "host:/a",
            "host:0/a",
            "host:99999/a",
            "host:+5/a",
            "-a.b/c",
            "a..b/c",
            ".a/b",
            "a._b",
            "a___b",
            "a-",
            "_a",
            "[::1/a",
            "[::1]x/a",
            "[x]/a",
            "[::1]:/a",
            "é.com/a",
            "a:é",
            "a:-x",
            &long_tag,
            &long,
            &"a".repeat(2000),
        ];
        for text in texts {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn errors_read_like_this() {
        let texts = ["", "a/B:c", "a:é", "a@sha256:x", "-.x/a", "a\u{1b}[31m"];
        let lines = texts.map(|text| {
            let error = text.parse::<Reference>().expect_err("is refused");
            error.hint().map_or_else(|| error.to_string(), |hint| format!("{error} (hint: {hint})"))
        });
        insta::assert_snapshot!(lines.join("\n"));
    }

    proptest! {
        #[test]
        fn what_is_accepted_reads_back_the_same(text in "[a-zA-Z0-9.:/@_\\-\\[\\]]{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(parse(&reference.to_string()), reference.clone());
                prop_assert_eq!(parse(&reference.familiar()), reference);
            }
        }
    }
}
