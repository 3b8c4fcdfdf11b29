//! Counts over time in bounded memory: when all points are in use, neighbours
//! are joined and every point is twice as wide. Points begin at multiples of
//! their width since 1970, so that those of many programs can be joined.

use canary_record::result::load::{Series, SeriesPoint};

/// The most points.
const POINTS: usize = 1024;
/// Steps of the coarse histogram: 4 an octave, from 1 µs to over an hour.
pub(crate) const BUCKETS: usize = 132;

/// The step of a latency.
pub(crate) const fn bucket(us: u64) -> usize {
    if us < 4 {
        return us as usize;
    }
    let octave = us.ilog2();
    // The two bits below the leading one.
    let step = (us >> (octave - 2)) & 3;
    let at = (octave as usize - 1) * 4 + step as usize;
    if at < BUCKETS { at } else { BUCKETS - 1 }
}

/// The greatest latency of a step.
pub(crate) const fn upper(bucket: usize) -> u64 {
    if bucket < 4 {
        return bucket as u64;
    }
    let (octave, step) = (bucket / 4 + 1, (bucket % 4) as u64);
    ((5 + step) << (octave - 2)) - 1
}

/// The latency below which this percentage of those in `steps` lies; none where there is none.
pub(crate) fn quantile(steps: &[u64; BUCKETS], percent: u64) -> Option<u64> {
    let total: u64 = steps.iter().sum();
    let wanted = total - total * (100 - percent) / 100;
    let mut below = 0;
    let at = steps.iter().position(|n| {
        below += n;
        total > 0 && below >= wanted
    });
    at.map(upper)
}

/// What is counted of one interval.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) counts: SeriesPoint,
    /// Total latencies by [`bucket`].
    pub(crate) latency: [u32; BUCKETS],
}

/// The series of one worker, or of several joined.
#[derive(Clone, Debug)]
pub(crate) struct TimeSeries {
    width: u64,
    points: Vec<Point>,
}

impl Default for TimeSeries {
    fn default() -> Self {
        // Written once, so that a long run's memory is resident from the start; not with
        // zeros, which the optimizer turns into pages that nobody has touched.
        let used = Point { counts: SeriesPoint::default(), latency: [1; BUCKETS] };
        let mut points = vec![used; POINTS];
        points.clear();
        Self { width: 1, points }
    }
}

impl TimeSeries {
    fn widen(&mut self) {
        self.width *= 2;
        let old = std::mem::take(&mut self.points);
        for p in old {
            self.add(&p);
        }
    }

    /// The point of second `at`. Time does not go back by more than the last
    /// point's width; what comes late counts there.
    pub(crate) fn point(&mut self, at: u64) -> &mut Point {
        let mut begin = at - at % self.width;
        let is_new = |me: &Self, begin| me.points.last().is_none_or(|p| p.counts.at < begin);
        // Points that lie apart may stay apart at twice the width.
        while self.points.len() >= POINTS && is_new(self, begin) {
            self.widen();
            begin = at - at % self.width;
        }
        if is_new(self, begin) {
            let counts = SeriesPoint { at: begin, ..SeriesPoint::default() };
            self.points.push(Point { counts, latency: [0; BUCKETS] });
        }
        let last = self.points.len() - 1;
        &mut self.points[last]
    }

    fn add(&mut self, other: &Point) {
        let mine = self.point(other.counts.at);
        mine.counts.attempts += other.counts.attempts;
        mine.counts.ok += other.counts.ok;
        mine.counts.failed += other.counts.failed;
        mine.counts.local += other.counts.local;
        mine.counts.p99_us = mine.counts.p99_us.max(other.counts.p99_us);
        for (a, b) in mine.latency.iter_mut().zip(other.latency) {
            *a = a.saturating_add(b);
        }
    }

    /// Both together.
    pub(crate) fn join(mut self, mut other: Self) -> Self {
        while self.width < other.width {
            self.widen();
        }
        while other.width < self.width {
            other.widen();
        }
        let mut all: Vec<_> = self.points.into_iter().chain(other.points).collect();
        all.sort_by_key(|p| p.counts.at);
        let mut joined = Self { width: self.width, points: Vec::new() };
        for p in all {
            joined.add(&p);
        }
        joined
    }

    /// As results carry it.
    pub(crate) fn record(&self) -> Series {
        let points = self.points.iter().map(|p| {
            let p99_us = quantile(&p.latency.map(u64::from), 99);
            SeriesPoint { p99_us: p99_us.unwrap_or(p.counts.p99_us), ..p.counts }
        });
        Series { width_s: self.width, points: points.collect() }
    }

    /// From a result, so that results can be joined.
    pub(crate) fn from_record(series: &Series) -> Self {
        let point = |c: &SeriesPoint| Point { counts: *c, latency: [0; BUCKETS] };
        Self { width: series.width_s.max(1), points: series.points.iter().map(point).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every latency is in a step that ends at it or less than a quarter above.
    #[test]
    fn steps_are_within_a_quarter() {
        for us in (0..100_000).chain([1 << 31, 3_600_000_000]) {
            let top = upper(bucket(us));
            assert!(top >= us && top - us <= us / 4, "{us} {top}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    /// However long the run, memory is bounded and no count is lost.
    #[test]
    fn a_long_course_is_bounded() {
        let mut series = TimeSeries::default();
        for at in 1_000_000..1_010_000 {
            let p = series.point(at);
            p.counts.attempts += 1;
            p.counts.ok += 1;
            p.counts.failed += 1;
            p.counts.local += u64::from(at % 2 == 0);
            p.latency[bucket(100)] += 1;
        }
        let s = series.record();
        assert!(s.points.len() <= POINTS && s.width_s.is_power_of_two());
        let sum = |f: fn(&SeriesPoint) -> u64| s.points.iter().map(f).sum::<u64>();
        assert_eq!(sum(|p| p.attempts), 10_000);
        assert_eq!((sum(|p| p.ok), sum(|p| p.failed), sum(|p| p.local)), (10_000, 10_000, 5_000));
        assert!(s.points.iter().all(|p| p.at % s.width_s == 0 && p.p99_us == upper(bucket(100))));
    }

    /// Seconds with much time between them take no more room than others.
    #[test]
    fn a_sparse_course_is_bounded() {
        let mut series = TimeSeries::default();
        for n in 0..5_000 {
            series.point(1_000_000 + 60 * n).counts.attempts += 1;
        }
        let s = series.record();
        assert!((POINTS / 4..=POINTS).contains(&s.points.len()), "{}", s.points.len());
        assert_eq!(s.points.iter().map(|p| p.attempts).sum::<u64>(), 5_000);
    }

    proptest! {
        /// Joined courses hold what both held, at the same times.
        #[test]
        fn joining_loses_nothing(
            a in proptest::collection::vec(0u64..3000, 0..200),
            b in proptest::collection::vec(0u64..30, 0..200),
        ) {
            let series = |mut v: Vec<u64>| {
                v.sort_unstable();
                let mut c = TimeSeries::default();
                for at in v { c.point(at).counts.attempts += 1; }
                c
            };
            let (n, joined) = (a.len() + b.len(), series(a).join(series(b)).record());
            prop_assert_eq!(joined.points.iter().map(|p| p.attempts).sum::<u64>(), n as u64);
            prop_assert!(joined.points.is_sorted_by(|a, b| a.at < b.at));
            let again = TimeSeries::from_record(&joined).record();
            prop_assert_eq!(again, joined);
        }
    }
}
