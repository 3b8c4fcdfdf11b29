//! The state machine over raw sockets: what comes in is judged, what is to be sent is sent, and
//! what was done about it is told.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant, SystemTime};

use canary_record::result::boom::Sniffer as SnifferResult;
use canary_wire::segment::FourTuple;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::flow::{Action, Arrival, Flows, Settings};
use crate::forgery::{self, Spec};
use crate::raw::{BATCH, Sender, Sniffer};

/// Batches read from one socket before timers and the other socket get a turn.
const ROUNDS: usize = 16;
/// How long [`Driver::wait`] sleeps at most: who drives looks for the end of the run then.
pub const NAP: Duration = Duration::from_millis(50);

/// What was done about an action.
#[derive(Debug)]
pub enum Done {
    /// Its segment was sent, so long after the kernel's receipt of what called for it.
    Sent(Action, Option<Duration>),
    /// A segment of this connection could not be sent.
    NotSent(FourTuple, io::Error),
    /// There was nothing to send.
    Noted(Action),
}

/// Sockets and state machine.
#[derive(Debug)]
pub struct Driver {
    sniffers: Vec<Sniffer>,
    sender: Sender,
    flows: Flows,
    start: Instant,
    /// When everything received had last been read.
    drained: Duration,
    packet: Vec<u8>,
    actions: Vec<Action>,
}

impl Driver {
    /// A driver over open sockets. Its time begins here.
    #[must_use]
    pub fn new(sniffers: Vec<Sniffer>, sender: Sender, settings: Settings) -> Self {
        Self {
            sniffers,
            sender,
            flows: Flows::new(settings),
            start: Instant::now(),
            drained: Duration::ZERO,
            packet: Vec::with_capacity(128),
            actions: Vec::new(),
        }
    }

    /// The time of the state machine.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// When everything received had last been read.
    #[must_use]
    pub const fn drained(&self) -> Duration {
        self.drained
    }

    /// Waits for segments, for `others`, or until something is due here or at `due`. Says which
    /// raw sockets are ready.
    pub fn wait(&self, due: Option<Duration>, others: &[BorrowedFd<'_>]) -> io::Result<Vec<bool>> {
        let due = [self.flows.next_deadline(), due].into_iter().flatten().min();
        let most = due.map_or(NAP, |d| d.saturating_sub(self.now()));
        let sniffers = self.sniffers.iter().map(|s| s.as_fd());
        let all = sniffers.chain(others.iter().copied());
        let mut fds: Vec<_> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut fds, millis(most)) {
            // Errors count too: they are told by reading.
            Ok(_) => Ok(fds.iter().map(|f| f.any().unwrap_or(true)).collect()),
            Err(nix::errno::Errno::EINTR) => Ok(vec![true; fds.len()]),
            Err(e) => Err(e.into()),
        }
    }

    /// Connections forgotten before their judgement because the table was full.
    #[must_use]
    pub const fn evicted(&self) -> u64 {
        self.flows.evicted()
    }

    /// How many raw sockets there are.
    #[must_use]
    pub const fn sockets(&self) -> usize {
        self.sniffers.len()
    }

    /// What the raw sockets received and lost so far.
    #[must_use]
    pub fn record(&self) -> SnifferResult {
        let mut sum = SnifferResult::default();
        self.sniffers.iter().for_each(|s| sum += s.record());
        sum
    }

    /// Reads from the sockets that are ready, does what is due, and tells of it in `done`. An
    /// error is a socket's.
    pub fn turn(&mut self, ready: &[bool], done: &mut Vec<Done>) -> io::Result<()> {
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
                    self.flows.segment(now, arrival, &r.segment, &mut self.actions);
                    self.perform(now, r.at, done);
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
        self.sniffers = sniffers;
        let now = self.now();
        // What is unread may be the answer that a deadline waits for.
        if drained {
            self.drained = now;
            self.flows.tick(now, &mut self.actions);
        }
        self.perform(now, None, done);
        result
    }

    /// The run ends: what is not judged stays unknown. Gives how many.
    pub fn finish(&mut self, done: &mut Vec<Done>) -> u64 {
        let unjudged = self.flows.finish(self.now(), &mut self.actions);
        done.extend(self.actions.drain(..).map(Done::Noted));
        unjudged
    }

    /// Sends what is to be sent.
    fn perform(&mut self, now: Duration, at: Option<SystemTime>, done: &mut Vec<Done>) {
        // Taken and given back: its room serves again.
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            match action {
                Action::Forge { tuple, spec, timestamps, at_once, .. } => {
                    let sent = self.send(&tuple, &spec, timestamps);
                    // The wall clock may have been stepped in between.
                    let latency = at.filter(|_| at_once).and_then(|at| at.elapsed().ok());
                    match sent {
                        Ok(()) => done.push(Done::Sent(action, latency)),
                        Err(e) => {
                            done.push(Done::NotSent(tuple, e));
                            self.flows.send_failed(now, &tuple, &mut self.actions);
                            done.extend(self.actions.drain(..).map(Done::Noted));
                        }
                    }
                }
                Action::Probe { tuple, spec, timestamps } => {
                    if let Err(e) = self.send(&tuple, &spec, timestamps) {
                        // Without a probe there is no proof of life: unknown, in its time.
                        done.push(Done::NotSent(tuple, e));
                    }
                }
                other => done.push(Done::Noted(other)),
            }
        }
        self.actions = actions;
    }

    fn send(
        &mut self,
        tuple: &FourTuple,
        spec: &Spec,
        timestamps: Option<(u32, u32)>,
    ) -> io::Result<()> {
        forgery::packet(tuple, spec, timestamps, &mut self.packet);
        self.sender.send(&self.packet, tuple.remote.ip())
    }
}

/// What poll() is given: a millisecond is the least that it can wait, and less would be a
/// busy loop.
#[must_use]
pub fn millis(most: Duration) -> PollTimeout {
    PollTimeout::from(most.min(NAP).as_micros().div_ceil(1000) as u16)
}
