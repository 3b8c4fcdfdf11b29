//! Latency histograms: bounded memory, mergeable, three significant digits.

use hdrhistogram::Histogram;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The longest latency told apart; what is longer counts as this.
const MAX_MICROS: u64 = 3_600_000_000;

/// A histogram of durations with microsecond resolution.
#[derive(Clone, Debug)]
pub struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        let bounds = "never: constants that the library accepts";
        Self(Histogram::new_with_bounds(1, MAX_MICROS, 3).expect(bounds))
    }
}

impl Latency {
    /// Counts one duration; below a microsecond counts as one, above an hour as an hour.
    pub fn record(&mut self, d: Duration) {
        self.0.saturating_record((d.as_micros() as u64).max(1));
    }

    /// Adds all that `other` has counted.
    ///
    /// # Panics
    /// Never: both have the same bounds.
    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("equal bounds");
    }

    /// The record that results carry.
    #[must_use]
    pub fn summary(&self) -> LatencySummary {
        let at = |q| self.0.value_at_quantile(q);
        LatencySummary {
            count: self.0.len(),
            min_us: self.0.min(),
            mean_us: self.0.mean(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: self.0.max(),
            buckets: self
                .0
                .iter_recorded()
                .map(|v| (v.value_iterated_to(), v.count_at_value()))
                .collect(),
        }
    }
}

/// A latency histogram as results carry it. Microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LatencySummary {
    /// How many were measured.
    pub count: u64,
    /// Least.
    pub min_us: u64,
    /// Mean.
    pub mean_us: f64,
    /// Median.
    pub p50_us: u64,
    /// 90th percentile.
    pub p90_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// 99.9th percentile.
    pub p999_us: u64,
    /// Greatest.
    pub max_us: u64,
    /// Every bucket in use as (microseconds, count): enough to merge exactly.
    pub buckets: Vec<(u64, u64)>,
}

impl LatencySummary {
    /// The histogram again, so that results of many programs can be merged.
    #[must_use]
    pub fn to_histogram(&self) -> Latency {
        let mut h = Latency::default();
        for &(micros, count) in &self.buckets {
            h.0.saturating_record_n(micros, count);
        }
        h
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An empty histogram says zero everywhere instead of a bound.
    #[test]
    fn empty_is_zero() {
        let s = Latency::default().summary();
        assert_eq!((s.count, s.min_us, s.max_us, s.p99_us), (0, 0, 0, 0));
    }

    /// A field that a later version adds does not make its documents unreadable.
    #[test]
    fn a_new_field_is_no_error() {
        let mut document = serde_json::to_value(Latency::default().summary()).unwrap();
        document["p9999_us"] = 0.into();
        assert!(serde_json::from_value::<LatencySummary>(document).is_ok());
    }

    proptest! {
        /// Two results merged through their records equal one that saw everything.
        #[test]
        fn merging_records_loses_nothing(a in proptest::collection::vec(0u64..5_000_000_000, 0..50), b in proptest::collection::vec(0u64..5_000_000_000, 0..50)) {
            let fill = |v: &[u64]| {
                let mut h = Latency::default();
                for &us in v { h.record(Duration::from_micros(us)); }
                h
            };
            let all = fill(&[a.clone(), b.clone()].concat());
            let mut merged = fill(&a).summary().to_histogram();
            merged.merge(&fill(&b).summary().to_histogram());
            let (all, merged) = (all.summary(), merged.summary());
            prop_assert_eq!(all.count, merged.count);
            let at = |s: &LatencySummary| [s.p50_us, s.p90_us, s.p99_us, s.max_us].map(|us| us as f64);
            for (x, y) in at(&all).into_iter().zip(at(&merged)) {
                prop_assert!((x - y).abs() <= x * 0.002 + 1.0, "{} {}", x, y);
            }
        }
    }
}
