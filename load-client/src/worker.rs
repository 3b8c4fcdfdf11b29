//! One worker of churn: a thread with an epoll instance of its own. A
//! connection on a path without delay costs socket(), connect(), connect(),
//! close(): nothing is registered unless something has to be waited for.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use canary_record::names::{Errno, Phase};
use canary_record::result::Clock;
use canary_record::result::load::Cause;
use rustix::event::epoll;
use rustix::io::Errno as Raw;
use rustix::net::sockopt;
use slab::Slab;

use crate::Stop;
use crate::cli::Close;
use crate::http::{Driver, Exchange};
use crate::pacer::{Pacer, Turn};
use crate::plan::Plan;
use crate::socket;
use crate::tally::{Accounts, Failure, Shown, Tally};

/// Connections begun between two looks at the sockets that wait.
const BATCH: u32 = 64;
/// How often deadlines are looked at.
const SCAN: Duration = Duration::from_millis(50);
/// The pause after failures in a row: a refused connection must not become a busy loop.
const PAUSE: Duration = Duration::from_millis(20);
/// The pause while a table has no room.
const FULL: Duration = Duration::from_millis(5);
/// How many failures in a row bring a pause where no schedule paces them; a local limit brings
/// one at once.
const FAILURES_IN_A_ROW: u32 = 64;

enum State {
    Connecting(OwnedFd),
    Exchanging(Box<Exchange>),
}

impl State {
    fn phase(&self) -> Phase {
        match self {
            Self::Connecting(_) => Phase::Connect,
            Self::Exchanging(exchange) => exchange.phase(),
        }
    }
}

/// A connection in progress.
struct Slot {
    /// None between the two.
    state: Option<State>,
    /// Tells a late event of an earlier connection in this slot apart.
    serial: u32,
    registered: bool,
    intended: Instant,
    began: Instant,
    deadline: Instant,
}

/// What one thread does.
pub(crate) struct Worker<'a> {
    plan: &'a Plan,
    epoll: OwnedFd,
    slots: Slab<Slot>,
    accounts: Accounts,
    pacer: Pacer,
    driver: Driver,
    /// A socket that was connected and reset, ready for another connection.
    spare: Option<OwnedFd>,
    paused_until: Option<Instant>,
    failed_in_a_row: u32,
}

impl<'a> Worker<'a> {
    /// A worker that waits with `epoll`.
    pub(crate) fn new(plan: &'a Plan, epoll: OwnedFd, clock: Clock, shown: &Shown) -> Self {
        Self {
            plan,
            epoll,
            slots: Slab::new(),
            accounts: Accounts::new(clock, shown),
            pacer: plan.pacer.clone(),
            driver: Driver::default(),
            spare: None,
            paused_until: None,
            failed_in_a_row: 0,
        }
    }

    /// Runs until the plan is done or `stop` says so.
    pub(crate) fn run(mut self, stop: &Stop) -> std::io::Result<Tally> {
        let mut events = Vec::with_capacity(256);
        let mut scan_at = Instant::now();
        let mut done = false;
        loop {
            let now = Instant::now();
            if !done && (stop.load(Ordering::Relaxed) > 0 || self.plan_is_done(now)) {
                done = true;
                self.accounts.tally.counts.never_begun = self.never_begun(now);
            }
            let wait = if done { SCAN } else { self.begin_some(now) };
            if done && (self.in_progress() == 0 || stop.load(Ordering::Relaxed) > 1) {
                break;
            }
            // With nothing to wait for there is nothing to ask the kernel.
            if !wait.is_zero() || self.in_progress() > 0 {
                self.wait(wait, &mut events)?;
            }
            let now = Instant::now();
            if now >= scan_at {
                // What made no progress in time.
                for phase in self.end(|slot| slot.deadline <= now) {
                    self.failed((phase, Cause::Stall));
                }
                self.accounts.show(self.in_progress().into());
                scan_at = now + SCAN;
            }
        }
        // What is still in progress.
        for phase in self.end(|_| true) {
            self.accounts.tally.fail(Instant::now(), (phase, Cause::Interrupted));
        }
        self.accounts.show(0);
        Ok(self.accounts.end())
    }

    fn in_progress(&self) -> u32 {
        self.slots.len() as u32
    }

    fn wait(&mut self, wait: Duration, events: &mut Vec<epoll::Event>) -> std::io::Result<()> {
        socket::wait(&self.epoll, wait, events)?;
        let now = Instant::now();
        for event in events {
            self.on_event(event.data.u64(), event.flags, now);
        }
        Ok(())
    }

    fn plan_is_done(&self, now: Instant) -> bool {
        self.plan.until.is_some_and(|t| now >= t)
            || self.plan.connections.is_some_and(|n| self.accounts.tally.counts.attempts >= n)
    }

