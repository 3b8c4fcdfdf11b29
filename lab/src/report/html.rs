//! The report as one page that needs nothing beside it: no script, no font, no
//! picture from elsewhere. Pure: a result and the packets of its captures in,
//! markup out, which is well-formed XML as well as HTML.

use std::collections::BTreeMap;

use crate::document::lab::{CellResult, Judgement, LabResult, Path, ScenarioResult};
use canary_record::names::Forgery;

use super::details;
use super::fold::{self, Exposure};
use super::ladder::{self, Ladder, Packet};
use super::ladder_view;
use super::markup::{Esc, count, grouped, put};
use super::matrix;
use super::words;

const STYLE: &str = include_str!("style.css");

/// The packets of each capture, by its file as results.json names it.
pub type Captures = BTreeMap<String, Vec<Packet>>;

/// The whole page.
#[must_use]
pub fn render(result: &LabResult, captures: &Captures) -> String {
    let mut out = String::with_capacity(128 * 1024);
    let verdict = verdict(result);
    put!(
        &mut out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>conntrack-lab: {}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <a class=\"skip\" href=\"#main\">Skip to the report</a>\n",
        Esc(&verdict)
    );
    let ladders = ladders(result, captures);
    let timed: Vec<_> = result.scenarios.iter().filter(|s| s.timeline.is_some()).collect();
    head(&mut out, result, &verdict, !timed.is_empty());
    out.push_str("<main id=\"main\">\n");
    weaknesses(&mut out, result);
    matrix::overview(&mut out, result);
    matrix::tables(&mut out, result);
    ladder_view::section(&mut out, &ladders, result);
    if !timed.is_empty() {
        details::timelines(&mut out, &timed);
    }
    details::environment(&mut out, result);
    if details::of_this_machine(result) {
        details::commands(&mut out, result);
    }
    details::evidence(&mut out, result);
    reading(&mut out);
    out.push_str("</main>\n");
    put!(
        &mut out,
        "<footer><p>Written by {} {} from results.json, which holds every number on this page. \
         Nothing here was loaded from elsewhere, and no script runs.</p></footer>\n</body>\n</html>\n",
        Esc(&result.run.program),
        Esc(&result.run.version)
    );
    out
}

/// All cells of a run.
pub(super) fn cells(result: &LabResult) -> impl Iterator<Item = &CellResult> {
    result.scenarios.iter().flat_map(|s| &s.cells)
}

/// The run in one sentence.
#[must_use]
pub fn verdict(result: &LabResult) -> String {
    let of = |j: Judgement| cells(result).filter(|c| c.judgement == j).count() as u64;
    let all = cells(result).count() as u64;
    if all == 0 {
        // A run over time alone, such as that of k8s/experiment.
        return match result.judgement {
            Judgement::AsExpected => "Every step ran, and no result is missing.",
            Judgement::Differs => "A step did not show what was expected.",
            Judgement::Inconclusive => "Not all is proved: the reasons are below.",
            Judgement::Skipped => "Not everything could be run here.",
        }
        .to_owned();
    }
    match result.judgement {
        Judgement::AsExpected if result.positive_control.held => {
            let staged = result.scenarios.iter().filter(|s| s.timeline.is_some()).count() as u64;
            format!(
                "Reproduced: without protection conntrack lets connections be reset on this kernel, and \
                 {}{} behaved as expected.",
                if all == 1 {
                    "the one cell".to_owned()
                } else {
                    format!("all {} cells", grouped(all))
                },
                if staged == 0 {
                    String::new()
                } else {
                    format!(" and {}", count(staged, "scenario over time", "scenarios over time"))
                }
            )
        }
        Judgement::AsExpected => {
            "Nothing is proved: every cell is as expected, but the positive control did not hold."
                .to_owned()
        }
        Judgement::Differs => {
            let timed = || result.scenarios.iter().filter(|s| s.timeline.is_some());
            let staged = timed().filter(|s| s.judgement == Judgement::Differs).count() as u64;
            format!(
                "{} of {} cells{} did not behave as expected on this kernel.",
                grouped(of(Judgement::Differs)),
                grouped(all),
                if staged == 0 {
                    String::new()
                } else {
                    let all = timed().count() as u64;
                    format!(
                        " and {staged} of {}",
                        count(all, "scenario over time", "scenarios over time")
                    )
                }
            )
        }
        Judgement::Inconclusive if !result.positive_control.held => {
            "Nothing is proved: the unprotected path did not reset, so this run could not have \
             seen the fault."
                .to_owned()
        }
        Judgement::Inconclusive => format!(
            "Not all is proved: {} of {} cells behaved as expected, {} gave no answer{}.",
            grouped(of(Judgement::AsExpected)),
            grouped(all),
            grouped(of(Judgement::Inconclusive)),
            if of(Judgement::Inconclusive) == 0 { ", and a scenario was not finished" } else { "" }
        ),
        Judgement::Skipped => {
            "Not everything could be run here; what ran behaved as expected.".to_owned()
        }
    }
}

