//! Lab networks: several VMs that see each other, on a bridge in a namespace of their own.
//!
//! ```text
//!   namespace of the network
//!   ┌───────────────────────────────────────────────┐
//!   │ guest 10.77.0.2 ── tap-ID ┐                   │
//!   │ guest 10.77.0.3 ── tap-ID ┴ br0 10.77.0.1     │
//!   │                             │  table `kiln`   │
//!   │                             up0 ──────────────┼── host, as for a slot
//!   └───────────────────────────────────────────────┘
//! ```
//! A network is a slot with a bridge in place of the TAP device, so it has the same rules, the same policy for what
//! leaves it, and the same journal. It has no owner: it stays until it is removed, and it is made again if the host
//! restarted. Each member's owner answers names at the gateway: their sockets share the port, so names are answered as
//! long as one of them lives. A member has an owner, and its TAP device ends with it. Another network can't be reached, because it is
//! another namespace.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use serde::{Deserialize, Serialize};

use super::build::{self, index_of};
use super::device;
use super::error::{NftError, SlotError};
use super::home::{About, Inner, SlotsConfig};
use super::journal::{Entry, Journal, SlotId, wait_for_lock};
use super::link;
use super::namespace::Namespace;
use super::netlink::Netlink;
use super::program;
use super::rules::{self, BRIDGE, Place};
use super::slot::{Slot, SlotTap};
use crate::inner::{LAB_GATEWAY, LAB_PREFIX, RESOLVER_PORT, lab_guest};
use crate::names::Neighbours;
use crate::policy::{Domain, Policy};

const NAME_BYTES_MAX: usize = 32;
const MEMBERS: &str = "members";
/// Connections to the resolver that wait to be accepted.
const BACKLOG: i32 = 64;
/// Number 1 is the gateway, and 255 is for broadcasts.
const NUMBERS: std::ops::RangeInclusive<u8> = 2..=254;

/// Makes, finds and removes the lab networks of one Kiln home.
#[derive(Debug, Clone)]
pub struct Networks {
    inner: Arc<Inner>,
}

/// A lab network and its members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// What its members may reach outside.
    pub policy: Policy,
    /// Its members. Their names and addresses are for the resolver, or for the guests' `/etc/hosts`.
    pub members: Vec<MemberAbout>,
}

/// What is known about a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberAbout {
    /// Its name, such as that of its VM.
    pub name: String,
    /// The process that owns it.
    pub owner: u32,
    /// The guest's address.
    pub address: Ipv4Addr,
    /// The MAC address of the guest's card. Others do not pass the bridge.
    pub mac: [u8; 6],
}

/// A VM's place in a lab network. It is given up when it is dropped.
#[derive(Debug)]
pub struct Member {
    inner: Arc<Inner>,
    entry: Option<Entry>,
    members: Journal,
    namespace: Namespace,
    policy: Policy,
    about: MemberAbout,
    tap: String,
}

/// The names of the VMs in a network.
#[derive(Debug, Clone)]
pub struct MemberNames {
    members: Journal,
}

impl Networks {
    /// Opens the journal of the networks, which is below that of the slots.
    pub fn open(config: SlotsConfig) -> Result<Self, SlotError> {
        let directory = config.directory.join("networks");
        Ok(Self { inner: Arc::new(Inner::open(SlotsConfig { directory, ..config })?) })
    }

    /// Makes a network. The policy is for what leaves it: [`Policy::default`] lets nothing out.
    pub fn create(&self, name: &str, policy: &Policy) -> Result<(), SlotError> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !(1..=NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(allowed) || name.starts_with('-') {
            return Err(SlotError::Name(name.chars().take(NAME_BYTES_MAX).collect()));
        }
        let _held = self.inner.hold_labs()?;
        self.remove_unfinished()?;
        if self.find(name)?.is_some() {
            return Err(SlotError::Exists(name.to_owned()));
        }
        build::slot(&self.inner, name, Place::LAB, Some(policy))?.leave();
        Ok(())
    }

