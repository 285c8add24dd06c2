//! Network cards: what the guest sees, and what each leads to on the host.
//!
//! ```text
//!   saved unplugged ──▶ restored unplugged, or on a TAP device
//!   saved on a TAP  ──▶ restored on a TAP device: the guest counts on what that one can do for it
//! ```
//! A card is part of the VM and of each snapshot of it. What it leads to is the VM's own: each fork is given its own, see
//! [`ForkPart::nics`](crate::ForkPart::nics).

use std::fmt;

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

use super::mac_address::MacAddress;

/// `IFNAMSIZ` of Linux, less its end mark.
const DEVICE_BYTES_MAX: usize = 15;
/// `PATH_MAX` of Linux, less its end mark.
const PATH_BYTES_MAX: usize = 4095;

/// A network card of the guest, in order `eth0`, `eth1` …
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Its address at boot; forks get others.
    pub mac: MacAddress,
    /// What it leads to.
    #[serde(default)]
    pub attachment: Attachment,
}

/// What a network card leads to.
///
/// A VM boots once with its card unplugged. Its snapshot is then restored onto any network, each fork onto its own:
///
/// ```no_run
/// # async fn example(engine: &dyn kiln_engine::Engine, spec: kiln_engine::VmSpec) -> Result<(), Box<dyn std::error::Error>> {
/// use kiln_engine::{Attachment, ForkPart, ForkSpec, MacAddress, Nic, NicPart, ReadyRequest, Tap, VmSpec};
/// use std::time::Duration;
///
/// let spec = VmSpec { nics: vec![Nic::unplugged(MacAddress::random())], ..spec };
/// let ready = engine.ready(ReadyRequest::new(&spec, "web", Duration::from_secs(60))).await?;
///
/// // Two namespaces with a TAP device each: the guests may have the same address.
/// let part = |namespace: &str| {
///     let tap = Tap { device: "tap0".into(), namespace: Some(namespace.into()) };
///     let nics = vec![NicPart { mac: None, attachment: Attachment::Tap(tap) }];
///     ForkPart { nics, ..ForkPart::default() }
/// };
/// let parts = vec![part("/run/netns/one"), part("/run/netns/two")];
/// let forks = engine.restore(&ready, ForkSpec { count: 2, parts, ..ForkSpec::default() }).await?;
/// # drop(forks);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attachment {
    /// To nothing: what the guest sends is lost.
    #[default]
    Unplugged,
    /// To a TAP device of the host.
    Tap(Tap),
}

/// A TAP device of the host, which its user made and gave addresses and routes: persistent, with one queue. One card has it
/// at a time. Kiln opens it for the VMM, which can't reach the namespace it is in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tap {
    /// Its name: 1 to 15 of `[a-zA-Z0-9._-]`.
    pub device: String,
    /// The network namespace that it is in, as a file: `/run/netns/NAME` or `/proc/PID/ns/net`. This process's own if absent.
    /// A VM that is stopped and resumed opens its device again, so the name must still exist then.
    pub namespace: Option<Utf8PathBuf>,
}

impl Nic {
    /// A card that leads to nothing.
    pub fn unplugged(mac: MacAddress) -> Self {
        Self { mac, attachment: Attachment::Unplugged }
    }
}

impl Attachment {
    /// The TAP device that it is.
    pub(crate) fn tap(&self) -> Option<&Tap> {
        match self {
            Self::Unplugged => None,
            Self::Tap(tap) => Some(tap),
        }
    }

    /// Whether a card that is attached so loads the state of one that was attached otherwise. A guest whose card was on a
    /// TAP device has been told that the host checksums and cuts its packets, and keeps to that: nothing but another TAP
    /// device takes such packets, and QEMU ends at such a state. One that was unplugged was told nothing.
    pub(crate) fn loads_state_of(&self, saved: &Self) -> bool {
        match saved {
            Self::Unplugged => true,
            Self::Tap(_) => matches!(self, Self::Tap(_)),
        }
    }
}

impl Tap {
    /// What is wrong with its names.
    pub(crate) fn problem(&self) -> Option<String> {
        let Self { device, namespace } = self;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let dots = device == "." || device == "..";
        if dots || !(1..=DEVICE_BYTES_MAX).contains(&device.len()) || !device.bytes().all(allowed) {
            let start: String = device.chars().take(DEVICE_BYTES_MAX).collect();
            return Some(format!(
                "{start:?} is not the name of a device: it must be 1 to {DEVICE_BYTES_MAX} of `[a-zA-Z0-9._-]`"
            ));
        }
        let path = namespace.as_ref()?;
        let usable = path.is_absolute() && path.as_str().len() <= PATH_BYTES_MAX && !path.as_str().contains('\0');
        (!usable).then(|| "the path of its network namespace is not absolute, or too long".into())
    }
}

impl fmt::Display for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the TAP device `{}`", self.device)?;
        match &self.namespace {
            Some(path) => write!(f, " of the network namespace `{path}`"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tap(device: &str, namespace: Option<&str>) -> Tap {
        Tap { device: device.into(), namespace: namespace.map(Into::into) }
    }

    #[test]
    fn a_name_that_the_kernel_would_read_otherwise_is_refused() {
        for good in ["tap0", "t", "vm-1.web_2", "fifteen-bytes-x"] {
            assert_eq!(tap(good, Some("/run/netns/one")).problem(), None, "{good}");
        }
        for wrong in ["", ".", "..", "tap%d", "a/b", "a b", "tap0\0", "é", "sixteen-bytes-xx"] {
            let problem = tap(wrong, None).problem().expect("is not a name");
            assert!(problem.contains("not the name of a device"), "{problem}");
        }
        for wrong in ["", "netns/one", "./one", "/a\0b", &format!("/{}", "x".repeat(PATH_BYTES_MAX))] {
            assert!(tap("tap0", Some(wrong)).problem().is_some(), "{wrong}");
        }
    }

    #[test]
    fn what_was_on_a_tap_needs_one_again_and_all_else_goes_anywhere() {
        let (unplugged, one) = (Attachment::Unplugged, Attachment::Tap(tap("one", None)));
        let other = Attachment::Tap(tap("other", Some("/run/netns/one")));
        assert!(unplugged.loads_state_of(&unplugged) && one.loads_state_of(&unplugged) && other.loads_state_of(&one));
        assert!(!unplugged.loads_state_of(&one));
    }

    #[test]
    fn a_card_of_a_snapshot_from_before_there_were_attachments_is_unplugged() {
        let nic: Nic = serde_json::from_str(r#"{"mac": "52:54:00:12:34:56"}"#).expect("is one");
        assert_eq!(nic.attachment, Attachment::Unplugged);
        let on_tap = Nic { attachment: Attachment::Tap(tap("tap0", Some("/run/netns/one"))), ..nic };
        let text = serde_json::to_string(&on_tap).expect("JSON");
        assert_eq!(serde_json::from_str::<Nic>(&text).expect("is one"), on_tap);
    }
}
