//! One outgoing non-blocking socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use rustix::event::epoll;

/// Opens a non-blocking TCP socket towards `target`'s family, bound to `source`
/// if there is one.
pub(crate) fn open(target: SocketAddr, source: Option<IpAddr>) -> io::Result<OwnedFd> {
    let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Stream, flags, None)?;
    if let Some(ip) = source {
        // IP_BIND_ADDRESS_NO_PORT: the port is chosen at connect(), when the whole 4-tuple
        // is known, so that each (source, target) pair has the full port range.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(ip, 0)))?;
    }
    Ok(socket)
}

/// Waits for events, so long at most.
pub(crate) fn wait(
    epoll: &OwnedFd,
    time: Duration,
    events: &mut Vec<epoll::Event>,
) -> io::Result<()> {
    let timeout = rustix::event::Timespec {
        tv_sec: time.as_secs().cast_signed(),
        tv_nsec: i64::from(time.subsec_nanos()),
    };
    events.clear();
    match epoll::wait(epoll, rustix::buffer::spare_capacity(events), Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Checks that `ip` is this host's and of the target's family.
pub(crate) fn check_source(ip: IpAddr, target: SocketAddr) -> Result<(), String> {
    if ip.is_ipv4() != target.is_ipv4() {
        return Err(format!("--source-ip {ip}: not of the target's family ({})", target.ip()));
    }
    if ip.is_unspecified() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Err(format!("--source-ip {ip}: name one of this host's addresses"));
    }
    open(target, Some(ip)).map(drop).map_err(|e| {
        format!("--source-ip {ip}: cannot bind: {e}; name one of this host's addresses")
    })
}
