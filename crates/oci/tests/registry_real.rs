//! Pulls from Debian's registry, with images that buildah, umoci and skopeo made.

mod support;

use std::ops::ControlFlow;
use std::path::Path;

use kiln_oci::{
    Account, BlobCache, Compression, Credentials, Image, LayerSums, PullError, PullOptions, Pulled, Reference, pull,
    resolve,
};
use support::store::options;
use support::tools::{Images, Protection, Registry, path, run};

fn pull_with(registry: &Registry, name: &str, options: &PullOptions) -> Result<(Pulled, tempfile::TempDir), PullError> {
    let home = tempfile::tempdir().expect("a directory");
    let cache = BlobCache::open(home.path()).expect("a cache");
    let reference: Reference = format!("{}/{name}", registry.authority()).parse().expect("is a reference");
    pull(&reference, &cache, options, &mut |_| ControlFlow::Continue(())).map(|pulled| (pulled, home))
}

/// Reads all layers.
fn sums(image: &Image) -> Vec<LayerSums> {
    image.layers().map(|layer| layer.open(1 << 30).expect("opens").finish().expect("is whole")).collect()
}

fn source(images: &Images, name: &str, tag: &str) -> String {
    format!("oci:{}:{tag}", path(&images.path(name)))
}

#[test]
fn images_of_every_maker_are_pulled() {
    let images = Images::get();
    let registry = Registry::start(Protection::Open);
    registry.push(&source(&images, "layout", "two"), "a/two:1");
    registry.push(&source(&images, "zstd", "two"), "a/zstd:1");
    registry.push(&source(&images, "umoci", "1"), "umoci:1");
    registry.push(&source(&images, "both", "1"), "both:1");

    let (two, _home) = pull_with(&registry, "a/two:1", &options()).expect("is pulled");
    let config = &two.image.config;
    assert_eq!(config.entrypoint, ["/bin/app", "-v"]);
    assert_eq!((config.cmd.as_slice(), config.working_dir.as_deref()), (&["serve".to_owned()][..], Some("/srv")));
    assert!(config.env.contains(&"GREETING=hi there".to_owned()));
    assert_eq!(config.user.as_ref().map(ToString::to_string).as_deref(), Some("1000:1000"));
    assert_eq!(config.stop_signal.map(kiln_oci::Signal::number), Some(2));
    assert!(config.exposed_ports.contains("8080/tcp") && config.volumes.contains("/data"));
    assert_eq!(config.labels.get("maker").map(String::as_str), Some("buildah"));
    assert!(two.image.notes.is_empty(), "{:?}", two.image.notes);
    let gzip = sums(&two.image);
    assert_eq!(gzip.iter().map(|one| one.compression).collect::<Vec<_>>(), [Compression::Gzip; 2]);

    let (zstd, _home) = pull_with(&registry, "a/zstd:1", &options()).expect("is pulled");
    let zstd_sums = sums(&zstd.image);
    assert_eq!(zstd_sums.iter().map(|one| one.compression).collect::<Vec<_>>(), [Compression::Zstd; 2]);
    assert!(zstd_sums.iter().zip(&gzip).all(|(a, b)| a.diff_id == b.diff_id), "the same content, packed otherwise");

    let (umoci, _home) = pull_with(&registry, "umoci:1", &options()).expect("is pulled");
    assert_eq!(umoci.image.config.user.as_ref().map(|user| &user.user), Some(&Account::Name("nobody".to_owned())));
    assert_eq!(sums(&umoci.image).len(), 1);

    let (both, _home) = pull_with(&registry, "both:1", &options()).expect("is pulled");
    assert_eq!(both.image.config.architecture, "amd64");
    assert_ne!(Some(&both.digest), both.image.manifest_digest.as_ref(), "the name leads to an index");

    let pinned = format!("both@{}", both.digest);
    let (again, _home) = pull_with(&registry, &pinned, &options()).expect("is pulled by digest");
    assert_eq!(again.image.manifest_digest, both.image.manifest_digest);
    let reference: Reference = format!("{}/both:1", registry.authority()).parse().expect("is a reference");
    assert_eq!(resolve(&reference, &options()).expect("is there"), both.digest);

    let missing = pull_with(&registry, "both:2", &options()).expect_err("does not exist");
    assert!(matches!(missing, PullError::NotFound { .. }), "{missing}");
}

#[test]
fn a_password_is_used_and_required() {
    let images = Images::get();
    let registry = Registry::start(Protection::Password);
    registry.push(&source(&images, "umoci", "1"), "private:1");

    let error = pull_with(&registry, "private:1", &options()).expect_err("has no password");
    assert!(matches!(error, PullError::Unauthorized { with_credentials: false, .. }), "{error}");
    let with = |credentials| pull_with(&registry, "private:1", &PullOptions { credentials, ..options() });
    let wrong = Credentials::Given { user: "me".to_owned(), password: "wrong".to_owned() };
    let error = with(wrong).expect_err("has a wrong password");
    assert!(matches!(error, PullError::Unauthorized { with_credentials: true, .. }), "{error}");
    with(Credentials::Given { user: "me".to_owned(), password: "secret".to_owned() }).expect("is permitted");

    // What `skopeo login` writes is what `docker login` writes.
    let home = tempfile::tempdir().expect("a directory");
    let file = home.path().join("config.json");
    let login = ["login", "--tls-verify=false", "-u", "me", "-p", "secret", "--authfile", &path(&file)];
    run("skopeo", &[&login[..], &[&registry.authority()]].concat());
    with(Credentials::Docker(file)).expect("is permitted");
}

#[test]
fn a_certificate_of_an_own_authority_is_trusted_if_told_so() {
    let images = Images::get();
    let registry = Registry::start(Protection::Tls);
    registry.push(&source(&images, "umoci", "1"), "secure:1");

    let error = pull_with(&registry, "secure:1", &options()).expect_err("is not trusted");
    assert!(matches!(error, PullError::Tls { .. }), "{error:?}");
    let ca_file = Some(registry.ca_file());
    pull_with(&registry, "secure:1", &PullOptions { ca_file, ..options() }).expect("is trusted");
    let ca_file = Some("/dev/null".into());
    let error = pull_with(&registry, "secure:1", &PullOptions { ca_file, ..options() }).expect_err("is no file");
    assert!(matches!(error, PullError::CaFile { .. }), "{error}");
    assert!(Path::new(&registry.ca_file()).exists());
}
