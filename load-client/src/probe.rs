//! Connections to boom-server, and how each one ended as an application sees it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use canary_record::names::{EndedBy, Errno, Phase, ProbeEnd};
use canary_record::probe::{Body, BodyHash, Line, Request};
use canary_record::result::Clock;
use canary_record::result::load::Cause;
use canary_runtime::admin::Admin;
use canary_runtime::shutdown::Shutdown;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};

use crate::cli::{Pattern, ProbeArgs, ReachArgs};
use crate::forge::Forging;
use crate::live::Live;
use crate::socket;
use crate::tally::{Accounts, Failure, Shown, Tally};

/// Octets of the answers of `idle` and of the others.
const TINY: u64 = 16;
const SMALL: u64 = 1024;
/// How long connections in progress may go on after a signal.
const DRAIN: Duration = Duration::from_millis(500);
/// Between two looks at what was forged.
const LOOK: Duration = Duration::from_millis(20);
/// How long the server's own FIN is waited for.
const CLOSE: Duration = Duration::from_secs(1);

/// What all connections share; one thread, so no lock.
struct Shared {
    args: ProbeArgs,
    /// Used by turns.
    targets: Vec<SocketAddr>,
    /// From the connect to the exchange, at most.
    delay: Duration,
    connected: Cell<u64>,
    accounts: RefCell<Accounts>,
}

impl Shared {
    /// True when every connection is made or has failed, and what was forged is judged.
    fn settled(&self, forging: &Forging) -> bool {
        let (accounts, connected) = (self.accounts.borrow(), self.connected.get());
        let counts = &accounts.tally.counts;
        counts.attempts == u64::from(self.args.connections)
            && connected + counts.failed() >= counts.attempts
            && forging.progress.settled(connected)
    }
}

/// The longest step of a connection that waits for the first answer.
const TRY: Duration = Duration::from_secs(1);
/// Between two of them.
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// Connects to each of `targets` until boom-server answers there, `args.await_answer` at most, or
/// until a signal. Gives how many connections were not answered: whoever had them, it was not
/// boom-server.
pub(crate) async fn answered(
    args: &ProbeArgs,
    targets: &[SocketAddr],
    shutdown: &mut Shutdown,
) -> Result<u32, EndedBy> {
    let reach = ReachArgs { timeout: args.reach.timeout.min(TRY), ..args.reach.clone() };
    let args = ProbeArgs { reach, pattern: Pattern::Idle, ..args.clone() };
    let mut unanswered = 0;
    let all = async {
        for target in targets {
            let once = async |n: u64| talk(&mut open(&args, *target, n).await?, &args, n).await;
            while once(unanswered.into()).await.is_err() {
                unanswered += 1;
                tokio::time::sleep(TRY_AGAIN).await;
            }
        }
    };
    tokio::select! {
        // Without an answer the run tells what becomes of its connections.
        _ = tokio::time::timeout(args.await_answer, all) => Ok(unanswered),
        by = shutdown.signalled() => Err(by),
    }
}

/// Probes with `args` the addresses `targets`, and leaves the connections alone until what
/// `forging` forges on them is judged: one record for each connection, and why it ended.
pub(crate) async fn run(
    args: &ProbeArgs,
    targets: Vec<SocketAddr>,
    forging: Option<&Forging>,
    shutdown: &mut Shutdown,
    admin: Option<&Arc<Admin>>,
) -> (Tally, EndedBy) {
    let (clock, shown) = (Clock::start(), Shown::default());
    let shared = Rc::new(Shared {
        args: args.clone(),
        targets,
        delay: args.delay.max(forging.map_or(Duration::ZERO, |f| f.patience(&args.forge))),
        connected: Cell::default(),
        accounts: RefCell::new(Accounts::new(clock, &shown)),
    });
    let live = Live::of(std::slice::from_ref(&shown), admin);
    let ended_by = LocalSet::new().run_until(all(&shared, forging, clock.began(), shutdown)).await;
    drop(live);
    let tally = shared.accounts.borrow_mut().end();
    (tally, ended_by)
}

/// When the connections of `wave` are opened, by a schedule computed from the
/// start; none when there is no such wave.
fn wave_at(
    began: Instant,
    every: Option<Duration>,
    duration: Option<Duration>,
    wave: u32,
) -> Option<Instant> {
    let after = match wave {
        0 => Duration::ZERO,
        n => every?.checked_mul(n)?,
    };
    began.checked_add(after).filter(|_| duration.is_none_or(|d| after < d))
}

