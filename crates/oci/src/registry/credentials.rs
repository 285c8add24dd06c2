//! User names and passwords for registries: given by the caller, or from docker's configuration.
//!
//! ```text
//!   config.json ─┬▶ credHelpers[registry] ─▶ docker-credential-NAME get
//!                ├▶ credsStore            ─▶ docker-credential-NAME get
//!                └▶ auths[registry]: `auth`, or `identitytoken`, or `registrytoken`
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::credential_helper::{self, HelperError};
use crate::folder::{FileError, open_file, read_whole};
use crate::reference::DEFAULT_REGISTRY;

/// The name of docker.io in docker's configuration.
const DOCKER_IO_KEY: &str = "https://index.docker.io/v1/";
/// The largest configuration that is read.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Where user names and passwords come from.
#[derive(Clone, Default)]
pub enum Credentials {
    /// There are none.
    #[default]
    None,
    /// From a configuration of docker, if the file exists.
    Docker(PathBuf),
    /// One pair, for the registry of the reference.
    Given {
        /// The user.
        user: String,
        /// The password, or a token in place of it.
        password: String,
    },
}

/// What a registry accepts of a user.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Login {
    /// User and password.
    Password { user: String, password: String },
    /// A token that only the token server accepts (`identitytoken`).
    Identity(String),
    /// A token for the registry itself (`registrytoken`).
    Registry(String),
}

/// Why credentials can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The configuration can't be read.
    #[error("failed to read the configuration of docker")]
    File(#[source] FileError),
    /// It is not JSON of its form.
    #[error("`{}` is malformed", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The error.
        source: serde_json::Error,
    },
    /// An entry is not base64 of `user:password`.
    #[error("the entry for `{registry}` in `{}` is malformed", .path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// The registry.
        registry: String,
    },
    /// A helper failed.
    #[error("failed to get the credentials for `{registry}`")]
    Helper {
        /// The registry.
        registry: String,
        /// The error.
        source: HelperError,
    },
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// Where docker keeps its configuration: in `$DOCKER_CONFIG`, or in `.docker` of the user's home.
pub fn docker_config_path() -> Option<PathBuf> {
    let folder = std::env::var_os("DOCKER_CONFIG").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let home = || Some(Path::new(&std::env::var_os("HOME")?).join(".docker"));
    Some(folder.or_else(home)?.join("config.json"))
}

impl Credentials {
    /// The login for a registry, if there is one.
    pub(crate) fn login(&self, registry: &str) -> Result<Option<Login>, CredentialsError> {
        match self {
            Self::None => Ok(None),
            Self::Given { user, password } => {
                Ok(Some(Login::Password { user: user.clone(), password: password.clone() }))
            }
            Self::Docker(path) => match read(path)? {
                Some(config) => config.login(path, registry),
                None => Ok(None),
            },
        }
    }
}

fn read(path: &Path) -> Result<Option<Config>, CredentialsError> {
    let file = match open_file(path) {
        Err(error) if error.is_not_found() => return Ok(None),
        file => file.map_err(CredentialsError::File)?,
    };
    let bytes = read_whole(file, path, CONFIG_BYTES_MAX).map_err(CredentialsError::File)?;
    let malformed = |source| CredentialsError::Malformed { path: path.to_owned(), source };
    serde_json::from_slice(&bytes).map(Some).map_err(malformed)
}

impl Config {
    fn login(&self, path: &Path, registry: &str) -> Result<Option<Login>, CredentialsError> {
        let key = if registry == DEFAULT_REGISTRY { DOCKER_IO_KEY } else { registry };
        let helper = self.cred_helpers.get(registry).or_else(|| self.cred_helpers.get(key));
        let helper = helper.or(Some(&self.creds_store)).filter(|name| !name.is_empty());
        if let Some(name) = helper {
            let failed = |source| CredentialsError::Helper { registry: registry.to_owned(), source };
            let found = credential_helper::get(name, key).map_err(failed)?;
            if let Some(found) = found {
                return Ok(Some(match found.user.as_str() {
                    // With this name, the secret is a token: docker's protocol for helpers.
                    "<token>" => Login::Identity(found.secret),
                    _ => Login::Password { user: found.user, password: found.secret },
                }));
            }
        }
        let entry = self.auths.get(key).or_else(|| {
            let same = |found: &&String| host_of(found) == registry;
            self.auths.keys().find(same).and_then(|found| self.auths.get(found))
        });
        let malformed = || CredentialsError::Entry { path: path.to_owned(), registry: registry.to_owned() };
        entry.map_or(Ok(None), |entry| entry.login().ok_or_else(malformed))
    }
}