fn head(out: &mut String, result: &LabResult, verdict: &str, timed: bool) {
    let (symbol, word) = words::judgement(result.judgement);
    let control = &result.positive_control;
    put!(
        out,
        "<header>\n<p class=\"kicker\">conntrack-lab report · Kubernetes issue #74839 · {}</p>\n\
         <h1 id=\"verdict\">{}</h1>\n<p><span class=\"status {}\"><span aria-hidden=\"true\">{symbol}\
         </span> {word}</span></p>\n",
        Esc(&result.run.started),
        Esc(verdict),
        result.judgement
    );
    put!(out, "<p class=\"lead\" id=\"positive-control\">");
    if control.held {
        put!(
            out,
            "<strong class=\"good\">✓ The positive control held:</strong> {} of {} <code>above-window\
             </code> segments forged on unprotected ClusterIP connections reset them, so this run could \
             see the fault wherever it is.",
            grouped(control.killed),
            grouped(control.forged)
        );
    } else if control.forged == 0 {
        out.push_str(
            "<strong class=\"doubt\">? No positive control was tried:</strong> no <code>above-window</code> \
             segment met a connection without protection. No “delivered” or “dropped” on this page proves \
             a protection.",
        );
    } else {
        put!(
            out,
            "<strong class=\"doubt\">? The positive control did not hold:</strong> {} of {} <code>\
             above-window</code> segments forged on unprotected ClusterIP connections reset them. No \
             “delivered” or “dropped” on this page proves a protection.",
            grouped(control.killed),
            grouped(control.forged)
        );
    }
    out.push_str("</p>\n");
    finding(out, result);
    facts(out, result);
    out.push_str("<nav aria-label=\"On this page\"><ul>");
    let mut links =
        vec![("overview", "At a glance"), ("matrix", "Every forgery"), ("ladder", "How one dies")];
    if timed {
        links.push(("time", "Over time"));
    }
    links.push(("environment", "Environment"));
    if details::of_this_machine(result) {
        links.push(("repeat", "Repeat it"));
    }
    links.extend([("evidence", "Evidence"), ("reading", "How to read this")]);
    for (id, text) in links {
        put!(out, "<li><a href=\"#{id}\">{text}</a></li>");
    }
    out.push_str("</ul></nav>\n</header>\n");
}

/// What the overview says: which protections hold everywhere, which do not.
fn finding(out: &mut String, result: &LabResult) {
    if !result.positive_control.held {
        return;
    }
    let overview = fold::overview(result, true);
    let (mut safe, mut open, mut unsure) = (Vec::new(), Vec::new(), Vec::new());
    for (n, set) in overview.protections.iter().enumerate().filter(|(_, set)| !set.is_empty()) {
        let found = || {
            let translated = overview.paths.iter().filter(|(p, _)| *p != Path::PodIp);
            translated.filter_map(move |(_, c)| c.get(n)?.as_ref())
        };
        let count_of = |f: &dyn Fn(&Exposure) -> bool| found().filter(|e| f(e)).count() as u64;
        let tried = count_of(&|_| true);
        let bad = count_of(&|e| *e > Exposure::NotProved);
        let doubtful = count_of(&|e| *e == Exposure::NotProved);
        let name = words::protections(set);
        if bad > 0 {
            open.push(format!("{name} ({bad} of {})", count(tried, "path", "paths")));
        } else if doubtful > 0 {
            unsure.push(format!("{name} ({doubtful} of {})", count(tried, "path", "paths")));
        } else if tried > 0 {
            safe.push(format!("{name} ({})", count(tried, "path", "paths")));
        }
    }
    out.push_str("<ul class=\"lead plain\" id=\"finding\">\n");
    for (class, symbol, what, sets) in [
        ("good", "✓", "Nothing leaked on any path tried:", safe),
        ("bad", "✕", "Leaks or resets on a path tried:", open),
        ("doubt", "?", "Not proved on a path tried:", unsure),
    ] {
        if !sets.is_empty() {
            put!(
                out,
                "<li><strong class=\"{class}\">{symbol} {what}</strong> {}.</li>\n",
                Esc(sets.join("; "))
            );
        }
    }
    out.push_str("</ul>\n");
}

