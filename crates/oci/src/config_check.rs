//! Reads and checks an image's configuration.
//!
//! ```text
//!   bytes ──▶ form of the document ──▶ check ──▶ ImageConfig, diff_ids, notes
//! ```
//! What would run something else than the image's author meant is refused. What only helps a user, such as ports and
//! volumes, is ignored with a note if it is malformed, since the image works without it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::config::{HealthTest, Healthcheck, History, ImageConfig};
use crate::config_document::{RawConfig, RawHealthcheck, RawImage};
use crate::digest::Digest;
use crate::json::{self, JsonError, Object};
use crate::manifest::LAYERS_MAX;
use crate::platform::{CpuLevel, Platform};
use crate::user::UserError;

/// The most arguments and the most environment variables.
pub const STRINGS_MAX: usize = 4096;
/// The longest argument or environment variable: what Linux accepts (`MAX_ARG_STRLEN`), with its NUL.
pub const STRING_BYTES_MAX: usize = (128 << 10) - 1;
/// The most bytes of all arguments and variables; Linux gives them at least a quarter of an 8 MiB stack.
pub const STRINGS_BYTES_MAX: usize = 1 << 20;

/// The longest path (`PATH_MAX`), without its NUL.
const PATH_BYTES_MAX: usize = 4095;
/// The most entries of the history that are kept: one for each layer, and as many without one.
const HISTORY_MAX: usize = 1024;
/// The most notes that are kept.
const NOTES_MAX: usize = 32;
/// Characters of the image's text that a note repeats.
const NOTE_CHARS_MAX: usize = 80;

/// A configuration as a registry or an archive has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigDocument {
    /// What to run.
    pub config: ImageConfig,
    /// Digests of the layers' contents, the lowest first.
    pub diff_ids: Vec<Digest>,
    /// What was ignored, for the user.
    pub notes: Vec<String>,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It can't be read.
    #[error("failed to read the configuration of an image")]
    Json(#[source] JsonError),
    /// The image's layers are not in it.
    #[error("the configuration has the digests of {diff_ids} layers, but the image has {layers}")]
    LayerCount {
        /// Layers in the configuration.
        diff_ids: usize,
        /// Layers in the manifest.
        layers: usize,
    },
    /// Its file system is not made of layers.
    #[error("the file system of the image is of the type `{}`, not layers", .found.escape_debug())]
    RootfsType {
        /// Its type.
        found: String,
    },
    /// It is for another machine.
    #[error("the image is for {found}, not for linux/amd64 at a level that the CPU has")]
    Platform {
        /// For what it is.
        found: Platform,
    },
    /// A list is too long.
    #[error("`{field}` has {count} entries, over {STRINGS_MAX}")]
    TooMany {
        /// Its name in the document.
        field: &'static str,
        /// Its length.
        count: usize,
    },
    /// Texts are too long for Linux.
    #[error("`{field}` has an entry or a sum of entries of {bytes} bytes, more than a program can be started with")]
    TooLong {
        /// Its name in the document.
        field: &'static str,
        /// The size.
        bytes: usize,
    },
    /// A text has a NUL byte, which ends it early in the guest.
    #[error("`{field}` has a NUL byte")]
    Nul {
        /// Its name in the document.
        field: &'static str,
    },
    /// The working directory is no plain absolute path.
    #[error("the working directory `{}` is not a plain absolute path", .path.escape_debug())]
    WorkingDir {
        /// The path.
        path: String,
    },
    /// The user can't be one.
    #[error("the user of the image is malformed")]
    User(#[source] UserError),
}

impl ConfigDocument {
    /// Reads a configuration.
    ///
    /// # Errors
    /// If it is malformed, over a bound, or would run something else than it shows.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let Object(raw): Object<RawImage> = json::read(bytes).map_err(ConfigError::Json)?;
        let Object(rootfs) = raw.rootfs;
        if rootfs.kind != "layers" {
            return Err(ConfigError::RootfsType { found: rootfs.kind.chars().take(NOTE_CHARS_MAX).collect() });
        }
        let diff_ids = rootfs.diff_ids.unwrap_or_default();
        if diff_ids.len() > LAYERS_MAX {
            return Err(ConfigError::LayerCount { diff_ids: diff_ids.len(), layers: LAYERS_MAX });
        }
        let mut notes = Notes::default();
        let mut config = run_config(raw.config.unwrap_or_default().0, &mut notes)?;
        config.architecture = raw.architecture.unwrap_or_default();
        config.os = raw.os.unwrap_or_default();
        config.variant = raw.variant.filter(|variant| !variant.is_empty());
        config.created = raw.created;
        let history = raw.history.unwrap_or_default();
        if history.len() > HISTORY_MAX {
            notes.add("history", "it has too many entries, the rest is left out");
        }
        config.history = history.into_iter().take(HISTORY_MAX).map(|step| History::from(step.0)).collect();
        Ok(Self { config, diff_ids, notes: notes.0 })
    }

    /// Compares it with the manifest and with the machine that is to run it.
    ///
    /// # Errors
    /// If the image has another number of layers, or is for another machine.
    pub fn check(&self, layers: usize, cpu: CpuLevel) -> Result<(), ConfigError> {
        if self.diff_ids.len() != layers {
            return Err(ConfigError::LayerCount { diff_ids: self.diff_ids.len(), layers });
        }
        let found = self.config.platform();
        match found.level() {
            Some(level) if level <= cpu => Ok(()),
            _ => Err(ConfigError::Platform { found }),
        }
    }
}

