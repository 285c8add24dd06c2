//! The text of every error that a user can get from a source of images.

use std::error::Error;
use std::io;
use std::time::Duration;

use crate::{
    ConfigError, CredentialsError, DescendError, Digest, DocumentError, ExportError, FileError, IndexError, JsonError,
    LayerError, LocationError, ManifestError, OpenError, PlatformError, PullError, ReferenceError,
};

/// A list of errors, each with the name of its variant. The `match` names all variants, so an enum with a new one does
/// not compile here until the list has it. The assertion holds each error to the name before it.
macro_rules! every_variant {
    ($enum:ident { $($variant:ident: $value:expr),+ $(,)? }) => {{
        let variant_of = |value: &$enum| match value {
            $($enum::$variant { .. } => stringify!($variant),)+
        };
        let named = [$((stringify!($variant), $value)),+];
        named.into_iter().inspect(|(name, value)| assert_eq!(variant_of(value), *name)).collect::<Vec<_>>()
    }};
}

/// Each error with its sources and its hint.
fn lines<E: Error>(errors: &[(&str, E)], hint: impl Fn(&E) -> Option<&'static str>) -> String {
    let line = |(name, error): &(&str, E)| {
        let chain = std::iter::successors(Some(error as &dyn Error), |&error| error.source());
        let text = chain.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        let hint = hint(error).map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
        format!("{name}: {text}{hint}")
    };
    errors.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn digest() -> Digest {
    Digest::sha256(b"")
}

fn full() -> io::Error {
    io::Error::from(io::ErrorKind::StorageFull)
}

fn text(text: &str) -> String {
    text.to_owned()
}

fn file() -> FileError {
    FileError::NotRegular { path: "/i/index.json".into() }
}

fn json() -> JsonError {
    JsonError::TooLarge { bytes: 5_000_000 }
}

fn location() -> LocationError {
    crate::Location::parse("file:///x").expect_err("is no URL of a registry")
}

#[test]
fn errors_of_pulls_read_like_this() {
    let (server, s) = (|| text("registry.example"), Duration::from_secs);
    let errors = every_variant!(PullError {
        Location: PullError::Location(location()),
        CaFile: PullError::CaFile { path: "/ca.pem".into(), source: "it has no certificate".into() },
        NoTls: PullError::NoTls { server: server() },
        Tls: PullError::Tls { server: server(), source: "the certificate has expired".into() },
        Connect: PullError::Connect { server: server(), source: "connection refused".into() },
        NoServer: PullError::NoServer { server: server() },
        Silent: PullError::Silent { server: server(), waited: s(30) },
        Slow: PullError::Slow { server: server(), bytes: 12, window: s(60) },
        Cut: PullError::Cut { server: server(), received: 12, expected: 100 },
        Redirect: PullError::Redirect("`x` is at 127.0.0.1".into()),
        Downgrade: PullError::Downgrade { server: server(), target: text("x") },
        Redirects: PullError::Redirects { server: server(), hops: 5 },
        Status: PullError::Status { server: server(), status: 500, message: text("on fire") },
        RateLimited: PullError::RateLimited { server: server(), after: Some(s(3600)), message: String::new() },
        NotFound: PullError::NotFound { reference: text("registry.example/a:1") },
        Unauthorized: PullError::Unauthorized { registry: server(), repository: text("a"), with_credentials: false },
        Challenge: PullError::Challenge { server: server() },
        Realm: PullError::Realm { realm: text("auth.example") },
        Token: PullError::Token { server: server() },
        Credentials: PullError::Credentials(CredentialsError::File(file())),
        Encoding: PullError::Encoding { server: server(), digest: digest(), encoding: text("gzip") },
        Length: PullError::Length { server: server(), digest: digest(), expected: 1, found: 2 },
        Digest: PullError::Digest { server: server(), digest: digest() },
        Range: PullError::Range { server: server(), digest: digest(), range: text("bytes 0-9/10"), start: 5 },
        NoBlob: PullError::NoBlob { server: server(), digest: digest() },
        DocumentTooLarge: PullError::DocumentTooLarge { server: server(), limit: 4_194_304 },
        TooLarge: PullError::TooLarge { bytes: 2, limit: 1 },
        Document: PullError::Document(DocumentError::Size { digest: digest(), expected: 1, found: 2 }),
        Manifest: PullError::Manifest(ManifestError::Schema1),
        Descend: PullError::Descend(DescendError::TooDeep),
        Config: PullError::Config(ConfigError::Json(json())),
        Cache: PullError::Cache(crate::CacheError::writing("/cache/partial/x".as_ref(), full())),
        Deadline: PullError::Deadline { limit: s(14_400) },
        Cancelled: PullError::Cancelled,
    });
    insta::assert_snapshot!(lines(&errors, PullError::hint));
}

#[test]
fn errors_of_files_read_like_this() {
    let errors = every_variant!(OpenError {
        Guess: OpenError::Guess { text: text("A B"), source: ReferenceError::Repository { repository: text("A B") } },
        File: OpenError::File(FileError::TooLarge { path: "/i/index.json".into(), limit: 4_194_304 }),
        Archive: OpenError::Archive(IndexError::TooManyMembers),
        Unpack: OpenError::Unpack { path: "/i.tar.gz".into(), source: io::ErrorKind::UnexpectedEof.into() },
        TooLarge: OpenError::TooLarge { path: "/i.tar.gz".into(), limit: 1 },
        Spool: OpenError::Spool { path: "/tmp".into(), source: full() },
        Mark: OpenError::Mark(json()),
        LayoutVersion: OpenError::LayoutVersion { found: text("2.0.0") },
        DockerManifest: OpenError::DockerManifest(json()),
        Manifest: OpenError::Manifest(ManifestError::Neither),
        Descend: OpenError::Descend(DescendError::Platform(PlatformError::Ambiguous { manifests: 2 })),
        Document: OpenError::Document(DocumentError::Digest { digest: digest() }),
        Config: OpenError::Config(ConfigError::LayerCount { diff_ids: 1, layers: 2 }),
        Empty: OpenError::Empty,
        SeveralImages: OpenError::SeveralImages { names: vec![text("a:1"), text("b:1")] },
        NoSuchName: OpenError::NoSuchName { name: text("c"), names: Vec::new() },
    });
    insta::assert_snapshot!(lines(&errors, OpenError::hint));
}

#[test]
fn errors_of_layers_and_exports_read_like_this() {
    let (expected, found) = (digest, || Digest::sha256(b"x"));
    let layers = every_variant!(LayerError {
        Read: LayerError::Read(io::Error::other(file())),
        Unpack: LayerError::Unpack(io::ErrorKind::InvalidData.into()),
        Size: LayerError::Size { expected: 1, found: 2 },
        Digest: LayerError::Digest { expected: expected(), found: found() },
        DiffId: LayerError::DiffId { expected: expected(), found: found() },
        TooLarge: LayerError::TooLarge { limit: 1 },
    });
    let exports = every_variant!(ExportError {
        Layer: ExportError::Layer(full()),
        Changed: ExportError::Changed,
        Output: ExportError::Output(full()),
        File: ExportError::File { path: "/out/index.json".into(), source: full() },
    });
    insta::assert_snapshot!(format!("{}\n{}", lines(&layers, |_| None), lines(&exports, |_| None)));
}

#[test]
fn images_can_be_read_in_other_threads() {
    fn is_sent<T: Send>() {}
    is_sent::<crate::Image>();
    is_sent::<crate::LayerReader<crate::BlobReader>>();
    is_sent::<PullError>();
}
