//! Joins the results of many load-clients into one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use canary_record::hist::Latency;
use canary_record::names::{Phase, Verdict};
use canary_record::result::SCHEMA_VERSION;
use canary_record::result::load::{Cause, HoldRecord, LoadResult};

use crate::series::Course;

/// A file that cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// It cannot be read.
    #[error("cannot read {0}: {1}")]
    Read(String, std::io::Error),
    /// It is no result of load-client.
    #[error(
        "{0} is no result of load-client churn, hold or probe, nor a whole log, whose last line is one: {1}"
    )]
    Parse(String, serde_json::Error),
    /// Another version's.
    #[error("{0} has schema_version {1}, this program reads {SCHEMA_VERSION}")]
    Version(String, u32),
    /// The same run twice.
    #[error("{0} and {1} are the same result: name each once")]
    Twice(String, String),
    /// Apples and pears.
    #[error("{0} is of {1}, {2} of {3}: merge results of one subcommand")]
    Mixed(String, String, String, String),
    /// Its own sum is wrong.
    #[error("{0}: its classes do not add up to its {1} attempts: the file is damaged")]
    Sum(String, u64),
}

/// Reads a result, and holds its counts against one another.
pub fn read(path: &Path) -> Result<LoadResult, MergeError> {
    let name = path.display().to_string();
    let bytes = fs::read(path).map_err(|e| MergeError::Read(name.clone(), e))?;
    // A pod's log is a file too: its last line is the result.
    let text = bytes.trim_ascii_end();
    let last = text.rsplit(|b| *b == b'\n').next().unwrap_or_default();
    let result: LoadResult = serde_json::from_slice(text)
        .or_else(|whole| serde_json::from_slice(last).map_err(|_| whole))
        .map_err(|e| MergeError::Parse(name.clone(), e))?;
    if result.schema_version != SCHEMA_VERSION {
        return Err(MergeError::Version(name, result.schema_version));
    }
    if !result.adds_up() {
        return Err(MergeError::Sum(name, result.attempts));
    }
    Ok(result)
}

/// What of the parts makes up the whole. `run` of the whole is the caller's.
#[derive(Debug)]
pub struct Joined {
    /// The whole, with the first part's run.
    pub result: LoadResult,
    /// From the first begin to the last end, in RFC 3339.
    pub started: String,
    /// The last end.
    pub ended: String,
}

/// Joins at least one result.
pub fn join(parts: &[(String, LoadResult)]) -> Result<Joined, MergeError> {
    let (first_name, first) = &parts[0];
    if let Some((name, other)) = parts.iter().find(|(_, r)| r.run.program != first.run.program) {
        return Err(MergeError::Mixed(
            first_name.clone(),
            first.run.program.clone(),
            name.clone(),
            other.run.program.clone(),
        ));
    }
    for (n, (name, part)) in parts.iter().enumerate() {
        if let Some((other, _)) = parts[..n].iter().find(|(_, r)| r == part) {
            return Err(MergeError::Twice(other.clone(), name.clone()));
        }
    }
    let mut whole = first.clone();
    let (mut connect, mut total) = (Latency::new(), Latency::new());
    let mut failures: BTreeMap<(Phase, Cause), (bool, u64)> = BTreeMap::new();
    let mut course = Course::default();
    (whole.attempts, whole.ok, whole.bytes_received, whole.own_resets) = (0, 0, 0, 0);
    (whole.merged, whole.never_begun, whole.hold, whole.preflight) = (0, 0, None, None);
    whole.probe.clear();
    whole.reasons.clear();
    for (_, part) in parts {
        whole.attempts += part.attempts;
        whole.never_begun += part.never_begun;
        whole.ok += part.ok;
        whole.bytes_received += part.bytes_received;
        whole.own_resets += part.own_resets;
        whole.merged += part.merged;
        for f in &part.failures {
            failures.entry((f.phase, f.cause)).or_insert((f.local, 0)).1 += f.count;
        }
        for (end, n) in &part.probe {
            *whole.probe.entry(*end).or_default() += n;
        }
        connect.merge(&part.connect_latency.to_histogram());
        total.merge(&part.total_latency.to_histogram());
        course = course.join(Course::from_record(&part.series));
        if let Some(h) = part.hold {
            whole.hold = Some(add(whole.hold.unwrap_or_default(), h));
        }
        if part.verdict != Verdict::Protected {
            let why = part.reasons.first().map_or("", String::as_str);
            whole.reasons.push(format!("{}: {}: {why}", part.run.host, part.verdict));
        }
    }
    whole.failures = failures
        .into_iter()
        .map(|((phase, cause), (local, count))| canary_record::result::load::FailureCount {
            phase,
            cause,
            local,
            count,
        })
        .collect();
    whole.connect_latency = connect.summary();
    whole.total_latency = total.summary();
    whole.series = course.record();
    let earliest = |a: &String, b: &String| a.cmp(b);
    let started = parts.iter().map(|(_, r)| &r.run.started).min_by(|a, b| earliest(a, b));
    let ended = parts.iter().map(|(_, r)| &r.run.ended).max_by(|a, b| earliest(a, b));
    Ok(Joined {
        started: started.cloned().unwrap_or_default(),
        ended: ended.cloned().unwrap_or_default(),
        result: whole,
    })
}

/// The worst of all parts: vulnerable before inconclusive before protected.
#[must_use]
pub fn worst(parts: &[(String, LoadResult)]) -> Verdict {
    let has = |v| parts.iter().any(|(_, r)| r.verdict == v);
    if has(Verdict::Vulnerable) {
        Verdict::Vulnerable
    } else if has(Verdict::Inconclusive) {
        Verdict::Inconclusive
    } else {
        Verdict::Protected
    }
}

fn add(a: HoldRecord, b: HoldRecord) -> HoldRecord {
    HoldRecord {
        wanted: a.wanted + b.wanted,
        most_open: a.most_open + b.most_open,
        open_at_end: a.open_at_end + b.open_at_end,
        lost: a.lost + b.lost,
        replaced: a.replaced + b.replaced,
        exchanges: a.exchanges + b.exchanges,
    }
}
