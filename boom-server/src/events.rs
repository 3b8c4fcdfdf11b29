//! Events of single connections, at most so many of a kind in a second.

use std::io;
use std::num::NonZeroU64;
use std::time::Duration;

use canary_record::names::Forgery;
use canary_runtime::limit::Limit;
use canary_wire::segment::FourTuple;

use crate::config::Events;
use canary_forge::flow::{Judgement, Reset, ResetCause};
use canary_forge::forgery::Spec;

const PER_SECOND: u32 = 100;
/// The first leaks are always told.
const FIRST_LEAKS: u64 = 20;

/// The kinds of events; each has its place in [`Log`].
#[derive(Clone, Copy, Debug)]
enum Kind {
    Forged,
    Judged,
    Leaked,
    Reset,
    SendFailed,
}

/// As they are told of, in the order of [`Kind`].
const KINDS: [&str; 5] = ["connection established", "judged", "ERROR", "reset", "send failed"];

/// Writes events.
#[derive(Debug)]
pub(crate) struct Log {
    leaks: u64,
    limits: [Limit; KINDS.len()],
}

impl Log {
    /// Nothing written yet.
    pub(crate) fn new(events: Events) -> Self {
        let limit = match events {
            Events::All => Limit::none(),
            Events::Some => Limit::new(PER_SECOND),
        };
        Self { leaks: 0, limits: KINDS.map(|_| limit.clone()) }
    }

    fn allow(&mut self, kind: Kind, now: Duration) -> bool {
        let admitted = self.limits[kind as usize].admit(now);
        tell(KINDS[kind as usize], admitted.and_then(NonZeroU64::new));
        admitted.is_some()
    }

    /// Tells what was held back in seconds gone by.
    pub(crate) fn flush(&mut self, now: Duration) {
        for (name, limit) in KINDS.iter().zip(&mut self.limits) {
            tell(name, limit.due(now));
        }
    }

    /// Tells what was held back and is not told yet: the end.
    pub(crate) fn finish(&mut self) {
        for (name, limit) in KINDS.iter().zip(&mut self.limits) {
            tell(name, limit.finish());
        }
    }

    /// A segment was forged. Kubernetes' end-to-end test looks for these words.
    pub(crate) fn forged(
        &mut self,
        now: Duration,
        tuple: &FourTuple,
        forgery: Forgery,
        spec: &Spec,
    ) {
        if self.allow(Kind::Forged, now) {
            tracing::info!(
                client = %tuple.remote, server = %tuple.local, %forgery,
                seq = spec.seq.0, ack = spec.ack.0, flags = %spec.flags,
                "connection established"
            );
        }
    }

    /// A forged segment was judged.
    pub(crate) fn judged(&mut self, now: Duration, j: &Judgement) {
        if j.fate.reset() {
            self.leaks += 1;
            if self.leaks <= FIRST_LEAKS || self.allow(Kind::Leaked, now) {
                // The word that Kubernetes' end-to-end test looks for.
                tracing::error!(
                    client = %j.tuple.remote, server = %j.tuple.local, forgery = %j.forgery,
                    outcome = %j.fate.name(), killed = j.fate.killed(), after_us = j.after.as_micros() as u64,
                    "ERROR: the client's RST answers a forged segment"
                );
            }
        } else if self.allow(Kind::Judged, now) {
            tracing::info!(
                client = %j.tuple.remote, server = %j.tuple.local, forgery = %j.forgery,
                outcome = %j.fate.name(), reason = j.fate.reason().map(canary_record::names::UnknownReason::as_str),
                after_us = j.after.as_micros() as u64,
                "judged"
            );
        }
    }

    /// An RST that belongs to no forged segment.
    pub(crate) fn reset(&mut self, now: Duration, r: &Reset) {
        let expected = match r.cause {
            ResetCause::Forged(_) => return,
            ResetCause::Poisoned if !self.allow(Kind::Reset, now) => return,
            ResetCause::Poisoned => {
                tracing::warn!(
                    client = %r.tuple.remote, server = %r.tuple.local, seq = r.seq.0,
                    "reset after an overshoot: the connection's conntrack entry was poisoned"
                );
                return;
            }
            ResetCause::Other { expected, .. } => Some(expected.0),
            ResetCause::Gone | ResetCause::UnknownConnection => None,
        };
        if self.allow(Kind::Reset, now) {
            tracing::info!(
                client = %r.tuple.remote, server = %r.tuple.local,
                seq = r.seq.0, ack = r.ack.0, flags = %r.flags, expected_seq = expected,
                "reset of another cause"
            );
        }
    }

    /// A segment could not be sent.
    pub(crate) fn send_failed(&mut self, now: Duration, tuple: &FourTuple, error: &io::Error) {
        if self.allow(Kind::SendFailed, now) {
            tracing::warn!(client = %tuple.remote, %error, "cannot send a segment");
        }
    }
}

fn tell(kind: &str, held_back: Option<NonZeroU64>) {
    if let Some(held_back) = held_back {
        tracing::info!(kind, held_back, "events held back");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use canary_forge::flow::Reset;
    use canary_testbed::logged::logged;
    use canary_wire::segment::Flags;
    use canary_wire::seq::Seq;

    /// What `log` writes of `n` resets in one second and the end.
    fn lines(events: Events, n: usize) -> Vec<String> {
        logged(|| {
            let end = |addr: &str| addr.parse().unwrap();
            let tuple = FourTuple::new(end("198.18.0.2:9000"), end("198.18.0.1:40000"));
            let cause = ResetCause::UnknownConnection;
            let reset = Reset { tuple, seq: Seq(1), ack: Seq(2), flags: Flags::RST, cause };
            let mut log = Log::new(events);
            for _ in 0..n {
                log.reset(Duration::from_millis(100), &reset);
            }
            log.flush(Duration::from_millis(200));
            log.finish();
        })
    }

    /// 400 events in the run's last second: 100 lines, and one that tells of the other 300.
    #[test]
    fn the_last_second_is_told() {
        let lines = lines(Events::Some, 400);
        assert_eq!(lines.len(), PER_SECOND as usize + 1);
        assert!(lines.last().unwrap().contains("held_back=300"), "{:?}", lines.last());
    }

    /// Whoever wants all gets all, and no word of what was not held back.
    #[test]
    fn all_is_all() {
        let lines = lines(Events::All, 400);
        assert_eq!(lines.len(), 400);
        assert!(!lines.iter().any(|l| l.contains("held_back")));
    }
}
