//! A page that needs nothing else: the groups, then their paths.

use canary_record::names::Verdict;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::table::{facts, path_end};
use crate::report::{DiagnoseResult, word};
use crate::verdict::{FamilyRow, groups};

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1a1a1a}\
table{border-collapse:collapse;width:100%;margin:.5rem 0 1rem}th,td{text-align:left;padding:.25rem .6rem;border-bottom:1px solid #ddd;vertical-align:top}\
.v{border-left:.5rem solid #b3261e}.i{border-left:.5rem solid #a15c00}.p{border-left:.5rem solid #1b6e3c}\
h2,h1{padding-left:.6rem}.f{color:#555}@media(prefers-color-scheme:dark){body{background:#161616;color:#eee}td,th{border-color:#444}.f{color:#aaa}}";

/// The page.
#[must_use]
pub fn page(result: &DiagnoseResult) -> String {
    let c = &result.cluster;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { "kubectl conntrack diagnose: " (c.context) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 class=(class(result.verdict)) { (result.headline()) }
                p.f { "Context " (c.context) ", Kubernetes " (c.version) ", " (result.run.started) }
                @if !result.reasons.is_empty() { ul { @for r in &result.reasons { li { (r) } } } }
                @for line in &result.advice { p { (line) } }
                @for group in groups(&result.nodes) {
                    h2 class=(class(group.like.verdict)) {
                        (word(group.like.verdict)) ": " (group.names.len()) " nodes"
                    }
                    p.f { (facts(group.like)) }
                    details { summary { "Names" } p { (group.names.join(", ")) } }
                    @if !group.like.reasons.is_empty() { ul { @for r in &group.like.reasons { li { (r) } } } }
                    @for f in &group.like.families { (family(f)) }
                }
            }
        }
    };
    page.into_string()
}

fn family(f: &FamilyRow) -> Markup {
    html! {
        h3 { (f.family) ": " @if f.bad_flags_alone { "vulnerable to bad flags alone" } @else { (f.verdict) } }
        table {
            thead { tr { th { "Path" } th { "Verdict" } th { "Diagnosis" } th { "Nodes passed" } th { "Leaked, or why nothing is proved" } } }
            tbody {
                @for p in &f.paths {
                    tr {
                        td { (p.path) } td class=(class(p.verdict)) { (p.verdict) }
                        td { @if let Some(d) = p.diagnosis { (d) } @else { "-" } }
                        td { (p.passed.join(", ")) } td { (path_end(p)) }
                    }
                }
            }
        }
        @if !f.reasons.is_empty() { ul { @for r in &f.reasons { li { (r) } } } }
    }
}

const fn class(v: Verdict) -> &'static str {
    match v {
        Verdict::Protected => "p",
        Verdict::Vulnerable => "v",
        Verdict::Inconclusive => "i",
    }
}
