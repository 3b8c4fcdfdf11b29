//! What is loaded: `tcp://HOST:PORT` or `http://HOST[:PORT]/PATH`.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// A target as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Connect alone, or also a request.
    pub(crate) protocol: Protocol,
    /// A name or an address; IPv6 addresses without their brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// What is said on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    /// HTTP/1.1, with the path (and query) of its requests.
    Http(String),
}
impl FromStr for Target {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let malformed =
            || format!("'{s}' is not a target: write tcp://HOST:PORT or http://HOST:PORT/PATH");
        if s.starts_with("https://") {
            return Err("https is not supported: write http://HOST:PORT/PATH".to_owned());
        }
        let (protocol, authority, default_port) = if let Some(rest) = s.strip_prefix("tcp://") {
            (Protocol::Tcp, rest.strip_suffix('/').unwrap_or(rest), None)
        } else if let Some(rest) = s.strip_prefix("http://") {
            let (authority, path) = match rest.find('/') {
                Some(i) => (&rest[..i], &rest[i..]),
                None => (rest, "/"),
            };
            // RFC 9112, section 3.2.1: origin-form has neither spaces nor a fragment.
            if path.bytes().any(|b| !b.is_ascii_graphic() || b == b'#') {
                return Err(malformed());
            }
            (Protocol::Http(path.to_owned()), authority, Some(80))
        } else {
            return Err(malformed());
        };
        let (host, port) = split_port(authority).ok_or_else(malformed)?;
        let port = port.or(default_port).filter(|p| *p != 0).ok_or_else(malformed)?;
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':' | '%');
        if host.is_empty() || !host.chars().all(legal) {
            return Err(malformed());
        }
        Ok(Self { protocol, host: host.to_owned(), port })
    }
}

/// `HOST:PORT`, `HOST`, `[V6]:PORT` or `[V6]`; also `V6:PORT`, as $(HOST_IP):PORT becomes.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
    } else {
        match authority.rsplit_once(':') {
            Some((host, _)) if host.contains(':') && host.parse::<Ipv6Addr>().is_err() => {
                return None;
            }
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    Some((host, port.map(str::parse).transpose().ok()?))
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.protocol {
            Protocol::Tcp => write!(f, "tcp://{}", self.authority()),
            Protocol::Http(path) => write!(f, "http://{}{path}", self.authority()),
        }
    }
}

impl Target {
    /// `HOST:PORT`, with brackets where the host is an IPv6 address.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The target's first address of each family, in the resolver's order; one at least. The
    /// resolver works on a thread of its own, also after this future is dropped.
    pub(crate) async fn resolve(&self) -> Result<Vec<SocketAddr>, String> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port))
            .await
            .map_err(|e| format!("cannot resolve {}: {e}", self.host))?;
        let addresses = first_of_each_family(found);
        let none = || format!("cannot resolve {}: no address", self.host);
        if addresses.is_empty() { Err(none()) } else { Ok(addresses) }
    }
}

fn first_of_each_family(found: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for a in found {
        if addresses.iter().all(|b| a.is_ipv4() != b.is_ipv4()) {
            addresses.push(a);
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name has one address of each family, in the resolver's order.
    #[test]
    fn a_family_has_one_address() {
        let of = |text: &str| -> Vec<SocketAddr> {
            text.split(' ').map(|a| a.parse().unwrap()).collect()
        };
        let found = of("[fd00::1]:1 198.18.0.1:1 [fd00::2]:1 198.18.0.2:1");
        assert_eq!(first_of_each_family(found), of("[fd00::1]:1 198.18.0.1:1"));
    }

    /// Every form that is legal is read and spelled again in full.
    #[test]
    fn reads_every_legal_form() {
        for (text, full) in [
            ("tcp://server:9000", "tcp://server:9000"),
            ("tcp://[fd00::1]:9000/", "tcp://[fd00::1]:9000"),
            ("tcp://fd00::5:31883", "tcp://[fd00::5]:31883"),
            ("http://1:2:3:4:5:6:7:8:80/x", "http://[1:2:3:4:5:6:7:8]:80/x"),
            ("http://198.18.0.1", "http://198.18.0.1:80/"),
            ("http://a.b:81/x?y=1", "http://a.b:81/x?y=1"),
            ("http://[fd00::1]/x", "http://[fd00::1]:80/x"),
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), full);
        }
    }

    /// What is no target is refused with the right form.
    #[test]
    fn refuses_what_is_no_target() {
        for bad in [
            "",
            "server:9000",
            "tcp://server",
            "tcp://:9000",
            "tcp://server:0",
            "tcp://a:b:1",
            "tcp://1:2:3:4:5:6:7:8",
            "tcp://fd00::1:x",
            "tcp://[fd00::1",
            "tcp://[fd00::1]9",
            "http://a b/",
            "http://a/x y",
            "udp://a:1",
            "http://a/#x",
            "tcp://a:70000",
            "tcp://a/b:1",
        ] {
            let e = bad.parse::<Target>().unwrap_err();
            assert!(e.contains("is not a target: write tcp://HOST:PORT"), "{bad}: {e}");
        }
        let https = "https is not supported: write http://HOST:PORT/PATH";
        assert_eq!("https://a/".parse::<Target>(), Err(https.to_owned()));
    }
}
