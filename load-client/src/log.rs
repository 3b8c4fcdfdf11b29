//! Events that may come in thousands a second: a few are written, the others
//! are counted and the count is written with the next.

use std::time::{Duration, Instant};

use canary_record::names::Errno;
use canary_record::result::load::Cause;

use crate::tally::Failure;

/// How many lines a second each worker may write.
const PER_SECOND: u32 = 5;

/// Writes failures to the log, at a bounded rate.
#[derive(Debug)]
pub struct FailureLog {
    second: Instant,
    written: u32,
    held_back: u64,
}

impl FailureLog {
    /// A log that has written nothing yet.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self { second: now, written: 0, held_back: 0 }
    }

    /// The count held back if this event may be written now, else none.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(self.second) >= Duration::from_secs(1) {
            (self.second, self.written) = (now, 0);
        }
        if self.written < PER_SECOND {
            self.written += 1;
            Some(std::mem::take(&mut self.held_back))
        } else {
            self.held_back += 1;
            None
        }
    }

    /// Reports one failed connection.
    pub fn failure(&mut self, now: Instant, (phase, cause): Failure) {
        let Some(held_back) = self.admit(now) else { return };
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

    /// Says at the end how many were never written.
    pub fn finish(&mut self) {
        if self.held_back > 0 {
            let held_back = std::mem::take(&mut self.held_back);
            tracing::warn!(held_back, "more failures, not written one by one");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No more lines than allowed, and every one held back is counted.
    #[test]
    fn holds_back_and_counts() {
        let t = Instant::now();
        let mut log = FailureLog::new(t);
        let admitted = (0..100).filter(|_| log.admit(t).is_some()).count();
        assert_eq!(admitted, PER_SECOND as usize);
        assert_eq!(log.admit(t + Duration::from_secs(1)), Some(100 - u64::from(PER_SECOND)));
        assert_eq!(log.admit(t + Duration::from_secs(1)), Some(0));
    }
}
