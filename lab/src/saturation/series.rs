//! One series out of what the node's observer and the load's own counts say: pure.

use std::collections::BTreeMap;

use canary_common::result::load::LoadResult;
use canary_common::result::observe::ObserveResult;
use canary_common::result::timeline::{FailureClass, Timeline, TimelineSample};

/// Adds the samples of one place. `begun` is when the run began and `watched`
/// when its observer did, both in seconds since 1970.
pub fn add(
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
        let classes = classes(load);
        let mut given = BTreeMap::new();
        let mut failed_so_far = 0;
        for point in &load.series.points {
            let from = point.at as f64 - begun;
            let end = from + load.series.width_s as f64;
            let last = samples.len().saturating_sub(1);
            // The samples that end within the point's time, or else the next.
            let first = samples.partition_point(|s| s.t <= from).min(last);
            let beyond = samples.partition_point(|s| s.t <= end).max(first + 1);
            let within = samples.get_mut(first..beyond).unwrap_or_default();
            let parts = within.len() as u64;
            for (part, sample) in within.iter_mut().enumerate() {
                let due = |n: u64| n * (part as u64 + 1) / parts - n * part as u64 / parts;
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

/// A load's failures by class.
#[must_use]
pub fn classes(load: &LoadResult) -> BTreeMap<FailureClass, u64> {
    let mut classes = BTreeMap::new();
    for f in &load.failures {
        *classes.entry(FailureClass::of(f)).or_default() += f.count;
    }
    classes
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
