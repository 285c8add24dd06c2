//! The API of a registry: manifests and blobs of one repository, with authorization and attempts.

use std::sync::{Arc, Mutex, PoisonError};

use ureq::http::Method;

use super::challenge;
use super::credentials::Login;
use super::error::PullError;
use super::http::{Http, Reply, Request};
use super::location::Location;
use super::options::PullOptions;
use super::retry::Retry;
use super::stop::Stop;
use super::token::Auth;
use crate::digest::Digest;
use crate::reference::{DEFAULT_REGISTRY, Reference};

/// The server of docker.io.
const DOCKER_IO_HOST: &str = "registry-1.docker.io";
/// What Kiln reads, the newest first.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Asks a registry about one repository.
#[derive(Debug)]
pub(crate) struct Client<'a> {
    http: Arc<Http>,
    base: Location,
    reference: &'a Reference,
    login: Option<Login>,
    auth: Mutex<Auth>,
    options: &'a PullOptions,
    stop: Arc<Stop>,
}

/// The URL of a registry's API, and a client for it.
pub(crate) fn server_of(reference: &Reference) -> Result<Location, PullError> {
    let host = if reference.registry() == DEFAULT_REGISTRY { DOCKER_IO_HOST } else { reference.registry() };
    Ok(Location::of_registry(host, true, "/v2/")?)
}

impl<'a> Client<'a> {
    /// Finds out how to talk to the registry. Only one on this machine, or with the caller's permission, is asked
    /// without TLS, and only if it does not speak TLS.
    pub(crate) fn new(
        reference: &'a Reference,
        http: Arc<Http>,
        options: &'a PullOptions,
        stop: Arc<Stop>,
    ) -> Result<Self, PullError> {
        let login = options.credentials.login(reference.registry())?;
        let mut base = server_of(reference)?;
        if base.is_loopback() || options.plain_http {
            base = probe(&http, base, reference)?;
        }
        Ok(Self { http, base, reference, login, auth: Mutex::default(), options, stop })
    }

    /// The digest of what the reference names. `None` if the registry does not answer such requests.
    pub(crate) fn digest(&self, object: &str) -> Result<Option<Digest>, PullError> {
        let url = self.url("manifests", object);
        self.retry().run(|| {
            let reply = self.authorized(&Method::HEAD, &url, Some(ACCEPT), None)?;
            match reply.status {
                200 => Ok(reply.header("docker-content-digest").and_then(|digest| digest.parse().ok())),
                405 | 501 => Ok(None),
                _ => Err(self.refused(reply)),
            }
        })
    }

    /// A manifest or index, and the type under which it was served.
    pub(crate) fn manifest(&self, object: &str) -> Result<(Vec<u8>, Option<String>), PullError> {
        let url = self.url("manifests", object);
        self.retry().run(|| {
            let reply = self.authorized(&Method::GET, &url, Some(ACCEPT), None)?;
            if reply.status != 200 {
                return Err(self.refused(reply));
            }
            let served = reply.header("content-type").map(str::to_owned);
            Ok((reply.document()?, served))
        })
    }

    /// A blob that is small, such as a configuration.
    pub(crate) fn document(&self, digest: &Digest) -> Result<Vec<u8>, PullError> {
        self.retry().run(|| self.blob(digest, 0)?.document())
    }

    /// The answer to a request for a blob from a byte on: status 200, 206 or 416. This is one attempt.
    pub(crate) fn blob(&self, digest: &Digest, from: u64) -> Result<Reply, PullError> {
        let url = self.url("blobs", &digest.to_string());
        let reply = self.authorized(&Method::GET, &url, None, (from > 0).then_some(from))?;
        match reply.status {
            200 => {}
            206 | 416 if from > 0 => {}
            404 => return Err(PullError::NoBlob { server: reply.url.server(), digest: digest.clone() }),
            _ => return Err(self.refused(reply)),
        }
        match reply.header("content-encoding") {
            None | Some("" | "identity") => Ok(reply),
            Some(encoding) => {
                let (server, encoding) = (reply.url.server(), encoding.chars().take(64).collect());
                Err(PullError::Encoding { server, digest: digest.clone(), encoding })
            }
        }
    }

