//! Joins the results of many load-clients into one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use canary_record::names::{EndedBy, LoadVerdict};
use canary_record::result::load::{HoldRecord, LoadResult};
use canary_record::result::{Clock, ReadError, Run, seconds_between};
use canary_runtime::exit::Usage;

use crate::tally::Tally;
use crate::{forge, report};

/// Reads a result, and holds its counts against one another.
pub(crate) fn read(path: &Path) -> Result<LoadResult, Usage> {
    let name = path.display();
    let bytes = fs::read(path).map_err(|e| Usage(format!("cannot read {name}: {e}")))?;
    // A pod's log is a file too: its last line is the result.
    let text = bytes.trim_ascii_end();
    let last = text.rsplit(|b| *b == b'\n').next().unwrap_or_default();
    let read = LoadResult::read(text).or_else(|whole| match LoadResult::read(last) {
        Err(ReadError::Json(_)) => Err(whole),
        read => read,
    });
    read.map_err(|e| {
        Usage(match e {
            ReadError::Json(e) => format!(
                "{name} is no result of load-client churn, hold or probe, nor a whole log, whose last \
                 line is one: {e}"
            ),
            ReadError::Version(_) => format!("{name} has {e}"),
            ReadError::Sum(attempts) => format!(
                "{name}: its classes do not add up to its {attempts} attempts: the file is damaged"
            ),
        })
    })
}

/// The whole of at least one result: the sums of their counts, from the first begin to the last
/// end. `run` makes its own record from why the first ended.
pub fn join(
    parts: &[(String, LoadResult)],
    run: impl FnOnce(EndedBy) -> Run,
) -> Result<LoadResult, Usage> {
    let (first_name, first) = &parts[0];
    let program = &first.run.program;
    if let Some((name, other)) = parts.iter().find(|(_, r)| r.run.program != *program) {
        return Err(Usage(format!(
            "{first_name} is of {program}, {name} of {}: merge results of one subcommand",
            other.run.program
        )));
    }
    for (n, (name, part)) in parts.iter().enumerate() {
        if let Some((other, _)) = parts[..n].iter().find(|(_, r)| r == part) {
            return Err(Usage(format!("{other} and {name} are the same result: name each once")));
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
    let forged = parts.iter().filter_map(|(_, r)| Some((&r.run, r.forge.as_ref()?)));
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
