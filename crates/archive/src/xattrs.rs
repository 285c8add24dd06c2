//! Extended attributes in pax records, in the two forms that programs write.

/// The name and the value of an extended attribute.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// The attribute in a pax record: its name and value. `Ok(None)` if the record is about something else.
///
/// GNU tar, Go and most others write the value as it is, after `SCHILY.xattr.NAME=`. libarchive also writes it as base64,
/// after `LIBARCHIVE.xattr.NAME=` with a percent-encoded name.
pub(crate) fn xattr(key: &[u8], value: &[u8]) -> Result<Option<Xattr>, Malformed> {
    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
        return Ok(Some((name.to_vec(), value.to_vec())));
    }
    let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") else { return Ok(None) };
    let name = percent_decoded(name).filter(|name| !name.contains(&0)).ok_or(Malformed)?;
    Ok(Some((name, base64_decoded(value).ok_or(Malformed)?)))
}

/// A record that is not in the form of its kind.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut rest = text.iter();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = rest.next() {
        let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
        decoded.push(match byte {
            b'%' => u8::try_from(digit(rest.next())? * 16 + digit(rest.next())?).ok()?,
            byte => *byte,
        });
    }
    Some(decoded)
}

/// libarchive leaves out the `=` at the end; other writers do not.
fn base64_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    let mut decoded = Vec::with_capacity(text.len() / 4 * 3 + 3);
    for group in text.chunks(4) {
        let bits = group.iter().try_fold(0_u32, |bits, letter| Some(bits << 6 | six_bits(*letter)?))?;
        let bytes = match group.len() {
            4 => 3,
            3 => 2,
            2 => 1,
            // Six bits are not a byte.
            _ => return None,
        };
        decoded.extend_from_slice(&(bits << (8 + 6 * (4 - group.len()))).to_be_bytes()[..bytes]);
    }
    Some(decoded)
}

fn six_bits(letter: u8) -> Option<u32> {
    let value = match letter {
        b'A'..=b'Z' => letter - b'A',
        b'a'..=b'z' => letter - b'a' + 26,
        b'0'..=b'9' => letter - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(u32::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let plain = xattr(b"SCHILY.xattr.user.a=b", b"\0\xff=\n").expect("plain");
        assert_eq!(plain, Some((b"user.a=b".to_vec(), b"\0\xff=\n".to_vec())));
        let encoded = xattr(b"LIBARCHIVE.xattr.user.%61%3D%25", b"AP89Cg").expect("encoded");
        assert_eq!(encoded, Some((b"user.a=%".to_vec(), b"\0\xff=\n".to_vec())));
        assert_eq!(xattr(b"comment", b"x"), Ok(None));
    }

    #[test]
    fn base64_of_every_length_is_read_with_and_without_its_end() {
        for (text, bytes) in [
            (&b""[..], &b""[..]),
            (b"Zg", b"f"),
            (b"Zg==", b"f"),
            (b"Zm8", b"fo"),
            (b"Zm8=", b"fo"),
            (b"Zm9v", b"foo"),
            (b"Zm9vYg==", b"foob"),
            (b"+/+/", b"\xfb\xff\xbf"),
        ] {
            assert_eq!(base64_decoded(text).as_deref(), Some(bytes), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn malformed_text_is_refused() {
        for value in [&b"Z"[..], b"Zm9vY", b"Zm 9", b"Zg=a", b"===="] {
            assert_eq!(xattr(b"LIBARCHIVE.xattr.user.a", value), Err(Malformed), "{}", value.escape_ascii());
        }
        for name in [&b"%"[..], b"%4", b"%zz", b"user.%00"] {
            let key = [b"LIBARCHIVE.xattr.", name].concat();
            assert_eq!(xattr(&key, b""), Err(Malformed), "{}", name.escape_ascii());
        }
    }
}
