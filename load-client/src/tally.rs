//! One connection, one record, exactly one class.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use canary_record::hist::Latency;
use canary_record::names::{Errno, Phase, ProbeEnd};
use canary_record::result::load::{Cause, FailureCount};

use crate::series::{self, BUCKETS, Course};

const PHASES: usize = Phase::ALL.len();
const ERRNOS: usize = Errno::ALL.len();
const CAUSES: usize = ERRNOS + 4;

/// Where a cause is counted.
const fn index(cause: Cause) -> usize {
    match cause {
        Cause::Errno(e) => e as usize,
        Cause::EarlyEof => ERRNOS,
        Cause::Stall => ERRNOS + 1,
        Cause::BadAnswer => ERRNOS + 2,
        Cause::Interrupted => ERRNOS + 3,
    }
}

/// The inverse of [`index`].
fn cause(index: usize) -> Cause {
    match index - ERRNOS.min(index) {
        _ if index < ERRNOS => Cause::Errno(Errno::ALL[index]),
        0 => Cause::EarlyEof,
        1 => Cause::Stall,
        2 => Cause::BadAnswer,
        _ => Cause::Interrupted,
    }
}

/// True for a limit of this host.
#[must_use]
pub const fn is_local(cause: Cause) -> bool {
    match cause {
        Cause::Errno(e) => e.is_local_limit(),
        Cause::EarlyEof | Cause::Stall | Cause::BadAnswer | Cause::Interrupted => false,
    }
}

/// A failure: where and how.
pub type Failure = (Phase, Cause);

/// How a connection that failed so is called by `probe`.
#[must_use]
pub const fn probe_end((phase, cause): Failure) -> ProbeEnd {
    match (phase, cause) {
        (_, Cause::Errno(e)) if e.is_local_limit() => ProbeEnd::LocalLimit,
        (_, Cause::Errno(Errno::Econnrefused)) => ProbeEnd::Refused,
        (Phase::Connect, Cause::Errno(Errno::Etimedout) | Cause::Stall) => ProbeEnd::TimedOut,
        (_, Cause::Errno(Errno::Econnreset | Errno::Epipe)) => ProbeEnd::Reset,
        // Retransmissions without an answer until the kernel gave up: a hang that was noticed.
        (_, Cause::Stall | Cause::Errno(Errno::Etimedout)) => ProbeEnd::Hung,
        (_, Cause::BadAnswer) => ProbeEnd::Corrupted,
        (_, Cause::EarlyEof) => ProbeEnd::EarlyEof,
        (_, Cause::Errno(_) | Cause::Interrupted) => ProbeEnd::Failed,
    }
}

/// Counts of one worker: small enough to be copied while the run goes on.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    /// Connections begun.
    pub attempts: u64,
    /// Ended as they should.
    pub ok: u64,
    /// Octets of answers.
    pub bytes: u64,
    /// Closed with RST by this program.
    pub own_resets: u64,
    /// In progress or held.
    pub open: u64,
    /// Connect latencies by [`series::bucket`].
    pub connect: [u64; BUCKETS],
    /// Total latencies by [`series::bucket`].
    pub total: [u64; BUCKETS],
    failures: [[u64; CAUSES]; PHASES],
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            attempts: 0,
            ok: 0,
            bytes: 0,
            own_resets: 0,
            open: 0,
            connect: [0; BUCKETS],
            total: [0; BUCKETS],
            failures: [[0; CAUSES]; PHASES],
        }
    }
}

fn add(mine: &mut [u64], theirs: &[u64]) {
    for (a, b) in mine.iter_mut().zip(theirs) {
        *a += b;
    }
}

impl Counts {
    /// Adds all that `other` has counted.
    pub fn add(&mut self, other: &Self) {
        self.attempts += other.attempts;
        self.ok += other.ok;
        self.bytes += other.bytes;
        self.own_resets += other.own_resets;
        self.open += other.open;
        add(&mut self.connect, &other.connect);
        add(&mut self.total, &other.total);
        add(self.failures.as_flattened_mut(), other.failures.as_flattened());
    }

    /// Every class of failure that occurred.
    #[must_use]
    pub fn failures(&self) -> Vec<FailureCount> {
        let mut list = Vec::new();
        for &phase in Phase::ALL {
            for (i, &count) in self.failures[phase as usize].iter().enumerate() {
                if count > 0 {
                    let cause = cause(i);
                    list.push(FailureCount { phase, cause, local: is_local(cause), count });
                }
            }
        }
        list
    }

    /// Connections that failed, in all classes together.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failures.as_flattened().iter().sum()
    }

    /// Failures whose class satisfies `which`.
    #[must_use]
    pub fn count(&self, which: impl Fn(Failure) -> bool) -> u64 {
        self.failures().iter().filter(|f| which((f.phase, f.cause))).map(|f| f.count).sum()
    }
}

/// Where a worker shows its counts while it runs; only its own reader waits for it.
pub type Shown = Arc<Mutex<Counts>>;

/// All that one worker counts, merged at the end.
#[derive(Clone, Debug)]
pub struct Tally {
    /// The counts.
    pub counts: Counts,
    /// Due by the schedule and never begun.
    pub never_begun: u64,
    /// From the start of connect() to the handshake's end.
    pub connect: Latency,
    /// From the intended start to the end of the exchange.
    pub total: Latency,
    /// The counts over time.
    pub course: Course,
    clock: Clock,
}

/// The second since 1970 of a monotonic time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    /// Since 1970, at `start`.
    unix: Duration,
}

