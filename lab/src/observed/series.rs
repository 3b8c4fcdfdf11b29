//! One series out of what the node's observer and the load's own counts say: pure.

use std::collections::BTreeMap;
use std::ops::Range;

use super::number;
use crate::document::timeline::{FailureClass, Timeline, TimelineSample};
use canary_record::result::load::LoadResult;
use canary_record::result::observe::ObserveResult;

/// Adds the samples of one place. `begun` is when the run began and `watched`
/// when its observer did, both in seconds since 1970.
pub(crate) fn add(
    timeline: &mut Timeline,
    begun: f64,
    watched: f64,
    observer: &ObserveResult,
    loads: &[LoadResult],
) {
    let offset = watched - begun;
    let mut samples: Vec<TimelineSample> = observer
        .samples
        .windows(2)
        .map(|w| TimelineSample {
            t: offset + w[1].t,
            interval_s: w[1].t - w[0].t,
            entries: w[1].entries,
            limit: w[1].limit,
            conntrack: w[1].counters.since(w[0].counters),
            ..TimelineSample::default()
        })
        .collect();
    for load in loads {
        let classes = load.classes();
        let mut given = BTreeMap::new();
        let mut failed_so_far = 0;
        for point in &load.series.points {
            let from = point.at as f64 - begun;
            let end = from + load.series.width_s as f64;
            for (n, part) in parts(&samples, from, end) {
                // Rounded so that the parts add up to the whole.
                let due = |n: u64| {
                    let upto = |part: f64| (n as f64 * part).round() as u64;
                    upto(part.end) - upto(part.start)
                };
                let Some(sample) = samples.get_mut(n) else { continue };
                sample.attempts += due(point.attempts);
                sample.ok += due(point.ok);
                failed_so_far += due(point.failed);
                share(&classes, failed_so_far, &mut given, &mut sample.failures);
            }
        }
    }
    for sample in samples {
        timeline.push(sample);
    }
}

/// Which samples share a time with a point, and from where to where each one's part of it goes,
/// as parts of one: a sample that was late has more of it, and one after a pause no more than
/// its own interval's. Where none does, the next sample has it all.
fn parts(samples: &[TimelineSample], from: f64, end: f64) -> Vec<(usize, Range<f64>)> {
    let shared = |s: &TimelineSample| (s.t.min(end) - (s.t - s.interval_s).max(from)).max(0.0);
    let all: f64 = samples.iter().map(shared).sum();
    if all <= 0.0 {
        let last = samples.len().saturating_sub(1);
        return vec![(samples.partition_point(|s| s.t <= from).min(last), 0.0..1.0)];
    }
    let mut so_far = 0.0;
    let mut parts = Vec::new();
    for (n, shared) in samples.iter().map(shared).enumerate().filter(|(_, shared)| *shared > 0.0) {
        let before = so_far;
        so_far += shared;
        parts.push((n, before / all..so_far / all));
    }
    parts
}

/// How many of a load had not ended when their step did.
pub(crate) fn cut_off(load: &LoadResult) -> u64 {
    number(&load.classes(), FailureClass::Interrupted)
}

/// Gives each class its share of the failures so far, less what it was given:
/// exact for one class and for the sums, in proportion otherwise.
fn share(
    classes: &BTreeMap<FailureClass, u64>,
    failed: u64,
    given: &mut BTreeMap<FailureClass, u64>,
    to: &mut BTreeMap<FailureClass, u64>,
) {
    let all: u64 = classes.values().sum();
    for (class, n) in classes {
        let due = (u128::from(*n) * u128::from(failed.min(all)) / u128::from(all.max(1))) as u64;
        let so_far = given.entry(*class).or_default();
        if due > *so_far {
            *to.entry(*class).or_default() += due - *so_far;
            *so_far = due;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(of: &[(f64, f64)]) -> Vec<TimelineSample> {
        let sample = |(t, interval_s): &(f64, f64)| TimelineSample {
            t: *t,
            interval_s: *interval_s,
            ..TimelineSample::default()
        };
        of.iter().map(sample).collect()
    }

    /// A steady load has a steady rate, also where a sample was late and where samples paused.
    #[test]
    fn a_late_sample_is_no_spike() {
        let mut samples = samples(&[(0.5, 0.5), (1.8, 1.3), (2.3, 0.5), (4.1, 0.4), (5.0, 0.9)]);
        for (from, attempts) in [(0.0, 100), (1.0, 100), (2.0, 30), (3.0, 30), (4.0, 100)] {
            for (n, part) in parts(&samples, from, from + 1.0) {
                let upto = |part: f64| (f64::from(attempts) * part).round() as u64;
                samples[n].attempts += upto(part.end) - upto(part.start);
            }
        }
        // Nothing is lost, and nothing is given twice.
        assert_eq!(samples.iter().map(|s| s.attempts).sum::<u64>(), 360);
        for s in &samples {
            assert!((s.rate() - 100.0).abs() < 5.0, "{} at {}", s.rate(), s.t);
        }
    }

    /// What no sample shares a time with goes to the next, or to the last.
    #[test]
    fn a_pause_loses_nothing() {
        let samples = samples(&[(1.0, 1.0), (9.0, 1.0)]);
        assert_eq!(parts(&samples, 4.0, 5.0), [(1, 0.0..1.0)]);
        assert_eq!(parts(&samples, 20.0, 21.0), [(1, 0.0..1.0)]);
    }

    /// Shares add up to every class's own count.
    #[test]
    fn shares_add_up() {
        let classes = [(FailureClass::Reset, 1), (FailureClass::ConnectTimeout, 9)].into();
        let (mut given, mut to) = (BTreeMap::new(), BTreeMap::new());
        for failed in [0, 3, 3, 7, 10] {
            share(&classes, failed, &mut given, &mut to);
        }
        assert_eq!(to, classes);
    }
}
