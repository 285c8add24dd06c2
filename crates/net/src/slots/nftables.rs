//! nftables of the namespace that a socket is in, over netlink: the removal of a table, elements with a timeout, and a
//! fingerprint of what is in the kernel.
//!
//! Whole tables are made by the program `nft` (see `rules.rs`), which takes 6 ms. These three are needed often or in
//! haste: an answer of the resolver must be open before the guest reads it.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::netlink::{ACK, Answer, Attributes, ENSURE, Message, Netlink};

const NFPROTO_INET: u8 = libc::NFPROTO_INET as u8;
/// `struct nfgenmsg`: family, version, resource.
const HEADER_BYTES: usize = 4;
const NFTABLES: u16 = libc::NFNL_SUBSYS_NFTABLES as u16;
const CONNTRACK: u16 = libc::NFNL_SUBSYS_CTNETLINK as u16;

// From linux/netfilter/nf_tables.h and nf_conntrack_netlink (uapi), which libc does not have in full.
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const ELEMENTS_TABLE: u16 = 1;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS_LIST: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_FLAGS: u16 = 3;
const ELEMENT_TIMEOUT: u16 = 4;
const DATA_VALUE: u16 = 1;
const GET_FLOW: u16 = 1;
const FLOW_ORIGINAL: u16 = 1;
const TUPLE_ADDRESSES: u16 = 1;
const ADDRESS_V4_DESTINATION: u16 = 2;

/// The kernel gives such names to the sets `{ 80, 443 }` of rules.
const UNNAMED: &str = "__";

/// An element of a set of addresses, and how long it stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) set: String,
    pub(super) address: Ipv4Addr,
    pub(super) lasts: Duration,
}

/// The transactions of other processes in the namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Commits {
    netlink: Netlink,
}

impl Commits {
    pub(super) fn watch() -> io::Result<Self> {
        Ok(Self { netlink: Netlink::netfilter_changes()? })
    }

    /// Reads what the kernel sent. Returns whether it tells of a transaction of this process. Fails if the kernel sent
    /// more than fits the socket.
    pub(super) fn tell_of(&self, process: u32) -> io::Result<bool> {
        let generation = NFTABLES << 8 | u16::try_from(libc::NFT_MSG_NEWGEN).expect("types are small");
        let mut found = false;
        // The first netlink socket of a process has the process's id as its port, and `nft` has one socket.
        self.netlink.receive(|_, answer| found |= answer.kind == generation && answer.port == process)?;
        Ok(found)
    }
}

impl AsFd for Commits {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.netlink.as_fd()
    }
}

/// Removes a table. Succeeds if it does not exist.
pub(super) fn delete_table(netlink: &mut Netlink, table: &str) -> io::Result<()> {
    let delete = request(libc::NFT_MSG_DELTABLE, ACK).text(TABLE_NAME, table);
    match netlink.send(batch(vec![delete])) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Adds elements, or gives existing ones a new timeout, in one transaction.
///
/// Before Linux 6.12, an element that exists keeps its timeout. So each is added, deleted and added again. All three
/// happen at once for packets. The first one is there because a delete of a missing element fails.
pub(super) fn put_elements(netlink: &mut Netlink, table: &str, elements: &[Element]) -> io::Result<()> {
    let change = |kind: i32, flags, element: &Element| {
        let key = element.address.octets();
        let milliseconds = u64::try_from(element.lasts.as_millis()).unwrap_or(u64::MAX).max(1);
        request(kind, flags | ACK).text(ELEMENTS_TABLE, table).text(ELEMENTS_SET, &element.set).nest(
            ELEMENTS_LIST,
            |list| {
                list.nest(LIST_ELEMENT, |one| {
                    let one = one.nest(ELEMENT_KEY, |value| value.put(DATA_VALUE, &key));
                    if kind == libc::NFT_MSG_DELSETELEM {
                        one
                    } else {
                        one.put(ELEMENT_TIMEOUT, &milliseconds.to_be_bytes())
                    }
                })
            },
        )
    };
    let changes = elements.iter().flat_map(|element| {
        [
            change(libc::NFT_MSG_NEWSETELEM, ENSURE, element),
            change(libc::NFT_MSG_DELSETELEM, 0, element),
            change(libc::NFT_MSG_NEWSETELEM, ENSURE, element),
        ]
    });
    netlink.send(batch(changes.collect()))
}

/// What a table holds, as one number: its chains, its rules with their handles, and its sets. The elements of sets whose
/// name begins with one of `alive` are left out, because they come and go. `None` if there is no such table.
///
/// The kernel counts handles up, so a rule that was deleted and made again has another one.
pub(super) fn fingerprint(netlink: &mut Netlink, table: &str, alive: &[&str]) -> io::Result<Option<u64>> {
    let mut hasher = DefaultHasher::new();
    let mut parts = 0_u64;
    let mut note = |attributes: Attributes<'_>, kinds: &[u16]| {
        parts += 1;
        kinds.iter().for_each(|kind| attributes.get(*kind).hash(&mut hasher));
    };
    list(netlink, libc::NFT_MSG_GETCHAIN, CHAIN_TABLE, table, |chain| {
        note(chain, &[CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY]);
    })?;
    list(netlink, libc::NFT_MSG_GETRULE, RULE_TABLE, table, |rule| {
        note(rule, &[RULE_CHAIN, RULE_HANDLE, RULE_EXPRESSIONS]);
    })?;
    list(netlink, libc::NFT_MSG_GETSET, SET_TABLE, table, |set| note(set, &[SET_NAME, SET_FLAGS]))?;
    let names = sets(netlink, table)?;
    for set in names.iter().filter(|set| !alive.iter().any(|prefix| set.starts_with(prefix))) {
        let elements = request(libc::NFT_MSG_GETSETELEM, 0).text(ELEMENTS_TABLE, table).text(ELEMENTS_SET, set);
        netlink.dump(elements, |answer| {
            let list = answer.attributes(HEADER_BYTES).get(ELEMENTS_LIST).unwrap_or_default();
            for (_, element) in Attributes::of(list) {
                note(Attributes::of(element), &[ELEMENT_KEY, ELEMENT_FLAGS]);
            }
        })?;
    }
    Ok((parts > 0).then(|| hasher.finish()))
}