    /// All networks, by name.
    pub fn list(&self) -> Result<Vec<Network>, SlotError> {
        let mut networks = Vec::new();
        for id in self.ids()? {
            let Some(about) = self.inner.journal.about::<About>(&id) else { continue };
            let members = self.inner.members(&id)?;
            let ids = members.ids().map_err(|source| self.inner.journal_failed(source))?;
            let mut members: Vec<MemberAbout> = ids.iter().filter_map(|id| members.about(id)).collect();
            members.sort_by_key(|member| member.address);
            networks.push(Network { name: about.label, policy: about.policy.unwrap_or_default(), members });
        }
        networks.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(networks)
    }

    /// Removes a network. Refuses if VMs use it.
    pub fn remove(&self, name: &str) -> Result<(), SlotError> {
        let _held = self.inner.hold_labs()?;
        let id = self.find(name)?.ok_or_else(|| SlotError::NoNetwork(name.to_owned()))?;
        let entry = self.claim(&id)?;
        let members = self.inner.members(&id)?;
        let left = self.inner.prune(&members, &Namespace::existing(&entry.namespace()))?;
        if left.is_empty() {
            self.inner.remove(entry)
        } else {
            Err(SlotError::InUse { name: name.to_owned(), members: left.len() })
        }
    }

    /// Replaces the policy for what leaves a network.
    pub fn set_policy(&self, name: &str, policy: &Policy) -> Result<(), SlotError> {
        let _held = self.inner.hold_labs()?;
        let mut slot = self.slot(name)?;
        let applied = slot.apply(policy, &[]);
        slot.leave();
        applied
    }

    /// Gives a VM a place in a network: a TAP device, an address and a MAC address.
    pub fn join(&self, name: &str, vm: &str) -> Result<Member, SlotError> {
        let _held = self.inner.hold_labs()?;
        let id = self.slot(name)?.leave();
        let members = self.inner.members(&id)?;
        let namespace = self.inner.namespace(&id);
        let used = self.inner.prune(&members, &namespace)?;
        if used.iter().any(|member| member.name == vm) {
            return Err(SlotError::Taken { network: name.to_owned(), member: vm.to_owned() });
        }
        let policy = self.inner.journal.about::<About>(&id).and_then(|about| about.policy).unwrap_or_default();
        let number =
            NUMBERS.into_iter().find(|number| !used.iter().any(|member| member.address == lab_guest(*number).0));
        let (address, mac) = lab_guest(number.ok_or_else(|| SlotError::Full(name.to_owned()))?);
        let about = MemberAbout { name: vm.to_owned(), owner: std::process::id(), address, mac };
        let entry = members.create().map_err(|source| self.inner.journal_failed(source))?;
        let tap = tap_of(entry.id());
        // Noted before it is made, so that the next member does not get the same address.
        let noted = entry.note(&about).map_err(|source| self.inner.journal_failed(source));
        match noted.and_then(|()| plug_in(&namespace, &tap, &about)) {
            Ok(()) => {
                let (inner, entry) = (Arc::clone(&self.inner), Some(entry));
                Ok(Member { inner, entry, members, namespace, policy, about, tap })
            }
            Err(error) => {
                // The first error is the one to report. The journal keeps what can't be removed now.
                let _ = self.inner.unplug(&namespace, entry, &tap, Some(&about));
                Err(error)
            }
        }
    }

    /// Removes the places of members whose owner is dead, and networks that were never finished. Networks stay.
    pub fn recover(&self) -> Result<(), SlotError> {
        let _held = self.inner.hold_labs()?;
        self.remove_unfinished()?;
        for id in self.ids()? {
            self.inner.prune(&self.inner.members(&id)?, &self.inner.namespace(&id))?;
        }
        self.inner.restore().map_err(SlotError::Links)
    }

