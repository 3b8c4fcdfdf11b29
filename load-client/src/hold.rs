//! Keeps connections open, with a line back and forth at an interval, and makes
//! a new one in the place of each that is lost.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use canary_record::names::{EndedBy, Phase};
use canary_record::result::Clock;
use canary_record::result::load::{Cause, HoldRecord};
use canary_runtime::admin::Admin;
use canary_runtime::shutdown::Shutdown;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::LocalSet;

use crate::cli::{Close, HoldArgs};
use crate::live::Live;
use crate::probe::{connect, within};
use crate::tally::{Accounts, Failure, Shown, Tally};

/// Handshakes at once: more would overflow the queue of most listeners.
const HANDSHAKES: usize = 512;
/// After a handshake that failed: a dead target must not become a busy loop.
const PAUSE: Duration = Duration::from_millis(500);
/// How long exchanges under way may go on when the run ends.
const DRAIN: Duration = Duration::from_secs(1);
/// How often the counts are shown.
const SHOW: Duration = Duration::from_millis(250);

/// What is sent to keep a connection alive, and what must come back.
const LINE: &[u8] = b"alive\n";

/// What all places share; one thread, so no lock.
struct Shared {
    args: HoldArgs,
    target: SocketAddr,
    accounts: RefCell<Accounts>,
    record: RefCell<HoldRecord>,
    open: Cell<u64>,
    handshakes: Semaphore,
    /// No handshake before this time: a limit of this host is one for every place.
    paused_until: Cell<Instant>,
    /// Becomes true at the end.
    stop: watch::Receiver<bool>,
}

/// Holds until the end of the duration or a signal.
pub(crate) async fn run(
    args: &HoldArgs,
    target: SocketAddr,
    shutdown: &mut Shutdown,
    admin: Option<&Arc<Admin>>,
) -> (Tally, HoldRecord, EndedBy) {
    LocalSet::new()
        .run_until(async {
            let (clock, shown) = (Clock::start(), Shown::default());
            let (stop, stopped) = watch::channel(false);
            let shared = Rc::new(Shared {
                args: args.clone(),
                target,
                accounts: RefCell::new(Accounts::new(clock, &shown)),
                record: RefCell::new(HoldRecord {
                    wanted: u64::from(args.connections),
                    ..HoldRecord::default()
                }),
                open: Cell::new(0),
                handshakes: Semaphore::new(HANDSHAKES),
                paused_until: Cell::new(clock.began()),
                stop: stopped,
            });
            let places: Vec<_> = (0..u64::from(args.connections))
                .map(|n| tokio::task::spawn_local(place(Rc::clone(&shared), n)))
                .collect();
            let live = Live::of(std::slice::from_ref(&shown), admin);
            let mut ticks = tokio::time::interval(SHOW);
            let end = args.duration.and_then(|d| Instant::now().checked_add(d));
            let mut filled = false;
            let ended_by = loop {
                tokio::select! {
                    biased;
                    by = shutdown.ended(end) => break by,
                    _ = ticks.tick() => {
                        shared.accounts.borrow_mut().show(shared.open.get());
                        if !filled && shared.open.get() == u64::from(args.connections) {
                            filled = true;
                            let seconds = clock.began().elapsed().as_secs_f64();
                            tracing::info!(connections = args.connections, seconds, "all are open");
                        }
                    }
                }
            };
            shared.record.borrow_mut().open_at_end = shared.open.get();
            let _ = stop.send(true);
            let deadline = tokio::time::Instant::now() + DRAIN;
            for place in places {
                // Every place counts its own connection; one that misses the deadline is counted below.
                if tokio::time::timeout_at(deadline, place).await.is_err() {
                    break;
                }
            }
            // What is left is in an exchange, which proves neither life nor loss.
            let tally = shared.accounts.borrow_mut().end();
            drop(live);
            (tally, *shared.record.borrow(), ended_by)
        })
        .await
}

