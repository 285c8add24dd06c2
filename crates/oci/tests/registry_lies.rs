//! A registry that lies, in each way that has been seen or is easy to think of: the pull ends with the fault's name, in
//! bounded time, and nothing wrong is in the cache.

mod support;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kiln_oci::{
    BlobCache, Credentials, Digest, OCI_INDEX, OCI_MANIFEST, Progress, PullError, PullOptions, Pulled, pull, resolve,
};
use support::chain;
use support::server::{Part, Reply, Request, Server, head, reply};
use support::store::{Store, image, noise, options, reference};

/// A pull into a new cache, and the cache.
fn try_pull(server: &Server, options: &PullOptions) -> (Result<Pulled, PullError>, tempfile::TempDir) {
    let home = tempfile::tempdir().expect("a directory");
    let cache = BlobCache::open(home.path()).expect("a cache");
    let outcome = pull(&reference(server, "1"), &cache, options, &mut |_| ControlFlow::Continue(()));
    (outcome, home)
}

/// The error of a pull, without the ports of this run.
fn refused(server: &Server, options: &PullOptions) -> PullError {
    let (outcome, home) = try_pull(server, options);
    let error = outcome.expect_err("is refused");
    for entry in std::fs::read_dir(home.path().join("blobs/sha256")).expect("exists") {
        let entry = entry.expect("is listed");
        let name = format!("sha256:{}", entry.file_name().to_string_lossy());
        let digest: Digest = name.parse().expect("is a digest");
        assert!(digest.matches(&std::fs::read(entry.path()).expect("is a file")), "a wrong blob is in the cache");
    }
    error
}

fn text(error: &PullError, servers: &[&Server]) -> String {
    let mut text = chain(error);
    for (server, name) in servers.iter().zip(["REGISTRY", "OTHER"]) {
        text = text.replace(&server.authority(), name);
    }
    // How much of a head arrived before it was too much differs.
    let text = text.split(" is too big").next().map_or(text.clone(), str::to_owned);
    match error.hint() {
        Some(hint) => format!("{text}\n  hint: {hint}"),
        None => text,
    }
}

fn is_blob(request: &Request, layer: &Digest) -> bool {
    request.path.ends_with(&layer.to_string())
}

fn gets_manifest(request: &Request) -> bool {
    request.method == "GET" && request.path.contains("/manifests/")
}

/// The text of what happens if a registry answers requests for the layer like this.
fn layer_lie(lie: impl Fn(&Request, &[u8]) -> Reply + Send + Sync + 'static) -> String {
    let (store, layer) = image();
    let lie =
        move |request: &Request, store: &Store| is_blob(request, &layer).then(|| lie(request, &store.blobs[&layer]));
    let server = store.serve(lie);
    let mut options = options();
    options.retry.attempts = 2;
    let layer = image().1.to_string();
    text(&refused(&server, &options), &[&server]).replace(&layer, "LAYER")
}

#[test]
fn an_honest_registry_gives_the_image() {
    let (store, layer) = image();
    let server = store.clone().serve(|_, _| None);
    let mut last = Progress::default();
    let home = tempfile::tempdir().expect("a directory");
    let cache = BlobCache::open(home.path()).expect("a cache");
    let reference = reference(&server, "1");
    let mut pull = || {
        let watch = &mut |progress: &Progress| {
            last = progress.clone();
            ControlFlow::Continue(())
        };
        pull(&reference, &cache, &options(), watch).expect("is honest")
    };
    let pulled = pull();
    assert_eq!(pulled.digest, store.tags["1"].1);
    assert_eq!(pulled.image.manifest_digest.as_ref(), Some(&pulled.digest));
    let layers: Vec<_> = pulled.image.layers().collect();
    assert_eq!(layers.iter().map(|one| one.digest()).collect::<Vec<_>>(), [Some(&layer)]);
    let sums = layers[0].open(1 << 20).expect("is in the cache").finish().expect("has the right digests");
    assert_eq!(sums.unpacked_bytes, 300_000);

    let before = server.requests().len();
    pull();
    let again: Vec<String> = server.requests()[before..].iter().map(|request| request.method.clone()).collect();
    assert_eq!(again, ["HEAD"], "the second pull only asks for the digest");
    assert_eq!((last.layers.len(), last.bytes()), (1, last.total()));
    assert_eq!(resolve(&reference, &options()).expect("is honest"), pulled.digest);
}

