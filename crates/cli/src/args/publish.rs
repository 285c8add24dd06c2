//! `-p` of `kiln run`: a port of the host that leads to one of the guest.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// One `-p`: an address of the host and a port of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    /// Where kiln listens. Port 0: a free one.
    pub host: SocketAddr,
    /// The guest's port.
    pub guest: u16,
}

impl FromStr for Publish {
    type Err = String;

    /// Parses `[ADDRESS:][HOST:]GUEST[/tcp]`, like docker. Without an address it is this host's loopback, so that only
    /// programs of this host can connect.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is not a port: write [ADDRESS:]HOST:GUEST, such as 127.0.0.1:8080:80");
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        if protocol != "tcp" {
            return Err(format!("`{text}`: only TCP ports can be published"));
        }
        let port = |text: &str| text.parse::<u16>().ok();
        let (rest, guest) = ports.rsplit_once(':').unwrap_or(("", ports));
        let guest = port(guest).filter(|port| *port > 0).ok_or_else(bad)?;
        let (address, host) = match rest.rsplit_once(':') {
            Some((address, host)) => (Some(address), host),
            None => (None, rest),
        };
        let host = if host.is_empty() { Some(0) } else { port(host) }.ok_or_else(bad)?;
        let address = match address {
            None => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Some(address) => address.trim_start_matches('[').trim_end_matches(']').parse().map_err(|_| bad())?,
        };
        Ok(Self { host: SocketAddr::new(address, host), guest })
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_like_in_docker_and_stay_on_the_loopback() {
        for (text, read) in [
            ("8080:80", "127.0.0.1:8080:80"),
            ("80", "127.0.0.1:0:80"),
            (":80", "127.0.0.1:0:80"),
            ("8080:80/tcp", "127.0.0.1:8080:80"),
            ("0.0.0.0:8080:80", "0.0.0.0:8080:80"),
            ("192.0.2.7::80", "192.0.2.7:0:80"),
            ("[::1]:8080:80", "[::1]:8080:80"),
        ] {
            assert_eq!(text.parse::<Publish>().expect("a port").to_string(), read, "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        let texts = ["", "0", "x", "80:0", "80:65536", "-1:80", "host:80:80", "1.2.3:80:80", "80:80/udp", "80-90:80"];
        let lines = texts.map(|text| format!("{}\n", text.parse::<Publish>().expect_err("refused")));
        insta::assert_snapshot!(lines.concat());
    }
}
