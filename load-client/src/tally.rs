//! One connection, one record, exactly one class.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::time::{Duration, Instant};

use canary_record::add_each;
use canary_record::hist::Latency;
use canary_record::names::{Phase, ProbeEnd};
use canary_record::result::Clock;
use canary_record::result::load::{Cause, FailureCount, LoadResult};
use tokio::sync::watch;

use crate::log::FailureLog;
use crate::series::{self, BUCKETS, Point, TimeSeries};

/// A failure: where and how.
pub(crate) type Failure = (Phase, Cause);

/// Counts of one worker: small enough to be copied while the run goes on.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    pub(crate) attempts: u64,
    /// Due by the schedule and never begun.
    pub(crate) never_begun: u64,
    /// Ended as they should.
    pub(crate) ok: u64,
    /// Octets of answers.
    pub(crate) bytes: u64,
    /// Closed with RST by this program.
    pub(crate) own_resets: u64,
    /// In progress or held.
    pub(crate) open: u64,
    /// Connect latencies by [`series::bucket`].
    pub(crate) connect: [u64; BUCKETS],
    /// Total latencies by [`series::bucket`].
    pub(crate) total: [u64; BUCKETS],
    failures: BTreeMap<Failure, u64>,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            attempts: 0,
            never_begun: 0,
            ok: 0,
            bytes: 0,
            own_resets: 0,
            open: 0,
            connect: [0; BUCKETS],
            total: [0; BUCKETS],
            failures: BTreeMap::new(),
        }
    }
}

impl AddAssign<&Self> for Counts {
    fn add_assign(&mut self, other: &Self) {
        let add = |mine: &mut [u64], theirs: &[u64]| {
            mine.iter_mut().zip(theirs).for_each(|(a, b)| *a += b);
        };
        add_each!(self += other: attempts, never_begun, ok, bytes, own_resets, open);
        add(&mut self.connect, &other.connect);
        add(&mut self.total, &other.total);
        for (failure, n) in &other.failures {
            *self.failures.entry(*failure).or_default() += n;
        }
    }
}

impl Counts {
    /// Every kind of failure that occurred.
    pub(crate) fn failures(&self) -> Vec<FailureCount> {
        let count = |(&(phase, cause), &n): (_, _)| FailureCount::new(phase, cause, n);
        self.failures.iter().map(count).collect()
    }

    /// Connections that failed, in all ways together.
    pub(crate) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// The same as ends of probed connections.
    pub(crate) fn ends(&self) -> BTreeMap<ProbeEnd, u64> {
        let mut ends = BTreeMap::from([(ProbeEnd::Survived, self.ok)]);
        for f in self.failures() {
            *ends.entry(f.class().into()).or_default() += f.count;
        }
        ends.retain(|_, n| *n > 0);
        ends
    }
}

/// Where a worker shows its counts while it runs.
pub(crate) type Shown = watch::Sender<Counts>;

/// All that one worker counts, merged at the end.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    pub(crate) counts: Counts,
    /// From the start of connect() to the handshake's end.
    pub(crate) connect: Latency,
    /// From the intended start to the end of the exchange.
    pub(crate) total: Latency,
    pub(crate) series: TimeSeries,
    clock: Clock,
}

/// A tally, its failures in the log, and what is shown of it while it grows.
#[derive(Debug)]
pub(crate) struct Accounts {
    pub(crate) tally: Tally,
    log: FailureLog,
    shown: Shown,
}

impl Accounts {
    pub(crate) fn new(clock: Clock, shown: &Shown) -> Self {
        let log = FailureLog::new(clock.began());
        Self { tally: Tally::new(clock), log, shown: shown.clone() }
    }

    /// Counts a connection that failed, and logs it.
    pub(crate) fn failed(&mut self, failure: Failure) {
        let now = Instant::now();
        self.tally.fail(now, failure);
        self.log.failure(now, failure);
    }

    /// Shows the counts, of which `open` have not ended.
    pub(crate) fn show(&mut self, open: u64) {
        self.tally.counts.open = open;
        self.shown.send_replace(self.tally.counts.clone());
        self.log.tick(Instant::now());
    }

    /// The whole: what has not ended is cut short by the end of the run.
    pub(crate) fn end(&mut self) -> Tally {
        let (counts, now) = (&self.tally.counts, Instant::now());
        for _ in counts.ok + counts.failed()..counts.attempts {
            self.tally.fail(now, (Phase::Receive, Cause::Interrupted));
        }
        self.log.finish();
        self.tally.clone()
    }
}

