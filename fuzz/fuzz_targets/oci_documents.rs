//! Any bytes as a document of an image, or as a reference: refused, or within all bounds, and the same when it is
//! written and read again.
#![no_main]

use kiln_oci::{
    ConfigDocument, CpuLevel, Digest, Document, ID_MAX, LAYERS_MAX, Reference, STRINGS_BYTES_MAX, Signal, User,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (kind, rest) = bytes.split_first().unwrap_or((&0, &[]));
    match kind % 3 {
        0 => document(rest),
        1 => config(rest),
        _ => texts(&String::from_utf8_lossy(rest)),
    }
});

fn document(bytes: &[u8]) {
    match Document::parse(bytes, None) {
        Ok(Document::Manifest(manifest)) => {
            assert!(manifest.layers.len() <= LAYERS_MAX);
            assert!(manifest.layers.iter().all(|layer| i64::try_from(layer.size).is_ok()));
        }
        Ok(Document::Index(index)) => {
            for cpu in [CpuLevel::V1, CpuLevel::V3] {
                let Ok(chosen) = index.choose(cpu) else { continue };
                let level = chosen.platform.as_ref().map(|platform| platform.level());
                assert!(level.is_none_or(|level| level.is_some_and(|level| level <= cpu)));
            }
        }
        Err(_) => {}
    }
}

fn config(bytes: &[u8]) {
    let Ok(document) = ConfigDocument::parse(bytes) else { return };
    let config = &document.config;
    let strings = || config.env.iter().chain(&config.entrypoint).chain(&config.cmd);
    assert!(strings().map(String::len).sum::<usize>() <= STRINGS_BYTES_MAX);
    assert!(strings().all(|text| !text.contains('\0')));
    assert!(config.working_dir.as_ref().is_none_or(|path| path.starts_with('/') && !path.contains("/../")));
    let written = config.to_json(&document.diff_ids);
    let again = ConfigDocument::parse(&written).expect("our own form is read");
    assert_eq!((&again.config, &again.diff_ids), (config, &document.diff_ids));
}

fn texts(text: &str) {
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(reference.to_string().parse::<Reference>().as_ref(), Ok(&reference));
        assert_eq!(reference.familiar().parse::<Reference>().as_ref(), Ok(&reference));
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"/._-".contains(&byte);
        assert!(reference.repository().bytes().all(is_plain) && !reference.repository().contains(".."));
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    if let Ok(user) = text.parse::<User>() {
        assert_eq!(user.to_string().parse::<User>().as_ref(), Ok(&user));
        assert!(!user.to_string().contains('-') || user.to_string().parse::<i64>().is_err());
    }
    if let Ok(signal) = text.parse::<Signal>() {
        assert!((1..=64).contains(&signal.number()));
    }
    assert!(ID_MAX < u32::MAX);
}
