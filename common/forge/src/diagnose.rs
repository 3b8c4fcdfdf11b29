//! From outcome counts to what they say of a path.

use std::collections::BTreeMap;

use canary_record::names::{ClientClass, Diagnosis, Direction, Forgery, OldSegments, Verdict};
use canary_record::outcome::Counts;
use canary_record::result::boom::{OutcomeCount, PathDiagnosis};
use canary_wire::segment::Family;

/// What whoever follows the advice to drop has to know.
const RISK: &str = "a drop also takes legal segments where conntrack sees only a part of a \
     connection (asymmetric routes, DSR, offload, notrack)";

/// What is known beside the outcomes.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// How many above-window segments 'protected' needs on each path.
    pub min_forged: u64,
    /// Which way the segments went.
    pub direction: Direction,
    /// Connections of which the client called the server's own address.
    pub called_here: u64,
    /// Connections of which it called another.
    pub called_elsewhere: u64,
    /// All of them: one that a forged segment killed never said what it had called.
    pub handshakes: u64,
}

impl Context {
    /// True when it was shown that nothing translates the server's address.
    const fn untranslated(&self) -> bool {
        self.called_here > 0 && self.called_here >= self.handshakes && self.called_elsewhere == 0
    }

    /// True when it was shown that something in between has an address of its own.
    const fn translated(&self) -> bool {
        self.called_elsewhere > 0 && self.called_here == 0
    }
}

/// One diagnosis for each class of clients and family in `rows`.
#[must_use]
pub fn paths(rows: &[OutcomeCount], context: &Context) -> Vec<PathDiagnosis> {
    let mut by_path: BTreeMap<(Family, ClientClass), Vec<&OutcomeCount>> = BTreeMap::new();
    for row in rows {
        by_path.entry((row.family, row.class)).or_default().push(row);
    }
    by_path.into_iter().map(|((family, class), rows)| path(family, class, &rows, context)).collect()
}

/// The worst of all: one vulnerable path makes the run vulnerable, one
/// inconclusive path, or one of the `doubts`, keeps it from being protected.
#[must_use]
pub fn overall(paths: &[PathDiagnosis], doubts: &[String]) -> Verdict {
    match Verdict::worst(paths.iter().map(|p| p.verdict)) {
        Verdict::Protected if !doubts.is_empty() => Verdict::Inconclusive,
        verdict => verdict,
    }
}

/// Delivered in most of the known cases.
const fn mostly_delivered(c: &Counts) -> bool {
    c.delivered > c.dropped
}