    /// The slot of a network. It is made again if the host restarted since.
    fn slot(&self, name: &str) -> Result<Slot, SlotError> {
        let id = self.find(name)?.ok_or_else(|| SlotError::NoNetwork(name.to_owned()))?;
        let entry = self.claim(&id)?;
        let about = self.inner.journal.about::<About>(&id).ok_or_else(|| SlotError::NotFree(id.clone()))?;
        let is_there = Namespace::existing(&entry.namespace()).run(|| ()).is_ok();
        if is_there {
            return build::existing(&self.inner, entry, Place::LAB, &about);
        }
        self.inner.remove_parts(&entry)?;
        let policy = about.policy.unwrap_or_default();
        build::slot_of(&self.inner, entry, name, Place::LAB, Some(&policy)).map_err(|(entry, error)| {
            // The network stays in the journal. The first error is the one to report.
            let _ = self.inner.remove_parts(&entry);
            error
        })
    }

    fn find(&self, name: &str) -> Result<Option<SlotId>, SlotError> {
        let is_named = |id: &SlotId| self.inner.journal.about::<About>(id).is_some_and(|about| about.label == name);
        Ok(self.ids()?.into_iter().find(is_named))
    }

    fn remove_unfinished(&self) -> Result<(), SlotError> {
        for id in self.ids()? {
            if self.inner.journal.about::<About>(&id).is_none() {
                self.inner.remove(self.claim(&id)?)?;
            }
        }
        Ok(())
    }

    fn claim(&self, id: &SlotId) -> Result<Entry, SlotError> {
        let claimed = self.inner.journal.claim(id).map_err(|source| self.inner.journal_failed(source))?;
        claimed.ok_or_else(|| SlotError::NotFree(id.clone()))
    }

    fn ids(&self) -> Result<Vec<SlotId>, SlotError> {
        self.inner.journal.ids().map_err(|source| self.inner.journal_failed(source))
    }
}

impl Inner {
    /// One change of lab networks at a time. Each takes milliseconds.
    fn hold_labs(&self) -> Result<File, SlotError> {
        wait_for_lock(&self.config.directory.join("labs")).map_err(|source| self.journal_failed(source))
    }

    fn namespace(&self, id: &SlotId) -> Namespace {
        Namespace::existing(&self.journal.namespace(id))
    }

    fn members(&self, id: &SlotId) -> Result<Journal, SlotError> {
        let directory = self.journal.namespace(id).with_file_name(MEMBERS);
        Journal::open(&directory).map_err(|source| self.journal_failed(source))
    }

    /// Removes the places without an owner and without a VM. Returns the members that are left.
    fn prune(&self, members: &Journal, namespace: &Namespace) -> Result<Vec<MemberAbout>, SlotError> {
        let mut left = Vec::new();
        for id in members.ids().map_err(|source| self.journal_failed(source))? {
            let about = members.about::<MemberAbout>(&id);
            let tap = tap_of(&id);
            let device = tap.clone();
            let claimed = members.claim(&id).map_err(|source| self.journal_failed(source))?;
            let Some(entry) = claimed else {
                left.extend(about);
                continue;
            };
            let is_open = namespace.run(move || device::tap_is_open(&device));
            if matches!(is_open, Ok(Ok(true))) {
                left.extend(about);
            } else {
                self.unplug(namespace, entry, &tap, about.as_ref())?;
            }
        }
        Ok(left)
    }

    /// Removes a member's device and its place. Each part may be missing.
    fn unplug(
        &self,
        namespace: &Namespace,
        entry: Entry,
        tap: &str,
        about: Option<&MemberAbout>,
    ) -> Result<(), SlotError> {
        let id = entry.id().clone();
        let failed = |source| SlotError::Remove { id: id.clone(), source };
        let device = tap.to_owned();
        let rule = about.map(|about| rules::port("delete", tap, (about.address, about.mac)));
        let removed = namespace.run(move || {
            match Netlink::route()?.send([link::delete(&device)]) {
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                other => other?,
            }
            match rule.map_or(Ok(()), |rule| program::apply(&rule)) {
                // The port was not in the set yet.
                Err(NftError::Refused(_)) => Ok(()),
                other => other.map_err(io::Error::other),
            }
        });
        match removed {
            // The namespace is gone, and the device with it.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {}
            other => other.and_then(|done| done).map_err(failed)?,
        }
        entry.remove().map_err(failed)
    }
}

