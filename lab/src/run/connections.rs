//! The client's connections of a case, made and driven here, step by step: all of them do the
//! same at once. Each keeps the first failure that it met.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use canary_record::names::{Errno, FailureClass, Phase, ProbeEnd};
use canary_record::probe::{Body, BodyHash, Line, Request};
use canary_record::result::load::Cause;
use canary_testbed::exec::Interrupt;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, SockRef, Socket, Type};

use crate::observed::counted;
use crate::scenario::cause::Way;

/// Octets of a transfer: full-sized segments, and more than go before the first ACK is needed.
const BODY: u64 = 64 << 10;
const ANSWER: u64 = 1024;
const CHUNK: usize = 16 << 10;
/// How soon a signal is heeded.
const LOOK: Duration = Duration::from_millis(20);

type Failure = (Phase, Cause);

#[derive(Debug)]
pub(super) struct Connections {
    all: Vec<One>,
    target: SocketAddr,
    /// How long each waits for progress.
    patience: Duration,
    /// Whether the client's kernel sends keepalives.
    keepalive: bool,
    interrupt: Interrupt,
}

#[derive(Debug)]
struct One {
    /// Bodies differ, so that no answer can pass for another's.
    seed: u64,
    /// The client's own end.
    local: Option<SocketAddr>,
    state: State,
}

#[derive(Debug)]
enum State {
    Open {
        stream: TcpStream,
        /// How long the server waits before it gives the answer that it was asked for.
        asked: Option<Duration>,
    },
    Closed,
    Failed(Failure),
}

impl Connections {
    pub(super) const fn none(
        target: SocketAddr,
        patience: Duration,
        keepalive: bool,
        interrupt: Interrupt,
    ) -> Self {
        Self { all: Vec::new(), target, patience, keepalive, interrupt }
    }

    /// Makes `n` connections, from the network namespace of the calling thread; where they were made
    /// before, those that are closed, each from the port that it had.
    pub(super) fn connect(&mut self, n: u32) {
        if self.all.is_empty() {
            let one = |seed| One { seed, local: None, state: State::Closed };
            self.all = (0..n.into()).map(one).collect();
        }
        let (target, patience, keepalive) = (self.target, self.patience, self.keepalive);
        self.each(move |one| {
            if !matches!(one.state, State::Closed) {
                return;
            }
            one.state = match open(target, one.local, patience, keepalive) {
                Ok(stream) => {
                    one.local = stream.local_addr().ok();
                    State::Open { stream, asked: None }
                }
                Err(e) => State::Failed((Phase::Connect, cause(&e))),
            };
        });
    }

    /// A body of full-sized segments.
    pub(super) fn transfer(&mut self, way: Way) {
        let patience = self.patience;
        self.open(move |stream, _, seed| {
            if matches!(way, Way::Up | Way::Both) {
                upload(stream, patience, seed)?;
            }
            if matches!(way, Way::Down | Way::Both) {
                ask(stream, Duration::ZERO, BODY, seed)?;
                read(stream, patience, BODY, seed)?;
            }
            Ok(())
        });
    }

    /// Asks for a small answer, to be given after `delay`.
    pub(super) fn ask(&mut self, delay: Duration) {
        self.open(move |stream, asked, seed| {
            *asked = Some(delay);
            ask(stream, delay, ANSWER, seed)
        });
    }

    /// Reads what was asked for.
    pub(super) fn answer(&mut self) {
        let patience = self.patience;
        self.open(move |stream, asked, seed| {
            // The server's own delay is no stall.
            read(stream, patience + asked.take().unwrap_or_default(), ANSWER, seed)
        });
    }

    /// FIN, and on with reading.
    pub(super) fn half_close(&mut self) {
        self.open(|stream, _, _| stream.shutdown(Shutdown::Write).map_err(at(Phase::Close)));
    }

    /// Closes, after the server has too. What was asked for has come and is left unread: then the
    /// kernel says so by RST (RFC 2525, section 2.17).
    pub(super) fn close(&mut self) {
        let patience = self.patience;
        self.open(move |stream, asked, _| {
            let Some(delay) = asked.take() else {
                // ENOTCONN where both ends have closed, or a reset has come: the next call tells of it.
                let _ = stream.shutdown(Shutdown::Write);
                let n = stream.read(&mut [0; 1]).map_err(at(Phase::Close))?;
                return if n == 0 { Ok(()) } else { Err((Phase::Close, Cause::BadAnswer)) };
            };
            // The server's own delay is no stall.
            stream.set_read_timeout(Some(patience + delay)).map_err(at(Phase::Receive))?;
            let n = stream.peek(&mut [0; 1]).map_err(at(Phase::Receive))?;
            if n == 0 { Err((Phase::Receive, Cause::EarlyEof)) } else { Ok(()) }
        });
        self.forget();
    }

