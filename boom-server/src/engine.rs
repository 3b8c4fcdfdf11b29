//! The thread that sniffs, forges, judges and accepts: sockets on one side, the
//! state machine on the other.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use canary_record::hist::Latency;
use canary_record::result::boom::Sniffer as SnifferResult;
use nix::poll::{PollFd, PollFlags, poll};
use tokio::sync::Notify;

use crate::accept::Acceptor;
use crate::config::Config;
use crate::events::Log;
use crate::kill::{Kill, LastKill};
use canary_forge::drive::{Done, Driver, NAP, millis};
use canary_forge::flow::Action;
use canary_forge::tally::Tally;

/// How long the raw sockets and accept() may lag behind one another at the end of a run.
pub(crate) const PARITY: Duration = Duration::from_millis(500);
/// A handshake that seems to have waited longer was measured across a clock step.
const CLOCK_STEP: Duration = Duration::from_secs(10);

/// What the engine tells while it runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    /// Counts.
    pub tally: Tally,
    /// The raw sockets.
    pub sniffer: SnifferResult,
    /// Connections forgotten before their judgement.
    pub evicted: u64,
    /// Not judged when the run ended, nothing forged on some of them.
    pub unjudged: u64,
    /// The last connection that was seen killed.
    pub last_kill: Option<Kill>,
    /// From the kernel's receipt of the handshake to the forged segment's departure.
    pub latency: Latency,
}

/// What the engine and the rest of the program share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Wakes whoever waits for the first leak or for the engine's end.
    pub changed: Notify,
    stop: AtomicBool,
}

impl Shared {
    /// The state as it is now.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere does not make counts wrong.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy to work on: whoever computes with the state itself holds up the engine.
    pub(crate) fn snapshot(&self) -> State {
        self.state().clone()
    }

    /// Asks the engine to end.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }
}

/// Raw sockets on one side, connections on the other, and the counts.
#[derive(Debug)]
pub(crate) struct Engine {
    driver: Driver,
    acceptor: Acceptor,
    config: Config,
    shared: Arc<Shared>,
    log: Log,
    /// Not counted yet: whoever reads the state waits for no packet, and no packet for it.
    done: Vec<Done>,
    last_kill: LastKill,
}

impl Engine {
    /// An engine over open sockets.
    pub(crate) fn new(
        driver: Driver,
        acceptor: Acceptor,
        config: Config,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            driver,
            acceptor,
            shared,
            log: Log::new(config.events),
            config,
            done: Vec::new(),
            last_kill: LastKill::default(),
        }
    }

    /// Works until asked to stop, or until a socket fails, which the state says.
    pub(crate) fn run(mut self) {
        let mut failed = None;
        while !self.shared.stop.load(Ordering::Acquire) && failed.is_none() {
            failed = self.work().err();
        }
        // A handshake that is missing then is told as such.
        let _ = self.catch_up();
        let unjudged = self.driver.finish(&mut self.done);
        self.publish();
        let mut state = self.shared.state();
        state.unjudged = unjudged;
        state.sniffer.failed = failed.map(|e| e.to_string());
        drop(state);
        self.log.finish();
        self.shared.changed.notify_one();
    }

    fn work(&mut self) -> std::io::Result<()> {
        let ready = self.driver.wait(self.acceptor.next_deadline(), &[self.acceptor.as_fd()])?;
        self.turn(&ready)?;
        // Last: a forged segment must not wait for them.
        self.acceptor.turn(self.driver.now())
    }

    /// Reads the segments that had come by the end, then accepts what was seen complete:
    /// under load neither ever ends.
    fn catch_up(&mut self) -> std::io::Result<()> {
        let end = self.driver.now();
        let until = end + PARITY;
        let all = vec![true; self.driver.sockets()];
        while self.driver.drained() < end && self.driver.now() < until {
            self.turn(&all)?;
        }
        let handshakes = self.shared.state().tally.handshakes.finished;
        while self.acceptor.accepted() < handshakes && self.driver.now() < until {
            let mut fds = [PollFd::new(self.acceptor.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, millis(NAP))?;
            self.acceptor.turn(self.driver.now())?;
        }
        Ok(())
    }

    fn turn(&mut self, ready: &[bool]) -> std::io::Result<()> {
        let result = self.driver.turn(ready, &mut self.done);
        let leaked = self.publish();
        // A wake-up for every turn would cost more than the turn.
        if leaked {
            self.shared.changed.notify_one();
        }
        result
    }

    /// Logs and counts what was done; true when the first leak is among it.
    fn publish(&mut self) -> bool {
        let now = self.driver.now();
        let mut all = std::mem::take(&mut self.done);
        for done in &all {
            self.tell(now, done);
        }
        self.log.flush(now);
        let mut state = self.shared.state();
        let known = state.tally.first_leak.is_some();
        for done in &all {
            let latency = match done {
                Done::Sent(_, latency) => latency.filter(|l| *l < CLOCK_STEP),
                _ => None,
            };
            if let Some(latency) = latency {
                state.latency.record(latency);
                metrics::histogram!(crate::metrics::HANDSHAKE_TO_FORGE).record(latency);
            }
            state.tally.done(done, |ip| self.config.class(ip));
        }
        all.clear();
        self.done = all;
        if let Some(kill) = self.last_kill.take() {
            state.last_kill = Some(kill);
        }
        state.evicted = self.driver.evicted();
        state.sniffer = self.driver.record();
        !known && state.tally.first_leak.is_some()
    }

    fn tell(&mut self, now: Duration, done: &Done) {
        match done {
            Done::Sent(Action::Forge { tuple, forgery, spec, .. }, _) => {
                self.log.forged(now, tuple, *forgery, spec);
            }
            Done::NotSent(tuple, e) => self.log.send_failed(now, tuple, e),
            Done::Noted(Action::Judged(j)) => {
                self.log.judged(now, j);
                self.last_kill.judged(now, j);
            }
            Done::Noted(Action::Reset(r)) => {
                self.log.reset(now, r);
                self.last_kill.reset(now, r);
            }
            Done::Sent(..) | Done::Noted(_) => {}
        }
    }
}
