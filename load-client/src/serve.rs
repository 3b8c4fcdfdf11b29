//! The target of churn and hold: HTTP and plain lines on one port. Each worker
//! has its own listener (SO_REUSEPORT) and its own epoll instance.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags};
use slab::Slab;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use crate::socket;

/// The longest head of a request.
const MAX_HEAD: usize = 8 << 10;
/// The data of a listener's event; connections count from zero.
const LISTENER: u64 = 1 << 63;
/// Connections accepted between two looks at the others.
const BATCH: usize = 256;
/// A peer that went without a FIN is noticed. Much longer than the intervals at which `hold`
/// speaks: on a connection whose entry was lost it matters who speaks first.
const KEEP_ALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(120))
    .with_interval(Duration::from_secs(10))
    .with_retries(3);
/// How often a worker looks whether it is to end.
const TICK: Duration = Duration::from_millis(100);

/// What was served.
#[derive(Debug, Default)]
pub(crate) struct Served {
    pub(crate) accepted: AtomicU64,
    /// HTTP answers.
    pub(crate) answers: AtomicU64,
    pub(crate) accept_errors: AtomicU64,
}

impl Served {
    /// Brings the metrics to the counts.
    pub(crate) fn publish(&self) {
        let now = |n: &AtomicU64| n.load(Ordering::Relaxed);
        metrics::counter!("load_accepted_total").absolute(now(&self.accepted));
        metrics::counter!("load_answers_total").absolute(now(&self.answers));
        metrics::counter!("load_accept_errors_total").absolute(now(&self.accept_errors));
    }
}

/// An answer, made once.
#[derive(Debug)]
struct Answer {
    whole: Bytes,
    /// Where the body begins: HEAD gets what is before.
    head: usize,
}

impl Answer {
    fn new(connection: &str, body: usize) -> Self {
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {body}\r\nconnection: {connection}\r\n\r\n"
        )
        .into_bytes();
        let head = answer.len();
        answer.resize(head + body, b'x');
        Self { whole: answer.into(), head }
    }
}

