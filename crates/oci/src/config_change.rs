//! Changes of a configuration in the words of a Dockerfile, as `docker commit --change` has them.

use std::collections::BTreeSet;

use crate::config::ImageConfig;
use crate::config_check::{ConfigDocument, ConfigError};
use crate::signal::SignalError;
use crate::user::UserError;

/// What runs a command that is not a list.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];
/// The instructions, for errors.
const KNOWN: &str = "CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR";

/// Why a change is refused.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// It does not begin with an instruction, or with another one.
    #[error("`{}` is not a change: it begins with one of {KNOWN}", .line.escape_debug())]
    Unknown {
        /// The line.
        line: String,
    },
    /// The rest of the line does not fit the instruction.
    #[error("`{}`: write {form}", .line.escape_debug())]
    Malformed {
        /// The line.
        line: String,
        /// What to write.
        form: &'static str,
    },
    /// The user can't be one.
    #[error("`{}` changes the user to what is not one", .line.escape_debug())]
    User {
        /// The line.
        line: String,
        /// Why.
        #[source]
        source: UserError,
    },
    /// The signal can't be one.
    #[error("`{}` changes the signal to what is not one", .line.escape_debug())]
    Signal {
        /// The line.
        line: String,
        /// Why.
        #[source]
        source: SignalError,
    },
    /// The result is not the configuration of an image.
    #[error("an image can't have this configuration")]
    Config(#[source] ConfigError),
    /// A part of the result would be ignored.
    #[error("an image can't have this configuration: {note}")]
    Ignored {
        /// What, and why.
        note: String,
    },
}

impl ImageConfig {
    /// Applies changes such as `CMD ["python3", "/app.py"]`, `ENV NAME=VALUE` and `USER job`, in their order.
    ///
    /// As in docker, an entrypoint removes the command that was there before, unless the changes set one.
    ///
    /// ```
    /// # use kiln_oci::ImageConfig;
    /// let config = ImageConfig { cmd: vec!["bash".into()], ..ImageConfig::bare() };
    /// let config = config.changed(&["ENTRYPOINT [\"python3\"]", "ENV A=b", "WORKDIR /app"])?;
    /// assert_eq!((config.entrypoint, config.cmd.len()), (vec!["python3".to_owned()], 0));
    /// # Ok::<_, kiln_oci::ChangeError>(())
    /// ```
    ///
    /// # Errors
    /// [`ChangeError`] names the line.
    pub fn changed<T: AsRef<str>>(&self, lines: &[T]) -> Result<Self, ChangeError> {
        let mut config = self.clone();
        let mut sets_command = false;
        for line in lines {
            config.change(line.as_ref().trim(), &mut sets_command)?;
        }
        // What is written must be what is read later.
        let ConfigDocument { config: read, notes, .. } =
            ConfigDocument::parse(&config.to_json(&[])).map_err(ChangeError::Config)?;
        match notes.into_iter().next() {
            Some(note) => Err(ChangeError::Ignored { note }),
            None => Ok(read),
        }
    }

