//! Joins the results of many load-clients into one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use canary_record::names::{EndedBy, LoadVerdict};
use canary_record::result::load::{HoldRecord, LoadResult};
use canary_record::result::{Clock, ReadError, Run, SCHEMA_VERSION, seconds_between};

use crate::tally::Tally;
use crate::{forge, report};

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
pub(crate) fn read(path: &Path) -> Result<LoadResult, MergeError> {
    let name = path.display().to_string();
    let bytes = fs::read(path).map_err(|e| MergeError::Read(name.clone(), e))?;
    // A pod's log is a file too: its last line is the result.
    let text = bytes.trim_ascii_end();
    let last = text.rsplit(|b| *b == b'\n').next().unwrap_or_default();
    let read = LoadResult::read(text).or_else(|whole| match LoadResult::read(last) {
        Err(ReadError::Json(_)) => Err(whole),
        read => read,
    });
    read.map_err(|e| match e {
        ReadError::Json(e) => MergeError::Parse(name, e),
        ReadError::Version(other) => MergeError::Version(name, other),
        ReadError::Sum(attempts) => MergeError::Sum(name, attempts),
    })
}

/// The whole of at least one result: the sums of their counts, from the first begin to the last
/// end. `run` makes its own record from why the first ended.
pub fn join(
    parts: &[(String, LoadResult)],
    run: impl FnOnce(EndedBy) -> Run,
) -> Result<LoadResult, MergeError> {
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
    let mut tally = Tally::new(Clock::start());
    let mut hold: Option<HoldRecord> = None;
    let mut reasons = Vec::new();
    for (_, part) in parts {
        tally.merge(Tally::of(part));
        if let Some(h) = part.hold {
            *hold.get_or_insert_default() += h;
        }
        if part.verdict != LoadVerdict::WithinThresholds {
            let why = part.reasons.first().map_or("", String::as_str);
            reasons.push(format!("{}: {}: {why}", part.run.host, part.verdict));
        }
    }
    // RFC 3339 in UTC sorts as text.
    let times = || parts.iter().map(|(_, r)| &r.run);
    let started = times().map(|r| r.started.clone()).min().unwrap_or_default();
    let ended = times().map(|r| r.ended.clone()).max().unwrap_or_default();
    let seconds = seconds_between(&started, &ended).unwrap_or_default();
    let run = Run { seconds, started, ended, ..run(first.run.ended_by) };
    let forged = parts.iter().filter_map(|(_, r)| Some((r.run.host.as_str(), r.forge.as_ref()?)));
    Ok(LoadResult {
        reasons,
        hold,
        forge: forge::join(forged),
        probe: if first.probe.is_empty() { BTreeMap::new() } else { tally.counts.ends() },
        merged: parts.iter().map(|(_, r)| r.merged).sum(),
        ..report::document(run, seconds, &tally)
    })
}

/// The worst of all parts: a crossed threshold before inconclusive before the rest.
pub(crate) fn worst(parts: &[(String, LoadResult)]) -> LoadVerdict {
    let order =
        [LoadVerdict::ThresholdCrossed, LoadVerdict::Inconclusive, LoadVerdict::WithinThresholds];
    let has = |v: &LoadVerdict| parts.iter().any(|(_, r)| r.verdict == *v);
    order.into_iter().find(has).unwrap_or(LoadVerdict::Inconclusive)
}
