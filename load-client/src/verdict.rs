//! From a result's counts to its verdict.

use canary_record::names::{FailureClass, LoadVerdict};
use canary_record::result::load::LoadResult;

use crate::threshold::Threshold;

/// Holds `result` against the thresholds, and writes the verdict and its
/// reasons into it. A crossed threshold comes before everything.
pub fn judge(result: &mut LoadResult, thresholds: &[Threshold]) {
    result.thresholds = thresholds.iter().map(|t| t.check(result)).collect();
    let mut reasons: Vec<String> = result
        .thresholds
        .iter()
        .filter(|t| t.crossed)
        .map(|t| format!("threshold crossed: {} (measured {})", t.expression, t.measured))
        .collect();
    let crossed = !reasons.is_empty();
    let unproven = unproven(result);
    reasons.extend(unproven.clone());
    if result.ok > 0 {
        reasons.push(format!("{} of {} connections succeeded", result.ok, result.attempts));
    }
    let local = result.classes().get(&FailureClass::LocalLimit).copied().unwrap_or(0);
    if local > 0 {
        reasons.push(format!(
            "{local} connections failed at a limit of this host: the load was smaller than asked for"
        ));
    }
    if let Some(p) = &result.preflight {
        reasons.extend(p.warnings.iter().cloned());
    }
    if result.never_begun > 0 {
        reasons.push(format!(
            "{} connections were due and never begun: the load was smaller than asked for",
            result.never_begun
        ));
    }
    result.verdict = match (crossed, unproven) {
        (true, _) => LoadVerdict::ThresholdCrossed,
        (false, Some(_)) => LoadVerdict::Inconclusive,
        (false, None) => LoadVerdict::WithinThresholds,
    };
    reasons.append(&mut result.reasons);
    result.reasons = reasons;
}

/// Why a run proved nothing.
fn unproven(result: &LoadResult) -> Option<String> {
    match result.hold {
        _ if result.ok == 0 => Some("no connection succeeded".to_owned()),
        Some(h) if h.exchanges == 0 => Some("no keep-alive exchange was answered".to_owned()),
        Some(h) if h.most_open < h.wanted => {
            Some(format!("at most {} of {} connections were held", h.most_open, h.wanted))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use canary_record::names::{EndedBy, Phase};
    use canary_record::result::load::{Cause, HoldRecord};

    use super::*;
    use crate::report::Report;
    use crate::tally::Tally;
    use canary_record::result::{Clock, Config};

    /// A run with ten connections that ended well, and `hold` as its record.
    fn good(hold: Option<HoldRecord>) -> LoadResult {
        let (now, mut tally) = (Instant::now(), Tally::new(Clock::start()));
        for _ in 0..10 {
            tally.begin(now);
            tally.ok(now, Duration::from_millis(1));
        }
        let report = Report::begin("test", Config::new(), None).unwrap();
        LoadResult { hold, ..report.load_result(&tally, EndedBy::Duration, None) }
    }

    fn judged(mut result: LoadResult) -> (LoadVerdict, String) {
        judge(&mut result, &["lost>0".parse().unwrap()]);
        (result.verdict, result.reasons.join("; "))
    }

    /// A hold is proof when all were open at once and some were talked on; what is in an
    /// exchange when it ends takes nothing away.
    #[test]
    fn a_hold_is_proof_when_all_were_held_and_talked_on() {
        let held = HoldRecord { wanted: 10, most_open: 10, exchanges: 1, ..HoldRecord::default() };
        assert_eq!(judged(good(Some(held))).0, LoadVerdict::WithinThresholds);
        let mut cut = good(Some(held));
        let mut tally = Tally::new(Clock::start());
        tally.fail(Instant::now(), (Phase::Receive, Cause::Interrupted));
        (cut.attempts, cut.failures) = (11, tally.counts.failures());
        assert_eq!(judged(cut).0, LoadVerdict::WithinThresholds);

        let (verdict, why) = judged(good(Some(HoldRecord { exchanges: 0, ..held })));
        assert_eq!(verdict, LoadVerdict::Inconclusive);
        assert!(why.starts_with("no keep-alive exchange was answered"), "{why}");
        let (verdict, why) = judged(good(Some(HoldRecord { wanted: 1000, ..held })));
        assert_eq!(verdict, LoadVerdict::Inconclusive);
        assert!(why.starts_with("at most 10 of 1000 connections were held"), "{why}");
        let lost = HoldRecord { wanted: 1000, exchanges: 0, lost: 1, ..held };
        assert_eq!(judged(good(Some(lost))).0, LoadVerdict::ThresholdCrossed);
    }

    /// What a schedule lost is said, and fails no run by itself.
    #[test]
    fn what_was_never_begun_is_said() {
        assert_eq!(judged(good(None)).1, "10 of 10 connections succeeded");
        let (verdict, why) = judged(LoadResult { never_begun: 7, ..good(None) });
        assert_eq!(verdict, LoadVerdict::WithinThresholds);
        assert!(why.contains("7 connections were due and never begun"), "{why}");
    }
}