    /// Closes what the server has closed; an answer may have come before.
    pub(super) fn ended(&mut self) {
        self.open(|stream, asked, _| match stream.read(&mut [0; 1]) {
            Ok(0) => Ok(()),
            Ok(_) if asked.is_some() => Ok(()),
            Ok(_) => Err((Phase::Close, Cause::BadAnswer)),
            Err(e) => Err(at(Phase::Close)(e)),
        });
        self.forget();
    }

    /// Ends them by RST, at once and with nothing left of them; whoever wants the client to be gone
    /// without a word lets it not out.
    pub(super) fn vanish(&mut self) {
        self.open(|stream, _, _| {
            let now = SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
            now.map_err(at(Phase::Close))
        });
        self.forget();
    }

    fn forget(&mut self) {
        for one in &mut self.all {
            if matches!(one.state, State::Open { .. }) {
                one.state = State::Closed;
            }
        }
    }

    /// The local ports of those that are closed.
    pub(super) fn closed(&self) -> Vec<u16> {
        let closed = self.all.iter().filter(|one| matches!(one.state, State::Closed));
        closed.filter_map(|one| one.local).map(|local| local.port()).collect()
    }

    /// FIN from those that are open, and the server's own if it comes soon: a reset that nobody
    /// has read yet is read.
    pub(super) fn end(&mut self, patience: Duration) {
        self.open(move |stream, _, _| {
            // ENOTCONN where a reset has come: the next call tells of it.
            let _ = stream.shutdown(Shutdown::Write);
            stream.set_read_timeout(Some(patience)).map_err(at(Phase::Close))?;
            match stream.read(&mut [0; 64]).map_err(at(Phase::Close)) {
                Ok(_) | Err((_, Cause::Stall)) => Ok(()),
                Err(e) => Err(e),
            }
        });
    }

    /// Notes which have failed while nobody used them, as whoever reads next would meet it. What has come
    /// stays unread, and a FIN is no failure.
    pub(super) fn look(&mut self) {
        self.open(|stream, _, _| {
            let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
            let failure = match recv(stream.as_raw_fd(), &mut [0], flags) {
                Ok(0) | Err(nix::Error::EAGAIN) => None,
                Ok(_) => behind(stream).map_err(at(Phase::Receive))?,
                Err(e) => Some(e.into()),
            };
            failure.map_or(Ok(()), |e| Err(at(Phase::Receive)(e)))
        });
    }

    /// How many go on.
    pub(super) fn open_ones(&self) -> u64 {
        let open = |one: &&One| matches!(one.state, State::Open { .. });
        self.all.iter().filter(open).count() as u64
    }

    /// How they ended; one that goes on has survived.
    pub(super) fn ends(&self) -> BTreeMap<ProbeEnd, u64> {
        let end = |one: &One| one.failure().map_or(ProbeEnd::Survived, end_of);
        counted(self.all.iter().map(end))
    }

    /// Those that failed, by class.
    pub(super) fn failures(&self) -> BTreeMap<FailureClass, u64> {
        counted(self.all.iter().filter_map(One::failure).map(class))
    }

    /// Where and by which errno those failed whose class does not say it.
    pub(super) fn errors(&self) -> BTreeMap<String, u64> {
        let unsaid = |failure: Failure| match failure {
            (phase, Cause::Errno(errno))
                if matches!(class(failure), FailureClass::Other | FailureClass::LocalLimit) =>
            {
                Some(format!("{errno} at {phase}"))
            }
            _ => None,
        };
        counted(self.all.iter().filter_map(One::failure).filter_map(unsaid))
    }

    fn open(
        &mut self,
        job: impl Fn(&mut TcpStream, &mut Option<Duration>, u64) -> Result<(), Failure>
        + Send
        + Sync
        + 'static,
    ) {
        self.each(move |one| {
            let State::Open { stream, asked } = &mut one.state else { return };
            if let Err(failure) = job(stream, asked, one.seed) {
                one.state = State::Failed(failure);
            }
        });
    }

    /// Of all at once. A signal, which ends the run, does not wait for those that still wait.
    fn each(&mut self, job: impl Fn(&mut One) + Send + Sync + 'static) {
        let (job, (done, ended), n) = (Arc::new(job), channel(), self.all.len());
        for mut one in self.all.drain(..) {
            let (job, done) = (Arc::clone(&job), done.clone());
            std::thread::spawn(move || {
                job(&mut one);
                // Nobody hears it after a signal.
                let _ = done.send(one);
            });
        }
        drop(done);
        while self.interrupt.signalled().is_none() {
            match ended.recv_timeout(LOOK) {
                Ok(one) => self.all.push(one),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    assert_eq!(self.all.len(), n, "a connection's thread panicked");
                    break;
                }
            }
        }
        self.all.sort_by_key(|one| one.seed);
    }
}