    fn change(&mut self, line: &str, sets_command: &mut bool) -> Result<(), ChangeError> {
        let (instruction, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let malformed = |form| ChangeError::Malformed { line: line.to_owned(), form };
        match instruction.to_ascii_uppercase().as_str() {
            "CMD" => {
                self.cmd = command(rest).ok_or_else(|| malformed("CMD [\"PROGRAM\", \"ARGUMENT\"] or CMD LINE"))?;
                *sets_command = true;
            }
            "ENTRYPOINT" => {
                let form = "ENTRYPOINT [\"PROGRAM\", \"ARGUMENT\"] or ENTRYPOINT LINE";
                self.entrypoint = command(rest).ok_or_else(|| malformed(form))?;
                if !*sets_command {
                    self.cmd.clear();
                }
            }
            "ENV" => {
                let (name, value) =
                    pair(rest).ok_or_else(|| malformed("ENV NAME=VALUE, or ENV NAME VALUE with spaces"))?;
                self.env.push(format!("{name}={value}"));
            }
            "LABEL" => {
                let (name, value) =
                    pair(rest).ok_or_else(|| malformed("LABEL NAME=VALUE, or LABEL NAME VALUE with spaces"))?;
                self.labels.insert(name, value);
            }
            "WORKDIR" if !rest.is_empty() => {
                let above = self.working_dir.as_deref().unwrap_or("/").trim_end_matches('/');
                self.working_dir =
                    Some(if rest.starts_with('/') { rest.to_owned() } else { format!("{above}/{rest}") });
            }
            "WORKDIR" => return Err(malformed("WORKDIR /DIRECTORY")),
            "USER" => {
                let user = rest.parse().map_err(|source| ChangeError::User { line: line.to_owned(), source })?;
                self.user = Some(user);
            }
            "STOPSIGNAL" => {
                let signal = rest.parse().map_err(|source| ChangeError::Signal { line: line.to_owned(), source })?;
                self.stop_signal = Some(signal);
            }
            "EXPOSE" => {
                let ports: BTreeSet<String> = rest.split_whitespace().map(str::to_owned).collect();
                if ports.is_empty() {
                    return Err(malformed("EXPOSE PORT or EXPOSE PORT/udp"));
                }
                self.exposed_ports.extend(ports);
            }
            "VOLUME" => {
                let list = || Some(rest.split_whitespace().map(str::to_owned).collect());
                let paths: Option<Vec<String>> =
                    if rest.starts_with('[') { serde_json::from_str(rest).ok() } else { list() };
                match paths.filter(|paths| !paths.is_empty()) {
                    Some(paths) => self.volumes.extend(paths),
                    None => return Err(malformed("VOLUME /DIRECTORY or VOLUME [\"/DIRECTORY\"]")),
                }
            }
            _ => return Err(ChangeError::Unknown { line: line.to_owned() }),
        }
        Ok(())
    }
}

/// A list in JSON, or a line for the shell. An empty list is an empty command. `None` if it is neither.
fn command(text: &str) -> Option<Vec<String>> {
    if text.starts_with('[') {
        return serde_json::from_str(text).ok();
    }
    let line = |text: &str| SHELL.into_iter().chain([text]).map(str::to_owned).collect();
    (!text.is_empty()).then(|| line(text))
}

/// `NAME=VALUE`, where VALUE has no spaces and quotes, or `NAME VALUE`, where VALUE is the rest of the line.
///
/// Docker sets several variables with one line, and removes quotes. So a line that could mean that is refused, instead of
/// meaning something else here.
fn pair(text: &str) -> Option<(String, String)> {
    let first = text.split(char::is_whitespace).next().unwrap_or_default();
    let (name, value) = match first.split_once('=') {
        Some((name, value)) if first == text && !value.contains(['"', '\'', '\\']) => (name, value),
        Some(_) => return None,
        None => text.split_once(char::is_whitespace).map(|(name, value)| (name, value.trim()))?,
    };
    (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> ImageConfig {
        ImageConfig {
            env: vec!["PATH=/bin".into(), "A=old".into()],
            entrypoint: vec!["/entry".into()],
            cmd: vec!["one".into()],
            working_dir: Some("/srv".into()),
            ..ImageConfig::bare()
        }
    }

    #[test]
    fn changes_are_those_of_a_dockerfile() {
        let lines = [
            "CMD [\"a b\", \"c\"]",
            "env A=new",
            "ENV B two words",
            "WORKDIR app/x",
            "USER job:7",
            "LABEL k=v",
            "EXPOSE 80 53/udp",
            "VOLUME [\"/data\"]",
            "STOPSIGNAL quit",
        ];
        let config = base().changed(&lines).expect("are changes");
        assert_eq!(config.cmd, ["a b", "c"]);
        assert_eq!(config.env, ["PATH=/bin", "A=new", "B=two words"]);
        assert_eq!(config.working_dir.as_deref(), Some("/srv/app/x"));
        assert_eq!(config.user.expect("has one").to_string(), "job:7");
        assert_eq!(config.labels["k"], "v");
        assert_eq!(config.exposed_ports.into_iter().collect::<Vec<_>>(), ["53/udp", "80"]);
        assert_eq!(config.volumes.into_iter().collect::<Vec<_>>(), ["/data"]);
        assert_eq!(config.stop_signal.expect("has one").number(), 3);
        assert_eq!(config.entrypoint, ["/entry"]);
    }

    #[test]
    fn an_entrypoint_removes_an_earlier_command_and_not_a_new_one() {
        let config = base().changed(&["ENTRYPOINT exec top"]).expect("is a change");
        assert_eq!((config.entrypoint.join(" "), config.cmd.len()), ("/bin/sh -c exec top".into(), 0));
        let config = base().changed(&["CMD [\"new\"]", "ENTRYPOINT []"]).expect("are changes");
        assert_eq!((config.entrypoint.len(), config.cmd), (0, vec!["new".to_owned()]));
    }

    #[test]
    fn refused_changes_read_like_this() {
        let lines = [
            "",
            "RUN make",
            "CMD",
            "CMD [1]",
            "ENV",
            "ENV A",
            "ENV =b",
            "ENV A=b C=d",
            "ENV A=\"b c\"",
            "WORKDIR",
            "WORKDIR ../x",
            "WORKDIR /proc/self/fd/8",
            "USER 4294967296",
            "USER a:b:c",
            "STOPSIGNAL SIGFOO",
            "EXPOSE",
            "EXPOSE 0",
            "VOLUME x",
            "VOLUME [",
        ];
        let texts = lines.map(|line| {
            let error = base().changed(&[line]).expect_err(line);
            let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
            format!("{line}\n  {error}{}\n", source.unwrap_or_default())
        });
        insta::assert_snapshot!(texts.concat());
    }
}
