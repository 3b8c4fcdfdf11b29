//! Failures may come in thousands a second: a few are written, the others are counted, and the
//! count is written with the next or when its second is over.

use std::time::Instant;

use canary_record::names::Errno;
use canary_record::result::load::Cause;
use canary_runtime::limit::{Decision, Limit};

use crate::tally::Failure;

/// How many lines a second each worker may write.
const PER_SECOND: u32 = 5;

/// Writes failures to the log, at a bounded rate.
#[derive(Debug)]
pub struct FailureLog {
    began: Instant,
    limit: Limit,
}

impl FailureLog {
    /// A log that has written nothing yet.
    #[must_use]
    pub const fn new(began: Instant) -> Self {
        Self { began, limit: Limit::new(PER_SECOND) }
    }

    /// Reports one failed connection.
    pub fn failure(&mut self, now: Instant, (phase, cause): Failure) {
        let Decision::Tell { held_back } = self.limit.admit(now - self.began) else { return };
        let phase = phase.as_str();
        match cause {
            // The words that people grep for.
            Cause::Errno(Errno::Econnreset) => {
                tracing::warn!(phase, errno = "ECONNRESET", held_back, "Connection reset by peer");
            }
            Cause::Errno(e) => {
                tracing::warn!(phase, errno = e.as_str(), held_back, "connection failed");
            }
            Cause::EarlyEof => tracing::warn!(phase, held_back, "closed before the answer's end"),
            Cause::Stall => tracing::warn!(phase, held_back, "no progress within the deadline"),
            Cause::BadAnswer => tracing::warn!(phase, held_back, "wrong answer"),
            Cause::Interrupted => {}
        }
    }

    /// Says how many of a second that is over were not written. To be called now and then.
    pub fn tick(&mut self, now: Instant) {
        Self::tell(self.limit.due(now - self.began));
    }

    /// Says at the end how many were never written.
    pub fn finish(&mut self) {
        Self::tell(self.limit.finish());
    }

    fn tell(held_back: Option<std::num::NonZeroU64>) {
        if let Some(held_back) = held_back {
            tracing::warn!(held_back, "more failures, not written one by one");
        }
    }
}
