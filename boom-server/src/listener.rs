//! Listening sockets.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// Connections waiting for accept(); the kernel cuts it to net.core.somaxconn.
const BACKLOG: i32 = 65_535;
/// A dead peer is looked for after this time and the judgement's: the flow is
/// forgotten by then, or the answer to the kernel's probe could pass for another's.
const IDLE: Duration = Duration::from_secs(180);
/// The longest time that the kernel takes (MAX_TCP_KEEPIDLE, include/net/tcp.h).
const MAX_IDLE: Duration = Duration::from_secs(32_767);
const INTERVAL: Duration = Duration::from_secs(30);

/// A socket that takes no connection before [`listen`]. `[::]` takes IPv4 too.
pub(crate) fn bound(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    // What is accepted inherits it, without a system call for each.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

/// Begins to take connections, which are judged within `judged` of their last segment.
pub(crate) fn listen(listener: &TcpListener, judged: Duration) -> io::Result<()> {
    let idle = judged.saturating_add(IDLE).min(MAX_IDLE);
    let socket = SockRef::from(listener);
    // What is accepted inherits it (tcp_create_openreq_child()).
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle).with_interval(INTERVAL))?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{getsockopt, sockopt};

    /// A dead peer is noticed, and not before the connection is judged and forgotten.
    #[test]
    fn accepted_connections_are_kept_alive() {
        for (judged, idle) in [(2, 182), (1_000_000, 32_767)] {
            let listener = bound(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
            listen(&listener, Duration::from_secs(judged)).unwrap();
            let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            listener.set_nonblocking(false).unwrap();
            let (stream, _) = listener.accept().unwrap();
            assert_eq!(getsockopt(&stream, sockopt::KeepAlive), Ok(true));
            assert_eq!(getsockopt(&stream, sockopt::TcpKeepIdle), Ok(idle));
        }
    }
}
