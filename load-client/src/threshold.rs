//! `--fail-on`: a measure, a comparison, a value.

use std::fmt;
use std::str::FromStr;

use canary_record::hist::LatencySummary;
use canary_record::names::FailureClass;
use canary_record::result::load::{LoadResult, ThresholdRecord};
use canary_runtime::cli::duration;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Failures of one class.
    Class(FailureClass),
    /// Held connections lost.
    Lost,
    /// All failures.
    Failures,
    /// Of the connections that neither a limit of this host nor the end of the run cut short,
    /// the part that failed.
    ErrorRate,
    /// Attempts a second, see [`rate`].
    Rate,
    /// A quantile of the total latency.
    Total(Quantile),
    /// A quantile of the connect latency.
    Connect(Quantile),
}

/// Which latency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantile {
    /// Median.
    P50,
    /// 90%.
    P90,
    /// 99%.
    P99,
    /// 99.9%.
    P999,
    /// The greatest.
    Max,
}

const MEASURES: &[(&str, Measure)] = &[
    ("reset", Measure::Class(FailureClass::Reset)),
    ("stall", Measure::Class(FailureClass::Hung)),
    ("connect-timeout", Measure::Class(FailureClass::ConnectTimeout)),
    ("refused", Measure::Class(FailureClass::Refused)),
    ("early-eof", Measure::Class(FailureClass::EarlyEof)),
    ("bad-answer", Measure::Class(FailureClass::BadAnswer)),
    ("local-limit", Measure::Class(FailureClass::LocalLimit)),
    ("lost", Measure::Lost),
    ("failures", Measure::Failures),
    ("error-rate", Measure::ErrorRate),
    ("rate", Measure::Rate),
    ("p50", Measure::Total(Quantile::P50)),
    ("p90", Measure::Total(Quantile::P90)),
    ("p99", Measure::Total(Quantile::P99)),
    ("p999", Measure::Total(Quantile::P999)),
    ("max", Measure::Total(Quantile::Max)),
    ("connect-p50", Measure::Connect(Quantile::P50)),
    ("connect-p90", Measure::Connect(Quantile::P90)),
    ("connect-p99", Measure::Connect(Quantile::P99)),
    ("connect-p999", Measure::Connect(Quantile::P999)),
    ("connect-max", Measure::Connect(Quantile::Max)),
];

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `>`
    Above,
    /// `>=`
    AtLeast,
    /// `<`
    Below,
    /// `<=`
    AtMost,
}

const OPS: &[(&str, Op)] =
    &[(">=", Op::AtLeast), ("<=", Op::AtMost), (">", Op::Above), ("<", Op::Below)];

/// One `--fail-on`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    measure: Measure,
    op: Op,
    /// Microseconds for latencies.
    value: f64,
}

fn spelling<T: PartialEq>(names: &[(&'static str, T)], wanted: &T) -> &'static str {
    names.iter().find(|(_, v)| v == wanted).map_or("", |(name, _)| name)
}

impl Measure {
    const fn is_latency(self) -> bool {
        matches!(self, Self::Total(_) | Self::Connect(_))
    }
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
        let (sign, op) = OPS.iter().find(|(sign, _)| rest.starts_with(sign)).ok_or_else(form)?;
        let value = rest[sign.len()..].trim();
        let measure =
            MEASURES.iter().find(|(n, _)| *n == name).map(|(_, m)| *m).ok_or_else(|| {
                let known: Vec<_> = MEASURES.iter().map(|(n, _)| *n).collect();
                format!("unknown measure '{name}': use one of {}", known.join(", "))
            })?;
        let value = if measure.is_latency() {
            duration(value)?.as_secs_f64() * 1e6
        } else {
            match value.parse::<f64>() {
                Ok(v) if v.is_finite() && v >= 0.0 => v,
                _ => return Err(form()),
            }
        };
        if measure == Measure::ErrorRate && value > 1.0 {
            return Err(format!("'{s}': error-rate is from 0 to 1"));
        }
        Ok(Self { measure, op: *op, value })
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}{}{}",
            spelling(MEASURES, &self.measure),
            spelling(OPS, &self.op),
            self.value
        )?;
        f.write_str(if self.measure.is_latency() { "us" } else { "" })
    }
}

impl Threshold {
    /// What this is, read off a result.
    #[must_use]
    pub fn check(self, result: &LoadResult) -> ThresholdRecord {
        let measured = measure(self.measure, result);
        let crossed = match self.op {
            Op::Above => measured > self.value,
            Op::AtLeast => measured >= self.value,
            Op::Below => measured < self.value,
            Op::AtMost => measured <= self.value,
        };
        ThresholdRecord { expression: self.to_string(), measured, crossed }
    }
}

fn measure(measure: Measure, r: &LoadResult) -> f64 {
    let classes = r.classes();
    let count = |class| classes.get(&class).copied().unwrap_or(0);
    let n = match measure {
        Measure::Class(class) => count(class),
        Measure::Lost => r.hold.map_or(0, |h| h.lost),
        Measure::Failures => classes.values().sum(),
        Measure::ErrorRate => {
            let says_nothing =
                |c| matches!(c, FailureClass::LocalLimit | FailureClass::Interrupted);
            let told = classes.iter().filter(|(class, _)| !says_nothing(**class));
            let failed: u64 = told.map(|(_, n)| n).sum();
            return failed as f64 / ((r.ok + failed) as f64).max(1.0);
        }
        Measure::Rate => return rate(r),
        Measure::Total(q) => quantile(q, &r.total_latency),
        Measure::Connect(q) => quantile(q, &r.connect_latency),
    };
    n as f64
}

/// Attempts a second, of the time in which they began.
#[must_use]
pub fn rate(r: &LoadResult) -> f64 {
    r.attempts as f64 / r.begun_s.max(1e-9)
}

const fn quantile(q: Quantile, l: &LatencySummary) -> u64 {
    match q {
        Quantile::P50 => l.p50_us,
        Quantile::P90 => l.p90_us,
        Quantile::P99 => l.p99_us,
        Quantile::P999 => l.p999_us,
        Quantile::Max => l.max_us,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use canary_record::names::{EndedBy, Errno, Phase};
    use canary_record::result::load::Cause;

    use super::*;
    use crate::report::Report;
    use crate::tally::{Clock, Tally};
    use canary_record::result::Config;

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
            assert_eq!(spelled.parse(), Ok(t));
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
        let (now, mut tally) = (Instant::now(), Tally::new(Clock::now()));
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
