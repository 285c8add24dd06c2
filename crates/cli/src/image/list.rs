//! What images there are, and what is in them.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use comfy_table::{Table, presets};
use kiln_engine::image::{AnyImage, Image, ImageName, ImageStore, Origin, RootImage};
use serde::Serialize;

use super::find::{home, image_failure};
use crate::failure::{Failure, USAGE};
use crate::output::{mebibytes, plain, print, print_json, say};

/// Enough digits to distinguish the images of one host.
const DIGEST_CHARS_SHOWN: usize = 12;
/// What an image without a name is listed as.
const NO_NAME: &str = "<none>";

/// An image as `--json` prints it. Fields of the other kind of image are absent.
#[derive(Debug, Serialize)]
pub(super) struct Listed {
    name: String,
    digest: String,
    #[serde(flatten)]
    parts: Parts,
    /// What its VM runs before it is saved.
    warm: Vec<String>,
    created_unix_seconds: u64,
    size_bytes: u64,
    dir: Utf8PathBuf,
}

#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Parts {
    Boot { kernel: String, agent_digest: String, modules: Vec<String>, memory_mib_min: Option<u64> },
    Root { source: String, manifest: Option<String>, layers: Vec<String>, notes: Vec<String>, entries: u64 },
}

impl From<&Image> for Listed {
    fn from(image: &Image) -> Self {
        let image = image.clone();
        Self {
            name: image.name,
            digest: image.digest,
            parts: Parts::Boot {
                kernel: image.kernel_version,
                agent_digest: image.agent_digest,
                modules: image.modules,
                memory_mib_min: image.memory_mib_min,
            },
            warm: image.warm,
            created_unix_seconds: image.created_unix_seconds,
            size_bytes: image.size_bytes,
            dir: image.dir,
        }
    }
}

impl From<&RootImage> for Listed {
    fn from(image: &RootImage) -> Self {
        let image = image.clone();
        let Origin { source, manifest, layers, notes } = image.origin;
        Self {
            name: image.name,
            digest: image.digest,
            parts: Parts::Root { source, manifest, layers, notes, entries: image.entries },
            warm: image.warm,
            created_unix_seconds: image.created_unix_seconds,
            size_bytes: image.size_bytes,
            dir: image.dir,
        }
    }
}

impl From<&AnyImage> for Listed {
    fn from(image: &AnyImage) -> Self {
        match image {
            AnyImage::Boot(image) => image.as_ref().into(),
            AnyImage::Root(image) => image.as_ref().into(),
        }
    }
}

/// Runs `kiln image ls`.
pub(super) fn list(json: bool) -> Result<u8, Failure> {
    let store = ImageStore::new(&home()?);
    let images = store.list().map_err(image_failure)?;
    if json {
        let listed: Vec<Listed> = images.iter().map(Listed::from).collect();
        print_json(&listed)?;
        return Ok(0);
    }
    print(table(&images, &store.names().map_err(image_failure)?))?;
    Ok(0)
}

/// One row for each name, and one for each image without a name.
fn table(images: &[AnyImage], names: &BTreeMap<ImageName, String>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["NAME", "DIGEST", "KERNEL", "SIZE", "LEAST MEMORY"]);
    for image in images {
        let named = names.iter().filter(|(_, digest)| *digest == image.digest()).map(|(name, _)| name.to_string());
        let mut named: Vec<_> = named.collect();
        if named.is_empty() {
            named.push(NO_NAME.to_owned());
        }
        let (kernel, memory) = match image {
            AnyImage::Boot(image) => (image.kernel_version.clone(), least_memory(image)),
            AnyImage::Root(_) => ("-".to_owned(), "-".to_owned()),
        };
        for name in named {
            let digest = image.digest().chars().take(DIGEST_CHARS_SHOWN).collect();
            table.add_row([name, digest, kernel.clone(), mebibytes(image.size_bytes()), memory.clone()]);
        }
    }
    table
}

/// All of an image with a root filesystem.
#[derive(Debug, Serialize)]
struct Inspected {
    #[serde(flatten)]
    listed: Listed,
    names: Vec<ImageName>,
    /// The document of the OCI specification.
    config: serde_json::Value,
}