/// What was ignored, in words.
#[derive(Default)]
struct Notes(Vec<String>);

impl Notes {
    fn add(&mut self, what: &str, why: &str) {
        if self.0.len() < NOTES_MAX {
            self.0.push(format!("ignored {what}: {why}"));
        }
    }

    fn add_text(&mut self, what: &str, text: &str, why: &str) {
        let shown: String = text.chars().take(NOTE_CHARS_MAX).flat_map(char::escape_debug).collect();
        self.add(&format!("{what} `{shown}`"), why);
    }
}

fn run_config(raw: RawConfig, notes: &mut Notes) -> Result<ImageConfig, ConfigError> {
    let env = strings("Env", raw.env)?;
    let (entrypoint, cmd) = (strings("Entrypoint", raw.entrypoint)?, strings("Cmd", raw.cmd)?);
    let total = [&env, &entrypoint, &cmd].into_iter().flatten().map(|text| text.len() + 1).sum();
    if total > STRINGS_BYTES_MAX {
        return Err(ConfigError::TooLong { field: "Env", bytes: total });
    }
    let stop_signal = raw.stop_signal.filter(|signal| !signal.is_empty()).and_then(|text| {
        let signal = text.parse();
        if signal.is_err() {
            notes.add_text("the stop signal", &text, "it is not a signal");
        }
        signal.ok()
    });
    let user = raw.user.filter(|user| !user.is_empty()).map(|user| user.parse().map_err(ConfigError::User));
    Ok(ImageConfig {
        env: variables(env, notes),
        entrypoint,
        cmd,
        working_dir: working_dir(raw.working_dir)?,
        user: user.transpose()?,
        stop_signal,
        labels: raw.labels.unwrap_or_default(),
        exposed_ports: set(raw.exposed_ports, "the port", "it is not a port", is_port, notes),
        volumes: set(raw.volumes, "the volume", "it is not a plain absolute path", is_plain_path, notes),
        healthcheck: raw.healthcheck.and_then(|check| healthcheck(check.0, notes)),
        shell: strings("Shell", raw.shell)?,
        ..ImageConfig::default()
    })
}

