//! One connection, one record, exactly one class.

use std::collections::BTreeMap;
use std::time::Duration;

use canary_common::hist::Latency;
use canary_common::outcome::{Errno, Phase, ProbeEnd};
use canary_common::result::load::{Cause, FailureCount};

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

/// Counts of one worker, merged at the end.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Connections begun.
    pub attempts: u64,
    /// Ended as they should.
    pub ok: u64,
    /// Octets of answers.
    pub bytes: u64,
    /// Closed with RST by this program.
    pub own_resets: u64,
    /// From the start of connect() to the handshake's end.
    pub connect: Latency,
    /// From the intended start to the end of the exchange.
    pub total: Latency,
    failures: [[u64; CAUSES]; PHASES],
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            attempts: 0,
            ok: 0,
            bytes: 0,
            own_resets: 0,
            connect: Latency::new(),
            total: Latency::new(),
            failures: [[0; CAUSES]; PHASES],
        }
    }
}

impl Tally {
    /// Counts a connection that ended as it should, after `total`.
    pub fn ok(&mut self, total: Duration) {
        self.ok += 1;
        self.total.record(total);
    }

    /// Counts a connection that failed.
    pub fn fail(&mut self, (phase, cause): Failure) {
        self.failures[phase as usize][index(cause)] += 1;
    }

    /// Adds all that `other` has counted.
    pub fn merge(&mut self, other: &Self) {
        self.attempts += other.attempts;
        self.ok += other.ok;
        self.bytes += other.bytes;
        self.own_resets += other.own_resets;
        self.connect.merge(&other.connect);
        self.total.merge(&other.total);
        for (mine, theirs) in
            self.failures.as_flattened_mut().iter_mut().zip(other.failures.as_flattened())
        {
            *mine += theirs;
        }
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
        let mut tally = Tally::default();
        for &phase in Phase::ALL {
            for (n, &cause) in causes().iter().enumerate() {
                for _ in 0..=n {
                    tally.fail((phase, cause));
                }
            }
        }
        let list = tally.failures();
        assert_eq!(list.len(), PHASES * CAUSES);
        for f in &list {
            let n = causes().iter().position(|c| *c == f.cause).unwrap();
            assert_eq!(f.count, n as u64 + 1, "{:?} {:?}", f.phase, f.cause);
        }
        assert_eq!(tally.failed(), list.iter().map(|f| f.count).sum::<u64>());
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
        let mut a = Tally { attempts: 2, ..Tally::default() };
        a.ok(Duration::from_millis(1));
        a.fail((Phase::Receive, Cause::Stall));
        let b = a.clone();
        a.merge(&b);
        assert_eq!((a.attempts, a.ok, a.failed(), a.total.len()), (4, 2, 2, 2));
        assert_eq!(a.count(|(p, c)| p == Phase::Receive && c == Cause::Stall), 2);
    }
}
