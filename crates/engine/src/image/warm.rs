//! What the VM of an image runs before it is saved as a ready-made snapshot. It is kept in the manifest of the image,
//! so that snapshots of other sizes, and those that are made again, run the same.

use super::error::ImageError;
use super::name::ImageName;
use super::root::RootManifest;
use super::store::{AnyImage, ImageStore, Manifest, is_root};

/// The most lines.
pub const WARM_LINES_MAX: usize = 32;
/// The most bytes of all lines. A manifest has room for them, also if each byte is escaped.
pub const WARM_BYTES_MAX: usize = 32 << 10;

impl ImageStore {
    /// Sets the lines that a VM of an image runs before it is saved; an empty list forgets them. An image that takes the
    /// name of another one takes its lines, too, unless it has some.
    ///
    /// # Errors
    /// [`ImageError::Warm`]; or there is no such image, or its manifest can't be written.
    pub fn set_warm(&self, name_or_digest: &str, lines: &[String]) -> Result<AnyImage, ImageError> {
        if lines.len() > WARM_LINES_MAX || lines.iter().map(String::len).sum::<usize>() > WARM_BYTES_MAX {
            return Err(ImageError::Warm);
        }
        let digest = self.resolve(name_or_digest)?;
        let (dir, warm) = (self.dir(&digest), lines.to_vec());
        if is_root(&dir) {
            let manifest = RootManifest { warm, ..RootManifest::read(&dir)? };
            self.replace_manifest(&dir, &manifest)?;
        } else {
            let manifest = Manifest { warm, ..Manifest::read(&dir)? };
            self.replace_manifest(&dir, &manifest)?;
        }
        self.load_any(&digest)
    }

    /// Gives an image a name, and the lines of the image that had the name.
    pub(super) fn replace_name(&self, name: &ImageName, digest: &str) -> Result<(), ImageError> {
        if let Some(before) = self.named(name).filter(|before| before != digest)
            && let Ok(before) = self.load_any(&before)
            && !before.warm().is_empty()
            && self.load_any(digest)?.warm().is_empty()
        {
            self.set_warm(digest, before.warm())?;
        }
        self.set_name(name.as_str(), digest)
    }
}

#[cfg(test)]
mod tests {
    use kiln_oci::ImageConfig;

    use super::*;
    use crate::home::Home;
    use crate::image::Origin;

    #[test]
    fn lines_stay_with_an_image_and_go_to_the_next_one_of_its_name() {
        let place = tempfile::tempdir().expect("a directory");
        let home = camino::Utf8Path::from_path(place.path()).expect("UTF-8").join("home");
        let store = ImageStore::new(&Home::at(home));
        let make = |name: &str, command: &str| {
            let mut silent = |_| {};
            let builder = store.root_builder(name, &mut silent).expect("starts");
            let config = ImageConfig { cmd: vec![command.into()], ..ImageConfig::bare() };
            builder.finish(&config, Origin::default()).expect("is made")
        };
        let lines = |name: &str| store.find(name).expect("is there").warm().to_vec();
        let first = make("app", "one");
        assert_eq!(first.warm, [""; 0]);
        let set = store.set_warm("app", &["python3 -c pass".into(), "true".into()]).expect("is set");
        assert_eq!((set.digest(), set.warm().len()), (first.digest.as_str(), 2));
        store.find("app").expect("is whole").verify().expect("the digest does not cover the lines");

        let second = make("app", "two");
        assert_ne!(second.digest, first.digest);
        assert_eq!(second.warm, ["python3 -c pass", "true"]);
        store.set_warm("app", &["own".into()]).expect("is set");
        make("other", "three");
        assert_eq!(lines("other"), [""; 0]);
        // An image with lines of its own keeps them.
        store.set_warm(&first.digest, &["first".into()]).expect("is set");
        make("app", "one");
        assert_eq!(lines("app"), ["first"]);
        store.set_warm("app", &[]).expect("is set");
        assert_eq!(lines("app"), [""; 0]);

        for wrong in [vec![String::new(); WARM_LINES_MAX + 1], vec!["x".repeat(WARM_BYTES_MAX + 1)]] {
            assert!(matches!(store.set_warm("app", &wrong), Err(ImageError::Warm)));
        }
        // The longest in JSON is a byte that takes six characters.
        store.set_warm("app", &["\u{1}".repeat(WARM_BYTES_MAX)]).expect("is set");
        assert_eq!(lines("app")[0].len(), WARM_BYTES_MAX);
    }
}