fn facts(out: &mut String, result: &LabResult) {
    let forged: u64 = cells(result).flat_map(|c| &c.forgeries).map(|f| f.forged).sum();
    let lost: u64 = cells(result).map(|c| c.sniffer_dropped).sum();
    let expected = cells(result).filter(|c| c.judgement == Judgement::AsExpected).count() as u64;
    let kernel = result.run.kernel.split(' ').next().unwrap_or_default();
    out.push_str("<dl class=\"facts\">\n");
    for (name, value) in [
        ("Kernel", kernel.to_owned()),
        (
            "Cells as expected",
            format!("{} of {}", grouped(expected), grouped(cells(result).count() as u64)),
        ),
        ("Segments forged", grouped(forged)),
        ("Segments lost by the observer", grouped(lost)),
        ("Took", format!("{:.0} s", result.run.seconds)),
        ("Ended by", result.run.ended_by.to_string()),
    ] {
        put!(out, "<div><dt>{name}</dt><dd>{}</dd></div>\n", Esc(value));
    }
    out.push_str("</dl>\n");
}

/// What was skipped, lost, or not measured, before the numbers that it weakens.
fn weaknesses(out: &mut String, result: &LabResult) {
    const MOST: usize = 40;
    let mut items: Vec<String> = result.reasons.clone();
    for s in &result.scenarios {
        if s.judgement != Judgement::AsExpected {
            items.extend(s.reasons.iter().map(|r| format!("{}: {r}", s.name)));
        }
        if s.judgement == Judgement::Skipped && s.reasons.is_empty() {
            items.push(format!("{}: skipped, no reason given", s.name));
        }
    }
    for c in cells(result) {
        if c.sniffer_dropped > 0 {
            items.push(format!(
                "{}: boom-server’s raw socket lost {}",
                c.id,
                count(c.sniffer_dropped, "segment", "segments")
            ));
        }
    }
    let unread = cells(result).filter(|c| c.captured_resets.is_none()).count() as u64;
    if unread > 0 {
        items.push(format!(
            "{} without a whole capture: there boom-server’s own count stands alone.",
            count(unread, "cell", "cells")
        ));
    }
    let mut said = std::collections::BTreeSet::new();
    items.retain(|i| said.insert(i.clone()));
    out.push_str("<section aria-labelledby=\"doubts\"><h2 id=\"doubts\">What weakens this</h2>\n");
    if items.is_empty() {
        out.push_str(
            "<p>Nothing: no cell was skipped or cut short, no segment was lost by the observer, and in \
             every cell the capture, boom-server, load-client and the kernel’s counters agree.</p>\n",
        );
    } else {
        out.push_str("<div class=\"notes\"><ul>\n");
        for item in items.iter().take(MOST) {
            put!(out, "<li>{}</li>\n", Esc(item));
        }
        if items.len() > MOST {
            put!(out, "<li>and {} more, in results.json</li>\n", items.len() - MOST);
        }
        out.push_str("</ul></div>\n");
    }
    out.push_str("</section>\n");
}

