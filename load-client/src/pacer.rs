//! When each connection of a worker is to begin. Computed from the start alone:
//! a late connection does not move those after it, so that a slow target shows
//! in the latencies (measured from these times) and not in a smaller load.

use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// The schedule of one worker.
#[derive(Clone, Debug)]
pub(crate) struct Pacer {
    start: Instant,
    mode: Mode,
    ramp: Duration,
}

#[derive(Clone, Debug)]
enum Mode {
    Closed { concurrency: u32 },
    Open { rate: f64, jitter: f64, rng: SmallRng, next: Option<Instant>, n: u64 },
}

/// Whether a connection may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Now; its intended start.
    Now(Instant),
    At(Instant),
    /// Not before another has ended.
    Full,
}

impl Pacer {
    /// A closed loop: `concurrency` in progress, reached after `ramp`.
    pub(crate) fn closed(start: Instant, concurrency: u32, ramp: Duration) -> Self {
        Self { start, ramp, mode: Mode::Closed { concurrency } }
    }

    /// An open loop: `rate` a second, reached after `ramp`. Each start is moved
    /// by up to `jitter` (0 to 1) of the interval to the next, drawn from `seed`.
    pub(crate) fn open(start: Instant, rate: f64, ramp: Duration, jitter: f64, seed: u64) -> Self {
        let rng = SmallRng::seed_from_u64(seed);
        Self { start, ramp, mode: Mode::Open { rate, jitter, rng, next: None, n: 0 } }
    }

    /// Asks for the next turn at `now`, with `in_progress` connections begun and
    /// not ended. A turn given is a turn taken.
    pub(crate) fn turn(&mut self, now: Instant, in_progress: u32) -> Turn {
        let since = now.saturating_duration_since(self.start);
        match &mut self.mode {
            Mode::Closed { concurrency } => {
                let allowed = if since >= self.ramp {
                    *concurrency
                } else {
                    let part = since.as_secs_f64() / self.ramp.as_secs_f64();
                    ((f64::from(*concurrency) * part).ceil() as u32).max(1)
                };
                if in_progress < allowed {
                    Turn::Now(now)
                } else if allowed < *concurrency {
                    Turn::At(now + Duration::from_millis(5))
                } else {
                    Turn::Full
                }
            }
            Mode::Open { rate, jitter, rng, next, n } => {
                let at = *next.get_or_insert_with(|| {
                    let moved = if *jitter > 0.0 { rng.random::<f64>() * *jitter } else { 0.0 };
                    self.start + after(*n as f64 + moved, *rate, self.ramp)
                });
                if at > now {
                    return Turn::At(at);
                }
                *next = None;
                *n += 1;
                Turn::Now(at)
            }
        }
    }

    /// True when turns wait for connections to end, not for times of their own.
    pub(crate) const fn is_closed(&self) -> bool {
        matches!(self.mode, Mode::Closed { .. })
    }

    /// How many turns were due before `end` and not taken, give or take one; those of a closed
    /// loop are due when they are taken.
    pub(crate) fn untaken(&self, end: Instant) -> u64 {
        let Mode::Open { rate, n, next, .. } = self.mode else { return 0 };
        if next.is_some_and(|at| at >= end) {
            return 0;
        }
        let t = end.saturating_duration_since(self.start).as_secs_f64();
        let ramp = self.ramp.as_secs_f64();
        // The inverse of `after`.
        let seconds = if t < ramp { t * t / ramp / 2.0 } else { t - ramp / 2.0 };
        ((rate * seconds).ceil() as u64).saturating_sub(n)
    }

    /// Lets the turns until `now` go by, as if they had never been due. Of a closed loop
    /// none is due before it is asked for.
    pub(crate) fn skip(&mut self, now: Instant) {
        while !self.is_closed() && matches!(self.turn(now, 0), Turn::Now(_)) {}
    }
}

