//! What `kubectl conntrack experiment` wrote down while it ran: pure.
//!
//! The journal has one event a line, `SECONDS WORD REST`; the samples are the programs' own
//! metrics, each set after a line `sample SECONDS`.

use std::collections::BTreeMap;

use crate::document::timeline::{Change, FailureClass};
use canary_record::names::{EndedBy, Outcome};
use canary_record::prometheus::Sample;
use canary_record::result::load::Cause;
use canary_record::result::observe::ConntrackCounters;

/// A line that nobody would have written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}, line {line}: '{text}' is no event of kubectl conntrack experiment")]
pub struct JournalError {
    file: &'static str,
    line: usize,
    text: String,
}

/// What a step is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// So many clients and nothing else.
    Load,
    /// A table smaller than the load.
    SmallTable,
    /// be_liberal=1 on every node.
    Liberal,
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepRecord {
    /// When it began.
    pub t: f64,
    /// What for.
    pub purpose: Purpose,
    /// How many clients it asked for.
    pub clients: u64,
    /// Samples after this time belong to it ...
    pub from: Option<f64>,
    /// ... up to this one.
    pub to: Option<f64>,
    /// What was changed.
    pub changes: Vec<Change>,
    /// The target's count of accepted connections, before and after.
    pub accepted: Option<(u64, u64)>,
    /// What else was seen.
    pub notes: Vec<String>,
}

/// The whole run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Journal {
    /// What it was told, and what it read before the first step.
    pub run: BTreeMap<String, String>,
    /// In their order.
    pub steps: Vec<StepRecord>,
    /// What makes it inconclusive.
    pub doubts: Vec<String>,
    /// When and why it ended; none while it runs, or when it was killed.
    pub end: Option<(f64, EndedBy)>,
    /// The time of the last event.
    pub last: f64,
}

impl Journal {
    /// One of `run`'s.
    #[must_use]
    pub fn value(&self, key: &str) -> &str {
        self.run.get(key).map_or("", String::as_str)
    }

    /// Reads a journal. A last line that was cut is left out.
    pub fn read(text: &str) -> Result<Self, JournalError> {
        let mut journal = Self::default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for (n, line) in whole.lines().enumerate() {
            journal.event(line).ok_or_else(|| JournalError {
                file: "journal",
                line: n + 1,
                text: line.to_owned(),
            })?;
        }
        Ok(journal)
    }

    fn event(&mut self, line: &str) -> Option<()> {
        let (t, event) = line.split_once(' ')?;
        let t: f64 = t.parse().ok()?;
        let (word, rest) = event.split_once(' ').unwrap_or((event, ""));
        let words: Vec<_> = rest.split(' ').collect();
        self.last = self.last.max(t);
        match (word, &words[..]) {
            ("run", [key, ..]) => {
                let value = rest[key.len()..].trim_start();
                self.run.insert((*key).to_owned(), value.to_owned());
            }
            ("step", [purpose, clients]) => self.steps.push(StepRecord {
                t,
                purpose: match *purpose {
                    "load" => Purpose::Load,
                    "small-table" => Purpose::SmallTable,
                    "liberal" => Purpose::Liberal,
                    _ => return None,
                },
                clients: clients.parse().ok()?,
                from: None,
                to: None,
                changes: Vec::new(),
                accepted: None,
                notes: Vec::new(),
            }),
            ("from", _) => self.steps.last_mut()?.from = Some(t),
            ("to", _) => self.steps.last_mut()?.to = Some(t),
            ("change", [what, from, to]) => {
                let change = Change {
                    what: (*what).to_owned(),
                    from: (*from).to_owned(),
                    to: (*to).to_owned(),
                };
                self.steps.last_mut()?.changes.push(change);
            }
            ("accepted", [before, after]) => {
                self.steps.last_mut()?.accepted = Some((before.parse().ok()?, after.parse().ok()?));
            }
            ("note", _) => self.steps.last_mut()?.notes.push(rest.to_owned()),
            ("doubt", _) => self.doubts.push(rest.to_owned()),
            ("end", [by]) => self.end = Some((t, by.parse().ok()?)),
            _ => return None,
        }
        Some(())
    }
}

/// The programs' counters at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// Seconds since the run began.
    pub t: f64,
    /// Entries on the clients' node.
    pub entries: u64,
    /// Their limit.
    pub limit: u64,
    /// Conntrack's counters there.
    pub conntrack: ConntrackCounters,
    /// The canary client's connections.
    pub attempts: u64,
    /// Of those, ended as they should.
    pub ok: u64,
    /// Of those, failed.
    pub failures: BTreeMap<FailureClass, u64>,
    /// boom-server's outcomes.
    pub boom: BTreeMap<Outcome, u64>,
    /// above-window segments forged.
    pub forged: u64,
    /// Of those, that reset their connection.
    pub killed: u64,
}

/// Reads the samples. A set that was cut at the end of the file counts as it is: each line by itself is whole.
pub fn samples(text: &str) -> Result<Vec<Reading>, JournalError> {
    let mut all: Vec<Reading> = Vec::new();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for (n, line) in whole.lines().enumerate() {
        let wrong = || JournalError { file: "samples", line: n + 1, text: line.to_owned() };
        if let Some(t) = line.strip_prefix("sample ") {
            all.push(Reading { t: t.parse().map_err(|_| wrong())?, ..Reading::default() });
        } else {
            let metric = Sample::read(line).ok_or_else(wrong)?;
            all.last_mut().ok_or_else(wrong)?.take(&metric);
        }
    }
    Ok(all)
}

impl Reading {
    fn take(&mut self, m: &Sample<'_>) {
        let n = m.value as u64;
        match m.name {
            "load_conntrack_entries" => self.entries = n,
            "load_conntrack_limit" => self.limit = n,
            "load_conntrack_drop_total" => self.conntrack.drop = n,
            "load_conntrack_early_drop_total" => self.conntrack.early_drop = n,
            "load_conntrack_insert_failed_total" => self.conntrack.insert_failed = n,
            "load_conntrack_invalid_total" => self.conntrack.invalid = n,
            "load_attempts_total" => self.attempts = n,
            "load_ok_total" => self.ok = n,
            "load_failures_total" => {
                *self.failures.entry(failure_class(m)).or_default() += n;
            }
            "boom_outcomes_total" => {
                let outcome = m.label("outcome").parse().unwrap_or(Outcome::Unknown);
                *self.boom.entry(outcome).or_default() += n;
            }
            "boom_forged_total" if m.label("forgery") == "above-window" => self.forged += n,
            "boom_killed_total" if m.label("forgery") == "above-window" => self.killed += n,
            _ => {}
        }
    }

    /// What was counted since `earlier`; the times and the gauges are this one's.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        // A program that began again counts from zero.
        let less = |now: u64, then: u64| if now < then { now } else { now - then };
        Self {
            attempts: less(self.attempts, earlier.attempts),
            ok: less(self.ok, earlier.ok),
            failures: each(&self.failures, &earlier.failures, less),
            boom: each(&self.boom, &earlier.boom, less),
            forged: less(self.forged, earlier.forged),
            killed: less(self.killed, earlier.killed),
            conntrack: self.conntrack.since(earlier.conntrack),
            ..*self
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
