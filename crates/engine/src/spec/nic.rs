//! Network cards: the device in the guest, and its attachment on the host.
//!
//! ```text
//!   saved unplugged         ──▶ restored unplugged, on a TAP device, or on a stream
//!   saved on a TAP, or idle ──▶ restored on a TAP device, because the guest uses the offloads of one
//! ```
//! A card belongs to the VM and to each snapshot of it. An attachment belongs to one VM, so each fork is given its own,
//! see [`ForkPart::nics`](crate::ForkPart::nics).

use std::fmt;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use super::mac_address::MacAddress;

/// `IFNAMSIZ` of Linux, less its zero byte.
const DEVICE_BYTES_MAX: usize = 15;
/// `PATH_MAX` of Linux, less its zero byte.
const PATH_BYTES_MAX: usize = 4095;

/// A network card of the guest. The cards are `eth0`, `eth1` … in the order of the spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Its address at boot. Forks get new addresses.
    pub mac: MacAddress,
    /// What it is connected to on the host.
    #[serde(default)]
    pub attachment: Attachment,
}

/// What a network card is connected to on the host.
///
/// A VM boots once with its card unplugged. Each fork of its snapshot can then be put on another network:
///
/// ```no_run
/// # async fn example(
/// #     engine: &dyn kiln_engine::Engine,
/// #     spec: kiln_engine::VmSpec,
/// # ) -> Result<(), Box<dyn std::error::Error>> {
/// use kiln_engine::{Attachment, ForkPart, ForkSpec, MacAddress, Nic, NicPart, ReadyRequest, Tap, VmSpec};
/// use std::time::Duration;
///
/// let spec = VmSpec { nics: vec![Nic::unplugged(MacAddress::random())], ..spec };
/// let ready = engine.ready(ReadyRequest::new(&spec, "web", Duration::from_secs(60))).await?;
///
/// // Two namespaces with a TAP device each. The guests may have the same IP address.
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
    /// Nothing. Packets from the guest are dropped.
    #[default]
    Unplugged,
    /// A TAP device that leads nowhere. Kiln makes it, in a network namespace of its own, and it ends with the VM. The
    /// guest negotiates the offloads of a TAP device with it, so a snapshot of such a VM is for forks on TAP devices.
    Idle,
    /// A TAP device of the host.
    Tap(Tap),
    /// A network of another process: a Unix stream socket on which it listens. Kiln connects, and the VMM inherits the
    /// connection. Each frame comes after its length, as four bytes in big-endian order. If the connection ends, the
    /// card stays without a network.
    Stream {
        /// The socket.
        socket: Utf8PathBuf,
    },
}

/// A TAP device of the host. It is persistent and has one queue. The user creates it and configures its addresses and
/// routes. One card uses it at a time. Kiln opens it and passes the descriptor to the VMM, which has no access to its
/// namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tap {
    /// Its name: 1 to 15 of `[a-zA-Z0-9._-]`.
    pub device: String,
    /// The file of its network namespace: `/run/netns/NAME` or `/proc/PID/ns/net`. If absent, the namespace of this
    /// process. A VM that is stopped and resumed opens its device again, so the file must still exist then.
    pub namespace: Option<Utf8PathBuf>,
}

impl Nic {
    /// A card that is not connected.
    pub fn unplugged(mac: MacAddress) -> Self {
        Self { mac, attachment: Attachment::Unplugged }
    }
}

impl Attachment {
    /// The TAP device, unless the card is unplugged.
    pub(crate) fn tap(&self) -> Option<&Tap> {
        match self {
            Self::Unplugged | Self::Idle | Self::Stream { .. } => None,
            Self::Tap(tap) => Some(tap),
        }
    }

    /// The socket of the network, if it is a stream.
    pub(crate) fn stream(&self) -> Option<&Utf8Path> {
        match self {
            Self::Stream { socket } => Some(socket),
            Self::Unplugged | Self::Idle | Self::Tap(_) => None,
        }
    }

