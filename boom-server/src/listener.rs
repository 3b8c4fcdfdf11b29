//! Listening sockets, and the small protocol that `load-client probe` speaks.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use canary_common::outcome::Errno;
use canary_common::probe::{Body, BodyHash, MAX_LINE, Request};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Connections waiting for accept(); the kernel cuts it to net.core.somaxconn.
const BACKLOG: i32 = 65_535;
/// A dead peer is looked for after this time and the judgement's: the flow is
/// forgotten by then, or the answer to the kernel's probe could pass for another's.
const IDLE: Duration = Duration::from_secs(180);
/// The longest time that the kernel takes (MAX_TCP_KEEPIDLE, include/net/tcp.h).
const MAX_IDLE: Duration = Duration::from_secs(32_767);
const INTERVAL: Duration = Duration::from_secs(30);
const CHUNK: usize = 16 * 1024;

/// Counts of the accept queue's side.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// accept() errors.
    pub errors: AtomicU64,
    /// Connections that ended with ECONNRESET.
    pub resets: AtomicU64,
    /// Connections open now.
    pub open: AtomicU64,
}

impl Counters {
    /// A connection is over.
    pub(crate) fn ended(&self, how: io::Result<()>) {
        if how.is_err_and(|e| Errno::of(&e) == Errno::Econnreset) {
            self.resets.fetch_add(1, Ordering::Relaxed);
        }
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A listener. [::] takes IPv4 too.
pub fn bind(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = bound(addr)?;
    SockRef::from(&listener).listen(BACKLOG)?;
    Ok(listener)
}

/// The same, which takes no connection before [`listen`].
pub fn bound(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
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
pub fn listen(listener: &std::net::TcpListener, judged: Duration) -> io::Result<()> {
    let idle = judged.saturating_add(IDLE).min(MAX_IDLE);
    let socket = SockRef::from(listener);
    // What is accepted inherits it (tcp_create_openreq_child()).
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle).with_interval(INTERVAL))?;
    socket.listen(BACKLOG)
}

/// One connection, to the client's FIN.
pub(crate) async fn serve(mut stream: TcpStream) -> io::Result<()> {
    let mut buf = Vec::new();
    loop {
        let Some(end) = buf.iter().position(|&b| b == b'\n') else {
            // What is too long for a request is echoed without waiting for its end.
            if buf.len() >= MAX_LINE {
                stream.write_all(&buf).await?;
                buf.clear();
            }
            if buf.capacity() == 0 {
                buf.reserve_exact(MAX_LINE);
            }
            if stream.read_buf(&mut buf).await? == 0 {
                stream.write_all(&buf).await?;
                return stream.shutdown().await;
            }
            continue;
        };
        let rest = buf.split_off(end + 1);
        let request = std::str::from_utf8(&buf).ok().and_then(|l| l.parse().ok());
        match request {
            Some(Request::Answer { delay, length, seed }) => {
                tokio::time::sleep(delay).await;
                answer(&mut stream, length, seed).await?;
                buf = rest;
            }
            Some(Request::Take { length, .. }) => buf = take(&mut stream, rest, length).await?,
            None => {
                stream.write_all(&buf).await?;
                buf = rest;
            }
        }
    }
}

async fn answer(stream: &mut TcpStream, mut length: u64, seed: u64) -> io::Result<()> {
    let mut body = Body::new(seed);
    let mut chunk = vec![0; CHUNK.min(length as usize)];
    while length > 0 {
        let n = chunk.len().min(usize::try_from(length).unwrap_or(CHUNK));
        body.fill(&mut chunk[..n]);
        stream.write_all(&chunk[..n]).await?;
        length -= n as u64;
    }
    Ok(())
}

/// Reads a body of which `first` has arrived; returns what came behind it.
async fn take(stream: &mut TcpStream, mut first: Vec<u8>, length: u64) -> io::Result<Vec<u8>> {
    let own = first.len().min(usize::try_from(length).unwrap_or(usize::MAX));
    let rest = first.split_off(own);
    let mut hash = BodyHash::default();
    hash.update(&first);
    let mut left = length - own as u64;
    let mut chunk = vec![0; CHUNK.min(left as usize)];
    while left > 0 {
        let most = chunk.len().min(usize::try_from(left).unwrap_or(CHUNK));
        let n = stream.read(&mut chunk[..most]).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hash.update(&chunk[..n]);
        left -= n as u64;
    }
    stream.write_all(format!("ok {}\n", hash.hex()).as_bytes()).await?;
    Ok(rest)
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
