//! Every path by every set of protections, on one screen.

use std::collections::BTreeSet;

use maud::{Markup, html};

use crate::document::lab::{LabResult, Path, Protection};

use super::paths::anchor;
use super::words;
use crate::judge::rows::{self as fold, Exposure, Found, Overview};

/// Both grids: protections that all nodes have, and those that one node has alone.
pub(super) fn section(result: &LabResult) -> Markup {
    let everywhere = fold::overview(result, true);
    let one_node = fold::overview(result, false);
    html! {
        @if everywhere.paths.is_empty() && one_node.paths.is_empty() {
            p { "No cell was run." }
        } @else {
            p {
                "What each path’s connections are exposed to under each set of protections: the worst over rules, "
                "IP families and repetitions. Each field leads to its row."
            }
            (grid(&everywhere, "Protections that every node has"))
            (grid(&one_node, "Protections that differ from node to node"))
            (key(&everywhere, &one_node))
        }
    }
}

fn grid(overview: &Overview, caption: &str) -> Markup {
    html! {
        @if !overview.paths.is_empty() {
            div.wide tabindex="0" role="region" aria-label="Paths by protections" {
                table.grid {
                    caption { (caption) }
                    thead { tr {
                        th.first scope="col" { "Path" }
                        @for set in &overview.protections { th scope="col" { (heading(set)) } }
                    } }
                    tbody { @for (route, columns) in &overview.paths { tr {
                        th.first scope="row" { (words::route(*route)) }
                        @for found in columns { (field(found.as_ref())) }
                    } } }
                }
            }
        }
    }
}

/// A set of protections as the head of a column: a line each, a letter each where it is narrow.
fn heading(set: &[Protection]) -> Markup {
    html! {
        @if set.is_empty() { span.long { "No protection" } span.short aria-hidden="true" { "–" } }
        @for (n, p) in set.iter().enumerate() {
            span.long { (words::protection(*p)) @if n + 1 < set.len() { " + " } }
            span.short aria-hidden="true" { (words::letter(*p)) }
        }
    }
}

fn field(found: Option<&Found>) -> Markup {
    let Some(found) = found else {
        return html! { td.o.not-tried { span.sym aria-hidden="true" { "·" } b { "not tried" } } };
    };
    let (class, symbol, word) = words::exposure(&found.exposure);
    html! {
        td.o.(class) {
            a href={ "#" (anchor(&found.scenario, &found.row)) } {
                span.sym aria-hidden="true" { (symbol) } " " b { (word) }
            }
            @match &found.exposure {
                Exposure::Resets(by) => {
                    small { "by " @for (n, f) in by.iter().enumerate() { @if n > 0 { ", " } (f) } }
                }
                Exposure::Leaks => small { "none that resets" },
                _ => {}
            }
        }
    }
}

/// What the letters and symbols of a narrow screen mean.
fn key(everywhere: &Overview, one_node: &Overview) -> Markup {
    let sets = everywhere.protections.iter().chain(&one_node.protections);
    let letters: BTreeSet<Protection> = sets.flat_map(|set| set.iter()).copied().collect();
    let exposures: BTreeSet<_> = everywhere
        .paths
        .iter()
        .chain(&one_node.paths)
        .flat_map(|(_, columns)| columns.iter().flatten())
        .map(|found| words::exposure(&found.exposure))
        .collect();
    html! {
        p.key aria-hidden="true" {
            @for p in &letters { span { b { (words::letter(*p)) } " " (words::protection(*p)) } " " }
            @for (class, symbol, word) in &exposures {
                span { b.(class) { (symbol) } " " (word) } " "
            }
        }
    }
}

/// What the overview says in words: sets of protections under which nothing leaked on any path,
/// those under which something leaked, hung or was reset, and those of which something was not
/// proved. A path without translation tells of none.
pub(super) fn summary(result: &LabResult) -> [Vec<String>; 3] {
    let overview = fold::overview(result, true);
    let [mut safe, mut open, mut unsure] = [const { Vec::new() }; 3];
    for (n, set) in overview.protections.iter().enumerate().filter(|(_, set)| !set.is_empty()) {
        let translated = overview.paths.iter().filter(|((p, _), _)| *p != Path::PodIp);
        let found: Vec<_> =
            translated.filter_map(|(_, c)| Some(&c.get(n)?.as_ref()?.exposure)).collect();
        let bad = found.iter().filter(|e| ***e > Exposure::NotProved).count();
        let doubtful = found.iter().filter(|e| ***e == Exposure::NotProved).count();
        let name = words::protections(set);
        let paths = words::count(found.len() as u64, "path", "paths");
        if bad > 0 {
            open.push(format!("{name} ({bad} of {paths})"));
        } else if doubtful > 0 {
            unsure.push(format!("{name} ({doubtful} of {paths})"));
        } else if !found.is_empty() {
            safe.push(format!("{name} ({paths})"));
        }
    }
    [safe, open, unsure]
}