/// The counts of one path, forgery by forgery.
#[derive(Clone, Copy, Debug)]
struct Seen<'a>(&'a [&'a OutcomeCount]);

impl Seen<'_> {
    fn of(&self, forgery: Forgery) -> Counts {
        self.0.iter().filter(|r| r.forgery == forgery).map(|r| &r.counts).sum()
    }

    /// Of all but the control, whose leak says something else.
    fn sum(&self, count: impl Fn(&Counts) -> u64) -> u64 {
        self.0.iter().filter(|r| r.forgery != Forgery::Control).map(|r| count(&r.counts)).sum()
    }

    /// What conntrack refuses by its window check, on every kernel.
    fn window(&self) -> Counts {
        let above = self.of(Forgery::AboveWindow);
        if above.known() > 0 { above } else { self.of(Forgery::AckAhead) }
    }

    /// Lethal segments judged, and leaked. Below the window one that was
    /// delivered was no test of this kernel.
    fn lethal(&self) -> (u64, u64) {
        let below = self.of(Forgery::BelowWindow);
        let others = [Forgery::AboveWindow, Forgery::SynFin].map(|f| self.of(f));
        (
            others.iter().map(Counts::known).sum::<u64>() + below.known() - below.delivered,
            others.iter().map(|c| c.leaked).sum::<u64>() + below.leaked,
        )
    }

    fn diagnosis(&self, context: &Context) -> Diagnosis {
        let (window, syn_fin) = (self.window(), self.of(Forgery::SynFin));
        let no_flags = self.of(Forgery::NoFlags);
        let bad_flags_leaked = syn_fin.leaked + no_flags.leaked;
        let leaked = self.sum(|c| c.leaked);
        if leaked > bad_flags_leaked || self.poisoned() > 0 {
            Diagnosis::Unprotected
        } else if self.sum(|c| c.rejected) > 0 {
            Diagnosis::Rejected
        } else if bad_flags_leaked > 0 {
            // With be_liberal no-flags leaks too; a flowtable passes it on unseen.
            if window.delivered == 0 || !mostly_delivered(&window) {
                Diagnosis::Partly
            } else if no_flags.leaked > 0 {
                Diagnosis::Liberal
            } else if no_flags.known() > 0 {
                Diagnosis::Flowtable
            } else {
                Diagnosis::Partly
            }
        } else if window.known() == 0 {
            Diagnosis::Inconclusive
        } else if !mostly_delivered(&window) {
            Diagnosis::Dropped
        } else if syn_fin.known() > 0 && !mostly_delivered(&syn_fin) {
            Diagnosis::BadFlagsDropped
        } else if context.untranslated() {
            Diagnosis::NotTranslated
        } else if syn_fin.delivered > 0 && context.translated() {
            Diagnosis::TranslatedUnchecked
        } else {
            Diagnosis::Delivered
        }
    }

    fn old_segments(&self) -> OldSegments {
        let (below, window) = (self.of(Forgery::BelowWindow), self.window());
        // Where even what lies above the window arrives, nothing is refused.
        let refuses = window.leaked > 0 || (window.known() > 0 && !mostly_delivered(&window));
        if below.leaked + below.dropped > below.delivered {
            OldSegments::Invalid
        } else if below.delivered > 0 && refuses {
            OldSegments::Ignored
        } else {
            OldSegments::NotShown
        }
    }

    /// Why this path cannot be called protected.
    fn lacks(&self, min_forged: u64) -> Vec<String> {
        let mut lacks = Vec::new();
        if self.0.iter().all(|r| r.counts.delivered == 0) {
            lacks.push(
                "no forged segment was delivered: the positive control is missing".to_owned(),
            );
        }
        let above = self.of(Forgery::AboveWindow).known();
        if above < min_forged {
            lacks.push(format!("{above} above-window segments judged, {min_forged} needed"));
        }
        lacks
    }

    /// Connections that an overshoot ended later, through the entry it poisoned.
    fn poisoned(&self) -> u64 {
        self.0.iter().map(|r| r.counts.killed_later).sum()
    }

    fn listed(&self, count: impl Fn(&Counts) -> u64) -> String {
        let each = self.0.iter().map(|r| (r, count(&r.counts))).filter(|(_, n)| *n > 0);
        let each = each.map(|(r, n)| format!("{} {n} of {}", r.forgery, r.forged));
        each.collect::<Vec<_>>().join(", ")
    }
}

/// What contradicts every other reading of this path.
fn contradictions(seen: &Seen<'_>, context: &Context) -> Vec<String> {
    let mut found = Vec::new();
    let peer = context.direction.peer();
    let control = seen.of(Forgery::Control);
    if control.leaked + control.rejected > 0 {
        found.push(format!(
            "{} of the control segments, which are in order, were answered with a reset: conntrack \
             does not know these connections (entries deleted, evicted or never made), and what \
             leaked says nothing of INVALID segments",
            control.leaked + control.rejected
        ));
    }
    let no_flags = seen.of(Forgery::NoFlags).delivered;
    if no_flags > 0 {
        found.push(format!(
            "{no_flags} segments without any flag were answered, which Linux never does: something \
             else than the {peer}'s kernel answers here"
        ));
    }
    let by_peer = seen.sum(|c| c.leaked - c.leaked_to_node);
    if by_peer > 0 && context.untranslated() && context.direction == Direction::ServerToClient {
        found.push(format!(
            "{by_peer} resets answer forged segments although the clients called this server's own \
             address: nothing is translated there, and nothing can leak"
        ));
    }
    found
}

/// Why it is vulnerable, and what to do; nothing where it is not.
fn harm(seen: &Seen<'_>, lethal: u64, peer: &str) -> Vec<String> {
    let mut reasons = Vec::new();
    let (leaked, to_node) = (seen.sum(|c| c.leaked), seen.sum(|c| c.leaked_to_node));
    if leaked > to_node {
        let all = seen.listed(|c| c.leaked - c.leaked_to_node);
        reasons.push(format!("forged segments reached the {peer} untranslated: {all}"));
        reasons.push(format!(
            "drop INVALID in mangle PREROUTING on the node that translates, or set be_liberal there: it \
             leaves bad flags, and takes the place of kube-proxy's own drop; {RISK}"
        ));
    }
    if to_node > 0 {
        let all = seen.listed(|c| c.leaked_to_node);
        reasons.push(format!(
            "forged segments were addressed to a node on the way, which answered them: {all}"
        ));
        reasons.push(format!(
            "drop INVALID in INPUT, or in mangle PREROUTING, of that node: FORWARD does not see \
             them; {RISK}"
        ));
    }
    if leaked > 0 && lethal == 0 {
        reasons.push(
            "those do no harm by themselves, but others like them reset connections".to_owned(),
        );
    }
    let rejected = seen.listed(|c| c.rejected);
    if !rejected.is_empty() {
        reasons.push(format!(
            "a node on the way rejected forged segments with a reset in the {peer}'s name, which the \
             {peer} never saw: {rejected}; drop them there instead of rejecting them; {RISK}"
        ));
    }
    reasons
}

