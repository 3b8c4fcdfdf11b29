//! Accepting connections, and keeping them until they say something.
//!
//! It is the engine's own thread that does this: a second one would compete with it for
//! a processor at every connection, and forged segments would wait for it. What a
//! connection says is the runtime's business, see [`echo`].

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use canary_record::names::Errno;
use canary_record::result::boom::Connections;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::runtime::Handle;

use crate::echo;

/// Connections accepted from one listener before segments get a turn.
const ROUND: usize = 16;
/// Connections that have spoken and are served before segments get a turn.
const EVENTS: usize = 32;
/// Wait after an accept() that failed: the cause, a limit, seldom goes by itself.
const BACK_OFF: Duration = Duration::from_millis(50);

/// Counts of the accept queue's side.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    so_far: Mutex<Connections>,
    /// Connections open now.
    pub(crate) open: AtomicU64,
}

impl Counters {
    /// What was counted so far: not what the raw sockets saw.
    pub(crate) fn so_far(&self) -> MutexGuard<'_, Connections> {
        self.so_far.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client says which address it called, on a connection that arrived at `here`.
    pub(crate) fn called(&self, called: SocketAddr, here: SocketAddr) {
        let same =
            (called.ip().to_canonical(), called.port()) == (here.ip().to_canonical(), here.port());
        let mut counts = self.so_far();
        *if same { &mut counts.called_here } else { &mut counts.called_elsewhere } += 1;
    }

