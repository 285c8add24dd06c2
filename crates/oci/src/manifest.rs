//! Manifests and indexes: what a registry or a layout has under a name.
//!
//! ```text
//!   index ──▶ index (at most two in a row) ──▶ manifest ──▶ config, layers
//! ```
//! Both are read in the forms of OCI and of docker (schema 2). A document that could be both is refused, because two
//! programs would use different halves of it. So is one whose own media type differs from the type under which it was
//! served.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::json::{self, DOCUMENT_BYTES_MAX, JsonError, Object};
use crate::platform::Platform;

/// The most layers of an image. Overlay mounts in docker have the same bound.
pub const LAYERS_MAX: usize = 128;
/// How many indexes may follow each other before a manifest.
pub const INDEX_DEPTH_MAX: usize = 2;

/// Media type of an index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of a manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of docker's form of an index.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Media type of docker's form of a manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of an image's configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a layer that is not compressed.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const SCHEMA_1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];
/// Types of layers, before a suffix for the compression. The compression is recognised by the first bytes.
const LAYERS: [&str; 4] = [
    OCI_LAYER,
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];
const LAYER_SUFFIXES: [&str; 6] = ["", "+gzip", "+zstd", ".gzip", ".zstd", ".xz"];

/// What a reference leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// A choice of images, usually by platform.
    Index(Index),
    /// One image.
    Manifest(Manifest),
}

/// A list of manifests, or of indexes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// In the order of the document.
    pub manifests: Vec<Descriptor>,
}

/// One image: its configuration and its layers, the lowest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The configuration.
    pub config: Descriptor,
    /// At most [`LAYERS_MAX`].
    pub layers: Vec<Descriptor>,
}

/// A blob: what it is, how long it is, and its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it claims to be.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
    /// For what machines a manifest is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Notes of the program that made it, such as its name in a layout.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Why a document is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It can't be read.
    #[error("failed to read a manifest")]
    Json(#[source] JsonError),
    /// It is in docker's first format, which has no digest of its configuration.
    #[error("the manifest is in docker's format of before 2016 (schema 1)")]
    Schema1,
    /// It has another version.
    #[error("the manifest has schema version {version}, not 2")]
    SchemaVersion {
        /// The version.
        version: u64,
    },
    /// It is an index and a manifest at the same time.
    #[error("the document has both layers and manifests")]
    Ambiguous,
    /// It is neither.
    #[error("the document is neither an index nor a manifest")]
    Neither,
    /// Its media type does not fit what it is.
    #[error("the document claims to be `{}`, but was served as `{}`", .own.escape_debug(), .served.escape_debug())]
    MediaType {
        /// The type in the document, or what it is.
        own: String,
        /// The type that its descriptor or the registry claims.
        served: String,
    },
    /// It has no image, but something else that registries keep.
    #[error("`{}` is not an image", .media_type.escape_debug())]
    Artifact {
        /// Its type.
        media_type: String,
    },
    /// A layer is not a tar archive.
    #[error("layer {number} has the type `{}`, which Kiln does not read", .media_type.escape_debug())]
    LayerType {
        /// Its place, from 1.
        number: usize,
        /// Its type.
        media_type: String,
    },
    /// It has too many layers.
    #[error("the manifest has {layers} layers, over {LAYERS_MAX}")]
    TooManyLayers {
        /// How many.
        layers: usize,
    },
    /// A blob is longer than a file can be, or a document than a document may be.
    #[error("`{digest}` has {size} bytes, which is too large")]
    Size {
        /// Its digest.
        digest: Digest,
        /// Its size.
        size: u64,
    },
}

impl ManifestError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Schema1 => Some("push the image again with a current docker, or convert it with `skopeo copy`"),
            Self::LayerType { media_type, .. } if media_type.ends_with("+encrypted") => {
                Some("decrypt the image first: `skopeo copy --decryption-key`")
            }
            _ => None,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<Object<RawDescriptor>>,
    layers: Option<Vec<Object<RawDescriptor>>>,
    manifests: Option<Vec<Object<RawDescriptor>>>,
    fs_layers: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: Option<String>,
    digest: Digest,
    size: u64,
    platform: Option<Object<Platform>>,
    annotations: Option<BTreeMap<String, String>>,
}

