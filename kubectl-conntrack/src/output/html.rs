//! A page that needs nothing else: the whole, then each part with its tables.

use canary_record::names::Verdict;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{Sheet, Table};

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1a1a1a}\
table{border-collapse:collapse;width:100%;margin:.5rem 0 1rem}th,td{text-align:left;padding:.25rem .6rem;border-bottom:1px solid #ddd;vertical-align:top}\
.v{border-left:.5rem solid #b3261e}.i{border-left:.5rem solid #a15c00}.p{border-left:.5rem solid #1b6e3c}\
h2,h1{padding-left:.6rem}.f{color:#555}@media(prefers-color-scheme:dark){body{background:#161616;color:#eee}td,th{border-color:#444}.f{color:#aaa}}";

/// The page.
#[must_use]
pub fn page(sheet: &Sheet) -> String {
    let list =
        |all: &[String]| html! { @if !all.is_empty() { ul { @for r in all { li { (r) } } } } };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { (sheet.command) ": " (sheet.headline) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 class=(class(sheet.verdict)) { (sheet.headline) }
                p.f { (sheet.command) ", " (sheet.about) }
                (list(&sheet.reasons))
                @for line in &sheet.advice { p { (line) } }
                @for part in &sheet.parts {
                    h2 class=(class(part.verdict)) { (part.title) }
                    @if !part.facts.is_empty() { p.f { (part.facts) } }
                    @if !part.names.is_empty() { details { summary { "Names" } p { (part.names.join(", ")) } } }
                    (list(&part.reasons))
                    @for t in &part.tables { (table(t)) (list(&t.reasons)) }
                }
            }
        }
    };
    page.into_string()
}

fn table(t: &Table) -> Markup {
    html! {
        @if !t.title.is_empty() { h3 { (t.title) ": " (t.word) } }
        table {
            thead { tr { @for c in t.columns { th { (c) } } } }
            tbody {
                @for row in &t.rows {
                    tr {
                        @for (n, cell) in row.cells.iter().enumerate() {
                            @if n == 0 { td class=(class(row.verdict)) { (cell) } } @else { td { (cell) } }
                        }
                    }
                }
            }
        }
    }
}

const fn class(v: Verdict) -> &'static str {
    match v {
        Verdict::Protected => "p",
        Verdict::Vulnerable => "v",
        Verdict::Inconclusive => "i",
    }
}