/// Waits for the end; never returns while the run goes on.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error would mean that the sender is gone, which is the end too.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// One place: a connection, and another when it is lost.
async fn place(shared: Rc<Shared>, n: u64) {
    let mut stop = shared.stop.clone();
    let wanted = u64::from(shared.args.connections);
    let share = |d: Duration| d.mul_f64(n as f64 / wanted as f64);
    tokio::select! {
        () = stopped(&mut stop) => return,
        () = tokio::time::sleep(share(shared.args.ramp)) => {}
    }
    // The places' exchanges are spread over the interval.
    let mut phase = share(shared.args.interval);
    let (mut turn, mut lost) = (n, false);
    while let Some(mut stream) = open(&shared, &mut turn, &mut stop).await {
        let opened = Instant::now();
        shared.open.set(shared.open.get() + 1);
        {
            let mut record = shared.record.borrow_mut();
            record.most_open = record.most_open.max(shared.open.get());
            record.replaced += u64::from(lost);
        }
        let end = keep(&shared, &mut stream, phase, &mut stop).await;
        shared.open.set(shared.open.get() - 1);
        phase = Duration::ZERO;
        let Err(failure) = end else {
            if shared.args.close == Close::Rst
                && socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).is_ok()
            {
                shared.accounts.borrow_mut().tally.counts.own_resets += 1;
            }
            shared.accounts.borrow_mut().tally.ok_untimed(Instant::now());
            return;
        };
        lost = true;
        shared.record.borrow_mut().lost += 1;
        shared.accounts.borrow_mut().failed(failure);
        // One that was lost at once must not become a busy loop either.
        if pause(opened + PAUSE, &mut stop).await.is_none() {
            return;
        }
    }
}

/// Makes a connection; none when the run has ended.
async fn open(
    shared: &Shared,
    turn: &mut u64,
    stop: &mut watch::Receiver<bool>,
) -> Option<TcpStream> {
    loop {
        // Kept during the pauses, so that these bound the attempts of all places.
        let _permit = tokio::select! {
            biased;
            () = stopped(stop) => return None,
            permit = shared.handshakes.acquire() => permit.ok()?,
        };
        while shared.paused_until.get() > Instant::now() {
            pause(shared.paused_until.get(), stop).await?;
        }
        let began = Instant::now();
        shared.accounts.borrow_mut().tally.begin(began);
        let source = crate::pick(&shared.args.reach.source_ip, *turn);
        *turn += u64::from(shared.args.connections);
        let connecting =
            within(shared.args.reach.timeout, Phase::Connect, connect(shared.target, source));
        let opened = tokio::select! {
            opened = connecting => opened,
            () = stopped(stop) => Err((Phase::Connect, Cause::Interrupted)),
        };
        match opened {
            Ok(stream) => {
                shared.accounts.borrow_mut().tally.connected(began.elapsed());
                return Some(stream);
            }
            Err(failure) => {
                shared.accounts.borrow_mut().failed(failure);
                let until = Instant::now() + PAUSE;
                if failure.1.is_local() {
                    shared.paused_until.set(until);
                }
                pause(until, stop).await?;
            }
        }
    }
}

/// Waits until then; none when the run has ended.
async fn pause(until: Instant, stop: &mut watch::Receiver<bool>) -> Option<()> {
    tokio::select! {
        () = stopped(stop) => None,
        () = tokio::time::sleep_until(until.into()) => Some(()),
    }
}

/// Keeps a connection until the end (Ok) or its loss.
async fn keep(
    shared: &Shared,
    stream: &mut TcpStream,
    phase: Duration,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), Failure> {
    let mut next = tokio::time::Instant::now() + phase;
    loop {
        tokio::select! {
            biased;
            () = stopped(stop) => return Ok(()),
            // Between exchanges nothing may come, so whatever comes is an end.
            _ = stream.readable() => {}
            () = tokio::time::sleep_until(next) => {}
        }
        let due = tokio::time::Instant::now() >= next;
        let mut buffer = [0; 1];
        match stream.try_read(&mut buffer) {
            Ok(0) => return Err((Phase::Receive, Cause::EarlyEof)),
            Ok(_) => return Err((Phase::Receive, Cause::BadAnswer)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err((Phase::Receive, crate::probe::cause(&e))),
        }
        if due {
            let intended = next;
            next += shared.args.interval;
            exchange(stream, shared.args.reach.timeout).await?;
            shared.accounts.borrow_mut().tally.exchange(Instant::now(), intended.elapsed());
            shared.record.borrow_mut().exchanges += 1;
        }
    }
}

/// One line there and back.
async fn exchange(stream: &mut TcpStream, timeout: Duration) -> Result<(), Failure> {
    within(timeout, Phase::Send, stream.write_all(LINE)).await?;
    let mut expected = LINE;
    while !expected.is_empty() {
        let mut buffer = [0; LINE.len()];
        let read = stream.read(&mut buffer[..expected.len()]);
        let n = within(timeout, Phase::Receive, read).await?;
        if n == 0 {
            return Err((Phase::Receive, Cause::EarlyEof));
        }
        expected = expected.strip_prefix(&buffer[..n]).ok_or((Phase::Receive, Cause::BadAnswer))?;
    }
    Ok(())
}
