//! Failures may come in thousands a second: a few are written, the others are counted, and the
//! count is written with the next or when its second is over. That connections were reset is said
//! again among other failures, which would push it out of a log's last lines.

use std::time::Instant;

use canary_record::names::Errno;
use canary_record::result::load::Cause;
use canary_runtime::limit::Limit;

use crate::tally::Failure;

/// How many lines a second each worker may write.
const PER_SECOND: u32 = 5;

/// `kubectl logs -l` gives ten lines of each pod: one in so many says again what people look for.
const REPEAT: u32 = 4;

/// Writes failures to the log, at a bounded rate.
#[derive(Debug)]
pub(crate) struct FailureLog {
    began: Instant,
    limit: Limit,
    /// Connections that were reset.
    resets: u64,
    /// Lines since that was last said.
    since: u32,
}

impl FailureLog {
    pub(crate) const fn new(began: Instant) -> Self {
        Self { began, limit: Limit::new(PER_SECOND), resets: 0, since: 0 }
    }

    pub(crate) fn failure(&mut self, now: Instant, (phase, cause): Failure) {
        let reset = matches!(cause, Cause::Errno(Errno::Econnreset));
        self.resets += u64::from(reset);
        let Some(held_back) = self.limit.admit(now - self.began) else { return };
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
        if reset {
            self.since = 0;
        } else {
            self.repeat();
        }
    }

    /// Says again that connections were reset, after so many other lines.
    fn repeat(&mut self) {
        self.since += 1;
        if self.resets > 0 && self.since >= REPEAT {
            self.since = 0;
            tracing::warn!(errno = "ECONNRESET", so_far = self.resets, "Connection reset by peer");
        }
    }

    /// Says how many of a second that is over were not written. To be called now and then.
    pub(crate) fn tick(&mut self, now: Instant) {
        let held_back = self.limit.due(now - self.began);
        self.tell(held_back);
    }

    /// Says at the end how many were never written.
    pub(crate) fn finish(&mut self) {
        let held_back = self.limit.finish();
        self.tell(held_back);
    }

    fn tell(&mut self, held_back: Option<std::num::NonZeroU64>) {
        if let Some(held_back) = held_back {
            tracing::warn!(held_back, "more failures, not written one by one");
            self.repeat();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use canary_record::names::Phase;
    use canary_testbed::logged::logged;

    use super::*;

    /// What is written of these failures, one a second.
    fn lines(failures: &[Errno]) -> Vec<String> {
        logged(|| {
            let began = Instant::now();
            let mut log = FailureLog::new(began);
            for (n, errno) in failures.iter().enumerate() {
                let now = began + Duration::from_secs(n as u64);
                log.failure(now, (Phase::Connect, Cause::Errno(*errno)));
            }
            log.finish();
        })
    }

    /// However many connections are refused after a reset, the reset is among any ten lines.
    #[test]
    fn a_reset_stays_in_sight() {
        let mut failures = vec![Errno::Econnreset];
        failures.extend([Errno::Econnrefused; 60]);
        let lines = lines(&failures);
        assert!(lines.windows(10).all(|w| w.iter().any(|l| l.contains("reset by peer"))));
    }

    /// Where nothing was reset nothing says so.
    #[test]
    fn without_a_reset_none_is_told() {
        let lines = lines(&[Errno::Econnrefused; 60]);
        assert_eq!(lines.len(), 60);
        assert!(lines.iter().all(|l| !l.contains("reset by peer")));
    }
}
