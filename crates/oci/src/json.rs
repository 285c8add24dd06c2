//! JSON of strangers: bounded in size and depth, without any key twice.
//!
//! Parsers differ in what they do with a key that occurs twice: some take the first, some the last. A document that two
//! parsers read differently passes a check in one and is used by the other. Go's parser, which the other programs for
//! images use, also ignores the case of keys. So a document is refused if two keys of an object are the same, and at
//! its top level also if they differ only in case.

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

/// The largest manifest, index or configuration. The specification of registries requires that at least this much is
/// accepted.
pub const DOCUMENT_BYTES_MAX: usize = 4 << 20;
/// How deep arrays and objects may be nested. Manifests need 5, configurations 4.
pub const DEPTH_MAX: usize = 24;

/// Why a document can't be read.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// It is too large.
    #[error("it has {bytes} bytes, over {DOCUMENT_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// It is not JSON, it has a key twice, or a field has a wrong type.
    #[error("it is malformed")]
    Malformed(#[source] serde_json::Error),
}

/// A struct that is read from an object and from nothing else. serde's own code for structs also accepts a list of the
/// fields' values, which no other program reads that way.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Object<T>(pub T);

/// Reads a document, after its structure was checked as a whole.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    if bytes.len() > DOCUMENT_BYTES_MAX {
        return Err(JsonError::TooLarge { bytes: bytes.len() });
    }
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    Checked { depth: 0 }.deserialize(&mut parser).map_err(JsonError::Malformed)?;
    parser.end().map_err(JsonError::Malformed)?;
    serde_json::from_slice(bytes).map_err(JsonError::Malformed)
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(entries))
            }
        }

        deserializer.deserialize_map(Entries(PhantomData)).map(Self)
    }
}

/// A value whose structure is checked and whose content is dropped.
#[derive(Clone, Copy)]
struct Checked {
    depth: usize,
}

impl Checked {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth == DEPTH_MAX {
            return Err(E::custom(format!("it is nested more than {DEPTH_MAX} deep")));
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Checked {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Checked {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        while items.next_element_seed(inner)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        let mut keys = HashSet::new();
        while let Some(mut key) = entries.next_key::<String>()? {
            if self.depth == 0 {
                key.make_ascii_lowercase();
            }
            if !keys.insert(key) {
                return Err(A::Error::custom("it has a key twice"));
            }
            entries.next_value_seed(inner)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn refused(text: &str) -> bool {
        read::<Value>(text.as_bytes()).is_err()
    }

    #[test]
    fn a_key_twice_is_refused_at_any_depth() {
        assert!(refused(r#"{"a":1,"a":1}"#));
        assert!(refused(r#"{"x":[{"y":{"a":1,"\u0061":1}}]}"#));
        assert!(refused(r#"{"layers":1,"Layers":1}"#));
        assert!(!refused(r#"{"labels":{"a":1,"A":1}}"#), "labels may differ in case");
    }

    #[test]
    fn depth_and_size_are_bounded() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(!refused(&nested(DEPTH_MAX)));
        assert!(refused(&nested(DEPTH_MAX + 1)));
        assert!(refused(&"[".repeat(DOCUMENT_BYTES_MAX)));
        let spaces = " ".repeat(DOCUMENT_BYTES_MAX) + "1";
        assert!(matches!(read::<Value>(spaces.as_bytes()), Err(JsonError::TooLarge { .. })));
    }

    #[test]
    fn a_list_is_not_an_object() {
        #[derive(Debug, Deserialize)]
        struct Pair {
            a: u8,
        }
        let a = |text: &str| read::<Object<Pair>>(text.as_bytes()).map(|pair| pair.0.a).ok();
        assert_eq!(a("[1]"), None);
        assert_eq!(a(r#"{"a":1,"b":2}"#), Some(1));
    }

    #[test]
    fn text_after_a_document_is_refused() {
        assert!(refused("{} {}"));
        assert!(refused("{}\0"));
        assert!(!refused("{}\n"));
    }
}
