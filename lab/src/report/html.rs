//! The report as one page that needs nothing beside it: no font, no picture, no script from
//! elsewhere. Its own script filters and opens; everything can be read without it. Pure: a result and
//! the packets of its captures in, markup out.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;

use canary_runtime::page::Page;
use maud::{Markup, html};

use crate::document::lab::{CellResult, Judgement, LabResult, ScenarioResult};

use super::ladder::Packet;
use super::words::{self, count, grouped};
use super::{ladder_view, machine, over_time, overview, paths, situations};

/// What the report has besides the look of every page.
pub(crate) const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The packets of each capture, by its file as results.json names it.
pub(crate) type Captures = BTreeMap<String, Vec<Packet>>;

pub(crate) fn render(result: &LabResult, captures: &Captures) -> String {
    let verdict = verdict(result);
    let forged = result.scenarios.iter().any(|s| s.timeline.is_none());
    let has = |cases| {
        move |s: &ScenarioResult| s.timeline.as_ref().is_some_and(|t| t.of_cases() == cases)
    };
    let any = |cases| result.scenarios.iter().any(has(cases));
    let sections: Vec<_> = [
        Some(("overview", "At a glance", overview::section(result))),
        forged.then(|| ("matrix", "Every forgery", paths::section(result))),
        Some(("ladder", "How a connection dies", ladder_view::section(result, captures))),
        any(true).then(|| ("situations", "Situations", situations::section(result))),
        any(false).then(|| ("time", "Over time", over_time::section(result))),
        Some(("environment", "Machine and command", machine::section(result))),
        Some(("reading", "How to read this", reading())),
    ]
    .into_iter()
    .flatten()
    .collect();
    let body = html! {
        a.skip href="#main" { "Skip to the report" }
        (head(result, &verdict, &sections))
        main #main {
            @for (id, title, of) in &sections {
                section aria-labelledby=(id) { h2 id=(id) { (title) } (of) }
            }
        }
        footer { p {
            "Written by " (result.run.program) " " (result.run.version) " from results.json, which holds every "
            "number on this page. Nothing here was loaded from elsewhere."
        } }
    };
    let title = &format!("conntrack-lab: {verdict}");
    Page { title, style: STYLE, script: SCRIPT, ..Page::default() }.render(&body)
}

pub(super) fn cells(result: &LabResult) -> impl Iterator<Item = &CellResult> {
    result.scenarios.iter().flat_map(|s| &s.cells)
}

/// The run in one sentence.
#[must_use]
pub fn verdict(result: &LabResult) -> String {
    let all = cells(result).count() as u64;
    if all == 0 {
        // A run over time alone, such as that of kubectl conntrack experiment.
        return match result.judgement {
            Judgement::AsExpected => "Every step ran, and no result is missing.",
            Judgement::Differs => "A step did not show what was expected.",
            Judgement::Inconclusive => "Not all is proved: the reasons are below.",
            Judgement::Skipped => "Not everything could be run here.",
        }
        .to_owned();
    }
    let beside = |judgement| words::beside_cells(result, move |s| s.judgement == judgement);
    // Those of a judgement, and of how many; what has none is left out.
    let which = |judgement| {
        let cells = cells(result).filter(|c| c.judgement == judgement).count() as u64;
        let all = iter::once((cells, count(all, "cell", "cells"))).chain(beside(judgement));
        let all = all.filter(|(n, _)| *n > 0).map(|(n, of)| format!("{} of {of}", grouped(n)));
        all.collect::<Vec<_>>().join(" and ")
    };
    match result.judgement {
        Judgement::AsExpected if result.positive_control.held => {
            let cells = match all {
                1 => "the one cell".to_owned(),
                all => format!("all {} cells", grouped(all)),
            };
            let beside = beside(Judgement::AsExpected).into_iter().map(|(_, all)| all);
            format!(
                "Reproduced: without protection conntrack lets connections be reset on this kernel, and \
                 {} behaved as expected.{}",
                iter::once(cells).chain(beside).collect::<Vec<_>>().join(" and "),
                skipped(result)
            )
        }
        Judgement::AsExpected => {
            "Nothing is proved: every cell is as expected, but the positive control did not hold."
                .to_owned()
        }
        Judgement::Differs => {
            let differ = which(Judgement::Differs);
            format!("{differ} did not behave as expected on this kernel.")
        }
        Judgement::Inconclusive if !result.positive_control.held => {
            "Nothing is proved: the unprotected path did not reset, so this run could not have \
             seen the fault."
                .to_owned()
        }
        Judgement::Inconclusive => {
            let unproved = match which(Judgement::Inconclusive) {
                none if none.is_empty() => "and not all was run".to_owned(),
                some => format!("{some} gave no answer"),
            };
            let expected = which(Judgement::AsExpected);
            let expected = if expected.is_empty() { "nothing" } else { &expected };
            format!("Not all is proved: {expected} behaved as expected, {unproved}.")
        }
        Judgement::Skipped => {
            "Not everything could be run here; what ran behaved as expected.".to_owned()
        }
    }
}

