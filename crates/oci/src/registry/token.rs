//! Tokens of a registry's token server: asked for once, kept until shortly before they expire.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use ureq::http::Method;

use super::challenge::Challenge;
use super::credentials::Login;
use super::error::PullError;
use super::http::{Http, Request};
use super::location::Location;

/// How long a token without a time lives, as docker has it.
const LIFE_DEFAULT: Duration = Duration::from_secs(60);
/// The longest time that is taken for true.
const LIFE_MAX: Duration = Duration::from_secs(24 * 3600);
/// The longest token. It is sent with each request.
const TOKEN_BYTES_MAX: usize = 32 << 10;

/// How requests are authorized.
#[derive(Default)]
pub(crate) enum Auth {
    /// Not at all, or not known yet.
    #[default]
    None,
    /// With user name and password.
    Basic,
    /// With a token.
    Bearer {
        /// The token server.
        realm: Location,
        /// For which service.
        service: String,
        /// The token, once there is one.
        token: Option<Token>,
    },
}

/// A token, and until when it is used.
pub(crate) struct Token {
    value: String,
    end: Instant,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Auth {
    /// What the registry's challenge requires. The token server needs TLS, unless the registry itself is used without.
    pub(crate) fn new(challenge: Challenge, registry: &Location) -> Result<Self, PullError> {
        let Challenge::Bearer { realm, service } = challenge else { return Ok(Self::Basic) };
        let realm = Location::parse(&realm)?;
        let is_home = realm.host == registry.host || (realm.is_loopback() && registry.is_loopback());
        if !realm.secure && (registry.secure || !is_home) {
            return Err(PullError::Realm { realm: realm.server() });
        }
        Ok(Self::Bearer { realm, service, token: None })
    }

    /// The header for the next request.
    pub(crate) fn header(
        &mut self,
        http: &Http,
        login: Option<&Login>,
        repository: &str,
    ) -> Result<Option<String>, PullError> {
        match (self, login) {
            (_, Some(Login::Registry(token))) => Ok(Some(format!("Bearer {token}"))),
            (Self::Basic, Some(Login::Password { user, password })) => Ok(Some(basic(user, password))),
            (Self::Bearer { realm, service, token }, login) => {
                if token.as_ref().is_none_or(|token| token.end <= Instant::now()) {
                    *token = Some(fetch(http, realm, service, login, repository)?);
                }
                Ok(token.as_ref().map(|token| format!("Bearer {}", token.value)))
            }
            (Self::None | Self::Basic, _) => Ok(None),
        }
    }
}

fn fetch(
    http: &Http,
    realm: &Location,
    service: &str,
    login: Option<&Login>,
    repository: &str,
) -> Result<Token, PullError> {
    // Always our own scope: the one in the challenge is what the server chose to write.
    let scope = format!("repository:{repository}:pull");
    let mut query = format!("service={}&scope={}", escaped(service), escaped(&scope));
    let asked = Instant::now();
    let reply = match login {
        Some(Login::Identity(identity)) => {
            query += &format!("&grant_type=refresh_token&client_id=kiln&refresh_token={}", escaped(identity));
            http.send(&Request {
                method: Method::POST,
                url: realm,
                accept: None,
                authorization: None,
                from: None,
                form: Some(query),
            })?
        }
        login => {
            let authorization = match login {
                Some(Login::Password { user, password }) => Some(basic(user, password)),
                _ => None,
            };
            let separator = if realm.path.contains('?') { '&' } else { '?' };
            let url = Location { path: format!("{}{separator}{query}", realm.path), ..realm.clone() };
            http.send(&Request {
                method: Method::GET,
                url: &url,
                accept: None,
                authorization: authorization.as_deref(),
                from: None,
                form: None,
            })?
        }
    };
    match reply.status {
        200 => {}
        401 | 403 => {
            let (registry, with_credentials) = (realm.server(), login.is_some());
            return Err(PullError::Unauthorized { registry, repository: repository.to_owned(), with_credentials });
        }
        _ => return Err(reply.into_error()),
    }
    let malformed = || PullError::Token { server: realm.server() };
    let answer: Answer = serde_json::from_slice(&reply.document()?).map_err(|_| malformed())?;
    let value = answer.token.or(answer.access_token).unwrap_or_default();
    let is_plain = value.bytes().all(|byte| byte.is_ascii_graphic());
    if value.is_empty() || value.len() > TOKEN_BYTES_MAX || !is_plain {
        return Err(malformed());
    }
    // A token that expires on its way is refused; then the request is sent again with a new one. Using only three
    // quarters of its life makes that rare.
    let life = answer.expires_in.map_or(LIFE_DEFAULT, Duration::from_secs).min(LIFE_MAX);
    Ok(Token { value, end: asked + life.mul_f64(0.75) })
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// Percent-encoding of everything that has a meaning in a query or a form.
fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |mut all, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            all.push(char::from(byte));
        } else {
            write!(all, "%{byte:02X}").expect("a String takes everything");
        }
        all
    })
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Basic => f.write_str("Basic"),
            Self::Bearer { realm, .. } => f.debug_struct("Bearer").field("realm", realm).finish_non_exhaustive(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(realm: &str, registry: &str) -> Result<Auth, PullError> {
        let challenge = Challenge::Bearer { realm: realm.to_owned(), service: String::new() };
        Auth::new(challenge, &Location::parse(registry).expect("a URL"))
    }

    #[test]
    fn a_token_server_needs_tls_unless_the_registry_has_none() {
        assert!(auth("https://auth.example/t", "https://registry.example/").is_ok());
        assert!(auth("http://auth.example/t", "https://registry.example/").is_err());
        assert!(auth("http://registry.example/t", "https://registry.example/").is_err());
        assert!(auth("http://registry.example/t", "http://registry.example/").is_ok());
        assert!(auth("http://other.example/t", "http://registry.example/").is_err());
        assert!(auth("http://127.0.0.1:1/t", "http://localhost:2/").is_ok());
        assert!(auth("file:///etc/shadow", "https://registry.example/").is_err());
    }

    #[test]
    fn queries_are_escaped() {
        assert_eq!(escaped("repository:a/b:pull&x=ü"), "repository%3Aa%2Fb%3Apull%26x%3D%C3%BC");
    }
}
