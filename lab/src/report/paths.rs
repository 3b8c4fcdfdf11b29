//! Every scenario's table of protections by forgeries, with the evidence of each cell and the
//! commands that build the same by hand behind a click.

use std::collections::BTreeSet;

use maud::{Markup, html};

use crate::document::lab::{CellResult, ForgeryResult, Judgement, LabResult, ScenarioResult, Seen};
use canary_record::names::Forgery;

use super::words::{self, count, counts, grouped};
use crate::judge::rows::{self as fold, Row};
use crate::observed::together;

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
        p {
            "What became of each kind of forged segment. A row says how many of each were forged; a field gives "
            "numbers where they differ from that. Rules and IP families that saw the same share a row."
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

fn scenario(result: &LabResult, s: &ScenarioResult) -> Markup {
    let rows = fold::rows(&s.cells);
    let forgeries: BTreeSet<Forgery> =
        rows.iter().flat_map(|r| r.forgeries.keys().copied()).collect();
    let several = rows.iter().any(|r| r.route != rows[0].route);
    html! {
        details.scenario id={ "s-" (spaceless(&s.called())) } open=[(s.judgement != Judgement::AsExpected).then_some("")] {
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
    let most = row.forgeries.values().map(|sum| sum.forged).max().unwrap_or(0);
    html! {
        tbody.found id=(id) data-resets=[kills.then_some("")] data-doubt=[doubt.then_some("")] {
            tr.row {
                th.first scope="row" {
                    (words::protections(&row.protections))
                    @if several { small { (words::route(row.route)) } }
                    small {
                        (variants(row)) " · " (grouped(most)) " each"
                    }
                    @if !row.unanimous { span.tag.differ { "≠ others differ" } }
                }
                @for f in forgeries {
                    @match row.forgeries.get(f).map(|sum| (sum, sum.seen)) {
                        Some((sum, seen)) => (outcome(*f, sum, seen, row, most)),
                        None => td.not-tried { "not tried" },
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

/// One field of a row, of whose forgeries the most frequent was forged `most` times.
fn outcome(forgery: Forgery, sum: &ForgeryResult, seen: Seen, row: &Row<'_>, most: u64) -> Markup {
    let (symbol, word) = words::seen(seen);
    // Where a rule drops, its counter tells; elsewhere silence says nothing of this one.
    let rule = row.protections.drop();
    html! {
        td.(seen) {
            (symbol) " " (word)
            @if seen == Seen::Mixed {
                @for (what, n) in sum.parts().into_iter().filter(|(_, n)| *n > 0) {
                    small { (grouped(n)) " " (what) }
                }
                @for (reason, n) in &sum.counts.unknown { small { (reason) ": " (grouped(*n)) } }
            } @else if seen != Seen::NoConnection && (sum.agreeing(), sum.forged) != (most, most) {
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
    let said = together(row.cells.iter().map(|c| ((&c.meaning, &c.advice), c)));
    let doubts = together(row.cells.iter().flat_map(|c| c.reasons.iter().map(move |why| (why, c))));
    html! {
        @for ((meaning, advice), _) in said {
            (meaning) " "
            @if !advice.is_empty() { strong { (advice) } " " }
        }
        @if !doubts.is_empty() {
            ul.doubt {
                @for (reason, cells) in doubts.iter().take(MOST) {
                    li { (reason) @if cells.len() > 1 { " (" (cells.len()) " cells)" } }
                }
                @if doubts.len() > MOST { li { "and " (doubts.len() - MOST) " more, in results.json" } }
            }
        }
    }
}

/// What every cell of a row rests on: what all of them say once, then what some say besides.
fn evidence(row: &Row<'_>) -> Markup {
    let facts: Vec<Vec<Fact<'_>>> = row.cells.iter().map(|c| facts(c)).collect();
    let common = |fact: &&Fact<'_>| facts.iter().all(|f| f.contains(fact));
    let shared = told(facts.iter().take(1).flatten().filter(common));
    let own = |facts: &Vec<Fact<'_>>| told(facts.iter().filter(|f| !common(f)));
    let alike = together(facts.iter().map(own).zip(&row.cells));
    html! {
        details.evidence {
            summary { "Evidence of " (count(row.cells.len() as u64, "cell", "cells")) }
            p { (shared) }
            ul { @for (own, cells) in alike { li {
                @for (n, c) in cells.iter().enumerate() {
                    @if n > 0 { ", " }
                    // What something leads to: a list of doubts, a drawing of its captures.
                    @let led = c.judgement != Judgement::AsExpected || !c.captures.is_empty();
                    b id=[led.then(|| spaceless(&c.id))] {
                        (words::proxy_mode(c.proxy_mode)) " " (words::family(c.family))
                        @if c.repetition > 1 { ", repetition " (c.repetition) }
                    }
                    @for k in &c.captures {
                        " " a href=(k.file) { (k.host) @if let Some(f) = k.forgery { " " (f) } ".pcap" }
                    }
                }
                @if !own.is_empty() { "; " (own) }
            } } }
        }
    }
}

type Fact<'a> = (&'a str, String);

/// Facts in words: those of one thing together.
fn told<'a>(facts: impl Iterator<Item = &'a Fact<'a>>) -> String {
    let facts: Vec<_> = facts.collect();
    let each = facts.chunk_by(|a, b| a.0 == b.0).map(|same| {
        let what: Vec<_> = same.iter().map(|(_, what)| what.as_str()).collect();
        format!("{}: {}", same[0].0, what.join(", "))
    });
    each.collect::<Vec<_>>().join("; ")
}

/// Each fact, and what it is of: a node, or the whole cell.
fn facts(c: &CellResult) -> Vec<Fact<'_>> {
    // What came out the same of all is in the row.
    let mixed = c.forgeries.iter().filter(|f| f.agreeing() != f.forged);
    let mixed: Vec<_> = mixed.map(|f| format!("{} {}", f.forgery, counts(f.parts()))).collect();
    let mut facts = Vec::new();
    if !mixed.is_empty() {
        facts.push(("forged", mixed.join("; ")));
    }
    facts.extend(c.boom_diagnosis.map(|d| ("boom-server’s diagnosis", d.to_string())));
    if c.sniffer_dropped > 0 {
        facts.push(("lost by its raw socket", grouped(c.sniffer_dropped)));
    }
    let client = counts(c.client.iter().map(|(k, n)| (k.as_str(), *n)));
    facts.push(("the application’s connections", client));
    let captured = c.captured_resets.as_ref();
    let resets = captured.map(|resets| counts(resets.iter().map(|(k, n)| (k.as_str(), *n))));
    facts.push(("RSTs in the capture", resets.unwrap_or_else(|| "not captured whole".to_owned())));
    for n in &c.nodes {
        let mut fact = |what: String| facts.push((n.node.as_str(), what));
        fact(format!("be_liberal={}", u8::from(n.be_liberal)));
        fact(format!("DNAT {}", grouped(n.dnat)));
        for (what, by) in n.conntrack.iter().filter(|(_, by)| **by > 0) {
            fact(format!("{what} {}", grouped(*by)));
        }
        for (hook, by) in words::by_hook(&n.drop_rules) {
            fact(format!("{hook} drop {}", grouped(by)));
        }
    }
    facts
}

/// Lines that two scenarios must begin with alike for one to refer to the other.
const ALIKE: usize = 20;

/// How to build the same by hand. What an earlier scenario's commands begin with is named, not
/// repeated.
pub(super) fn commands(result: &LabResult, s: &ScenarioResult) -> Markup {
    // A comment names a case, and builds nothing.
    let built = |s: &ScenarioResult| -> Vec<String> {
        let lines = s.commands.iter().flat_map(|list| &list.lines);
        lines.filter(|l| !l.starts_with('#')).cloned().collect()
    };
    let own = built(s);
    let mut before: Option<(&ScenarioResult, usize, usize)> = None;
    for other in result.scenarios.iter().take_while(|o| o.called() != s.called()) {
        let lines = built(other);
        let alike = lines.iter().zip(&own).take_while(|(a, b)| a == b).count();
        if alike >= ALIKE && before.is_none_or(|(_, most, _)| alike > most) {
            before = Some((other, alike, lines.len()));
        }
    }
    let skip = before.map_or(0, |(_, alike, _)| alike);
    html! {
        @match before {
            _ if own.is_empty() => {},
            Some((other, alike, all)) if alike == own.len() && alike == all => p.small.by-hand {
                "By hand: as for " (by_hand(other)) "."
            },
            _ => details.commands id={ "by-hand-" (spaceless(&s.called())) } {
                summary { "Build it by hand, as root, in a network namespace for each host" }
                @for list in &s.commands { p.small { (list.title) } }
                @if let Some((other, alike, all)) = before {
                    p.small {
                        @if alike == all { "All lines" } @else { "The first " (alike) " lines" }
                        " as for " (by_hand(other)) ", then:"
                    }
                }
                pre tabindex="0" { code { (own[skip..].join("\n")) } }
            },
        }
    }
}

fn by_hand(s: &ScenarioResult) -> Markup {
    html! { a href={ "#by-hand-" (spaceless(&s.called())) } { (s.title) } }
}
