//! A page that needs nothing else: the whole, then each part with its tables.

use canary_runtime::page::{Page, class};
use maud::{Markup, html};

use super::{Sheet, Table};

/// What the page has besides the look of every page.
const STYLE: &str =
    "h1,h2{border-left:.5rem solid;padding:0 0 0 .6rem;border-top:0}h1>*,h2>*{color:var(--ink)}";

pub(crate) fn page(sheet: &Sheet) -> String {
    let list =
        |all: &[String]| html! { @if !all.is_empty() { ul { @for r in all { li { (r) } } } } };
    let body = html! {
        main {
            h1.(class(sheet.verdict)) { span { (sheet.headline) } }
            p.soft { (sheet.command) ", " (sheet.about) }
            (list(&sheet.reasons))
            @for line in &sheet.advice { p { (line) } }
            @for part in &sheet.parts {
                h2.(class(part.verdict)) { span { (part.title) } }
                @if !part.facts.is_empty() { p.soft { (part.facts) } }
                @if !part.names.is_empty() { details { summary { "Names" } p { (part.names.join(", ")) } } }
                (list(&part.reasons))
                @for t in &part.tables { (table(t)) (list(&t.reasons)) }
            }
        }
    };
    let title = &format!("{}: {}", sheet.command, sheet.headline);
    Page { title, style: STYLE, ..Page::default() }.render(&body)
}

fn table(t: &Table) -> Markup {
    html! {
        @if !t.title.is_empty() { h3 { (t.title) ": " (t.word) } }
        div.wide tabindex="0" role="region" aria-label="Table" { table {
            thead { tr { @for c in t.columns { th { (c) } } } }
            tbody {
                @for row in &t.rows {
                    tr {
                        @for (n, cell) in row.cells.iter().enumerate() {
                            @if n == 0 { td.(class(row.verdict)) { (cell) } } @else { td { (cell) } }
                        }
                    }
                }
            }
        } }
    }
}
