//! The comparison as one page that needs nothing beside it.

use std::fmt::Write as _;

use crate::document::kernels::{Agreement, KernelCell, KernelRow, KernelRun, KernelsResult};
use crate::document::lab::{Judgement, Seen};

use super::table::{explanation, protections};
use super::text::{behaviour, held, mark, segments, word};

const STYLE: &str = "
:root{color-scheme:light dark;--line:#8886;--kills:#c62828;--leaked:#b26a00;--good:#2e7d32;--doubt:#6a5acd}
@media(prefers-color-scheme:dark){:root{--kills:#ff7b72;--leaked:#e3a03a;--good:#6fcf7f;--doubt:#b3a6ff}}
body{font:16px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
.wide{overflow-x:auto}table{border-collapse:collapse}
th,td{border-bottom:1px solid var(--line);padding:.3rem .7rem;text-align:left;vertical-align:top}
thead th{border-bottom:2px solid var(--line);vertical-align:bottom}.kernels td{min-width:9rem}td small{display:block;opacity:.75}
.kills,.kills-later,.hangs{color:var(--kills);font-weight:700}.leaked,.mixed,.no-connection{color:var(--leaked)}
.delivered,.dropped{color:var(--good)}.doubt{color:var(--doubt);font-style:italic}
.differs td,.differs th{background:#fb02}.unexplained td,.unexplained th{background:#f002}
.first th,.first td{border-top:2px solid var(--line)}
code{font-size:.9em}
";

/// The whole page.
#[must_use]
pub fn render(result: &KernelsResult) -> String {
    let mut out =
        String::from("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n");
    let _ = write!(
        out,
        "<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>conntrack-canary: kernel generations</title>\n<style>{STYLE}</style></head><body>\n\
         <h1>The same forged segments on {} kernels</h1>\n<p>Compared {} by {} {}. Judgement: <strong>{}</strong>, {}.</p>\n",
        result.kernels.len(),
        minute(&result.run.ended),
        escape(&result.run.program),
        escape(&result.run.version),
        result.judgement,
        held(&result.rows)
    );
    list(&mut out, &result.reasons);
    kernels(&mut out, &result.kernels);
    for group in result
        .rows
        .chunk_by(|a, b| (a.path, a.family, a.front_end) == (b.path, b.family, b.front_end))
    {
        table(&mut out, group, &result.kernels);
    }
    notes(&mut out, result);
    out.push_str("</body></html>\n");
    out
}

fn kernels(out: &mut String, kernels: &[KernelRun]) {
    out.push_str(
        "<h2>Kernels</h2><div class=\"wide\"><table class=\"kernels\"><thead><tr><th>kernel</th><th>version</th>\
         <th>segments below the window</th><th>ran</th><th>judgement</th><th>results</th></tr></thead><tbody>\n",
    );
    for k in kernels {
        let ran = match (k.seconds, &k.started) {
            (Some(seconds), Some(started)) => {
                format!("{}, {seconds:.0} s {}", minute(started), k.accel)
            }
            _ => k.state.to_string(),
        };
        let _ = write!(
            out,
            "<tr><th>{}</th><td>{}<small>{}</small></td><td>{}</td><td>{}</td><td>{}",
            escape(&k.name),
            escape(k.version.as_deref().unwrap_or("unknown")),
            escape(&k.source),
            behaviour(k.old_segments),
            escape(&ran),
            k.judgement
        );
        for reason in &k.reasons {
            let _ = write!(out, "<small>{}</small>", escape(reason));
        }
        let _ = writeln!(
            out,
            "</td><td><code>{}</code></td></tr>",
            escape(&k.results).replace('/', "/<wbr>")
        );
    }
    out.push_str("</tbody></table></div>\n");
}

fn table(out: &mut String, rows: &[KernelRow], kernels: &[KernelRun]) {
    let Some(first) = rows.first() else { return };
    let _ = write!(
        out,
        "<h2>{}, {}, {} rules: {}</h2><div class=\"wide\"><table><thead><tr><th></th><th>protection</th><th>forgery</th>",
        first.path,
        first.family,
        first.front_end,
        segments(rows)
    );
    for kernel in kernels {
        let _ = write!(out, "<th>{}</th>", escape(&kernel.name));
    }
    out.push_str("</tr></thead><tbody>\n");
    let mut before: Option<&KernelRow> = None;
    for row in rows {
        let new = before.is_none_or(|b| b.protections != row.protections);
        let class = match row.agreement {
            Agreement::OldSegments => "differs",
            Agreement::Unexplained => "unexplained",
            Agreement::Alike | Agreement::NotCompared => "",
        };
        let _ = write!(
            out,
            "<tr class=\"{class}{}\"><td>{}</td><td>{}</td><th>{}</th>",
            if new { " first" } else { "" },
            mark(row.agreement),
            protections(&row.protections),
            row.forgery
        );
        for cell in &row.cells {
            self::cell(out, cell);
        }
        out.push_str("</tr>\n");
        before = Some(row);
    }
    out.push_str("</tbody></table></div>\n");
}

fn cell(out: &mut String, cell: &KernelCell) {
    let class = match cell.seen {
        None => "doubt",
        Some(Seen::Kills) => "kills",
        Some(seen) => seen.as_str(),
    };
    let _ = write!(out, "<td class=\"{class}\">{}", word(cell));
    if cell.seen.is_some() {
        let _ = write!(out, " <small>{} of {}</small>", cell.counted, cell.forged);
    }
    if cell.judgement != Judgement::AsExpected {
        for reason in &cell.reasons {
            let _ = write!(out, "<small>{}</small>", escape(reason));
        }
    }
    out.push_str("</td>");
}

fn notes(out: &mut String, result: &KernelsResult) {
    out.push_str("<h2>Reading it</h2><ul>\n");
    for agreement in [Agreement::OldSegments, Agreement::Unexplained] {
        if result.rows.iter().any(|r| r.agreement == agreement) {
            let _ = writeln!(
                out,
                "<li><strong>{}</strong> {}</li>",
                mark(agreement),
                escape(explanation(agreement))
            );
        }
    }
    out.push_str(
        "<li><strong>KILLS</strong>: the segment reached the client untranslated, and the RST that it drew ended the \
         connection. <strong>leaked</strong>: it drew an RST that the server ignores. <strong>delivered</strong>: it \
         was translated and reached the client's own socket. <strong>dropped</strong>: silence, and the connection \
         was alive afterwards. <strong>inconclusive</strong>: nothing was proved, the reason stands beside it.</li>\n\
         <li>Under emulation (tcg) behaviour is proved, timing is not: no performance figure is taken there.</li></ul>\n",
    );
}

fn list(out: &mut String, items: &[String]) {
    if items.is_empty() {
        return;
    }
    out.push_str("<ul>");
    for item in items {
        let _ = write!(out, "<li>{}</li>", escape(item));
    }
    out.push_str("</ul>\n");
}

/// An RFC 3339 time for a reader: to the minute.
fn minute(time: &str) -> String {
    match (time.get(..10), time.get(11..16)) {
        (Some(day), Some(minute)) => escape(&format!("{day} {minute} UTC")),
        _ => escape(time),
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            _ => out.push(c),
        }
    }
    out
}