impl Clock {
    /// `start`, which is `unix` since 1970.
    #[must_use]
    pub const fn new(start: Instant, unix: Duration) -> Self {
        Self { start, unix }
    }

    /// Reads both clocks.
    #[must_use]
    pub fn now() -> Self {
        let unix = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        Self::new(Instant::now(), unix)
    }

    /// When the run began.
    #[must_use]
    pub const fn start(&self) -> Instant {
        self.start
    }

    fn second(&self, now: Instant) -> u64 {
        (self.unix + now.saturating_duration_since(self.start)).as_secs()
    }
}

impl Tally {
    /// Nothing counted.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self {
            counts: Counts::default(),
            never_begun: 0,
            connect: Latency::new(),
            total: Latency::new(),
            course: Course::default(),
            clock,
        }
    }

    /// Counts a connection that is begun.
    pub fn begin(&mut self, now: Instant) {
        self.counts.attempts += 1;
        self.course.attempt(self.clock.second(now));
    }

    /// Counts a handshake's duration.
    pub fn connected(&mut self, took: Duration) {
        self.connect.record(took);
        self.counts.connect[series::bucket(took.as_micros() as u64)] += 1;
    }

    /// Counts a connection that ended as it should, after `total`.
    pub fn ok(&mut self, now: Instant, total: Duration) {
        self.total.record(total);
        let bucket = series::bucket(total.as_micros() as u64);
        self.counts.total[bucket] += 1;
        self.counts.ok += 1;
        self.course.ok(self.clock.second(now), Some(bucket));
    }

    /// Counts a connection that ended as it should and whose duration says nothing.
    pub fn ok_untimed(&mut self, now: Instant) {
        self.counts.ok += 1;
        self.course.ok(self.clock.second(now), None);
    }

    /// Counts an exchange on a connection that goes on.
    pub fn exchange(&mut self, now: Instant, took: Duration) {
        self.total.record(took);
        let bucket = series::bucket(took.as_micros() as u64);
        self.counts.total[bucket] += 1;
        self.course.exchange(self.clock.second(now), bucket);
    }

    /// Counts a connection that failed.
    pub fn fail(&mut self, now: Instant, (phase, cause): Failure) {
        self.counts.failures[phase as usize][index(cause)] += 1;
        self.course.fail(self.clock.second(now), is_local(cause));
    }

    /// Adds all that `other` has counted.
    pub fn merge(&mut self, other: Self) {
        self.counts.add(&other.counts);
        self.never_begun += other.never_begun;
        self.connect.merge(&other.connect);
        self.total.merge(&other.total);
        self.course = std::mem::take(&mut self.course).join(other.course);
    }
}

/// How each probed connection ended, beside the tally.
pub type Ends = BTreeMap<ProbeEnd, u64>;

#[cfg(test)]
mod tests {
    use super::*;

    fn causes() -> Vec<Cause> {
        let mut all: Vec<_> = Errno::ALL.iter().copied().map(Cause::Errno).collect();
        all.extend([Cause::EarlyEof, Cause::Stall, Cause::BadAnswer, Cause::Interrupted]);
        all
    }

    /// Every class has a place of its own and is read back as itself.
    #[test]
    fn every_class_has_its_own_place() {
        let t = Instant::now();
        let mut tally = Tally::new(Clock::now());
        for &phase in Phase::ALL {
            for (n, &cause) in causes().iter().enumerate() {
                for _ in 0..=n {
                    tally.fail(t, (phase, cause));
                }
            }
        }
        let list = tally.counts.failures();
        assert_eq!(list.len(), PHASES * CAUSES);
        for f in &list {
            let n = causes().iter().position(|c| *c == f.cause).unwrap();
            assert_eq!(f.count, n as u64 + 1, "{:?} {:?}", f.phase, f.cause);
        }
        assert_eq!(tally.counts.failed(), list.iter().map(|f| f.count).sum::<u64>());
    }

    /// Limits of this host are told apart from the network's failures.
    #[test]
    fn local_limits_are_no_resets() {
        assert!(is_local(Cause::Errno(Errno::Eaddrnotavail)));
        assert!(!is_local(Cause::Errno(Errno::Econnreset)));
        assert_eq!(probe_end((Phase::Connect, Cause::Errno(Errno::Emfile))), ProbeEnd::LocalLimit);
        assert_eq!(probe_end((Phase::Connect, Cause::Stall)), ProbeEnd::TimedOut);
        assert_eq!(probe_end((Phase::Receive, Cause::Stall)), ProbeEnd::Hung);
        assert_eq!(probe_end((Phase::Send, Cause::Errno(Errno::Epipe))), ProbeEnd::Reset);
    }

    /// Merging adds every class.
    #[test]
    fn merging_adds_every_class() {
        let t = Instant::now();
        let mut a = Tally::new(Clock::new(t, Duration::from_secs(1_000_000)));
        a.begin(t);
        a.begin(t);
        a.ok(t, Duration::from_millis(1));
        a.fail(t + Duration::from_secs(3), (Phase::Receive, Cause::Stall));
        a.merge(a.clone());
        let c = a.counts;
        assert_eq!((c.attempts, c.ok, c.failed(), a.total.len()), (4, 2, 2, 2));
        assert_eq!(c.count(|(p, c)| p == Phase::Receive && c == Cause::Stall), 2);
        let points = a.course.record().points;
        assert_eq!((points[0].at, points[0].attempts, points[0].ok), (1_000_000, 4, 2));
        assert_eq!((points[1].at, points[1].failed), (1_000_003, 2));
    }
}