const BAD_REQUEST: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// Opens one listener of `addr`, shared by port with the other workers'.
pub(crate) fn bind(addr: SocketAddr) -> io::Result<OwnedFd> {
    let domain = if addr.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(domain, kind, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        // [::] serves both families.
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_port(true)?;
    // What is accepted inherits it, without a system call for each.
    socket.set_tcp_keepalive(&KEEP_ALIVE)?;
    socket.bind(&addr.into())?;
    socket.listen(i32::from(u16::MAX))?;
    Ok(socket.into())
}

struct Connection {
    fd: OwnedFd,
    head: Vec<u8>,
    echo: bool,
    /// What is to be sent.
    out: Bytes,
    close_after: bool,
}

/// Serves until `stop`.
pub(crate) fn run(
    listeners: &[OwnedFd],
    body: usize,
    stop: &AtomicBool,
    served: &Arc<Served>,
) -> io::Result<()> {
    let mut worker = Worker {
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        connections: Slab::new(),
        keep: Answer::new("keep-alive", body),
        close: Answer::new("close", body),
        buffer: vec![0; 64 << 10],
        served: Arc::clone(served),
    };
    for (n, listener) in listeners.iter().enumerate() {
        let data = epoll::EventData::new_u64(LISTENER | n as u64);
        epoll::add(&worker.epoll, listener, data, epoll::EventFlags::IN)?;
    }
    let mut events = Vec::with_capacity(512);
    while !stop.load(Ordering::Relaxed) {
        socket::wait(&worker.epoll, TICK, &mut events)?;
        for event in &events {
            let data = event.data.u64();
            if data & LISTENER == 0 {
                worker.ready(data as usize);
            } else if let Some(listener) = listeners.get((data & !LISTENER) as usize) {
                worker.accept(listener);
            }
        }
    }
    Ok(())
}

impl Connection {
    /// Sends what is to be sent; true when all of it is.
    fn flush(&mut self) -> io::Result<bool> {
        while !self.out.is_empty() {
            match rustix::net::send(&self.fd, &self.out, SendFlags::NOSIGNAL) {
                Ok(n) => self.out.advance(n),
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(true)
    }
}

struct Worker {
    epoll: OwnedFd,
    /// None while one is served.
    connections: Slab<Option<Connection>>,
    keep: Answer,
    close: Answer,
    buffer: Vec<u8>,
    served: Arc<Served>,
}

impl Worker {
    fn accept(&mut self, listener: &OwnedFd) {
        for _ in 0..BATCH {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let fd = match rustix::net::accept_with(listener, flags) {
                Ok(fd) => fd,
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(e) => {
                    let n = self.served.accept_errors.fetch_add(1, Ordering::Relaxed);
                    if n.is_power_of_two() {
                        tracing::warn!(error = %io::Error::from(e), errors = n + 1, "accept failed");
                    }
                    // EMFILE and its like pass; a tight loop would make them worse.
                    std::thread::sleep(Duration::from_millis(5));
                    return;
                }
            };
            self.served.accepted.fetch_add(1, Ordering::Relaxed);
            let mut connection = Connection {
                fd,
                head: Vec::new(),
                echo: false,
                out: Bytes::new(),
                close_after: false,
            };
            // Often all is here already: the request, or the end.
            if self.go_on(&mut connection) {
                self.keep(connection);
            }
        }
    }

    fn keep(&mut self, connection: Connection) {
        let place = self.connections.vacant_entry();
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        let data = epoll::EventData::new_u64(place.key() as u64);
        match epoll::add(&self.epoll, &connection.fd, data, flags) {
            Ok(()) => {
                place.insert(Some(connection));
            }
            Err(e) => {
                tracing::warn!(error = %io::Error::from(e), "epoll_ctl failed: connection closed");
            }
        }
    }

    fn ready(&mut self, index: usize) {
        let Some(mut connection) = self.connections.get_mut(index).and_then(Option::take) else {
            return;
        };
        if self.go_on(&mut connection) {
            self.connections[index] = Some(connection);
        } else {
            self.connections.remove(index);
        }
    }

    /// Reads and answers as far as the socket allows; false at the connection's end.
    fn go_on(&mut self, c: &mut Connection) -> bool {
        loop {
            match c.flush() {
                Ok(true) if !c.close_after => {}
                Ok(false) => return true,
                Ok(true) | Err(_) => return false,
            }
            match rustix::io::read(&c.fd, &mut self.buffer[..]) {
                Ok(n @ 1..) => self.take(c, n),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Ok(0) | Err(_) => return false,
            }
        }
    }

    /// Decides the answer to the first `n` octets of the buffer.
    fn take(&mut self, c: &mut Connection, n: usize) {
        let got = &self.buffer[..n];
        if c.echo {
            c.out = Bytes::copy_from_slice(got);
            return;
        }
        c.head.extend_from_slice(got);
        match parse(&c.head) {
            Parsed::Partial => {}
            Parsed::Lines => {
                c.echo = true;
                c.out = std::mem::take(&mut c.head).into();
            }
            Parsed::Bad => {
                c.close_after = true;
                c.out = Bytes::from_static(BAD_REQUEST);
            }
            Parsed::Get { keep, head_only, length } => {
                self.served.answers.fetch_add(1, Ordering::Relaxed);
                c.head.drain(..length);
                c.close_after = !keep;
                let answer = if keep { &self.keep } else { &self.close };
                let end = if head_only { answer.head } else { answer.whole.len() };
                c.out = answer.whole.slice(..end);
            }
        }
    }
}

/// What the first octets of a connection are.
#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    Partial,
    Lines,
    Bad,
    Get { keep: bool, head_only: bool, length: usize },
}

fn parse(head: &[u8]) -> Parsed {
    let begins = |method: &[u8]| {
        let n = head.len().min(method.len());
        head[..n] == method[..n]
    };
    if ![&b"GET /"[..], b"HEAD /", b"POST /", b"PUT /"].iter().any(|m| begins(m)) {
        return Parsed::Lines;
    }
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) => {
            let head_only = match request.method {
                Some("GET") => false,
                Some("HEAD") => true,
                _ => return Parsed::Bad,
            };
            let asks = |what: &[u8]| {
                request.headers.iter().any(|h| {
                    h.name.eq_ignore_ascii_case("connection") && h.value.eq_ignore_ascii_case(what)
                })
            };
            // RFC 9112, section 9.3.
            let keep = match request.version {
                Some(1) => !asks(b"close"),
                _ => asks(b"keep-alive"),
            };
            Parsed::Get { keep, head_only, length }
        }
        Ok(httparse::Status::Partial) if head.len() < MAX_HEAD => Parsed::Partial,
        Ok(httparse::Status::Partial) | Err(_) => Parsed::Bad,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection that was accepted is one whose peer is asked whether it is alive.
    #[test]
    fn accepted_connections_are_kept_alive() {
        let listener = std::net::TcpListener::from(bind(([127, 0, 0, 1], 0).into()).unwrap());
        listener.set_nonblocking(false).unwrap();
        let _peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = Socket::from(listener.accept().unwrap().0);
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), Duration::from_secs(120));
        assert_eq!(accepted.tcp_keepalive_interval().unwrap(), Duration::from_secs(10));
        assert_eq!(accepted.tcp_keepalive_retries().unwrap(), 3);
    }

    /// Requests, lines and what is neither are told apart from the first octets on.
    #[test]
    fn tells_requests_from_lines() {
        assert_eq!(parse(b"ping\n"), Parsed::Lines);
        assert_eq!(parse(b"G"), Parsed::Partial);
        assert_eq!(parse(b"GET / HTTP/1.1\r\nhost: a\r\n"), Parsed::Partial);
        let get = b"GET /x HTTP/1.1\r\nhost: a\r\nConnection: close\r\n\r\n";
        assert_eq!(parse(get), Parsed::Get { keep: false, head_only: false, length: get.len() });
        let head = b"HEAD / HTTP/1.1\r\n\r\nrest";
        assert_eq!(
            parse(head),
            Parsed::Get { keep: true, head_only: true, length: head.len() - 4 }
        );
        assert_eq!(parse(b"POST / HTTP/1.1\r\n\r\n"), Parsed::Bad);
        assert_eq!(parse(b"GET / HTTP/9\r\n\r\n"), Parsed::Bad);
        let long = [&b"GET / HTTP/1.1\r\na: "[..], &[b'x'; MAX_HEAD]].concat();
        assert_eq!(parse(&long), Parsed::Bad);
    }
}
