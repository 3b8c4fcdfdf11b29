//! What a run that changes over time showed: samples, the steps that it went
//! through, and which statements held.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::add;
use super::lab::Judgement;
use canary_record::names;
use canary_record::names::{Outcome, ProbeEnd};
use canary_record::result::observe::ConntrackCounters;
use canary_record::series;

/// The most samples that a [`Timeline`] holds.
pub const MAX_SAMPLES: usize = 600;

pub use canary_record::names::FailureClass;

/// A run over time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Timeline {
    /// Samples taken; more than the series holds when it was thinned.
    pub samples_taken: u64,
    /// The series, oldest first, at most [`MAX_SAMPLES`]. When it was full, neighbours were
    /// joined: counts added, the highest occupancy kept.
    pub samples: Vec<TimelineSample>,
    /// What was done when, oldest first.
    pub steps: Vec<Step>,
    /// How fast the kernel was with tables of other sizes, where that was measured.
    #[serde(default)]
    pub tables: Vec<TableSpeed>,
    /// Claims and what this run makes of them.
    pub statements: Vec<Statement>,
    /// What weakens these numbers: sources that could not be read, gaps.
    pub reasons: Vec<String>,
}

/// One moment, and what was counted since the sample before.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TimelineSample {
    /// Seconds since the run began, by the monotonic clock: the end of the interval.
    pub t: f64,
    /// Seconds that the counts below cover.
    pub interval_s: f64,
    /// Entries in the table that translates for the client.
    pub entries: u64,
    /// Its limit.
    pub limit: u64,
    /// Connections begun.
    pub attempts: u64,
    /// Connections that ended as they should.
    pub ok: u64,
    /// Connections that failed, by class.
    pub failures: BTreeMap<FailureClass, u64>,
    /// What boom-server judged of the segments that it forged.
    pub boom: BTreeMap<Outcome, u64>,
    /// What conntrack counted on the client's node.
    #[serde(default)]
    pub conntrack: ConntrackCounters,
}

impl TimelineSample {
    /// Connections begun in a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        if self.interval_s > 0.0 { self.attempts as f64 / self.interval_s } else { 0.0 }
    }

    /// Adds the interval that follows.
    fn join(&mut self, later: &Self) {
        add(&mut self.failures, &later.failures);
        add(&mut self.boom, &later.boom);
        (self.t, self.limit) = (later.t, later.limit);
        self.interval_s += later.interval_s;
        self.entries = self.entries.max(later.entries);
        self.attempts += later.attempts;
        self.ok += later.ok;
        self.conntrack = self.conntrack.plus(later.conntrack);
    }
}

impl Timeline {
    /// Whether it is of a situation: of cases, each in hosts of its own, and not of stages that follow
    /// one another and say what claims they bear out.
    #[must_use]
    pub fn of_cases(&self) -> bool {
        self.statements.is_empty() && self.steps.iter().all(|step| step.case.is_some())
    }

    /// Adds the next sample; joins neighbours when the series is full.
    pub fn push(&mut self, sample: TimelineSample) {
        let n = self.samples_taken;
        series::push(&mut self.samples, n, MAX_SAMPLES, sample, |a, b| a.join(&b));
        self.samples_taken += 1;
    }
}

/// A part of the run, from its own time to that of the next.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    /// Seconds since the run began.
    pub t: f64,
    /// What it is, in a few words.
    pub title: String,
    /// Of a situation's case: what it was run with, and the judgement of it alone.
    #[serde(default)]
    pub case: Option<CaseSaid>,
    /// What was changed on entering it.
    pub changes: Vec<Change>,
    /// New connections begun in it.
    pub new_attempts: u64,
    /// Of those, ended as they should.
    pub new_ok: u64,
    /// Of those, failed.
    pub new_failures: BTreeMap<FailureClass, u64>,
    /// What became of connections made before it.
    pub established: BTreeMap<ProbeEnd, u64>,
    /// What boom-server judged of the segments that it forged.
    pub boom: BTreeMap<Outcome, u64>,
    /// What conntrack counted on the client's node.
    pub conntrack: ConntrackCounters,
    /// What it shows, in a sentence; what weakens it.
    pub notes: Vec<String>,
}

/// A case by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CaseSaid {
    /// Its path, family, proxy mode and protections.
    pub setting: String,
    /// Against its expectation.
    pub judgement: Judgement,
}

/// A setting that was changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    /// Its name.
    pub what: String,
    /// The value before, as read.
    pub from: String,
    /// The value after, as read back.
    pub to: String,
}

/// How fast the kernel was with a table of one size: the best of several rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TableSpeed {
    /// Which row it belongs to.
    pub series: TableSeries,
    /// The table's buckets.
    pub buckets: u64,
    /// Its entries.
    pub entries: u64,
    /// Packets forwarded a second on one processor, each of another entry.
    pub packets_per_second: f64,
    /// New TCP connections a second through the Service, one after another.
    pub connections_per_second: f64,
    /// Unswappable kernel memory that came with the entries and buckets, as /proc/meminfo counts it,
    /// in octets; absent where the table is too small for it to show.
    pub memory: Option<u64>,
}

impl TableSpeed {
    /// Entries for each bucket.
    #[must_use]
    pub fn load(&self) -> f64 {
        self.entries as f64 / self.buckets.max(1) as f64
    }
}

names! {
    /// What is the same in a row of tables.
    #[derive(Default)]
    pub enum TableSeries {
        /// The entries, few; the buckets are those of the smallest and of the biggest table, by turns.
        #[default]
        FewEntries = "few-entries",
        /// As many entries as buckets.
        Full = "full",
        /// The entries, many; the buckets become fewer.
        FewerBuckets = "fewer-buckets",
    }
}

/// A claim about the issue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Statement {
    /// The claim.
    pub claim: String,
    /// Who makes it, and where.
    pub source: String,
    /// What this run makes of it.
    pub finding: Finding,
    /// The numbers that say so.
    pub evidence: Vec<String>,
}

names! {
    /// What a run makes of a claim.
    pub enum Finding {
        /// It was seen to be so.
        Holds = "holds",
        /// What it says was seen, and something else than it says led to it.
        HoldsForAnotherReason = "holds-for-another-reason",
        /// It was seen not to be so.
        DoesNotHold = "does-not-hold",
        /// This run shows neither.
        NotShown = "not-shown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A series of any length stays bounded and loses no count and no peak.
    #[test]
    fn a_series_is_bounded_and_complete() {
        let mut series = Timeline::default();
        let n = 10 * MAX_SAMPLES as u64 + 7;
        for i in 0..n {
            series.push(TimelineSample {
                t: i as f64,
                interval_s: 1.0,
                entries: if i == 1234 { 99 } else { 1 },
                attempts: 2,
                ok: 1,
                failures: [(FailureClass::Reset, 1)].into(),
                ..TimelineSample::default()
            });
        }
        assert!(series.samples.len() <= MAX_SAMPLES, "{}", series.samples.len());
        assert_eq!(series.samples_taken, n);
        assert_eq!(series.samples.iter().map(|s| s.attempts).sum::<u64>(), 2 * n);
        assert_eq!(series.samples.iter().map(|s| s.failures[&FailureClass::Reset]).sum::<u64>(), n);
        assert_eq!(series.samples.iter().map(|s| s.entries).max(), Some(99));
        assert!(series.samples.windows(2).all(|w| w[0].t < w[1].t));
        assert!((series.samples[0].rate() - 2.0).abs() < 1e-9);
    }
}
