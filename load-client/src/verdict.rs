//! From a result's counts to its verdict.

use canary_common::outcome::Verdict;
use canary_common::result::load::LoadResult;

use crate::threshold::Threshold;

/// Holds `result` against the thresholds, and writes the verdict and its
/// reasons into it. A crossed threshold comes before everything; a run in which
/// nothing succeeded proved nothing.
pub fn judge(result: &mut LoadResult, thresholds: &[Threshold]) {
    result.thresholds = thresholds.iter().map(|t| t.check(result)).collect();
    let mut reasons: Vec<String> = result
        .thresholds
        .iter()
        .filter(|t| t.crossed)
        .map(|t| format!("threshold crossed: {} (measured {})", t.expression, t.measured))
        .collect();
    let crossed = !reasons.is_empty();
    if result.ok == 0 {
        reasons.push("no connection succeeded".to_owned());
    } else {
        reasons.push(format!("{} of {} connections succeeded", result.ok, result.attempts));
    }
    let local: u64 = result.failures.iter().filter(|f| f.local).map(|f| f.count).sum();
    if local > 0 {
        reasons.push(format!(
            "{local} connections failed at a limit of this host: the load was smaller than asked for"
        ));
    }
    if let Some(p) = &result.preflight {
        reasons.extend(p.warnings.iter().cloned());
    }
    result.verdict = match (crossed, result.ok) {
        (true, _) => Verdict::Vulnerable,
        (false, 0) => Verdict::Inconclusive,
        (false, _) => Verdict::Protected,
    };
    reasons.append(&mut result.reasons);
    result.reasons = reasons;
}
