//! Where a program listens by default: both families, or the one that there is; and where it is.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use nix::errno::Errno;
use nix::sys::socket::SockaddrStorage;

/// Binds to `addr` with `bind`. A kernel without IPv6 can still serve what `[::]` means for IPv4.
pub fn bind<T>(addr: SocketAddr, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    match bind(addr) {
        Err(e) if addr.ip().is_unspecified() && addr.is_ipv6() && without_ipv6(&e) => {
            bind((Ipv4Addr::UNSPECIFIED, addr.port()).into())
        }
        other => other,
    }
}

fn without_ipv6(e: &io::Error) -> bool {
    [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL].iter().any(|n| e.raw_os_error() == Some(*n as i32))
}

/// The addresses of this network namespace, as far as they can be told.
#[must_use]
pub fn own_addresses() -> Vec<IpAddr> {
    let ip = |a: SockaddrStorage| {
        let v4 = a.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| a.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    };
    nix::ifaddrs::getifaddrs()
        .map_or_else(|_| Vec::new(), |all| all.filter_map(|i| i.address.and_then(ip)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where IPv6 is missing [::] becomes 0.0.0.0; another address or error stays what it is.
    #[test]
    fn without_ipv6_the_wildcard_is_ipv4s() {
        let bound = |addr: &str, errno: Errno| {
            let addr: SocketAddr = addr.parse().unwrap();
            bind(addr, |a| if a.is_ipv4() { Ok(a.to_string()) } else { Err(errno.into()) })
                .map_err(|e| e.raw_os_error())
        };
        for missing in [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL] {
            assert_eq!(bound("[::]:8080", missing), Ok("0.0.0.0:8080".to_owned()));
            assert_eq!(bound("[::1]:8080", missing), Err(Some(missing as i32)));
        }
        assert_eq!(bound("[::]:80", Errno::EACCES), Err(Some(Errno::EACCES as i32)));
    }
}
