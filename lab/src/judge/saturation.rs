//! What a run makes of the claims about a full table, against what a scenario expects.

mod claims;
pub(crate) mod findings;

use std::collections::BTreeMap;

use crate::document::lab::{Judgement, ScenarioResult};
use crate::document::timeline::{Finding, Statement};

use crate::observed::saturation::{Facts, Filled};
use crate::scenario::claims::Claim;
use crate::scenario::saturation::Saturation;

/// Judges what was seen into `result`.
pub(crate) fn result(s: &Saturation, filled: Filled, result: &mut ScenarioResult) {
    let Filled { mut timeline, facts, broken } = filled;
    let found = findings::find(&facts);
    let (judgement, why) = judge(&s.expect, &found, &facts);
    result.judgement = match broken {
        Some(_) => judgement.worse(Judgement::Inconclusive),
        None => judgement,
    };
    result.reasons = broken.into_iter().chain(why).collect();
    // What the scenario says nothing of it does not ask.
    let asked = found.into_iter().filter(|(claim, _)| s.expect.contains_key(claim));
    timeline.tables.clone_from(&facts.tables);
    timeline.statements = asked.map(|(_, statement)| statement).collect();
    result.timeline = Some(timeline);
}

/// Compares what was found with what is expected. What this run could not show
/// decides nothing where its table could not be changed; the reason says so.
fn judge(
    expect: &BTreeMap<Claim, Finding>,
    found: &[(Claim, Statement)],
    facts: &Facts,
) -> (Judgement, Vec<String>) {
    let mut judgement = Judgement::AsExpected;
    let mut reasons = Vec::new();
    for (claim, expected) in expect {
        let Some((_, s)) = found.iter().find(|(c, _)| c == claim) else { continue };
        if s.finding == *expected {
            continue;
        }
        let evidence = s.evidence.join(" ");
        if s.finding == Finding::NotShown && claims::judged(*claim).0.not_tried(facts) {
            reasons.push(format!("{claim}: not tried: {evidence}"));
            continue;
        }
        let here = if s.finding == Finding::NotShown {
            Judgement::Inconclusive
        } else {
            Judgement::Differs
        };
        judgement = judgement.worse(here);
        reasons.push(format!("{claim}: expected {expected}, found {}: {evidence}", s.finding));
    }
    let decided = |(claim, s): &(Claim, Statement)| {
        expect.contains_key(claim) && s.finding != Finding::NotShown
    };
    if !found.iter().any(decided) {
        judgement = judgement.worse(Judgement::Inconclusive);
    }
    (judgement, reasons)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A finding that is not the expected one differs; one that is missing proves nothing.
    #[test]
    fn findings_are_compared() {
        let statement = |finding| Statement {
            claim: "c".into(),
            source: "s".into(),
            finding,
            evidence: vec!["e".into()],
        };
        let claim = Claim::NewConnectionsTimeOut;
        let expect = [(claim, Finding::Holds)].into();
        let facts = Facts::default();
        for (finding, judgement) in [
            (Finding::Holds, Judgement::AsExpected),
            (Finding::DoesNotHold, Judgement::Differs),
            (Finding::NotShown, Judgement::Inconclusive),
        ] {
            let (j, why) = judge(&expect, &[(claim, statement(finding))], &facts);
            assert_eq!(j, judgement);
            assert_eq!(why.is_empty(), j == Judgement::AsExpected);
        }
        // A table that this run may not change is no doubt about the rest.
        let bigger = (Claim::BiggerTableCures, Finding::Holds);
        let found = [(bigger.0, statement(Finding::NotShown)), (claim, statement(Finding::Holds))];
        let expect = [bigger, (claim, Finding::Holds)].into();
        assert_eq!(judge(&expect, &found, &facts).0, Judgement::AsExpected);
        // Where it was all, the run proved nothing.
        assert_eq!(judge(&[bigger].into(), &found, &facts).0, Judgement::Inconclusive);
        let facts = Facts { can_resize: true, ..Facts::default() };
        assert_eq!(judge(&expect, &found, &facts).0, Judgement::Inconclusive);
    }
}