    /// Turns that were due and not taken when no more may begin.
    fn never_begun(&self, now: Instant) -> u64 {
        let end = self.plan.until.map_or(now, |t| t.min(now));
        // One that comes with the end is no backlog.
        if end.checked_sub(SCAN).is_none_or(|t| self.pacer.untaken(t) == 0) {
            return 0;
        }
        let wanted =
            self.plan.connections.map_or(u64::MAX, |n| n - self.accounts.tally.counts.attempts);
        self.pacer.untaken(end).min(wanted)
    }

    /// Begins what may begin now; says how long nothing more may.
    fn begin_some(&mut self, now: Instant) -> Duration {
        if let Some(t) = self.paused_until {
            if now < t {
                return t - now;
            }
            self.paused_until = None;
        }
        for _ in 0..BATCH {
            if self.plan.connections.is_some_and(|n| self.accounts.tally.counts.attempts >= n)
                || self.in_progress() >= self.plan.concurrency
            {
                return SCAN;
            }
            let now = Instant::now();
            match self.pacer.turn(now, self.in_progress()) {
                Turn::Now(intended) => {
                    if self.plan.allowance.as_ref().is_some_and(|r| !r.take()) {
                        // The schedule is of the time in which there is room.
                        self.pacer.skip(now);
                        return FULL;
                    }
                    self.begin(intended, now);
                }
                Turn::At(t) => return (t - now).min(SCAN),
                Turn::Full => return SCAN,
            }
            if self.paused_until.is_some() {
                return PAUSE;
            }
        }
        Duration::ZERO
    }

    fn begin(&mut self, intended: Instant, began: Instant) {
        let n = self.accounts.tally.counts.attempts;
        self.accounts.tally.begin(began);
        let fd = match self.open(n) {
            Ok(fd) => fd,
            Err(e) => return self.failed((Phase::Connect, Cause::Errno(Errno::of(&e)))),
        };
        let connected = match rustix::net::connect(&fd, &self.plan.target) {
            Ok(()) => true,
            // Where the path has no delay the answer is here already, and asking costs less
            // than waiting.
            Err(Raw::INPROGRESS) => match rustix::net::connect(&fd, &self.plan.target) {
                Ok(()) | Err(Raw::ISCONN) => true,
                Err(Raw::ALREADY | Raw::INPROGRESS) => false,
                Err(e) => return self.failed(raw(Phase::Connect, e)),
            },
            Err(e) => return self.failed(raw(Phase::Connect, e)),
        };
        let slot = Slot {
            state: None,
            // Attempts have numbers anyway.
            serial: n as u32,
            registered: false,
            intended,
            began,
            deadline: began + self.plan.timeout,
        };
        if connected && self.plan.request.is_none() {
            return self.connected_tcp(fd, &slot);
        }
        let index = self.slots.insert(slot);
        if connected {
            self.connected(index, fd);
        } else {
            match self.wait_for(index, &fd, epoll::EventFlags::OUT) {
                Ok(()) => self.slots[index].state = Some(State::Connecting(fd)),
                Err(e) => {
                    self.release(index);
                    self.failed(raw(Phase::Connect, e));
                }
            }
        }
    }

    fn open(&mut self, n: u64) -> std::io::Result<OwnedFd> {
        if self.plan.sources.is_empty()
            && let Some(fd) = self.spare.take()
        {
            return Ok(fd);
        }
        let fd = socket::open(self.plan.target, crate::pick(&self.plan.sources, n))?;
        if self.plan.request.is_some() {
            // Lets the handshake's ACK travel with the request, and one ACK stand for the whole answer:
            // fewer packets for the same connection (tcp_rcv_synsent_state_process()). Without a request
            // conntrack needs it: an ACK without FIN makes an entry assured (nf_conntrack_tcp_packet()).
            sockopt::set_tcp_quickack(&fd, false)?;
            if self.plan.close == Close::Rst {
                sockopt::set_socket_linger(&fd, Some(Duration::ZERO))?;
            }
        }
        Ok(fd)
    }

    fn release(&mut self, index: usize) {
        let state = self.slots.remove(index).state;
        if matches!(state, Some(State::Exchanging(_))) && self.plan.close == Close::Rst {
            self.accounts.tally.counts.own_resets += 1;
        }
    }

    /// Registers a socket for reading, and for `more`. ENOMEM and ENOSPC are limits of this host.
    fn wait_for(&mut self, index: usize, fd: &OwnedFd, more: epoll::EventFlags) -> Result<(), Raw> {
        let slot = &mut self.slots[index];
        if slot.registered {
            return Ok(());
        }
        let data = epoll::EventData::new_u64((index as u64) << 32 | u64::from(slot.serial));
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET | more;
        epoll::add(&self.epoll, fd, data, flags)?;
        slot.registered = true;
        Ok(())
    }

    fn connected_tcp(&mut self, fd: OwnedFd, slot: &Slot) {
        let now = Instant::now();
        self.accounts.tally.connected(now - slot.began);
        if self.plan.close == Close::Rst {
            self.accounts.tally.counts.own_resets += 1;
            // tcp_disconnect() sends the RST and makes the socket new again: no linger, no
            // close and no socket() for the next.
            if rustix::net::connect_unspec(&fd).is_ok() && !slot.registered {
                self.spare = Some(fd);
            }
        } else {
            drop(fd);
        }
        self.accounts.tally.ok(now, now - slot.intended);
        self.failed_in_a_row = 0;
    }

