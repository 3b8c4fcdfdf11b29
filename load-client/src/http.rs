//! One HTTP/1.1 exchange through hyper on a fresh socket, driven by hand: the
//! worker polls it when the socket is ready, so no task, timer or waker is
//! needed for a connection.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use canary_common::outcome::{Errno, Phase};
use canary_common::result::load::Cause;
use http_body_util::Empty;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{self, Connection};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::{Request, Response};

use crate::tally::Failure;

type Respond = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>>>>;

/// What the socket saw, told apart from what hyper makes of it.
#[derive(Debug, Default)]
struct Seen {
    error: Cell<Option<(Phase, Errno)>>,
    sent: Cell<bool>,
}

/// A non-blocking socket as hyper wants it.
#[derive(Debug)]
struct Io {
    fd: OwnedFd,
    seen: Rc<Seen>,
}

impl Io {
    fn failed(&self, phase: Phase, e: io::Error) -> Poll<io::Result<usize>> {
        if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) {
            return Poll::Pending;
        }
        self.seen.error.set(Some((phase, Errno::of(&e))));
        Poll::Ready(Err(e))
    }
}

impl Read for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut scratch = [MaybeUninit::<u8>::uninit(); 16 << 10];
        let room = buf.remaining().min(scratch.len());
        match rustix::io::read(&self.fd, &mut scratch[..room]) {
            Ok((got, _)) => {
                buf.put_slice(got);
                Poll::Ready(Ok(()))
            }
            Err(e) => self.failed(Phase::Receive, e.into()).map_ok(|_| ()),
        }
    }
}

impl Write for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        // MSG_NOSIGNAL: EPIPE instead of SIGPIPE.
        match rustix::net::send(&self.fd, buf, rustix::net::SendFlags::NOSIGNAL) {
            Ok(n) => {
                self.seen.sent.set(true);
                Poll::Ready(Ok(n))
            }
            Err(e) => self.failed(Phase::Send, e.into()),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // close() follows at once and sends the same FIN.
        Poll::Ready(Ok(()))
    }
}

/// Where an exchange stands.
#[derive(Debug)]
pub enum Step {
    /// The socket must become ready first.
    Waiting,
    /// The whole answer is here: this many octets of body.
    Done(u64),
    /// It failed.
    Failed(Failure),
}

/// A request and its answer, on one connection.
pub struct Exchange {
    connection: Option<Connection<Io, Empty<Bytes>>>,
    respond: Option<Respond>,
    body: Option<Incoming>,
    bytes: u64,
    seen: Rc<Seen>,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Exchange {
    /// Begins an exchange on a connected socket.
    pub fn begin(fd: OwnedFd, request: Request<Empty<Bytes>>) -> Result<Self, Failure> {
        let seen = Rc::new(Seen::default());
        let io = Io { fd, seen: Rc::clone(&seen) };
        let mut handshake = Box::pin(http1::Builder::new().handshake::<_, Empty<Bytes>>(io));
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(Ok((mut sender, connection))) = handshake.as_mut().poll(&mut cx) else {
            // Never: an HTTP/1 handshake only allocates.
            return Err((Phase::Send, Cause::Errno(Errno::Unknown)));
        };
        let respond: Respond = Box::pin(async move { sender.send_request(request).await });
        Ok(Self {
            connection: Some(connection),
            respond: Some(respond),
            body: None,
            bytes: 0,
            seen,
        })
    }

    /// The phase that a deadline would end now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        if self.seen.sent.get() { Phase::Receive } else { Phase::Send }
    }

    /// Goes as far as the socket allows.
    pub fn advance(&mut self) -> Step {
        let mut cx = Context::from_waker(Waker::noop());
        // Each turn moves the request, the head or a piece of the body; a turn
        // that moves nothing ends the loop.
        loop {
            let mut moved = false;
            if let Some(respond) = &mut self.respond {
                match respond.as_mut().poll(&mut cx) {
                    Poll::Ready(Ok(response)) => {
                        // Errors of the server are no success of the connection's purpose.
                        if !response.status().is_success() {
                            return Step::Failed((Phase::Receive, Cause::BadAnswer));
                        }
                        self.body = Some(response.into_body());
                        self.respond = None;
                        moved = true;
                    }
                    Poll::Ready(Err(e)) => return Step::Failed(self.failure(&e)),
                    Poll::Pending => {}
                }
            }
            if let Some(body) = &mut self.body {
                match Pin::new(body).poll_frame(&mut cx) {
                    Poll::Ready(Some(Ok(frame))) => {
                        self.bytes += frame.data_ref().map_or(0, |d| d.len() as u64);
                        moved = true;
                    }
                    Poll::Ready(Some(Err(e))) => return Step::Failed(self.failure(&e)),
                    // hyper has checked the length against Content-Length or the chunks.
                    Poll::Ready(None) => return Step::Done(self.bytes),
                    Poll::Pending => {}
                }
            }
            if let Some(connection) = &mut self.connection {
                let sent = self.seen.sent.get();
                match Pin::new(connection).poll(&mut cx) {
                    Poll::Ready(Ok(())) => (self.connection, moved) = (None, true),
                    Poll::Ready(Err(e)) => {
                        // The answer or the body carries the error too, unless neither is waiting.
                        let failure = self.failure(&e);
                        self.connection = None;
                        if self.respond.is_none() && self.body.is_none() {
                            return Step::Failed(failure);
                        }
                        moved = true;
                    }
                    Poll::Pending => moved |= sent != self.seen.sent.get(),
                }
            }
            if !moved {
                return Step::Waiting;
            }
        }
    }

    /// The class of what hyper reports.
    fn failure(&self, e: &hyper::Error) -> Failure {
        if let Some((phase, errno)) = self.seen.error.get() {
            return (phase, Cause::Errno(errno));
        }
        if e.is_incomplete_message() || e.is_canceled() || e.is_closed() {
            (Phase::Receive, Cause::EarlyEof)
        } else {
            (Phase::Receive, Cause::BadAnswer)
        }
    }
}
