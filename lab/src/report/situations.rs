//! Situations: what each of its cases did to connections, and what each mend does to it.

use maud::{Markup, html};

use crate::document::lab::{Judgement, LabResult, Mend, Mended, ScenarioResult};
use crate::document::timeline::{Step, Timeline};

use super::paths::{commands, spaceless};
use super::words::{self, count, counts};

/// Every situation, folded where it is as expected.
pub(super) fn section(result: &LabResult) -> Markup {
    html! {
        p { "What else ends connections, or is said to. Each case has hosts of its own." }
        @for s in &result.scenarios {
            @if let Some(t) = s.timeline.as_ref().filter(|t| t.of_cases()) { (situation(result, s, t)) }
        }
    }
}

fn situation(result: &LabResult, s: &ScenarioResult, t: &Timeline) -> Markup {
    let (symbol, word) = words::judgement(s.judgement);
    let doubt = s.judgement != Judgement::AsExpected;
    html! {
        details.situation id={ "s-" (spaceless(&s.called())) } open=[doubt.then_some("")] {
            summary {
                h3 { (s.title) @if s.repetition > 1 { " (repetition " (s.repetition) ")" } }
                span.tag.(s.judgement) { (symbol) " " (word) }
                span.soft { (count(t.steps.len() as u64, "case", "cases")) }
            }
            p.why.small { (s.why.trim()) }
            // Those of a case that was run stand with it.
            @let beside = s.reasons.iter().filter(|r| !t.steps.iter().any(|c| is_of(c, r)));
            @for reason in beside { p.notes { (reason) } }
            @if !t.steps.is_empty() { (cases(s, &t.steps)) }
            (mended(&s.mended))
            (commands(result, s))
        }
    }
}

fn is_of(case: &Step, reason: &str) -> bool {
    reason.strip_prefix(case.title.as_str()).is_some_and(|rest| rest.starts_with(": "))
}

fn cases(s: &ScenarioResult, cases: &[Step]) -> Markup {
    html! {
        div.wide tabindex="0" role="region" aria-label="Cases" { table.steps {
            caption { "Source: " (s.source.trim().trim_end_matches('.')) "." }
            thead { tr {
                th.first scope="col" { "Case" }
                th scope="col" { "Changed" }
                th scope="col" { "Connections" }
                th scope="col" { "boom-server" }
                th scope="col" { "Client’s node" }
            } }
            tbody { @for (n, c) in cases.iter().enumerate() {
                tr.row {
                    th.first scope="row" {
                        (n + 1) ". " (c.title)
                        @if let Some(case) = &c.case { small { (case.setting) } }
                    }
                    td { (changes(c)) }
                    td { (counts(c.established.iter().map(|(c, n)| (c.as_str(), *n)))) }
                    td { (counts(c.boom.iter().map(|(c, n)| (c.as_str(), *n)))) }
                    td { (counts([
                        ("invalid", c.conntrack.invalid),
                        ("drop", c.conntrack.drop),
                        ("early_drop", c.conntrack.early_drop),
                    ])) }
                }
                tr.meaning { td colspan="5" { div { (c.notes.join(" ")) } } }
            } }
        } }
    }
}

/// What was changed for a step.
pub(super) fn changes(step: &Step) -> Markup {
    html! { @for c in &step.changes { code { (c.what) } small { (c.from) " → " (c.to) } } }
}

/// What each mend does to each case: a column for each mend that any case was tried under.
fn mended(mended: &[Mended]) -> Markup {
    let tried = |mend: &&Mend| mended.iter().any(|c| c.mends.iter().any(|m| m.mend == **mend));
    let columns: Vec<_> = Mend::ALL.iter().filter(tried).collect();
    html! {
        @if !mended.is_empty() {
            div.wide tabindex="0" role="region" aria-label="Mends" { table.claims {
                caption { "Connections lost under each mend, and what it does against the situation as it is" }
                thead { tr {
                    th.first scope="col" { "Situation" }
                    @for mend in &columns { th scope="col" { (mend) } }
                } }
                tbody { @for c in mended { tr {
                    th.first scope="row" { (c.case) small { (c.connections) " connections" } }
                    @for mend in &columns { td {
                        @if let Some(m) = c.mends.iter().find(|m| m.mend == **mend) {
                            @let (symbol, word) = words::effect(m.effect);
                            @match (&m.why, m.mend) {
                                (Some(why), _) => (why),
                                (None, Mend::AsItIs) => b { (m.lost) " lost" },
                                (None, _) => {
                                    span.sym aria-hidden="true" { (symbol) } " " b { (word) } small { (m.lost) " lost" }
                                }
                            }
                        }
                    } }
                } } }
            } }
        }
    }
}