impl Entry {
    /// `None` if the entry is malformed; `Some(None)` if it is empty, as beside a credential store.
    fn login(&self) -> Option<Option<Login>> {
        if !self.registrytoken.is_empty() {
            return Some(Some(Login::Registry(self.registrytoken.clone())));
        }
        if !self.identitytoken.is_empty() {
            return Some(Some(Login::Identity(self.identitytoken.clone())));
        }
        if self.auth.is_empty() {
            let login = Login::Password { user: self.username.clone(), password: self.password.clone() };
            return Some((!self.username.is_empty()).then_some(login));
        }
        let lenient = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        let engine = GeneralPurpose::new(&base64::alphabet::STANDARD, lenient);
        let text = String::from_utf8(engine.decode(&self.auth).ok()?).ok()?;
        let (user, password) = text.split_once(':')?;
        let password = password.trim_end_matches('\0').to_owned();
        Some(Some(Login::Password { user: user.to_owned(), password }))
    }
}

/// The registry of a key, which may be a URL as old versions of docker wrote it.
fn host_of(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let host = rest.split('/').next().unwrap_or(rest);
    if host == "index.docker.io" { DEFAULT_REGISTRY } else { host }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Docker(path) => f.debug_tuple("Docker").field(path).finish(),
            Self::Given { user, .. } => f.debug_struct("Given").field("user", user).finish_non_exhaustive(),
        }
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password",
            Self::Identity(_) => "Identity",
            Self::Registry(_) => "Registry",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(config: &str, registry: &str) -> Result<Option<Login>, CredentialsError> {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("config.json");
        std::fs::write(&path, config).expect("a file");
        Credentials::Docker(path).login(registry)
    }

    fn password(user: &str, password: &str) -> Option<Login> {
        Some(Login::Password { user: user.to_owned(), password: password.to_owned() })
    }

    #[test]
    fn entries_are_found_under_every_form_of_their_key() {
        // `user:pass:word` in base64.
        let auth = r#"{"auth":"dXNlcjpwYXNzOndvcmQ="}"#;
        let config = format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{auth},"https://old.example/v1/":{auth},"new.example:5000":
            {auth},"empty.example":{{}},"id.example":{{"identitytoken":"i"}},"raw.example":{{"registrytoken":"r"}},
            "plain.example":{{"username":"u","password":"p"}}}}}}"#
        );
        for registry in ["docker.io", "old.example", "new.example:5000"] {
            assert_eq!(login(&config, registry).expect("is read"), password("user", "pass:word"), "{registry}");
        }
        assert_eq!(login(&config, "plain.example").expect("is read"), password("u", "p"));
        assert_eq!(login(&config, "id.example").expect("is read"), Some(Login::Identity("i".to_owned())));
        assert_eq!(login(&config, "raw.example").expect("is read"), Some(Login::Registry("r".to_owned())));
        for registry in ["empty.example", "other.example", "new.example", "example:5000"] {
            assert_eq!(login(&config, registry).expect("is read"), None, "{registry}");
        }
    }

    #[test]
    fn a_configuration_that_does_not_exist_has_no_credentials() {
        let credentials = Credentials::Docker("/nonexistent/config.json".into());
        assert_eq!(credentials.login("docker.io").expect("is fine"), None);
    }

    #[test]
    fn malformed_entries_are_refused_without_their_content() {
        for entry in ["!!!!", "bm9jb2xvbg==", "/w=="] {
            let error = login(&format!(r#"{{"auths":{{"a.example":{{"auth":"{entry}"}}}}}}"#), "a.example");
            let text = format!("{:?}", error.expect_err("is refused"));
            assert!(!text.contains(entry), "{text}");
        }
        assert!(login("[]", "a").is_ok(), "serde reads an empty list as an empty object");
        assert!(login("{", "a").is_err());
    }

    #[test]
    fn secrets_are_not_printed() {
        let given = Credentials::Given { user: "u".to_owned(), password: "hidden".to_owned() };
        let login = given.login("x").expect("is given");
        assert!(!format!("{given:?}{login:?}").contains("hidden"));
    }
}