impl Member {
    /// The TAP device for the VM's network card.
    pub fn tap(&self) -> SlotTap {
        SlotTap { device: self.tap.clone(), namespace: self.namespace.file().to_owned() }
    }

    /// Its name and its addresses.
    pub fn about(&self) -> &MemberAbout {
        &self.about
    }

    /// The length of the prefix that all members share, and their gateway.
    pub fn network(&self) -> (u8, Ipv4Addr) {
        (LAB_PREFIX, LAB_GATEWAY)
    }

    /// What the network's members may reach outside, when this one joined.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The names of all members, this one too.
    pub fn names(&self) -> MemberNames {
        MemberNames { members: self.members.clone() }
    }

    /// New sockets at the gateway's address, for a resolver that the guests ask. Each member can have them: the kernel
    /// chooses one for each query.
    pub fn resolver_sockets(&self) -> Result<(UdpSocket, TcpListener), SlotError> {
        let bound = self.namespace.run(|| Ok((shared_socket(SocketType::DGRAM)?, shared_socket(SocketType::STREAM)?)));
        let (udp, tcp) = bound.and_then(|bound: io::Result<_>| bound).map_err(SlotError::Socket)?;
        Ok((udp.into(), tcp.into()))
    }

    /// Gives the place up and reports what failed. A drop does the same and reports nothing.
    pub fn leave(mut self) -> Result<(), SlotError> {
        self.remove()
    }

    fn remove(&mut self) -> Result<(), SlotError> {
        let Some(entry) = self.entry.take() else { return Ok(()) };
        let _held = self.inner.hold_labs()?;
        self.inner.unplug(&self.namespace, entry, &self.tap, Some(&self.about))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // The journal keeps what can't be removed now, for the next recovery.
        if let Err(error) = self.remove() {
            tracing::warn!(member = %self.about.name, error = &error as &dyn std::error::Error, "failed to leave a network");
        }
    }
}

/// Reads the journal for each name, because members come and go with other processes.
impl Neighbours for MemberNames {
    fn addresses(&self, name: &Domain) -> Vec<IpAddr> {
        let ids = self.members.ids().unwrap_or_default();
        let found = ids.iter().filter_map(|id| Some((id, self.members.about::<MemberAbout>(id)?)));
        let named = found.filter(|(_, about)| Domain::new(&about.name).is_ok_and(|member| member == *name));
        // The place of a member whose owner was killed stays until the next recovery.
        let owned = named.filter(|(id, _)| matches!(self.members.claim(id), Ok(None)));
        owned.map(|(_, about)| about.address.into()).collect()
    }
}

/// A socket at the gateway's address, of this thread's namespace, which other processes can have, too.
fn shared_socket(kind: SocketType) -> io::Result<std::os::fd::OwnedFd> {
    let socket = socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    bind(&socket, &SocketAddr::new(LAB_GATEWAY.into(), RESOLVER_PORT))?;
    if kind == SocketType::STREAM {
        listen(socket.as_fd(), BACKLOG)?;
    }
    Ok(socket)
}

/// Makes the device of a member. It is up once the bridge knows its addresses.
fn plug_in(namespace: &Namespace, tap: &str, about: &MemberAbout) -> Result<(), SlotError> {
    let device = tap.to_owned();
    let rule = rules::port("add", tap, (about.address, about.mac));
    let plug = move || {
        device::create_tap(&device).map_err(SlotError::Tap)?;
        program::apply(&rule)?;
        let mut links = Netlink::route().map_err(SlotError::Links)?;
        let bridge = index_of(&mut links, BRIDGE)?;
        links.send([link::enslave(&device, bridge), link::up(&device)]).map_err(SlotError::Links)
    };
    namespace.run(plug).map_err(SlotError::Namespace)?
}

fn tap_of(id: &SlotId) -> String {
    format!("tap-{id}")
}