#[test]
fn lies_about_a_layer_are_named() {
    let lines = [
        ("other bytes", layer_lie(|_, layer| reply(200, &[], &noise(layer.len())))),
        ("a longer one", layer_lie(|_, layer| reply(200, &[], &[layer, b"more"].concat()))),
        (
            "a longer one without length",
            layer_lie(|_, layer| vec![head(200, &[]), Part::Bytes([layer, b"more"].concat())]),
        ),
        ("an endless one", layer_lie(|_, _| vec![head(200, &[]), Part::Forever(vec![0; 65_536], Duration::ZERO)])),
        ("a shorter one", layer_lie(|_, layer| reply(200, &[], &layer[..1000]))),
        (
            "a shorter one without length",
            layer_lie(|request, layer| match request.header("range") {
                Some(_) => reply(416, &[], b""),
                None => vec![head(200, &[]), Part::Bytes(layer[..1000].to_vec())],
            }),
        ),
        ("an encoding", layer_lie(|_, layer| reply(200, &[("content-encoding", "gzip")], layer))),
        (
            "another range",
            layer_lie(|request, layer| match request.header("range") {
                Some(_) => reply(206, &[("content-range", "bytes 0-9/10")], &layer[..10]),
                None => vec![
                    head(200, &[("content-length", &layer.len().to_string())]),
                    Part::Bytes(layer[..1000].to_vec()),
                ],
            }),
        ),
        ("a range that was not asked for", layer_lie(|_, layer| reply(206, &[], layer))),
        ("no layer", layer_lie(|_, _| reply(404, &[], b"gone"))),
        ("no HTTP", layer_lie(|_, _| vec![Part::Bytes(b"220 mail.example ESMTP\r\n".to_vec())])),
        ("an error", layer_lie(|_, _| reply(500, &[], br#"{"errors":[{"message":"on\u001b[31m fire"}]}"#))),
        ("a header of 1 MB", layer_lie(|_, _| vec![head(200, &[("x", &"y".repeat(1 << 20))])])),
        ("a redirect to a file", layer_lie(|_, _| reply(307, &[("location", "file:///etc/shadow")], b""))),
        ("a redirect to metadata", layer_lie(|_, _| reply(307, &[("location", "http://169.254.169.254/x")], b""))),
        ("a redirect to a network", layer_lie(|_, _| reply(307, &[("location", "http://10.0.0.1/x")], b""))),
        ("a redirect to nowhere", layer_lie(|_, _| reply(307, &[], b""))),
    ];
    insta::assert_snapshot!(lines.map(|(what, text)| format!("{what}: {text}")).join("\n"));
}

#[test]
fn a_redirect_loop_ends_after_some_hops() {
    let (store, layer) = image();
    let server = store
        .serve(move |request, _| is_blob(request, &layer).then(|| reply(302, &[("location", &request.path)], b"")));
    let error = refused(&server, &options());
    assert!(matches!(error, PullError::Redirects { hops: 5, .. }), "{error}");
    assert_eq!(server.count("GET", "/blobs/"), 1 + 6, "the configuration, and the layer with its redirects");
}

#[test]
fn a_redirect_to_another_server_gets_no_authorization() {
    let (store, layer) = image();
    let blob = store.blobs[&layer].clone();
    let storage = Server::start(move |_| reply(200, &[], &blob));
    let target = format!("http://{}/signed?x=1", storage.authority());
    let server = store.serve(move |request, _| match request.header("authorization") {
        None => Some(reply(401, &[("www-authenticate", "Basic realm=\"x\"")], b"")),
        Some(_) => is_blob(request, &layer).then(|| reply(307, &[("location", &target)], b"")),
    });
    let credentials = Credentials::Given { user: "me".to_owned(), password: "secret".to_owned() };
    try_pull(&server, &PullOptions { credentials, ..options() }).0.expect("is honest");
    let requests = storage.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].header("authorization"), None);
    assert_eq!(requests[0].path, "/signed?x=1");
}

#[test]
fn urls_of_foreign_layers_are_not_followed() {
    let other = Server::start(|_| reply(200, &[], b"x"));
    let (mut store, layer) = image();
    let (_, digest) = store.tags["1"].clone();
    let manifest = String::from_utf8(store.blobs[&digest].clone()).expect("is JSON");
    let url = format!(
        "\"urls\":[\"http://{}/x\"],\"mediaType\":\"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip\"",
        other.authority()
    );
    let manifest = manifest.replacen(&format!("\"mediaType\":\"{}+gzip\"", kiln_oci::OCI_LAYER), &url, 1);
    assert!(manifest.contains("urls"));
    store.add_document("1", OCI_MANIFEST, manifest.as_bytes());
    store.blobs.remove(&layer);
    let server = store.serve(|_, _| None);
    let error = refused(&server, &options());
    assert!(matches!(error, PullError::NoBlob { .. }), "{error}");
    assert!(other.requests().is_empty());
}

#[test]
fn a_download_that_is_cut_continues() {
    let (store, layer) = image();
    let whole = store.blobs[&layer].clone();
    let step = whole.len() / 3 + 1;
    let server = store.serve(move |request, _| {
        let start = request
            .header("range")
            .map_or(0, |range| range["bytes=".len()..range.len() - 1].parse().expect("a number"));
        let end = whole.len().min(start + step);
        let rest = (whole.len() - start).to_string();
        let range = format!("bytes {start}-{}/{}", whole.len() - 1, whole.len());
        let status = if start == 0 { 200 } else { 206 };
        let answer = vec![
            head(status, &[("content-length", &rest), ("content-range", &range)]),
            Part::Bytes(whole[start..end].to_vec()),
        ];
        is_blob(request, &layer).then_some(answer)
    });
    try_pull(&server, &options()).0.expect("arrives in three parts");
    let ranges: Vec<bool> = server.requests().iter().map(|request| request.header("range").is_some()).collect();
    assert_eq!(ranges.iter().filter(|has_range| **has_range).count(), 2);
}

#[test]
fn a_server_without_ranges_is_asked_for_the_whole() {
    let (store, layer) = image();
    let (whole, attempts) = (store.blobs[&layer].clone(), AtomicUsize::new(0));
    let server = store.serve(move |request, _| {
        let is_first = is_blob(request, &layer) && attempts.fetch_add(1, Ordering::Relaxed) == 0;
        let length = whole.len().to_string();
        let cut = vec![head(200, &[("content-length", &length)]), Part::Bytes(whole[..1000].to_vec())];
        is_blob(request, &layer).then(|| if is_first { cut } else { reply(200, &[], &whole) })
    });
    try_pull(&server, &options()).0.expect("the second attempt is whole");
}

#[test]
fn a_damaged_part_on_disk_is_downloaded_again() {
    let (store, layer) = image();
    let server = store.serve(|_, _| None);
    let home = tempfile::tempdir().expect("a directory");
    let cache = BlobCache::open(home.path()).expect("a cache");
    for damaged in [noise(1000), noise(1_000_000), vec![0; 1]] {
        std::fs::write(home.path().join(format!("partial/sha256-{}", layer.hex())), damaged).expect("a file");
        let pulled = pull(&reference(&server, "1"), &cache, &options(), &mut |_| ControlFlow::Continue(()));
        assert!(pulled.is_ok(), "{pulled:?}");
        std::fs::remove_file(home.path().join(format!("blobs/sha256/{}", layer.hex()))).expect("is there");
    }
}

#[test]
fn two_pulls_download_a_layer_once() {
    let (store, layer) = image();
    let name = layer.to_string();
    let server = store.serve(move |request, store| {
        // Slow enough that the second pull comes while the first one downloads.
        let blob = &store.blobs[&layer];
        let head = head(200, &[("content-length", &blob.len().to_string())]);
        let parts = blob.chunks(blob.len() / 20).map(|part| Part::Bytes(part.to_vec()));
        is_blob(request, &layer).then(|| {
            std::thread::sleep(Duration::from_millis(300));
            std::iter::once(head).chain(parts).collect()
        })
    });
    let home = tempfile::tempdir().expect("a directory");
    let cache = BlobCache::open(home.path()).expect("a cache");
    std::thread::scope(|scope| {
        let pull = || pull(&reference(&server, "1"), &cache, &options(), &mut |_| ControlFlow::Continue(()));
        let pulls = [scope.spawn(pull), scope.spawn(pull), scope.spawn(pull)];
        for pull in pulls {
            let pulled = pull.join().expect("does not panic").expect("is honest");
            pulled.image.layers().next().expect("has one").open(1 << 20).expect("opens").finish().expect("is whole");
        }
    });
    assert_eq!(server.count("GET", &name), 1);
    let left = std::fs::read_dir(home.path().join("partial")).expect("exists").count();
    assert_eq!(left, 0, "no partial file is left");
}

#[test]
fn a_slow_or_silent_server_is_left() {
    let serve = |answer: fn() -> Part| {
        let (store, layer) = image();
        store.serve(move |request, store| {
            let length = store.blobs[&layer].len().to_string();
            is_blob(request, &layer).then(|| vec![head(200, &[("content-length", &length)]), answer()])
        })
    };
    let mut options = options();
    options.retry.attempts = 1;
    options.rate.window = Duration::from_millis(200);
    options.rate.silence_max = Duration::from_secs(30);
    let slow = serve(|| Part::Forever(vec![0], Duration::from_millis(10)));
    let error = refused(&slow, &options);
    assert!(matches!(error, PullError::Slow { .. }), "{error}");
    options.rate.silence_max = Duration::from_millis(200);
    let silent = serve(|| Part::Silence);
    let error = refused(&silent, &options);
    assert!(matches!(error, PullError::Silent { .. }), "{error}");
}

#[test]
fn a_pull_ends_when_its_caller_or_its_deadline_requires() {
    let (store, layer) = image();
    let server = store.serve(move |request, _| is_blob(request, &layer).then(|| vec![head(200, &[]), Part::Silence]));
    let home = tempfile::tempdir().expect("a directory");
    let cache = BlobCache::open(home.path()).expect("a cache");
    let started = Instant::now();
    let break_at_layers = &mut |progress: &Progress| match progress.layers.is_empty() {
        true => ControlFlow::Continue(()),
        false => ControlFlow::Break(()),
    };
    let error = pull(&reference(&server, "1"), &cache, &options(), break_at_layers).expect_err("is cancelled");
    assert!(matches!(error, PullError::Cancelled), "{error}");
    let short = PullOptions { deadline: Duration::from_millis(300), ..options() };
    let error = pull(&reference(&server, "1"), &cache, &short, &mut |_| ControlFlow::Continue(()));
    assert!(matches!(error, Err(PullError::Deadline { .. })), "{error:?}");
    // Without the two, each would have taken the 30 s in which a server may be silent.
    assert!(started.elapsed() < Duration::from_secs(25));
}

#[test]
fn lies_about_manifests_are_named() {
    let manifest_lie = |lie: fn(&Request, &Store) -> Option<Reply>| {
        let server = image().0.serve(lie);
        text(&refused(&server, &options()), &[&server])
    };
    let other = Digest::sha256(b"other").to_string();
    let lines = [
        (
            "another digest",
            manifest_lie(|request, _| {
                let other = Digest::sha256(b"other").to_string();
                (request.method == "HEAD").then(|| vec![head(200, &[("docker-content-digest", &other)])])
            }),
        ),
        ("another manifest", manifest_lie(|request, _| gets_manifest(request).then(|| reply(200, &[], b"{}")))),
        (
            "another type",
            manifest_lie(|request, store| {
                let manifest = &store.blobs[&store.tags["1"].1];
                gets_manifest(request).then(|| reply(200, &[("content-type", OCI_INDEX)], manifest))
            }),
        ),
        (
            "an endless manifest",
            manifest_lie(|request, _| {
                gets_manifest(request).then(|| vec![head(200, &[]), Part::Forever(vec![b' '; 65_536], Duration::ZERO)])
            }),
        ),
        ("no such tag", manifest_lie(|request, _| request.path.contains("/manifests/").then(|| reply(404, &[], b"")))),
        (
            "a challenge of 1 MB",
            manifest_lie(|_, _| {
                Some(reply(401, &[("www-authenticate", &format!("Bearer realm=\"{}\"", "x".repeat(1 << 20)))], b""))
            }),
        ),
        (
            "a challenge of 32 kB",
            manifest_lie(|_, _| {
                Some(reply(401, &[("www-authenticate", &format!("Bearer realm=\"{}\"", "x".repeat(32_000)))], b""))
            }),
        ),
        ("an unknown challenge", manifest_lie(|_, _| Some(reply(401, &[("www-authenticate", "Negotiate")], b"")))),
        (
            "a token server that is a file",
            manifest_lie(|_, _| Some(reply(401, &[("www-authenticate", "Bearer realm=\"file:///etc/shadow\"")], b""))),
        ),
        (
            "a token server elsewhere without TLS",
            manifest_lie(|_, _| {
                Some(reply(401, &[("www-authenticate", "Bearer realm=\"http://auth.example/token\"")], b""))
            }),
        ),
        (
            "a token server in a network",
            manifest_lie(|_, _| {
                Some(reply(401, &[("www-authenticate", "Bearer realm=\"https://169.254.169.254/token\"")], b""))
            }),
        ),
    ];
    let all = lines.map(|(what, text)| format!("{what}: {text}")).join("\n");
    insta::assert_snapshot!(all.replace(&other, "OTHER"));
}

#[test]
fn documents_that_confuse_are_refused() {
    let serve = |change: fn(&mut Store)| {
        let (mut store, _) = image();
        change(&mut store);
        let server = store.serve(|_, _| None);
        text(&refused(&server, &options()), &[&server])
    };
    let lines = [
        (
            "indexes after each other",
            serve(|store| {
                let manifest = store.tags["1"].1.clone();
                let inner = store.add_index("2", OCI_MANIFEST, &manifest);
                let middle = store.add_index("3", OCI_INDEX, &inner);
                store.add_index("1", OCI_INDEX, &middle);
            }),
        ),
        (
            "a thousand layers",
            serve(|store| {
                store.add_manifest("1", b"{}", &vec![b"layer".to_vec(); 1000]);
            }),
        ),
        (
            "a configuration that is a list",
            serve(|store| {
                store.add_manifest("1", b"[]", &[]);
            }),
        ),
        (
            "too few digests of layers",
            serve(|store| {
                let config = br#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}"#;
                store.add_manifest("1", config, &[b"layer".to_vec()]);
            }),
        ),
        (
            "another machine",
            serve(|store| {
                let config = br#"{"os":"linux","architecture":"riscv64","rootfs":{"type":"layers","diff_ids":[]}}"#;
                store.add_manifest("1", config, &[]);
            }),
        ),
        (
            "too much",
            serve(|store| {
                let digest = store.tags["1"].1.clone();
                let text = String::from_utf8(store.blobs[&digest].clone()).expect("is JSON");
                let size = text.rfind("\"size\":").expect("has one");
                let end = size + text[size..].find('}').expect("ends");
                let text = format!("{}\"size\":9223372036854775807{}", &text[..size], &text[end..]);
                store.add_document("1", OCI_MANIFEST, text.as_bytes());
            }),
        ),
    ];
    insta::assert_snapshot!(lines.map(|(what, text)| format!("{what}: {text}")).join("\n"));
}

#[test]
fn two_indexes_lead_to_the_manifest() {
    let (mut store, _) = image();
    let manifest = store.tags["1"].1.clone();
    let inner = store.add_index("2", OCI_MANIFEST, &manifest);
    let outer = store.add_index("1", OCI_INDEX, &inner);
    let server = store.serve(|_, _| None);
    let pulled = try_pull(&server, &options()).0.expect("is honest");
    assert_eq!((pulled.digest, pulled.image.manifest_digest), (outer, Some(manifest)));
}

#[test]
fn faults_that_pass_are_tried_again() {
    let (store, _) = image();
    let left = Mutex::new(vec![429, 503, 502, 500, 429, 504]);
    let server = store.serve(move |request, _| {
        let status = if request.path == "/v2/" { None } else { left.lock().expect("is fine").pop() };
        status.map(|status| reply(status, &[("retry-after", "0")], b""))
    });
    let mut options = options();
    options.retry.attempts = 7;
    try_pull(&server, &options).0.expect("the faults end");
}

#[test]
fn a_rate_limit_is_left_to_the_user() {
    let body = br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}"#;
    let server = image().0.serve(move |request, _| {
        (request.method == "GET")
            .then(|| reply(429, &[("retry-after", "3600")], body))
            .filter(|_| request.path != "/v2/")
    });
    let error = refused(&server, &options());
    insta::assert_snapshot!(text(&error, &[&server]));
    assert_eq!(server.count("GET", "/"), 1, "the time is too long to wait");
}