    /// Whether a card with this attachment can load the state of a card that was saved with the attachment `saved`.
    ///
    /// The guest's driver negotiates offloads (checksums, segmentation) at boot and uses them from then on. QEMU offers
    /// them only if the backend of the card understands the virtio header of each packet, which a TAP device with
    /// `IFF_VNET_HDR` does and an unplugged card does not. The negotiated features are part of the saved state. QEMU
    /// refuses to load a state with features that the new backend does not have, and exits. So a card that was saved on
    /// a TAP device needs a TAP device again. A card that was saved unplugged or on a stream negotiated no offloads, so it
    /// fits any attachment: it works on a TAP device without offloads.
    pub(crate) fn loads_state_of(&self, saved: &Self) -> bool {
        match saved {
            Self::Unplugged | Self::Stream { .. } => true,
            Self::Idle | Self::Tap(_) => matches!(self, Self::Idle | Self::Tap(_)),
        }
    }
}

impl Tap {
    /// The problem with its names, as text for users. `None` if they are valid.
    pub(crate) fn problem(&self) -> Option<String> {
        let Self { device, namespace } = self;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let dots = device == "." || device == "..";
        if dots || !(1..=DEVICE_BYTES_MAX).contains(&device.len()) || !device.bytes().all(allowed) {
            let start: String = device.chars().take(DEVICE_BYTES_MAX).collect();
            return Some(format!(
                "{start:?} is not a valid name for a network device: it must be 1 to {DEVICE_BYTES_MAX} of `[a-zA-Z0-9._-]`"
            ));
        }
        let path = namespace.as_ref()?;
        let usable = path.is_absolute() && path.as_str().len() <= PATH_BYTES_MAX && !path.as_str().contains('\0');
        (!usable).then(|| {
            format!("the path of its network namespace must be absolute, with at most {PATH_BYTES_MAX} bytes and no zero byte")
        })
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
    fn a_name_that_the_kernel_would_misread_is_refused() {
        for good in ["tap0", "t", "vm-1.web_2", "fifteen-bytes-x"] {
            assert_eq!(tap(good, Some("/run/netns/one")).problem(), None, "{good}");
        }
        for wrong in ["", ".", "..", "tap%d", "a/b", "a b", "tap0\0", "é", "sixteen-bytes-xx"] {
            let problem = tap(wrong, None).problem().expect("is not a name");
            assert!(problem.contains("not a valid name"), "{problem}");
        }
        for wrong in ["", "netns/one", "./one", "/a\0b", &format!("/{}", "x".repeat(PATH_BYTES_MAX))] {
            assert!(tap("tap0", Some(wrong)).problem().is_some(), "{wrong}");
        }
    }

    #[test]
    fn a_card_saved_on_a_tap_device_needs_one_again_and_an_unplugged_one_fits_all() {
        let (unplugged, one) = (Attachment::Unplugged, Attachment::Tap(tap("one", None)));
        let other = Attachment::Tap(tap("other", Some("/run/netns/one")));
        assert!(unplugged.loads_state_of(&unplugged) && one.loads_state_of(&unplugged) && other.loads_state_of(&one));
        assert!(!unplugged.loads_state_of(&one));
        let stream = Attachment::Stream { socket: "/s".into() };
        assert!(stream.loads_state_of(&unplugged) && unplugged.loads_state_of(&stream) && one.loads_state_of(&stream));
        assert!(!stream.loads_state_of(&one));
        let idle = Attachment::Idle;
        assert!(one.loads_state_of(&idle) && idle.loads_state_of(&one) && idle.loads_state_of(&unplugged));
        assert!(!unplugged.loads_state_of(&idle) && !stream.loads_state_of(&idle));
    }

    #[test]
    fn a_card_of_an_old_snapshot_without_attachments_is_unplugged() {
        let nic: Nic = serde_json::from_str(r#"{"mac": "52:54:00:12:34:56"}"#).expect("is one");
        assert_eq!(nic.attachment, Attachment::Unplugged);
        let on_tap = Nic { attachment: Attachment::Tap(tap("tap0", Some("/run/netns/one"))), ..nic };
        let text = serde_json::to_string(&on_tap).expect("JSON");
        assert_eq!(serde_json::from_str::<Nic>(&text).expect("is one"), on_tap);
    }
}
