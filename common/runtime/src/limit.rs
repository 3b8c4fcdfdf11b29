//! How often one kind of thing may be told: so many times a second. What was held back is
//! counted, and the count is handed out once, with the next line, when its second is over,
//! or at the end.

use std::num::NonZeroU64;
use std::time::Duration;

/// One kind's limit. Whoever holds one calls [`Limit::finish`] at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    per_second: u32,
    second: u64,
    told: u32,
    held_back: u64,
}

impl Limit {
    /// At most `per_second` in each whole second of the clock that `now` is read from.
    #[must_use]
    pub const fn new(per_second: u32) -> Self {
        Self { per_second, second: 0, told: 0, held_back: 0 }
    }

    /// Every event is told.
    #[must_use]
    pub const fn none() -> Self {
        Self::new(u32::MAX)
    }

    /// Decides about one event at `now`, a time since any fixed moment: told with how many were
    /// held back since a count was handed out last, or, where this gives none, counted.
    #[must_use]
    pub const fn admit(&mut self, now: Duration) -> Option<u64> {
        if now.as_secs() != self.second {
            (self.second, self.told) = (now.as_secs(), 0);
        }
        if self.told < self.per_second {
            self.told += 1;
            return Some(std::mem::replace(&mut self.held_back, 0));
        }
        self.held_back += 1;
        None
    }

    /// What was held back in a second that is over, once.
    #[must_use]
    pub fn due(&mut self, now: Duration) -> Option<NonZeroU64> {
        if now.as_secs() == self.second { None } else { self.finish() }
    }

    /// What was held back and not told, once.
    #[must_use]
    pub fn finish(&mut self) -> Option<NonZeroU64> {
        NonZeroU64::new(std::mem::take(&mut self.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn told(limit: &mut Limit, n: u64, now: Duration) -> u64 {
        (0..n).filter(|_| limit.admit(now).is_some()).count() as u64
    }

    /// No more than the limit in a second, and the next line says how many were not told.
    #[test]
    fn the_next_line_tells() {
        let mut limit = Limit::new(5);
        assert_eq!(told(&mut limit, 100, SECOND / 2), 5);
        assert_eq!(limit.admit(SECOND), Some(95));
        assert_eq!(limit.admit(SECOND), Some(0));
        assert_eq!(limit.finish(), None);
    }

    /// Where no line follows, the count is due when the second is over, once.
    #[test]
    fn a_second_that_is_over_tells() {
        let mut limit = Limit::new(5);
        assert_eq!(told(&mut limit, 7, SECOND), 5);
        assert_eq!(limit.due(SECOND + SECOND / 2), None);
        assert_eq!(limit.due(2 * SECOND), NonZeroU64::new(2));
        assert_eq!(limit.due(3 * SECOND), None);
    }

    /// What was held back in the last second is told at the end.
    #[test]
    fn the_end_tells() {
        let mut limit = Limit::new(100);
        assert_eq!(told(&mut limit, 400, SECOND), 100);
        assert_eq!(limit.finish(), NonZeroU64::new(300));
        assert_eq!(limit.finish(), None);
    }

    proptest::proptest! {
        /// Whatever comes when, every event is told or counted, and every count handed out once.
        #[test]
        fn nothing_is_lost(per_second in 0u32..4, times in proptest::collection::vec(0u64..3000, 0..200)) {
            let mut limit = Limit::new(per_second);
            let (mut told, mut counted) = (0, 0);
            for at in &times {
                let now = Duration::from_millis(*at);
                counted += limit.due(now).map_or(0, NonZeroU64::get);
                if let Some(held_back) = limit.admit(now) {
                    told += 1;
                    counted += held_back;
                }
            }
            counted += limit.finish().map_or(0, NonZeroU64::get);
            proptest::prop_assert_eq!(told + counted, times.len() as u64);
        }
    }
}
