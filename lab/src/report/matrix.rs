//! The tables of the page: every path by every protection, and every forgery.

use std::collections::BTreeSet;

use crate::document::lab::{Judgement, LabResult, ProtectionKind, ScenarioResult, Seen};
use canary_record::names::Forgery;

use super::fold::{self, Exposure, Overview, Row, Sum};
use super::markup::{Esc, count, grouped, put};
use super::words;

/// Every path by every set of protections, the worst of each.
pub(super) fn overview(out: &mut String, result: &LabResult) {
    let everywhere = fold::overview(result, true);
    let one_node = fold::overview(result, false);
    out.push_str("<section aria-labelledby=\"overview\"><h2 id=\"overview\">At a glance</h2>\n");
    if everywhere.paths.is_empty() && one_node.paths.is_empty() {
        out.push_str("<p>No cell was run.</p></section>\n");
        return;
    }
    out.push_str(
        "<p>What each path’s connections are exposed to under each protection: the worst over rules, \
         IP families and repetitions.</p>\n",
    );
    grid(
        out,
        &everywhere,
        "Protections that every node has. The forgery overshoot, which is for research, is left out.",
    );
    grid(out, &one_node, "Protections that differ from node to node");
    out.push_str("</section>\n");
}

fn grid(out: &mut String, overview: &Overview, caption: &str) {
    if overview.paths.is_empty() {
        return;
    }
    put!(
        out,
        "<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"Paths by protections\">\
         <table class=\"grid\">\n<caption>{caption}</caption>\n<thead><tr><th scope=\"col\" \
         class=\"first\">Path</th>"
    );
    for set in &overview.protections {
        put!(out, "<th scope=\"col\">{}</th>", Esc(words::protections(set)));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for (path, columns) in &overview.paths {
        put!(out, "<tr><th scope=\"row\" class=\"first\">{}</th>", words::path(*path));
        for exposure in columns {
            exposed(out, exposure.as_ref());
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
}

fn exposed(out: &mut String, exposure: Option<&Exposure>) {
    let Some(exposure) = exposure else {
        out.push_str("<td class=\"o not-tried\">not tried</td>");
        return;
    };
    let (class, symbol, word) = match exposure {
        Exposure::Safe => ("safe", "✓", "safe"),
        Exposure::NoConnection => ("no-connection", "–", "no connection"),
        Exposure::NotProved => ("not-proved", "?", "not proved"),
        Exposure::Leaks => ("leaks", "△", "leaks"),
        Exposure::Hangs => ("hangs", "△", "hangs"),
        Exposure::Resets(_) => ("resets", "✕", "resets"),
    };
    put!(
        out,
        "<td class=\"o {class}\"><span class=\"sym\" aria-hidden=\"true\">{symbol}</span> <b>{word}</b>"
    );
    match exposure {
        Exposure::Resets(by) => {
            let by: Vec<_> = by.iter().map(|f| f.as_str()).collect();
            put!(out, "<small>by {}</small>", by.join(", "));
        }
        Exposure::Leaks => out.push_str("<small>none that resets</small>"),
        _ => {}
    }
    out.push_str("</td>");
}

/// A table for each scenario: protections by forgeries.
pub(super) fn tables(out: &mut String, result: &LabResult) {
    out.push_str(
        "<section aria-labelledby=\"matrix\"><h2 id=\"matrix\">Every forgery</h2>\n<p>What became of \
         each kind of forged segment, with the number that did so of the number forged. Rules and IP \
         families that saw the same share a row.</p>\n",
    );
    for scenario in &result.scenarios {
        table(out, scenario);
    }
    out.push_str("</section>\n");
}

fn table(out: &mut String, s: &ScenarioResult) {
    let (symbol, word) = words::judgement(s.judgement);
    put!(
        out,
        "<h3 id=\"s-{0}\">{1} <span class=\"tag {2}\">{symbol} {word}</span></h3>\n<p class=\"why small\">\
         {3}</p>\n",
        Esc(&s.name),
        Esc(&s.title),
        s.judgement,
        Esc(s.why.trim())
    );
    for reason in &s.reasons {
        put!(out, "<p class=\"notes\">{}</p>\n", Esc(reason));
    }
    let rows = fold::rows(&s.cells);
    if rows.is_empty() {
        if s.timeline.is_none() {
            out.push_str("<p>No cell was run.</p>\n");
        }
        return;
    }
    let forgeries: BTreeSet<Forgery> =
        rows.iter().flat_map(|r| r.forgeries.keys().copied()).collect();
    let several = rows.iter().any(|r| r.path != rows[0].path);
    put!(
        out,
        "<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"{0}: protections by \
         forgeries\"><table>\n<caption>{0}. Source: {1}.</caption>\n<thead><tr><th scope=\"col\" \
         class=\"first\">Protection</th>",
        Esc(&s.title),
        Esc(s.source.trim().trim_end_matches('.'))
    );
    for f in &forgeries {
        put!(out, "<th scope=\"col\">{f}<small>{}</small></th>", words::forgery(*f));
    }
    out.push_str("<th scope=\"col\">Judgement</th></tr></thead>\n<tbody>\n");
    for row in &rows {
        self::row(out, row, &forgeries, several);
    }
    out.push_str("</tbody></table></div>\n");
}

fn row(out: &mut String, row: &Row<'_>, forgeries: &BTreeSet<Forgery>, several: bool) {
    put!(
        out,
        "<tr class=\"row\"><th scope=\"row\" class=\"first\">{}",
        Esc(words::protections(&row.protections))
    );
    if several {
        put!(out, "<small>{}</small>", words::path(row.path));
    }
    variants(out, row);
    out.push_str("</th>");
    for f in forgeries {
        match row.forgeries.get(f) {
            Some(sum) => outcome(out, *f, sum, row),
            None => out.push_str("<td class=\"o not-tried\">not tried</td>"),
        }
    }
    let (symbol, word) = words::judgement(row.judgement);
    put!(
        out,
        "<td class=\"j {}\"><span class=\"sym\" aria-hidden=\"true\">{symbol}</span> {word}</td></tr>\n",
        row.judgement
    );
    put!(out, "<tr class=\"meaning\"><td colspan=\"{}\"><div>", forgeries.len() + 2);
    let mut said: Vec<(&str, &str)> = Vec::new();
    for c in &row.cells {
        let sentence = (c.meaning.as_str(), c.advice.as_str());
        if !said.contains(&sentence) {
            said.push(sentence);
        }
    }
    for (meaning, advice) in said {
        put!(out, "{} ", Esc(meaning));
        if !advice.is_empty() {
            put!(out, "<strong>{}</strong> ", Esc(advice));
        }
    }
    reasons(out, row);
    out.push_str("</div></td></tr>\n");
}

/// Which rules and families a row stands for, and whether others differ.
fn variants(out: &mut String, row: &Row<'_>) {
    let mut front_ends: Vec<_> = row.variants.iter().map(|v| words::front_end(v.0)).collect();
    front_ends.sort_unstable();
    front_ends.dedup();
    let mut families: Vec<_> = row.variants.iter().map(|v| words::family(v.1)).collect();
    families.sort_unstable();
    families.dedup();
    // Only where every combination is there do two lists say it all.
    let text = if front_ends.len() * families.len() == row.variants.len() {
        format!("{} · {}", front_ends.join(", "), families.join(", "))
    } else {
        let all: Vec<_> = row
            .variants
            .iter()
            .map(|v| format!("{} {}", words::front_end(v.0), words::family(v.1)))
            .collect();
        all.join(", ")
    };
    put!(out, "<small>{text}");
    let runs = row.cells.len() as u64;
    if runs > row.variants.len() as u64 {
        put!(out, " · {}", count(runs, "run", "runs"));
    }
    out.push_str("</small>");
    if !row.unanimous {
        out.push_str("<span class=\"tag differ\">≠ others differ</span>");
    }
}

fn outcome(out: &mut String, forgery: Forgery, sum: &Sum, row: &Row<'_>) {
    let Some(seen) = sum.seen else {
        out.push_str("<td class=\"o not-tried\">not tried</td>");
        return;
    };
    let (symbol, word) = words::seen(seen);
    put!(
        out,
        "<td class=\"o {}\"><span class=\"sym\" aria-hidden=\"true\">{symbol}</span> <b>{word}</b>",
        if seen == Seen::Kills { "kills" } else { seen.as_str() }
    );
    if seen == Seen::Mixed {
        let unknown: u64 = sum.unknown.values().sum();
        for (n, what) in [
            (sum.killed, "killed"),
            (sum.leaked - sum.killed.min(sum.leaked), "leaked, harmless"),
            (sum.delivered, "delivered"),
            (sum.dropped, "dropped"),
            (unknown, "not proved"),
        ] {
            if n > 0 {
                put!(out, "<small>{} {what}</small>", grouped(n));
            }
        }
        for (reason, n) in &sum.unknown {
            put!(out, "<small>{reason}: {}</small>", grouped(*n));
        }
    } else if seen != Seen::NoConnection {
        put!(out, "<small>{} of {}</small>", grouped(sum.agreeing()), grouped(sum.forged));
    }
    // Where a rule drops, its counter tells; elsewhere silence says nothing of this one.
    let rule = row.protections.iter().any(|p| p.kind != ProtectionKind::Liberal);
    if seen == Seen::Dropped && forgery.silent_when_delivered() && !rule {
        out.push_str("<small>or delivered: both are silent</small>");
    }
    if let Some(expected) = sum.expected.filter(|e| *e != seen) {
        put!(out, "<small>≠ expected {}</small>", words::seen(expected).1);
    }
    if row.judgement == Judgement::Inconclusive {
        out.push_str("<small>? not proved</small>");
    }
    out.push_str("</td>");
}

/// Why a row is not as expected, each reason once with the cells that gave it.
fn reasons(out: &mut String, row: &Row<'_>) {
    let mut said: Vec<(&str, u64)> = Vec::new();
    for reason in row.cells.iter().flat_map(|c| &c.reasons) {
        match said.iter_mut().find(|(r, _)| *r == reason.as_str()) {
            Some((_, n)) => *n += 1,
            None => said.push((reason, 1)),
        }
    }
    if said.is_empty() {
        return;
    }
    out.push_str("<ul class=\"doubt\">");
    for (reason, n) in said.iter().take(12) {
        put!(out, "<li>{}", Esc(reason));
        if *n > 1 {
            put!(out, " ({n} cells)");
        }
        out.push_str("</li>");
    }
    if said.len() > 12 {
        put!(out, "<li>and {} more, in results.json</li>", said.len() - 12);
    }
    out.push_str("</ul>");
}