fn path(
    family: Family,
    class: ClientClass,
    rows: &[&OutcomeCount],
    context: &Context,
) -> PathDiagnosis {
    let seen = Seen(rows);
    let (judged, leaked) = seen.lethal();
    let leak_rate_upper_95 = upper_95(leaked, judged);
    let contradictions = contradictions(&seen, context);
    let harm = harm(&seen, leaked, context.direction.peer());
    let (verdict, mut reasons) = if !contradictions.is_empty() {
        (Verdict::Inconclusive, contradictions)
    } else if !harm.is_empty() || seen.poisoned() > 0 {
        (Verdict::Vulnerable, harm)
    } else {
        let lacks = seen.lacks(context.min_forged);
        if lacks.is_empty() {
            let bound = leak_rate_upper_95 * 100.0;
            let reason = format!(
                "0 of {judged} lethal segments leaked: with 95% confidence fewer than {bound:.2}% do"
            );
            (Verdict::Protected, vec![reason])
        } else {
            (Verdict::Inconclusive, lacks)
        }
    };
    if seen.poisoned() > 0 {
        reasons.push(format!(
            "after an overshoot, segments of the server's own reached the client untranslated and {} of {} connections were reset",
            seen.poisoned(),
            seen.of(Forgery::Overshoot).known()
        ));
    }
    let above = seen.of(Forgery::AboveWindow);
    if above.delivered > 0 && above.dropped > 0 {
        reasons.push(format!(
            "above-window was delivered {} times and dropped {} times: the clients' nodes differ, or segments were lost",
            above.delivered, above.dropped
        ));
    }
    if verdict == Verdict::Protected && seen.of(Forgery::SynFin).known() == 0 {
        reasons.push("bad flags were not tried: with be_liberal alone they leak".to_owned());
    }
    let unknown: u64 = rows.iter().flat_map(|r| r.counts.unknown.values()).sum();
    if unknown > 0 {
        reasons.push(format!("{unknown} outcomes are unknown"));
    }
    PathDiagnosis {
        class,
        family,
        diagnosis: seen.diagnosis(context),
        verdict,
        old_segments: seen.old_segments(),
        reasons,
        judged,
        leaked,
        leak_rate_upper_95,
    }
}

/// The one-sided 95% upper confidence bound of a rate of which `k` in `n` were
/// seen: the exact binomial (Clopper and Pearson, 1934). 1 when nothing was seen.
fn upper_95(k: u64, n: u64) -> f64 {
    const ALPHA: f64 = 0.05;
    if k >= n {
        return 1.0;
    }
    if k == 0 {
        return 1.0 - ALPHA.powf(1.0 / n as f64);
    }
    // Of k in n: the logarithm of the binomial coefficient.
    let few = k.min(n - k);
    let ways = (1..=few).map(|i| ((n - few + i) as f64 / i as f64).ln()).sum();
    // The rate at which k or fewer of n would be seen with probability ALPHA.
    let (mut low, mut high) = (k as f64 / n as f64, 1.0);
    for _ in 0..60 {
        let mid = f64::midpoint(low, high);
        if at_most(k, n, ways, mid) > ALPHA { low = mid } else { high = mid }
    }
    high
}

/// The probability of at most `k` successes in `n` trials of rate `p`, which is above
/// k/n: from k down the terms fall, and those that no longer count are left out.
fn at_most(k: u64, n: u64, ways: f64, p: f64) -> f64 {
    let (mut term, mut sum) = (1.0, 0.0);
    for i in (0..=k).rev() {
        sum += term;
        term *= i as f64 / (n - i + 1) as f64 * (1.0 - p) / p;
        if term < sum * f64::EPSILON {
            break;
        }
    }
    sum * (ways + k as f64 * p.ln() + (n - k) as f64 * (1.0 - p).ln()).exp()
}

#[cfg(test)]
mod tests;
