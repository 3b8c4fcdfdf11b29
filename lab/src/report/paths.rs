//! Every scenario's table of protections by forgeries, with the evidence of each cell and the
//! commands that build the same by hand behind a click.

use std::collections::BTreeSet;

use maud::{Markup, html};

use crate::document::lab::{CellResult, ForgeryResult, Judgement, LabResult, ScenarioResult, Seen};
use canary_record::names::Forgery;

use super::words::{self, count, counts, grouped};
use crate::judge::rows::{self as fold, Row};

/// The id of an element: of a row, a cell, a scenario.
pub(super) fn anchor(scenario: &str, row: &str) -> String {
    spaceless(&format!("{scenario}:{row}"))
}

/// HTML wants an id without white space.
pub(super) fn spaceless(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join("-")
}

/// All scenarios that have cells, or that were to have some.
pub(super) fn section(result: &LabResult) -> Markup {
    let scenarios = || result.scenarios.iter().filter(|s| s.timeline.is_none());
    html! {
        section aria-labelledby="matrix" {
            h2 #matrix { "Every forgery" }
            p {
                "What became of each kind of forged segment, with the number that did so of the number forged. "
                "Rules and IP families that saw the same share a row."
            }
            // The script shows it: without one there is nothing that filters.
            div #filter hidden="" {
                label for="words" { "Filter" }
                input #words type="search" placeholder="hairpin kills, be_liberal, ipv6 …" autocomplete="off";
                label for="shown" { "Show" }
                select #shown {
                    option value="" { "all rows" }
                    option value="resets" { "what resets connections" }
                    option value="doubt" { "what is not as expected" }
                }
                output #matches for="words shown" aria-live="polite" {}
            }
            @for s in scenarios() { (scenario(result, s)) }
        }
    }
}

fn scenario(result: &LabResult, s: &ScenarioResult) -> Markup {
    let rows = fold::rows(&s.cells);
    let forgeries: BTreeSet<Forgery> =
        rows.iter().flat_map(|r| r.forgeries.keys().copied()).collect();
    let several = rows.iter().any(|r| r.route != rows[0].route);
    html! {
        details.scenario id={ "s-" (spaceless(&s.name)) } open=[(s.judgement != Judgement::AsExpected).then_some("")] {
            summary {
                h3 { (s.title) }
                span.tag.(s.judgement) { (judged(s.judgement)) }
                @if !rows.is_empty() { span.soft { (gist(&rows)) } }
            }
            p.why.small { (s.why.trim()) }
            @for reason in &s.reasons { p.notes { (reason) } }
            @if rows.is_empty() { p { "No cell was run." } } @else {
                div.wide tabindex="0" role="region" aria-label={ (s.title) ": protections by forgeries" } {
                    table {
                        caption { (s.title) ". Source: " (s.source.trim().trim_end_matches('.')) "." }
                        thead { tr {
                            th.first scope="col" { "Protection" }
                            @for f in &forgeries { th scope="col" { (f) small { (words::forgery(*f)) } } }
                            th scope="col" { "Judgement" }
                        } }
                        @for r in &rows { (row(s, r, &forgeries, several)) }
                    }
                }
            }
            (commands(result, s))
        }
    }
}

