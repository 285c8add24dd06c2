//! Makes a root filesystem of Debian's packages with mmdebstrap.
//!
//! mmdebstrap asks apt for the packages, so their signatures are checked, unpacks and configures them in a directory of
//! its own, and writes a tar archive. That archive is one layer: it takes the same way as a layer of a stranger.

use std::io::{self, Write};
use std::process::Command;
use std::time::Duration;

use kiln_oci::ImageConfig;
use kiln_programs::APT;

use super::command::{self, CommandError};
use super::error::ImageError;
use super::import::{ImportError, ImportStep};
use super::root::{Origin, RootImage};
use super::store::ImageStore;

/// The program.
const MMDEBSTRAP: &str = "mmdebstrap";
/// Downloads and configures some hundred packages on a slow host.
const DEADLINE: Duration = Duration::from_secs(60 * 60);
/// What runs if no command is given.
const SHELL: &str = "bash";
const QUERY_DEADLINE: Duration = Duration::from_secs(60);
const QUERY_BYTES_MAX: u64 = 64 << 10;

/// What a Debian root filesystem has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebianOptions {
    /// The suite, such as `bookworm`.
    pub suite: String,
    /// Packages beside the smallest set that has apt.
    pub packages: Vec<String>,
    /// The mirror. If absent, the one that this host's apt has for the suite; if it has none, mmdebstrap's default.
    pub mirror: Option<String>,
}

/// Why a Debian root filesystem can't be made.
#[derive(Debug, thiserror::Error)]
pub enum DebianError {
    /// A value is not a name of Debian's.
    #[error("`{}` is not {what}", .value.escape_debug())]
    Name {
        /// What it should be.
        what: &'static str,
        /// The value.
        value: String,
    },
    /// mmdebstrap failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Its archive can't be made an image.
    #[error(transparent)]
    Import(#[from] ImportError),
}

impl DebianError {
    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Command(CommandError::Missing { .. }) => {
                Some(format!("as root: apt-get update && apt-get install {MMDEBSTRAP}"))
            }
            Self::Command(CommandError::Failed { .. }) => {
                Some("a suite or package may be misspelled; --mirror names another mirror".into())
            }
            Self::Command(_) | Self::Name { .. } => None,
            Self::Import(error) => error.hint(),
        }
    }
}

impl DebianOptions {
    /// Refuses values that mmdebstrap would read as something else.
    fn check(&self) -> Result<(), DebianError> {
        let refuse = |what, value: &str| Err(DebianError::Name { what, value: value.to_owned() });
        let plain = |text: &str, also: &[u8]| {
            let letter = |byte: u8| byte.is_ascii_alphanumeric() || also.contains(&byte);
            text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.bytes().all(letter)
        };
        if !plain(&self.suite, b"-._/") {
            return refuse("a suite of Debian, such as `bookworm`", &self.suite);
        }
        if let Some(name) = self.packages.iter().find(|name| !plain(name, b"+-.")) {
            return refuse("the name of a package", name);
        }
        match &self.mirror {
            Some(url) if !url.contains("://") || url.contains(|c: char| c.is_whitespace() || c.is_control()) => {
                refuse("the URL of a mirror", url)
            }
            _ => Ok(()),
        }
    }
}

impl ImageStore {
    /// Makes an image of Debian's packages.
    ///
    /// # Errors
    /// [`DebianError`]. Nothing of the image is left then.
    pub fn build_debian(
        &self,
        name: &str,
        options: &DebianOptions,
        progress: &mut dyn FnMut(ImportStep),
    ) -> Result<RootImage, DebianError> {
        let mut mmdebstrap = mmdebstrap(options)?;
        let mut builder = self.root_builder(name, progress)?;
        let mut refused = None;
        let ran = command::stream(&mut mmdebstrap, DEADLINE, |tar| {
            refused = builder.layer(1, tar).err();
            Ok(())
        });
        // If mmdebstrap fails, its archive is cut off, and the layer is refused, too. Its own error is the cause.
        ran?;
        if let Some(error) = refused {
            return Err(error.into());
        }
        let config = ImageConfig { cmd: vec![SHELL.to_owned()], ..ImageConfig::bare() };
        let packages = options.packages.iter().map(|name| format!(" {name}")).collect::<String>();
        let source = format!("debian {}{packages}", options.suite);
        Ok(builder.finish(&config, Origin { source, ..Origin::default() })?)
    }
}

/// Writes the tar archive of Debian's packages that [`ImageStore::build_debian`] makes an image of.
///
/// # Errors
/// [`DebianError`]. A part of the archive may be written then.
pub fn write_debian_tar(options: &DebianOptions, into: &mut dyn Write) -> Result<(), DebianError> {
    command::stream(&mut mmdebstrap(options)?, DEADLINE, |tar| io::copy(tar, into).map(drop))?;
    Ok(())
}

/// The program that writes the archive to its stdout.
fn mmdebstrap(options: &DebianOptions) -> Result<Command, DebianError> {
    options.check()?;
    let mut mmdebstrap = kiln_programs::command(MMDEBSTRAP, APT);
    mmdebstrap.args(["--variant=minbase", "--format=tar", "--quiet"]);
    if !options.packages.is_empty() {
        mmdebstrap.arg(format!("--include={}", options.packages.join(",")));
    }
    mmdebstrap.args([options.suite.as_str(), "-"]);
    mmdebstrap.args(options.mirror.clone().or_else(|| mirror_of_host(&options.suite)));
    Ok(mmdebstrap)
}

/// The mirror of a suite that this host's apt has, so that a host with a mirror near it is not sent to another one.
fn mirror_of_host(suite: &str) -> Option<String> {
    let codename = format!("Codename: {suite}");
    let mut apt = kiln_programs::command("apt-get", APT);
    apt.args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian", &codename]);
    let text = command::output(&mut apt, QUERY_DEADLINE, QUERY_BYTES_MAX).ok()?;
    text.lines().next().map(str::trim).filter(|url| url.contains("://")).map(str::to_owned)
}

impl From<ImageError> for DebianError {
    fn from(error: ImageError) -> Self {
        Self::Import(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_mmdebstrap_would_misread_are_refused() {
        let options = |suite: &str, package: &str, mirror: Option<&str>| DebianOptions {
            suite: suite.into(),
            packages: vec![package.into()],
            mirror: mirror.map(str::to_owned),
        };
        options("bookworm", "libstdc++6", Some("https://mirror.example/debian")).check().expect("are names");
        let refused = [
            options("", "fio", None),
            options("-suite", "fio", None),
            options("bookworm", "fio,gdb", None),
            options("bookworm", "--simulate", None),
            options("bookworm", "?not(?name(x))", None),
            options("bookworm", "fio", Some("/srv/mirror")),
            options("bookworm", "fio", Some("https://mirror.example/debian main\nhttps://other.example")),
        ];
        let lines = refused.map(|options| format!("{}\n", options.check().expect_err("refused")));
        insta::assert_snapshot!(lines.concat());
    }
}
