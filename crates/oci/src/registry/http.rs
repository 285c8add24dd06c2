//! One request and its redirects, within the rules: who may be asked, who gets the authorization, how long to wait.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, Method};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, Body, Proxy, Timeout};

use super::address::{Guard, GuardedResolver, Refused};
use super::error::PullError;
use super::location::Location;
use super::options::{MinimumRate, PullOptions};
use super::stop::Stop;
use crate::folder::{open_file, read_whole};
use crate::json::DOCUMENT_BYTES_MAX;

/// The most redirects of one request.
pub(crate) const REDIRECTS_MAX: usize = 5;
/// Time to resolve a name, and time to connect.
const CONNECT_DEADLINE: Duration = Duration::from_secs(20);
/// Time until an answer begins. Registries fetch blobs from their own storage first.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// All headers of an answer.
const HEADERS_BYTES_MAX: usize = 64 << 10;
/// A file with certificates.
const CA_FILE_BYTES_MAX: u64 = 4 << 20;
/// What an error page may have.
const ERROR_BYTES_MAX: u64 = 8 << 10;
/// Characters of a server's message that an error repeats.
const MESSAGE_CHARS_MAX: usize = 200;
const BUFFER_BYTES: usize = 64 << 10;

/// Makes requests for one pull.
#[derive(Debug)]
pub(crate) struct Http {
    agent: Agent,
    guard: Arc<Guard>,
    stop: Arc<Stop>,
    rate: MinimumRate,
}

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Request<'a> {
    pub method: Method,
    pub url: &'a Location,
    /// What the server may send.
    pub accept: Option<&'static str>,
    /// Sent to the server of the URL, and to no other after a redirect.
    pub authorization: Option<&'a str>,
    /// From which byte on.
    pub from: Option<u64>,
    /// A form, for a request with the method POST.
    pub form: Option<String>,
}

/// An answer whose body was not read yet.
#[derive(Debug)]
pub(crate) struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    /// Who answered, after redirects.
    pub url: Location,
    pub body: Flow,
}

/// A body that arrives, at a minimum rate.
pub(crate) struct Flow {
    body: ureq::BodyReader<'static>,
    server: String,
    rate: MinimumRate,
    stop: Arc<Stop>,
    window: (Instant, u64),
}

impl Http {
    /// For the pull from a registry.
    pub(crate) fn new(home: &Location, options: &PullOptions, stop: Arc<Stop>) -> Result<Self, PullError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&certificates(options.ca_file.as_deref())?))
            .unversioned_rustls_crypto_provider(provider)
            .build();
        // Like docker, no proxy is asked for this machine.
        let proxy = if home.is_loopback() { None } else { Proxy::try_from_env() };
        let config = Agent::config_builder()
            .tls_config(tls)
            .proxy(proxy)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .max_response_header_size(HEADERS_BYTES_MAX)
            .timeout_resolve(Some(CONNECT_DEADLINE))
            .timeout_connect(Some(CONNECT_DEADLINE))
            .timeout_send_request(Some(ANSWER_DEADLINE))
            .timeout_recv_response(Some(ANSWER_DEADLINE))
            .timeout_per_read(Some(options.rate.silence_max))
            .timeout_per_write(Some(options.rate.silence_max))
            .build();
        let guard = Arc::new(Guard::new(home));
        let resolver = GuardedResolver { guard: Arc::clone(&guard), inner: DefaultResolver::default() };
        let agent = Agent::with_parts(config, DefaultConnector::default(), resolver);
        Ok(Self { agent, guard, stop, rate: options.rate.clone() })
    }

    /// Ends all connections.
    pub(crate) fn shutdown(&self) {
        self.agent.clone().shutdown();
    }

    /// Sends a request, and follows its redirects.
    pub(crate) fn send(&self, request: &Request<'_>) -> Result<Reply, PullError> {
        let mut url = request.url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let authorization = request.authorization.filter(|_| url.same_server(request.url));
            let reply = self.send_once(request, url, authorization)?;
            let is_redirect = matches!(reply.status, 301 | 302 | 303 | 307 | 308);
            if !is_redirect || request.form.is_some() {
                return Ok(reply);
            }
            url = self.next(&reply)?;
        }
        Err(PullError::Redirects { server: request.url.server(), hops: REDIRECTS_MAX })
    }

    /// Where a redirect leads, if it may be followed.
    fn next(&self, reply: &Reply) -> Result<Location, PullError> {
        let nowhere = || PullError::Redirects { server: reply.url.server(), hops: REDIRECTS_MAX };
        let target = reply.headers.get("location").and_then(|target| target.to_str().ok()).ok_or_else(nowhere)?;
        let target = reply.url.join(target)?;
        if reply.url.secure && !target.secure {
            return Err(PullError::Downgrade { server: reply.url.server(), target: target.server() });
        }
        self.guard.check(&target).map_err(|refused| PullError::Redirect(Box::new(refused)))?;
        Ok(target)
    }

    fn send_once(&self, request: &Request<'_>, url: Location, authorization: Option<&str>) -> Result<Reply, PullError> {
        let mut builder = ureq::http::Request::builder().method(request.method.clone()).uri(url.to_string());
        if let Some(accept) = request.accept {
            builder = builder.header("accept", accept);
        }
        if let Some(authorization) = authorization {
            builder = builder.header("authorization", authorization);
        }
        if let Some(from) = request.from {
            builder = builder.header("range", format!("bytes={from}-"));
        }
        let failed = |error| self.failed(&url, error);
        let response = match &request.form {
            Some(form) => {
                let builder = builder.header("content-type", "application/x-www-form-urlencoded");
                self.agent.run(builder.body(form.as_str()).map_err(|error| failed(error.into()))?)
            }
            None => self.agent.run(builder.body(()).map_err(|error| failed(error.into()))?),
        };
        let (parts, body) = response.map_err(failed)?.into_parts();
        let body = self.flow(body, &url);
        Ok(Reply { status: parts.status.as_u16(), headers: parts.headers, url, body })
    }

    fn flow(&self, body: Body, url: &Location) -> Flow {
        Flow {
            body: body.into_reader(),
            server: url.server(),
            rate: self.rate.clone(),
            stop: Arc::clone(&self.stop),
            window: (Instant::now(), 0),
        }
    }

    fn failed(&self, url: &Location, error: ureq::Error) -> PullError {
        failed(&url.server(), &self.rate, error)
    }
}