/// `resets in 3 of 10 rows`
fn gist(rows: &[Row<'_>]) -> String {
    let killing = rows.iter().filter(|r| r.forgeries.values().any(|s| s.counts.killed > 0)).count();
    format!("resets in {killing} of {}", count(rows.len() as u64, "row", "rows"))
}

fn judged(j: Judgement) -> Markup {
    let (symbol, word) = words::judgement(j);
    html! { (symbol) " " (word) }
}

fn row(s: &ScenarioResult, row: &Row<'_>, forgeries: &BTreeSet<Forgery>, several: bool) -> Markup {
    let id = anchor(&s.name, &row.id);
    let kills = row.forgeries.values().any(|s| s.counts.killed > 0);
    let doubt = row.judgement != Judgement::AsExpected;
    html! {
        tbody.found id=(id) data-resets=[kills.then_some("")] data-doubt=[doubt.then_some("")] {
            tr.row {
                th.first scope="row" {
                    (words::protections(&row.protections))
                    @if several { small { (words::route(row.route)) } }
                    small { (variants(row)) " " a.link href={ "#" (id) } aria-label="link" { "#" } }
                    @if !row.unanimous { span.tag.differ { "≠ others differ" } }
                }
                @for f in forgeries {
                    @match row.forgeries.get(f).map(|sum| (sum, sum.seen)) {
                        Some((sum, seen)) => (outcome(*f, sum, seen, row)),
                        None => td.o.not-tried { "not tried" },
                    }
                }
                td.j.(row.judgement) { (judged(row.judgement)) }
            }
            tr.meaning { td colspan=(forgeries.len() + 2) { div { (meaning(row)) (evidence(row)) } } }
        }
    }
}

/// Which rules and families a row stands for.
fn variants(row: &Row<'_>) -> String {
    let proxy_modes: BTreeSet<_> = row.variants.iter().map(|v| words::proxy_mode(v.0)).collect();
    let families: BTreeSet<_> = row.variants.iter().map(|v| words::family(v.1)).collect();
    let list = |of: BTreeSet<&str>| of.into_iter().collect::<Vec<_>>().join(", ");
    // Only where every combination is there do two lists say it all.
    let text = if proxy_modes.len() * families.len() == row.variants.len() {
        format!("{} · {}", list(proxy_modes), list(families))
    } else {
        let pair = |v: &fold::Variant| format!("{} {}", words::proxy_mode(v.0), words::family(v.1));
        row.variants.iter().map(pair).collect::<Vec<_>>().join(", ")
    };
    let runs = row.cells.len() as u64;
    if runs > row.variants.len() as u64 {
        format!("{text} · {}", count(runs, "run", "runs"))
    } else {
        text
    }
}

fn outcome(forgery: Forgery, sum: &ForgeryResult, seen: Seen, row: &Row<'_>) -> Markup {
    let (symbol, word) = words::seen(seen);
    // Where a rule drops, its counter tells; elsewhere silence says nothing of this one.
    let rule = row.protections.drop();
    html! {
        td.o.(seen) {
            b { (symbol) " " (word) }
            @if seen == Seen::Mixed {
                @for (what, n) in sum.parts().into_iter().filter(|(_, n)| *n > 0) {
                    small { (grouped(n)) " " (what) }
                }
                @for (reason, n) in &sum.counts.unknown { small { (reason) ": " (grouped(*n)) } }
            } @else if seen != Seen::NoConnection {
                small { (grouped(sum.agreeing())) " of " (grouped(sum.forged)) }
            }
            @if seen == Seen::Dropped && forgery.silent_when_delivered() && !rule {
                small { "or delivered: both are silent" }
            }
            @if let Some(expected) = sum.expected.filter(|e| *e != seen) {
                small { "≠ expected " (words::seen(expected).1) }
            }
            @if row.judgement == Judgement::Inconclusive { small { "? not proved" } }
        }
    }
}

/// What a row means, what to do, and why it is not as expected: each sentence once.
fn meaning(row: &Row<'_>) -> Markup {
    const MOST: usize = 12;
    let mut said: Vec<(&str, &str)> = Vec::new();
    let mut doubts: Vec<(&str, u64)> = Vec::new();
    for c in &row.cells {
        let sentence = (c.meaning.as_str(), c.advice.as_str());
        if !said.contains(&sentence) {
            said.push(sentence);
        }
        for reason in &c.reasons {
            match doubts.iter_mut().find(|(r, _)| r == reason) {
                Some((_, n)) => *n += 1,
                None => doubts.push((reason, 1)),
            }
        }
    }
    html! {
        @for (meaning, advice) in said {
            (meaning) " "
            @if !advice.is_empty() { strong { (advice) } " " }
        }
        @if !doubts.is_empty() {
            ul.doubt {
                @for (reason, n) in doubts.iter().take(MOST) {
                    li { (reason) @if *n > 1 { " (" (n) " cells)" } }
                }
                @if doubts.len() > MOST { li { "and " (doubts.len() - MOST) " more, in results.json" } }
            }
        }
    }
}

/// What every cell of a row rests on: what all of them say once, then what each says besides.
fn evidence(row: &Row<'_>) -> Markup {
    let facts: Vec<Vec<String>> = row.cells.iter().map(|c| facts(c)).collect();
    let common = |fact: &&String| facts.iter().all(|f| f.contains(fact));
    html! {
        details.evidence {
            summary { "Evidence of " (count(row.cells.len() as u64, "cell", "cells")) }
            @let said: Vec<&str> = facts.iter().take(1).flatten().filter(common).map(String::as_str).collect();
            p { (said.join("; ")) }
            ul { @for (c, facts) in row.cells.iter().zip(&facts) { li {
                b id=(spaceless(&c.id)) {
                    (words::proxy_mode(c.proxy_mode)) " " (words::family(c.family))
                    @if c.repetition > 1 { ", repetition " (c.repetition) }
                }
                @for fact in facts.iter().filter(|f| !common(f)) { "; " (fact) }
                @for k in &c.captures {
                    " " a href=(k.file) { (k.host) @if let Some(f) = k.forgery { " " (f) } ".pcap" }
                }
            } } }
        }
    }
}

fn facts(c: &CellResult) -> Vec<String> {
    // What came out the same of all is in the row.
    let mixed = c.forgeries.iter().filter(|f| f.agreeing() != f.forged);
    let mixed: Vec<_> = mixed.map(|f| format!("{} {}", f.forgery, counts(f.parts()))).collect();
    let mut facts = Vec::new();
    if !mixed.is_empty() {
        facts.push(format!("forged: {}", mixed.join("; ")));
    }
    facts.extend(c.boom_diagnosis.map(|d| format!("boom-server’s diagnosis: {d}")));
    if c.sniffer_dropped > 0 {
        facts.push(format!("lost by its raw socket: {}", grouped(c.sniffer_dropped)));
    }
    let client = counts(c.client.iter().map(|(k, n)| (k.as_str(), *n)));
    facts.push(format!("the application’s connections: {client}"));
    facts.push(match &c.captured_resets {
        None => "not captured whole".to_owned(),
        Some(resets) => {
            let resets = counts(resets.iter().map(|(k, n)| (k.as_str(), *n)));
            format!("RSTs in the capture: {resets}")
        }
    });
    for n in &c.nodes {
        let counted = n.conntrack.iter().filter(|(_, by)| **by > 0);
        let counted = counted.map(|(counter, by)| format!("{counter} {}", grouped(*by)));
        let set = [
            format!("{}: be_liberal={}", n.node, u8::from(n.be_liberal)),
            format!("DNAT {}", grouped(n.dnat)),
        ];
        facts.push(set.into_iter().chain(counted).collect::<Vec<_>>().join(", "));
        if !n.drop_rules.is_empty() {
            let dropped = words::by_hook(&n.drop_rules);
            let dropped = dropped.iter().filter(|(_, by)| **by > 0);
            let dropped: Vec<_> =
                dropped.map(|(hook, by)| format!("{hook} {}", grouped(*by))).collect();
            let none = if dropped.is_empty() { "nothing" } else { "" };
            facts.push(format!("{}: dropped by rule: {none}{}", n.node, dropped.join(", ")));
        }
    }
    facts
}

/// How to build the same by hand; once where several scenarios share their topology.
pub(super) fn commands(result: &LabResult, s: &ScenarioResult) -> Markup {
    let first = result.scenarios.iter().find(|o| o.commands == s.commands).unwrap_or(s);
    html! {
        @if s.commands.is_empty() {} @else if first.name == s.name {
            details.commands id={ "by-hand-" (spaceless(&s.name)) } {
                summary { "Build it by hand, as root, in a network namespace for each host" }
                @for list in &s.commands {
                    p.small { (list.title) }
                    pre tabindex="0" { code { (list.lines.join("\n")) } }
                }
            }
        } @else {
            p.small.by-hand { "By hand: as for " a href={ "#by-hand-" (spaceless(&first.name)) } { (first.title) } "." }
        }
    }
}