/// When the connection of (fractional) number `n` begins: the inverse of the
/// integral of a rate that grows linearly during the ramp, then stays.
pub(crate) fn after(n: f64, rate: f64, ramp: Duration) -> Duration {
    let ramp = ramp.as_secs_f64();
    let in_ramp = rate * ramp / 2.0;
    let seconds =
        if n < in_ramp { (2.0 * ramp * n / rate).sqrt() } else { ramp + (n - in_ramp) / rate };
    // A rate so small that the next turn is beyond any clock: a year is as good as never.
    Duration::from_secs_f64(seconds.min(31_536_000.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Starts all turns due until `now`, as a worker that is never late.
    fn run(pacer: &mut Pacer, until: Instant) -> Vec<Instant> {
        let mut starts = Vec::new();
        while let Turn::Now(at) = pacer.turn(until, 0) {
            starts.push(at);
        }
        starts
    }

    /// A worker that was away for a second finds every start that it missed, at its own time.
    #[test]
    fn lateness_does_not_thin_the_load() {
        let t = Instant::now();
        let mut pacer = Pacer::open(t, 100.0, Duration::ZERO, 0.0, 1);
        let starts = run(&mut pacer, t + Duration::from_millis(1001));
        assert_eq!(starts.len(), 101);
        for (n, s) in starts.iter().enumerate() {
            let expected = t + Duration::from_millis(10 * n as u64);
            assert!(s.duration_since(expected) < Duration::from_micros(1));
        }
        let next = pacer.turn(t + Duration::from_millis(1001), 0);
        assert!(matches!(next, Turn::At(at) if at > t + Duration::from_millis(1001)));
    }

    /// Turns that go by unused are neither made up for nor late.
    #[test]
    fn skipped_turns_are_gone() {
        let t = Instant::now();
        let mut pacer = Pacer::open(t, 100.0, Duration::ZERO, 0.0, 1);
        assert_eq!(run(&mut pacer, t + Duration::from_millis(101)).len(), 11);
        pacer.skip(t + Duration::from_millis(901));
        let starts = run(&mut pacer, t + Duration::from_millis(1001));
        assert_eq!(starts.len(), 10);
        assert!(starts[0] > t + Duration::from_millis(901));
        let mut closed = Pacer::closed(t, 10, Duration::ZERO);
        closed.skip(t);
        assert_eq!(closed.turn(t, 9), Turn::Now(t));
    }

    /// What was due and not taken is counted, during a ramp and after it; nothing is where every
    /// turn was taken, nor in a closed loop.
    #[test]
    fn untaken_turns_are_counted() {
        let t = Instant::now();
        let at = |ms| t + Duration::from_millis(ms);
        let mut pacer = Pacer::open(t, 100.0, Duration::from_secs(2), 0.0, 1);
        assert_eq!(pacer.untaken(at(1001)), 26);
        assert_eq!(run(&mut pacer, at(1001)).len(), 26);
        assert_eq!((pacer.untaken(at(1001)), pacer.untaken(at(3001))), (0, 175));
        pacer.skip(at(3001));
        assert_eq!(pacer.untaken(at(3001)), 0);
        assert_eq!(Pacer::closed(t, 10, Duration::ZERO).untaken(at(1001)), 0);
        // The one turn of this second comes late in it.
        let mut late = Pacer::open(t, 1.0, Duration::ZERO, 1.0, 1);
        let Turn::At(next) = late.turn(t, 0) else { panic!("a turn at once") };
        assert_eq!(late.untaken(next), 0);
        assert_eq!(late.untaken(next + Duration::from_millis(1)), 1);
    }

    /// During a ramp of 2 s to 100/s there are 100 starts, half of the full rate.
    #[test]
    fn a_ramp_grows_linearly() {
        let t = Instant::now();
        let mut pacer = Pacer::open(t, 100.0, Duration::from_secs(2), 0.0, 1);
        assert_eq!(run(&mut pacer, t + Duration::from_millis(1001)).len(), 26);
        assert_eq!(run(&mut pacer, t + Duration::from_millis(2001)).len(), 75);
        assert_eq!(run(&mut pacer, t + Duration::from_millis(3001)).len(), 100);
    }

    /// A closed loop gives turns up to its concurrency and no more.
    #[test]
    fn a_closed_loop_is_bounded() {
        let t = Instant::now();
        let mut pacer = Pacer::closed(t, 10, Duration::from_secs(1));
        assert_eq!(pacer.turn(t, 0), Turn::Now(t));
        assert!(matches!(pacer.turn(t, 1), Turn::At(_)));
        let half = t + Duration::from_millis(500);
        assert_eq!(pacer.turn(half, 4), Turn::Now(half));
        assert!(matches!(pacer.turn(half, 5), Turn::At(_)));
        assert_eq!(pacer.turn(t + Duration::from_secs(1), 10), Turn::Full);
    }

    proptest! {
        /// Jitter changes no count, keeps the order and stays within its interval.
        #[test]
        fn jitter_keeps_the_rate(seed: u64, jitter in 0.0f64..=1.0, rate in 1.0f64..5000.0) {
            let t = Instant::now();
            let mut pacer = Pacer::open(t, rate, Duration::ZERO, jitter, seed);
            let starts = run(&mut pacer, t + Duration::from_secs(1));
            prop_assert!((starts.len() as f64 - rate).abs() <= 2.0);
            prop_assert!(starts.is_sorted());
            for (n, s) in starts.iter().enumerate() {
                let after = s.duration_since(t).as_secs_f64() - n as f64 / rate;
                prop_assert!(after >= -1e-6 && after <= 1.0 / rate + 1e-6, "{}", after);
            }
        }
    }
}
