//! Why there is no network for a VM.

use std::io;
use std::time::Duration;

use camino::Utf8PathBuf;

use super::journal::SlotId;
use super::steps::{SHAPES_MAX, TooManyShapes};

/// Why `nft` failed.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// It is not installed.
    #[error("the program `nft` is not installed")]
    Missing,
    /// It refused the rules, or the kernel did.
    #[error("`nft` failed: {0}")]
    Refused(String),
    /// It did not end in time.
    #[error("`nft` did not end within {0:?}")]
    Late(Duration),
    /// It could not be started, or its output is not valid.
    #[error("failed to run `nft`")]
    Io(#[from] io::Error),
}

/// Why a slot can't be made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The journal can't be written, so nothing was made.
    #[error("failed to write the journal of network slots in `{directory}`")]
    Journal {
        /// Its directory.
        directory: Utf8PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process owns the slot, or there is no such slot.
    #[error("the network slot `{0}` does not exist, or another process owns it")]
    NotFree(SlotId),
    /// No network namespace can be made.
    #[error("failed to make a network namespace")]
    Namespace(#[source] io::Error),
    /// No TAP device can be made.
    #[error("failed to make a TAP device")]
    Tap(#[source] io::Error),
    /// Links, addresses or routes could not be read or changed.
    #[error("failed to set up the links of the network slot")]
    Links(#[source] io::Error),
    /// A setting of the kernel can't be changed.
    #[error("failed to write `{path}`")]
    Setting {
        /// Its file.
        path: Utf8PathBuf,
        /// Why.
        source: io::Error,
    },
    /// All ranges of addresses are in use.
    #[error("all addresses for network slots are in use on this host: {ranges}")]
    NoAddress {
        /// The ranges.
        ranges: String,
    },
    /// The policy has no rules.
    #[error("failed to make rules of the policy")]
    Shapes(#[from] TooManyShapes),
    /// The rules could not be applied. The link of the slot is down.
    #[error("failed to apply the rules of the network slot")]
    Rules(#[from] NftError),
    /// Rules are in place, but they could not be read or changed.
    #[error("failed to read or change the rules of the network slot")]
    Netfilter(#[source] io::Error),
    /// A socket in the slot can't be made.
    #[error("failed to open a socket in the network slot")]
    Socket(#[source] io::Error),
    /// What is left of a slot can't be removed.
    #[error("failed to remove the network slot `{id}`")]
    Remove {
        /// The slot.
        id: SlotId,
        /// Why.
        source: io::Error,
    },
    /// A name of a network is not valid.
    #[error("`{0}` is not a valid name for a network")]
    Name(String),
    /// A network of that name exists.
    #[error("the network `{0}` already exists")]
    Exists(String),
    /// No network has that name.
    #[error("the network `{0}` does not exist")]
    NoNetwork(String),
    /// VMs use the network.
    #[error("{members} VMs use the network `{name}`")]
    InUse {
        /// Its name.
        name: String,
        /// How many VMs.
        members: usize,
    },
    /// A VM of that name is in the network.
    #[error("the network `{network}` already has a VM `{member}`")]
    Taken {
        /// The network.
        network: String,
        /// The name.
        member: String,
    },
    /// A network has no address left.
    #[error("the network `{0}` has no free address")]
    Full(String),
}

impl SlotError {
    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Rules(NftError::Missing) => Some("install the package `nftables`".into()),
            Self::Journal { source, .. } | Self::Namespace(source) | Self::Tap(source)
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Some("a network of this kind needs root; `--net user` does not".into())
            }
            Self::Tap(source) if source.kind() == io::ErrorKind::NotFound => {
                Some("load the kernel's module `tun`".into())
            }
            Self::Shapes(_) => {
                Some(format!("a list can have {SHAPES_MAX} of them; use ranges of ports, or leave ports out"))
            }
            Self::NoAddress { .. } => Some("set another range of addresses that no route of this host covers".into()),
            Self::Name(_) => Some("a name has 1 to 32 of `[a-z0-9-]`".into()),
            Self::InUse { .. } => Some("stop them first".into()),
            Self::Taken { .. } => Some("give this one another --name".into()),
            Self::NoNetwork(name) => Some(format!("kiln net create {name}")),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error;

    /// A value of each variant. A new variant does not compile until it is in the list below.
    fn name_of(error: &SlotError) -> &'static str {
        match error {
            SlotError::Journal { .. } => "Journal",
            SlotError::NotFree(_) => "NotFree",
            SlotError::Namespace(_) => "Namespace",
            SlotError::Tap(_) => "Tap",
            SlotError::Links(_) => "Links",
            SlotError::Setting { .. } => "Setting",
            SlotError::NoAddress { .. } => "NoAddress",
            SlotError::Shapes(_) => "Shapes",
            SlotError::Rules(NftError::Missing) => "Rules, Missing",
            SlotError::Rules(NftError::Refused(_)) => "Rules, Refused",
            SlotError::Rules(NftError::Late(_)) => "Rules, Late",
            SlotError::Rules(NftError::Io(_)) => "Rules, Io",
            SlotError::Netfilter(_) => "Netfilter",
            SlotError::Socket(_) => "Socket",
            SlotError::Remove { .. } => "Remove",
            SlotError::Name(_) => "Name",
            SlotError::Exists(_) => "Exists",
            SlotError::NoNetwork(_) => "NoNetwork",
            SlotError::InUse { .. } => "InUse",
            SlotError::Taken { .. } => "Taken",
            SlotError::Full(_) => "Full",
        }
    }

    #[test]
    fn each_error_has_its_text() {
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let id: SlotId = "00aa00aa00".parse().expect("is an id");
        let path = Utf8PathBuf::from("/proc/sys/net/ipv4/conf/kiln-00aa00aa00/forwarding");
        let errors = [
            SlotError::Journal { directory: "/var/lib/kiln/net".into(), source: denied() },
            SlotError::NotFree(id.clone()),
            SlotError::Namespace(denied()),
            SlotError::Tap(io::ErrorKind::NotFound.into()),
            SlotError::Links(denied()),
            SlotError::Setting { path, source: denied() },
            SlotError::NoAddress { ranges: "10.213.0.0/16".into() },
            SlotError::Shapes(TooManyShapes { count: 600 }),
            SlotError::Rules(NftError::Missing),
            SlotError::Rules(NftError::Refused("internal:0:0-0: Error: No such file or directory".into())),
            SlotError::Rules(NftError::Late(Duration::from_secs(60))),
            SlotError::Rules(NftError::Io(denied())),
            SlotError::Netfilter(denied()),
            SlotError::Socket(denied()),
            SlotError::Remove { id, source: denied() },
            SlotError::Name("Ä".into()),
            SlotError::Exists("lab".into()),
            SlotError::NoNetwork("lab".into()),
            SlotError::InUse { name: "lab".into(), members: 2 },
            SlotError::Taken { network: "lab".into(), member: "web".into() },
            SlotError::Full("lab".into()),
        ];
        let mut lines = Vec::new();
        for error in &errors {
            lines.push(name_of(error).to_owned());
            let chain = std::iter::successors(Some(error as &dyn Error), |&error| error.source());
            lines.extend(chain.map(|error| format!("  {error}")));
            lines.extend(error.hint().map(|hint| format!("  hint: {hint}")));
        }
        insta::assert_snapshot!(lines.join("\n"));
    }
}