impl Document {
    /// Reads a document that was served under a media type, if the source has one.
    ///
    /// # Errors
    /// If it is malformed, ambiguous, not an image, or over a bound.
    pub fn parse(bytes: &[u8], served: Option<&str>) -> Result<Self, ManifestError> {
        let Object(raw): Object<Raw> = json::read(bytes).map_err(ManifestError::Json)?;
        let served = served.map(|served| served.split(';').next().unwrap_or("").trim());
        let is_old = |media_type: &str| SCHEMA_1.contains(&media_type);
        if raw.fs_layers.is_some() || raw.schema_version == Some(1) || served.is_some_and(is_old) {
            return Err(ManifestError::Schema1);
        }
        if let Some(version) = raw.schema_version.filter(|version| *version != 2) {
            return Err(ManifestError::SchemaVersion { version });
        }
        if raw.manifests.is_some() && (raw.layers.is_some() || raw.config.is_some()) {
            return Err(ManifestError::Ambiguous);
        }
        let (document, types) = if let Some(manifests) = raw.manifests {
            (Self::Index(Index::check(descriptors(manifests))?), [OCI_INDEX, DOCKER_LIST])
        } else if let Some(Object(config)) = raw.config {
            let layers = descriptors(raw.layers.unwrap_or_default());
            (Self::Manifest(Manifest::check(config.into(), layers)?), [OCI_MANIFEST, DOCKER_MANIFEST])
        } else {
            return Err(ManifestError::Neither);
        };
        check_types(raw.media_type.as_deref(), served, types)?;
        Ok(document)
    }
}

/// Servers that do not know a type send a general one, which is not a claim. A type of a manifest or index is one.
fn check_types(own: Option<&str>, served: Option<&str>, types: [&str; 2]) -> Result<(), ManifestError> {
    let is_claim = |media_type: &&str| [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST].contains(media_type);
    let served = served.filter(is_claim);
    let differs = |own: &str, served: &str| ManifestError::MediaType { own: own.to_owned(), served: served.to_owned() };
    if let Some(own) = own.filter(|own| !types.contains(own)) {
        return Err(differs(own, served.unwrap_or(types[0])));
    }
    match (own, served) {
        (Some(own), Some(served)) if own != served => Err(differs(own, served)),
        (_, Some(served)) if !types.contains(&served) => Err(differs(own.unwrap_or(types[0]), served)),
        _ => Ok(()),
    }
}

impl Index {
    fn check(manifests: Vec<Descriptor>) -> Result<Self, ManifestError> {
        manifests.iter().try_for_each(Descriptor::check_document)?;
        Ok(Self { manifests })
    }
}

impl Manifest {
    fn check(config: Descriptor, layers: Vec<Descriptor>) -> Result<Self, ManifestError> {
        if !matches!(config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
            return Err(ManifestError::Artifact { media_type: config.media_type });
        }
        config.check_document()?;
        if layers.len() > LAYERS_MAX {
            return Err(ManifestError::TooManyLayers { layers: layers.len() });
        }
        for (layer, number) in layers.iter().zip(1..) {
            let is_tar = |suffix: &&str| layer.media_type.strip_suffix(*suffix).is_some_and(|at| LAYERS.contains(&at));
            if !LAYER_SUFFIXES.iter().any(is_tar) {
                return Err(ManifestError::LayerType { number, media_type: layer.media_type.clone() });
            }
            layer.check_size(i64::MAX.unsigned_abs())?;
        }
        Ok(Self { config, layers })
    }
}

impl Descriptor {
    /// Whether the blob is an index.
    pub fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_INDEX | DOCKER_LIST)
    }

    fn check_document(&self) -> Result<(), ManifestError> {
        self.check_size(DOCUMENT_BYTES_MAX as u64)
    }

    fn check_size(&self, max: u64) -> Result<(), ManifestError> {
        if self.size > max {
            return Err(ManifestError::Size { digest: self.digest.clone(), size: self.size });
        }
        Ok(())
    }
}

impl From<RawDescriptor> for Descriptor {
    fn from(raw: RawDescriptor) -> Self {
        Self {
            media_type: raw.media_type.unwrap_or_default(),
            digest: raw.digest,
            size: raw.size,
            platform: raw.platform.map(|platform| platform.0),
            annotations: raw.annotations.unwrap_or_default(),
        }
    }
}

