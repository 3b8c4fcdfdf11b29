//! One HTTP/1.1 exchange through hyper on a fresh socket, driven by hand: the
//! worker polls it when the socket is ready, so no task, timer or waker is
//! needed for a connection.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use canary_record::names::{Errno, Phase};
use canary_record::result::load::Cause;
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
    /// Something may be there to read. A read that is known to find nothing is not made.
    readable: Cell<bool>,
    /// The end or an error came, so a short read is not the last.
    ended: Cell<bool>,
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
        if !self.seen.readable.get() {
            return Poll::Pending;
        }
        let mut scratch = [MaybeUninit::<u8>::uninit(); 16 << 10];
        let room = buf.remaining().min(scratch.len());
        match rustix::io::read(&self.fd, &mut scratch[..room]) {
            Ok((got, _)) => {
                // What comes after a short read brings a new (edge-triggered) event.
                let short = got.len() < room && !got.is_empty();
                self.seen.readable.set(!short || self.seen.ended.get());
                buf.put_slice(got);
                Poll::Ready(Ok(()))
            }
            Err(e) => {
                self.seen.readable.set(false);
                self.failed(Phase::Receive, e.into()).map_ok(|_| ())
            }
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

/// Notes that one of an exchange's parts has something for another: hyper's
/// connection, answer and body wake one another, and all are polled together.
#[derive(Debug)]
pub(crate) struct Driver {
    woken: Arc<Woken>,
    waker: Waker,
}

#[derive(Debug, Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Default for Driver {
    fn default() -> Self {
        let woken = Arc::<Woken>::default();
        Self { waker: Waker::from(Arc::clone(&woken)), woken }
    }
}

/// A request and its answer, on one connection.
pub(crate) struct Exchange {
    connection: Option<Connection<Io, Empty<Bytes>>>,
    respond: Option<Respond>,
    body: Option<Incoming>,
    bytes: u64,
    /// Content-Length, where the answer has one.
    length: Option<u64>,
    /// What ended the connection while the body was still on its way.
    broken: Option<Failure>,
    seen: Rc<Seen>,
}

impl Exchange {
    pub(crate) fn begin(fd: OwnedFd, request: Request<Empty<Bytes>>) -> Result<Self, Failure> {
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
            length: None,
            broken: None,
            seen,
        })
    }

    /// The phase that a deadline would end now.
    pub(crate) fn phase(&self) -> Phase {
        if self.seen.sent.get() { Phase::Receive } else { Phase::Send }
    }

    /// The socket has something to read; `ended` when its end or an error is among it.
    pub(crate) fn readable(&self, ended: bool) {
        self.seen.readable.set(true);
        if ended {
            self.seen.ended.set(true);
        }
    }

    /// Goes as far as the socket allows. Ready with the octets of body when the whole answer is here.
    pub(crate) fn advance(&mut self, driver: &Driver) -> Poll<Result<u64, Failure>> {
        let mut cx = Context::from_waker(&driver.waker);
        // Each turn moves the request, the head or a piece of the body; a turn
        // that moves nothing and wakes nobody ends the loop.
        loop {
            let mut moved = false;
            driver.woken.0.store(false, Ordering::Relaxed);
            if let Some(respond) = &mut self.respond {
                match respond.as_mut().poll(&mut cx) {
                    Poll::Ready(Ok(response)) => {
                        // Errors of the server are no success of the connection's purpose.
                        if !response.status().is_success() {
                            return Poll::Ready(Err((Phase::Receive, Cause::BadAnswer)));
                        }
                        let body = response.into_body();
                        self.length = body.size_hint().exact();
                        self.body = Some(body);
                        self.respond = None;
                        moved = true;
                    }
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(self.failure(&e))),
                    Poll::Pending => {}
                }
            }
            if let Some(body) = &mut self.body {
                match Pin::new(body).poll_frame(&mut cx) {
                    Poll::Ready(Some(Ok(frame))) => {
                        self.bytes += frame.data_ref().map_or(0, |d| d.len() as u64);
                        moved = true;
                    }
                    Poll::Ready(Some(Err(e))) => return Poll::Ready(Err(self.failure(&e))),
                    // hyper can let a body end quietly when its connection broke.
                    Poll::Ready(None) => return Poll::Ready(self.end()),
                    Poll::Pending => {}
                }
            }
            if let Some(connection) = &mut self.connection {
                match Pin::new(connection).poll(&mut cx) {
                    Poll::Ready(Ok(())) => (self.connection, moved) = (None, true),
                    Poll::Ready(Err(e)) => {
                        // The answer or the body carries the error too, unless neither is waiting.
                        let failure = self.failure(&e);
                        self.connection = None;
                        self.broken = Some(failure);
                        if self.respond.is_none() && self.body.is_none() {
                            return Poll::Ready(Err(failure));
                        }
                        moved = true;
                    }
                    Poll::Pending => {}
                }
            }
            if !moved && !driver.woken.0.load(Ordering::Relaxed) {
                return Poll::Pending;
            }
        }
    }

    /// The body has ended: whole, or not.
    fn end(&self) -> Result<u64, Failure> {
        match (self.broken, self.length) {
            (Some(failure), _) => Err(failure),
            (None, Some(n)) if n != self.bytes => Err((Phase::Receive, Cause::EarlyEof)),
            (None, _) => Ok(self.bytes),
        }
    }

    /// The class of what hyper reports.
    fn failure(&self, e: &hyper::Error) -> Failure {
        if let Some((phase, errno)) = self.seen.error.get() {
            return (phase, Cause::Errno(errno));
        }
        // A body cut short comes as an I/O error that no socket gave.
        let cut = std::error::Error::source(e)
            .and_then(|s| s.downcast_ref::<io::Error>())
            .is_some_and(|e| e.kind() == io::ErrorKind::UnexpectedEof);
        if cut || e.is_incomplete_message() || e.is_canceled() || e.is_closed() {
            (Phase::Receive, Cause::EarlyEof)
        } else {
            (Phase::Receive, Cause::BadAnswer)
        }
    }
}