/// A list of arguments or variables, which Linux can pass to a program.
fn strings(field: &'static str, list: Option<Vec<String>>) -> Result<Vec<String>, ConfigError> {
    let list = list.unwrap_or_default();
    if list.len() > STRINGS_MAX {
        return Err(ConfigError::TooMany { field, count: list.len() });
    }
    for text in &list {
        if text.contains('\0') {
            return Err(ConfigError::Nul { field });
        }
        if text.len() > STRING_BYTES_MAX {
            return Err(ConfigError::TooLong { field, bytes: text.len() });
        }
    }
    Ok(list)
}

/// Each variable once: the last value of a name, at the place of the first.
fn variables(env: Vec<String>, notes: &mut Notes) -> Vec<String> {
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let mut kept: Vec<String> = Vec::new();
    for variable in env {
        let name = variable.split_once('=').map(|(name, _)| name).filter(|name| !name.is_empty());
        let Some(name) = name else {
            notes.add_text("the variable", &variable, "it has no name or no `=`");
            continue;
        };
        match places.get(name) {
            Some(place) => kept[*place] = variable,
            None => {
                places.insert(name.to_owned(), kept.len());
                kept.push(variable);
            }
        }
    }
    kept
}

/// The path is opened in the guest, where `/proc/self/fd` has only what the agent has left open. Still it is refused: an
/// image with such a path was made to leave a container through a descriptor (CVE-2024-21626).
fn working_dir(path: Option<String>) -> Result<Option<String>, ConfigError> {
    let Some(path) = path.filter(|path| !path.is_empty()) else { return Ok(None) };
    // Docker takes a relative path from the root.
    let path = if path.starts_with('/') { path } else { format!("/{path}") };
    let in_proc = path.split('/').find(|part| !part.is_empty() && *part != ".") == Some("proc");
    if !is_plain_path(&path) || in_proc {
        return Err(ConfigError::WorkingDir { path: path.chars().take(NOTE_CHARS_MAX).collect() });
    }
    Ok(Some(path))
}

fn is_plain_path(path: &str) -> bool {
    let is_short = path.len() <= PATH_BYTES_MAX && path.split('/').all(|part| part.len() <= 255 && part != "..");
    path.starts_with('/') && is_short && !path.contains('\0')
}

/// `80`, `80/tcp`, `8000-8010/udp`.
fn is_port(port: &str) -> bool {
    let (range, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0 && !text.starts_with('+'));
    matches!(protocol, "tcp" | "udp" | "sctp") && number(first).zip(number(last)).is_some_and(|(a, b)| a <= b)
}

fn set<T>(
    entries: Option<BTreeMap<String, T>>,
    what: &str,
    why: &str,
    is_good: fn(&str) -> bool,
    notes: &mut Notes,
) -> BTreeSet<String> {
    let (good, bad): (BTreeSet<String>, BTreeSet<String>) =
        entries.unwrap_or_default().into_keys().partition(|entry| is_good(entry));
    for entry in bad {
        notes.add_text(what, &entry, why);
    }
    good
}

fn healthcheck(raw: RawHealthcheck, notes: &mut Notes) -> Option<Healthcheck> {
    let Ok(mut words) = strings("Healthcheck", raw.test) else {
        notes.add("the health check", "its command is too long");
        return None;
    };
    let test = match words.first().map(String::as_str) {
        None => return None,
        Some("NONE") => HealthTest::Disabled,
        Some("CMD") if words.len() > 1 => HealthTest::Command(words.split_off(1)),
        Some("CMD-SHELL") if words.len() == 2 => HealthTest::Shell(words.swap_remove(1)),
        Some(_) => {
            notes.add("the health check", "its kind is not known");
            return None;
        }
    };
    let time = |nanoseconds: Option<i64>| {
        nanoseconds.and_then(|count| u64::try_from(count).ok()).filter(|count| *count > 0).map(Duration::from_nanos)
    };
    Some(Healthcheck {
        test,
        interval: time(raw.interval),
        timeout: time(raw.timeout),
        start_period: time(raw.start_period),
        retries: raw.retries.and_then(|count| u32::try_from(count).ok()).filter(|count| *count > 0),
    })
}

#[cfg(test)]
mod tests;