    fn connected(&mut self, index: usize, fd: OwnedFd) {
        let now = Instant::now();
        let slot = &mut self.slots[index];
        slot.deadline = now + self.plan.timeout;
        self.accounts.tally.connected(now - slot.began);
        let Some(request) = &self.plan.request else { return };
        let request = request.clone();
        let registered = self.wait_for(index, &fd, epoll::EventFlags::empty());
        let begun =
            registered.map_err(|e| raw(Phase::Send, e)).and_then(|()| Exchange::begin(fd, request));
        match begun {
            Ok(exchange) => {
                self.slots[index].state = Some(State::Exchanging(Box::new(exchange)));
                self.advance(index, now);
            }
            Err(failure) => {
                self.release(index);
                self.failed(failure);
            }
        }
    }

    fn on_event(&mut self, data: u64, flags: epoll::EventFlags, now: Instant) {
        let (index, serial) = ((data >> 32) as usize, data as u32);
        let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.serial == serial) else {
            return;
        };
        match slot.state.take() {
            None => {}
            Some(State::Connecting(fd)) => match rustix::net::connect(&fd, &self.plan.target) {
                Ok(()) | Err(Raw::ISCONN) if self.plan.request.is_none() => {
                    let slot = self.slots.remove(index);
                    self.connected_tcp(fd, &slot);
                }
                Ok(()) | Err(Raw::ISCONN) => self.connected(index, fd),
                Err(Raw::ALREADY | Raw::INPROGRESS) => slot.state = Some(State::Connecting(fd)),
                Err(e) => {
                    self.release(index);
                    self.failed(raw(Phase::Connect, e));
                }
            },
            Some(State::Exchanging(exchange)) => {
                let ends =
                    epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
                if flags.intersects(epoll::EventFlags::IN | ends) {
                    exchange.readable(flags.intersects(ends));
                }
                slot.state = Some(State::Exchanging(exchange));
                self.advance(index, now);
            }
        }
    }

    fn advance(&mut self, index: usize, now: Instant) {
        let slot = &mut self.slots[index];
        let Some(State::Exchanging(exchange)) = &mut slot.state else { return };
        match exchange.advance(&self.driver) {
            Poll::Pending => slot.deadline = now + self.plan.timeout,
            Poll::Ready(Ok(bytes)) => {
                let intended = slot.intended;
                self.accounts.tally.counts.bytes += bytes;
                self.release(index);
                let now = Instant::now();
                self.accounts.tally.ok(now, now - intended);
                self.failed_in_a_row = 0;
            }
            Poll::Ready(Err(failure)) => {
                if matches!(failure.1, Cause::Errno(_)) {
                    // The connection has ended: close() resets nothing.
                    slot.state = None;
                }
                self.release(index);
                self.failed(failure);
            }
        }
    }

    fn failed(&mut self, failure: Failure) {
        self.accounts.failed(failure);
        self.failed_in_a_row += 1;
        let busy = self.pacer.is_closed() && self.failed_in_a_row >= FAILURES_IN_A_ROW;
        if failure.1.is_local() || busy {
            self.paused_until = Some(Instant::now() + PAUSE);
        }
    }

    /// Ends connections, and tells in which phases they were.
    fn end(&mut self, which: impl Fn(&Slot) -> bool) -> Vec<Phase> {
        let phase = |(index, slot): (usize, &Slot)| Some((index, slot.state.as_ref()?.phase()));
        let which = self.slots.iter().filter(|(_, slot)| which(slot));
        let (ended, phases): (Vec<_>, Vec<_>) = which.filter_map(phase).unzip();
        for index in ended {
            self.release(index);
        }
        phases
    }
}

fn raw(phase: Phase, e: Raw) -> Failure {
    (phase, Cause::Errno(Errno::from_raw(e.raw_os_error())))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use canary_record::result::load::FailureCount;

    use super::*;

    /// A socket that cannot be waited for is a failure at once, by the kernel's own word, and
    /// not the network's stall at the deadline.
    #[test]
    fn a_failed_registration_is_no_stall() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let now = Instant::now();
        let plan = Plan {
            target: listener.local_addr().unwrap(),
            request: Some(hyper::Request::default()),
            close: Close::Fin,
            sources: Vec::new(),
            timeout: Duration::from_secs(10),
            concurrency: 1,
            pacer: Pacer::closed(now, 1, Duration::ZERO),
            connections: Some(1),
            until: None,
            allowance: None,
        };
        // Not an epoll instance: EINVAL.
        let mut worker =
            Worker::new(&plan, OwnedFd::from(listener), Clock::start(), &Shown::default());
        worker.begin(now, now);
        let failures = worker.accounts.tally.counts.failures();
        assert_eq!(failures, [FailureCount::new(Phase::Send, Cause::Errno(Errno::Einval), 1)]);
        assert_eq!(worker.in_progress(), 0);
    }
}