/// What an error of the client means for us.
fn failed(server: &str, rate: &MinimumRate, error: ureq::Error) -> PullError {
    let server = server.to_owned();
    if let Some(tls) = tls_error(&error) {
        return match tls {
            // The first bytes of the answer are not of TLS.
            rustls::Error::InvalidMessage(_) => PullError::NoTls { server },
            _ => PullError::Tls { server, source: Box::new(error) },
        };
    }
    match error {
        ureq::Error::Timeout(Timeout::PerRead) => PullError::Silent { server, waited: rate.silence_max },
        ureq::Error::HostNotFound => PullError::NoServer { server },
        ureq::Error::Io(error) if is_unknown_name(&error) => PullError::NoServer { server },
        ureq::Error::Other(other) => match other.downcast::<Refused>() {
            Ok(refused) => PullError::Redirect(refused),
            Err(source) => PullError::Connect { server, source },
        },
        error => PullError::Connect { server, source: Box::new(error) },
    }
}

/// Whether a name does not exist. The standard library has no kind for it, only the text of the C library. A resolver
/// that does not answer has another text, and may answer later.
fn is_unknown_name(error: &io::Error) -> bool {
    error.to_string().contains("Name or service not known")
}

fn tls_error(error: &ureq::Error) -> Option<&rustls::Error> {
    match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}

impl Reply {
    /// A header, if it is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The whole body of a document.
    pub(crate) fn document(mut self) -> Result<Vec<u8>, PullError> {
        let mut bytes = Vec::new();
        let mut buffer = [0; BUFFER_BYTES];
        loop {
            let count = self.body.next(&mut buffer)?;
            if count == 0 {
                return Ok(bytes);
            }
            bytes.extend_from_slice(&buffer[..count]);
            if bytes.len() > DOCUMENT_BYTES_MAX {
                return Err(PullError::DocumentTooLarge { server: self.url.server(), limit: DOCUMENT_BYTES_MAX });
            }
        }
    }

    /// The error that the status means.
    pub(crate) fn into_error(self) -> PullError {
        let (server, status) = (self.url.server(), self.status);
        let after = self.header("retry-after").and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        let message = self.message();
        match status {
            429 => PullError::RateLimited { server, after, message },
            _ => PullError::Status { server, status, message },
        }
    }

    /// What the server writes about an error: the first message of its JSON, or nothing.
    fn message(mut self) -> String {
        #[derive(serde::Deserialize)]
        struct Errors {
            errors: Vec<Message>,
        }
        #[derive(serde::Deserialize)]
        struct Message {
            #[serde(default)]
            message: String,
        }
        let mut text = Vec::new();
        // The message only helps. If it does not arrive, the status is enough.
        let _ = Read::take(&mut self.body, ERROR_BYTES_MAX).read_to_end(&mut text);
        let errors: Option<Errors> = serde_json::from_slice(&text).ok();
        let first = errors.and_then(|errors| errors.errors.into_iter().next());
        first.map(|first| first.message.chars().take(MESSAGE_CHARS_MAX).collect()).unwrap_or_default()
    }
}

impl Flow {
    /// The next bytes; 0 at the end.
    pub(crate) fn next(&mut self, buffer: &mut [u8]) -> Result<usize, PullError> {
        if self.stop.reason().is_some() {
            return Err(PullError::Cancelled);
        }
        let count = loop {
            match self.body.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(&self.server, &self.rate, error.into())),
                Ok(count) => break count,
            }
        };
        let (start, bytes) = &mut self.window;
        *bytes += count as u64;
        if count > 0 && start.elapsed() > self.rate.window {
            if *bytes < self.rate.bytes {
                let (server, window) = (self.server.clone(), self.rate.window);
                return Err(PullError::Slow { server, bytes: *bytes, window });
            }
            self.window = (Instant::now(), 0);
        }
        Ok(count)
    }
}

impl Read for Flow {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.next(into).map_err(io::Error::other)
    }
}

impl std::fmt::Debug for Flow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flow").field("server", &self.server).finish_non_exhaustive()
    }
}

/// The certificates of the system, and those of the user's file. A system without any is not an error here: the
/// registry may need none, and otherwise its certificate is not trusted.
fn certificates(ca_file: Option<&Path>) -> Result<Vec<Certificate<'static>>, PullError> {
    let system = rustls_native_certs::load_native_certs().certs;
    let mut all: Vec<_> = system.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect();
    let Some(path) = ca_file else { return Ok(all) };
    let failed = |source| PullError::CaFile { path: path.to_owned(), source };
    let file = open_file(path).map_err(|error| failed(error.into()))?;
    let pem = read_whole(file, path, CA_FILE_BYTES_MAX).map_err(|error| failed(error.into()))?;
    let before = all.len();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| failed(error.into()))? {
            all.push(certificate);
        }
    }
    if all.len() == before {
        return Err(failed("it has no certificate".into()));
    }
    Ok(all)
}
