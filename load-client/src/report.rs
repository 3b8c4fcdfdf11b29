//! From counts to the result document, and out.

use std::path::Path;
use std::time::Duration;

use canary_record::names::EndedBy;
use canary_record::result::load::LoadResult;
use canary_record::result::{Clock, Config, Run, SCHEMA_VERSION};
use canary_runtime::exit::{Exit, Usage};
use canary_runtime::output::{ResultFile, print_result, termination_message};
use serde::Serialize;

use crate::tally::Tally;

/// Where a run's result goes, opened before the run begins.
#[derive(Debug)]
pub(crate) struct Report {
    clock: Clock,
    program: &'static str,
    config: Config,
    file: Option<ResultFile>,
}

impl Report {
    /// Shows that `output` can be written, and starts the clock.
    pub(crate) fn begin(
        program: &'static str,
        config: Config,
        output: Option<&Path>,
    ) -> Result<Self, Usage> {
        let file = ResultFile::option(output)?;
        Ok(Self { clock: Clock::start(), program, config, file })
    }

    pub(crate) fn run(&self, ended_by: EndedBy) -> Run {
        self.clock.run(self.program, env!("CARGO_PKG_VERSION"), ended_by, self.config.clone())
    }

    /// The document of churn, hold and probe. No connection begins after `duration`.
    pub(crate) fn load_result(
        &self,
        tally: &Tally,
        ended_by: EndedBy,
        duration: Option<Duration>,
    ) -> LoadResult {
        let run = self.run(ended_by);
        let begun_s = duration.map_or(run.seconds, |d| run.seconds.min(d.as_secs_f64()));
        document(run, begun_s, tally)
    }

    /// Writes the document to the file and as the last line of stdout; on a
    /// terminal `summary` stands there instead. What cannot be written keeps nothing
    /// else from being written, is told on stderr, and leaves of `exit` what was found.
    pub(crate) fn finish(&self, result: &impl Serialize, summary: &str, exit: Exit) -> Exit {
        let filed = self.file.as_ref().and_then(|file| file.write(result).err());
        // In a pod, what `kubectl describe` shows.
        if let Err(e) = termination_message(None, &one_line(summary)) {
            tracing::warn!(error = %e, "no termination message");
        }
        let printed = print_result(result, || summary.to_owned()).err();
        let printed = printed.map(|e| format!("cannot write the result to stdout: {e}"));
        let failures = [filed.map(|e| e.to_string()), printed];
        failures.iter().flatten().for_each(|e| eprintln!("error: {e}"));
        exit.unless(failures.iter().any(Option::is_some))
    }
}

/// What was counted as a document, not judged yet.
pub(crate) fn document(run: Run, begun_s: f64, tally: &Tally) -> LoadResult {
    let counts = &tally.counts;
    LoadResult {
        schema_version: SCHEMA_VERSION,
        run,
        attempts: counts.attempts,
        begun_s,
        never_begun: counts.never_begun,
        ok: counts.ok,
        failures: counts.failures(),
        connect_latency: tally.connect.summary(),
        total_latency: tally.total.summary(),
        bytes_received: counts.bytes,
        own_resets: counts.own_resets,
        series: tally.series.record(),
        merged: 1,
        ..LoadResult::default()
    }
}

fn one_line(summary: &str) -> String {
    let lines: Vec<_> = summary.lines().map(str::trim).collect();
    lines.join("; ")
}

/// The exit code of a result: what crossed a threshold or is vulnerable comes before what
/// proved nothing.
pub(crate) fn exit(r: &LoadResult) -> Exit {
    if r.run.ended_by == EndedBy::Error {
        return Exit::Failed;
    }
    let all = [Some(r.verdict.into()), r.forge.as_ref().map(|f| f.verdict.into())];
    let worst =
        [Exit::Vulnerable, Exit::Inconclusive].into_iter().find(|e| all.contains(&Some(*e)));
    worst.unwrap_or(Exit::Ok)
}

/// A few lines for a person.
pub(crate) fn summary(r: &LoadResult) -> String {
    use std::fmt::Write as _;
    let mut s = format!(
        "{}: {} ({} connections in {:.1} s, {:.0}/s; {} ok)",
        r.run.program,
        r.verdict,
        r.attempts,
        r.run.seconds,
        crate::threshold::rate(r),
        r.ok
    );
    if let Some(f) = &r.forge {
        let _ = write!(s, "\n  forged segments, {}: {}", f.direction, f.verdict);
        for o in &f.outcomes {
            let each: Vec<_> = o.counts.each().map(|(what, n)| format!("{n} {what}")).collect();
            let _ = write!(
                s,
                "\n    {} {}: {} forged: {}; {} killed",
                o.forgery,
                o.family,
                o.forged,
                each.join(", "),
                o.counts.killed
            );
        }
        for reason in &f.reasons {
            let _ = write!(s, "\n    {reason}");
        }
    }
    for (end, n) in &r.probe {
        let _ = write!(s, "\n  {end:<12} {n}");
    }
    for f in &r.failures {
        let _ = write!(s, "\n  {f}");
    }
    if let Some(h) = r.hold {
        let _ = write!(
            s,
            "\n  held {} of {} at the end, at most {}; {} lost, {} replaced, {} exchanges",
            h.open_at_end, h.wanted, h.most_open, h.lost, h.replaced, h.exchanges
        );
    }
    for reason in &r.reasons {
        let _ = write!(s, "\n  {reason}");
    }
    s
}

#[cfg(test)]
mod tests {
    use canary_record::names::{Errno, Phase, ProbeEnd};
    use canary_record::result::load::Cause;

    use super::*;

    /// A result that cannot be written makes a success a failure, and hides nothing that was found.
    #[test]
    fn a_lost_result_leaves_what_was_found() {
        let full = Some(Path::new("/dev/full"));
        let report = Report::begin("load-client merge", Config::new(), full).unwrap();
        for (found, ends) in [
            (Exit::Ok, Exit::Failed),
            (Exit::Vulnerable, Exit::Vulnerable),
            (Exit::Inconclusive, Exit::Inconclusive),
        ] {
            assert_eq!(report.finish(&0, "", found), ends);
        }
    }

    /// The termination message alone has every count, for a result whose log is lost.
    #[test]
    fn the_termination_message_carries_every_count() {
        let now = std::time::Instant::now();
        let mut tally = Tally::new(Clock::start());
        for cause in Cause::all() {
            tally.begin(now);
            tally.fail(now, (Phase::Receive, cause));
        }
        tally.begin(now);
        tally.fail(now, (Phase::Connect, Cause::Errno(Errno::Emfile)));
        for _ in 0..1000 {
            tally.begin(now);
            tally.ok(now, std::time::Duration::from_millis(1));
        }
        let report = Report::begin("load-client probe", Config::new(), None).unwrap();
        let mut result = report.load_result(&tally, EndedBy::Sigterm, None);
        result.probe = [(ProbeEnd::Survived, 1000), (ProbeEnd::Hung, 3)].into();
        crate::verdict::judge(&mut result, &[]);
        let message = one_line(&summary(&result));
        assert!(!message.contains('\n'));
        let sums = format!("({} connections in ", result.attempts);
        for part in
            result.failures.iter().map(ToString::to_string).chain([sums, "; 1000 ok)".into()])
        {
            assert!(message.contains(&part), "{part} in {message}");
        }
    }
}
