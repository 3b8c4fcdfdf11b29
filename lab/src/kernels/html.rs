//! The comparison as one page that needs nothing beside it.

use canary_runtime::page::Page;
use maud::{Markup, html};

use crate::document::kernels::{Agreement, KernelCell, KernelRow, KernelRun, KernelsResult};
use crate::document::lab::{Judgement, Seen};
use crate::report;

use super::table::{explanation, groups};
use super::text::{behaviour, case_word, held, mark, segments, word};

/// What the table has besides the look of the lab's report.
const STYLE: &str = "
.kernels td{min-width:9rem}td.doubt{font-style:italic}
tr.older>*{background:var(--warn-wash)}tr.unexplained>*{background:var(--bad-wash)}
";

pub(crate) fn render(result: &KernelsResult) -> String {
    let body = html! {
        main {
            h1 { "The same forged segments on " (result.kernels.len()) " kernels" }
            p {
                "Compared " (minute(&result.run.ended)) " by " (result.run.program) " " (result.run.version)
                ". Judgement: " strong.(result.judgement) { (result.judgement) } ", " (held(&result.rows)) "."
            }
            @if !result.reasons.is_empty() { ul { @for reason in &result.reasons { li { (reason) } } } }
            (kernels(&result.kernels))
            @for group in groups(&result.rows) { (table(group, &result.kernels)) }
            @if !result.cases.is_empty() { (cases(result)) }
            (notes(result))
        }
    };
    let style = &[report::html::STYLE, STYLE].concat();
    Page { title: "conntrack-canary: kernel generations", style, ..Page::default() }.render(&body)
}

fn kernels(kernels: &[KernelRun]) -> Markup {
    let ran = |k: &KernelRun| match (k.seconds, &k.started) {
        (Some(seconds), Some(started)) => {
            format!("{}, {seconds:.0} s {}", minute(started), k.accel)
        }
        _ => k.state.to_string(),
    };
    html! {
        h2 { "Kernels" }
        div.wide { table.kernels {
            thead { tr {
                @for head in ["kernel", "version", "segments below the window", "ran", "judgement", "results"] {
                    th { (head) }
                }
            } }
            tbody { @for k in kernels { tr {
                th { (k.name) }
                td { (k.version.as_deref().unwrap_or("unknown")) small { (k.source) } }
                td { (behaviour(k.old_segments)) }
                td { (ran(k)) }
                td { (k.judgement) @for reason in &k.reasons { small { (reason) } } }
                td { code { (k.results) } }
            } } }
        } }
    }
}

fn table(rows: &[KernelRow], kernels: &[KernelRun]) -> Markup {
    let Some(first) = rows.first() else { return Markup::default() };
    let class = |row: &KernelRow| match row.agreement {
        Agreement::OldSegments => "older",
        Agreement::Unexplained => "unexplained",
        Agreement::Alike | Agreement::NotCompared => "",
    };
    html! {
        h2 { (first.path) ", " (first.direction) ", " (first.family) ", " (first.proxy_mode) " rules: " (segments(rows)) }
        div.wide { table {
            thead { tr {
                th {} th { "protection" } th { "forgery" }
                @for kernel in kernels { th { (kernel.name) } }
            } }
            tbody { @for row in rows {
                tr.(class(row)) {
                    td { (mark(row.agreement)) }
                    td { (row.protections.to_string()) }
                    th { (row.forgery) }
                    @for c in &row.cells { (cell(c)) }
                }
            } }
        } }
    }
}

fn cases(result: &KernelsResult) -> Markup {
    html! {
        h2 { "Situations: how the client’s connections ended" }
        div.wide { table {
            thead { tr {
                th { "scenario" } th { "case" }
                @for kernel in &result.kernels { th { (kernel.name) } }
            } }
            tbody { @for case in &result.cases { tr {
                th { (case.scenario) }
                td { (case.case) }
                @for c in &case.cells {
                    td.doubt[c.judgement != Judgement::AsExpected] {
                        (case_word(c)) @for reason in &c.reasons { small { (reason) } }
                    }
                }
            } } }
        } }
    }
}

fn cell(cell: &KernelCell) -> Markup {
    let class = cell.seen.map_or("doubt", Seen::as_str);
    html! { td.(class) {
        (word(cell))
        @if cell.seen.is_some() { " " small { (cell.counted) " of " (cell.forged) } }
        @if cell.judgement != Judgement::AsExpected { @for reason in &cell.reasons { small { (reason) } } }
    } }
}

fn notes(result: &KernelsResult) -> Markup {
    html! {
        h2 { "Reading it" }
        ul {
            @for agreement in [Agreement::OldSegments, Agreement::Unexplained] {
                @if result.rows.iter().any(|r| r.agreement == agreement) {
                    li { strong { (mark(agreement)) } " " (explanation(agreement)) }
                }
            }
            li {
                strong { "KILLS" } ": the segment reached the client untranslated, and the RST that it drew ended the "
                "connection. " strong { "leaked" } ": it drew an RST that the server ignores. " strong { "delivered" }
                ": it was translated and reached the client’s own socket. " strong { "dropped" } ": silence, and the "
                "connection was alive afterwards. " strong { "inconclusive" } ": nothing was proved, the reason stands "
                "beside it."
            }
            li { "Under emulation (tcg) behaviour is proved, timing is not: no performance figure is taken there." }
        }
    }
}

/// An RFC 3339 time for a reader: to the minute.
fn minute(time: &str) -> String {
    match (time.get(..10), time.get(11..16)) {
        (Some(day), Some(minute)) => format!("{day} {minute} UTC"),
        _ => time.to_owned(),
    }
}