/// One ladder for each capture of a reset connection, the classic first.
fn ladders(result: &LabResult, captures: &Captures) -> Vec<Drawn> {
    let mut found = Vec::new();
    for scenario in &result.scenarios {
        for cell in &scenario.cells {
            found.extend(of_cell(scenario, cell, captures));
        }
    }
    // An unprotected ClusterIP and above-window: what the issue is about.
    found.sort_by_key(|l| {
        (
            !l.ladder.killed,
            !l.ladder.complete,
            l.path != Path::ClusterIp,
            !l.protections.is_empty(),
            l.ladder.forgery != Forgery::AboveWindow,
        )
    });
    found
}

/// A ladder and where it comes from.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// The packets.
    pub ladder: Ladder,
    /// The way from client to server.
    pub path: Path,
    /// What protected, in words.
    pub protections: String,
    /// The cell.
    pub cell: String,
    /// Where the client's and the server's capture were taken, and their files.
    pub files: Vec<(String, String)>,
}

fn of_cell(scenario: &ScenarioResult, cell: &CellResult, captures: &Captures) -> Vec<Drawn> {
    let mut found = Vec::new();
    let mut forgeries: Vec<Forgery> = cell.captures.iter().filter_map(|c| c.forgery).collect();
    forgeries.dedup();
    for forgery in forgeries {
        let own: Vec<_> = cell.captures.iter().filter(|c| c.forgery == Some(forgery)).collect();
        // The server pod's capture is the one taken in "server"; hairpin has no other.
        let server = own.iter().find(|c| c.host == "server");
        let client = own.iter().find(|c| c.host != "server").or(server);
        let (Some(client), Some(server)) = (client, server) else { continue };
        let packets = |file: &str| captures.get(file);
        let (Some(at_client), Some(at_server)) = (packets(&client.file), packets(&server.file))
        else {
            continue;
        };
        let Some(ladder) = ladder::build(at_client, at_server, forgery) else { continue };
        let mut files = vec![(client.host.clone(), client.file.clone())];
        if server.file != client.file {
            files.push((server.host.clone(), server.file.clone()));
        }
        let protections = if cell.protections.is_empty() {
            String::new()
        } else {
            words::protections(&cell.protections)
        };
        found.push(Drawn {
            ladder,
            path: cell.path,
            protections,
            cell: if cell.id.is_empty() { scenario.name.clone() } else { cell.id.clone() },
            files,
        });
    }
    found
}

fn reading(out: &mut String) {
    out.push_str(
        "<section aria-labelledby=\"reading\"><h2 id=\"reading\">How to read this</h2>\n\
         <p>boom-server accepts ordinary connections and sends one forged segment on each, as if the \
         server had sent it. What comes back tells what the client’s node did with it:</p>\n<dl>\n",
    );
    for (class, symbol, name, text) in [
        (
            "kills",
            "✕",
            "kills",
            "It reached the client untranslated. The client’s kernel answered RST with exactly the sequence number that the server expects, and that ended the connection.",
        ),
        (
            "leaked",
            "△",
            "leaks",
            "It reached the client untranslated and drew an RST that the server ignores. Harmless, and the same fault.",
        ),
        (
            "delivered",
            "✓",
            "delivered",
            "It was translated and reached the client’s own socket, which answered with a duplicate or challenge ACK. Harmless.",
        ),
        (
            "dropped",
            "⊘",
            "dropped",
            "Silence, and the connection was alive afterwards; the drop rule’s counter moved by as much.",
        ),
        (
            "mixed",
            "≈",
            "mixed",
            "Not all did the same, or not all were proved; the counts say what.",
        ),
        (
            "no-connection",
            "–",
            "no connection",
            "No connection could be made, so nothing was forged.",
        ),
    ] {
        put!(
            out,
            "<dt class=\"{class}\" ><span class=\"sym\" \
             aria-hidden=\"true\">{symbol}</span> <strong>{name}</strong></dt><dd>{text}</dd>\n"
        );
    }
    out.push_str(
        "</dl>\n<p>A reset counts only if its addresses and numbers match a segment that was forged on that \
         very connection. A cell is as expected only if boom-server, load-client, the rules’ counters \
         and, where there is one, the capture agree with each other; otherwise it is inconclusive, \
         whatever it seems to show.</p>\n</section>\n",
    );
}