/// The names of the sets of a table, except those without a name, which belong to one rule each.
pub(super) fn sets(netlink: &mut Netlink, table: &str) -> io::Result<Vec<String>> {
    let mut sets = Vec::new();
    list(netlink, libc::NFT_MSG_GETSET, SET_TABLE, table, |set| {
        let name = set.get(SET_NAME).and_then(|name| name.strip_suffix(&[0]));
        sets.extend(name.map(|name| String::from_utf8_lossy(name).into_owned()));
    })?;
    sets.retain(|name| !name.starts_with(UNNAMED));
    Ok(sets)
}

/// Where the flows go that the namespace tracks: the destination of the first packet of each.
pub(super) fn flows(netlink: &mut Netlink) -> io::Result<Vec<Ipv4Addr>> {
    let header = [libc::AF_INET as u8, 0, 0, 0];
    let mut found = Vec::new();
    netlink.dump(Message::new(CONNTRACK << 8 | GET_FLOW, 0, &header), |answer| found.extend(destination(answer)))?;
    Ok(found)
}

fn destination(answer: Answer<'_>) -> Option<Ipv4Addr> {
    let original = Attributes::of(answer.attributes(HEADER_BYTES).get(FLOW_ORIGINAL)?);
    let addresses = Attributes::of(original.get(TUPLE_ADDRESSES)?);
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(addresses.get(ADDRESS_V4_DESTINATION)?).ok()?))
}

fn list(
    netlink: &mut Netlink,
    kind: i32,
    table_kind: u16,
    table: &str,
    mut each: impl FnMut(Attributes<'_>),
) -> io::Result<()> {
    let wanted: Vec<u8> = table.bytes().chain([0]).collect();
    let listed = netlink.dump(request(kind, 0).text(table_kind, table), |answer| {
        let attributes = answer.attributes(HEADER_BYTES);
        // Some kernels list the chains of all tables.
        if attributes.get(table_kind) == Some(&wanted[..]) {
            each(attributes);
        }
    });
    match listed {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn request(kind: i32, flags: u16) -> Message {
    let kind = u16::try_from(kind).expect("types are small");
    Message::new(NFTABLES << 8 | kind, flags, &[NFPROTO_INET, 0, 0, 0])
}

/// A transaction: all of the requests or none.
fn batch(requests: Vec<Message>) -> Vec<Message> {
    let resource = NFTABLES.to_be_bytes();
    let end =
        |kind: i32| Message::new(u16::try_from(kind).expect("types are small"), 0, &[0, 0, resource[0], resource[1]]);
    let begin = end(libc::NFNL_MSG_BATCH_BEGIN);
    [begin].into_iter().chain(requests).chain([end(libc::NFNL_MSG_BATCH_END)]).collect()
}