async fn all(
    shared: &Rc<Shared>,
    forging: Option<&Forging>,
    began: Instant,
    shutdown: &mut Shutdown,
) -> EndedBy {
    let args = &shared.args;
    let mut tasks = JoinSet::new();
    let mut waves: u32 = 0;
    let mut ended_by = if args.every.is_some() { EndedBy::Duration } else { EndedBy::Connections };
    let mut drained = None;
    let (go, gone) = watch::channel(false);
    // Without the handler the delay runs its full time; the signal would end the program.
    let mut told = signal(SignalKind::user_defined1()).ok();
    loop {
        let next =
            if drained.is_none() { wave_at(began, args.every, args.duration, waves) } else { None };
        if next.is_some_and(|at| at <= Instant::now()) {
            waves += 1;
            for _ in 0..args.connections {
                tasks.spawn_local(one(Rc::clone(shared), gone.clone()));
            }
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep_until(next.unwrap_or(began).into()), if next.is_some() => {}
            // An error would be a task that panicked: its connection is counted as cut short.
            joined = tasks.join_next(), if next.is_none() || !tasks.is_empty() => match joined {
                Some(_) => shared.accounts.borrow_mut().show(tasks.len() as u64),
                None => break,
            },
            () = usr1(&mut told) => {
                go.send_replace(true);
            }
            () = tokio::time::sleep(LOOK), if forging.is_some() && !*go.borrow() => {
                if forging.is_some_and(|f| shared.settled(f)) {
                    go.send_replace(true);
                }
            }
            signal = shutdown.signalled(), if drained.is_none() => {
                ended_by = signal;
                drained = Some(Instant::now() + DRAIN);
            }
            () = tokio::time::sleep_until(drained.unwrap_or(began).into()), if drained.is_some() => break,
        }
    }
    ended_by
}

/// What the ends mean, in sentences.
pub(crate) fn reasons(ends: &BTreeMap<ProbeEnd, u64>) -> Vec<String> {
    let say = |(end, n): (&ProbeEnd, &u64)| {
        let what = match end {
            ProbeEnd::Survived => return None,
            ProbeEnd::Reset => "were reset: Connection reset by peer",
            ProbeEnd::Hung => "hung: no answer within the deadline",
            ProbeEnd::Corrupted => "got an answer with a wrong length or hash",
            ProbeEnd::EarlyEof => "were closed before the answer's end",
            ProbeEnd::Refused => "were refused, and proved nothing",
            ProbeEnd::TimedOut => "got no answer to their SYN, and proved nothing",
            ProbeEnd::LocalLimit => "failed at a limit of this host, and proved nothing",
            ProbeEnd::Failed => "failed otherwise, and proved nothing",
        };
        Some(format!("{n} connections {what}"))
    };
    ends.iter().filter_map(say).collect()
}

/// The class of an I/O error.
pub(crate) fn cause(e: &io::Error) -> Cause {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => Cause::EarlyEof,
        _ => Cause::Errno(Errno::of(e)),
    }
}

/// `step` under a deadline, as an end of `phase`.
pub(crate) async fn within<T>(
    limit: Duration,
    phase: Phase,
    step: impl Future<Output = io::Result<T>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, step).await {
        Ok(Ok(v)) => Ok(v),
        Ok(Err(e)) => Err((phase, cause(&e))),
        Err(_) => Err((phase, Cause::Stall)),
    }
}

