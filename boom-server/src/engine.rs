//! The thread that sniffs, forges, judges and accepts: sockets on one side, the
//! state machine on the other.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use canary_record::hist::Latency;
use canary_record::names::ClientClass;
use canary_record::result::boom::Sniffer as SnifferResult;
use canary_wire::segment::FourTuple;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::Notify;

use crate::accept::Acceptor;
use crate::config::{Cidr, Events};
use crate::events::Log;
use crate::kill::{Kill, LastKill};
use canary_forge::flow::{Action, Arrival, Flows, Settings};
use canary_forge::forgery::{self, Spec};
use canary_forge::raw::{BATCH, Sender, Sniffer};
use canary_forge::tally::Tally;

/// How long the thread sleeps at most: it looks for the end of the run then.
const NAP: Duration = Duration::from_millis(50);
/// Batches read from one socket before timers and the other socket get a turn.
const ROUNDS: usize = 16;
/// How long the raw sockets and accept() may lag behind one another at the end of a run.
pub const PARITY: Duration = Duration::from_millis(500);
/// A handshake that seems to have waited longer was measured across a clock step.
const CLOCK_STEP: Duration = Duration::from_secs(10);

/// Which class a peer's address belongs to.
#[derive(Clone, Debug, Default)]
pub struct Classes {
    /// Pod networks.
    pub pods: Vec<Cidr>,
    /// Nodes.
    pub nodes: Vec<Cidr>,
}

impl Classes {
    /// The class of `ip`; a node's address inside a pod network is a node's.
    #[must_use]
    pub fn of(&self, ip: IpAddr) -> ClientClass {
        if self.nodes.iter().any(|n| n.contains(ip)) {
            ClientClass::Node
        } else if self.pods.iter().any(|n| n.contains(ip)) {
            ClientClass::Pod
        } else if self.pods.is_empty() && self.nodes.is_empty() {
            ClientClass::Unclassified
        } else {
            ClientClass::Outside
        }
    }
}

/// What the engine tells while it runs.
#[derive(Clone, Debug, Default)]
pub struct State {
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
pub struct Shared {
    state: Mutex<State>,
    /// Wakes whoever waits for the first leak or for the engine's end.
    pub changed: Notify,
    stop: AtomicBool,
}

impl Shared {
    /// The state as it is now.
    pub fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere does not make counts wrong.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy to work on: whoever computes with the state itself holds up the engine.
    #[must_use]
    pub fn snapshot(&self) -> State {
        self.state().clone()
    }

    /// Asks the engine to end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }
}

/// Sockets, state machine and counts.
#[derive(Debug)]
pub struct Engine {
    sniffers: Vec<Sniffer>,
    sender: Sender,
    acceptor: Acceptor,
    flows: Flows,
    classes: Classes,
    shared: Arc<Shared>,
    log: Log,
    start: Instant,
    /// When everything received had last been read.
    drained: Duration,
    packet: Vec<u8>,
    /// Not counted yet: whoever reads the state waits for no packet, and no packet for it.
    done: Vec<Done>,
    last_kill: LastKill,
}

/// What was done about an action.
#[derive(Debug)]
enum Done {
    /// Its segment was sent, so long after the kernel's receipt of what called for it.
    Sent(Action, Option<Duration>),
    /// Its segment could not be sent.
    NotSent,
    /// There was nothing to send.
    Noted(Action),
}

impl Engine {
    /// An engine over open sockets.
    #[must_use]
    pub fn new(
        sniffers: Vec<Sniffer>,
        sender: Sender,
        acceptor: Acceptor,
        settings: Settings,
        classes: Classes,
        events: Events,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            sniffers,
            sender,
            acceptor,
            flows: Flows::new(settings),
            classes,
            shared,
            log: Log::new(events),
            start: Instant::now(),
            drained: Duration::ZERO,
            packet: Vec::with_capacity(128),
            done: Vec::new(),
            last_kill: LastKill::default(),
        }
    }

