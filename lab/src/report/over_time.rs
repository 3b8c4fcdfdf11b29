//! Scenarios with stages: their chart, their steps, their claims.

use maud::{Markup, html};

use crate::document::lab::{Judgement, LabResult, ScenarioResult};
use crate::document::timeline::{Statement, Step, TableSeries, Timeline};

use super::paths::{commands, spaceless};
use super::situations::changes;
use super::svg;
use super::words::{self, counts, grouped};

pub(super) fn section(result: &LabResult) -> Markup {
    html! {
        @for (n, s) in result.scenarios.iter().enumerate() {
            @if let Some(t) = s.timeline.as_ref().filter(|t| !t.of_cases()) { (scenario(result, s, t, n)) }
        }
    }
}

fn scenario(result: &LabResult, s: &ScenarioResult, t: &Timeline, n: usize) -> Markup {
    let (symbol, word) = words::judgement(s.judgement);
    html! {
        h3 id={ "s-" (spaceless(&s.called())) } {
            (s.title) " " span.tag.(s.judgement) { (symbol) " " (word) }
        }
        @if s.judgement != Judgement::AsExpected { @for r in &s.reasons { p.notes { (r) } } }
        p.why.small { (s.why.trim()) }
        // What counts connections by itself has no series at all.
        @if t.samples_taken > 0 { (chart(t, n)) }
        @if !t.steps.is_empty() {
            details open=[(s.judgement != Judgement::AsExpected).then_some("")] {
                summary { "What each step did" }
                (steps(t))
            }
        }
        @for series in TableSeries::ALL {
            @if let Some(drawing) = svg::tables(t, *series, &format!("tables{n}-{series}")) {
                figure { div.wide tabindex="0" role="region" aria-label="Chart" { (drawing) } }
            }
        }
        (statements(&t.statements))
        @if !t.reasons.is_empty() {
            div.notes {
                p { "What weakens these numbers:" }
                ul { @for reason in &t.reasons { li { (reason) } } }
            }
        }
        (commands(result, s))
    }
}

fn chart(t: &Timeline, n: usize) -> Markup {
    html! {
        @match svg::timeline(t, &format!("chart{n}")) {
            None => p.notes { "Fewer than two samples: nothing to draw." },
            Some(drawing) => figure {
                div.wide tabindex="0" role="region" aria-label="Chart" { (drawing) }
                figcaption.small.soft {
                    (grouped(t.samples_taken)) " samples"
                    @if t.samples_taken > t.samples.len() as u64 { ", joined to " (t.samples.len()) }
                    ". The numbered marks are the steps below."
                }
            },
        }
    }
}

fn steps(t: &Timeline) -> Markup {
    html! {
        div.wide tabindex="0" role="region" aria-label="Steps" { table.steps {
            caption {
                "What each step did to new connections, to those already made, and what the kernel counted on "
                "the client’s node"
            }
            thead { tr {
                th.first scope="col" { "Step" }
                th scope="col" { "Changed" }
                th.num scope="col" { "New: begun" }
                th.num scope="col" { "succeeded" }
                th scope="col" { "failed" }
                th scope="col" { "Established before" }
                th scope="col" { "boom-server" }
                th.num scope="col" { "drop" }
                th.num scope="col" { "early_drop" }
                th.num scope="col" { "invalid" }
            } }
            tbody { @for (n, s) in t.steps.iter().enumerate() { (step(n + 1, s)) } }
        } }
    }
}

fn step(n: usize, s: &Step) -> Markup {
    html! {
        tr.row {
            th.first scope="row" {
                (n) ". " (s.title)
                small { "from " (format!("{:.1}", s.t)) " s" }
            }
            td { (changes(s)) }
            td.num { (grouped(s.new_attempts)) }
            td.num { (grouped(s.new_ok)) }
            td { (counts(s.new_failures.iter().map(|(c, n)| (words::failure(*c), *n)))) }
            td { (counts(s.established.iter().map(|(c, n)| (c.as_str(), *n)))) }
            td { (counts(s.boom.iter().map(|(c, n)| (c.as_str(), *n)))) }
            td.num { (grouped(s.conntrack.drop)) }
            td.num { (grouped(s.conntrack.early_drop)) }
            td.num { (grouped(s.conntrack.invalid)) }
        }
        @if !s.notes.is_empty() { tr.meaning { td colspan="10" { div { (s.notes.join(" ")) } } } }
    }
}

fn statements(statements: &[Statement]) -> Markup {
    html! {
        @if !statements.is_empty() {
            div.wide tabindex="0" role="region" aria-label="Claims" { table.claims {
                caption { "What has been claimed, and what this run makes of it" }
                thead { tr {
                    th.first scope="col" { "Claim" }
                    th scope="col" { "On this kernel" }
                    th scope="col" { "Evidence" }
                } }
                tbody { @for s in statements {
                    @let (symbol, word) = words::finding(s.finding);
                    tr {
                        th.first scope="row" { (s.claim) small { (s.source) } }
                        td.(s.finding) { span.sym aria-hidden="true" { (symbol) } " " b { (word) } }
                        td { @for line in &s.evidence { div { (line) } } }
                    }
                } }
            } }
        }
    }
}