/// Connects from `source`, without blocking.
pub(crate) async fn connect(target: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = socket::open(target, source)?;
    let socket = tokio::net::TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
    let stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The next SIGUSR1; never, where it cannot be caught.
async fn usr1(signal: &mut Option<tokio::signal::unix::Signal>) {
    match signal {
        Some(signal) => _ = signal.recv().await,
        None => std::future::pending().await,
    }
}

/// One connection, from its begin to its record.
async fn one(shared: Rc<Shared>, go: watch::Receiver<bool>) {
    let started = Instant::now();
    let n = shared.accounts.borrow().tally.counts.attempts;
    shared.accounts.borrow_mut().tally.begin(started);
    let end = exchange(&shared, n, started, go).await;
    let mut accounts = shared.accounts.borrow_mut();
    match end {
        Ok(bytes) => {
            accounts.tally.ok(Instant::now(), started.elapsed());
            accounts.tally.counts.bytes += bytes;
        }
        Err(failure) => accounts.failed(failure),
    }
}

/// Connects, waits, and does what the pattern says; the octets that came.
async fn exchange(
    shared: &Shared,
    n: u64,
    started: Instant,
    mut go: watch::Receiver<bool>,
) -> Result<u64, Failure> {
    let args = &shared.args;
    let target = shared.targets[(n % shared.targets.len() as u64) as usize];
    let mut stream = open(args, target, n).await?;
    shared.accounts.borrow_mut().tally.connected(started.elapsed());
    shared.connected.set(shared.connected.get() + 1);
    // The end of the delay, or whoever knows that there is nothing to wait for.
    let _ = tokio::time::timeout(shared.delay, go.wait_for(|go| *go)).await;
    // Bodies differ between connections, so that no answer can pass for another's.
    let seed = n ^ (u64::from(std::process::id()) << 32);
    talk(&mut stream, args, seed).await
}

/// The `n`th connection.
async fn open(args: &ProbeArgs, target: SocketAddr, n: u64) -> Result<TcpStream, Failure> {
    let connecting = connect(target, crate::pick(&args.reach.source_ip, n));
    within(args.reach.timeout, Phase::Connect, connecting).await
}

/// What a connection's pattern says, and its end.
async fn talk(stream: &mut TcpStream, args: &ProbeArgs, seed: u64) -> Result<u64, Failure> {
    let size = args.body_size as u64;
    let bytes = match args.pattern {
        Pattern::Idle => answer(stream, args, Duration::ZERO, TINY, seed).await?,
        Pattern::Request => answer(stream, args, Duration::ZERO, SMALL, seed).await?,
        Pattern::SlowAnswer => answer(stream, args, args.answer_delay, SMALL, seed).await?,
        Pattern::Download => answer(stream, args, Duration::ZERO, size, seed).await?,
        Pattern::Upload => upload(stream, args, size, seed).await?,
    };
    close(stream).await?;
    Ok(bytes)
}

/// Asks for a body and checks every octet.
async fn answer(
    stream: &mut TcpStream,
    args: &ProbeArgs,
    delay: Duration,
    length: u64,
    seed: u64,
) -> Result<u64, Failure> {
    let request = Request::Answer { delay, length, seed };
    let request = Line { request, called: stream.peer_addr().ok() }.to_string();
    within(args.reach.timeout, Phase::Send, stream.write_all(request.as_bytes())).await?;
    let mut expected = Body::new(seed);
    let mut left = length;
    let (mut got, mut want) = (vec![0; 16 << 10], vec![0; 16 << 10]);
    // The server's own delay is no stall.
    let mut limit = args.reach.timeout + delay;
    while left > 0 {
        let room = got.len().min(left as usize);
        let n = within(limit, Phase::Receive, stream.read(&mut got[..room])).await?;
        limit = args.reach.timeout;
        if n == 0 {
            return Err((Phase::Receive, Cause::EarlyEof));
        }
        expected.fill(&mut want[..n]);
        if got[..n] != want[..n] {
            return Err((Phase::Receive, Cause::BadAnswer));
        }
        left -= n as u64;
    }
    Ok(length)
}

/// Sends a body and checks the hash that the server saw.
async fn upload(
    stream: &mut TcpStream,
    args: &ProbeArgs,
    length: u64,
    seed: u64,
) -> Result<u64, Failure> {
    let request = Request::Take { length, seed };
    let request = Line { request, called: stream.peer_addr().ok() }.to_string();
    within(args.reach.timeout, Phase::Send, stream.write_all(request.as_bytes())).await?;
    let (mut body, mut hash) = (Body::new(seed), BodyHash::default());
    let mut chunk = vec![0; 16 << 10];
    let mut left = length;
    while left > 0 {
        let n = chunk.len().min(left as usize);
        body.fill(&mut chunk[..n]);
        hash.update(&chunk[..n]);
        let mut sent = 0;
        while sent < n {
            // Each write is progress of its own: a slow path is not a stalled one.
            let wrote =
                within(args.reach.timeout, Phase::Send, stream.write(&chunk[sent..n])).await?;
            if wrote == 0 {
                return Err((Phase::Send, Cause::Errno(Errno::Unknown)));
            }
            sent += wrote;
        }
        left -= n as u64;
    }
    let expected = format!("ok {}", hash.hex());
    let mut line = Vec::with_capacity(expected.len() + 1);
    while line.last() != Some(&b'\n') {
        if line.len() > expected.len() + 1 {
            return Err((Phase::Receive, Cause::BadAnswer));
        }
        let byte = within(args.reach.timeout, Phase::Receive, stream.read_u8()).await?;
        line.push(byte);
    }
    if line.trim_ascii_end() == expected.as_bytes() {
        Ok(line.len() as u64)
    } else {
        Err((Phase::Receive, Cause::BadAnswer))
    }
}

/// FIN, and the server's answer to it if that comes soon. The exchange was
/// complete: a server that keeps its side open is not a failure, a reset is.
async fn close(stream: &mut TcpStream) -> Result<(), Failure> {
    within(CLOSE, Phase::Close, stream.shutdown()).await?;
    let mut rest = [0; 64];
    match within(CLOSE, Phase::Close, stream.read(&mut rest)).await {
        Ok(0) | Err((_, Cause::Stall)) => Ok(()),
        Ok(_) => Err((Phase::Close, Cause::BadAnswer)),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waves come at multiples of the interval, and none at or after the end.
    #[test]
    fn waves_follow_the_schedule() {
        let t = Instant::now();
        let s = Duration::from_secs;
        assert_eq!(wave_at(t, None, None, 0), Some(t));
        assert_eq!(wave_at(t, None, None, 1), None);
        assert_eq!(wave_at(t, Some(s(2)), None, 3), Some(t + s(6)));
        assert_eq!(wave_at(t, Some(s(2)), Some(s(6)), 2), Some(t + s(4)));
        assert_eq!(wave_at(t, Some(s(2)), Some(s(6)), 3), None);
        // Beyond any clock.
        assert_eq!([1, 2].map(|n| wave_at(t, Some(s(u64::MAX)), None, n)), [None, None]);
    }
}
