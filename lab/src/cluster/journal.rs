//! What `kubectl conntrack experiment` writes down while it runs, and its reading: pure.
//!
//! The journal has one event a line, `[SECONDS, EVENT]` in JSON; the samples are the
//! programs' own metrics, each set after a line `sample SECONDS`.

use std::collections::BTreeMap;

use crate::document::timeline::{Change, FailureClass, Step, TimelineSample};
use crate::observed::saturation::Kind;
use canary_record::names;
use canary_record::names::{EndedBy, Outcome};
use canary_record::prometheus::Sample;
use canary_record::result::load::Cause;
use serde::{Deserialize, Serialize};

names! {
    /// What changes in a step.
    pub enum Purpose {
        /// So many clients and nothing else.
        Load = "load",
        /// A table smaller than the load.
        SmallTable = "small-table",
        /// be_liberal=1 on every node.
        Liberal = "liberal",
    }
}

names! {
    /// What a run was told, and what it read before the first step.
    pub enum Fact {
        /// The cluster's context.
        Context = "context",
        /// When it began.
        Started = "started",
        /// How many clients each step has.
        Clients = "clients",
        /// How long a step is.
        Seconds = "seconds",
        /// The small table's limit, or "none".
        TableSize = "table-size",
        /// 1 where INVALID is not dropped for the run's time.
        HoldOffDrop = "hold-off-drop",
        /// Each node's kernel.
        Kernel = "kernel",
        /// The API server's version.
        Kubernetes = "kubernetes",
        /// When it ended.
        Ended = "ended",
    }
}

/// One line of the journal, after its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// About the whole run.
    Run(Fact, String),
    /// A step begins, with so many clients.
    Step(Purpose, u32),
    /// Samples belong to the step from here ...
    From,
    /// ... to here.
    To,
    /// A setting was changed on entering the step.
    Change(Change),
    /// The target's count of accepted connections, before and after.
    Accepted(u64, u64),
    /// What else was seen in the step.
    Note(String),
    /// What makes the run inconclusive.
    Doubt(String),
    /// When and why it ended.
    End(EndedBy),
}

/// What is said of a line that nobody would have written, the `n`th from 0.
fn wrong(file: &str, n: usize, text: &str) -> String {
    format!("{file}, line {}: '{text}' is no event of kubectl conntrack experiment", n + 1)
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StepRecord {
    /// When it began, what was changed, what else was seen.
    pub(crate) step: Step,
    pub(crate) kind: Kind,
    pub(crate) clients: u32,
    /// Samples after this time belong to it ...
    pub(crate) from: Option<f64>,
    /// ... up to this one.
    pub(crate) to: Option<f64>,
    /// The target's count of accepted connections, before and after.
    pub(crate) accepted: Option<(u64, u64)>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Journal {
    pub(crate) run: BTreeMap<Fact, String>,
    pub(crate) steps: Vec<StepRecord>,
    pub(crate) doubts: Vec<String>,
    /// When and why it ended; none while it runs, or when it was killed.
    pub(crate) end: Option<(f64, EndedBy)>,
    /// The time of the last event.
    pub(crate) last: f64,
}

impl Journal {
    pub(crate) fn value(&self, fact: Fact) -> &str {
        self.run.get(&fact).map_or("", String::as_str)
    }

    /// Reads a journal. A last line that was cut is left out.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let mut journal = Self::default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for (n, line) in whole.lines().enumerate() {
            journal.event(line).ok_or_else(|| wrong("journal", n, line))?;
        }
        Ok(journal)
    }

    fn event(&mut self, line: &str) -> Option<()> {
        let (t, event): (f64, _) = serde_json::from_str(line).ok()?;
        self.last = self.last.max(t);
        let step = self.steps.last_mut();
        match event {
            Event::Run(fact, value) => _ = self.run.insert(fact, value),
            Event::Step(purpose, clients) => {
                let kind = match (purpose, clients) {
                    (Purpose::Load, 0) => Kind::NoLoad,
                    (Purpose::Load, _) => Kind::Clients,
                    (Purpose::SmallTable, _) => Kind::Load,
                    (Purpose::Liberal, _) => Kind::Liberal,
                };
                let step = Step { t, ..Step::default() };
                let (from, to, accepted) = (None, None, None);
                self.steps.push(StepRecord { step, kind, clients, from, to, accepted });
            }
            Event::From => step?.from = Some(t),
            Event::To => step?.to = Some(t),
            Event::Change(change) => step?.step.changes.push(change),
            Event::Accepted(before, after) => step?.accepted = Some((before, after)),
            Event::Note(text) => step?.step.notes.push(text.replace('\n', " ")),
            Event::Doubt(why) => self.doubts.push(why.replace('\n', " ")),
            Event::End(by) => self.end = Some((t, by)),
        }
        Some(())
    }
}

