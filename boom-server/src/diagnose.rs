//! From outcome counts to what they say of a path.

use std::collections::BTreeMap;

use canary_common::outcome::{ClientClass, Diagnosis, Forgery, OldSegments, Verdict};
use canary_common::result::boom::{OutcomeCount, PathDiagnosis};
use canary_common::segment::Family;

/// One diagnosis for each class of clients and family in `rows`. `min_forged` is
/// how many above-window segments 'protected' needs on each.
#[must_use]
pub fn paths(rows: &[OutcomeCount], min_forged: u64) -> Vec<PathDiagnosis> {
    let mut by_path: BTreeMap<(Family, ClientClass), Vec<&OutcomeCount>> = BTreeMap::new();
    for row in rows {
        by_path.entry((row.family, row.class)).or_default().push(row);
    }
    by_path
        .into_iter()
        .map(|((family, class), rows)| path(family, class, &rows, min_forged))
        .collect()
}

/// The worst of all: one vulnerable path makes the run vulnerable, one
/// inconclusive path keeps it from being protected.
#[must_use]
pub fn overall(paths: &[PathDiagnosis]) -> Verdict {
    if paths.iter().any(|p| p.verdict == Verdict::Vulnerable) {
        Verdict::Vulnerable
    } else if !paths.is_empty() && paths.iter().all(|p| p.verdict == Verdict::Protected) {
        Verdict::Protected
    } else {
        Verdict::Inconclusive
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    leaked: u64,
    delivered: u64,
    dropped: u64,
}

impl Count {
    const fn known(self) -> u64 {
        self.leaked + self.delivered + self.dropped
    }
    /// Delivered in most of the known cases.
    const fn mostly_delivered(self) -> bool {
        self.delivered > self.dropped
    }
}

fn path(
    family: Family,
    class: ClientClass,
    rows: &[&OutcomeCount],
    min_forged: u64,
) -> PathDiagnosis {
    let of = |forgery: Forgery| {
        rows.iter().find(|r| r.forgery == forgery).map_or(Count::default(), |r| Count {
            leaked: r.leaked,
            delivered: r.delivered,
            dropped: r.dropped,
        })
    };
    let (above, below) = (of(Forgery::AboveWindow), of(Forgery::BelowWindow));
    let (ahead, syn_fin) = (of(Forgery::AckAhead), of(Forgery::SynFin));
    let no_flags = of(Forgery::NoFlags);

    // A segment below the window that is delivered was no test of this kernel.
    let lethal = [above, syn_fin, of(Forgery::Overshoot)];
    let judged = lethal.iter().map(|c| c.known()).sum::<u64>() + below.leaked + below.dropped;
    let leaked = lethal.iter().map(|c| c.leaked).sum::<u64>() + below.leaked;
    let any_leaked: u64 = rows.iter().map(|r| r.leaked).sum();
    let window_leaked = any_leaked - syn_fin.leaked - no_flags.leaked;
    // What conntrack refuses by its window check, on every kernel.
    let window = if above.known() > 0 { above } else { ahead };

    let diagnosis = if window_leaked > 0 {
        Diagnosis::Unprotected
    } else if any_leaked > 0 {
        Diagnosis::Partly
    } else if window.known() == 0 {
        Diagnosis::Inconclusive
    } else if !window.mostly_delivered() {
        Diagnosis::Dropped
    } else if syn_fin.known() == 0 {
        Diagnosis::Liberal
    } else if syn_fin.mostly_delivered() {
        Diagnosis::NotTranslated
    } else {
        Diagnosis::LiberalAndDropped
    };

    let old_segments = if below.leaked + below.dropped > 0 {
        OldSegments::Invalid
    } else if below.delivered > 0
        && window.known() > 0
        && !(window.mostly_delivered() && window.leaked == 0)
    {
        OldSegments::Ignored
    } else {
        OldSegments::NotShown
    };

    let mut reasons = Vec::new();
    let verdict = if any_leaked > 0 {
        let which: Vec<String> = rows
            .iter()
            .filter(|r| r.leaked > 0)
            .map(|r| format!("{} {} of {}", r.forgery, r.leaked, r.forged))
            .collect();
        reasons
            .push(format!("forged segments reached the client untranslated: {}", which.join(", ")));
        if leaked == 0 {
            reasons.push(
                "those are harmless by themselves, but show that INVALID segments leak: others reset connections"
                    .to_owned(),
            );
        }
        Verdict::Vulnerable
    } else {
        let delivered: u64 = rows.iter().map(|r| r.delivered).sum();
        if delivered == 0 {
            reasons.push(
                "no forged segment was seen to be delivered: the positive control is missing"
                    .to_owned(),
            );
        }
        if above.known() < min_forged {
            reasons.push(format!(
                "{} above-window segments judged, at least {min_forged} needed",
                above.known()
            ));
        }
        if reasons.is_empty() { Verdict::Protected } else { Verdict::Inconclusive }
    };
    if above.delivered > 0 && above.dropped > 0 {
        reasons.push(format!(
            "above-window was delivered {} times and dropped {} times: the clients' nodes differ, or segments were lost",
            above.delivered, above.dropped
        ));
    }
    if verdict == Verdict::Protected && syn_fin.known() == 0 {
        reasons.push(
            "segments with bad flags were not tried: be_liberal alone lets them leak".to_owned(),
        );
    }
    let unknown: u64 = rows.iter().flat_map(|r| r.unknown.values()).sum();
    if unknown > 0 {
        reasons.push(format!("{unknown} outcomes are unknown"));
    }
    let leak_rate_upper_95 = upper_95(leaked, judged);
    if verdict == Verdict::Protected {
        reasons.insert(
            0,
            format!(
                "0 of {judged} lethal segments leaked: with 95% confidence fewer than {:.2}% do",
                leak_rate_upper_95 * 100.0
            ),
        );
    }
    PathDiagnosis {
        class,
        family,
        diagnosis,
        verdict,
        old_segments,
        reasons,
        judged,
        leaked,
        leak_rate_upper_95,
    }
}

/// The one-sided 95% upper confidence bound of a rate of which `k` in `n` were
/// seen: the exact binomial (Clopper and Pearson, 1934). 1 when nothing was seen.
#[must_use]
pub fn upper_95(k: u64, n: u64) -> f64 {
    const ALPHA: f64 = 0.05;
    if k >= n {
        return 1.0;
    }
    if k == 0 {
        return 1.0 - ALPHA.powf(1.0 / n as f64);
    }
    // The rate at which k or fewer of n would be seen with probability ALPHA.
    let (mut low, mut high) = (k as f64 / n as f64, 1.0);
    for _ in 0..60 {
        let mid = f64::midpoint(low, high);
        if at_most(k, n, mid) > ALPHA { low = mid } else { high = mid }
    }
    high
}

/// The probability of at most `k` successes in `n` trials of rate `p`.
fn at_most(k: u64, n: u64, p: f64) -> f64 {
    let (mut log_term, mut sum) = (n as f64 * (1.0 - p).ln(), 0.0);
    for i in 0..=k {
        sum += log_term.exp();
        log_term += ((n - i) as f64 / (i + 1) as f64).ln() + p.ln() - (1.0 - p).ln();
    }
    sum
}