impl One {
    fn failure(&self) -> Option<Failure> {
        match self.state {
            State::Failed(failure) => Some(failure),
            State::Open { .. } | State::Closed => None,
        }
    }
}

/// The failure that lies behind what is unread. SO_ERROR alone would tell of what an ICMP message said of
/// a connection that goes on (`sk_err_soft`), and forget it; and where a FIN came before the RST
/// (EPIPE, `tcp_reset()`), that is what is read.
fn behind(stream: &TcpStream) -> io::Result<Option<io::Error>> {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO)?;
    if !fds[0].revents().is_some_and(|e| e.contains(PollFlags::POLLERR)) {
        return Ok(None);
    }
    Ok(stream.take_error()?.filter(|e| e.kind() != ErrorKind::BrokenPipe))
}

fn open(
    target: SocketAddr,
    local: Option<SocketAddr>,
    patience: Duration,
    keepalive: bool,
) -> io::Result<TcpStream> {
    let stream = match local {
        None => TcpStream::connect_timeout(&target, patience)?,
        Some(local) => {
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&local.into())?;
            socket.connect_timeout(&target.into(), patience)?;
            socket.into()
        }
    };
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_keepalive(keepalive)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream, delay: Duration, length: u64, seed: u64) -> Result<(), Failure> {
    send(stream, Request::Answer { delay, length, seed })
}

fn send(stream: &mut TcpStream, request: Request) -> Result<(), Failure> {
    let line = Line { request, called: stream.peer_addr().ok() }.to_string();
    stream.write_all(line.as_bytes()).map_err(at(Phase::Send))
}

/// A body, every octet checked.
fn read(stream: &mut TcpStream, patience: Duration, length: u64, seed: u64) -> Result<(), Failure> {
    stream.set_read_timeout(Some(patience)).map_err(at(Phase::Receive))?;
    let (mut body, mut left) = (Body::new(seed), length);
    let (mut got, mut want) = ([0; CHUNK], [0; CHUNK]);
    while left > 0 {
        let room = CHUNK.min(left as usize);
        let n = stream.read(&mut got[..room]).map_err(at(Phase::Receive))?;
        if n == 0 {
            return Err((Phase::Receive, Cause::EarlyEof));
        }
        body.fill(&mut want[..n]);
        if got[..n] != want[..n] {
            return Err((Phase::Receive, Cause::BadAnswer));
        }
        left -= n as u64;
    }
    Ok(())
}

/// How many times as long the server may take over a whole body as between two octets of one.
const WHOLE: u32 = 4;

/// A body, and the hash that the server saw.
fn upload(stream: &mut TcpStream, patience: Duration, seed: u64) -> Result<(), Failure> {
    send(stream, Request::Take { length: BODY, seed })?;
    let (mut body, mut hash, mut left) = (Body::new(seed), BodyHash::default(), BODY);
    let mut chunk = [0; CHUNK];
    while left > 0 {
        let n = CHUNK.min(left as usize);
        body.fill(&mut chunk[..n]);
        hash.update(&chunk[..n]);
        stream.write_all(&chunk[..n]).map_err(at(Phase::Send))?;
        left -= n as u64;
    }
    let want = format!("ok {}\n", hash.hex());
    let mut got = vec![0; want.len()];
    stream
        .set_read_timeout(Some(patience * WHOLE))
        .and_then(|()| stream.read_exact(&mut got))
        .map_err(at(Phase::Receive))?;
    if got == want.as_bytes() { Ok(()) } else { Err((Phase::Receive, Cause::BadAnswer)) }
}

/// How a connection ends that meets `e`.
pub(super) fn end(phase: Phase, e: &io::Error) -> ProbeEnd {
    FailureClass::of(phase, cause(e)).into()
}

fn at(phase: Phase) -> impl Fn(io::Error) -> Failure {
    move |e| (phase, cause(&e))
}

/// The class of a case's connection that failed: where the kernel itself gave up
/// (`tcp_write_err()`), it did not only hang for as long as somebody looked.
fn class((phase, cause): Failure) -> FailureClass {
    match FailureClass::of(phase, cause) {
        FailureClass::Hung if cause == Cause::Errno(Errno::Etimedout) => FailureClass::Other,
        class => class,
    }
}

fn end_of(failure: Failure) -> ProbeEnd {
    match failure.1 {
        Cause::Errno(Errno::Etimedout) => ProbeEnd::TimedOut,
        _ => class(failure).into(),
    }
}