#[test]
fn a_loop_of_challenges_ends() {
    let with = |challenge: String, credentials| {
        let server = image().0.serve(move |request, _| {
            (request.path != "/v2/").then(|| reply(401, &[("www-authenticate", &challenge)], b""))
        });
        let error = refused(&server, &PullOptions { credentials, ..options() });
        assert!(matches!(error, PullError::Unauthorized { .. }), "{error}");
        (text(&error, &[&server]), server.requests().len())
    };
    let given = || Credentials::Given { user: "me".to_owned(), password: "wrong".to_owned() };
    let tokens = Server::start(|_| reply(200, &[], br#"{"token":"useless"}"#));
    let bearer = format!("Bearer realm=\"http://{}/token\",service=\"s\"", tokens.authority());
    let (without, requests) = with("Basic realm=\"x\"".to_owned(), Credentials::None);
    assert_eq!(requests, 1, "there is nothing to try");
    let (wrong, requests) = with("Basic realm=\"x\"".to_owned(), given());
    assert_eq!(requests, 2);
    let (_, requests) = with(bearer, given());
    assert_eq!((requests, tokens.requests().len()), (2, 1));
    insta::assert_snapshot!(format!("{without}\n{wrong}"));
}

#[test]
fn tokens_are_asked_for_and_renewed() {
    let (store, _) = image();
    let issued = Arc::new(AtomicUsize::new(0));
    let number = Arc::clone(&issued);
    let tokens = Server::start(move |_| {
        let token = format!("{{\"access_token\":\"t{}\",\"expires_in\":300}}", number.fetch_add(1, Ordering::Relaxed));
        reply(200, &[], token.as_bytes())
    });
    let realm = format!("http://{}/token?a=b", tokens.authority());
    let challenge = format!("Bearer realm=\"{realm}\",service=\"my registry\",scope=\"repository:other:push\"");
    // Each token is good for two requests.
    let (uses, current) = (AtomicUsize::new(0), Arc::clone(&issued));
    let server = store.serve(move |request, _| {
        let wanted = format!("Bearer t{}", current.load(Ordering::Relaxed).wrapping_sub(1));
        let is_good = request.header("authorization") == Some(&wanted) && uses.fetch_add(1, Ordering::Relaxed) % 3 != 2;
        (!is_good && request.path != "/v2/").then(|| reply(401, &[("www-authenticate", &challenge)], b""))
    });
    let credentials = Credentials::Given { user: "me".to_owned(), password: "secret".to_owned() };
    try_pull(&server, &PullOptions { credentials, ..options() }).0.expect("is honest");
    let asked = tokens.requests();
    assert!(asked.len() >= 2, "{asked:?}");
    for request in &asked {
        assert_eq!(request.path, "/token?a=b&service=my%20registry&scope=repository%3Atest%2Fimage%3Apull");
        assert_eq!(request.header("authorization"), Some("Basic bWU6c2VjcmV0"));
    }
    let leaked = server
        .requests()
        .iter()
        .any(|request| request.header("authorization").is_some_and(|value| value.starts_with("Basic")));
    assert!(!leaked, "the password goes to the token server alone");
}

#[test]
fn a_refresh_token_goes_to_the_token_server_alone() {
    let tokens = Server::start(|_| reply(200, &[], br#"{"access_token":"short"}"#));
    let challenge = format!("Bearer realm=\"http://{}/token\",service=\"s\"", tokens.authority());
    let server = image().0.serve(move |request, _| {
        let is_good = request.header("authorization") == Some("Bearer short");
        (!is_good && request.path != "/v2/").then(|| reply(401, &[("www-authenticate", &challenge)], b""))
    });
    let home = tempfile::tempdir().expect("a directory");
    let file = home.path().join("config.json");
    let config = format!(r#"{{"auths":{{"{}":{{"identitytoken":"refresh me"}}}}}}"#, server.authority());
    std::fs::write(&file, config).expect("a file");
    try_pull(&server, &PullOptions { credentials: Credentials::Docker(file), ..options() }).0.expect("is honest");
    let asked = tokens.requests();
    assert_eq!((asked.len(), asked[0].method.as_str(), asked[0].header("authorization")), (1, "POST", None));
    let form = "service=s&scope=repository%3Atest%2Fimage%3Apull&grant_type=refresh_token&client_id=kiln\
        &refresh_token=refresh%20me";
    assert_eq!(asked[0].body, form);
    assert!(!format!("{:?}", server.requests()).contains("refresh"));
}
