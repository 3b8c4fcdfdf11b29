//! `--fail-on`: a measure, a comparison, a value.

use std::fmt;
use std::str::FromStr;

use canary_record::names::FailureClass;
use canary_record::result::load::{LoadResult, ThresholdRecord};
use canary_runtime::cli::duration;

/// What is compared: its name, whether it is a latency, and how it is read off a result.
type Measure = (&'static str, bool, fn(&LoadResult) -> f64);

const MEASURES: &[Measure] = &[
    ("reset", false, |r| failures(r, FailureClass::Reset)),
    ("stall", false, |r| failures(r, FailureClass::Hung)),
    ("connect-timeout", false, |r| failures(r, FailureClass::ConnectTimeout)),
    ("refused", false, |r| failures(r, FailureClass::Refused)),
    ("early-eof", false, |r| failures(r, FailureClass::EarlyEof)),
    ("bad-answer", false, |r| failures(r, FailureClass::BadAnswer)),
    ("local-limit", false, |r| failures(r, FailureClass::LocalLimit)),
    // Held connections.
    ("lost", false, |r| r.hold.map_or(0, |h| h.lost) as f64),
    ("failures", false, |r| r.classes().values().sum::<u64>() as f64),
    (ERROR_RATE, false, error_rate),
    ("rate", false, rate),
    ("p50", true, |r| r.total_latency.p50_us as f64),
    ("p90", true, |r| r.total_latency.p90_us as f64),
    ("p99", true, |r| r.total_latency.p99_us as f64),
    ("p999", true, |r| r.total_latency.p999_us as f64),
    ("max", true, |r| r.total_latency.max_us as f64),
    ("connect-p50", true, |r| r.connect_latency.p50_us as f64),
    ("connect-p90", true, |r| r.connect_latency.p90_us as f64),
    ("connect-p99", true, |r| r.connect_latency.p99_us as f64),
    ("connect-p999", true, |r| r.connect_latency.p999_us as f64),
    ("connect-max", true, |r| r.connect_latency.max_us as f64),
];

/// The one measure that has an upper end.
const ERROR_RATE: &str = "error-rate";

/// A comparison: its sign, and what was measured held against the value.
type Op = (&'static str, fn(&f64, &f64) -> bool);

/// Those that begin alike: the longer first.
const OPS: &[Op] = &[(">=", f64::ge), ("<=", f64::le), (">", f64::gt), ("<", f64::lt)];

/// One `--fail-on`.
#[derive(Clone, Copy, Debug)]
pub struct Threshold {
    measure: &'static Measure,
    op: &'static Op,
    /// Microseconds for latencies.
    value: f64,
}

impl FromStr for Threshold {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let form = || {
            format!(
                "'{s}' is no threshold: write for example reset>0, error-rate>0.01 or p99>200ms"
            )
        };
        let at = s.find(['<', '>']).ok_or_else(form)?;
        let (name, rest) = (s[..at].trim(), &s[at..]);
        let op = OPS.iter().find(|(sign, _)| rest.starts_with(sign)).ok_or_else(form)?;
        let value = rest[op.0.len()..].trim();
        let measure = MEASURES.iter().find(|(n, ..)| *n == name).ok_or_else(|| {
            let known: Vec<_> = MEASURES.iter().map(|(n, ..)| *n).collect();
            format!("unknown measure '{name}': use one of {}", known.join(", "))
        })?;
        let value = if measure.1 {
            duration(value)?.as_secs_f64() * 1e6
        } else {
            match value.parse::<f64>() {
                Ok(v) if v.is_finite() && v >= 0.0 => v,
                _ => return Err(form()),
            }
        };
        if name == ERROR_RATE && value > 1.0 {
            return Err(format!("'{s}': error-rate is from 0 to 1"));
        }
        Ok(Self { measure, op, value })
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = if self.measure.1 { "us" } else { "" };
        write!(f, "{}{}{}{unit}", self.measure.0, self.op.0, self.value)
    }
}

impl Threshold {
    /// What this is, read off a result.
    pub(crate) fn check(self, result: &LoadResult) -> ThresholdRecord {
        let measured = self.measure.2(result);
        let crossed = self.op.1(&measured, &self.value);
        ThresholdRecord { expression: self.to_string(), measured, crossed }
    }
}

fn failures(r: &LoadResult, class: FailureClass) -> f64 {
    r.classes().get(&class).copied().unwrap_or(0) as f64
}

/// Of the connections that neither a limit of this host nor the end of the run cut short, the part
/// that failed.
fn error_rate(r: &LoadResult) -> f64 {
    let says_nothing = |c| matches!(c, FailureClass::LocalLimit | FailureClass::Interrupted);
    let classes = r.classes();
    let told = classes.iter().filter(|(class, _)| !says_nothing(**class));
    let failed: u64 = told.map(|(_, n)| n).sum();
    failed as f64 / ((r.ok + failed) as f64).max(1.0)
}

/// Attempts a second, of the time in which they began.
pub(crate) fn rate(r: &LoadResult) -> f64 {
    r.attempts as f64 / r.begun_s.max(1e-9)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use canary_record::names::{EndedBy, Errno, Phase};
    use canary_record::result::load::Cause;

    use super::*;
    use crate::report::Report;
    use crate::tally::Tally;
    use canary_record::result::{Clock, Config};

    /// Each form is read; latencies need a unit, the others must not have one.
    #[test]
    fn reads_every_form() {
        for (text, spelled) in [
            ("reset>0", "reset>0"),
            (" error-rate >= 0.01", "error-rate>=0.01"),
            ("p99>200ms", "p99>200000us"),
            ("connect-max<=1s", "connect-max<=1000000us"),
            ("rate<1000", "rate<1000"),
        ] {
            let t: Threshold = text.parse().unwrap();
            assert_eq!(t.to_string(), spelled);
            let again: Threshold = spelled.parse().unwrap();
            assert_eq!(again.to_string(), spelled);
        }
    }

    /// What is wrong is answered with what is right.
    #[test]
    fn refuses_other_forms() {
        for (bad, answer) in [
            ("reset", "is no threshold"),
            ("reset=0", "is no threshold"),
            ("reset>x", "is no threshold"),
            ("reset>-1", "is no threshold"),
            ("resets>0", "unknown measure 'resets': use one of reset, stall"),
            ("p99>200", "is not a duration"),
            ("error-rate>2", "error-rate is from 0 to 1"),
        ] {
            let e = bad.parse::<Threshold>().unwrap_err();
            assert!(e.contains(answer), "{bad}: {e}");
        }
    }

    /// A run of `attempts` that failed in every way that `failures` names, once in each.
    fn result(attempts: u64, failures: &[Cause]) -> LoadResult {
        let (now, mut tally) = (Instant::now(), Tally::new(Clock::start()));
        for &cause in failures {
            tally.fail(now, (Phase::Connect, cause));
        }
        (tally.counts.attempts, tally.counts.ok) = (attempts, attempts - failures.len() as u64);
        let report = Report::begin("test", Config::new(), None).unwrap();
        report.load_result(&tally, EndedBy::Duration, None)
    }

    fn measured(expression: &str, result: &LoadResult) -> f64 {
        expression.parse::<Threshold>().unwrap().check(result).measured
    }

    /// What this host's limits and the end of the run took away is no part of the error rate.
    #[test]
    fn the_error_rate_is_the_networks() {
        let limit = Cause::Errno(Errno::Emfile);
        let r = result(10, &[Cause::Stall, limit, limit, limit, Cause::Interrupted]);
        assert!((measured("error-rate>0", &r) - 1.0 / 6.0).abs() < 1e-9);
        let nothing = result(2, &[limit, Cause::Interrupted]);
        assert!(measured("error-rate>0", &nothing).abs() < 1e-9);
    }

    /// The rate is that of the time in which connections began, whatever the configuration says.
    #[test]
    fn the_rate_is_without_the_end() {
        let mut r = result(100, &[]);
        (r.run.seconds, r.begun_s) = (12.0, 2.0);
        canary_runtime::cli::derive(&mut r.run.config, "duration", &"1s");
        assert!((measured("rate<1", &r) - 50.0).abs() < 1e-9);
    }
}
