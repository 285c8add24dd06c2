//! An image in memory, and the answers of an honest registry that has it.

use std::collections::BTreeMap;
use std::time::Duration;

use kiln_oci::{Digest, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, PullOptions, Reference};

use super::gzip;
use super::server::{Reply, Request, Server, head, reply};

/// The blobs and the tags of a registry, all in one repository.
#[derive(Debug, Clone, Default)]
pub struct Store {
    /// Blobs, manifests included.
    pub blobs: BTreeMap<Digest, Vec<u8>>,
    /// Type and digest of what a tag leads to.
    pub tags: BTreeMap<String, (String, Digest)>,
}

impl Store {
    /// Adds a blob. Returns its digest.
    pub fn add(&mut self, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256(bytes);
        self.blobs.insert(digest.clone(), bytes.to_vec());
        digest
    }

    /// Adds an image of these layers, each a tar archive that is gzipped here, under a tag.
    pub fn add_image(&mut self, tag: &str, layers: &[&[u8]]) -> Digest {
        let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::sha256(layer).to_string()).collect();
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let blobs: Vec<Vec<u8>> = layers.iter().map(|layer| gzip(layer)).collect();
        self.add_manifest(tag, config.to_string().as_bytes(), &blobs)
    }

    /// Adds a manifest of blobs as they are.
    pub fn add_manifest(&mut self, tag: &str, config: &[u8], layers: &[Vec<u8>]) -> Digest {
        let config = serde_json::json!({
            "mediaType": OCI_CONFIG, "digest": self.add(config).to_string(), "size": config.len(),
        });
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| {
                let digest = self.add(layer).to_string();
                serde_json::json!({"mediaType": format!("{OCI_LAYER}+gzip"), "digest": digest, "size": layer.len()})
            })
            .collect();
        let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers});
        self.add_document(tag, OCI_MANIFEST, manifest.to_string().as_bytes())
    }

    /// Adds an index of one digest.
    pub fn add_index(&mut self, tag: &str, media_type: &str, of: &Digest) -> Digest {
        let size = self.blobs[of].len();
        let index = serde_json::json!({
            "schemaVersion": 2, "manifests": [{"mediaType": media_type, "digest": of.to_string(), "size": size}],
        });
        self.add_document(tag, OCI_INDEX, index.to_string().as_bytes())
    }

    /// Adds a manifest or index under a tag.
    pub fn add_document(&mut self, tag: &str, media_type: &str, bytes: &[u8]) -> Digest {
        let digest = self.add(bytes);
        self.tags.insert(tag.to_owned(), (media_type.to_owned(), digest.clone()));
        digest
    }

    /// What an honest registry answers.
    pub fn answer(&self, request: &Request) -> Reply {
        let object = request.path.rsplit('/').next().unwrap_or_default();
        if request.path == "/v2/" {
            return reply(200, &[], b"{}");
        }
        let tagged =
            self.tags.get(object).or_else(|| self.tags.values().find(|(_, digest)| digest.to_string() == object));
        let digest = tagged.map(|(_, digest)| digest.clone()).or_else(|| object.parse().ok());
        let Some((digest, blob)) = digest.and_then(|digest| Some((digest.clone(), self.blobs.get(&digest)?))) else {
            return reply(404, &[], b"{}");
        };
        let media_type = tagged.map_or("application/octet-stream", |(media_type, _)| media_type);
        let headers = [("content-type", media_type), ("docker-content-digest", &digest.to_string())];
        let start =
            request.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        match (request.method.as_str(), start) {
            ("HEAD", _) => {
                let length = blob.len().to_string();
                vec![head(200, &[headers[0], headers[1], ("content-length", &length)])]
            }
            (_, Some(start)) if start < blob.len() => {
                let range = format!("bytes {start}-{}/{}", blob.len() - 1, blob.len());
                reply(206, &[headers[0], ("content-range", &range)], &blob[start..])
            }
            (_, Some(_)) => reply(416, &[], b""),
            _ => reply(200, &headers, blob),
        }
    }

    /// A server with this store. `lie` answers what it does not leave to the store.
    pub fn serve(self, lie: impl Fn(&Request, &Self) -> Option<Reply> + Send + Sync + 'static) -> Server {
        Server::start(move |request| lie(request, &self).unwrap_or_else(|| self.answer(request)))
    }
}

/// An image of one layer, large enough to be cut.
pub fn image() -> (Store, Digest) {
    let mut store = Store::default();
    store.add_image("1", &[&noise(300_000)]);
    let layer = store.blobs.iter().max_by_key(|(_, blob)| blob.len()).expect("has blobs").0.clone();
    (store, layer)
}

/// Bytes that do not compress, the same each time.
pub fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// The reference of a tag on a server.
pub fn reference(server: &Server, tag: &str) -> Reference {
    format!("{}/test/image:{tag}", server.authority()).parse().expect("is a reference")
}

/// Options of a test: attempts follow each other quickly, and nothing waits for long.
pub fn options() -> PullOptions {
    let mut options = PullOptions { deadline: Duration::from_secs(60), ..PullOptions::default() };
    options.retry.first_delay = Duration::from_millis(5);
    options.retry.attempts = 4;
    options
}