/// Runs `kiln image inspect`.
pub(super) fn inspect(name: &str) -> Result<u8, Failure> {
    let store = ImageStore::new(&home()?);
    let image = store.find(name).map_err(image_failure)?;
    let names = store.names_of(image.digest()).map_err(image_failure)?;
    let config = match &image {
        AnyImage::Boot(_) => serde_json::Value::Null,
        AnyImage::Root(image) => serde_json::from_slice(&image.config.to_json(&[]))?,
    };
    print_json(&Inspected { listed: Listed::from(&image), names, config })?;
    Ok(0)
}

/// A step of an image's history as `--json` prints it.
#[derive(Debug, Serialize)]
struct Step {
    created: Option<String>,
    created_by: Option<String>,
    comment: Option<String>,
    empty_layer: bool,
}

/// Runs `kiln image history`. As in docker, the newest step comes first.
pub(super) fn history(name: &str, json: bool) -> Result<u8, Failure> {
    let AnyImage::Root(image) = ImageStore::new(&home()?).find(name).map_err(image_failure)? else {
        let failure = Failure::words(USAGE, format!("`{name}` boots, and was not made in steps"));
        return Err(failure.hint(format!("kiln image inspect {name}")));
    };
    let steps = image.config.history.iter().rev().map(|step| Step {
        created: step.created.clone(),
        created_by: step.created_by.clone(),
        comment: step.comment.clone(),
        empty_layer: step.empty_layer,
    });
    if json {
        print_json(&steps.collect::<Vec<_>>())?;
        return Ok(0);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["CREATED", "CREATED BY", "COMMENT"]);
    for step in steps {
        table.add_row([step.created, step.created_by, step.comment].map(|text| plain(&text.unwrap_or_default())));
    }
    print(table)?;
    Ok(0)
}

/// The least memory that an image boots with, as text.
pub fn least_memory(image: &Image) -> String {
    let note = if image.memory_mib_min.is_some() { "" } else { " (not measured)" };
    format!("{} MiB{note}", image.memory_mib_needed())
}

/// Runs `kiln image verify`.
pub(super) fn verify(name: &str) -> Result<u8, Failure> {
    let image = ImageStore::new(&home()?).find(name).map_err(image_failure)?;
    image.verify().map_err(image_failure)?;
    say(format_args!("image `{name}` matches its digest"));
    Ok(0)
}

#[cfg(test)]
mod tests {
    use kiln_engine::image::KernelFormat;
    use kiln_oci::ImageConfig;

    use super::*;

    #[test]
    fn the_list_is_a_table_or_json() {
        let measured = Image {
            name: "mini".into(),
            digest: "0123456789abcdef".repeat(4),
            dir: "/images/0123".into(),
            kernel: "/images/0123/kernel".into(),
            initramfs: "/images/0123/initramfs".into(),
            cmdline: String::new(),
            kernel_version: "6.1.0-1-cloud-amd64".into(),
            kernel_format: KernelFormat::BzImage,
            agent_digest: "fedc".repeat(16),
            modules: vec!["tun".into()],
            kernel_package: None,
            kernel_digest: None,
            memory_mib_min: Some(80),
            warm: Vec::new(),
            created_unix_seconds: 1_000_000,
            size_bytes: 21 << 20,
        };
        let unmeasured = Image { name: "other".into(), memory_mib_min: None, ..measured.clone() };
        let root = RootImage {
            name: "python:3.12".into(),
            digest: "fedcba9876543210".repeat(4),
            dir: "/images/fedc".into(),
            root: "/images/fedc/root.erofs".into(),
            config: ImageConfig::bare(),
            origin: Origin { source: "docker.io/library/python:3.12".into(), ..Origin::default() },
            entries: 11_000,
            warm: vec!["python3 -c pass".into()],
            created_unix_seconds: 1_000_001,
            size_bytes: 203 << 20,
        };
        let json = [Listed::from(&measured), Listed::from(&root)];
        let json = serde_json::to_string_pretty(&json).expect("plain data");
        let digests = [("mini", &measured.digest), ("python:3.12", &root.digest), ("py", &root.digest)];
        let names = digests.into_iter().map(|(name, digest)| (name.parse().expect("a name"), digest.clone())).collect();
        let unnamed = AnyImage::Boot(Image { digest: "0".repeat(64), ..unmeasured }.into());
        let table = table(&[AnyImage::Boot(measured.into()), AnyImage::Root(root.into()), unnamed], &names);
        insta::assert_snapshot!(format!("{table}\n\n{json}"));
    }
}
