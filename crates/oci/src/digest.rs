//! Digests of blobs: `sha256:` or `sha512:` and lower-case hex of exactly the right length.
//!
//! A digest is the name of a file in caches and layouts, so a [`Digest`] that exists has no character that could leave
//! a directory: [`Digest::from_str`] refuses everything else.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256, Sha512};

/// How a digest was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, which all registries use.
    Sha256,
    /// SHA-512.
    Sha512,
}

/// The digest of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    hex: Box<str>,
}

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// It has no `:` or an algorithm that Kiln does not know.
    #[error("`{}` is not a digest of sha256 or sha512", .text.escape_debug())]
    Algorithm {
        /// The start of the text.
        text: String,
    },
    /// Its value is too short, too long, or not lower-case hex.
    #[error("`{}` does not have the {digits} lower-case hex digits of a digest of {algorithm}", .text.escape_debug())]
    Value {
        /// Its algorithm.
        algorithm: Algorithm,
        /// The number of digits that it must have.
        digits: usize,
        /// The start of the text.
        text: String,
    },
}

/// Computes the digest of bytes as they arrive.
#[derive(Debug, Clone)]
pub struct Hasher(State);

#[derive(Debug, Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

/// Characters of a wrong text that an error repeats.
const QUOTED_CHARS_MAX: usize = 160;

impl Algorithm {
    /// Its name before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn digits(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

impl Digest {
    /// The SHA-256 digest of bytes in memory.
    pub fn sha256(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// Its algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Its value in lower-case hex.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// Whether these bytes have this digest.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        let mut hasher = Hasher::new(self.algorithm);
        hasher.update(bytes);
        hasher.finish() == *self
    }
}

impl Hasher {
    /// Starts at the first byte.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Box::default()),
        })
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of all bytes.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(state) => Digest { algorithm: Algorithm::Sha256, hex: hex(&state.finalize()) },
            State::Sha512(state) => Digest { algorithm: Algorithm::Sha512, hex: hex(&state.finalize()) },
        }
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let quoted = || text.chars().take(QUOTED_CHARS_MAX).collect();
        let (name, value) = text.split_once(':').unwrap_or((text, ""));
        let algorithm = [Algorithm::Sha256, Algorithm::Sha512].into_iter().find(|one| one.name() == name);
        let algorithm = algorithm.ok_or_else(|| DigestError::Algorithm { text: quoted() })?;
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if value.len() != algorithm.digits() || !value.bytes().all(is_digit) {
            return Err(DigestError::Value { algorithm, digits: algorithm.digits(), text: quoted() });
        }
        Ok(Self { algorithm, hex: value.into() })
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm, self.hex)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn hex(bytes: &[u8]) -> Box<str> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_reads_back_as_it_was_written() {
        let digest: Digest = EMPTY.parse().expect("is a digest");
        assert_eq!(digest.to_string(), EMPTY);
        assert_eq!(digest, Digest::sha256(b""));
        assert!(digest.matches(b"") && !digest.matches(b"x"));
        let long = Hasher::new(Algorithm::Sha512).finish();
        assert_eq!(long.to_string().parse::<Digest>(), Ok(long.clone()));
        assert!(long.matches(b""));
    }

    #[test]
    fn nothing_else_is_a_digest() {
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        let long = EMPTY.to_owned() + "0";
        let texts = [
            "",
            ":",
            "sha256",
            "sha256:",
            "sha256:../../x",
            "sha256:abc",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            "SHA256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "sha512:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b85\0",
            &upper,
            &long,
            &EMPTY[..EMPTY.len() - 1],
            &EMPTY.replace('e', "é"),
        ];
        for text in texts {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_error_repeats_only_the_start_of_a_text() {
        let error = "x".repeat(1 << 20).parse::<Digest>().expect_err("is not a digest");
        assert!(error.to_string().len() < 300);
    }
}