fn cause(e: &io::Error) -> Cause {
    match e.kind() {
        // EAGAIN of a socket with a timeout; connect_timeout() has no errno of its own.
        ErrorKind::WouldBlock => Cause::Stall,
        ErrorKind::TimedOut if e.raw_os_error().is_none() => Cause::Stall,
        ErrorKind::UnexpectedEof => Cause::EarlyEof,
        _ => Cause::Errno(Errno::of(e)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Instant;

    use canary_record::names::EndedBy;

    use super::*;

    /// Without being used, one that was reset has failed, behind an unread answer too; one that the server
    /// has ended in order has not, and what has come can still be read.
    #[test]
    fn a_failure_is_seen_without_a_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut connections = Connections::none(
            listener.local_addr().unwrap(),
            Duration::from_secs(5),
            false,
            Interrupt::default(),
        );
        connections.connect(4);
        let mut peers: Vec<_> = (0..4).map(|_| listener.accept().unwrap().0).collect();
        // In the order of the client's.
        peers.sort_by_key(|peer| {
            let of = peer.peer_addr().ok();
            connections.all.iter().position(|one| one.local == of)
        });
        let [mut idle, mut answered, reset, fin] = <[TcpStream; 4]>::try_from(peers).unwrap();
        connections.look();
        assert_eq!(connections.ends(), [(ProbeEnd::Survived, 4)].into());
        answered.write_all(b"x").unwrap();
        for stream in [&answered, &reset] {
            SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        idle.write_all(b"y").unwrap();
        drop((fin, answered, reset));
        let end = std::time::Instant::now() + Duration::from_secs(5);
        while connections.ends() != [(ProbeEnd::Reset, 2), (ProbeEnd::Survived, 2)].into() {
            assert!(std::time::Instant::now() < end, "{:?}", connections.ends());
            connections.look();
        }
        let states: Vec<_> = connections.all.iter().map(|one| one.failure().is_some()).collect();
        assert_eq!(states, [false, true, true, false]);
        let State::Open { stream, .. } = &mut connections.all[0].state else { panic!("open") };
        let mut octet = [0];
        stream.read_exact(&mut octet).unwrap();
        assert_eq!(octet, *b"y");
    }

    /// Who closes with an unread answer waits for it as long as the server lets it wait, and one that came before
    /// the server ended is no wrong answer.
    #[test]
    fn an_unread_answer_is_no_failure() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (patience, delay) = (Duration::from_millis(100), Duration::from_secs(20));
        let target = listener.local_addr().unwrap();
        let connected = || {
            let mut connections = Connections::none(target, patience, false, Interrupt::default());
            connections.connect(1);
            connections.ask(delay);
            (connections, listener.accept().unwrap().0)
        };
        let (mut closing, mut peer) = connected();
        let late = std::thread::spawn(move || {
            std::thread::sleep(patience * 3);
            peer.write_all(b"x").unwrap();
            peer
        });
        closing.close();
        assert!(matches!(closing.all[0].state, State::Closed), "{:?}", closing.ends());
        drop(late.join());
        let (mut left, mut peer) = connected();
        peer.write_all(b"x").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        left.ended();
        assert!(matches!(left.all[0].state, State::Closed), "{:?}", left.ends());
    }

    /// What the kernel gave up is told from what stood still, and a failed one keeps its errno.
    #[test]
    fn the_kernels_own_timeout_is_no_hang() {
        let etimedout = Cause::Errno(Errno::Etimedout);
        assert_eq!(end_of((Phase::Receive, etimedout)), ProbeEnd::TimedOut);
        assert_eq!(end_of((Phase::Receive, Cause::Stall)), ProbeEnd::Hung);
        let failed =
            |seed, phase, cause| One { seed, local: None, state: State::Failed((phase, cause)) };
        let mut connections = Connections::none(
            ([127, 0, 0, 1], 1).into(),
            Duration::ZERO,
            false,
            Interrupt::default(),
        );
        connections.all = vec![
            failed(0, Phase::Connect, Cause::Errno(Errno::Eperm)),
            failed(1, Phase::Receive, Cause::Stall),
            failed(2, Phase::Receive, etimedout),
        ];
        let errors = ["EPERM at connect", "ETIMEDOUT at receive"].map(|e| (e.to_owned(), 1));
        assert_eq!(connections.errors(), errors.into());
    }

    /// A signal does not wait until an answer comes, or patience ends.
    #[test]
    fn a_signal_is_heeded_within_a_step() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (patience, interrupt) = (Duration::from_secs(60), Interrupt::default());
        let target = listener.local_addr().unwrap();
        let mut connections = Connections::none(target, patience, false, interrupt.clone());
        connections.connect(2);
        connections.ask(Duration::ZERO);
        assert_eq!(connections.open_ones(), 2);
        let begun = Instant::now();
        interrupt.set(EndedBy::Sigint);
        connections.answer();
        assert!(begun.elapsed() < patience / 2, "{:?}", begun.elapsed());
    }
}