/// How much of what was asked for could not be run.
fn skipped(result: &LabResult) -> String {
    let skipped = result.scenarios.iter().filter(|s| s.judgement == Judgement::Skipped).count();
    if skipped == 0 {
        return String::new();
    }
    format!(
        " {} skipped: the reasons are below.",
        count(skipped as u64, "scenario was", "scenarios were")
    )
}

/// The first screen: the verdict, what it rests on, what to do, what weakens it.
fn head(result: &LabResult, verdict: &str, sections: &[(&str, &str, Markup)]) -> Markup {
    let (symbol, word) = words::judgement(result.judgement);
    html! {
        header {
            p.kicker { "conntrack-lab report · Kubernetes issue #74839 · " (result.run.started) }
            h1 #verdict { (verdict) }
            p { span.status.(result.judgement) { span aria-hidden="true" { (symbol) } " " (word) } }
            div.answer {
                section aria-labelledby="found" {
                    h2 #found { "What it rests on" }
                    (control(result))
                    (facts(result))
                }
                section aria-labelledby="do" { h2 #do { "What to do" } (advice(result)) }
                section aria-labelledby="doubts" { h2 #doubts { "What weakens it" } (weaknesses(result)) }
            }
            nav aria-label="On this page" { ul {
                @for (id, title, _) in sections { li { a href={ "#" (id) } { (title) } } }
            } }
        }
    }
}

fn control(result: &LabResult) -> Markup {
    let c = &result.positive_control;
    let numbers = html! {
        (grouped(c.killed)) " of " (grouped(c.forged)) " " code { "above-window" }
        " segments forged on unprotected ClusterIP connections reset them"
    };
    let unproved = "No “delivered” or “dropped” on this page proves a protection.";
    html! { p #positive-control {
        @if c.held {
            strong.good { "✓ The positive control held: " } (numbers)
            ", so this run could see the fault wherever it is."
        } @else if c.forged == 0 {
            strong.doubt { "? No positive control was tried: " } "no " code { "above-window" }
            " segment met a connection without protection. " (unproved)
        } @else {
            strong.doubt { "? The positive control did not hold: " } (numbers) ". " (unproved)
        }
    } }
}

fn facts(result: &LabResult) -> Markup {
    let sum = |of: &dyn Fn(&CellResult) -> u64| grouped(cells(result).map(of).sum());
    let all = cells(result).count() as u64;
    let expected = |c: &CellResult| u64::from(c.judgement == Judgement::AsExpected);
    let facts = [
        ("Kernel", result.run.kernel.split(' ').next().unwrap_or_default().to_owned()),
        ("Cells as expected", format!("{} of {}", sum(&expected), grouped(all))),
        ("Segments forged", sum(&|c| c.forgeries.iter().map(|f| f.forged).sum())),
        ("Lost by the observer", sum(&|c| c.sniffer_dropped)),
        ("Took", format!("{:.0} s ({})", result.run.seconds, result.run.ended_by)),
    ];
    html! { dl.facts { @for (name, value) in facts { div { dt { (name) } dd { (value) } } } } }
}

/// Which protections hold everywhere and which do not; where a cell is not as expected, that first.
fn advice(result: &LabResult) -> Markup {
    const MOST: usize = 6;
    let odd: Vec<_> = cells(result).filter(|c| c.judgement == Judgement::Differs).collect();
    let summary = result.positive_control.held.then(|| overview::summary(result));
    let mended: Vec<_> = result.scenarios.iter().flat_map(|s| &s.mended).collect();
    html! {
        @if !odd.is_empty() {
            p {
                "Look at what differs from its expectation first: "
                @for c in odd.iter().take(MOST) { a href={ "#" (paths::spaceless(&c.id)) } { (c.id) } " " }
                @if odd.len() > MOST { "and " (odd.len() - MOST) " more" }
            }
        }
        @match summary {
            None => p {
                "Nothing can be advised from this run: see what weakens it, mend that, and run it again."
            },
            Some(sets) if sets.iter().all(Vec::is_empty) && !mended.is_empty() => {
                ul.plain { @for case in mended {
                    li {
                        strong { (case.case) ": " }
                        @let helping: Vec<_> = case.helping().map(|m| m.to_string()).collect();
                        @if case.helpless() { "none of the mends tried helps." }
                        @else if helping.is_empty() { "nothing to mend, or not shown." }
                        @else { (helping.join(", ")) " helps." }
                    }
                } }
            },
            Some(sets) if sets.iter().all(Vec::is_empty) => p {
                "No protection was tried on a path that is translated, so this run recommends none."
            },
            Some([safe, open, unsure]) => {
                ul.plain #finding { @for (class, symbol, what, sets) in [
                    ("good", "✓", "Nothing leaked on any path tried", safe),
                    ("bad", "✕", "Leaks or resets on a path tried", open),
                    ("doubt", "?", "Not proved on a path tried", unsure),
                ] {
                    @if !sets.is_empty() {
                        li { strong.(class) { (symbol) " " (what) ": " } (sets.join("; ")) "." }
                    }
                } }
                p.small.soft {
                    "A drop of INVALID also drops legal segments where conntrack sees a part of a connection alone "
                    "(asymmetric routes, direct server return)."
                }
            },
        }
    }
}