impl Tally {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            counts: Counts::default(),
            connect: Latency::default(),
            total: Latency::default(),
            series: TimeSeries::default(),
            clock,
        }
    }

    /// What a result says was counted, so that results can be merged as workers are.
    pub(crate) fn of(result: &LoadResult) -> Self {
        let mut counts = Counts {
            attempts: result.attempts,
            never_begun: result.never_begun,
            ok: result.ok,
            bytes: result.bytes_received,
            own_resets: result.own_resets,
            ..Counts::default()
        };
        for f in &result.failures {
            *counts.failures.entry((f.phase, f.cause)).or_default() += f.count;
        }
        Self {
            counts,
            connect: result.connect_latency.to_histogram(),
            total: result.total_latency.to_histogram(),
            series: TimeSeries::from_record(&result.series),
            clock: Clock::start(),
        }
    }

    pub(crate) fn begin(&mut self, now: Instant) {
        self.counts.attempts += 1;
        self.point(now).counts.attempts += 1;
    }

    /// Counts a handshake's duration.
    pub(crate) fn connected(&mut self, took: Duration) {
        self.connect.record(took);
        self.counts.connect[series::bucket(took.as_micros() as u64)] += 1;
    }

    /// Counts a connection that ended as it should, after `total`.
    pub(crate) fn ok(&mut self, now: Instant, total: Duration) {
        self.exchange(now, total);
        self.ok_untimed(now);
    }

    /// Counts a connection that ended as it should and whose duration says nothing.
    pub(crate) fn ok_untimed(&mut self, now: Instant) {
        self.counts.ok += 1;
        self.point(now).counts.ok += 1;
    }

    /// Counts an exchange on a connection that goes on.
    pub(crate) fn exchange(&mut self, now: Instant, took: Duration) {
        self.total.record(took);
        let bucket = series::bucket(took.as_micros() as u64);
        self.counts.total[bucket] += 1;
        self.point(now).latency[bucket] += 1;
    }

    pub(crate) fn fail(&mut self, now: Instant, (phase, cause): Failure) {
        *self.counts.failures.entry((phase, cause)).or_default() += 1;
        let counts = &mut self.point(now).counts;
        counts.failed += 1;
        counts.local += u64::from(cause.is_local());
    }

    fn point(&mut self, now: Instant) -> &mut Point {
        self.series.point(self.clock.second(now))
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.counts += &other.counts;
        self.connect.merge(&other.connect);
        self.total.merge(&other.total);
        self.series = std::mem::take(&mut self.series).join(other.series);
    }
}

#[cfg(test)]
mod tests {
    use canary_record::names::Errno;

    use super::*;

    /// Every class has a place of its own and is read back as itself.
    #[test]
    fn every_class_has_its_own_place() {
        let t = Instant::now();
        let mut tally = Tally::new(Clock::start());
        for &phase in Phase::ALL {
            for (n, cause) in Cause::all().enumerate() {
                for _ in 0..=n {
                    tally.fail(t, (phase, cause));
                }
            }
        }
        let list = tally.counts.failures();
        assert_eq!(list.len(), Phase::ALL.len() * Cause::all().count());
        for f in &list {
            let n = Cause::all().position(|c| c == f.cause).unwrap();
            assert_eq!(f.count, n as u64 + 1, "{:?} {:?}", f.phase, f.cause);
        }
        assert_eq!(tally.counts.failed(), list.iter().map(|f| f.count).sum::<u64>());
    }

    /// How probed connections ended is the same count as the failures'.
    #[test]
    fn ends_add_up() {
        let t = Instant::now();
        let mut accounts = Accounts::new(Clock::start(), &Shown::default());
        let tally = &mut accounts.tally;
        for _ in 0..6 {
            tally.begin(t);
        }
        tally.ok(t, Duration::from_millis(1));
        tally.fail(t, (Phase::Receive, Cause::Stall));
        tally.fail(t, (Phase::Send, Cause::Errno(Errno::Epipe)));
        tally.fail(t, (Phase::Receive, Cause::Errno(Errno::Econnreset)));
        let ends = [
            (ProbeEnd::Survived, 1),
            (ProbeEnd::Reset, 2),
            (ProbeEnd::Hung, 1),
            (ProbeEnd::Failed, 2),
        ];
        assert_eq!(accounts.end().counts.ends(), ends.into());
    }

    /// Merging adds every class.
    #[test]
    fn merging_adds_every_class() {
        let t = Instant::now();
        let clock = Clock::start();
        let mut a = Tally::new(clock);
        a.begin(t);
        a.begin(t);
        a.ok(t, Duration::from_millis(1));
        a.fail(t + Duration::from_secs(3), (Phase::Receive, Cause::Stall));
        a.merge(a.clone());
        let c = &a.counts;
        assert_eq!((c.attempts, c.ok, c.failed(), a.total.summary().count), (4, 2, 2, 2));
        assert_eq!(c.failures(), [FailureCount::new(Phase::Receive, Cause::Stall, 2)]);
        let points = a.series.record().points;
        assert_eq!((points[0].at, points[0].attempts, points[0].ok), (clock.second(t), 4, 2));
        assert_eq!((points[1].at, points[1].failed), (points[0].at + 3, 2));
    }
}
