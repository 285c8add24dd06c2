//! Archives of `docker save` before version 25, and of skopeo: `manifest.json` names the files of each image.
//!
//! Such an archive has no digests of its own. The configuration has those of the layers' contents; where a file's name
//! is a digest, the file must have it.

use std::path::Path;

use crate::archive_index::ArchiveIndex;
use crate::config_check::{ConfigDocument, ConfigError};
use crate::digest::Digest;
use crate::image::{Blob, DocumentError, Image, Origin};
use crate::json::{self, DOCUMENT_BYTES_MAX, Object};
use crate::layer::Expected;
use crate::manifest::LAYERS_MAX;
use crate::reference::Reference;
use crate::source::{OpenError, OpenOptions};

/// The file that marks such an archive.
pub(crate) const MARK: &str = "manifest.json";

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// The image of a name, or the only one.
pub(crate) fn image(archive: &ArchiveIndex, options: &OpenOptions) -> Result<Image, OpenError> {
    let limit = DOCUMENT_BYTES_MAX as u64;
    let entries: Vec<Object<Entry>> = json::read(&archive.read(MARK, limit)?).map_err(OpenError::DockerManifest)?;
    let entry = select(entries, options.name.as_deref())?;
    let config = archive.read(&entry.config, limit)?;
    let config_digest = Digest::sha256(&config);
    if let Some(digest) = digest_of(&entry.config).filter(|digest| *digest != config_digest) {
        return Err(OpenError::Document(DocumentError::Digest { digest }));
    }
    let paths = entry.layers.unwrap_or_default();
    let config = ConfigDocument::parse(&config).map_err(OpenError::Config)?;
    if paths.len() > LAYERS_MAX {
        let counts = ConfigError::LayerCount { diff_ids: config.diff_ids.len(), layers: paths.len() };
        return Err(OpenError::Config(counts));
    }
    let blobs = paths.iter().map(|path| {
        let (span, _) = archive.find(path)?;
        let digest = digest_of(path).filter(|_| path.starts_with("blobs/"));
        let expected = Expected { size: Some(span.bytes), digest, diff_id: None };
        Ok((expected, Blob::Span { file: archive.whole().0, span }))
    });
    let blobs = blobs.collect::<Result<_, OpenError>>()?;
    let mut image = Image::new(Origin::DockerArchive, config, blobs, options.cpu).map_err(OpenError::Config)?;
    image.names = entry.repo_tags.unwrap_or_default();
    image.config_digest = Some(config_digest);
    Ok(image)
}

fn select(entries: Vec<Object<Entry>>, name: Option<&str>) -> Result<Entry, OpenError> {
    let tags = |entry: &Entry| entry.repo_tags.clone().unwrap_or_default();
    let mut names: Vec<String> = entries.iter().flat_map(|entry| tags(&entry.0)).collect();
    names.sort();
    names.dedup();
    let is_named = |entry: &Object<Entry>| name.is_none_or(|name| tags(&entry.0).iter().any(|tag| same(tag, name)));
    let is_empty = entries.is_empty();
    let mut chosen: Vec<Object<Entry>> = entries.into_iter().filter(is_named).collect();
    match (chosen.len(), name) {
        (1, _) => Ok(chosen.remove(0).0),
        (0, Some(name)) if !is_empty => Err(OpenError::NoSuchName { name: name.to_owned(), names }),
        (0, _) => Err(OpenError::Empty),
        _ => Err(OpenError::SeveralImages { names }),
    }
}

fn same(tag: &str, wanted: &str) -> bool {
    let parse = |text: &str| text.parse::<Reference>().ok();
    tag == wanted || parse(tag).is_some_and(|tag| Some(tag) == parse(wanted))
}

/// The digest in the name of a file: `HEX.json`, or `blobs/sha256/HEX`.
fn digest_of(path: &str) -> Option<Digest> {
    let name = Path::new(path).file_name()?.to_str()?;
    format!("sha256:{}", name.strip_suffix(".json").unwrap_or(name)).parse().ok()
}