    /// The registry, for errors.
    pub(crate) fn server(&self) -> String {
        self.base.server()
    }

    pub(crate) fn retry(&self) -> Retry<'_> {
        Retry::new(&self.options.retry, &self.stop)
    }

    /// One request with authorization. If the registry requires another one, it is sent once more. What a server behind
    /// a redirect requires is not its registry's word, so its challenge is an error.
    fn authorized(
        &self,
        method: &Method,
        url: &Location,
        accept: Option<&'static str>,
        from: Option<u64>,
    ) -> Result<Reply, PullError> {
        let mut is_first = true;
        loop {
            let sent = self.header()?;
            let authorization = sent.as_deref();
            let request = Request { method: method.clone(), url, accept, authorization, from, form: None };
            let reply = self.http.send(&request)?;
            let is_ours = reply.status == 401 && reply.url.same_server(url);
            // After a new token or password there is nothing else to try.
            if !is_ours || !is_first {
                return Ok(reply);
            }
            is_first = false;
            if !self.learn(&reply, sent.as_deref())? {
                return Ok(reply);
            }
        }
    }

    fn header(&self) -> Result<Option<String>, PullError> {
        let mut auth = self.auth.lock().unwrap_or_else(PoisonError::into_inner);
        auth.header(&self.http, self.login.as_ref(), self.reference.repository())
    }

    /// Takes the registry's challenge. Returns whether another attempt can differ from the last one.
    fn learn(&self, reply: &Reply, sent: Option<&str>) -> Result<bool, PullError> {
        let challenge = reply.header("www-authenticate").and_then(challenge::parse);
        let challenge = challenge.ok_or_else(|| PullError::Challenge { server: self.base.server() })?;
        let new = Auth::new(challenge, &self.base)?;
        let mut auth = self.auth.lock().unwrap_or_else(PoisonError::into_inner);
        let can_differ = match &new {
            Auth::Bearer { .. } => !matches!(self.login, Some(Login::Registry(_))),
            Auth::Basic => sent.is_none() && matches!(self.login, Some(Login::Password { .. })),
            Auth::None => false,
        };
        // Another thread may have got a new token meanwhile. It is dropped too: one more request to the token server is
        // cheaper than to find out whose token is newer.
        *auth = new;
        Ok(can_differ)
    }

    fn url(&self, kind: &str, object: &str) -> Location {
        Location { path: format!("/v2/{}/{kind}/{object}", self.reference.repository()), ..self.base.clone() }
    }

    fn refused(&self, reply: Reply) -> PullError {
        let with_credentials = self.login.is_some();
        match reply.status {
            401 | 403 if reply.url.same_server(&self.base) => PullError::Unauthorized {
                registry: self.reference.registry().to_owned(),
                repository: self.reference.repository().to_owned(),
                with_credentials,
            },
            404 => PullError::NotFound { reference: self.reference.to_string() },
            _ => reply.into_error(),
        }
    }
}

/// Asks for the API with TLS, and without if the server does not speak TLS.
fn probe(http: &Http, base: Location, reference: &Reference) -> Result<Location, PullError> {
    let request = |url| {
        http.send(&Request { method: Method::GET, url, accept: None, authorization: None, from: None, form: None })
    };
    let Err(error) = request(&base) else { return Ok(base) };
    let host = if reference.registry() == DEFAULT_REGISTRY { DOCKER_IO_HOST } else { reference.registry() };
    let plain = Location::of_registry(host, false, "/v2/")?;
    match error {
        PullError::NoTls { .. } => Ok(plain),
        // Without a port, another one is meant.
        PullError::Connect { .. } if plain.port != base.port => Ok(plain),
        error => Err(error),
    }
}
