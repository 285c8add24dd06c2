//! Writes an image of one layer for other programs: as an OCI layout, or as an archive.
//!
//! The archive is an OCI layout and an archive of docker at the same time, like those of docker since version 25: docker,
//! podman, skopeo and containerd all read it. The same layer, configuration and names give the same bytes: nothing in it
//! has the time or the host.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use tar::{EntryType, Header};

use crate::config::ImageConfig;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::image::blob_path;
use crate::layout::{REF_NAME, WHOLE_NAME};
use crate::manifest::{Descriptor, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
use crate::reference::Reference;

const BUFFER_BYTES: usize = 256 << 10;
const BLOCK_BYTES: u64 = 512;
/// The mark of an OCI layout.
const MARK: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// An image that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Digest of its manifest.
    pub manifest_digest: Digest,
    /// Digest of its configuration.
    pub config_digest: Digest,
    /// Digest of its layer, which is not compressed.
    pub diff_id: Digest,
}

/// Why an image was not written.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The layer can't be read.
    #[error("failed to read the layer")]
    Layer(#[source] io::Error),
    /// The layer changed between the computation of its digest and its copy.
    #[error("the layer changed while it was exported")]
    Changed,
    /// The archive can't be written.
    #[error("failed to write the archive")]
    Output(#[source] io::Error),
    /// A file of the layout can't be written.
    #[error("failed to write `{}`", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
}

/// The files of an image, without its layer.
struct Plan {
    exported: Exported,
    layer_bytes: u64,
    files: Vec<(String, Vec<u8>)>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ManifestForm<'a> {
    schema_version: u8,
    media_type: &'a str,
    config: &'a Descriptor,
    layers: [&'a Descriptor; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct IndexForm<'a> {
    schema_version: u8,
    media_type: &'a str,
    manifests: Vec<Descriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerForm {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: [String; 1],
}

/// Writes an archive. The layer is a tar archive that is not compressed; it is read twice from its start.
///
/// # Errors
/// If the layer can't be read or changes meanwhile, or the output returns an error.
pub fn write_archive(
    mut output: impl Write,
    layer: &mut (impl Read + Seek),
    config: &ImageConfig,
    names: &[Reference],
) -> Result<Exported, ExportError> {
    let plan = Plan::new(layer, config, names)?;
    let failed = ExportError::Output;
    for folder in ["blobs/", "blobs/sha256/"] {
        output.write_all(header(folder, EntryType::Directory, 0).as_bytes()).map_err(failed)?;
    }
    let path = blob_path(&plan.exported.diff_id);
    output.write_all(header(&path, EntryType::Regular, plan.layer_bytes).as_bytes()).map_err(failed)?;
    copy(layer, &mut output, &plan, failed)?;
    pad(&mut output, plan.layer_bytes).map_err(failed)?;
    for (path, bytes) in &plan.files {
        let size = bytes.len() as u64;
        output.write_all(header(path, EntryType::Regular, size).as_bytes()).map_err(failed)?;
        output.write_all(bytes).map_err(failed)?;
        pad(&mut output, size).map_err(failed)?;
    }
    output.write_all(&[0; 2 * BLOCK_BYTES as usize]).and_then(|()| output.flush()).map_err(failed)?;
    Ok(plan.exported)
}

/// Writes a layout into a directory, which is made if it does not exist. What it had of an image before is replaced.
///
/// # Errors
/// If the layer can't be read or changes meanwhile, or a file can't be written.
pub fn write_layout(
    folder: &Path,
    layer: &mut (impl Read + Seek),
    config: &ImageConfig,
    names: &[Reference],
) -> Result<Exported, ExportError> {
    let plan = Plan::new(layer, config, names)?;
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).map_err(|source| ExportError::File { path: blobs.clone(), source })?;
    let path = folder.join(blob_path(&plan.exported.diff_id));
    let failed = |source| ExportError::File { path: path.clone(), source };
    copy(layer, &mut File::create(&path).map_err(failed)?, &plan, failed)?;
    // `index.json` comes last, when all that it names is there.
    let last = |(path, _): &&(String, Vec<u8>)| path == "index.json";
    let files = plan.files.iter().filter(|file| !last(file)).chain(plan.files.iter().filter(last));
    for (path, bytes) in files.filter(|(path, _)| path != "manifest.json") {
        let path = folder.join(path);
        std::fs::write(&path, bytes).map_err(|source| ExportError::File { path, source })?;
    }
    Ok(plan.exported)
}

impl Plan {
    fn new(layer: &mut (impl Read + Seek), config: &ImageConfig, names: &[Reference]) -> Result<Self, ExportError> {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        layer.seek(SeekFrom::Start(0)).map_err(ExportError::Layer)?;
        let layer_bytes = read_all(layer, |bytes| {
            hasher.update(bytes);
            Ok(())
        })?;
        let diff_id = hasher.finish();
        let config_json = config.to_json(std::slice::from_ref(&diff_id));
        let config_blob = descriptor(OCI_CONFIG, Digest::sha256(&config_json), config_json.len() as u64);
        let layer_blob = descriptor(OCI_LAYER, diff_id.clone(), layer_bytes);
        let manifest = json(&ManifestForm {
            schema_version: 2,
            media_type: OCI_MANIFEST,
            config: &config_blob,
            layers: [&layer_blob],
        });
        let manifest_blob = Descriptor {
            platform: Some(config.platform()),
            ..descriptor(OCI_MANIFEST, Digest::sha256(&manifest), manifest.len() as u64)
        };
        let tagged: Vec<&Reference> = names.iter().filter(|name| name.tag().is_some()).collect();
        let index = IndexForm { schema_version: 2, media_type: OCI_INDEX, manifests: named(&manifest_blob, &tagged) };
        let docker = DockerForm {
            config: blob_path(&config_blob.digest),
            repo_tags: Some(tagged.iter().map(|name| untagged(name)).collect()),
            layers: [blob_path(&diff_id)],
        };
        let files = vec![
            (blob_path(&config_blob.digest), config_json),
            (blob_path(&manifest_blob.digest), manifest),
            ("index.json".to_owned(), json(&index)),
            ("manifest.json".to_owned(), json(&[docker])),
            ("oci-layout".to_owned(), MARK.to_vec()),
        ];
        let exported = Exported { manifest_digest: manifest_blob.digest, config_digest: config_blob.digest, diff_id };
        Ok(Self { exported, layer_bytes, files })
    }
}

/// The manifest once for each name, or once without a name.
fn named(manifest: &Descriptor, names: &[&Reference]) -> Vec<Descriptor> {
    let with_name = |name: &&Reference| {
        let tag = name.tag().unwrap_or_default().to_owned();
        let annotations = [(WHOLE_NAME.to_owned(), without_digest(name).to_string()), (REF_NAME.to_owned(), tag)];
        Descriptor { annotations: annotations.into(), ..manifest.clone() }
    };
    if names.is_empty() { vec![manifest.clone()] } else { names.iter().map(with_name).collect() }
}

/// The name as docker writes it, such as `python:3.12`.
fn untagged(name: &Reference) -> String {
    without_digest(name).familiar()
}

/// The export has another digest than what the name once led to.
fn without_digest(name: &Reference) -> Reference {
    let text = name.to_string();
    let tagged = text.split('@').next().unwrap_or(&text);
    tagged.parse().expect("a reference without its digest is a reference")
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor { media_type: media_type.to_owned(), digest, size, platform: None, annotations: [].into() }
}

fn json(form: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(form).expect("its keys are texts")
}

fn header(path: &str, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    header
}

fn pad(output: &mut impl Write, size: u64) -> io::Result<()> {
    let rest = usize::try_from(size % BLOCK_BYTES).expect("is less than a block");
    if rest == 0 { Ok(()) } else { output.write_all(&[0; BLOCK_BYTES as usize][rest..]) }
}

/// Copies the layer, which must still be the one whose digest was computed.
fn copy(
    layer: &mut (impl Read + Seek),
    output: &mut impl Write,
    plan: &Plan,
    failed: impl Fn(io::Error) -> ExportError,
) -> Result<(), ExportError> {
    layer.seek(SeekFrom::Start(0)).map_err(ExportError::Layer)?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut left = plan.layer_bytes;
    read_all(layer, |bytes| {
        hasher.update(bytes);
        left = left.checked_sub(bytes.len() as u64).ok_or(ExportError::Changed)?;
        output.write_all(bytes).map_err(&failed)
    })?;
    if left > 0 || hasher.finish() != plan.exported.diff_id { Err(ExportError::Changed) } else { Ok(()) }
}

fn read_all(input: &mut impl Read, mut take: impl FnMut(&[u8]) -> Result<(), ExportError>) -> Result<u64, ExportError> {
    let (mut buffer, mut bytes) = (vec![0; BUFFER_BYTES], 0);
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(count) => {
                take(&buffer[..count])?;
                bytes += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ExportError::Layer(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::image::Image;
    use crate::image::Origin;
    use crate::source::OpenOptions;

    fn config() -> ImageConfig {
        ImageConfig { cmd: vec!["/bin/sh".to_owned()], ..ImageConfig::bare() }
    }

    fn archive(layer: &[u8], names: &[&str]) -> (Vec<u8>, Exported) {
        let names: Vec<Reference> = names.iter().map(|name| name.parse().expect("a reference")).collect();
        let mut output = Vec::new();
        let exported = write_archive(&mut output, &mut Cursor::new(layer), &config(), &names).expect("in memory");
        (output, exported)
    }

    #[test]
    fn an_archive_reads_back_as_the_same_image() {
        let layer = b"a layer of no whole block".repeat(100);
        let (bytes, exported) = archive(&layer, &["python:3.12", "ghcr.io/a/b"]);
        assert_eq!(archive(&layer, &["python:3.12", "ghcr.io/a/b"]).0, bytes, "the same input gives the same bytes");
        let home = tempfile::tempdir().expect("a directory");
        let options = OpenOptions { name: Some("ghcr.io/a/b:latest".to_owned()), ..OpenOptions::new(home.path()) };
        let image = Image::read_archive(bytes.as_slice(), &options).expect("is an image");
        assert_eq!(image.origin, Origin::Layout);
        assert_eq!(image.names, ["ghcr.io/a/b:latest", "latest"]);
        assert_eq!(
            (image.manifest_digest, image.config_digest),
            (Some(exported.manifest_digest), Some(exported.config_digest))
        );
        assert_eq!(image.config, config());
        let layers: Vec<_> = image.layers.iter().collect();
        let mut read = Vec::new();
        layers[0].open(1 << 20).expect("opens").read_to_end(&mut read).expect("has the right digests");
        assert_eq!((layers.len(), read), (1, layer));
    }

    #[test]
    fn a_layout_reads_back_as_the_same_image() {
        let home = tempfile::tempdir().expect("a directory");
        let folder = home.path().join("new");
        let exported = write_layout(&folder, &mut Cursor::new(b"layer"), &config(), &[]).expect("is written");
        let image = Image::open_folder(&folder, &OpenOptions::new(home.path())).expect("is an image");
        assert_eq!(image.manifest_digest, Some(exported.manifest_digest));
        let sums = image.layers[0].open(100).expect("opens").finish().expect("has the right digests");
        assert_eq!(sums.diff_id, exported.diff_id);
    }

    #[test]
    fn a_layer_that_changes_meanwhile_is_an_error() {
        struct Changing(Cursor<Vec<u8>>);
        impl Read for Changing {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                self.0.read(into)
            }
        }
        impl Seek for Changing {
            fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
                self.0.get_mut()[0] += 1;
                self.0.seek(to)
            }
        }
        let mut layer = Changing(Cursor::new(vec![0; 10]));
        let outcome = write_archive(io::sink(), &mut layer, &config(), &[]);
        assert!(matches!(outcome, Err(ExportError::Changed)));
    }
}
