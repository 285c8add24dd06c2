//! To which addresses a registry may send us.
//!
//! A registry answers with redirects. One that is public must not make the host open connections to services that are
//! reachable only from here: its own loopback, the machines of its network, the metadata service of its cloud. So the
//! addresses of other servers are compared with those of the registry: public ones are always permitted, private and
//! loopback ones only if the registry itself is at such an address, link-local ones never.
//!
//! The check is made by the resolver, on the addresses to which the connection is then opened. A name that resolves to
//! something else the next time gains nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use super::location::Location;

/// From where an address is reachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// From everywhere.
    Public,
    /// From a private network.
    Private,
    /// From this machine.
    Loopback,
    /// From this link, or a service of the cloud: never followed.
    Link,
}

/// The rule for one registry.
#[derive(Debug)]
pub(crate) struct Guard {
    home: String,
    reached: Mutex<BTreeSet<Reach>>,
}

/// A resolver that refuses addresses.
#[derive(Debug)]
pub(crate) struct GuardedResolver {
    pub guard: std::sync::Arc<Guard>,
    pub inner: DefaultResolver,
}

/// An address was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{host}` is at {address}, to which a registry elsewhere may not redirect")]
pub(crate) struct Refused {
    pub host: String,
    pub address: IpAddr,
}

impl Guard {
    pub(crate) fn new(home: &Location) -> Self {
        let reached = home.address().map(reach).into_iter().collect();
        Self { home: home.host.clone(), reached: Mutex::new(reached) }
    }

    /// Whether a server is permitted, as far as this is known without resolving its name.
    pub(crate) fn check(&self, target: &Location) -> Result<(), Refused> {
        match target.address() {
            Some(address) => self.permit(&target.host, &[address]),
            None if target.is_loopback() => self.permit(&target.host, &[Ipv4Addr::LOCALHOST.into()]),
            None => Ok(()),
        }
    }

    fn permit(&self, host: &str, addresses: &[IpAddr]) -> Result<(), Refused> {
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        if host == self.home {
            reached.extend(addresses.iter().copied().map(reach));
            return Ok(());
        }
        let is_refused = |address: &&IpAddr| match reach(**address) {
            Reach::Public => false,
            Reach::Link => true,
            other => !reached.contains(&other),
        };
        match addresses.iter().find(is_refused) {
            Some(address) => Err(Refused { host: host.to_owned(), address: *address }),
            None => Ok(()),
        }
    }
}

impl Resolver for GuardedResolver {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.inner.resolve(uri, config, timeout)?;
        let host = uri.host().unwrap_or_default().to_ascii_lowercase();
        // The proxy is the user's own choice.
        if config.proxy().is_some_and(|proxy| proxy.host().eq_ignore_ascii_case(&host)) {
            return Ok(found);
        }
        let addresses: Vec<IpAddr> = found.iter().map(SocketAddr::ip).collect();
        self.guard.permit(&host, &addresses).map_err(|refused| ureq::Error::Other(Box::new(refused)))?;
        Ok(found)
    }
}

/// The class of an address. Forms that hold an IPv4 address are treated as that address.
pub(crate) fn reach(address: IpAddr) -> Reach {
    match address {
        IpAddr::V4(address) => reach_v4(address),
        IpAddr::V6(address) => match inner_v4(address) {
            Some(inner) => reach_v4(inner),
            None => reach_v6(address),
        },
    }
}

fn reach_v4(address: Ipv4Addr) -> Reach {
    let [a, b, ..] = address.octets();
    // Metadata services at addresses that are not link-local.
    let metadata = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192), Ipv4Addr::new(168, 63, 129, 16)];
    if address.is_loopback() {
        Reach::Loopback
    } else if address.is_link_local() || metadata.contains(&address) || a == 0 || a >= 224 {
        Reach::Link
    } else if address.is_private()
        || (a == 100 && b & 0xc0 == 64)
        || (a == 198 && b & 0xfe == 18)
        || (a == 192 && b == 0)
    {
        Reach::Private
    } else {
        Reach::Public
    }
}

fn reach_v6(address: Ipv6Addr) -> Reach {
    let first = address.segments()[0];
    let metadata = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    if address.is_loopback() {
        Reach::Loopback
    } else if address.is_unspecified() || first & 0xffc0 == 0xfe80 || first >= 0xff00 || address == metadata {
        Reach::Link
    } else if first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfec0 {
        Reach::Private
    } else {
        Reach::Public
    }
}

/// The IPv4 address in a mapped, NAT64 (`64:ff9b::/96`), 6to4 or compatible one.
fn inner_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let parts = address.segments();
    let from = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match parts {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(from(high, low)),
        [0x2002, high, low, ..] => Some(from(high, low)),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => Some(from(high, low)),
        _ => None,
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::Loopback => "loopback",
            Self::Link => "link-local",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(home: &str, addresses: &[&str]) -> Guard {
        let guard = Guard::new(&Location::parse(home).expect("a URL"));
        let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().expect("an address")).collect();
        let host = guard.home.clone();
        guard.permit(&host, &addresses).expect("home is always permitted");
        guard
    }

    fn permits(guard: &Guard, address: &str) -> bool {
        guard.permit("other.example", &[address.parse().expect("an address")]).is_ok()
    }

    #[test]
    fn a_public_registry_leads_only_to_public_addresses() {
        let guard = guard("https://registry.example/", &["93.184.216.34"]);
        assert!(permits(&guard, "1.1.1.1") && permits(&guard, "2606:4700::1111"));
        let inner = [
            "127.0.0.1",
            "127.8.8.8",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "100.100.100.200",
            "169.254.169.254",
            "168.63.129.16",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "::127.0.0.1",
        ];
        for address in inner {
            assert!(!permits(&guard, address), "{address}");
        }
    }

    #[test]
    fn a_registry_leads_to_addresses_like_its_own() {
        let private = guard("https://registry.lan/", &["10.1.2.3"]);
        assert!(permits(&private, "192.168.1.1") && permits(&private, "1.1.1.1"));
        assert!(!permits(&private, "127.0.0.1") && !permits(&private, "169.254.169.254"));
        let own = guard("http://127.0.0.1:5000/", &[]);
        assert!(permits(&own, "127.0.0.1") && permits(&own, "::1"));
        assert!(!permits(&own, "10.0.0.1") && !permits(&own, "169.254.169.254"));
    }

    #[test]
    fn one_refused_address_of_a_name_is_enough() {
        let guard = guard("https://registry.example/", &["93.184.216.34"]);
        let both = ["1.1.1.1", "127.0.0.1"].map(|address| address.parse().expect("an address"));
        let refused = guard.permit("two.example", &both).expect_err("one is loopback");
        insta::assert_snapshot!(refused, @"`two.example` is at 127.0.0.1, to which a registry elsewhere may not redirect");
        let named = Location::parse("https://localhost/").expect("a URL");
        assert!(guard.check(&named).is_err());
    }
}