    /// A connection is over.
    fn ended(&self, how: io::Result<()>) {
        if how.is_err_and(|e| Errno::of(&e) == Errno::Econnreset) {
            self.so_far().reset_seen_by_application += 1;
        }
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Listeners, and the connections that have said nothing yet. Its descriptor is readable
/// when there is something to do.
#[derive(Debug)]
pub(crate) struct Acceptor {
    poller: Epoll,
    listeners: Vec<TcpListener>,
    /// When the listeners are looked at again, after a failure.
    resume: Option<Duration>,
    quiet: HashMap<RawFd, TcpStream, ahash::RandomState>,
    counters: Arc<Counters>,
    runtime: Handle,
}

impl Acceptor {
    /// An acceptor for listeners that do not block. What connections say is answered on
    /// `runtime`. An error is epoll's.
    pub(crate) fn new(
        listeners: Vec<TcpListener>,
        counters: Arc<Counters>,
        runtime: Handle,
    ) -> io::Result<Self> {
        let poller = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for listener in &listeners {
            poller.add(listener, interest(listener, EpollFlags::EPOLLIN))?;
        }
        Ok(Self { poller, listeners, resume: None, quiet: HashMap::default(), counters, runtime })
    }

    /// When [`Self::turn`] has something to do that the descriptor does not tell.
    pub(crate) const fn next_deadline(&self) -> Option<Duration> {
        self.resume
    }

    /// Connections accepted.
    pub(crate) fn accepted(&self) -> u64 {
        self.counters.so_far().accepted
    }

    /// Does what there is to do now, or a part of it where that is much. An error is epoll's:
    /// those of accept() are counted.
    pub(crate) fn turn(&mut self, now: Duration) -> io::Result<()> {
        if self.resume.take_if(|at| *at <= now).is_some() {
            self.listen(EpollFlags::EPOLLIN)?;
        }
        let mut events = [EpollEvent::empty(); EVENTS];
        let n = match self.poller.wait(&mut events, EpollTimeout::ZERO) {
            Ok(n) => n,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(e) => return Err(e.into()),
        };
        for fd in events[..n].iter().map(|e| e.data() as RawFd) {
            if let Some(at) = self.listeners.iter().position(|l| l.as_raw_fd() == fd) {
                self.accept(at, now)?;
            } else if let Some(stream) = self.quiet.remove(&fd) {
                self.spoken(stream);
            }
        }
        Ok(())
    }

    fn accept(&mut self, at: usize, now: Duration) -> io::Result<()> {
        for _ in 0..ROUND {
            match self.listeners[at].accept() {
                Ok((stream, _)) => {
                    self.counters.so_far().accepted += 1;
                    self.counters.open.fetch_add(1, Ordering::Relaxed);
                    let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
                    match self.poller.add(&stream, interest(&stream, flags)) {
                        Ok(()) => {
                            self.quiet.insert(stream.as_raw_fd(), stream);
                        }
                        // The runtime meets the same limit, and says so.
                        Err(_) => self.serve(stream),
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => {
                    self.failed(&e);
                    if Errno::of(&e) != Errno::Econnaborted {
                        self.resume = Some(now + BACK_OFF);
                        return self.listen(EpollFlags::empty());
                    }
                }
            }
        }
        Ok(())
    }

    fn listen(&self, flags: EpollFlags) -> io::Result<()> {
        self.listeners
            .iter()
            .try_for_each(|l| Ok(self.poller.modify(l, &mut interest(l, flags))?))
    }

    fn failed(&self, e: &io::Error) {
        // One line at the first and at every thousandth: it may go on for long.
        let mut counts = self.counters.so_far();
        counts.accept_errors += 1;
        if counts.accept_errors % 1000 == 1 {
            tracing::warn!(error = %e, "accept failed, going on");
        }
    }

    /// A connection said something, or has ended.
    fn spoken(&self, stream: TcpStream) {
        match stream.take_error() {
            Ok(None) => {
                // Closing would do it too, but the runtime keeps it open.
                let _ = self.poller.delete(&stream);
                self.serve(stream);
            }
            Ok(Some(e)) | Err(e) => self.counters.ended(Err(e)),
        }
    }

    fn serve(&self, stream: TcpStream) {
        let counters = Arc::clone(&self.counters);
        let _in = self.runtime.enter();
        let stream =
            stream.set_nonblocking(true).and_then(|()| tokio::net::TcpStream::from_std(stream));
        match stream {
            Ok(stream) => {
                self.runtime.spawn(async move {
                    let how = echo::serve(stream, &counters).await;
                    counters.ended(how);
                });
            }
            Err(e) => {
                self.failed(&e);
                counters.ended(Ok(()));
            }
        }
    }
}

impl AsFd for Acceptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poller.0.as_fd()
    }
}

fn interest(fd: &impl AsRawFd, flags: EpollFlags) -> EpollEvent {
    // File descriptors are not negative.
    EpollEvent::new(flags, fd.as_raw_fd() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::time::Instant;

    use socket2::SockRef;
    use tokio::runtime::{Builder, Runtime};

    const LOOK: Duration = Duration::from_millis(1);

    struct Bed {
        acceptor: Acceptor,
        runtime: Runtime,
        client: TcpStream,
    }

    /// One connection, accepted and quiet.
    fn bed() -> Bed {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let handle = runtime.handle().clone();
        let acceptor = Acceptor::new(vec![listener], Arc::default(), handle).unwrap();
        let mut bed = Bed { acceptor, runtime, client };
        bed.until(|b| b.acceptor.accepted() == 1);
        assert_eq!((bed.open(), bed.acceptor.quiet.len()), (1, 1));
        bed
    }

    impl Bed {
        fn addr(&self) -> std::net::SocketAddr {
            self.acceptor.listeners[0].local_addr().unwrap()
        }

        fn open(&self) -> u64 {
            self.acceptor.counters.open.load(Ordering::Relaxed)
        }

        fn resets(&self) -> u64 {
            self.acceptor.counters.so_far().reset_seen_by_application
        }

        fn until(&mut self, done: impl Fn(&Self) -> bool) {
            let begin = Instant::now();
            while !done(self) {
                assert!(begin.elapsed() < Duration::from_secs(10), "nothing came of it");
                self.acceptor.turn(begin.elapsed()).unwrap();
                self.runtime.block_on(async { tokio::time::sleep(LOOK).await });
            }
        }
    }

    /// A connection that speaks is answered by the runtime, to the client's FIN.
    #[test]
    fn who_speaks_is_served() {
        let mut bed = bed();
        bed.client.write_all(b"hello\n").unwrap();
        bed.until(|b| b.acceptor.quiet.is_empty());
        assert_eq!(bed.open(), 1);
        bed.client.shutdown(std::net::Shutdown::Write).unwrap();
        bed.until(|b| b.open() == 0);
        let mut answer = String::new();
        bed.client.read_to_string(&mut answer).unwrap();
        assert_eq!((answer.as_str(), bed.resets()), ("hello\n", 0));
    }

    /// A quiet connection that the client closes is over, and no reset.
    #[test]
    fn a_close_is_no_reset() {
        let mut bed = bed();
        bed.client.shutdown(std::net::Shutdown::Write).unwrap();
        bed.until(|b| b.open() == 0);
        assert_eq!((bed.acceptor.quiet.len(), bed.resets()), (0, 0));
    }

    /// A quiet connection that the client resets is over, and counted.
    #[test]
    fn a_reset_is_counted() {
        let mut bed = bed();
        SockRef::from(&bed.client).set_linger(Some(Duration::ZERO)).unwrap();
        let other = TcpStream::connect(bed.addr()).unwrap();
        drop(std::mem::replace(&mut bed.client, other));
        bed.until(|b| b.acceptor.accepted() == 2 && b.open() == 1);
        assert_eq!((bed.acceptor.quiet.len(), bed.resets()), (1, 1));
    }

    /// After a failure the listeners wait their time, then accept what came meanwhile.
    #[test]
    fn a_failure_is_waited_out() {
        let mut bed = bed();
        bed.acceptor.listen(EpollFlags::empty()).unwrap();
        bed.acceptor.resume = Some(BACK_OFF);
        let _second = TcpStream::connect(bed.addr()).unwrap();
        bed.acceptor.turn(Duration::ZERO).unwrap();
        assert_eq!((bed.acceptor.accepted(), bed.acceptor.next_deadline()), (1, Some(BACK_OFF)));
        bed.acceptor.turn(BACK_OFF).unwrap();
        assert_eq!((bed.acceptor.accepted(), bed.acceptor.next_deadline()), (2, None));
    }
}