fn descriptors(raw: Vec<Object<RawDescriptor>>) -> Vec<Descriptor> {
    raw.into_iter().map(|raw| raw.0.into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn blob(media_type: &str, size: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{DIGEST}","size":{size}}}"#)
    }

    fn manifest(layers: &[String]) -> String {
        format!(r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#, blob(OCI_CONFIG, "2"), layers.join(","))
    }

    fn refused(text: &str, served: Option<&str>) -> String {
        let error = Document::parse(text.as_bytes(), served).expect_err("is refused");
        let source = std::error::Error::source(&error).and_then(std::error::Error::source);
        let cause = source.map(|source| format!(": {source}")).unwrap_or_default();
        let hint = error.hint().map(|hint| format!(" (hint: {hint})")).unwrap_or_default();
        format!("{error}{cause}{hint}")
    }

    #[test]
    fn both_forms_of_manifests_and_indexes_are_read() {
        let layers = ["+gzip", "+zstd", ""].map(|suffix| blob(&format!("{OCI_LAYER}{suffix}"), "9"));
        let Ok(Document::Manifest(read)) = Document::parse(manifest(&layers).as_bytes(), Some(OCI_MANIFEST)) else {
            panic!("is a manifest");
        };
        assert_eq!((read.layers.len(), read.config.size), (3, 2));

        let docker = format!(
            r#"{{"schemaVersion":2,"mediaType":"{DOCKER_MANIFEST}","config":{},"layers":[{}]}}"#,
            blob(DOCKER_CONFIG, "2"),
            blob("application/vnd.docker.image.rootfs.diff.tar.gzip", "3")
        );
        assert!(Document::parse(docker.as_bytes(), Some("application/json; charset=utf-8")).is_ok());

        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"digest":"{DIGEST}","size":3,"platform":{{"os":"linux","architecture":"amd64"}},"annotations":null}}]}}"#
        );
        assert!(matches!(Document::parse(index.as_bytes(), Some(OCI_INDEX)), Ok(Document::Index(_))));
        assert!(matches!(Document::parse(index.as_bytes(), None), Ok(Document::Index(_))));
    }

    #[test]
    fn an_image_without_layers_is_an_image() {
        let text = format!(r#"{{"schemaVersion":2,"config":{},"layers":null}}"#, blob(OCI_CONFIG, "2"));
        assert!(matches!(Document::parse(text.as_bytes(), None), Ok(Document::Manifest(_))));
    }

    #[test]
    fn confusing_documents_are_refused() {
        let layer = || blob(OCI_LAYER, "9");
        let whole = manifest(&[layer()]);
        let both = whole.replacen("\"layers\"", "\"manifests\":[],\"layers\"", 1);
        let typed = whole.replacen('{', &format!(r#"{{"mediaType":"{OCI_INDEX}","#), 1);
        let docker = whole.replacen('{', &format!(r#"{{"mediaType":"{DOCKER_MANIFEST}","#), 1);
        let helm = whole.replace(OCI_CONFIG, "application/vnd.cncf.helm.config.v1+json");
        let many = manifest(&vec![layer(); 1000]);
        let deep = format!(r#"{{"manifests":{}{}}}"#, "[".repeat(1000), "]".repeat(1000));
        let with = |from: &str, to: &str| refused(&whole.replacen(from, to, 1), None);
        let lines = [
            ("layers and manifests", refused(&both, None)),
            ("an index as manifest", refused(&whole, Some(OCI_INDEX))),
            ("a manifest that claims to be an index", refused(&typed, Some(OCI_MANIFEST))),
            ("docker's type as OCI's", refused(&docker, Some(OCI_MANIFEST))),
            ("schema 1", refused(r#"{"schemaVersion":1,"fsLayers":[]}"#, None)),
            ("schema 1 as type", refused("{}", Some(SCHEMA_1[1]))),
            ("schema 3", refused(r#"{"schemaVersion":3}"#, None)),
            ("neither", refused(r#"{"schemaVersion":2}"#, None)),
            ("an array", refused("[2,null,null,null,[],null]", None)),
            ("arrays as blobs", refused(&manifest(&[format!(r#"["x","{DIGEST}",9,null,null]"#)]), None)),
            ("an artifact", refused(&helm, None)),
            ("an encrypted layer", refused(&manifest(&[blob(&format!("{OCI_LAYER}+encrypted"), "9")]), None)),
            ("the same layer 1000 times", refused(&many, None)),
            ("a digest that is a path", with(DIGEST, "sha256:../../x")),
            ("a digest in upper case", with(DIGEST, &DIGEST.to_uppercase())),
            ("a size of -1", refused(&manifest(&[blob(OCI_LAYER, "-1")]), None)),
            ("a size of 2^63", refused(&manifest(&[blob(OCI_LAYER, "9223372036854775808")]), None)),
            ("a size of 1e3", refused(&manifest(&[blob(OCI_LAYER, "1e3")]), None)),
            ("a configuration of 1 GiB", refused(&whole.replacen("\"size\":2", "\"size\":1073741824", 1), None)),
            ("a key twice", with("\"layers\"", "\"layers\":[],\"layers\"")),
            ("a key in two cases", with("\"layers\"", "\"Layers\":[],\"layers\"")),
            ("1000 deep", refused(&deep, None)),
            ("nothing", refused("", None)),
        ];
        insta::assert_snapshot!(lines.map(|(what, error)| format!("{what}: {error}")).join("\n"));
    }
}
