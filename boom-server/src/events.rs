//! Events of single connections, at most so many of a kind in a second.

use std::io;
use std::time::Duration;

use canary_record::names::{Forgery, Outcome};
use canary_wire::segment::FourTuple;

use crate::config::Events;
use canary_forge::flow::{Judgement, Reset, ResetCause};
use canary_forge::forgery::Spec;

const PER_SECOND: u32 = 100;
/// The first leaks are always told.
const FIRST_LEAKS: u64 = 20;

#[derive(Debug, Default)]
struct Kind {
    name: &'static str,
    second: u64,
    told: u32,
    held: u64,
}

impl Kind {
    const fn new(name: &'static str) -> Self {
        Self { name, second: 0, told: 0, held: 0 }
    }

    fn allow(&mut self, now: Duration) -> bool {
        self.flush(now);
        if self.told < PER_SECOND {
            self.told += 1;
            return true;
        }
        self.held += 1;
        false
    }

    fn flush(&mut self, now: Duration) {
        if now.as_secs() != self.second {
            if self.held > 0 {
                tracing::info!(kind = self.name, held_back = self.held, "events held back");
            }
            (self.second, self.told, self.held) = (now.as_secs(), 0, 0);
        }
    }
}

/// Writes events.
#[derive(Debug)]
pub struct Log {
    all: bool,
    leaks: u64,
    forged: Kind,
    judged: Kind,
    leaked: Kind,
    other: Kind,
    errors: Kind,
}

impl Log {
    /// Nothing written yet.
    #[must_use]
    pub const fn new(events: Events) -> Self {
        Self {
            all: matches!(events, Events::All),
            leaks: 0,
            forged: Kind::new("connection established"),
            judged: Kind::new("judged"),
            leaked: Kind::new("ERROR"),
            other: Kind::new("reset"),
            errors: Kind::new("send failed"),
        }
    }

    /// Tells what was held back in seconds gone by.
    pub fn flush(&mut self, now: Duration) {
        for kind in [
            &mut self.forged,
            &mut self.judged,
            &mut self.leaked,
            &mut self.other,
            &mut self.errors,
        ] {
            kind.flush(now);
        }
    }

    /// A segment was forged. Kubernetes' end-to-end test looks for these words.
    pub fn forged(&mut self, now: Duration, tuple: &FourTuple, forgery: Forgery, spec: &Spec) {
        if self.all || self.forged.allow(now) {
            tracing::info!(
                client = %tuple.remote, server = %tuple.local, %forgery,
                seq = spec.seq.0, ack = spec.ack.0, flags = %spec.flags,
                "connection established"
            );
        }
    }

    /// A forged segment was judged.
    pub fn judged(&mut self, now: Duration, j: &Judgement) {
        if j.outcome == Outcome::Leaked {
            self.leaks += 1;
            if self.all || self.leaks <= FIRST_LEAKS || self.leaked.allow(now) {
                // The word that Kubernetes' end-to-end test looks for.
                tracing::error!(
                    client = %j.tuple.remote, server = %j.tuple.local, forgery = %j.forgery,
                    killed = j.killed, after_us = j.after.as_micros() as u64,
                    "ERROR: the client's RST answers a forged segment"
                );
            }
        } else if self.all || self.judged.allow(now) {
            tracing::info!(
                client = %j.tuple.remote, server = %j.tuple.local, forgery = %j.forgery,
                outcome = %j.outcome, reason = j.reason.map(canary_record::names::UnknownReason::as_str),
                after_us = j.after.as_micros() as u64,
                "judged"
            );
        }
    }

    /// An RST that belongs to no forged segment.
    pub fn reset(&mut self, now: Duration, r: &Reset) {
        let expected = match r.cause {
            ResetCause::Forged(_) => return,
            ResetCause::Poisoned if !self.all && !self.other.allow(now) => return,
            ResetCause::Poisoned => {
                tracing::warn!(
                    client = %r.tuple.remote, server = %r.tuple.local, seq = r.seq.0,
                    "reset after an overshoot: the connection's conntrack entry was poisoned"
                );
                return;
            }
            ResetCause::Other { expected } => Some(expected.0),
            ResetCause::UnknownConnection => None,
        };
        if self.all || self.other.allow(now) {
            tracing::info!(
                client = %r.tuple.remote, server = %r.tuple.local,
                seq = r.seq.0, ack = r.ack.0, flags = %r.flags, expected_seq = expected,
                "reset of another cause"
            );
        }
    }

    /// A segment could not be sent.
    pub fn send_failed(&mut self, now: Duration, tuple: &FourTuple, error: &io::Error) {
        if self.all || self.errors.allow(now) {
            tracing::warn!(client = %tuple.remote, %error, "cannot send a segment");
        }
    }
}