    /// Works until asked to stop, or until a socket fails, which the state says.
    pub fn run(mut self) {
        let mut actions = Vec::new();
        let mut failed = None;
        while !self.shared.stop.load(Ordering::Acquire) && failed.is_none() {
            failed = self.work(&mut actions).err();
        }
        // A handshake that is missing then is told as such.
        let _ = self.catch_up(&mut actions);
        let now = self.start.elapsed();
        let unjudged = self.flows.finish(now, &mut actions);
        for action in actions.drain(..) {
            self.note(action, now);
        }
        self.publish();
        let mut state = self.shared.state();
        state.unjudged = unjudged;
        state.sniffer.failed = failed.map(|e| e.to_string());
        drop(state);
        self.log.finish();
        self.shared.changed.notify_one();
    }

    fn work(&mut self, actions: &mut Vec<Action>) -> std::io::Result<()> {
        let due = [self.flows.next_deadline(), self.acceptor.next_deadline()];
        let due = due.into_iter().flatten().min();
        let ready = self.wait(due.map_or(NAP, |d| d.saturating_sub(self.start.elapsed())))?;
        self.turn(&ready, actions)?;
        // Last: a forged segment must not wait for them.
        self.acceptor.turn(self.start.elapsed())
    }

    /// Waits for segments and connections; says which raw sockets have any.
    fn wait(&self, most: Duration) -> std::io::Result<Vec<bool>> {
        let mut fds: Vec<PollFd<'_>> =
            self.sniffers.iter().map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN)).collect();
        fds.push(PollFd::new(self.acceptor.as_fd(), PollFlags::POLLIN));
        match poll(&mut fds, millis(most)) {
            // Errors count too: they are told by reading.
            Ok(_) => Ok(fds.iter().map(|f| f.any().unwrap_or(true)).collect()),
            Err(nix::errno::Errno::EINTR) => Ok(vec![true; fds.len()]),
            Err(e) => Err(e.into()),
        }
    }

    /// Reads the segments that had come by the end, then accepts what was seen complete:
    /// under load neither ever ends.
    fn catch_up(&mut self, actions: &mut Vec<Action>) -> std::io::Result<()> {
        let end = self.start.elapsed();
        let until = end + PARITY;
        let all = vec![true; self.sniffers.len()];
        while self.drained < end && self.start.elapsed() < until {
            self.turn(&all, actions)?;
        }
        let handshakes = self.shared.state().tally.handshakes.finished;
        while self.acceptor.accepted() < handshakes && self.start.elapsed() < until {
            let mut fds = [PollFd::new(self.acceptor.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, millis(NAP))?;
            self.acceptor.turn(self.start.elapsed())?;
        }
        Ok(())
    }

    fn turn(&mut self, ready: &[bool], actions: &mut Vec<Action>) -> std::io::Result<()> {
        let mut sniffers = std::mem::take(&mut self.sniffers);
        let mut result = Ok(());
        let mut drained = true;
        for (sniffer, _) in sniffers.iter_mut().zip(ready).filter(|(_, ready)| **ready) {
            for round in 1..=ROUNDS {
                let read = sniffer.receive(|r| {
                    let now = self.start.elapsed();
                    // Not before the sockets were last seen empty, whatever the wall clock says.
                    let age = r.at.and_then(|at| at.elapsed().ok()).unwrap_or_default();
                    let at = now.saturating_sub(age).max(self.drained);
                    let arrival = Arrival { at, ttl: r.ttl, class: r.class };
                    self.flows.segment(now, arrival, &r.segment, actions);
                    for action in actions.drain(..) {
                        self.perform(action, now, r.at);
                    }
                });
                match read {
                    // A batch that is not full was all there was.
                    Ok(BATCH) => drained &= round < ROUNDS,
                    Ok(_) => break,
                    Err(e) => {
                        result = Err(e);
                        break;
                    }
                }
            }
        }
        let now = self.start.elapsed();
        // What is unread may be the answer that a deadline waits for.
        if drained {
            self.drained = now;
            self.flows.tick(now, actions);
        }
        for action in actions.drain(..) {
            self.perform(action, now, None);
        }
        self.sniffers = sniffers;
        let leaked = self.publish();
        self.log.flush(now);
        // A wake-up for every turn would cost more than the turn.
        if leaked {
            self.shared.changed.notify_one();
        }
        result
    }

    /// Counts what was done; true when the first leak is among it.
    fn publish(&mut self) -> bool {
        let mut state = self.shared.state();
        let known = state.tally.first_leak.is_some();
        for done in self.done.drain(..) {
            match done {
                Done::NotSent => state.tally.send_errors += 1,
                Done::Sent(action, latency) => {
                    state.tally.note(&action, |ip| self.classes.of(ip));
                    if let Some(latency) = latency.filter(|l| *l < CLOCK_STEP) {
                        state.latency.record(latency);
                        metrics::histogram!(crate::metrics::HANDSHAKE_TO_FORGE).record(latency);
                    }
                }
                Done::Noted(action) => state.tally.note(&action, |ip| self.classes.of(ip)),
            }
        }
        if let Some(kill) = self.last_kill.take() {
            state.last_kill = Some(kill);
        }
        state.evicted = self.flows.evicted();
        state.sniffer.received = self.sniffers.iter().map(Sniffer::received).sum();
        state.sniffer.dropped = self.sniffers.iter().map(|s| u64::from(s.dropped())).sum();
        state.sniffer.malformed = self.sniffers.iter().map(Sniffer::malformed).sum();
        state.sniffer.control_truncated =
            self.sniffers.iter().map(Sniffer::control_truncated).sum();
        !known && state.tally.first_leak.is_some()
    }

    /// Sends what is to be sent, and notes the rest.
    fn perform(&mut self, action: Action, now: Duration, at: Option<SystemTime>) {
        match action {
            Action::Forge { tuple, forgery, spec, timestamps, at_once } => {
                let sent = self.send(&tuple, &spec, timestamps);
                // The wall clock may have been stepped in between.
                let latency = at.filter(|_| at_once).and_then(|at| at.elapsed().ok());
                match sent {
                    Ok(()) => {
                        self.log.forged(now, &tuple, forgery, &spec);
                        self.last_kill.sent(tuple, spec);
                        self.done.push(Done::Sent(action, latency));
                    }
                    Err(e) => {
                        self.log.send_failed(now, &tuple, &e);
                        self.done.push(Done::NotSent);
                        let mut after = Vec::new();
                        self.flows.send_failed(now, &tuple, &mut after);
                        for action in after {
                            self.note(action, now);
                        }
                    }
                }
            }
            Action::Probe { tuple, spec, timestamps } => {
                if let Err(e) = self.send(&tuple, &spec, timestamps) {
                    // Without a probe there is no proof of life: unknown, in its time.
                    self.log.send_failed(now, &tuple, &e);
                    self.done.push(Done::NotSent);
                }
            }
            other => self.note(other, now),
        }
    }

    fn note(&mut self, action: Action, now: Duration) {
        match &action {
            Action::Judged(j) => {
                self.log.judged(now, j);
                self.last_kill.judged(now, j);
            }
            Action::Reset(r) => {
                self.log.reset(now, r);
                self.last_kill.reset(now, r);
            }
            _ => {}
        }
        self.done.push(Done::Noted(action));
    }

    fn send(
        &mut self,
        tuple: &FourTuple,
        spec: &Spec,
        timestamps: Option<(u32, u32)>,
    ) -> std::io::Result<()> {
        forgery::packet(tuple, spec, timestamps, &mut self.packet);
        self.sender.send(&self.packet, tuple.remote.ip())
    }
}

/// A millisecond is what poll() can wait; less would be a busy loop.
fn millis(most: Duration) -> PollTimeout {
    PollTimeout::from(most.min(NAP).as_micros().div_ceil(1000) as u16)
}