/// What was skipped, lost, or not measured.
fn weaknesses(result: &LabResult) -> Markup {
    const MOST: usize = 40;
    let mut items: Vec<String> = result.reasons.clone();
    for s in &result.scenarios {
        if s.judgement != Judgement::AsExpected {
            items.extend(s.reasons.iter().map(|r| format!("{}: {r}", s.called())));
        }
        if s.judgement == Judgement::Skipped && s.reasons.is_empty() {
            items.push(format!("{}: skipped, no reason given", s.name));
        }
    }
    items.extend(cells(result).filter(|c| c.sniffer_dropped > 0).map(|c| {
        let lost = count(c.sniffer_dropped, "segment", "segments");
        format!("{}: boom-server’s raw socket lost {lost}", c.id)
    }));
    let unread = cells(result).filter(|c| c.captured_resets.is_none()).count() as u64;
    if unread > 0 {
        items.push(format!(
            "{} without a whole capture: there boom-server’s own count stands alone.",
            count(unread, "cell", "cells")
        ));
    }
    let mut said = BTreeSet::new();
    items.retain(|i| said.insert(i.clone()));
    html! {
        @if items.is_empty() {
            p {
                "Nothing: no cell was skipped or cut short, no segment was lost by the observer, and in every cell "
                "the capture, boom-server, load-client and the kernel’s counters agree."
            }
        } @else {
            div.notes { ul {
                @for item in items.iter().take(MOST) { li { (item) } }
                @if items.len() > MOST { li { "and " (items.len() - MOST) " more, in results.json" } }
            } }
        }
    }
}

fn reading() -> Markup {
    html! {
        p {
            "boom-server accepts ordinary connections and sends one forged segment on each, as if the server had "
            "sent it. What comes back tells what the client’s node did with it:"
        }
        dl { @for (class, symbol, name, text) in [
            ("kills", "✕", "kills", "It reached the client untranslated. The client’s kernel answered RST with \
              exactly the sequence number that the server expects, and that ended the connection."),
            ("leaked", "△", "leaks", "It reached the client untranslated and drew an RST that the server ignores. \
              Harmless, and the same fault."),
            ("delivered", "✓", "delivered", "It was translated and reached the client’s own socket, which \
              answered with a duplicate or challenge ACK. Harmless."),
            ("dropped", "⊘", "dropped", "Silence, and the connection was alive afterwards; the drop rule’s \
              counter moved by as much."),
            ("mixed", "≈", "mixed", "Not all did the same, or not all were proved; the counts say what."),
            ("no-connection", "–", "no connection", "No connection could be made, so nothing was forged."),
        ] {
            dt.(class) { span.sym aria-hidden="true" { (symbol) } " " strong { (name) } }
            dd { (text) }
        } }
        p {
            "A reset counts only if its addresses and numbers match a segment that was forged on that very "
            "connection. A cell is as expected only if boom-server, load-client, the rules’ counters and, where "
            "there is one, the capture agree with each other; otherwise it is inconclusive, whatever it seems to "
            "show."
        }
    }
}