/// The programs' counters at one moment, or what was counted between two.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Reading {
    /// The canary client's connections, boom-server's outcomes, the table on the clients' node.
    pub(crate) sample: TimelineSample,
    /// above-window segments forged.
    pub(crate) forged: u64,
    /// Of those, that reset their connection.
    pub(crate) killed: u64,
    /// What became of them.
    pub(crate) above: BTreeMap<Outcome, u64>,
    /// Segments that boom-server's raw sockets lost.
    pub(crate) lost: u64,
}

/// Reads the samples. A set that was cut at the end of the file counts as it is: each line by itself is whole.
pub(crate) fn samples(text: &str) -> Result<Vec<Reading>, String> {
    let mut all: Vec<Reading> = Vec::new();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for (n, line) in whole.lines().enumerate() {
        let wrong = || wrong("samples", n, line);
        if let Some(t) = line.strip_prefix("sample ") {
            let t = t.parse().map_err(|_| wrong())?;
            let sample = TimelineSample { t, ..TimelineSample::default() };
            all.push(Reading { sample, ..Reading::default() });
        } else {
            let metric = Sample::read(line).ok_or_else(wrong)?;
            all.last_mut().ok_or_else(wrong)?.take(&metric);
        }
    }
    Ok(all)
}

impl Reading {
    fn take(&mut self, m: &Sample<'_>) {
        let (n, s) = (m.value as u64, &mut self.sample);
        match m.name {
            "load_conntrack_entries" => s.entries = n,
            "load_conntrack_limit" => s.limit = n,
            "load_conntrack_drop_total" => s.conntrack.drop = n,
            "load_conntrack_early_drop_total" => s.conntrack.early_drop = n,
            "load_conntrack_insert_failed_total" => s.conntrack.insert_failed = n,
            "load_conntrack_invalid_total" => s.conntrack.invalid = n,
            "load_attempts_total" => s.attempts = n,
            "load_ok_total" => s.ok = n,
            "load_failures_total" => *s.failures.entry(failure_class(m)).or_default() += n,
            "boom_outcomes_total" => {
                let outcome = m.label("outcome").parse().unwrap_or(Outcome::Unknown);
                *s.boom.entry(outcome).or_default() += n;
                if m.label("forgery") == "above-window" {
                    *self.above.entry(outcome).or_default() += n;
                }
            }
            "boom_forged_total" if m.label("forgery") == "above-window" => self.forged += n,
            "boom_killed_total" if m.label("forgery") == "above-window" => self.killed += n,
            "boom_sniffer_dropped_total" => self.lost = n,
            _ => {}
        }
    }

    /// What was counted since `earlier`; the time and the gauges are this one's.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        // A program that began again counts from zero.
        let less = |now: u64, then: u64| if now < then { now } else { now - then };
        let (now, then) = (&self.sample, &earlier.sample);
        Self {
            sample: TimelineSample {
                interval_s: now.t - then.t,
                attempts: less(now.attempts, then.attempts),
                ok: less(now.ok, then.ok),
                failures: each(&now.failures, &then.failures, less),
                boom: each(&now.boom, &then.boom, less),
                conntrack: now.conntrack.since(then.conntrack),
                ..*now
            },
            forged: less(self.forged, earlier.forged),
            killed: less(self.killed, earlier.killed),
            above: each(&self.above, &earlier.above, less),
            lost: less(self.lost, earlier.lost),
        }
    }
}

fn each<K: Ord + Copy>(
    now: &BTreeMap<K, u64>,
    then: &BTreeMap<K, u64>,
    less: impl Fn(u64, u64) -> u64,
) -> BTreeMap<K, u64> {
    let one = |(k, n): (&K, &u64)| (*k, less(*n, then.get(k).copied().unwrap_or(0)));
    now.iter().map(one).filter(|(_, n)| *n > 0).collect()
}

/// The class of a failure that a client's metric counts.
fn failure_class(sample: &Sample<'_>) -> FailureClass {
    let (phase, cause) = (sample.label("phase").parse(), Cause::from_words(sample.label("cause")));
    match (phase, cause) {
        (Ok(phase), Some(cause)) => FailureClass::of(phase, cause),
        _ => FailureClass::Other,
    }
}
